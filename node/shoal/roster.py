"""Who is in the shoal: this node, the members it has met, what each last said of itself, and sums over them. Pure."""

import dataclasses
import enum
import math
from typing import Any

from shoal.cadence import Cadence, interval_s
from shoal.messages import PeerId
from shoal.v1.node_pb2 import (
    PHASE_AVERAGED,
    PHASE_FINISHED,
    PHASE_READY,
    PHASE_RUNNING,
    PHASE_UNSPECIFIED,
    ROLE_COORDINATOR,
    Control,
    Heartbeat,
    Identity,
    Phase,
    View,
)

PHASE_WORDS = {
    PHASE_UNSPECIFIED: "loading",
    PHASE_READY: "ready",
    PHASE_RUNNING: "running",
    PHASE_FINISHED: "finished",
    PHASE_AVERAGED: "averaged",
}


class State(enum.StrEnum):
    """What a node believes of a member."""

    ALIVE = "alive"
    SUSPECT = "suspect"  # its link is down, or it is silent for half of what makes it gone
    GONE = "gone"


# --- what membership asks of the daemon -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """Put `control` on the control stream to that peer."""

    peer_id: PeerId
    control: Control


@dataclasses.dataclass(frozen=True, slots=True)
class Joined:
    """A member is alive: for the first time, or again after it was gone."""

    peer_id: PeerId
    incarnation: int


@dataclasses.dataclass(frozen=True, slots=True)
class Gone:
    """A member that had joined is gone; `finished` when it left in order at the end of the run."""

    peer_id: PeerId
    incarnation: int
    reason: str
    finished: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Introduced:
    """That node does not reach this one, says member `by`: greet it."""

    identity: Identity
    by: PeerId


