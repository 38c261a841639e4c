"""Between two members whose link is cut: by way of a third that both reach. Pure."""

from shoal.errors import BadFrame
from shoal.messages import PeerId
from shoal.roster import Action, Roster, Send, State
from shoal.v1.node_pb2 import Control, Relayed
from shoal.views import Views


class Relays:
    """Who can pass on what, as one node knows it."""

    def __init__(self, roster: Roster, views: Views) -> None:
        self.roster, self.views = roster, views

    def to(self, peer: PeerId) -> PeerId:
        """The member by way of which `peer` is reached; `peer` itself over its own link, or if there is no way."""
        member, me = self.roster.members.get(peer), self.roster.me.node_id
        whole = member is not None and member.linked and member.state is not State.GONE
        succession = self.views.succession
        if self.views.view is None or (whole and succession.reaches(peer, me)):
            return peer
        mates = (m for m in self.views.mates() if m.linked and m.id not in succession.silent)
        return next((m.id for m in mates if succession.reaches(m.id, peer)), peer)

    def routed(self, actions: list[Action]) -> list[Action]:
        """What is for a member that this node has no link to, wrapped for one that has."""
        return [self._routed(action) if isinstance(action, Send) else action for action in actions]

    def pass_on(self, relayed: Relayed, peer: PeerId) -> list[Action]:
        """Something of `peer` for a third. Raises BadFrame for what is not its own, or is no word about views."""
        kind = relayed.control.WhichOneof("control")
        if relayed.origin != peer or kind not in ("propose", "answer", "install"):
            raise BadFrame(f"{peer} has {kind or 'nothing'} of {relayed.origin[:32]!r} passed on, expected its own")
        target = self.roster.members.get(relayed.target)
        linked = target is not None and target.linked and not target.coordinates
        return [Send(relayed.target, Control(relayed=relayed))] if linked else []

    def _routed(self, send: Send) -> Send:
        kind = send.control.WhichOneof("control")
        way = self.to(send.peer_id) if kind in ("propose", "answer", "install") else send.peer_id
        if way == send.peer_id:
            return send
        me = self.roster.me.node_id
        return Send(way, Control(relayed=Relayed(origin=me, target=send.peer_id, control=send.control)))
