"""Which view is to follow the one that holds in a synchronous run: who is lost, who came, which links are cut. Pure.

A member is lost when nobody hears it whom this node hears: one witness keeps it in, and then only the link is cut.
Heartbeats tell whom their sender does not hear, so all who hear each other come to the same result.
"""

from collections.abc import Iterable
from typing import NamedTuple, Self

from shoal.messages import PeerId
from shoal.roster import Member, Roster, State
from shoal.v1.node_pb2 import PHASE_READY, PHASE_RUNNING, PURPOSE_TRAIN, Identity, View

Pair = tuple[PeerId, PeerId]
"""Of members that do not reach each other, the lower id first."""

UNLINKED_S = 1.5
"""A link that breaks is dialled again at once; one that is down for so long counts as silent. Whoever leaves is
waited for as long: often all are told to stop, and then there is nothing to re-form."""
BACK_S = 10.0
"""A cut link must have been whole for so long before it is used again: every new view costs a start."""
SETTLE_S = 1.0
"""For newcomers, who often come several at a time, and for those who hold another view, which may be on its way."""

BARRED_S = 5.0
"""How long a newcomer is left out of proposals that another member has refused because of it."""


class Next(NamedTuple):
    """What the next view should be."""

    members: tuple[tuple[Identity, int], ...]  # without this node, by id, each with its training samples
    cut: tuple[Pair, ...] = ()  # sorted

    @classmethod
    def of(cls, members: Iterable[Member]) -> Self:
        """All links whole."""
        return cls(tuple((m.identity, m.samples) for m in members))


