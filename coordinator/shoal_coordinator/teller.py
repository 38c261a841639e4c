"""Rounds of a run: takes the workers' vectors, counts them when a round may close, and gives all the answer."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shoal.collective import check
from shoal.coordinated import rule_of
from shoal.enrolment import BEHIND, HASH, Enrolment, Position, kept_answers, packed_json
from shoal.errors import BadFrame, BadVector, Mismatch
from shoal.messages import Kind, Message, PeerId
from shoal.replicas import HASH_BYTES, right_one
from shoal.rules import Rule
from shoal.settings import Settings
from shoal.vector import is_finite
from shoal_coordinator import rounds
from shoal_coordinator.rounds import Roll, Terms
from shoal_coordinator.tally import Tally, agreement

if TYPE_CHECKING:
    from shoal_coordinator.store import Store

DTYPES = {"f32": torch.float32, "f64": torch.float64}
SAID = 20
"""Names of workers that differ which an answer carries; each of them knows it by its own hash."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One that was given."""

    position: Position
    purpose: str
    vector: Tensor
    heard: set[PeerId]  # whose vectors came, in time or late
    voters: frozenset[PeerId]  # whose vectors are in it


class Teller:
    """Counts for one run, on `terms`. `send(peer, message)` drops what cannot be delivered: a worker enrols anew on
    every connection, and is then given what it needs. An answer is in `store` before it is sent."""

    def __init__(
        self,
        run: Settings,
        terms: Terms,
        *,
        send: Callable[[PeerId, Message], None],
        clock: Callable[[], float],
        store: "Store | None" = None,
    ) -> None:
        self.run, self.terms, self.tally, self.roll = run, terms, Tally(), Roll()
        self.waiting = "nobody has enrolled"  # why the round is open, for people
        self._send, self._clock, self._store = send, clock, store
        self._start = ""  # the view that began the run
        self._shape: tuple[tuple[int, ...], int] | None = None  # segments, carried
        self._rules: dict[str, Rule] = {}
        self._linked: set[PeerId] = set()
        self._stuck: set[PeerId] = set()  # they need answers that are gone, and nobody can give them a model yet
        self._closed = 0  # answers given
        self._answers: list[Answer] = []  # the last ones
        self._before = Position(0, -1)  # of the answer before those
        self._next = rounds.from_position(run, Position(0, 0))
        self._ballots: dict[PeerId, Tensor] = {}
        self._open: Position | None = None  # what they are about
        self._first_at = 0.0
        if store is not None:
            self._restore(store)

    @property
    def round(self) -> int:
        """That is open, or will be."""
        return self._next[0].round

    # --- workers ------------------------------------------------------------------------------------------------

    def enrol(self, worker: PeerId, enrolment: Enrolment) -> None:
        """A worker is connected, and says where it stands. Raises Mismatch, with nothing changed."""
        known = enrolment.start in ("", self._start)
        if begins := not known and rounds.begins(enrolment, set(self.roll.members) - {worker}):
            for fits, why in (
                rounds.quorum_fits(self.terms, enrolment.members),
                rounds.may_begin(enrolment.members, self._linked - {worker}),
            ):
                if not fits:
                    raise Mismatch(why)
        shape = enrolment.segments, enrolment.carried
        if self._shape not in (None, shape):
            raise Mismatch(f"the tensors of {worker} have other sizes than those of the run")
        self._shape = shape
        if begins:
            self._begin(enrolment)
        needed = rounds.from_position(self.run, enrolment.position)
        if min(needed) > max(self._next):  # it has heard answers that were lost here
            self._go_to(enrolment.position)
        self.roll.enrol(worker, enrolment.position)
        self._linked.add(worker)
        self._remember()
        self._serve(worker)
        self._go_on()

    def post(self, worker: PeerId, message: Message) -> None:
        """A worker's vector. Raises BadFrame or BadVector, naming it, with nothing changed."""
        assert message.tag is not None
        assert message.vector is not None
        position = Position.of(message.tag)
        if worker not in self.roll.enrolled:
            raise BadFrame(f"{worker} votes in round {position.round} and has not enrolled")
        if position <= self._last:
            self._note_late(worker, position)
            return
        expected = self._next if self._open is None else [self._open]
        if position not in expected:
            raise BadFrame(f"{worker} votes in {_named(position)}, expected {' or '.join(map(_named, expected))}")
        self._check(worker, message.tag.purpose, position, message.vector)
        if worker in self._ballots:
            self.tally.votes["double"] += not torch.equal(self._ballots[worker], message.vector)
            return
        if self._open is None:
            self._open, self._first_at = position, self._clock()
        self._ballots[worker] = message.vector
        self.roll.enrolled[worker] = position
        self._go_on()

    def down(self, worker: PeerId) -> None:
        """Its connection broke: it may come back, and is waited for."""
        self._linked.discard(worker)
        self._stuck.discard(worker)

    def left(self, worker: PeerId) -> None:
        """It is gone; the rounds go on with the rest."""
        self.down(worker)
        if self.roll.leave(worker):
            self._remember()
            self._go_on()

    # --- time ---------------------------------------------------------------------------------------------------

    def due(self) -> float:
        """When `tick` may have something to do, on the clock; inf for never."""
        return math.inf if self._open is None else rounds.closes_at(self.terms, self._first_at)

    def tick(self) -> None:
        """Time has passed."""
        self._go_on()

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _last(self) -> Position:
        return self._answers[-1].position if self._answers else self._before

    def _begin(self, enrolment: Enrolment) -> None:
        """Nodes have begun a run together: a new one, or that of before once more, each from its checkpoint."""
        kept = self._before < Position(enrolment.first, 0) <= max(self._next)
        if enrolment.first == 0 or not kept:
            self._go_to(Position(enrolment.first, 0))
        if enrolment.first == 0:
            self._rules = {}
        self._start = enrolment.start
        self.roll = Roll(expected=set(enrolment.members))
        self._ballots, self._open, self._stuck = {}, None, set()

    def _go_to(self, needed: Position) -> None:
        """What was answered until now is of no use for those who need that position."""
        self._answers, self._before = [], Position(needed.round, needed.step - 1)
        self._next = rounds.from_position(self.run, needed)
        self._ballots, self._open = {}, None
        if self._store is not None:
            self._store.forget_run()
        for worker in sorted(self._linked):
            self._serve(worker)

    def _serve(self, worker: PeerId) -> None:
        """Give it the answers that it needs, or the name of somebody who has a model that is far enough."""
        position = self.roll.enrolled.get(worker)
        if position is None:
            return
        self._stuck.discard(worker)
        if position > self._before:
            for answer in self._answers:
                if answer.position >= position:
                    self._give(worker, answer)
        elif (source := self.roll.furthest(self._before)) is not None:
            self._send(worker, Message(Kind.POST, tag=self._before.tag(BEHIND), vector=packed_json({"ask": source})))
        else:
            self._stuck.add(worker)

    def _give(self, worker: PeerId, answer: Answer) -> None:
        tag = answer.position.tag(answer.purpose)
        self._send(worker, Message(Kind.POST, tag=tag, vector=answer.vector, committed=worker in answer.voters))

    def _go_on(self) -> None:
        if self._open is not None:
            how, self.waiting = rounds.may_close(
                self.terms,
                self.roll.members,
                self._ballots,
                first_at=self._first_at,
                first=not self._closed,
                now=self._clock(),
            )
            if how is not None:
                self._close(self._open, how)
        if self._open is None:
            self.waiting = "nobody has answered"
        stuck = self._stuck & self._linked
        if stuck and stuck >= set(self.roll.members):  # nobody has what they need: the furthest of them goes first
            self._stuck = set()
            self._go_to(max(self.roll.enrolled.values()))
        for worker in sorted(stuck):
            self._serve(worker)

    def _close(self, position: Position, how: str) -> None:
        purpose = rounds.purpose_of(self.run, position)
        vector, memory = self._count(purpose, position.round)
        voters = frozenset(self._ballots)
        kept = kept_answers(vector.nbytes)
        if self._store is not None:
            about = {"position": position, "purpose": purpose, "voters": sorted(voters), "before": self._last}
            self._store.save_answer(self._closed, kept, vector, about, memory)
        self.tally.rounds[how] += 1
        self.tally.votes["counted"] += len(voters)
        self.tally.votes["missing"] += len(set(self.roll.members) - voters)
        self._closed += 1
        self._answers.append(Answer(position, purpose, vector, set(voters), voters))
        while len(self._answers) > kept:
            self._before = self._answers.pop(0).position
        self._next, self._open, self._ballots = rounds.following(self.run, position), None, {}
        for worker in sorted(self._linked - self._stuck):
            self._give(worker, self._answers[-1])

    def _count(self, purpose: str, round: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """(the answer, what is remembered after it)."""
        if purpose == HASH:
            right, wrong = right_one(self._ballots)
            said = {"right": right, "hash": bytes(self._ballots[right].tolist()).hex(), "wrong": wrong[:SAID]}
            return packed_json(said), {}
        counted = self._rule(purpose)
        vector = counted.count(self._ballots, round)
        if purpose == "vote":
            self.tally.agreement = agreement(self._ballots, vector, counted.elements)
        return vector, counted.memory

    def _check(self, worker: PeerId, purpose: str, position: Position, vector: Tensor) -> None:
        expected = rounds.purpose_of(self.run, position)
        if purpose != expected:
            raise BadFrame(f"{worker} posts {purpose[:32]!r} in {_named(position)}, expected {expected!r}")
        if purpose == HASH:
            check(vector, HASH_BYTES, torch.uint8, worker, "hash of x")
            return
        self._rule(purpose).check(vector, worker)
        if not is_finite(vector):
            raise BadVector(f"vector from {worker} in round {position.round} holds NaN or Inf: its model has diverged")

    def _rule(self, purpose: str) -> Rule:
        if purpose not in self._rules:
            assert self._shape is not None
            segments, carried = self._shape
            made = rule_of(purpose, segments, carried, seed=self.run.seed, dtype=DTYPES[self.run.precision])
            self._rules[purpose] = made
            if self._store is not None and self._closed:
                made.memory.update(self._store.load_memory(self._closed - 1))
        return self._rules[purpose]

    def _note_late(self, worker: PeerId, position: Position) -> None:
        answer = next((a for a in self._answers if a.position == position), None)
        if answer is None or worker not in answer.heard:
            self.tally.votes["late"] += 1
        if answer is not None:
            answer.heard.add(worker)

    # --- disk ---------------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        if self._store is not None:
            self._store.save_run({"start": self._start, "members": self.roll.members, "shape": self._shape})

    def _restore(self, store: "Store") -> None:
        """Where the last process stopped. All who took part are expected back."""
        document: dict[str, Any] = store.load_run() or {}
        if not document:
            return
        self._start, self.roll.expected = document["start"], set(document["members"])
        segments, carried = document["shape"]
        self._shape = tuple(segments), carried
        for vector, about in store.load_answers():
            voters, position = frozenset(about["voters"]), Position(*about["position"])
            if not self._answers:
                self._before = Position(*about["before"])
            self._answers.append(Answer(position, about["purpose"], vector, set(voters), voters))
            self._closed = about["number"] + 1
            self._next = rounds.following(self.run, position)


def _named(position: Position) -> str:
    return f"round {position.round}" + (f" (step {position.step})" if position.step != 1 else "")
