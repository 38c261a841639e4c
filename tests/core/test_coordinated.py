"""The worker's side of a coordinator: what it repeats, what it takes, and when it has lost the others."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.codecs import pack_signs
from shoal.coordinated import Behind, Coordinated
from shoal.enrolment import BEHIND, ENROL, FINAL, FRESH, HASH, VIEW, Enrolment, Position, packed_json
from shoal.errors import BadFrame, BadVector, UserError
from shoal.messages import Kind, Message, Tag

D = 20
SERVER = "coordinator-1"


class Worker:
    """A worker's side with what it has sent."""

    def __init__(self, carried: int = 0) -> None:
        self.sent: list[Message] = []
        self.side = Coordinated(
            "a",
            3,
            segments=(12, 8),
            carried=carried,
            dtype=torch.float32,
            seed=0,
            send=lambda to, message: self.sent.append(message),
            clock=lambda: 0.0,
        )

    def begin(self, round: int = 0) -> None:
        self.side.begin(round, start="view", first=0, members=("a", "b"))

    def take(self) -> list[tuple[str, int]]:
        """(purpose, round) of what it has sent since the last call."""
        taken, self.sent = self.sent, []
        return [(m.tag.purpose, m.tag.round) for m in taken if m.tag]

    def hear(self, purpose: str, round: int, vector: Tensor | None, step: int = 1, **fields: Any) -> None:
        tag = Tag(VIEW, round, purpose, step)
        self.side.received(SERVER, Message(Kind.POST, tag=tag, vector=vector, **fields))

    def answer(self, round: int, bits: int = 0, counted: bool = True) -> None:
        """That of a vote, with so many signs negative."""
        self.hear("vote", round, pack_signs((torch.arange(D) < bits).numpy()), committed=counted)


@pytest.fixture
def worker() -> Worker:
    """Connected, and at round 0."""
    made = Worker()
    made.side.up(SERVER)
    made.begin()
    made.take()
    return made


async def begun(work: Awaitable[Any]) -> "asyncio.Task[Any]":
    """A word of the algorithm, after its first step."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    return task


# --- votes ------------------------------------------------------------------------------------------------------------


async def test_a_vote_is_answered(worker: Worker) -> None:
    vote = await begun(worker.side.combine("vote", -torch.ones(D), round=0))
    assert worker.take() == [("vote", 0)]
    worker.answer(0, bits=5)
    answer, own = await vote
    assert torch.equal(answer < 0, torch.arange(D) < 5)
    assert torch.equal(own, -torch.ones(D))


async def test_own_that_was_not_counted_is_nothing(worker: Worker) -> None:
    vote = await begun(worker.side.combine("vote", -torch.ones(D), round=0))
    worker.answer(0, counted=False)
    _, own = await vote
    assert torch.equal(own, torch.zeros(D))


async def test_a_vote_is_repeated_on_every_connection_after_where_the_worker_stands(worker: Worker) -> None:
    vote = await begun(worker.side.combine("vote", torch.ones(D), round=0))
    for _ in range(2):
        worker.side.down(SERVER)
        worker.take()
        worker.side.up(SERVER)
        assert worker.take() == [(ENROL, 0), ("vote", 0)]
    worker.answer(0)
    await vote
    worker.side.up(SERVER)
    assert worker.take() == [(ENROL, 0)], "what is answered is not repeated"


async def test_what_is_said_without_a_connection_is_said_on_the_next() -> None:
    worker = Worker()
    worker.begin(7)
    await begun(worker.side.combine("vote", torch.ones(D), round=7))
    assert worker.take() == []
    worker.side.up(SERVER)
    assert worker.take() == [(ENROL, 7), ("vote", 7)]


async def test_a_mean_takes_the_carried_floats_along() -> None:
    worker = Worker(carried=2)
    worker.side.up(SERVER)
    worker.begin()
    mean = await begun(worker.side.combine("mean", torch.ones(D + 2), round=0, step=4))
    worker.hear("mean", 0, torch.full((D + 2,), 3.0), step=5)
    answer, _ = await mean
    assert torch.equal(answer, torch.full((D + 2,), 3.0))


# --- being late -------------------------------------------------------------------------------------------------------


async def test_missed_answers_are_taken_in_order_and_no_vote_is_sent_for_them(worker: Worker) -> None:
    for round in range(3):
        worker.answer(round, bits=round, counted=False)
    for round in range(3):
        missed = worker.side.missed("vote", round)
        assert missed is not None
        assert int((missed < 0).sum()) == round
    assert worker.side.missed("vote", 3) is None
    assert worker.take() == []


async def test_an_answer_that_came_while_the_gradient_was_computed_needs_no_vote(worker: Worker) -> None:
    assert worker.side.missed("vote", 0) is None
    worker.answer(0, bits=2, counted=False)
    answer, own = await worker.side.combine("vote", torch.ones(D), round=0)
    assert worker.take() == []
    assert int((answer < 0).sum()) == 2
    assert not own.any()


async def test_more_answers_than_are_kept_are_asked_for_again(worker: Worker) -> None:
    for round in range(70):
        worker.answer(round)
    for round in range(64):
        assert worker.side.missed("vote", round) is not None
    assert worker.take() == []
    assert worker.side.missed("vote", 64) is None
    assert [Enrolment.of(m, "a").position for m in worker.sent] == [Position(63, 2)]


async def test_one_that_is_behind_hears_it_at_its_next_word_and_begins_again(worker: Worker) -> None:
    vote = await begun(worker.side.combine("vote", torch.ones(D), round=0))
    worker.hear(BEHIND, 80, packed_json({"ask": "b"}))
    for word in (vote, worker.side.combine("vote", torch.ones(D), round=0)):
        with pytest.raises(Behind) as raised:
            await word
        assert raised.value.peer == "b"
    with pytest.raises(Behind):
        worker.side.missed("vote", 0)
    worker.take()
    worker.begin(85)
    assert worker.take() == [(ENROL, 85)]
    assert worker.side.missed("vote", 85) is None


async def test_a_comparison_is_judged_by_the_model_that_the_worker_has_now(worker: Worker) -> None:
    """After it took another's, the old answer, which says that it was wrong, comes again."""
    right, wrong = torch.zeros(8, dtype=torch.uint8), torch.ones(8, dtype=torch.uint8)
    said = packed_json({"right": "b", "hash": bytes(8).hex(), "wrong": ["a", "c"]})
    compared = {}
    for own in (wrong, right):
        worker.begin(10)
        comparison = await begun(worker.side.compare(own, 10))
        worker.hear(HASH, 10, said, step=0)
        compared[int(own[0])] = await comparison
    assert compared == {1: ("b", ["a", "c"]), 0: ("b", ["c"])}


