"""How a view comes to hold on all its members: a proposal, everybody's answer, the view. Pure.

The lowest id among those concerned proposes (`views` says when); when all have accepted, the view holds and everybody
is told. An acceptance binds for longer than its proposal lives, and a proposer is bound by its own proposal, so no
node is ever in two proposals that can both succeed. What should happen is worked out afresh after every event from what
is known (`step`), so nothing depends on the order in which events come.

Newcomers of an asynchronous run are taken in without a vote: for those who run, the new view is only a longer
list of whom to average with.
"""

import dataclasses
import random

from shoal.messages import PeerId
from shoal.roster import Action, Dropped, Installed, Member, Refused, Roster, Send, Stop
from shoal.v1.node_pb2 import (
    PURPOSE_FINISH,
    PURPOSE_TRAIN,
    Control,
    Leave,
    Purpose,
    View,
    ViewAnswer,
    ViewProposal,
)
from shoal.views import LOST, Views, check, draft, order

PROPOSAL_S = 2.0
"""A proposal that is not accepted by all within this time is dropped."""
PROMISE_S = 3.0
"""An acceptance binds so long: more than PROPOSAL_S, or a node could be in two proposals that both succeed."""
RETRY_S = 0.5
"""Least wait before a dropped proposal is made again; up to twice as long at random."""
WORDS_LIMIT = 200
"""Characters kept of another node's reasons."""


@dataclasses.dataclass(slots=True)
class _Proposal:
    view: View
    silent: set[PeerId]  # members that have not answered
    until: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Promise:
    view: View
    until: float


