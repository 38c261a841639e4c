"""Between two nodes whose link is cut, or that have none yet: by way of a third that both reach. Pure."""

from shoal.errors import BadFrame
from shoal.messages import PeerId
from shoal.roster import Action, Roster, Send, State
from shoal.v1.node_pb2 import Control, Relayed
from shoal.views import Views

ABOUT_VIEWS = ("propose", "answer", "install")


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
        """Something of `peer` for a third. Raises BadFrame for what is not its own, or no word about views and no
        introduction."""
        kind = relayed.control.WhichOneof("control")
        own = relayed.origin == peer and (kind != "introduce" or relayed.control.introduce.node_id == peer)
        if not own or kind not in (*ABOUT_VIEWS, "introduce"):
            raise BadFrame(f"{peer} has {kind or 'nothing'} of {relayed.origin[:32]!r} passed on, expected its own")
        target = self.roster.members.get(relayed.target)
        linked = target is not None and target.linked and not target.coordinates
        return [Send(relayed.target, Control(relayed=relayed))] if linked else []

    def introduce(self, by: PeerId, to: PeerId) -> list[Action]:
        """Have member `by` tell node `to`, which is not reached from here, of this one."""
        me, member = self.roster.me, self.roster.members.get(by)
        if member is None or not member.linked:
            return []
        relayed = Relayed(origin=me.node_id, target=to, control=Control(introduce=me))
        return [Send(by, Control(relayed=relayed))]

    def _routed(self, send: Send) -> Send:
        kind = send.control.WhichOneof("control")
        way = self.to(send.peer_id) if kind in ABOUT_VIEWS else send.peer_id
        if way == send.peer_id:
            return send
        me = self.roster.me.node_id
        return Send(way, Control(relayed=Relayed(origin=me, target=send.peer_id, control=send.control)))
