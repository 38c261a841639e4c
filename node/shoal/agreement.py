"""How a view comes to hold on all its members: a proposal, everybody's answer, the view. Pure.

The lowest id among those concerned proposes (`views` and `succession` say when); when all have accepted, the view holds
and everybody is told. An acceptance binds for longer than its proposal lives, and a proposer is bound by its own
proposal, so no node is ever in two proposals that can both succeed. What should happen is worked out afresh after every
event from what is known (`step`), so nothing depends on the order in which events come.

Who accepts the successor of a view of a synchronous run stops in that view first, and says in which round: the view has
fallen for it, whatever becomes of the proposal. So the round at which the successor starts is known when it holds, and
nobody is past it.

Newcomers of an asynchronous run are taken in without a vote: for those who run, the new view is only a longer
list of whom to average with.
"""

import dataclasses
import random

from shoal.errors import BadFrame
from shoal.messages import PeerId
from shoal.roster import Action, Dropped, Installed, Pause, Refused, Roster, Send
from shoal.succession import Next
from shoal.v1.node_pb2 import (
    PHASE_FINISHED,
    PURPOSE_FINISH,
    PURPOSE_TRAIN,
    Control,
    Leave,
    Purpose,
    View,
    ViewAnswer,
    ViewProposal,
)
from shoal.views import NUMBERS, PATIENCE_S, Views, check, draft, order, settle

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
    answers: dict[PeerId, ViewAnswer]  # acceptances


@dataclasses.dataclass(frozen=True, slots=True)
class _Promise:
    view: View
    until: float


