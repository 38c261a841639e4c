"""Rounds and models over a coordinator: the worker's side.

    worker       where I stand, ENROL        ->    on every connection, before anything else
                 vector of a position        ->    repeated on every connection, until it is answered
    coordinator  <- answer of that position        to all who are enrolled, in order, also if they did not vote
                 <- BEHIND                         the answers that you need are gone: take the model of ...
                 <- REFUSE                         you cannot take part, and why

An answer that a worker has heard is on the coordinator's disk, and serves as the confirmation of the worker's own
vector. So either end may die at any moment: what is repeated has been counted, or was never counted by anyone.
A parameter server answers each gradient at once and saves now and then; it confirms a gradient (RECEIVED) when it is
saved, and those that it lost are repeated.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.enrolment import (
    BEHIND,
    FINAL,
    GRADIENT,
    HASH,
    START,
    Enrolment,
    Position,
    kept_answers,
    unpacked_json,
)
from shoal.errors import BadFrame, BadVector, UserError
from shoal.messages import Kind, Message, PeerId
from shoal.rules import Rule, rule
from shoal.vector import is_finite

WHO = "the coordinator"
"""Its name while it cannot be reached."""


class Behind(Exception):
    """This worker has lost the others: it must take the model of `peer`, and goes on at the round it belongs to."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__(peer)
        self.peer = peer


