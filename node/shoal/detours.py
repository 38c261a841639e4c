"""What two members whose link is cut send each other, by way of a third that both reach.

To the trainer such a peer is connected, with a connection number below 0. What a relay could not hand on is lost, as on
a connection that breaks; the relay says so, and the connection that the trainer knows breaks and stands again, so that
whatever is unconfirmed is repeated.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from shoal.errors import BadFrame
from shoal.messages import PeerId
from shoal.v1 import node_pb2 as pb


class Detour(NamedTuple):
    """How a peer is reached."""

    relay: PeerId
    conn: int  # below 0, as the trainer knows it


class Detours:
    """Of one node. `tell_up(peer, conn)` and `tell_down(peer, conn, reason)` reach the trainer, `notify(peer, control)`
    another node, `is_linked(peer)` whether a connection to it stands."""

    def __init__(
        self,
        me: PeerId,
        *,
        tell_up: Callable[[PeerId, int], None],
        tell_down: Callable[[PeerId, int, str], None],
        notify: Callable[[PeerId, pb.Control], None],
        is_linked: Callable[[PeerId], bool],
    ) -> None:
        self._me, self._tell_up, self._tell_down = me, tell_up, tell_down
        self._notify, self._is_linked = notify, is_linked
        self._open: dict[PeerId, Detour] = {}
        self._numbers = itertools.count(1)
        self._served: dict[PeerId, set[PeerId]] = {}  # target -> whose messages to it were passed on here

    def plan(self, cut: Iterable[PeerId], way_to: Callable[[PeerId], PeerId]) -> None:
        """Keep a way to each member to which the link is cut, and to nobody else. Call it now and then."""
        wanted = {peer: relay for peer in cut if (relay := way_to(peer)) != peer and self._is_linked(relay)}
        for peer in [p for p, detour in self._open.items() if wanted.get(p) != detour.relay]:
            self.close(peer, "there is another way, or none")
        for peer, relay in sorted(wanted.items()):
            if peer not in self._open and not self._is_linked(peer):
                self._begin(peer, relay)

    def relay_of(self, peer: PeerId, conn: int) -> PeerId | None:
        """By way of whom a message to `peer` goes, if that connection still stands."""
        detour = self._open.get(peer)
        return detour.relay if detour is not None and detour.conn == conn else None

    def addressed(self, header: bytes, peer: PeerId) -> bytes:
        """The header of an own message, with whom it is from and for."""
        together = pb.Header.FromString(header)
        together.origin, together.target = self._me, peer
        return together.SerializeToString()

    def arrived(self, peer: PeerId, header: pb.Header) -> Detour | None:
        """A message of `header.origin` came by way of `peer`, for this node. None where the own link to it stands: it
        is as if it had come by that. A detour beside it would take the link's place for the trainer, and then end."""
        if self._is_linked(header.origin):
            return None
        detour = self._open.get(header.origin)
        if detour is None:
            detour = self._begin(header.origin, peer)
        return detour

    def passes(self, peer: PeerId, header: pb.Header) -> bool:
        """Whether this node can hand on a message of `peer`, which is told if not. BadFrame if it is not its own."""
        if header.origin != peer:
            raise BadFrame(f"{peer} has a message of {header.origin[:32]!r} passed on, expected one of its own")
        if not self._is_linked(header.target):
            self._notify(peer, pb.Control(lost=pb.Lost(target=header.target)))
            return False
        self._served.setdefault(header.target, set()).add(peer)
        return True

    def lost(self, peer: PeerId, target: PeerId) -> None:
        """The relay `peer` has lost something for `target`."""
        detour = self._open.get(target)
        if detour is not None and detour.relay == peer:
            self.close(target, f"{peer} lost what it was to pass on")

    def down(self, peer: PeerId) -> None:
        """The connection to `peer` broke."""
        for target in [p for p, detour in self._open.items() if detour.relay == peer]:
            self.close(target, f"the way by {peer} is broken")
        for origin in sorted(self._served.pop(peer, ())):
            self._notify(origin, pb.Control(lost=pb.Lost(target=peer)))

    def close(self, peer: PeerId, reason: str) -> None:
        """No detour to that one; `plan` may open another."""
        detour = self._open.pop(peer, None)
        if detour is not None:
            self._tell_down(peer, detour.conn, reason)

    def _begin(self, peer: PeerId, relay: PeerId) -> Detour:
        detour = self._open[peer] = Detour(relay, -next(self._numbers))
        self._tell_up(peer, detour.conn)
        return detour
