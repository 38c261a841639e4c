"""One node's knowledge of the others: alive, suspect or gone, and the view that all agree on. Pure.

Every method takes `now`, in seconds of a clock that never goes back, and returns what the daemon is to do. Liveness is
our own heartbeats' business: discovery only hints. A heartbeat with a number is answered at once by one without, which
gives round-trip times and shows that the link works both ways.
"""

import math
import random
from typing import Any

from shoal.agreement import WORDS_LIMIT, Agreement
from shoal.cadence import Turns, look_s
from shoal.errors import BadFrame, Mismatch
from shoal.messages import PeerId
from shoal.relays import Relays
from shoal.roster import PHASE_WORDS, Action, Gone, Installed, Introduced, Joined, Member, Roster, Send, State
from shoal.v1.node_pb2 import (
    PHASE_AVERAGED,
    PHASE_FINISHED,
    PHASE_RUNNING,
    ROLE_COORDINATOR,
    Control,
    Heartbeat,
    Identity,
    Leave,
    Phase,
    View,
)
from shoal.views import MEMBERS_LIMIT, Views

JITTER = 0.1
"""Heartbeats of many nodes must not fall into step: each interval is so much longer or shorter, at random."""
SMOOTHING = 0.125
"""Weight of a new round-trip time (RFC 6298, section 2)."""
SENT_LIMIT = 1024
"""Heartbeats whose time of sending is kept; an answer to an older one says nothing new."""
ID_LIMIT = 64
"""Characters of a view's id."""