# --- what cannot be ---------------------------------------------------------------------------------------------------


async def test_a_refusal_ends_the_run_with_the_coordinators_words(worker: Worker) -> None:
    vote = await begun(worker.side.combine("vote", torch.ones(D), round=0))
    worker.side.received(SERVER, Message(Kind.REFUSE, reason="a round needs the answers of 5"))
    with pytest.raises(UserError, match="the coordinator coordinator-1 refuses: a round needs the answers of 5"):
        await vote


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        (Message(Kind.OFFER, seq=1), BadFrame, "OFFER from the coordinator coordinator-1, expected an answer"),
        (Message(Kind.POST), BadFrame, "POST from the coordinator"),
        (
            Message(Kind.POST, tag=Tag(VIEW, 0, "mean", 1), vector=torch.full((D,), float("inf"))),
            BadVector,
            "answer of round 0 from coordinator-1 holds NaN or Inf",
        ),
        (
            Message(Kind.POST, tag=Tag(VIEW, 0, BEHIND, 1), vector=torch.zeros(3, dtype=torch.uint8)),
            BadFrame,
            "post from coordinator-1 about 'behind' is no JSON object",
        ),
    ],
)
def test_what_a_coordinator_never_says(worker: Worker, message: Message, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        worker.side.received(SERVER, message)


async def test_an_answer_of_another_length_is_refused(worker: Worker) -> None:
    vote = await begun(worker.side.combine("vote", torch.ones(D), round=0))
    worker.hear("vote", 0, torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(BadVector, match="vote from coordinator-1 has 1 of uint8, expected 3 of uint8"):
        await vote


# --- a parameter server -----------------------------------------------------------------------------------------------


async def test_a_gradient_is_repeated_until_it_is_confirmed_though_it_was_answered(worker: Worker) -> None:
    x = torch.zeros(D)
    first = await begun(worker.side.ask(x, None))
    worker.hear(FRESH, 0, x, step=0, seq=0)
    await first
    for number in (1, 2):
        asked = await begun(worker.side.ask(x, torch.ones(D)))
        worker.hear(FRESH, number, x - number, step=0, seq=number, committed=True)
        model, applied = await asked
        assert applied
        assert torch.equal(model, x - number)
    worker.side.received(SERVER, Message(Kind.RECEIVED, tag=Tag(VIEW, 1, "gradient")))
    worker.side.received(SERVER, Message(Kind.RECEIVED, tag=Tag(VIEW, 0, "start")))
    worker.take()
    worker.side.up(SERVER)
    assert worker.take() == [(ENROL, 3), ("gradient", 2)]


async def test_a_gradient_says_of_which_life_and_at_which_model_it_was_taken(worker: Worker) -> None:
    first = await begun(worker.side.ask(torch.zeros(D), None))
    worker.hear(FRESH, 0, torch.zeros(D), step=0, seq=17)
    await first
    worker.take()
    await begun(worker.side.ask(torch.zeros(D), torch.ones(D)))
    (message,) = worker.sent
    assert (message.initiator, message.seq) == (3, 17)


async def test_the_final_model_ends_the_run(worker: Worker) -> None:
    asked = await begun(worker.side.ask(torch.zeros(D), torch.ones(D)))
    assert not worker.side.over
    worker.hear(FINAL, 0, torch.zeros(D), step=0, seq=90)
    _, applied = await asked
    assert worker.side.over
    assert not applied


# --- enrolment --------------------------------------------------------------------------------------------------------


def test_an_enrolment_comes_back_as_it_was() -> None:
    said = Enrolment(position=Position(4, 1), start="v", first=2, members=("a", "b"), segments=(3, 4), carried=5)
    assert Enrolment.of(said.post(), "a") == said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segments": []}, "numbers that cannot be"),
        ({"segments": [3, -1]}, "numbers that cannot be"),
        ({"segments": "x"}, "lacks a field, or has one of a wrong type"),
        ({"position": [1]}, "lacks a field, or has one of a wrong type"),
        ({"carried": None}, "lacks a field, or has one of a wrong type"),
    ],
)
def test_an_enrolment_that_cannot_be_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    said = {"position": [0, 0], "start": "", "first": 0, "members": ["a"], "segments": [3], "carried": 0, **change}
    message = Message(Kind.POST, tag=Tag(VIEW, 0, ENROL), vector=packed_json(said))
    with pytest.raises(BadFrame, match=f"enrolment from a {words}|enrolment from a has {words}"):
        Enrolment.of(message, "a")