@dataclasses.dataclass(frozen=True, slots=True)
class Installed:
    """The view holds from now on. `model_from` names a member to fetch the model from, for a latecomer only."""

    view: View
    model_from: PeerId = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """A proposal of this node came to nothing; it is made again soon."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pause:
    """The view that holds here has fallen: stop in it, and tell `Membership.paused` in which round."""


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """The run has no place for this node: it began, or ended, without it."""

    reason: str


Action = Send | Joined | Gone | Introduced | Installed | Dropped | Pause | Refused


# --- the table --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True, eq=False)
class Member:
    """One incarnation of another node, since its Hello."""

    identity: Identity
    samples: int
    heard_at: float  # seconds, of the last sign of life
    linked: bool = False
    changed_at: float = -math.inf  # when the link came up or broke
    link_words: str = "no link yet"
    left: str = ""  # its words when it took its leave
    finished: bool = False  # it left in order
    state: State = State.SUSPECT
    reason: str = "no link yet"  # of a state that is not ALIVE
    joined: bool = False  # the daemon was told of it, and not that it is gone
    beat: Heartbeat = dataclasses.field(default_factory=lambda: Heartbeat(loss=math.nan))
    last_number: int = 0  # of its heartbeats on this link
    last_at: float = -math.inf  # when that one came
    acknowledged: int = 0  # the newest of our heartbeats that it has answered on this link
    acknowledged_at: float = -math.inf  # when that one was sent
    rtt_s: float | None = None
    cadence: Cadence = dataclasses.field(default_factory=Cadence)

    @property
    def id(self) -> PeerId:
        """Node id."""
        return self.identity.node_id

    @property
    def coordinates(self) -> bool:
        """Whether it is a coordinator, which trains nothing and is in no view."""
        return self.identity.role == ROLE_COORDINATOR

    @property
    def phase(self) -> Phase.ValueType:
        """How far it is, by its own word."""
        return self.beat.phase

    def judge(self, now: float, patience_s: float) -> tuple[State, str]:
        """Alive, suspect or gone, and why, where a silence of `patience_s` makes it gone."""
        silent_s = now - self.heard_at
        if self.left:
            return State.GONE, f"left: {self.left}"
        if silent_s >= patience_s:
            words = "" if self.linked else f", {self.link_words}"
            return State.GONE, f"silent for {silent_s:.1f} s{words}"
        if not self.linked:
            return State.SUSPECT, self.link_words
        if silent_s >= patience_s / 2:
            return State.SUSPECT, f"silent for {silent_s:.1f} s"
        return State.ALIVE, ""


class Roster:
    """This node and its members, one incarnation each. The newest incarnation met of a node is the one that counts."""

    def __init__(self, me: Identity, suspect_after_s: float, heartbeat_s: float) -> None:
        self.me = me
        self.samples = 0
        self.suspect_after_s, self.heartbeat_s = suspect_after_s, heartbeat_s
        self.mine = Heartbeat(loss=math.nan)  # as the trainer told it
        self.members: dict[PeerId, Member] = {}
        self.size = 0  # members that were not gone when they were last looked at
        self.number = 0  # of the last heartbeat sent
        self._gradients: dict[PeerId, int] = {}

    def live(self) -> list[Member]:
        """Nodes that are alive or suspect, by id."""
        return [m for m in self.around() if not m.coordinates]

    def around(self) -> list[Member]:
        """All that are alive or suspect, coordinators as well, by id."""
        return [m for _, m in sorted(self.members.items()) if m.state is not State.GONE]

    def connected(self, now: float) -> list[Member]:
        """Members that hear this node and are heard by it, by id."""
        return [m for m in self.live() if self.hears(m, now)]

    def hears(self, member: Member, now: float) -> bool:
        """Whether the link works both ways: the member has answered a recent heartbeat of this node."""
        recent = now - member.acknowledged_at < self.patience_s(member)
        return member.state is State.ALIVE and recent

    def patience_s(self, member: Member | None) -> float:
        """Seconds of silence after which that member is gone."""
        return self.suspect_after_s if member is None else member.cadence.patience_s(self.suspect_after_s, self.usual_s)

    @property
    def usual_s(self) -> float:
        """Seconds between two heartbeats of a member to the same one, in a shoal of this size."""
        return interval_s(self.heartbeat_s, self.size)

    def find(self, identity: Identity) -> Member | None:
        """The member that is this very incarnation."""
        member = self.members.get(identity.node_id)
        return member if member is not None and member.identity.incarnation == identity.incarnation else None

    def is_me(self, identity: Identity) -> bool:
        """Whether that is this node in this incarnation."""
        return (identity.node_id, identity.incarnation) == (self.me.node_id, self.me.incarnation)

    # --- sums ---------------------------------------------------------------------------------------------------

    def learn(self, identity: Identity, gradients: int) -> None:
        """This node has applied so many gradients, in all its lives: a checkpoint holds the count."""
        self._gradients[identity.node_id] = max(gradients, self._gradients.get(identity.node_id, 0))

    def gradients(self) -> dict[PeerId, int]:
        """The largest count known of every node ever met and of this one. A life that went on from a checkpoint repeats
        some of its last one's; those count once."""
        return dict(sorted(self._gradients.items()))

    def held_out(self) -> tuple[int, int]:
        """(right, total) over the held-out samples of this node and of all live members."""
        beats = [self.mine, *(m.beat for m in self.live())]
        return sum(b.held_out_right for b in beats), sum(b.held_out_total for b in beats)

    def snapshot(self, now: float, phase: Phase.ValueType) -> list[dict[str, Any]]:
        """One row a node for status, this one first; plain JSON values, None where nothing is known."""
        own = _row(self.me, self.mine, phase) | {"state": "self", "reason": "", "rtt_s": None, "heard_s_ago": 0.0}
        rows = [own]
        for _, m in sorted(self.members.items()):
            row = _row(m.identity, m.beat, m.phase)
            heard = {"rtt_s": m.rtt_s, "heard_s_ago": round(now - m.heard_at, 3)}
            rows.append(row | {"state": m.state.value, "reason": m.reason} | heard)
        return rows


def _row(identity: Identity, beat: Heartbeat, phase: Phase.ValueType) -> dict[str, Any]:
    total = beat.held_out_total
    return {
        "id": identity.node_id,
        "name": identity.name,
        "address": identity.address,
        "role": "coordinator" if identity.role == ROLE_COORDINATOR else "node",
        "phase": PHASE_WORDS.get(phase, "unknown"),
        "gradients": beat.gradients,
        "step": beat.step,
        "loss": beat.loss if math.isfinite(beat.loss) else None,
        "accuracy": beat.held_out_right / total if total else None,
    }
