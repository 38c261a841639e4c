"""Several node daemons on this machine: real processes, zeroconf and gRPC on loopback."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shoal.history import read_history

STOP_WITHIN_S = 8.0


@dataclasses.dataclass
class NodeProcess:
    """One `shoal node` and its state folder."""

    name: str
    folder: Path
    process: "subprocess.Popen[bytes]"

    def facts(self) -> dict[str, Any] | None:
        """node.json: id, pid, addresses; None until the daemon has written it."""
        return _read_json(self.folder / "node.json")

    def result(self) -> dict[str, Any] | None:
        """result.json: how the node ended; None until then."""
        return _read_json(self.folder / "result.json")

    def status(self) -> dict[str, Any] | None:
        """/v1/status now; None when it does not answer."""
        facts = self.facts()
        if facts is None or self.process.poll() is not None:
            return None
        try:
            with urllib.request.urlopen(f"http://{facts['http']}/v1/status", timeout=2) as answer:
                status: dict[str, Any] = json.load(answer)
        except (OSError, ValueError):
            return None
        return status

    def history(self) -> list[dict[str, Any]]:
        """All lines of its history so far."""
        path = self.folder / "history.jsonl"
        return list(read_history(path)) if path.exists() else []

    def log_tail(self, lines: int = 5) -> str:
        """The last lines that it wrote to its terminal."""
        path = self.folder / "log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def start(
    folder: Path, settings: Mapping[str, Any], *, verb: str = "node", entry: tuple[str, ...] = ("-m", "shoal")
) -> NodeProcess:
    """A node, or a coordinator, with its state folder in `folder`, by its name."""
    name = str(settings["name"])
    state = folder / name
    state.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, *entry, verb, "--state-dir", str(state)]
    for key, value in settings.items():
        flag = "--" + key.replace("_", "-")
        argv += [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, str(value)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    with (state / "log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    return NodeProcess(name, state, process)


class Fleet:
    """Starts the nodes in the constructor and ends them with the `with` block, whatever happens inside."""

    def __init__(
        self, folder: Path, settings: Sequence[Mapping[str, Any]], *, entry: tuple[str, ...] = ("-m", "shoal")
    ) -> None:
        self.nodes = [start(folder, s, entry=entry) for s in settings]
        self.began = time.monotonic()

    def running(self) -> bool:
        """Whether any node has not ended."""
        return any(node.process.poll() is None for node in self.nodes)

    def failures(self) -> list[tuple[NodeProcess, int]]:
        """Nodes that have ended otherwise than in order, with their exit codes."""
        return [(n, code) for n in self.nodes if (code := n.process.poll()) not in (None, 0)]

    def wait(self, timeout_s: float) -> list[int | None]:
        """Exit codes once all have ended; None for those that have not within the time."""
        until = time.monotonic() + timeout_s
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.process.wait(max(0.0, until - time.monotonic()))
        return [node.process.poll() for node in self.nodes]

    def stop(self) -> None:
        """Ask all to stop, and kill those that do not within a few seconds."""
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        self.wait(STOP_WITHIN_S)
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def loopback_nodes(count: int, **settings: Any) -> list[dict[str, Any]]:
    """Settings of `count` nodes node-1, node-2, ... that start together, each with its part of the data. Their vectors
    travel, as between machines."""
    width = len(str(count))
    common = {"min_nodes": count, "device": "cpu", "log": "human", "share_memory": False, **settings}
    return [{"name": f"node-{k + 1:0{width}}", "shard": f"{k}/{count}", **common} for k in range(count)]


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content
