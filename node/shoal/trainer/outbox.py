"""Messages on their way from the worker to the daemon: headers over the socket, vectors in shared memory."""

from collections import deque

import torch
from torch import Tensor

from shoal import wire
from shoal.link import TRANSMIT, Channel, Segment
from shoal.messages import Message, PeerId

DTYPES = {"f32": torch.float32, "f64": torch.float64, "u8": torch.uint8}
"""What travels, by the names of `wire.ELEMENT_BYTES`."""


def shape_of(vector: Tensor) -> wire.Shape:
    """How `vector` is announced."""
    name = next(name for name, dtype in DTYPES.items() if dtype == vector.dtype)
    return wire.Shape(vector.numel(), name)


class Outbox:
    """Keeps the order of the messages; a vector waits for a free slot of the shared memory."""

    def __init__(self, channel: Channel, segment: Segment) -> None:
        self._channel = channel
        self._free = deque(range(TRANSMIT))
        self._slots = [torch.frombuffer(segment.slot(k), dtype=torch.uint8) for k in range(TRANSMIT)]
        self._waiting: deque[tuple[PeerId, int, Message]] = deque()

    def send(self, peer: PeerId, conn: int, message: Message) -> None:
        """Hand over; the daemon drops what belongs to a connection that is gone."""
        self._waiting.append((peer, conn, message))
        self._pump()

    def sent(self, slot: int) -> None:
        """The daemon has written that slot's vector to the network, or dropped it."""
        self._free.append(slot)
        self._pump()

    def _pump(self) -> None:
        while self._waiting:
            peer, conn, message = self._waiting[0]
            slot, shape = -1, None
            if message.vector is not None:
                if not self._free:
                    return
                slot, shape = self._free.popleft(), shape_of(message.vector)
                self._slots[slot][: shape.nbytes].view(message.vector.dtype).copy_(message.vector)
            self._waiting.popleft()
            self._channel.send("send", body=wire.encode(message, shape), peer=peer, conn=conn, slot=slot)
