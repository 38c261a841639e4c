"""Votes that come twice, late, for another round or of a wrong length; and what is on disk when an answer is heard."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.codecs import pack_signs, unpack_signs
from shoal.enrolment import BEHIND, VIEW, Enrolment, Position, unpacked_json
from shoal.errors import BadFrame, BadVector, Mismatch, PeerError
from shoal.messages import Kind, Message, PeerId, Tag
from shoal.rules import rule
from shoal.settings import Settings
from shoal_coordinator.rounds import Terms
from shoal_coordinator.store import Store
from shoal_coordinator.tally import agreement
from shoal_coordinator.teller import Teller

D = 20
RUN = Settings(algorithm="signum", over="coordinator", hash_every=0)


class Booth:
    """A teller with a clock, and what it has sent to each."""

    def __init__(self, run: Settings = RUN, store: Store | None = None, **terms: Any) -> None:
        self.now = 0.0
        self.sent: list[tuple[PeerId, Message]] = []
        self.teller = Teller(
            run, Terms(**terms), send=lambda to, m: self.sent.append((to, m)), clock=lambda: self.now, store=store
        )

    def enrol(self, *workers: PeerId, round: int = 0, step: int = 0, start: str = "view", first: int = 0) -> None:
        for worker in workers:
            enrolment = Enrolment(
                position=Position(round, step),
                start=start,
                first=first,
                members=tuple("abc"),
                segments=(12, 8),
                carried=0,
            )
            self.teller.enrol(worker, Enrolment.of(enrolment.post(), worker))

    def vote(self, worker: PeerId, round: int, bits: int = 0, step: int = 1) -> None:
        self.teller.post(worker, ballot(round, bits, step))

    def all_vote(self, rounds: int, first: int = 0) -> None:
        for round in range(first, first + rounds):
            for worker in "abc":
                self.vote(worker, round)

    def answers(self, worker: PeerId) -> list[int]:
        """Rounds whose answers it was sent."""
        return [m.tag.round for to, m in self.sent if to == worker and m.tag and m.tag.purpose == "vote"]


def ballot(round: int, bits: int = 0, step: int = 1, elements: int = D) -> Message:
    """With the first `bits` signs negative."""
    signs = pack_signs((torch.arange(elements) < bits).numpy())
    return Message(Kind.POST, tag=Tag(VIEW, round, "vote", step), vector=signs)


@pytest.fixture
def booth() -> Booth:
    """With three workers that began together."""
    made = Booth()
    made.enrol("a", "b", "c")
    return made


# --- counting ---------------------------------------------------------------------------------------------------------


def test_the_answer_goes_to_all_when_all_have_voted(booth: Booth) -> None:
    booth.vote("a", 0, bits=3)
    booth.vote("b", 0, bits=5)
    assert booth.sent == []
    booth.vote("c", 0, bits=9)
    assert [to for to, _ in booth.sent] == ["a", "b", "c"]
    for _, message in booth.sent:
        assert message.vector is not None
        assert message.committed
        assert torch.equal(unpack_signs(message.vector, D) < 0, torch.arange(D) < 5), "the median"


def test_a_round_does_not_close_before_all_who_began_have_enrolled() -> None:
    booth = Booth()
    booth.enrol("a", "b")
    booth.vote("a", 0)
    booth.vote("b", 0)
    assert booth.sent == []
    assert booth.teller.waiting == "waits for c; 2 have answered"
    booth.teller.left("c")
    assert booth.answers("a") == [0]


def test_a_second_vote_that_differs_is_ignored_and_counted(booth: Booth) -> None:
    booth.vote("a", 0, bits=0)
    booth.vote("a", 0, bits=0)  # a repetition after a broken connection
    assert booth.teller.tally.votes["double"] == 0
    booth.vote("a", 0, bits=D)
    booth.vote("b", 0, bits=D)
    booth.vote("c", 0, bits=0)
    assert booth.teller.tally.votes["double"] == 1
    answer = booth.sent[0][1].vector
    assert answer is not None
    assert (unpack_signs(answer, D) > 0).all(), "the first vote of a counts"


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        (ballot(1), BadFrame, "a votes in round 1, expected round 0"),
        (ballot(700), BadFrame, "a votes in round 700, expected round 0"),
        (ballot(0, step=0), BadFrame, r"a votes in round 0 \(step 0\), expected round 0"),
        (ballot(0, elements=8), BadVector, "vote from a has 1 of uint8, expected 3 of uint8"),
        (Message(Kind.POST, tag=Tag(VIEW, 0, "vote", 1), vector=torch.zeros(D)), BadVector, "vote from a has 20 of"),
        (Message(Kind.POST, tag=Tag(VIEW, 0, "mean", 1), vector=torch.zeros(D)), BadFrame, "a posts 'mean' in round 0"),
    ],
)
def test_a_vote_that_cannot_be_is_refused_by_name_and_changes_nothing(
    booth: Booth, message: Message, error: type[PeerError], words: str
) -> None:
    booth.vote("b", 0)
    with pytest.raises(error, match=words):
        booth.teller.post("a", message)
    booth.vote("a", 0)
    booth.vote("c", 0)
    assert booth.answers("a") == [0]
    assert booth.teller.tally.votes["counted"] == 3


def test_who_has_not_enrolled_has_no_vote(booth: Booth) -> None:
    with pytest.raises(BadFrame, match="d votes in round 0 and has not enrolled"):
        booth.vote("d", 0)


def test_a_mean_that_is_not_finite_is_refused_by_name() -> None:
    booth = Booth(Settings(algorithm="allreduce-sgd", over="coordinator", hash_every=0))
    booth.enrol("a", "b", "c")
    vector = torch.full((D,), float("nan"))
    with pytest.raises(BadVector, match="vector from a in round 0 holds NaN or Inf"):
        booth.teller.post("a", Message(Kind.POST, tag=Tag(VIEW, 0, "mean", 1), vector=vector))


def test_agreement_is_the_part_of_signs_that_are_the_majoritys() -> None:
    signs = {w: pack_signs((torch.arange(D) < bits).numpy()) for w, bits in (("a", 0), ("b", 0), ("c", 10))}
    assert agreement(signs, signs["a"], D) == pytest.approx(1 - 10 / (3 * D))


# --- quorum -----------------------------------------------------------------------------------------------------------


def test_a_quorum_closes_the_round_at_its_deadline_and_a_late_vote_is_counted_as_such() -> None:
    booth = Booth(quorum=2, deadline_s=0.5)
    booth.enrol("a", "b", "c")
    booth.now = 1.0
    booth.vote("a", 0)
    booth.vote("b", 0)
    assert booth.teller.due() == 1.5
    booth.teller.tick()
    assert booth.sent == []
    booth.now = 1.5
    booth.teller.tick()
    assert booth.answers("c") == [0], "also who has not voted"
    assert [m.committed for _, m in booth.sent] == [True, True, False]
    for _ in range(2):  # once, though it comes twice
        booth.vote("c", 0)
    tally = booth.teller.tally
    assert tally.rounds == {"all": 0, "quorum": 1}
    assert (tally.votes["counted"], tally.votes["missing"], tally.votes["late"]) == (2, 1, 1)


def test_a_view_that_has_become_smaller_than_the_quorum_waits_for_newcomers() -> None:
    booth = Booth(quorum=3)
    booth.enrol("a", "b", "c")
    booth.teller.left("c")
    booth.vote("a", 0)
    booth.vote("b", 0)
    assert booth.teller.waiting == "the quorum of 3 is larger than the view, which has 2 members"
    booth.enrol("d", start="")
    booth.vote("d", 0)
    assert booth.answers("d") == [0]


def test_a_quorum_larger_than_the_view_that_begins_is_refused() -> None:
    with pytest.raises(Mismatch, match="a round needs the answers of 4, and the run began with 3 members"):
        Booth(quorum=4).enrol("a")


# --- coming back ------------------------------------------------------------------------------------------------------


def test_who_comes_back_is_given_what_it_missed_in_order() -> None:
    booth = Booth(quorum=2, deadline_s=0.0)
    booth.enrol("a", "b", "c")
    booth.teller.down("c")
    for round in range(5):
        booth.vote("a", round)
        booth.vote("b", round)
        booth.teller.tick()
    assert booth.answers("c") == []
    booth.enrol("c", round=2)
    assert booth.answers("c") == [2, 3, 4]
    booth.enrol("c", round=3, step=2)  # that of round 3 is the last that it has
    assert booth.answers("c") == [2, 3, 4, 4]


def test_who_needs_answers_that_are_gone_is_told_whose_model_to_take(booth: Booth) -> None:
    booth.all_vote(70)
    booth.sent.clear()
    booth.enrol("d", round=5, start="")
    ((to, message),) = booth.sent
    assert to == "d"
    assert message.tag is not None
    assert message.tag.purpose == BEHIND
    assert unpacked_json(message, "coordinator") == {"ask": "a"}
    booth.enrol("d", round=70, start="")
    booth.all_vote(1, first=70)
    assert booth.answers("a") == [], "d is enrolled, and is waited for"
    booth.vote("d", 70)
    assert booth.answers("d") == [70]


def test_one_that_has_heard_an_answer_that_was_lost_here_takes_all_along(booth: Booth) -> None:
    booth.all_vote(3)
    booth.vote("a", 3)
    booth.sent.clear()
    booth.enrol("b", round=7)
    assert booth.teller.round == 7
    told = [(to, m.tag.purpose) for to, m in booth.sent if m.tag]
    assert told == [("a", BEHIND), ("c", BEHIND)]


def test_another_run_begins_at_its_own_round_and_knows_nothing_of_the_last(booth: Booth) -> None:
    booth.all_vote(5)
    booth.vote("a", 5)
    booth.sent.clear()
    booth.enrol("a", "b", "c", start="another")
    assert booth.teller.round == 0
    booth.all_vote(1)
    assert booth.answers("b") == [0]


def test_a_run_that_goes_on_from_checkpoints_is_given_the_answers_since(booth: Booth) -> None:
    booth.all_vote(20)
    booth.sent.clear()
    booth.enrol("a", "b", "c", start="again", first=18, round=18)
    assert booth.answers("a") == [18, 19]
    booth.enrol("a", "b", "c", start="long ago", first=300, round=300)
    assert booth.teller.round == 300


def test_one_that_comes_back_from_its_checkpoint_does_not_begin_the_run_of_the_others_anew(booth: Booth) -> None:
    """It was killed, and the view that took it in again is all that it knows of the run; the others vote on."""
    booth.all_vote(3)
    booth.vote("a", 3)
    booth.teller.left("b")
    booth.sent.clear()
    booth.enrol("b", round=1, start="a later view", first=3)
    assert booth.answers("b") == [1, 2]
    booth.vote("c", 3)
    assert booth.answers("a") == [], "b has not voted yet"
    booth.vote("b", 3)
    assert booth.answers("a") == booth.answers("b")[2:] == [3]


def test_one_that_comes_back_first_to_a_coordinator_that_was_killed_does_not_begin_anew_either(tmp_path: Path) -> None:
    """It came back once before, so it knows the run by a later view than the coordinator does."""
    first = Booth(store=Store(tmp_path))
    first.enrol("a", "b", "c")
    first.all_vote(70)
    again = Booth(store=Store(tmp_path))
    again.enrol("b", round=69, start="a later view", first=3)
    assert again.answers("b") == [69]
    again.vote("b", 70)
    again.enrol("a", "c", round=70)  # by the view that they began with, which the vote of b outlives
    again.vote("a", 70)
    again.vote("c", 70)
    assert again.answers("a") == again.answers("c") == [70]


def test_that_coordinator_may_know_the_run_by_the_later_view_alone(tmp_path: Path) -> None:
    """All others had been gone for a while when it was killed."""
    first = Booth(store=Store(tmp_path))
    first.enrol("b", round=69, start="a later view", first=60)
    again = Booth(store=Store(tmp_path))
    again.enrol("b", round=69, start="a later view", first=60)
    again.vote("b", 69)
    again.enrol("a", "c", round=69)
    again.vote("a", 69)
    again.vote("c", 69)
    assert again.answers("a") == again.answers("b") == [69]


def test_where_all_need_answers_that_are_gone_they_go_on_from_the_furthest(booth: Booth) -> None:
    """All were killed and went on from their checkpoints before the coordinator had noticed."""
    booth.all_vote(200)
    for worker, round in (("a", 20), ("b", 20), ("c", 30)):
        booth.enrol(worker, start="again", first=20, round=round)
    booth.enrol("a", start="again", first=20, round=25)  # with the model of another that is behind, too
    booth.sent.clear()
    booth.enrol("b", start="again", first=20, round=20)
    assert booth.teller.round == 30
    told = {to: unpacked_json(m, "") for to, m in booth.sent if m.tag and m.tag.purpose == BEHIND}
    assert told == {"a": {"ask": "c"}, "b": {"ask": "c"}}
    booth.enrol("a", "b", start="again", first=20, round=30)
    booth.all_vote(1, first=30)
    assert booth.answers("a") == booth.answers("c") == [30]


def test_two_groups_that_do_not_see_each_other_do_not_undo_each_others_rounds(booth: Booth) -> None:
    booth.all_vote(2)
    other = Enrolment(position=Position(0, 0), start="other", first=0, members=("d", "e"), segments=(12, 8), carried=0)
    with pytest.raises(Mismatch, match="a is in a run of these settings that began without this node"):
        booth.teller.enrol("d", other)
    assert booth.teller.round == 2
    for worker in "abc":
        booth.teller.left(worker)
    booth.teller.enrol("d", other)
    assert booth.teller.round == 0


def test_tensors_of_other_sizes_are_refused(booth: Booth) -> None:
    other = Enrolment(position=Position(0, 0), start="", first=0, members=("d",), segments=(5,), carried=0)
    with pytest.raises(Mismatch, match="the tensors of d have other sizes"):
        booth.teller.enrol("d", other)


# --- disk -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_on_disk_before_anybody_hears_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    booth = Booth(store=store)
    booth.enrol("a", "b", "c")
    on_disk: list[int] = []
    booth.teller._send = lambda to, message: on_disk.append(len(store.load_answers()))
    booth.all_vote(2)
    assert on_disk == [1, 1, 1, 2, 2, 2]


def test_a_vote_that_was_not_answered_is_given_again_to_the_next_life(tmp_path: Path) -> None:
    first = Booth(store=Store(tmp_path))
    first.enrol("a", "b", "c")
    first.all_vote(3)
    first.vote("a", 3)
    second = Booth(store=Store(tmp_path))
    assert second.teller.roll.members == ["a", "b", "c"], "all are expected back"
    second.enrol("a", "b", round=2, step=2)
    second.enrol("c", round=1, step=2)
    assert second.answers("c") == [2]
    second.all_vote(1, first=3)
    assert second.answers("a") == [3]
    assert second.teller.tally.votes == {"counted": 3, "missing": 0, "late": 0, "double": 0, "refused": 0}
    assert [number for number in range(5) if (tmp_path / f"answer-{number:02}.safetensors").exists()] == [0, 1, 2, 3]


class DyingStore(Store):
    """Its process dies after the memory of an answer is written, and before the answer is."""

    def __init__(self, folder: Path, before: int) -> None:
        super().__init__(folder)
        self.before = before

    def save_answer(
        self, number: int, kept: int, answer: Tensor, about: Mapping[str, Any], memory: Mapping[str, Tensor]
    ) -> None:
        if number < self.before:
            super().save_answer(number, kept, answer, about, memory)
            return
        (self.folder / f"answer-{number % kept:02}.safetensors").mkdir()  # in the way of the file
        try:
            super().save_answer(number, kept, answer, about, memory)
        finally:
            (self.folder / f"answer-{number % kept:02}.safetensors").rmdir()


def test_what_error_feedback_remembers_belongs_to_the_last_answer(tmp_path: Path) -> None:
    run = Settings(algorithm="ef-signsgd", over="coordinator", hash_every=0)

    def play(rounds: int, first: int, store: Store | None) -> list[Tensor]:
        booth = Booth(run, store=store)
        booth.enrol("a", "b", "c", round=first)
        counted = rule("ef-mean", (12, 8))
        with contextlib.suppress(OSError):
            for round in range(first, first + rounds):
                for k, worker in enumerate("abc"):
                    y = torch.randn(D, generator=torch.Generator().manual_seed(100 * round + k))
                    tag = Tag(VIEW, round, "ef-mean", 1)
                    message = Message(Kind.POST, tag=tag, vector=counted.pack(y, round, worker))
                    booth.teller.post(worker, message)
        return [m.vector for to, m in booth.sent if to == "a" and m.vector is not None]

    whole = play(6, 0, None)
    first = play(4, 0, DyingStore(tmp_path, before=3))
    assert len(first) == 3
    halves = first + play(3, 3, Store(tmp_path))
    assert all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True))


def test_a_vote_costs_an_eighth_of_a_byte_a_coordinate_on_disk(tmp_path: Path) -> None:
    booth = Booth(store=Store(tmp_path))
    booth.enrol("a", "b", "c")
    booth.all_vote(100)
    answers = [path.stat().st_size for path in tmp_path.glob("answer-*")]
    assert len(answers) == 64
    assert max(answers) < 500, "and what says which it is"
