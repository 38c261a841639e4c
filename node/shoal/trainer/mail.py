"""The worker's messages, in and out: who is connected, where vectors lie, and what comes with every message.

A vector that travelled lies in a receive slot, which the daemon wants back; one of another node of this machine lies in
that node's memory, and is looked at here before the worker sees it.
"""

import dataclasses
import functools
import itertools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch

from shoal import wire
from shoal.errors import PeerError
from shoal.link import RECEIVE, TRANSMIT, Channel, Segment
from shoal.messages import AVERAGES, Kind, Message, PeerId
from shoal.runtime import Runtime
from shoal.settings import Settings
from shoal.settling import CLIPPED_AT_MOST
from shoal.sharing import Memory
from shoal.trainer.outbox import DTYPES, Outbox, bytes_of
from shoal.trainer.windows import Windows, check
from shoal.words import words_of

log = logging.getLogger(__name__)


class Mail:
    """Of one worker. `warn` writes a line for the operator; `failed` hears of a message after which a run in rounds
    cannot go on."""

    def __init__(
        self,
        channel: Channel,
        segment: Segment,
        runtime: Runtime,
        settings: Settings,
        *,
        warn: Callable[[str], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._channel, self._runtime, self._settings = channel, runtime, settings
        self._warn, self._failed = warn, failed
        self.outbox = Outbox(channel, segment)
        self.windows = Windows(segment.fd, segment.slot_bytes, wanted=settings.share_memory)
        received = range(TRANSMIT, TRANSMIT + RECEIVE)
        self._received = {k: torch.frombuffer(segment.slot(k), dtype=torch.uint8) for k in received}
        self.connections: dict[PeerId, int] = {}  # their numbers
        self.others: dict[PeerId, int] = {}  # gradients, the most that was heard of; what was learnt last is last
        self._warned_of: set[PeerId] = set()

    def send(self, peer: PeerId, message: Message) -> None:
        """By way of the daemon; the own count of gradients rides along. Dropped where there is no connection."""
        if peer in self.connections:
            heard = self._passed_on() if message.kind in (Kind.OFFER, Kind.ACCEPT) else ()
            message = dataclasses.replace(message, gradients=self._runtime.gradients, heard=heard)
            self.outbox.send(peer, self.connections[peer], message)

    def _passed_on(self) -> tuple[tuple[PeerId, int], ...]:
        """The counts of others that were learnt last. They spread with the averages: heartbeats alone are late by many
        gradients."""
        return tuple(itertools.islice(reversed(self.others.items()), wire.HEARD_LIMIT))

    def learn(self, node: PeerId, gradients: int) -> None:
        """A node has applied so many."""
        if node != self._runtime.me and gradients > self.others.get(node, -1):
            self.others.pop(node, None)  # to the end: the order is that of learning
            self.others[node] = gradients

    # --- what the daemon says -----------------------------------------------------------------------------------

    def up(self, peer: PeerId, conn: int, memory: dict[str, Any] | None, *, coordinates: bool) -> None:
        """A connection stands; `memory`: where the peer's vectors lie, if it is of this machine."""
        self.connections[peer] = conn
        why_not = self.windows.open(peer, None if memory is None else Memory(**memory))
        if not why_not:
            self.outbox.send(peer, conn, Message(Kind.MAPPED))
        elif memory is not None:
            log.debug("vectors of %s travel: %s", peer, why_not)
        self._runtime.up(peer, coordinates=coordinates)

    def down(self, peer: PeerId) -> None:
        """The connection is gone."""
        self.connections.pop(peer, None)
        self.outbox.unread_by(peer)
        self._runtime.down(peer)
        self.windows.close(peer)

    def received(self, peer: PeerId, conn: int, header: bytes, slot: int, *, finite: bool) -> None:
        """A message, and the receive slot of its vector: -1 where none has travelled. `finite`: it is known to be."""
        done: Callable[[], None] | None = None  # with the memory of the vector
        try:
            message, shape = wire.decode(header)
            if shape is not None:
                if shape.slot is None:
                    vector = self._received[slot][: shape.nbytes].view(DTYPES[shape.dtype])
                    done = functools.partial(self._channel.send, "free", slot=slot)
                else:
                    done = functools.partial(self._taken, peer, conn, shape.ticket)
                    vector = self.windows.vector(peer, shape)
                    finite = self._looked_at(peer, message.kind, shape, vector)
                if message.kind in AVERAGES and self._runtime.state.device.type == "cpu":
                    weakref.finalize(vector, done).atexit = False
                    done = None
                else:
                    vector = vector.to(self._runtime.state.device, copy=True)
                message = dataclasses.replace(message, vector=vector, finite=finite)
                del vector  # but for the message nobody holds it here
            self._handed_over(peer, message)
        except PeerError as error:
            if self._settings.synchronous:
                self._failed(error)  # its post would not get better by being repeated
            else:
                self._channel.send("refused", peer=peer, conn=conn, reason=str(error))
        finally:
            if done is not None:
                done()

    def _handed_over(self, peer: PeerId, message: Message) -> None:
        if message.kind is Kind.MAPPED and peer in self.windows:
            self.outbox.read_by(peer, self.windows.presence(peer))
        elif message.kind is Kind.TAKEN:
            self.outbox.taken(peer, message.seq)
        elif message.kind is not Kind.MAPPED and peer in self.connections:
            for node, gradients in ((peer, message.gradients), *message.heard):
                self.learn(node, gradients)
            tally = self._runtime.settlement.tally
            refused = tally.refused
            self._runtime.received(peer, message)
            if tally.refused > refused:
                self._warn_of(peer)

    def _looked_at(self, peer: PeerId, kind: Kind, shape: wire.Shape, vector: torch.Tensor) -> bool:
        """Whether what lies in a peer's memory is finite. Reading it is what an average costs, so half the way to it is
        made at the same time. Raises BadVector."""
        halfway = self._runtime.meet(vector) if kind in AVERAGES else None
        if halfway is None:
            return check(peer, shape, vector)
        data, words, size = bytes_of(halfway.model), 0, vector.element_size()

        def beside(start: int, stop: int) -> None:
            nonlocal words
            halfway.make(start, stop)
            words += words_of(data[size * start : size * stop])

        finite = check(peer, shape, vector, beside)
        self.outbox.summed(halfway.model, words)
        return finite

    def _taken(self, peer: PeerId, conn: int, ticket: int) -> None:
        """A peer's slot is not read any more; of an earlier connection it knows that by itself."""
        if self.connections.get(peer) == conn:
            self.outbox.send(peer, conn, Message(Kind.TAKEN, seq=ticket))

    def _warn_of(self, peer: PeerId) -> None:
        """Once, and not for each of its vectors: they will hardly become better."""
        if peer not in self._warned_of:
            self._warned_of.add(peer)
            s = self._settings
            most = s.max_distance or (CLIPPED_AT_MOST if s.clip_distance else 0.0)
            far = f", or is further away than {most:g}" if most else ""
            self._warn(f"vector from {peer} holds NaN or Inf{far}: this node does not average with it")