class Membership:
    """All that one incarnation of a node knows of the shoal."""

    def __init__(
        self,
        me: Identity,
        *,
        heartbeat_s: float,
        suspect_after_s: float,
        min_nodes: int,
        synchronous: bool,
        rng: random.Random,
        replicas: bool = False,
        on_partition: str = "continue",
        settle_s: float = 1.0,
    ) -> None:
        """`replicas`: all members hold the same model. `on_partition`: whether the smaller side of a split run goes on,
        "continue" or "pause". `settle_s`: how long a start waits for nodes that are not ready, or for anybody, once
        `min_nodes` are."""
        self.roster = Roster(me, suspect_after_s, heartbeat_s)
        self.views = Views(
            self.roster, min_nodes=min_nodes, synchronous=synchronous, on_partition=on_partition, settle_s=settle_s
        )
        self.agreement = Agreement(self.roster, self.views, rng, replicas=replicas)
        self.relays = Relays(self.roster, self.views)
        self.heartbeat_s, self.rng = heartbeat_s, rng
        self._sent_at: dict[int, float] = {}  # heartbeat number -> when
        self._beat_at: float | None = None  # None: at the next tick
        self._ticked_at: float | None = None
        self._look_at = 0.0
        self._unheard: list[PeerId] = []  # as the others were told
        self._turns = Turns()

    # --- what happens -------------------------------------------------------------------------------------------

    def met(self, identity: Identity, samples: int, now: float) -> list[Action]:
        """A Hello was exchanged. Raises Mismatch for an incarnation that cannot be. `samples`: its training samples."""
        me, known = self.roster.me, self.roster.members.get(identity.node_id)
        if identity.node_id == me.node_id:
            if identity == me:
                return []
            copied = "one runs on a copy of the other's state folder"
            raise Mismatch(f"{_named(identity)} has the id of this node, {_named(me)}: {copied}")
        actions: list[Action] = []
        if known is not None and identity != known.identity:
            if identity.incarnation <= known.identity.incarnation:
                raise Mismatch(f"{_named(identity)} came, but {_named(known.identity)} was met before")
            actions += self._gone(known, "it started again")
            known = None
        if known is None:
            if len(self.roster.members) >= MEMBERS_LIMIT and identity.node_id not in self.roster.members:
                raise Mismatch(f"{_named(identity)} came, but {MEMBERS_LIMIT} members are the most")
            known = self.roster.members[identity.node_id] = Member(identity, samples, now)
        known.heard_at, known.samples, known.left, known.finished = now, samples, "", False
        return self._after(now, actions)

    def link_up(self, peer: PeerId, now: float, incarnation: int | None = None) -> list[Action]:
        """The control stream to a member stands. With an `incarnation` that is not the newest met: no effect."""
        member = self._member(peer, incarnation)
        if member is None:
            return []
        member.linked, member.link_words, member.heard_at, member.last_number = True, "", now, 0
        member.changed_at = now
        beat = self._next_beat(now)
        shown = [] if member.coordinates else self.agreement.show(peer)
        return self._after(now, [self._beat(member, beat, now), *shown])

    def link_down(self, peer: PeerId, reason: str, now: float, incarnation: int | None = None) -> list[Action]:
        """The stream broke, or could not be built up; `reason` in the words of the transport."""
        member = self._member(peer, incarnation)
        if member is None:
            return []
        member.changed_at = now if member.linked else member.changed_at
        member.linked, member.link_words = False, reason
        member.acknowledged, member.acknowledged_at = 0, float("-inf")
        return self._after(now)

    def heard(self, peer: PeerId, control: Control, now: float, incarnation: int | None = None) -> list[Action]:
        """A control frame came. Raises BadFrame, before anything has changed, when it breaks the protocol."""
        member = self._member(peer, incarnation)
        if member is None or member.left:
            return []
        kind = control.WhichOneof("control")
        coordinates = ROLE_COORDINATOR in (member.identity.role, self.roster.me.role)
        if coordinates and kind not in ("heartbeat", "leave") and not control.relayed.control.HasField("introduce"):
            raise BadFrame(f"{kind} from {peer} about a view, of which a coordinator is no member")
        actions: list[Action] = []
        match kind:
            case "heartbeat":
                told = _told(member.beat) if member.joined and self.roster.hears(member, now) else None
                actions = self._on_heartbeat(member, control.heartbeat, now)
                if told == _told(member.beat):  # else each would cost a look at all members
                    member.heard_at = now
                    return self.relays.routed(actions)
            case "leave":
                self._on_leave(member, control.leave, now)
            case "relayed" if control.relayed.target != self.roster.me.node_id:
                actions = self.relays.pass_on(control.relayed, peer)
            case "relayed" if control.relayed.control.HasField("introduce"):
                actions = [Introduced(control.relayed.control.introduce, peer)]
            case "relayed":
                actions = self._about_views(control.relayed.control, control.relayed.origin, now)
            case _:
                actions = self._about_views(control, peer, now)
        member.heard_at = now
        return self._after(now, actions)

    def paused(self, round: int, now: float, *, lacks_model: bool = False) -> list[Action]:
        """The trainer has stopped, as `Pause` asked, in that round; `lacks_model`: it still waits for another's."""
        actions = self.agreement.paused(round, lacks_model=lacks_model)
        return self._after(now, actions)

    def _about_views(self, control: Control, peer: PeerId, now: float) -> list[Action]:
        match control.WhichOneof("control"):
            case "propose":
                view = control.propose.view
                return [*self.agreement.proposed(view, peer, now), *self._introduced(view, peer)]
            case "answer":
                return self.agreement.answered(control.answer, peer, now)
            case "install":
                return [*self.agreement.given(control.install, peer), *self._introduced(control.install, peer)]
            case other:
                raise BadFrame(f"{other or 'nothing'} from {peer} where a proposal, an answer or a view was expected")

    def _introduced(self, view: View, by: PeerId) -> list[Action]:
        """Members of a view whom this node has never met: they came while it was away."""
        known = {self.roster.me.node_id, *self.roster.members}
        strangers = (m for m in view.members if m.node_id not in known)
        return [Introduced(identity, by) for identity in strangers]

    def mine(
        self,
        phase: Phase.ValueType,
        gradients: int,
        step: int,
        loss: float,
        right: int,
        total: int,
        view: str = "",
    ) -> None:
        """This node's own state, for heartbeats; NaN is a loss that is not known. A new phase is told at the next tick.

        `view`: id of the finish view whose mean this node holds; PHASE_AVERAGED of another one than holds now is
        taken for PHASE_FINISHED. Installing a view does the same to what was said before.
        """
        held = "" if self.view is None else self.view.id
        if phase == PHASE_AVERAGED and view not in ("", held):
            phase = PHASE_FINISHED
        if phase != self.roster.mine.phase:
            self._beat_at = None
        self.roster.mine = Heartbeat(
            phase=phase, gradients=gradients, step=step, loss=loss, held_out_right=right, held_out_total=total
        )
        self.roster.learn(self.roster.me, gradients)

    def tick(self, now: float) -> list[Action]:
        """Time has passed. Call it at least once in `heartbeat_s`, better a few times."""
        self._forgive(now)
        actions: list[Action] = []
        if now >= self._look_at:
            self._look_at = now + look_s(self.heartbeat_s, self.roster.size)
            actions = self._after(now)
        if self._beat_at is None or now >= self._beat_at:
            news = self._beat_at is None
            self._beat_at = now + self.heartbeat_s * self.rng.uniform(1 - JITTER, 1 + JITTER)
            actions += [*self._beats(now, everybody=news), *self.agreement.repeat()]
        return actions

    def leave(self, reason: str, *, finished: bool, now: float) -> list[Action]:
        """This node goes: tells the others its last numbers, and says so. `finished`: in order, at the run's end."""
        return [*self._beats(now, everybody=True), *self.agreement.leave(reason, finished=finished)]

    def introduce(self, by: PeerId, to: PeerId) -> list[Action]:
        """Ask a member to tell a node of this one, which does not reach it."""
        return self.relays.introduce(by, to)

    def learn_gradients(self, peer: PeerId, count: int) -> None:
        """A message of that peer carried its count of gradients."""
        if member := self.roster.members.get(peer):
            self.roster.learn(member.identity, count)

    # --- what is known ------------------------------------------------------------------------------------------

    @property
    def samples(self) -> int:
        """Training samples of this node; set once they are loaded."""
        return self.roster.samples

    @samples.setter
    def samples(self, count: int) -> None:
        self.roster.samples = count

    @property
    def view(self) -> View | None:
        """The view that holds here."""
        return self.views.view

    @property
    def waiting(self) -> str:
        """Why the next view is not there yet, for people."""
        return self.agreement.waiting

    @property
    def held_up(self) -> str:
        """The same where it keeps this node from training, or from the end; empty where it does not."""
        trains = self.phase == PHASE_RUNNING and not self.views.synchronous
        return "" if trains else self.waiting

    @property
    def phase(self) -> Phase.ValueType:
        """This node's phase, as the others are told."""
        return self.views.phase

    def done(self, now: float) -> bool:
        """Whether every live member holds the mean model, this one included: it may leave."""
        return self.views.done(now)

    def total_gradients(self) -> int:
        """Over everyone ever met, the gone included: their work is in the model."""
        return sum(self.roster.gradients().values())

    def held_out(self) -> tuple[int, int]:
        """(right, total) over the held-out samples of all live members."""
        return self.roster.held_out()

    def snapshot(self, now: float) -> list[dict[str, Any]]:
        """One row a node for status, this one first."""
        return self.roster.snapshot(now, self.phase)

    # --- inside -------------------------------------------------------------------------------------------------

    def _member(self, peer: PeerId, incarnation: int | None) -> Member | None:
        member = self.roster.members.get(peer)
        other = member is None or (incarnation is not None and member.identity.incarnation != incarnation)
        return None if other else member

    def _after(self, now: float, before: list[Action] | None = None) -> list[Action]:
        """`before` and what follows from an event: who joined, who is gone, what that means for the view."""
        actions = list(before or ())
        for _, member in sorted(self.roster.members.items()):
            state, reason = member.judge(now, self.roster.patience_s(member))
            if state is State.GONE:
                actions += self._gone(member, reason)
            else:
                member.state, member.reason = state, reason
            if state is State.ALIVE and not member.joined:
                member.joined = True
                actions.append(Joined(member.id, member.identity.incarnation))
        self.roster.size = len(self.roster.around())
        actions += self.agreement.step(now)
        unheard = self.views.succession.unheard(now)
        if unheard != self._unheard:
            self._unheard, self._beat_at = unheard, None
        if any(isinstance(a, Installed) for a in actions):
            self._beat_at = None  # the others want to know at once
        return self.relays.routed(actions)

    def _gone(self, member: Member, reason: str) -> list[Action]:
        if member.state is not State.GONE:  # the first reason stays
            member.state, member.reason = State.GONE, reason
        if not member.joined:
            return []
        member.joined = False
        return [Gone(member.id, member.identity.incarnation, member.reason, member.finished)]

    def _on_heartbeat(self, member: Member, beat: Heartbeat, now: float) -> list[Action]:
        if len(beat.view) > ID_LIMIT or len(beat.unheard) > MEMBERS_LIMIT:
            raise BadFrame(
                f"heartbeat from {member.id} names {len(beat.unheard)} members, or a view of no right length"
            )
        if beat.phase not in PHASE_WORDS:
            raise BadFrame(f"heartbeat from {member.id} has the phase {beat.phase}, known: 0 to {max(PHASE_WORDS)}")
        if not 0 <= beat.held_s < math.inf:
            raise BadFrame(f"heartbeat from {member.id} was held for {beat.held_s} s, expected 0 or more")
        member.beat = beat
        self.roster.learn(member.identity, beat.gradients)
        if beat.answers > member.acknowledged and beat.answers in self._sent_at:
            member.acknowledged, member.acknowledged_at = beat.answers, self._sent_at[beat.answers]
            rtt_s = max(0.0, now - member.acknowledged_at - beat.held_s)
            old = rtt_s if member.rtt_s is None else member.rtt_s
            member.rtt_s = (1 - SMOOTHING) * old + SMOOTHING * rtt_s
        if not beat.number:
            return []
        first = not member.last_number
        if not first and member.state is not State.GONE:
            member.cadence.observe(now - member.last_at, self.roster.usual_s)
        member.last_number, member.last_at = beat.number, now
        # Whether a link works both ways is to be known at once; later ones are answered by the next beat.
        return [self._beat(member, 0, now)] if first else []

    def _on_leave(self, member: Member, leave: Leave, now: float) -> None:
        member.changed_at = now
        member.left = leave.reason[:WORDS_LIMIT] or ("finished" if leave.finished else "no reason given")
        member.finished = leave.finished

    def _next_beat(self, now: float) -> int:
        self.roster.number += 1
        self._sent_at[self.roster.number] = now
        if len(self._sent_at) > SENT_LIMIT:
            del self._sent_at[next(iter(self._sent_at))]
        return self.roster.number

    def _beats(self, now: float, *, everybody: bool) -> list[Action]:
        """A heartbeat to those linked whose turn it is, or to all; to the gone as well, for they may come back."""
        number = self._next_beat(now)
        linked = [m.id for _, m in sorted(self.roster.members.items()) if m.linked and not m.left]
        told = linked if everybody else self._turns.take(linked)
        return [self._beat(self.roster.members[peer], number, now) for peer in told]

    def _beat(self, member: Member, number: int, now: float) -> Send:
        beat = Heartbeat()
        beat.CopyFrom(self.roster.mine)
        beat.phase, beat.number, beat.answers = self.phase, number, member.last_number
        beat.unheard[:] = self._unheard
        if self.view is not None and not self.views.succession.fallen:
            beat.view, beat.view_number = self.view.id, self.view.number
        if member.last_number:
            beat.held_s = max(0.0, now - member.last_at)
        return Send(member.id, Control(heartbeat=beat))

    def _forgive(self, now: float) -> None:
        """A node that slept (suspended, stopped, starved) heard nobody: that silence was its own."""
        before, self._ticked_at = self._ticked_at, now
        slept_s = 0.0 if before is None else now - before - self.heartbeat_s
        if slept_s > self.roster.suspect_after_s / 4:
            for member in self.roster.members.values():
                member.heard_at = min(now, member.heard_at + slept_s)


def _told(beat: Heartbeat) -> tuple[object, ...]:
    """What of a member's word can change a view."""
    return beat.phase, beat.view, beat.view_number, *beat.unheard


def _named(identity: Identity) -> str:
    return f"{identity.node_id}/{identity.incarnation} at {identity.address}"
