"""The slots of other trainers of this machine, as this one sees them (`sharing.py`)."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from shoal import sharing, wire
from shoal.errors import BadVector
from shoal.link import TRANSMIT, Segment
from shoal.messages import PeerId
from shoal.sharing import Memory
from shoal.trainer.outbox import DTYPES, bytes_of
from shoal.words import LARGEST, words_and_finite, words_of


def _nothing(start: int, stop: int) -> None:
    """Beside what is checked."""


class Window(NamedTuple):
    """Of one peer: the slots that it writes."""

    memory: Memory
    segment: Segment
    slots: list[Tensor]


class Windows:
    """By peer, while the connection stands over which they were found."""

    def __init__(self, memory_fd: int, slot_bytes: int, *, wanted: bool) -> None:
        self.own = sharing.own(memory_fd) if wanted else None
        self._slot_bytes = slot_bytes
        self._open: dict[PeerId, Window] = {}

    def open(self, peer: PeerId, memory: Memory | None) -> str:
        """Look into a peer's memory; empty if that works, else why not."""
        if self.own is None or memory is None:
            return "one of the two shares no memory"
        try:
            segment = sharing.read_only(memory, self._slot_bytes, TRANSMIT)
        except sharing.NotShared as error:
            return str(error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is not writable, and nobody writes
            slots = [torch.frombuffer(segment.slot(k), dtype=torch.uint8) for k in range(TRANSMIT)]
        self._open[peer] = Window(memory, segment, slots)
        return ""

    def close(self, peer: PeerId) -> None:
        """Nothing of that peer is read any more, but for what somebody still holds."""
        self._open.pop(peer, None)

    def __contains__(self, peer: object) -> bool:
        return peer in self._open

    def presence(self, peer: PeerId) -> Callable[[], bool]:
        """Tells from now on whether that peer's process is still there, connected or not."""
        memory = self._open[peer].memory
        return lambda: sharing.is_there(memory)

    def vector(self, peer: PeerId, shape: wire.Shape) -> Tensor:
        """The vector of that shape where it lies, for reading only, and not before `check`.

        Raises BadVector, naming the peer, when it cannot lie there.
        """
        window = self._open.get(peer)
        if window is None or shape.slot is None or not 0 <= shape.slot < TRANSMIT or shape.nbytes > self._slot_bytes:
            where = f"slot {shape.slot} of its memory, {shape.nbytes} bytes"
            raise BadVector(f"{peer} announces a vector in {where}, which cannot be read here")
        return window.slots[shape.slot][: shape.nbytes].view(DTYPES[shape.dtype])


def check(peer: PeerId, shape: wire.Shape, vector: Tensor, beside: Callable[[int, int], None] = _nothing) -> bool:
    """Whether it is known to be finite. `beside(start, stop)` is called with coordinates that lie in the cache.

    Raises BadVector, naming the peer, when its checksum is not the one announced.
    """
    data = bytes_of(vector)
    if shape.dtype == "u8":
        words, finite = words_of(data) & LARGEST, False
    else:
        words, finite = words_and_finite(data, f"<{shape.dtype[0]}{wire.ELEMENT_BYTES[shape.dtype]}", beside)
    if words != shape.sum:
        raise BadVector(f"vector in the memory of {peer} has checksum {words:016x}, announced was {shape.sum:016x}")
    return finite
