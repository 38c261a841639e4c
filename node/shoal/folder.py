"""The state folder of a node: its id, its incarnation, and the small files that tell others where it is."""

import fcntl
import json
import os
import re
import secrets
import socket
from pathlib import Path
from typing import Any

from shoal.errors import SettingsError

WRITABLE = "give --state-dir a folder that this user may write; in a container, a volume with its rights"


class StateFolder:
    """Held by one daemon at a time. The node id is made once; the incarnation grows with every start."""

    def __init__(self, path: Path, name: str) -> None:
        """Creates the folder if need be. Raises SettingsError when it cannot be used or another node holds it."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / "lock").open("a+")
        except OSError as error:
            raise SettingsError(f"state folder {path} cannot be used: {error.strerror}; {WRITABLE}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise SettingsError(
                f"state folder {path} is in use by another node on this machine; give this one a --state-dir of its own"
            ) from None
        self.name = name or re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "node"
        self.node_id = self._node_id()
        self.incarnation = self._next_incarnation()
        for left_over in ("node.json", "result.json"):
            (path / left_over).unlink(missing_ok=True)

    def _node_id(self) -> str:
        """NAME-xxxxxx. A folder that was given another name keeps its id's last part."""
        known = self._read("node-id")
        made = re.fullmatch(r"[A-Za-z0-9_-]+-([0-9a-f]{6})", known)
        node_id = f"{self.name}-{made[1] if made else secrets.token_hex(3)}"
        if node_id != known:
            self._write("node-id", node_id)
        return node_id

    def _next_incarnation(self) -> int:
        known = self._read("incarnation")
        incarnation = int(known) + 1 if known.isdigit() else 1
        self._write("incarnation", str(incarnation))
        return incarnation

    def tell(self, file: str, content: dict[str, Any]) -> None:
        """Writes a JSON file that is never seen half-written."""
        self._write(file, json.dumps(content, indent=1))

    def free_bytes(self) -> int | None:
        """Of its disk, for this user; None where the folder is gone."""
        try:
            disk = os.statvfs(self.path)
        except OSError:
            return None
        return disk.f_bavail * disk.f_frsize

    def close(self, *, running_file: str = "node.json") -> None:
        """Lets go of the folder."""
        (self.path / running_file).unlink(missing_ok=True)
        self._lock.close()

    def _read(self, file: str) -> str:
        try:
            return (self.path / file).read_text().strip()
        except OSError:
            return ""

    def _write(self, file: str, text: str) -> None:
        temporary = self.path / f".{file}.{os.getpid()}"
        try:
            with temporary.open("w") as out:
                out.write(text + "\n")
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(self.path / file)
        except OSError as error:
            raise SettingsError(f"state folder {self.path} cannot be written: {error.strerror}") from None
