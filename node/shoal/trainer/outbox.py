"""Messages on their way from the worker to the daemon: headers over the socket, vectors in shared memory."""

import heapq
import weakref
from collections import deque

import torch
from torch import Tensor

from shoal import wire
from shoal.link import TRANSMIT, Channel, Segment
from shoal.messages import AVERAGES, Message, PeerId

DTYPES = {"f32": torch.float32, "f64": torch.float64, "u8": torch.uint8}
"""What travels, by the names of `wire.ELEMENT_BYTES`."""
LENT = TRANSMIT // 2
"""Slots that may be lent at a time; the others are for what is sent without having been lent."""


def shape_of(vector: Tensor) -> wire.Shape:
    """How `vector` is announced."""
    name = next(name for name, dtype in DTYPES.items() if dtype == vector.dtype)
    return wire.Shape(vector.numel(), name)


class Outbox:
    """Keeps the order of the messages; a vector waits for a free slot of the shared memory, unless it lies in one."""

    def __init__(self, channel: Channel, segment: Segment, fold: bool) -> None:
        """`fold`: the daemon makes half the difference of what was lent for an average and of what comes back."""
        self._channel = channel
        self._fold = fold
        self._free = list(range(TRANSMIT))  # a heap: the lowest is taken first, so that few ever take memory
        self._slots = [torch.frombuffer(segment.slot(k), dtype=torch.uint8) for k in range(TRANSMIT)]
        self._lent: dict[int, int] = {}  # address of the tensor -> slot, while its borrower holds it
        self._on_the_way: set[int] = set()  # slots that the daemon reads
        self._waiting: deque[tuple[PeerId, int, Message]] = deque()

    def lend(self, like: Tensor) -> Tensor | None:
        """A slot as a tensor of that shape and dtype, which `send` need not copy; None when there is none to spare.
        It is free again when nobody holds the tensor any more and its bytes have been sent."""
        if like.device.type != "cpu" or len(self._lent) >= LENT or not self._free:
            return None
        slot = heapq.heappop(self._free)
        tensor = self._slots[slot][: like.nbytes].view(like.dtype)
        self._lent[tensor.data_ptr()] = slot
        weakref.finalize(tensor, self._returned, tensor.data_ptr()).atexit = False
        return tensor

    def send(self, peer: PeerId, conn: int, message: Message) -> None:
        """Hand over; the daemon drops what belongs to a connection that is gone."""
        self._waiting.append((peer, conn, message))
        self._pump()

    def sent(self, slot: int) -> None:
        """The daemon has written that slot's vector to the network, or dropped it."""
        self._on_the_way.discard(slot)
        if slot not in self._lent.values():
            heapq.heappush(self._free, slot)
            self._pump()

    def _returned(self, address: int) -> None:
        slot = self._lent.pop(address)
        if slot not in self._on_the_way:
            heapq.heappush(self._free, slot)
            self._pump()

    def _pump(self) -> None:
        while self._waiting:
            peer, conn, message = self._waiting[0]
            slot, shape, fold = -1, None, False
            if message.vector is not None:
                shape = shape_of(message.vector)
                lent = self._lent.get(message.vector.data_ptr())
                if lent is None and not self._free:
                    return
                slot = heapq.heappop(self._free) if lent is None else lent
                if lent is None:
                    self._slots[slot][: shape.nbytes].view(message.vector.dtype).copy_(message.vector)
                self._on_the_way.add(slot)
                fold = self._fold and lent is not None and message.kind in AVERAGES
            self._waiting.popleft()
            self._channel.send("send", body=wire.encode(message, shape), peer=peer, conn=conn, slot=slot, fold=fold)
