"""Between the connections and the trainer: messages and their vectors both ways, and who is connected.

`transport.TransportEvents` on one side, packets of `link.py` on the other. A vector is never touched here: it lies in
shared memory, where gRPC's chunks are copied to or from.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from shoal.child import Child
from shoal.detours import Detours
from shoal.errors import BadFrame, PeerError
from shoal.greeter import LOADING, Greeter
from shoal.membership import Membership
from shoal.metrics import Metrics
from shoal.packed import Packed
from shoal.roster import Action, Send
from shoal.transport import Transport
from shoal.v1 import node_pb2 as pb

log = logging.getLogger("shoal")


class Bridge:
    """Told by the transport on the event loop, one event at a time. `do` carries out what membership wants,
    `memory_of(node)` is where its vectors lie."""

    def __init__(
        self,
        child: Child,
        membership: Membership,
        metrics: Metrics,
        greeter: Greeter,
        do: Callable[[list[Action]], None],
        memory_of: Callable[[str], dict[str, Any] | None],
        packed: Packed,
    ) -> None:
        self.child, self.membership, self.metrics, self.greeter, self._do = child, membership, metrics, greeter, do
        self._memory_of, self._packed = memory_of, packed
        self.transport: Transport | None = None  # set by its maker, which needs this first
        self.heartbeats_received = 0
        self._incarnations: dict[tuple[str, int], int] = {}  # of the connections that are up
        self._connections: dict[str, int] = {}  # their numbers
        self.detours = Detours(
            membership.roster.me.node_id,
            tell_up=self._detour_up,
            tell_down=lambda peer, conn, why: child.channel.send("down", peer=peer, conn=conn, reason=why),
            notify=lambda peer, control: do([Send(peer, control)]),
            is_linked=lambda peer: peer in self._connections,
        )

    # --- transport.TransportEvents ------------------------------------------------------------------------------

    def up(self, peer: pb.Identity, conn: int) -> None:
        """Both streams stand."""
        self.metrics.connection("up")
        self.detours.close(peer.node_id, "its own link stands again")
        self._incarnations[peer.node_id, conn] = peer.incarnation
        self._connections[peer.node_id] = conn
        coordinates = peer.role == pb.ROLE_COORDINATOR
        self.child.channel.send(
            "up",
            peer=peer.node_id,
            conn=conn,
            incarnation=peer.incarnation,
            coordinates=coordinates,
            memory=self._memory_of(peer.node_id),
        )
        self._do(self.membership.link_up(peer.node_id, time.monotonic(), peer.incarnation))

    def down(self, peer_id: str, conn: int, reason: str) -> None:
        """The connection is gone."""
        self.metrics.connection("down")
        log.debug("connection %d to %s is down: %s", conn, peer_id, reason)
        self.child.channel.send("down", peer=peer_id, conn=conn, reason=reason)
        incarnation = self._incarnations.pop((peer_id, conn))
        if self._connections.get(peer_id) == conn:
            del self._connections[peer_id]
            self._packed.forget(peer_id)
            self.detours.down(peer_id)
        self._do(self.membership.link_down(peer_id, reason, time.monotonic(), incarnation))

    def control(self, peer_id: str, conn: int, control: pb.Control) -> None:
        """A control frame."""
        self.heartbeats_received += control.HasField("heartbeat")
        if control.HasField("lost"):
            self.detours.lost(peer_id, control.lost.target)
            return
        try:
            incarnation = self._incarnations[peer_id, conn]
            actions = self.membership.heard(peer_id, control, time.monotonic(), incarnation)
        except PeerError as error:
            self.refuse(peer_id, error)
        else:
            self._do(actions)

    async def buffer(self, nbytes: int) -> tuple[int, memoryview]:
        """A receive slot; waits while the trainer has not taken in what came before."""
        slot = await self.child.receiving.take()
        return slot, self.child.segment.slot(slot)[:nbytes]

    def release(self, slot: int) -> None:
        """A receive slot that is not used after all."""
        self.child.receiving.give(slot)

    def message(self, peer_id: str, conn: int, header: bytes, slot: int | None, finite: bool) -> None:
        """A whole message, for the trainer or to be passed on."""
        parsed = pb.Header.FromString(header)
        codec = self._packed.seen(peer_id, parsed)
        if slot is not None:
            self.metrics.vectors(codec, received=parsed.vector.bytes)
        if parsed.target and parsed.target != self.membership.roster.me.node_id:
            self._pass_on(peer_id, parsed, header, slot)
            return
        if parsed.origin and parsed.origin not in self.membership.roster.members:
            self.refuse(peer_id, BadFrame(f"{peer_id} passes on a message of {parsed.origin[:32]!r}, who is no member"))
            if slot is not None:
                self.release(slot)
            return
        if parsed.origin:
            detour = self.detours.arrived(peer_id, parsed)
            peer_id = parsed.origin
            conn = self._connections[peer_id] if detour is None else detour.conn
        number = -1 if slot is None else slot
        self.child.channel.send("received", body=header, peer=peer_id, conn=conn, slot=number, finite=finite)

    def _pass_on(self, peer_id: str, parsed: pb.Header, header: bytes, slot: int | None) -> None:
        assert self.transport is not None

        def done() -> None:
            if slot is not None:
                self.release(slot)

        try:
            passes = self.detours.passes(peer_id, parsed)
        except PeerError as error:
            self.refuse(peer_id, error)
            passes = False
        if not passes:
            done()
            return
        vector = None if slot is None else self.child.segment.slot(slot)[: parsed.vector.bytes]
        self.transport.send(parsed.target, self._connections[parsed.target], header, vector, done)

    def refused(self, peer_id: str, error: PeerError) -> None:
        """A peer's fault; that it has asked while this node loads is none."""
        if str(error).startswith(f"{self.membership.roster.me.node_id} is {LOADING}"):
            return
        self.metrics.refused(type(error).__name__)
        self.greeter.complain(peer_id, f"refused {peer_id}: {error}")

    # --- the trainer --------------------------------------------------------------------------------------------

    def send(self, fields: dict[str, Any], header: bytes) -> None:
        """A message of the trainer, to a peer; dropped when its connection is gone."""
        assert self.transport is not None
        peer, conn, slot = fields["peer"], fields["conn"], fields["slot"]
        if conn < 0:
            header = self.detours.addressed(header, peer)
            peer = self.detours.relay_of(peer, conn) or peer
            conn = self._connections.get(peer, conn)
        if slot < 0:
            self.transport.send(peer, conn, header, None, lambda: None)
        else:
            parsed = pb.Header.FromString(header)
            self.metrics.vectors(self._packed.seen(peer, parsed), sent=parsed.vector.bytes)
            vector = self.child.segment.slot(slot)[: parsed.vector.bytes]
            self.transport.send(peer, conn, header, vector, lambda: self.child.channel.send("sent", slot=slot))

    def _detour_up(self, peer: str, conn: int) -> None:
        self.child.channel.send("up", peer=peer, conn=conn, incarnation=0, coordinates=False, memory=None)

    def refuse(self, peer_id: str, error: PeerError) -> None:
        """What a peer sent cannot be right: count it, warn, and begin anew with that peer."""
        assert self.transport is not None
        self.refused(peer_id, error)
        self.transport.reset(peer_id, str(error))
