"""Between the connections and the trainer: messages and their vectors both ways, and who is connected.

`transport.TransportEvents` on one side, packets of `link.py` on the other. A vector is never touched here: it lies in
shared memory, where gRPC's chunks are copied to or from.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from shoal.child import Child
from shoal.errors import PeerError
from shoal.greeter import Greeter
from shoal.membership import Membership
from shoal.metrics import Metrics
from shoal.roster import Action
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
    ) -> None:
        self.child, self.membership, self.metrics, self.greeter, self._do = child, membership, metrics, greeter, do
        self._memory_of = memory_of
        self.transport: Transport | None = None  # set by its maker, which needs this first
        self.heartbeats_received = 0
        self._incarnations: dict[tuple[str, int], int] = {}  # of the connections that are up

    # --- transport.TransportEvents ------------------------------------------------------------------------------

    def up(self, peer: pb.Identity, conn: int) -> None:
        """Both streams stand."""
        self.metrics.connection("up")
        self._incarnations[peer.node_id, conn] = peer.incarnation
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
        self._do(self.membership.link_down(peer_id, reason, time.monotonic(), incarnation))

    def control(self, peer_id: str, conn: int, control: pb.Control) -> None:
        """A control frame."""
        self.heartbeats_received += control.HasField("heartbeat")
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
        """A whole message, for the trainer."""
        number = -1 if slot is None else slot
        self.child.channel.send("received", body=header, peer=peer_id, conn=conn, slot=number, finite=finite)

    def refused(self, peer_id: str, error: PeerError) -> None:
        """A peer's fault."""
        self.metrics.refused(type(error).__name__)
        self.greeter.complain(peer_id, f"refused {peer_id}: {error}")

    # --- the trainer --------------------------------------------------------------------------------------------

    def send(self, fields: dict[str, Any], header: bytes) -> None:
        """A message of the trainer, to a peer; dropped when its connection is gone."""
        assert self.transport is not None
        peer, conn, slot = fields["peer"], fields["conn"], fields["slot"]
        if slot < 0:
            self.transport.send(peer, conn, header, None, lambda: None)
        else:
            vector = self.child.segment.slot(slot)[: pb.Header.FromString(header).vector.bytes]
            self.transport.send(peer, conn, header, vector, lambda: self.child.channel.send("sent", slot=slot))

    def refuse(self, peer_id: str, error: PeerError) -> None:
        """What a peer sent cannot be right: count it, warn, and begin anew with that peer."""
        assert self.transport is not None
        self.refused(peer_id, error)
        self.transport.reset(peer_id, str(error))
