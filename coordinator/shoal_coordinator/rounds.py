"""Who is enrolled, which answers a round has, and whether it may close. Pure; deciders give (decision, reason)."""

import dataclasses
import math
from collections.abc import Collection

from shoal.enrolment import HASH, Enrolment, Position
from shoal.messages import PeerId
from shoal.settings import Settings


@dataclasses.dataclass
class Roll:
    """Who takes part. Those who began the run together are expected until they enrol or are gone."""

    enrolled: dict[PeerId, Position] = dataclasses.field(default_factory=dict)  # worker -> the answer it needs next
    expected: set[PeerId] = dataclasses.field(default_factory=set)

    @property
    def members(self) -> list[PeerId]:
        """All whose answer a round waits for, sorted."""
        return sorted(self.expected | set(self.enrolled))

    def enrol(self, worker: PeerId, position: Position) -> None:
        """It is here, and needs the answer of `position` next."""
        self.expected.discard(worker)
        self.enrolled[worker] = position

    def leave(self, worker: PeerId) -> bool:
        """It is gone; whether anything was known of it."""
        known = worker in self.enrolled or worker in self.expected
        self.expected.discard(worker)
        self.enrolled.pop(worker, None)
        return known

    def furthest(self, beyond: Position) -> PeerId | None:
        """Somebody who is beyond that position: the furthest; of equals, the lowest id."""
        best = max(self.enrolled.values(), default=beyond)
        return min((w for w, position in self.enrolled.items() if position == best > beyond), default=None)


@dataclasses.dataclass(frozen=True)
class Terms:
    """When a round closes. Without a quorum: when all have answered."""

    quorum: int | None = None
    deadline_s: float = 1.0  # after the first answer
    least: int = 1  # members without whom the first round does not close


def may_close(
    terms: Terms, members: Collection[PeerId], answered: Collection[PeerId], *, first_at: float, first: bool, now: float
) -> tuple[str | None, str]:
    """("all" or "quorum", why), or None and what is still missing.

    `members`: all whose answer counts; `answered`: who has given one, at `first_at` the first of them; `first`: no
    round of the run has closed yet. Times in seconds of one clock.
    """
    n, missing = len(answered), sorted(set(members) - set(answered))
    if n == 0:
        return None, "nobody has answered"
    if first and len(members) < terms.least:
        return None, f"{len(members)} of {terms.least} nodes are here"
    if terms.quorum is not None and terms.quorum > max(n, len(members)):
        return None, f"the quorum of {terms.quorum} is larger than the view, which has {len(members)} members"
    if not missing:
        return "all", f"all {n} have answered"
    waits = f"waits for {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
    if terms.quorum is None:
        return None, f"{waits}; {n} have answered"
    if n < terms.quorum:
        return None, f"{waits}; {n} have answered, the quorum is {terms.quorum}"
    if now < closes_at(terms, first_at):
        return None, f"{waits} until the deadline; {n} have answered"
    return "quorum", f"{n} of {len(members)} answered within {terms.deadline_s:g} s; without {', '.join(missing[:3])}"


def closes_at(terms: Terms, first_at: float) -> float:
    """When a round whose first answer came at `first_at` stops to wait for more than a quorum; inf without one."""
    return math.inf if terms.quorum is None else first_at + terms.deadline_s


def fits(terms: Terms, run: Settings) -> tuple[bool, str]:
    """Whether a run can be coordinated on these terms, and why not."""
    if run.over == "coordinator" and run.traits.finite_sum and terms.quorum is not None:
        words = f"{run.algorithm} sums over all samples and needs every member's answer"
        return False, f"{words}; start the coordinator without --quorum"
    return True, ""


def quorum_fits(terms: Terms, members: Collection[PeerId]) -> tuple[bool, str]:
    """Whether so many members can ever give the answers that a round needs, and why not."""
    if terms.quorum is None or terms.quorum <= len(members):
        return True, ""
    what = f"a round needs the answers of {terms.quorum}, and the run began with {len(members)} members"
    return False, f"{what}; start the coordinator with --quorum {len(members)} or less, or the run with more nodes"


def may_begin(members: Collection[PeerId], linked: Collection[PeerId]) -> tuple[bool, str]:
    """Whether nodes may begin a run of these settings while `linked` are at work in one, and why not: two groups that
    do not see each other would undo each other's rounds."""
    others = sorted(set(linked) - set(members))
    return not others, f"{others[0]} is in a run of these settings that began without this node" if others else ""


def begins(enrolment: Enrolment, others: Collection[PeerId]) -> bool:
    """Whether a view that is new to the coordinator begins a run, from its first round or from checkpoints of all; else
    its worker comes back to the `others` of the run, who will not enrol anew. Those who began a run and those who came
    back to it later know it by different views."""
    return enrolment.first == enrolment.position.round == 0 or not set(others) & set(enrolment.members)


def from_position(run: Settings, needed: Position) -> list[Position]:
    """Which answer may be the next for a worker that needs that of `needed`, or the first one after it."""
    if run.traits.finite_sum:
        return [needed, Position(needed.round, 1)] if needed.step == 0 else [needed, *_beginning(run, needed.round + 1)]
    if needed.step > 1:
        return _beginning(run, needed.round + 1)
    return [needed] if needed.step == 1 else _beginning(run, needed.round)


def following(run: Settings, closed: Position) -> list[Position]:
    """Which answers may come after that one: by the algorithm, one a round; in a finite sum many, as it needs."""
    if closed.step == 0:
        return [Position(closed.round, 1)]
    further = [Position(closed.round, closed.step + 1)] if run.traits.finite_sum else []
    return [*further, *_beginning(run, closed.round + 1)]


def purpose_of(run: Settings, position: Position) -> str:
    """What is counted there."""
    if position.step == 0:
        return HASH
    if run.traits.votes:
        return "vote"
    return "ef-mean" if run.algorithm == "ef-signsgd" else "mean"


def _beginning(run: Settings, round: int) -> list[Position]:
    if run.traits.finite_sum:
        return [Position(round, 0), Position(round, 1)]
    every = run.hash_every
    return [Position(round, 0 if every and round and round % every == 0 else 1)]