class Succession:
    """One node's opinion. `next` is asked after every change, and remembers since when things are as they are."""

    def __init__(self, roster: Roster, *, on_partition: str) -> None:
        """`on_partition`: whether those on the smaller side of a split "continue" or "pause"."""
        self.roster, self.pauses = roster, on_partition == "pause"
        self.fallen = False  # this node has stopped in the view that holds
        self.silent: list[PeerId] = []  # `unheard`, when it was last asked
        self._view: View | None = None
        self._members: frozenset[tuple[PeerId, int]] = frozenset()  # of the view, this node left out
        self._barred: dict[PeerId, float] = {}  # newcomers that some member does not reach, until when
        self._apart: dict[Pair, float] = {}  # members that do not reach each other, since when
        self._whole: dict[Pair, float] = {}  # pairs that were cut, since when they are not any more
        self._strange: dict[PeerId, float] = {}  # who is not in this view but could be, since when

    def install(self, view: View) -> None:
        """The view holds from now on."""
        self._view, self.fallen = view, False
        self._members = frozenset((m.node_id, m.incarnation) for m in view.members if not self.roster.is_me(m))
        self._whole.clear()
        self._strange.clear()

    def bar(self, peer: PeerId, now: float) -> None:
        """A newcomer that cannot be taken in yet must not keep other changes from being made."""
        self._barred[peer] = now + BARRED_S

    def unheard(self, now: float) -> list[PeerId]:
        """Members of the view whom this node does not hear, sorted."""
        self.silent = [] if self._view is None else [m.node_id for m in self._view.members if self._is_silent(m, now)]
        return self.silent

    def reaches(self, peer: PeerId, other: PeerId) -> bool:
        """Whether `peer`, whom this node hears, hears `other` by its own word."""
        member = self.roster.members.get(peer)
        return member is not None and other not in member.beat.unheard

    def wanted(self, now: float) -> tuple[Next | None, str]:
        """The next view and why; None where none is wanted, with a reason if something is waited for."""
        assert self._view is not None
        found = self.next(now)
        members = {(identity.node_id, identity.incarnation) for identity, _ in found.members}
        if (why := self._minority(members)) and self.pauses:
            return None, why
        if lost := sorted(node for node, _ in self._members - members if not self._has_finished(node)):
            return found, f"lost {', '.join(lost)}"
        if came := sorted(node for node, _ in members - self._members):
            return found, f"{came[0]} is to take part"
        if found.cut != tuple((edge.a, edge.b) for edge in self._view.cut):
            return found, "links have changed"
        if other := sorted(self._settled_strangers(now)):
            return found, f"{other[0]} holds another view"
        return (found, "the view has fallen") if self.fallen else (None, "")

    def turn(self, following: Next) -> int:
        """How many members with a lower id should propose it before this node does. Newcomers do not."""
        new = {m.id for m in self.roster.members.values() if m.phase < PHASE_RUNNING}
        return sum(
            identity.node_id < self.roster.me.node_id
            for identity, _ in following.members
            if identity.node_id not in new
        )

    def next(self, now: float) -> Next:
        """Members and cut links as they are now."""
        assert self._view is not None
        silent = set(self.unheard(now))
        heard = {m.id: m for m in self.roster.connected(now) if m.id not in silent}
        self._look_at_strangers(heard, now)
        apart = self._pairs_apart(silent, heard)
        self._apart = {pair: self._apart.get(pair, now) for pair in apart}
        members = {m.id: (m.identity, m.samples) for m in heard.values() if self._may_come(m, now)}
        for identity, samples in zip(self._view.members, self._view.samples, strict=True):
            if identity.node_id not in silent or self._has_witness(identity, heard):
                members[identity.node_id] = identity, samples
        members.pop(self.roster.me.node_id, None)
        inside = {self.roster.me.node_id, *members}
        cut = sorted(pair for pair in self._cut(now) if inside.issuperset(pair))
        return Next(tuple(members[node] for node in sorted(members)), tuple(cut))

    def judge(self, view: View, now: float) -> tuple[str, list[PeerId]]:
        """(why this node does not agree to follow that view, which of its members it does not reach)."""
        assert self._view is not None
        me, proposed = self.roster.me.node_id, {(m.node_id, m.incarnation) for m in view.members}
        if not view.parent:
            return f"in view {self._view.number} already", []
        if view.number <= self._view.number:
            return f"view {self._view.number} holds here already", []
        if view.purpose < self._view.purpose:
            return "the run has ended here", [me]
        alive = {(m.id, m.identity.incarnation) for m in self.roster.connected(now)} & self._members
        if forgotten := sorted(alive - proposed):
            return f"{forgotten[0][0]} is alive and not in it", []
        hears = {m.id for m in self.roster.connected(now)}
        cut = {pair for edge in view.cut for pair in [(edge.a, edge.b)] if me in pair}
        unreached = [node for node, _ in sorted(proposed) if node != me and node not in hears]
        if unlinked := [node for node in unreached if pair_of(me, node) not in cut]:
            return f"not linked with {unlinked[0]}", unlinked
        return "", []

    # --- inside -------------------------------------------------------------------------------------------------

    def _is_silent(self, identity: Identity, now: float) -> bool:
        if self.roster.is_me(identity):
            return False
        member = self.roster.find(identity)
        patience_s = self.roster.patience_s(member)
        if member is None:
            return True
        if member.left or not member.linked:
            return now - member.changed_at >= min(UNLINKED_S, patience_s)
        unanswered_s = now - max(member.acknowledged_at, member.changed_at)
        return member.state is not State.ALIVE or unanswered_s >= patience_s

    def _has_witness(self, identity: Identity, heard: dict[PeerId, Member]) -> bool:
        """Whether a member whom this node hears hears that very incarnation. One that has not heard yet of the view
        that holds here speaks of another; it may only keep somebody in for too long."""
        known = self.roster.members.get(identity.node_id)
        if known is not None and (known.left or known.identity.incarnation != identity.incarnation):
            return False
        mates = (m for m in heard.values() if self._in_view(m))
        return any(identity.node_id not in mate.beat.unheard for mate in mates)

    def _pairs_apart(self, silent: set[PeerId], heard: dict[PeerId, Member]) -> set[Pair]:
        me = self.roster.me.node_id
        pairs = {pair_of(me, other) for other in silent}
        for mate in heard.values():
            if self._in_view(mate):
                pairs |= {pair_of(mate.id, other) for other in mate.beat.unheard if other != mate.id}
        return pairs

    def _cut(self, now: float) -> set[Pair]:
        """A new cut is believed after the time of suspicion: until then one end may just be late to notice a death."""
        assert self._view is not None
        known = self.roster.members.get
        patience_s = {pair: max(self.roster.patience_s(known(node)) for node in pair) for pair in self._apart}
        cut = {pair for pair, since in self._apart.items() if now - since >= patience_s[pair]}
        for edge in self._view.cut:
            pair = (edge.a, edge.b)
            if pair in self._apart:
                self._whole.pop(pair, None)
                cut.add(pair)
            elif now - self._whole.setdefault(pair, now) < BACK_S:
                cut.add(pair)
        return cut

    def _may_come(self, member: Member, now: float) -> bool:
        assert self._view is not None
        settled = now - self._strange.get(member.id, now) >= SETTLE_S
        open_to_all = self._view.purpose == PURPOSE_TRAIN and now >= self._barred.get(member.id, now)
        return open_to_all and settled and member.phase >= PHASE_READY

    def _look_at_strangers(self, heard: dict[PeerId, Member], now: float) -> None:
        strange = [m.id for m in heard.values() if not self._in_view(m) or self._differs(m)]
        self._strange = {node: self._strange.get(node, now) for node in strange}

    def _settled_strangers(self, now: float) -> list[PeerId]:
        return [node for node, since in self._strange.items() if now - since >= 2 * SETTLE_S]

    def _differs(self, member: Member) -> bool:
        assert self._view is not None
        return member.phase >= PHASE_RUNNING and member.beat.view != self._view.id

    def _in_view(self, member: Member) -> bool:
        return (member.id, member.identity.incarnation) in self._members

    def _has_finished(self, node: PeerId) -> bool:
        member = self.roster.members.get(node)
        return member is not None and member.finished

    def _minority(self, members: set[tuple[PeerId, int]]) -> str:
        """Why this side of a split is the smaller one, or empty. Who took its leave is on no side."""
        assert self._view is not None
        here, all_of_them = 1, []
        for identity in self._view.members:
            member = self.roster.members.get(identity.node_id)
            if member is None or not member.left:
                all_of_them.append(identity.node_id)
                here += (identity.node_id, identity.incarnation) in members
        lowest_is_here = min(all_of_them) in {self.roster.me.node_id, *(node for node, _ in members)}
        if 2 * here > len(all_of_them) or (2 * here == len(all_of_them) and lowest_is_here):
            return ""
        return f"{here} of {len(all_of_them)} members are on this side of a split; --on-partition pause waits for more"


def pair_of(one: PeerId, other: PeerId) -> Pair:
    """Both, sorted."""
    return (one, other) if one < other else (other, one)
