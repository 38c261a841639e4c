"""Whether two nodes share a machine, and reading the other's vectors where they lie, if they do. Linux only.

A node's Hello says where its trainer's shared memory is: process, descriptor and name. Whoever can open just that
memory under `/proc` runs on the same kernel, sees the same processes and has the right to: other machines, users and
containers cannot, and for them nothing changes. The memory is opened for reading only; it is anonymous and sealed
against being cut short, so nothing is left behind and nothing can vanish under a reader, however either end dies.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from shoal.link import NAME, Segment

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LINK = re.compile(rf"/memfd:({NAME}-[0-9a-f]{{32}}) \(deleted\)")


class Memory(NamedTuple):
    """Where a trainer's memory is."""

    machine: str  # the same for all that look at the same memory on the same machine; says nothing of which
    pid: int
    fd: int
    name: str


class NotShared(Exception):
    """That memory cannot be read from here; the text says why."""


def own(fd: int) -> Memory | None:
    """Of this process's own segment; None where nobody could read it, and where this system has no such thing."""
    with contextlib.suppress(OSError, AttributeError):
        name = _name(f"/proc/self/fd/{fd}")
        if name and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return Memory(_machine(name), os.getpid(), fd, name)
    return None


def read_only(memory: Memory, slot_bytes: int, slots: int) -> Segment:
    """A view of another process's segment with that many slots. Raises NotShared."""
    path = f"/proc/{memory.pid}/fd/{memory.fd}"
    try:
        if memory.machine != _machine(memory.name):
            raise NotShared("it runs on another machine")
        if _name(path) != memory.name:  # before it is opened: what else might be there is not to be touched
            raise NotShared("its memory is not to be seen from here; it may run in another container")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotShared(f"its memory cannot be opened: {error.strerror}") from None
    try:
        if _name(f"/proc/self/fd/{fd}") != memory.name:
            raise NotShared("its memory is gone")
        if (owner := os.fstat(fd).st_uid) != os.geteuid():
            raise NotShared(f"its memory belongs to user {owner}, this is {os.geteuid()}")
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise NotShared("its memory could be cut short while it is read")
        return Segment.view(fd, slot_bytes, slots)
    except ValueError as error:
        raise NotShared(str(error)) from None
    finally:
        os.close(fd)


def is_there(memory: Memory) -> bool:
    """Whether that process still has it, and so may still read."""
    with contextlib.suppress(OSError):
        return _name(f"/proc/{memory.pid}/fd/{memory.fd}") == memory.name
    return False


def _name(path: str) -> str:
    """Of the segment that a link under /proc points to; empty for anything else."""
    found = _LINK.fullmatch(os.readlink(path))
    return found[1] if found else ""


def _machine(name: str) -> str:
    return hashlib.sha256(f"{BOOT_ID.read_text()} {name}".encode()).hexdigest()[:32]
