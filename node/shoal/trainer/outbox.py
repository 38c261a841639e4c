"""Messages on their way from the worker to others: headers over the socket to the daemon, vectors in shared memory,
where the daemon reads them, or another node of this machine."""

import heapq
import itertools
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from shoal import wire
from shoal.link import TRANSMIT, Channel, Segment
from shoal.messages import Message, PeerId
from shoal.words import LARGEST, words_of

DTYPES = {"f32": torch.float32, "f64": torch.float64, "u8": torch.uint8}
"""What travels, by the names of `wire.ELEMENT_BYTES`."""
LENT = TRANSMIT - 1
"""Slots that may be lent at a time: a model that was sent, the one that went on from there, and half the way to
another's. The other is for what is sent without having been lent."""
READ = TRANSMIT // 2
"""Slots that other nodes may be reading at a time: one that hangs must not keep them all."""


class Sum(NamedTuple):
    """The checksum of what was lent, as torch had left it after that change."""

    words: int
    nbytes: int
    change: int


class Reading(NamedTuple):
    """A slot that another node reads, or was reading when the connection to it broke."""

    peer: PeerId
    slot: int
    present: Callable[[], bool]  # whether its process is still there


def shape_of(vector: Tensor) -> wire.Shape:
    """How `vector` is announced."""
    name = next(name for name, dtype in DTYPES.items() if dtype == vector.dtype)
    return wire.Shape(vector.numel(), name)


def bytes_of(vector: Tensor) -> memoryview:
    """(nbytes,) uint8, where it lies."""
    return memoryview(vector.view(torch.uint8).numpy())  # type: ignore[arg-type]