class Agreement:
    """One node's part in it. Call `step` after every change of the roster."""

    def __init__(self, roster: Roster, views: Views, rng: random.Random) -> None:
        self.roster, self.views, self.rng = roster, views, rng
        self.over = False  # stopped, refused or leaving: no part in anything any more
        self.waiting = ""  # why no view is proposed, for people
        self._number = 0  # highest of any view seen
        self._proposal: _Proposal | None = None
        self._promise: _Promise | None = None
        self._retry_at = 0.0

    def step(self, now: float) -> list[Action]:
        """What follows from all that is known now."""
        if self.over:
            return []
        if lost := self.views.lost():
            return self._stop(lost)
        actions = self._expire(now)
        if self._proposal is None and self._promise is None and now >= self._retry_at:
            actions += self._wanted(now)
        if self._proposal is not None and not self._proposal.silent:
            actions += self._publish(self._proposal.view)
        self._mark()
        return actions

    def proposed(self, view: View, peer: PeerId, now: float) -> list[Action]:
        """A proposal came. Raises BadFrame when it is not well-formed."""
        check(view, peer)
        self._number = max(self._number, view.number)
        accepted, reason = self._judge(view, peer, now)
        actions: list[Action] = []
        if accepted:
            if self._proposal is not None:
                self._proposal = None
                actions.append(Dropped(f"withdrawn: {peer} proposes, and has the lower id"))
            self._promise = _Promise(view, now + PROMISE_S)
            self._mark()
        return [*actions, _answer(peer, view, accepted, reason)]

    def answered(self, answer: ViewAnswer, peer: PeerId, now: float) -> list[Action]:
        """A member's word on a view of this node."""
        reason, proposal, view = answer.reason[:WORDS_LIMIT], self._proposal, self.views.view
        if proposal is not None and answer.id == proposal.view.id and now < proposal.until:
            if answer.accepted:
                proposal.silent.discard(peer)
                return []
            return self._drop(f"view {proposal.view.number}: {peer} refuses, {reason}", now)
        if self.views.synchronous and view is not None and answer.id == view.id and not answer.accepted:
            return [] if self.over else self._stop(f"{LOST}{peer}: {reason}")
        return []

    def given(self, view: View, peer: PeerId) -> list[Action]:
        """A view that holds came from a member of it. Raises BadFrame when it is not well-formed."""
        check(view, peer)
        self._number = max(self._number, view.number)
        held = self.views.view
        if self.over or (held is not None and view.id == held.id):
            return []
        if not any(map(self.roster.is_me, view.members)):
            return self._left_out(view)
        if held is None:
            # With a parent it is no first view: the run goes on already, and has a model to give.
            return self._install(view, model_from=peer if view.parent else "")
        if self.views.synchronous and view.purpose == PURPOSE_TRAIN:
            return [_answer(peer, view, False, f"{self.roster.me.node_id} is already in view {held.id}")]
        return self._install(view) if order(view) > order(held) else self.show(peer)

    def show(self, peer: PeerId) -> list[Action]:
        """Tell a peer of the view that holds here, if one does."""
        view = self.views.view
        return [] if view is None or self.over else [Send(peer, Control(install=view))]

    def repeat(self) -> list[Action]:
        """Tell it to those who act as if they did not know it: its issuer may have died over telling them."""
        return [action for member in self.views.behind() for action in self.show(member.id)]

    def leave(self, reason: str, *, finished: bool) -> list[Action]:
        """Take leave of everybody. Without effect when leave was taken before."""
        if self.over:
            return []
        self.over = True
        told = [m.id for m in self.roster.around() if m.linked]
        return [Send(peer, Control(leave=Leave(reason=reason, finished=finished))) for peer in told]

    # --- inside -------------------------------------------------------------------------------------------------

    def _wanted(self, now: float) -> list[Action]:
        if self.views.view is None:
            members, self.waiting = self.views.start(now)
            return [] if members is None else self._propose(PURPOSE_TRAIN, members, now)
        if not self.views.synchronous and not self.views.finishing:
            members, _ = self.views.extension(now)
            if members is not None:
                return self._publish(self._draft(PURPOSE_TRAIN, members))
        members, self.waiting = self.views.finish(now)
        return [] if members is None else self._propose(PURPOSE_FINISH, members, now)

    def _judge(self, view: View, peer: PeerId, now: float) -> tuple[bool, str]:
        """Whether to accept a proposal, and why not."""
        issuer, bound = self.roster.members.get(peer), self._promise
        if issuer is None or (view.issuer, view.issuer_incarnation) != (peer, issuer.identity.incarnation):
            return False, f"it is of {view.issuer}/{view.issuer_incarnation}, and {peer} sent it"
        if not any(map(self.roster.is_me, view.members)):
            return False, f"{self.roster.me.node_id}/{self.roster.me.incarnation} is not in it"
        if self.over:
            return False, "leaving"
        # A newer one of the same issuer says that it has dropped the older.
        renewed = bound is not None and bound.view.issuer == peer and bound.view.number < view.number
        if bound is not None and now < bound.until and not renewed:
            return False, f"busy with view {bound.view.number} of {bound.view.issuer}"
        return self.views.judge(view, peer, now)

    def _draft(self, purpose: Purpose.ValueType, members: list[Member]) -> View:
        self._number += 1
        parent = "" if self.views.view is None else self.views.view.id
        return draft(self.roster, members, self._number, parent, purpose)

    def _propose(self, purpose: Purpose.ValueType, members: list[Member], now: float) -> list[Action]:
        view = self._draft(purpose, members)
        self._proposal = _Proposal(view, {m.id for m in members}, now + PROPOSAL_S)
        return [Send(m.id, Control(propose=ViewProposal(view=view))) for m in members]

    def _publish(self, view: View) -> list[Action]:
        """Install a view of this node's own, and tell everybody: those who are not in it learn that, too."""
        told = [m.id for m in self.roster.live() if m.linked]
        return [*self._install(view), *(Send(peer, Control(install=view)) for peer in told)]

    def _install(self, view: View, model_from: PeerId = "") -> list[Action]:
        self._proposal = self._promise = None
        self._mark()
        self.views.install(view)
        return [Installed(view, model_from)]

    def _mark(self) -> None:
        self.views.open = self._proposal is not None or self._promise is not None

    def _expire(self, now: float) -> list[Action]:
        if self._promise is not None and now >= self._promise.until:
            self._promise = None
        if self._proposal is not None and now >= self._proposal.until:
            silent = ", ".join(sorted(self._proposal.silent))
            return self._drop(f"view {self._proposal.view.number}: no answer from {silent} in {PROPOSAL_S:g} s", now)
        return []

    def _drop(self, reason: str, now: float) -> list[Action]:
        self._proposal = None
        self._retry_at = now + RETRY_S * self.rng.uniform(1, 2)
        return [Dropped(reason)]

    def _left_out(self, view: View) -> list[Action]:
        """Who may still be let in waits: an asynchronous run takes newcomers, and a proposal may be under way."""
        joinable = not self.views.synchronous and view.purpose == PURPOSE_TRAIN
        if self.views.view is not None or joinable or self._proposal is not None or self._promise is not None:
            return []
        self.over = True
        began = "began" if view.purpose == PURPOSE_TRAIN else "ended"
        members = ", ".join(m.node_id for m in view.members)
        return [Refused(f"the run {began} without this node; its members are {members}")]

    def _stop(self, reason: str) -> list[Action]:
        return [*self.leave(reason, finished=False), Stop(reason)]


def _answer(peer: PeerId, view: View, accepted: bool, reason: str) -> Send:
    return Send(peer, Control(answer=ViewAnswer(id=view.id, accepted=accepted, reason=reason)))
