"""What joins daemon and trainer of one node: framed packets over a socket pair, vectors in shared memory.

The daemon creates both and hands the descriptors down (`pass_fds`); they vanish with the two processes,
however those end. The trainer sizes the segment, because it learns d first. It writes the slots below
`TRANSMIT` and the daemon reads them; the `RECEIVE` slots after those go the other way. Whoever reads a slot says
in a packet when it is free again.
"""

import asyncio
import contextlib
import fcntl
import json
import mmap
import os
import secrets
import socket
import struct
import tempfile
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

TRANSMIT = 4
"""Slots for vectors on their way out."""
RECEIVE = 4
"""Slots for vectors that came in."""
LEAST_SLOT = 4096
"""Bytes of a slot at least: counts and scales travel in it, however small the model."""
FRAME_LIMIT = 16 << 20
"""Bytes of one packet; a longer one is refused before anything is allocated for it."""
NAME = "shoal"
"""What the names of segments begin with; the rest is random."""
QUEUE_LIMIT = 64 << 20
"""Bytes that may wait for the other process to read."""

_SIZES = struct.Struct("<II")  # bytes after the first number, bytes of JSON
_PAGE = mmap.PAGESIZE


class Packet(NamedTuple):
    """One packet: what it is, its fields (plain JSON values), and bytes that belong to it."""

    kind: str
    fields: dict[str, Any]
    body: bytes = b""


class Channel:
    """Packets over one end of a `socket.socketpair()`, in order.

    A frame is a u32 (bytes that follow it), a u32 (length of the JSON), the JSON and the body; little endian.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Takes over the socket."""
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, kind: str, /, body: bytes = b"", **fields: Any) -> None:
        """Queues a packet; never blocks. Drops it when the other process is gone: `receive` tells of that.

        Raises ValueError for a packet above FRAME_LIMIT, BufferError when QUEUE_LIMIT bytes wait unread.
        """
        text = json.dumps([kind, fields], separators=(",", ":")).encode()
        total = _SIZES.size - 4 + len(text) + len(body)
        if total > FRAME_LIMIT:
            raise ValueError(f"packet {kind!r} of {total} bytes; a packet has at most {FRAME_LIMIT}")
        transport = self._writer.transport
        if transport.is_closing():
            return
        waiting = transport.get_write_buffer_size()
        if waiting + total > QUEUE_LIMIT:
            raise BufferError(f"packet {kind!r} finds {waiting} bytes unread: the process at the other end hangs")
        self._writer.write(b"".join((_SIZES.pack(total, len(text)), text, body)))

    async def receive(self) -> Packet | None:
        """The next packet; None when the other process has closed its end or died, mid-packet or not.

        Raises ValueError when the sizes cannot be those of a packet, or the JSON is none.
        """
        try:
            total, length = _SIZES.unpack(await self._reader.readexactly(_SIZES.size))
            if total > FRAME_LIMIT or length > total - 4:
                raise ValueError(f"frame of {total} bytes, {length} of them JSON; expected at most {FRAME_LIMIT}")
            content = await self._reader.readexactly(total - 4)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        kind, fields = json.loads(content[:length])
        return Packet(kind, fields, content[length:])

    def close(self) -> None:
        """Sends what is queued, then closes; the other end reads to the end and gets None."""
        self._writer.close()


class Segment:
    """Vector slots in an anonymous file that both processes map; gone with the last of them, even by kill -9.

    The object owns its descriptor. Slots begin on pages, so that their vectors are aligned.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.slot_bytes = 0
        self.slots = 0
        self._stride = 0
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> Self:
        """An empty one; hand `fd` to the child through `pass_fds`."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create(f"{NAME}-{secrets.token_hex(16)}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.fchmod(fd, 0o600)
            return cls(fd)
        with tempfile.TemporaryFile() as file:  # without a name from the start
            return cls(os.dup(file.fileno()))

    @classmethod
    def attach(cls, fd: int, slot_bytes: int, slots: int) -> Self:
        """Maps what the other process has sized; keeps a duplicate of `fd`. ValueError if it is smaller."""
        segment = cls(-1)
        segment._lay_out(slot_bytes, slots)
        segment._fits(fd)
        segment.fd = os.dup(fd)
        segment._map = mmap.mmap(segment.fd, segment._length())
        return segment

    @classmethod
    def view(cls, fd: int, slot_bytes: int, slots: int) -> Self:
        """Maps another node's for reading only, and keeps no descriptor. ValueError if it is smaller."""
        segment = cls(-1)
        segment._lay_out(slot_bytes, slots)
        segment._fits(fd)
        segment._map = mmap.mmap(fd, segment._length(), prot=mmap.PROT_READ)
        return segment

    def size(self, slot_bytes: int, slots: int) -> None:
        """Sizes the segment, once and for all, and maps it; memory is taken as slots are written."""
        if self._map is not None:
            raise ValueError("the segment has its size already")
        self._lay_out(slot_bytes, slots)
        os.ftruncate(self.fd, self._length())
        with contextlib.suppress(OSError, AttributeError):  # a plain file has no seals
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._map = mmap.mmap(self.fd, self._length())

    def slot(self, k: int) -> memoryview:
        """Slot k: (slot_bytes,) uint8, writable but in a `view`."""
        if self._map is None or not 0 <= k < self.slots:
            raise IndexError(f"slot {k} of {self.slots}")
        start = k * self._stride
        return memoryview(self._map)[start : start + self.slot_bytes]

    def close(self) -> None:
        """Closes the descriptor; the memory lives on under the views that are still held."""
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _lay_out(self, slot_bytes: int, slots: int) -> None:
        if slot_bytes < 0 or slots < 1:
            raise ValueError(f"{slots} slots of {slot_bytes} bytes; expected at least one, of 0 bytes or more")
        self.slot_bytes, self.slots = slot_bytes, slots
        self._stride = max(1, -(-slot_bytes // _PAGE)) * _PAGE

    def _fits(self, fd: int) -> None:
        found = os.fstat(fd).st_size
        if found < self._length():
            raise ValueError(f"segment of {found} bytes, expected {self._length()} for {self.slots} slots")

    def _length(self) -> int:
        return self._stride * self.slots


class Slots:
    """The free list of one side. The lowest is taken first, so that few of them ever take memory."""

    def __init__(self, slots: Iterable[int]) -> None:
        self._all = frozenset(slots)
        self._taken: set[int] = set()
        self._free: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        for k in sorted(self._all):
            self._free.put_nowait(k)

    async def take(self) -> int:
        """A free slot, as soon as there is one. A cancelled wait loses none."""
        k = await self._free.get()
        self._taken.add(k)
        return k

    def take_nowait(self) -> int | None:
        """A free slot; None if there is none."""
        if self._free.empty():
            return None
        k = self._free.get_nowait()
        self._taken.add(k)
        return k

    def give(self, k: int) -> None:
        """Slot k is free again. Raises ValueError when it was not taken."""
        if k not in self._taken:
            raise ValueError(f"slot {k} was not taken; of {sorted(self._all)} taken are {sorted(self._taken)}")
        self._taken.remove(k)
        self._free.put_nowait(k)

    @property
    def free(self) -> int:
        """How many are free."""
        return self._free.qsize()
