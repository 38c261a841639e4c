"""Keys and certificates on disk: never seen half-written, keys readable by their owner alone."""

import contextlib
import os
import stat
from pathlib import Path

from shoal.errors import SettingsError

FILE_LIMIT = 4 << 20
"""Bytes of any of these files; a revocation list takes 40 an entry."""


def private_folder(path: Path) -> None:
    """Makes a folder that its owner alone may enter. Raises SettingsError when it cannot, or when others may."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise SettingsError(f"folder {path} cannot be made: {error.strerror}") from None
    if mode & 0o022:
        raise SettingsError(f"folder {path} can be written by others (mode {mode:o}): chmod 700 {path}")


def write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Replaces a file as a whole, on disk when this returns; `private`: mode 0600 from its first byte."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()  # of a process that was killed
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from None


def read(path: Path, *, private: bool = False) -> bytes:
    """All of a file. Raises SettingsError when it is missing, too long, or `private` and readable by others."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    if private and mode & 0o077:
        raise SettingsError(
            f"key {path} can be read by others (mode {mode:o}): chmod 600 {path}; if one of them may have read it, "
            "revoke its certificate and get another"
        )
    if len(content) > FILE_LIMIT:
        raise SettingsError(f"{path} has more than {FILE_LIMIT} bytes, which is no key, certificate or list")
    return content