class Agreement:
    """One node's part in it. Call `step` after every change of the roster."""

    def __init__(self, roster: Roster, views: Views, rng: random.Random, *, replicas: bool) -> None:
        """`replicas`: all members of a run hold the same model."""
        self.roster, self.views, self.rng, self.replicas = roster, views, rng, replicas
        self.over = False  # refused or leaving: no part in anything any more
        self.waiting = ""  # why no view is proposed, for people
        self.number = 0  # highest of any view seen
        self._proposal: _Proposal | None = None
        self._promise: _Promise | None = None
        self._retry_at = 0.0
        self._wanted_since: float | None = None  # a successor

    def step(self, now: float) -> list[Action]:
        """What follows from all that is known now."""
        if self.over:
            return []
        actions = self._expire(now)
        if self._proposal is None and self._promise is None and now >= self._retry_at:
            actions += self._wanted(now)
        if self._proposal is not None and not self._proposal.silent:
            actions += self._conclude(self._proposal)
        self._mark()
        return actions

    def proposed(self, view: View, peer: PeerId, now: float) -> list[Action]:
        """A proposal came. Raises BadFrame when it is not well-formed."""
        check(view, peer)
        self.number = max(self.number, view.number)
        reason, unreached = self._judge(view, peer, now)
        if reason:
            answer = ViewAnswer(id=view.id, reason=reason, number=self.number, unreached=unreached)
            return [Send(peer, Control(answer=answer))]
        actions: list[Action] = []
        if self._proposal is not None:
            actions += self._drop(f"withdrawn: {peer} proposes, and has the lower id", now)
        self._promise, self._wanted_since = _Promise(view, now + PROMISE_S), None
        self._mark()
        if self._must_stop_for(view):
            return [*actions, *self._stop()]
        return [*actions, Send(peer, Control(answer=self._acceptance(view, self.roster.mine.step)))]

    def paused(self, round: int, *, lacks_model: bool = False) -> list[Action]:
        """This node's trainer has stopped in the view that holds, in that round."""
        if not self.views.succession.fallen:
            return []  # another view holds by now
        if self._promise is not None:
            view = self._promise.view
            return [Send(view.issuer, Control(answer=self._acceptance(view, round, lacks_model=lacks_model)))]
        if self._proposal is not None:
            own = self._acceptance(self._proposal.view, round, lacks_model=lacks_model)
            self._accepted(self._proposal, self.roster.me.node_id, own)
        return []

    def answered(self, answer: ViewAnswer, peer: PeerId, now: float) -> list[Action]:
        """A member's word on a view of this node, or on one of its own that this node has accepted: it is withdrawn.
        Raises BadFrame for a number that cannot be."""
        if answer.number >= NUMBERS:
            raise BadFrame(f"answer from {peer} tells of a view {answer.number}, expected less than {NUMBERS}")
        self.number = max(self.number, answer.number)
        proposal, promise = self._proposal, self._promise
        if promise is not None and promise.view.id == answer.id and promise.view.issuer == peer and not answer.accepted:
            self._promise = None
            return []
        if proposal is None or answer.id != proposal.view.id or now >= proposal.until:
            return []
        if answer.accepted:
            self._accepted(proposal, peer, answer)
            return []
        for node in answer.unreached[: len(proposal.view.members)]:
            self.views.succession.bar(node, now)
        return self._drop(f"view {proposal.view.number}: {peer} refuses, {answer.reason[:WORDS_LIMIT]}", now)

    def given(self, view: View, peer: PeerId) -> list[Action]:
        """A view that holds came from a member of it. Raises BadFrame when it is not well-formed."""
        check(view, peer)
        self.number = max(self.number, view.number)
        self.views.saw(view)
        held, promise = self.views.view, self._promise
        if self.over or (held is not None and view.id == held.id):
            return []
        if not any(map(self.roster.is_me, view.members)):
            return self._left_out(view)
        if self.views.synchronous and promise is not None and promise.view.number > view.number:
            return []  # it would be past the round that it has promised to start from
        if held is None and not self.views.synchronous:
            # With a parent it is no first view: the run goes on already, and has a model to give.
            return self._install(view, model_from=peer if view.parent else "")
        return self._install(view) if held is None or order(view) > order(held) else self.show(peer)

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
        elif self.views.synchronous:
            return self._successor(now)
        else:
            if not self.views.finishing:
                members, _ = self.views.extension(now)
                if members is not None:
                    return self._publish(self._draft(PURPOSE_TRAIN, Next.of(members)))
            members, self.waiting = self.views.finish(now)
        if members is None:
            return []
        purpose = PURPOSE_TRAIN if self.views.view is None else PURPOSE_FINISH
        return self._propose(purpose, Next.of(members), now)

    def _successor(self, now: float) -> list[Action]:
        """Of a synchronous run, as soon as it is wanted and this node's turn has come."""
        purpose, following, self.waiting = self._following(now)
        if following is None:
            self._wanted_since = None
            return []
        self._wanted_since = now if self._wanted_since is None else self._wanted_since
        if now - self._wanted_since < PATIENCE_S * self.views.succession.turn(following):
            self.waiting += "; a node with a lower id proposes the next view"
            return []
        return self._propose(purpose, following, now)

    def _following(self, now: float) -> tuple[Purpose.ValueType, Next | None, str]:
        """(what for, the next view if one is wanted, what is waited for)."""
        views, succession = self.views, self.views.succession
        if not views.finishing and not (late := views.training(views.mates())):
            return PURPOSE_FINISH, succession.next(now), "everybody has finished"
        if views.finishing and views.done(now):
            return PURPOSE_FINISH, None, "everybody who is left holds the mean model"
        following, why = succession.wanted(now)
        if following is None and not why and not views.finishing and views.phase >= PHASE_FINISHED:
            why = late
        return PURPOSE_FINISH if views.finishing else PURPOSE_TRAIN, following, why

    def _judge(self, view: View, peer: PeerId, now: float) -> tuple[str, list[PeerId]]:
        """(why not to accept a proposal, which members are not reached); an empty reason accepts."""
        issuer, bound = self.roster.members.get(peer), self._promise
        if issuer is None or (view.issuer, view.issuer_incarnation) != (peer, issuer.identity.incarnation):
            return f"it is of {view.issuer}/{view.issuer_incarnation}, and {peer} sent it", []
        if not any(map(self.roster.is_me, view.members)):
            return f"{self.roster.me.node_id}/{self.roster.me.incarnation} is not in it", []
        if self.over:
            return "leaving", []
        # A newer one of the same issuer says that it has dropped the older.
        renewed = bound is not None and bound.view.issuer == peer and bound.view.number < view.number
        if bound is not None and now < bound.until and not renewed:
            return f"busy with view {bound.view.number} of {bound.view.issuer}", []
        mine = self._proposal
        if mine is not None and mine.view.issuer < peer and self.views.synchronous and self.views.view is not None:
            return f"busy with view {mine.view.number} of {mine.view.issuer}", []
        return self.views.judge(view, peer, now)

    def _must_stop_for(self, view: View) -> bool:
        return self.views.synchronous and self.views.view is not None and view.purpose == PURPOSE_TRAIN

    def _stop(self) -> list[Action]:
        """Fall out of the view that holds; `paused` follows."""
        self.views.succession.fallen = True
        return [Pause()]

    def _acceptance(self, view: View, round: int, *, lacks_model: bool = False) -> ViewAnswer:
        held = self.views.view
        answer = ViewAnswer(id=view.id, accepted=True, number=self.number, round=round)
        if held is not None and not lacks_model:
            answer.held, answer.size = held.id, len(held.members)
        return answer

    def _accepted(self, proposal: _Proposal, node: PeerId, answer: ViewAnswer) -> None:
        if node in proposal.silent:
            proposal.silent.discard(node)
            proposal.answers[node] = answer

    def _draft(self, purpose: Purpose.ValueType, following: Next) -> View:
        self.number += 1
        parent = "" if self.views.view is None else self.views.view.id
        steps = {m.id: m.beat.step for m in self.roster.members.values()}
        others = ((identity, samples, steps.get(identity.node_id, 0)) for identity, samples in following.members)
        view = draft(self.roster, others, self.number, parent, purpose, following.cut)
        view.most = max(self.views.most, len(view.members))
        return view

    def _propose(self, purpose: Purpose.ValueType, following: Next, now: float) -> list[Action]:
        view = self._draft(purpose, following)
        others = [identity.node_id for identity, _ in following.members]
        self._proposal = _Proposal(view, set(others), now + PROPOSAL_S, {})
        told: list[Action] = [Send(node, Control(propose=ViewProposal(view=view))) for node in others]
        if not self._must_stop_for(view):
            return told
        self._proposal.silent.add(self.roster.me.node_id)
        return [*told, *self._stop()]

    def _conclude(self, proposal: _Proposal) -> list[Action]:
        """All have accepted."""
        if self._must_stop_for(proposal.view):
            settle(proposal.view, proposal.answers, replicas=self.replicas)
        return self._publish(proposal.view)

    def _publish(self, view: View) -> list[Action]:
        """Install a view of this node's own, and tell everybody: those who are not in it learn that, too."""
        me = self.roster.me.node_id
        told = {m.id for m in self.roster.live() if m.linked} | {m.node_id for m in view.members if m.node_id != me}
        return [*self._install(view), *(Send(peer, Control(install=view)) for peer in sorted(told))]

    def _install(self, view: View, model_from: PeerId = "") -> list[Action]:
        self._proposal = self._promise = self._wanted_since = None
        self._mark()
        self.views.install(view)
        behind = self.roster.me.node_id in view.behind
        return [Installed(view, view.source if behind else model_from)]

    def _mark(self) -> None:
        self.views.open = self._proposal is not None or self._promise is not None

    def _expire(self, now: float) -> list[Action]:
        promise = self._promise
        # Who starts a run and leaves may have started it all the same; a successor with one who has left is of no use.
        if promise is not None and promise.view.parent and self._has_left(promise.view.issuer):
            self._promise = None
        if promise is not None and now >= promise.until:
            self._promise = None
        if self._proposal is None:
            return []
        number, silent = self._proposal.view.number, sorted(self._proposal.silent)
        if left := [node for node in silent if self._has_left(node)]:
            return self._drop(f"view {number}: {left[0]} has left", now)
        if now >= self._proposal.until:
            return self._drop(f"view {number}: no answer from {', '.join(silent)} in {PROPOSAL_S:g} s", now)
        return []

    def _has_left(self, node: PeerId) -> bool:
        member = self.roster.members.get(node)
        return member is not None and bool(member.left)

    def _drop(self, reason: str, now: float) -> list[Action]:
        """Make no more of this node's proposal, and let go of those who have accepted it."""
        assert self._proposal is not None
        view, me = self._proposal.view, self.roster.me.node_id
        self._proposal = None
        self._retry_at = now + RETRY_S * self.rng.uniform(1, 2)
        withdrawn = Control(answer=ViewAnswer(id=view.id, reason="withdrawn", number=self.number))
        return [Dropped(reason), *(Send(m.node_id, withdrawn) for m in view.members if m.node_id != me)]

    def _left_out(self, view: View) -> list[Action]:
        """Who may still be let in waits: a run takes newcomers, and a proposal may be under way."""
        joinable = view.purpose == PURPOSE_TRAIN
        if self.views.view is not None or joinable or self._proposal is not None or self._promise is not None:
            return []
        self.over = True
        members = ", ".join(m.node_id for m in view.members)
        return [Refused(f"the run ended without this node; its members are {members}")]