class Coordinated:
    """One worker's part in it; the words are those of `Counting`, and `ask` for a parameter server."""

    def __init__(
        self,
        me: PeerId,
        incarnation: int,
        *,
        segments: Sequence[int],
        carried: int,
        dtype: torch.dtype,
        seed: int,
        send: Callable[[PeerId, Message], None],
        clock: Callable[[], float],
    ) -> None:
        """`segments`: sizes of the model's d trained parameters, tensor by tensor; `carried`: b further floats."""
        self.me, self.incarnation = me, incarnation
        self.segments, self.carried, self.dtype, self.seed = tuple(segments), carried, dtype, seed
        self.peer: PeerId | None = None  # the coordinator, while a connection to it stands
        self.version = 0  # of the parameter server's model, as it came last
        self.over = False  # that model is final
        self._send, self._clock = send, clock
        self._rules: dict[str, Rule] = {}
        self._enrolment: Enrolment | None = None
        self._next = Position(0, 0)  # the first that was not taken
        self._posts: dict[Position, Message] = {}  # own, not yet confirmed
        self._answers: dict[Position, Message] = {}
        self._gap = False  # there was no room for an answer: it must be asked for again
        self._waiting: tuple[Position, asyncio.Future[None]] | None = None
        self._since = 0.0
        self._error: Exception | None = None

    # --- the run ------------------------------------------------------------------------------------------------

    def begin(self, round: int, *, start: str, first: int, members: Sequence[PeerId]) -> None:
        """Take part from `round` on. `start`, `first`, `members`: of the view that began the run, see `Enrolment`."""
        self._next = Position(round, 0)
        self._posts, self._answers, self._error, self._gap = {}, {}, None, False
        self._enrolment = Enrolment(
            position=self._next,
            start=start,
            first=first,
            members=tuple(members),
            segments=self.segments,
            carried=self.carried,
        )
        self._enrol()

    def up(self, peer: PeerId) -> None:
        """A connection to the coordinator stands."""
        self.peer = peer
        self._enrol()
        for message in self._posts.values():
            self._send(peer, message)

    def down(self, peer: PeerId) -> None:
        """The connection broke; the run waits for the next one."""
        if peer == self.peer:
            self.peer = None

    def received(self, peer: PeerId, message: Message) -> None:
        """A message of the coordinator. Raises BadFrame or BadVector for what cannot be right."""
        tag = message.tag
        if message.kind is Kind.REFUSE:
            self._fail(UserError(f"the coordinator {peer} refuses: {message.reason}"))
        elif tag is None or message.kind not in (Kind.POST, Kind.RECEIVED):
            raise BadFrame(f"{message.kind.name} from the coordinator {peer}, expected an answer")
        elif message.kind is Kind.RECEIVED:
            self._posts.pop(Position.of(tag), None)
        elif tag.purpose == BEHIND:
            self._fail(Behind(str(unpacked_json(message, peer).get("ask", ""))))
        else:
            self._answered(peer, Position.of(tag), message)

    def waits(self) -> list[dict[str, Any]]:
        """Whether the worker waits for an answer, how long, and which."""
        if self._waiting is None:
            return []
        position, who = self._waiting[0], self.peer or WHO
        return [{"for": who, "seconds": self._clock() - self._since, "why": f"answer of round {position.round}"}]

    # --- rounds -------------------------------------------------------------------------------------------------

    async def combine(self, purpose: str, y: Tensor, *, round: int, step: int = 0) -> tuple[Tensor, Tensor]:
        """(answer, own y as it was counted), each of y's length, by a rule of `rules.py`. Own y is 0 where the others
        went on without it. Raises BadVector, Behind."""
        counted, position = self._rule(purpose), Position(round, step + 1)
        packed = counted.pack(y, round, self.me)
        message = await self._exchanged(purpose, position, packed)
        own = counted.unpack(packed).to(y) if message.committed else torch.zeros_like(y)
        return self._unpacked(purpose, message).to(y), own

    def missed(self, purpose: str, round: int) -> Tensor | None:
        """The answer of a round that the others have finished already; None where this worker is still needed."""
        if self._error is not None:
            raise self._error
        message = self._taken(Position(round, 1))
        if message is None:
            self._fill_gap()
            return None
        return self._unpacked(purpose, message)

    async def compare(self, fingerprint: Tensor, round: int) -> tuple[PeerId, list[PeerId]]:
        """(whose replica is right, who differs from it): see `replicas.py`. Of this worker its fingerprint says it:
        the answer may be older than the model that it has now."""
        message = await self._exchanged(HASH, Position(round, 0), fingerprint)
        said = unpacked_json(message, self.peer or WHO)
        own = [] if said.get("hash") == bytes(fingerprint.tolist()).hex() else [self.me]
        others = [str(who) for who in said.get("wrong", []) if who != self.me]
        return str(said.get("right", "")), sorted(own + others)

    async def _exchanged(self, purpose: str, position: Position, packed: Tensor) -> Message:
        if position not in self._answers:  # otherwise nobody waits for ours any more
            self._post(Message(Kind.POST, initiator=self.incarnation, tag=position.tag(purpose), vector=packed))
        message = await self._answer(position)
        self._posts.pop(position, None)
        return message

    def _unpacked(self, purpose: str, message: Message) -> Tensor:
        counted, answer = self._rule(purpose), message.vector
        assert answer is not None
        counted.check(answer, self.peer or WHO)
        return counted.unpack(answer)

    def _rule(self, purpose: str) -> Rule:
        if purpose not in self._rules:
            self._rules[purpose] = rule_of(purpose, self.segments, self.carried, seed=self.seed, dtype=self.dtype)
        return self._rules[purpose]

    # --- a parameter server -------------------------------------------------------------------------------------

    async def ask(self, x: Tensor, gradient: Tensor | None) -> tuple[Tensor, bool]:
        """(the server's model, whether the gradient is in it); without a gradient, x is offered as the first model.

        All are (d+b,): of a gradient the last b are the carried floats as they are here. Raises UserError.
        """
        position = Position(self._next.round, 0)
        purpose, vector = (START, x) if gradient is None else (GRADIENT, gradient)
        tag = position.tag(purpose)
        self._post(Message(Kind.POST, seq=self.version, initiator=self.incarnation, tag=tag, vector=vector))
        message = await self._answer(position)
        self._next = Position(position.round + 1, 0)
        self.version, self.over = message.seq, message.tag is not None and message.tag.purpose == FINAL
        assert message.vector is not None
        if message.vector.numel() != x.numel() or message.vector.dtype != x.dtype:
            raise BadVector(f"model from the coordinator has {message.vector.numel()} elements, expected {x.numel()}")
        return message.vector, message.committed

    # --- inside -------------------------------------------------------------------------------------------------

    def _post(self, message: Message) -> None:
        assert message.tag is not None
        self._posts[Position.of(message.tag)] = message
        if self.peer is not None:
            self._send(self.peer, message)

    def _enrol(self) -> None:
        if self.peer is not None and self._enrolment is not None:
            self._send(self.peer, dataclasses.replace(self._enrolment, position=self._next).post())

    def _fill_gap(self) -> None:
        if self._gap:
            self._gap = False
            self._enrol()

    def _answered(self, peer: PeerId, position: Position, message: Message) -> None:
        vector = message.vector
        if vector is None or not is_finite(vector):
            raise BadVector(f"answer of round {position.round} from {peer} holds NaN or Inf, or nothing")
        if position < self._next or position in self._answers:
            return  # a repetition
        awaited = self._waiting is not None and self._waiting[0] == position
        if len(self._answers) >= kept_answers(vector.nbytes) and not awaited:
            self._gap = True
            return
        self._answers[position] = message
        if awaited:
            self._wake(None)

    async def _answer(self, position: Position) -> Message:
        if self._error is not None:
            raise self._error
        message = self._taken(position)
        if message is None:
            self._fill_gap()
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting, self._since = (position, waiting), self._clock()
            await waiting
            message = self._taken(position)
            assert message is not None
        return message

    def _taken(self, position: Position) -> Message | None:
        message = self._answers.pop(position, None)
        if message is not None:
            self._next = Position(position.round, position.step + 1)
        return message

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._wake(error)

    def _wake(self, error: Exception | None) -> None:
        if self._waiting is None:
            return
        (_, waiting), self._waiting = self._waiting, None
        if not waiting.done():
            if error is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(error)


def rule_of(purpose: str, segments: Sequence[int], carried: int, *, seed: int, dtype: torch.dtype) -> Rule:
    """The rule for whole vectors, as worker and coordinator both have it: a mean takes the carried floats along."""
    parts = [*segments, carried] if purpose == "mean" and carried else list(segments)
    return rule(purpose, parts, seed=seed, dtype=dtype)
