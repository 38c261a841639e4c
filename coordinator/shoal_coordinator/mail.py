"""Messages between the server and gRPC: headers and vectors as bytes, and not more at once than a connection takes."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from shoal import wire
from shoal.errors import BadFrame
from shoal.messages import Message, PeerId
from shoal.trainer.outbox import DTYPES, shape_of
from shoal.transport import Transport

AT_ONCE = 8
"""Messages handed to one connection that it has not written yet; the rest wait here."""


class Mail:
    """Both directions, for all connections. A receive buffer is new for each message, and of the size announced."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._connections: dict[PeerId, int] = {}
        self._waiting: dict[PeerId, deque[Message]] = {}
        self._under_way: dict[PeerId, int] = {}
        self._buffers: dict[int, bytearray] = {}
        self._numbers = itertools.count()

    def up(self, peer: PeerId, conn: int) -> None:
        """A connection stands."""
        self._connections[peer] = conn
        self._waiting[peer], self._under_way[peer] = deque(), 0

    def down(self, peer: PeerId, conn: int) -> None:
        """It broke, with all that waited for it."""
        if self._connections.get(peer) == conn:
            del self._connections[peer], self._waiting[peer], self._under_way[peer]

    def connection(self, peer: PeerId) -> int | None:
        """Its number, while one stands."""
        return self._connections.get(peer)

    def send(self, peer: PeerId, message: Message) -> None:
        """In order; dropped when no connection stands."""
        if peer in self._connections:
            self._waiting[peer].append(message)
            self._pump(peer)

    def buffer(self, nbytes: int) -> tuple[int, memoryview]:
        """For a vector that is announced, by a number."""
        number = next(self._numbers)
        self._buffers[number] = bytearray(nbytes)
        return number, memoryview(self._buffers[number])

    def release(self, number: int) -> None:
        """Its message broke off."""
        del self._buffers[number]

    def opened(self, peer: PeerId, header: bytes, number: int | None) -> Message:
        """A message that came, with its vector. Raises BadFrame, naming the peer."""
        content = b"" if number is None else self._buffers.pop(number)
        try:
            message, shape = wire.decode(header)
        except BadFrame as error:
            raise BadFrame(f"message from {peer}: {error}") from None
        if shape is not None and shape.slot is not None:
            raise BadFrame(f"vector from {peer} lies in its memory, into which a coordinator does not look")
        return message if shape is None else dataclasses.replace(message, vector=_vector(content, shape))

    def _pump(self, peer: PeerId) -> None:
        waiting, conn = self._waiting[peer], self._connections[peer]
        while waiting and self._under_way[peer] < AT_ONCE:
            message = waiting.popleft()
            shape = None if message.vector is None else shape_of(message.vector)
            payload = None if message.vector is None else _bytes(message.vector)
            self._under_way[peer] += 1
            self._transport.send(peer, conn, wire.encode(message, shape), payload, self._sent(peer, conn))

    def _sent(self, peer: PeerId, conn: int) -> Callable[[], None]:
        def sent() -> None:
            if self._connections.get(peer) == conn:
                self._under_way[peer] -= 1
                if self._waiting[peer]:
                    self._pump(peer)

        return sent


def _bytes(vector: Tensor) -> memoryview:
    return vector.contiguous().numpy().data.cast("B")


def _vector(content: bytes | bytearray, shape: wire.Shape) -> Tensor:
    if not content:
        return torch.empty(0, dtype=DTYPES[shape.dtype])
    return torch.frombuffer(content, dtype=DTYPES[shape.dtype])