class Outbox:
    """Keeps the order of the messages; a vector waits for a free slot of the shared memory, unless it lies in one."""

    def __init__(self, channel: Channel, segment: Segment) -> None:
        self._channel = channel
        self._free = list(range(TRANSMIT))  # a heap: the lowest is taken first, so that few ever take memory
        self._slots = [torch.frombuffer(segment.slot(k), dtype=torch.uint8) for k in range(TRANSMIT)]
        self._lent: dict[int, int] = {}  # address of the tensor -> slot, while its borrower holds it
        self._sums: dict[int, Sum] = {}  # of what was lent, where it is known
        self._readers: dict[PeerId, Callable[[], bool]] = {}  # who sees our slots; whether its process is there
        self._readings: dict[int, Reading] = {}  # by ticket
        self._tickets = itertools.count(1)
        self._used: Counter[int] = Counter()  # how many read a slot, the daemon included
        self._waiting: deque[tuple[PeerId, int, Message]] = deque()
        self.shared_bytes = 0  # that other nodes read where they lay

    def lend(self, elements: int, dtype: torch.dtype) -> Tensor | None:
        """A slot for a vector of that length, which `send` need not copy; None when there is none to spare.
        The slot is free again when nobody holds the tensor any more and nobody reads its bytes."""
        if len(self._lent) >= LENT or not self._free:
            return None
        slot = heapq.heappop(self._free)
        tensor = self._slots[slot][: elements * dtype.itemsize].view(dtype)
        self._lent[tensor.data_ptr()] = slot
        weakref.finalize(tensor, self._returned, tensor.data_ptr()).atexit = False
        return tensor

    def is_read(self, vector: Tensor) -> bool:
        """Whether it was lent, and the daemon or another node still reads it."""
        slot = self._lent.get(vector.data_ptr())
        return slot is not None and self._used[slot] > 0

    def summed(self, lent: Tensor, words: int) -> None:
        """The checksum of what was lent is known, until torch changes it."""
        self._sums[self._lent[lent.data_ptr()]] = Sum(words & LARGEST, lent.nbytes, lent._version)

    def send(self, peer: PeerId, conn: int, message: Message) -> None:
        """Hand over; the daemon drops what belongs to a connection that is gone."""
        self._waiting.append((peer, conn, message))
        self._pump()

    def sent(self, slot: int) -> None:
        """The daemon has written that slot's vector to the network, or dropped it; or its reader is done."""
        self._used[slot] -= 1
        self._free_if_unused(slot)
        self._pump()

    # --- nodes of this machine ----------------------------------------------------------------------------------

    def read_by(self, peer: PeerId, present: Callable[[], bool]) -> None:
        """`peer` sees our slots. What it read over an earlier connection it is done with: it says this after that."""
        self._readers[peer] = present
        self._end_readings(lambda reading: reading.peer == peer)
        self._pump()

    def unread_by(self, peer: PeerId) -> None:
        """The connection broke. What it was reading stays as it is until it is back, or its process gone."""
        self._readers.pop(peer, None)

    def taken(self, peer: PeerId, ticket: int) -> None:
        """`peer` is done with what it was given that ticket for. Anything else is ignored."""
        reading = self._readings.get(ticket)
        if reading is not None and reading.peer == peer:
            del self._readings[ticket]
            self.sent(reading.slot)

    @property
    def readers(self) -> list[PeerId]:
        """Who sees our slots, sorted."""
        return sorted(self._readers)

    def _may_read(self, peer: PeerId) -> bool:
        if len(self._readings) >= READ:
            self._end_readings(lambda reading: reading.peer not in self._readers and not reading.present())
        return peer in self._readers and len(self._readings) < READ

    def _end_readings(self, over: Callable[[Reading], bool]) -> None:
        for ticket, reading in list(self._readings.items()):
            if over(reading):
                del self._readings[ticket]
                self._used[reading.slot] -= 1
                self._free_if_unused(reading.slot)

    # --- inside -------------------------------------------------------------------------------------------------

    def _returned(self, address: int) -> None:
        slot = self._lent.pop(address)
        self._sums.pop(slot, None)
        if self._free_if_unused(slot):  # not while `_pump` lets go of what it has just sent
            self._pump()

    def _free_if_unused(self, slot: int) -> bool:
        unused = not self._used[slot] and slot not in self._lent.values()
        if unused:
            heapq.heappush(self._free, slot)
        return unused

    def _pump(self) -> None:
        while self._waiting:
            peer, conn, message = self._waiting[0]
            if message.vector is None:
                body, slot = wire.encode(message, None), -1
            else:
                lent = self._lent.get(message.vector.data_ptr())
                if lent is None and not self._free:
                    return
                slot = self._filled(message.vector) if lent is None else lent
                self._used[slot] += 1
                body, shared = self._announced(peer, message, slot)
                slot = -1 if shared else slot
            self._waiting.popleft()
            self._channel.send("send", body=body, peer=peer, conn=conn, slot=slot)

    def _filled(self, vector: Tensor) -> int:
        slot = heapq.heappop(self._free)
        self._slots[slot][: vector.nbytes].view(vector.dtype).copy_(vector)
        return slot

    def _announced(self, peer: PeerId, message: Message, slot: int) -> tuple[bytes, bool]:
        """(the header; whether the peer reads the vector in its slot, and none of it travels)."""
        assert message.vector is not None
        shape = shape_of(message.vector)
        shared = self._may_read(peer)
        if shared:
            ticket = next(self._tickets)
            self._readings[ticket] = Reading(peer, slot, self._readers[peer])
            shape = shape._replace(slot=slot, ticket=ticket, sum=self._sum(slot, message.vector))
            self.shared_bytes += shape.nbytes
        return wire.encode(message, shape), shared

    def _sum(self, slot: int, vector: Tensor) -> int:
        known = self._sums.get(slot)
        if known is None or known[1:] != (vector.nbytes, vector._version):
            known = Sum(words_of(bytes_of(vector)) & LARGEST, vector.nbytes, vector._version)
            if slot in self._lent.values():
                self._sums[slot] = known
        return known.words
