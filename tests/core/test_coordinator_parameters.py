"""A parameter server: each gradient once, whatever comes twice; the step size; what is confirmed, and when."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.enrolment import FINAL, FRESH, VIEW, Enrolment, Position
from shoal.errors import BadFrame, BadVector, Mismatch, PeerError
from shoal.messages import Kind, Message, PeerId, Tag
from shoal.settings import Settings
from shoal_coordinator.parameters import SAVE_EVERY_S, ParameterServer
from shoal_coordinator.store import Store

D = 6


class Booth:
    """A server with a clock and what it has sent."""

    def __init__(self, store: Store | None = None, **run: Any) -> None:
        settings = Settings(algorithm="a-psgd", **{"lr": 0.5, "gradients": 100, **run})
        self.now, self.sent = 0.0, []  # type: float, list[tuple[PeerId, Message]]
        self.server = ParameterServer(
            settings, send=lambda to, m: self.sent.append((to, m)), clock=lambda: self.now, store=store
        )

    def enrol(self, *workers: PeerId, start: str = "view", first: int = 0, carried: int = 0) -> None:
        said: dict[str, Any] = {
            "position": Position(0, 0),
            "members": ("a", "b"),
            "segments": (4, 2),
            "carried": carried,
        }
        for worker in workers:
            self.server.enrol(worker, Enrolment(**said, start=start, first=first))

    def start(self, worker: PeerId, x: Tensor | None = None) -> None:
        self.post(worker, "start", 0, torch.zeros(D) if x is None else x)

    def post(
        self, worker: PeerId, purpose: str, number: int, vector: Tensor, *, at: int = 0, incarnation: int = 1
    ) -> None:
        tag = Tag(VIEW, number, purpose)
        self.server.post(worker, Message(Kind.POST, seq=at, initiator=incarnation, tag=tag, vector=vector))

    def gradient(self, worker: PeerId, number: int, **more: Any) -> None:
        self.post(worker, "gradient", number, torch.ones(D), **more)

    @property
    def x(self) -> float:
        assert self.server.x is not None
        return float(self.server.x[0])

    def last(self, worker: PeerId) -> Message:
        return [m for to, m in self.sent if to == worker and m.kind is Kind.POST][-1]

    def confirmed(self, worker: PeerId) -> list[int]:
        return [m.tag.round for to, m in self.sent if to == worker and m.kind is Kind.RECEIVED and m.tag]


@pytest.fixture
def booth() -> Booth:
    """With two workers and a model of zeros."""
    made = Booth()
    made.enrol("a", "b")
    made.start("a")
    return made


def test_the_first_worker_brings_the_model_and_the_next_takes_it(booth: Booth) -> None:
    booth.start("b", torch.ones(D))
    vector = booth.last("b").vector
    assert vector is not None
    assert torch.equal(vector, torch.zeros(D))


def test_a_gradient_is_applied_at_once_and_answered_with_the_model(booth: Booth) -> None:
    booth.gradient("a", 1)
    answer = booth.last("a")
    assert answer.vector is not None
    assert torch.equal(answer.vector, torch.full((D,), -0.5))
    assert (answer.seq, answer.committed) == (1, True)
    assert answer.tag == Tag(VIEW, 1, FRESH)


def test_one_that_comes_twice_is_applied_once_and_answered_twice(booth: Booth) -> None:
    for _ in range(2):
        booth.gradient("a", 1)
    assert booth.server.version == 1
    assert len([m for to, m in booth.sent if m.tag and m.tag.round == 1 and m.kind is Kind.POST]) == 2
    booth.gradient("a", 2)
    booth.gradient("a", 1)  # older: nobody waits for its answer any more
    assert booth.last("a").tag == Tag(VIEW, 2, FRESH)
    assert booth.server.version == 2


def test_a_worker_that_started_again_counts_from_the_start_and_its_last_life_is_over(booth: Booth) -> None:
    for number in (1, 2, 3):
        booth.gradient("a", number)
    booth.gradient("a", 1, incarnation=2)
    booth.gradient("a", 4, incarnation=1)
    assert booth.server.version == 4


def test_the_run_ends_at_its_budget_and_no_gradient_changes_the_model_then() -> None:
    booth = Booth(gradients=2)
    booth.enrol("a", "b")
    booth.start("a")
    for number in (1, 2, 3):
        booth.gradient("a", number)
    answer = booth.last("a")
    assert answer.tag == Tag(VIEW, 3, FINAL)
    assert not answer.committed
    assert booth.x == -1.0


def test_a_run_in_rounds_has_that_many_gradients_for_everyone_who_took_part() -> None:
    booth = Booth(rounds=10, gradients=None)
    booth.enrol("a", "b")
    assert booth.server.budget == 20
    booth.enrol("c", start="")
    booth.server.left("c")
    assert booth.server.budget == 30


def test_the_step_size_follows_the_servers_own_count() -> None:
    booth = Booth(gradients=4, schedule="linear")
    booth.enrol("a", "b")
    booth.start("a")
    moved = []
    for number in (1, 2, 3, 4):
        before = booth.x
        booth.gradient("a", number, at=number)
        moved.append(before - booth.x)
    assert moved == [0.5, 0.375, 0.25, 0.125]


@pytest.mark.parametrize(("aware", "moved"), [(False, 0.5), (True, 0.125)])
def test_staleness_is_counted_in_models_and_may_divide_the_step(aware: bool, moved: float) -> None:
    booth = Booth(staleness_aware=aware)
    booth.enrol("a", "b")
    booth.start("a")
    for number in (1, 2, 3, 4):
        booth.gradient("a", number, at=number - 1)
    assert booth.server.take_staleness() == [0, 0, 0, 0]
    before = booth.x
    booth.gradient("b", 1, at=0)
    assert before - booth.x == moved
    assert booth.server.take_staleness() == [4]
    assert booth.server.staleness == {"mean": 0.8, "largest": 4}


def test_carried_floats_go_a_part_of_the_way_to_the_workers() -> None:
    booth = Booth()
    booth.enrol("a", "b", carried=2)
    booth.post("a", "start", 0, torch.zeros(D + 2))
    booth.post("a", "gradient", 1, torch.tensor([0.0] * D + [4.0, 8.0]))
    assert booth.server.x is not None
    assert booth.server.x[D:].tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("worker", "purpose", "vector", "error", "words"),
    [
        ("c", "gradient", torch.ones(D), BadFrame, "c posts 'gradient' and has not enrolled"),
        ("a", "vote", torch.ones(D), BadFrame, "a posts 'vote', expected 'start' or 'gradient'"),
        ("a", "gradient", torch.ones(D + 1), BadVector, "gradient from a has 7 elements of float32, expected 6"),
        ("a", "gradient", torch.ones(D).double(), BadVector, "gradient from a has 6 elements of float64, expected 6"),
        ("a", "gradient", torch.full((D,), float("nan")), BadVector, "gradient 1 from a holds NaN or Inf"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
    booth: Booth, worker: str, purpose: str, vector: Tensor, error: type[PeerError], words: str
) -> None:
    with pytest.raises(error, match=words):
        booth.post(worker, purpose, 1, vector)
    assert booth.server.version == 0
    assert booth.x == 0.0


def test_a_gradient_for_a_model_that_is_not_there_says_what_happened() -> None:
    booth = Booth()
    booth.enrol("a")
    with pytest.raises(Mismatch, match="it began anew without its state folder; start the nodes anew, or it with its"):
        booth.gradient("a", 5)


# --- disk -------------------------------------------------------------------------------------------------------------


def test_a_gradient_is_confirmed_when_it_is_saved_and_its_answer_was_heard(tmp_path: Path) -> None:
    booth = Booth(Store(tmp_path))
    booth.enrol("a", "b")
    booth.start("a")
    for number in (1, 2):
        booth.gradient("a", number)
    assert booth.confirmed("a") == []
    booth.now = booth.server.due()
    assert booth.now == SAVE_EVERY_S
    booth.server.tick()
    assert booth.confirmed("a") == [0, 1], "the next gradient says that the answer to the last was heard"


def test_a_life_begins_with_what_was_saved_and_takes_the_rest_once_more(tmp_path: Path) -> None:
    first = Booth(Store(tmp_path))
    first.enrol("a", "b")
    first.start("a")
    first.gradient("a", 1)
    first.now = SAVE_EVERY_S
    first.server.tick()
    for number in (2, 3):
        first.gradient("a", number)
    second = Booth(Store(tmp_path))
    assert second.server.version == 1
    second.enrol("a", "b")
    for number in (1, 2, 3):  # 1 was saved, and not confirmed
        second.gradient("a", number)
    assert second.server.version == 3
    assert second.x == first.x


def test_the_final_model_is_saved_before_anybody_hears_it(tmp_path: Path) -> None:
    booth = Booth(Store(tmp_path), gradients=1)
    booth.enrol("a", "b")
    booth.start("a")
    booth.gradient("a", 1)
    assert booth.last("a").tag == Tag(VIEW, 1, FINAL)
    assert Booth(Store(tmp_path), gradients=1).server.version == 1


def test_a_new_run_begins_with_a_model_of_its_own(tmp_path: Path) -> None:
    booth = Booth(Store(tmp_path))
    booth.enrol("a", "b")
    booth.start("a")
    booth.gradient("a", 1)
    booth.enrol("a", "b", start="resumed", first=40)
    assert booth.server.version == 1, "nodes that go on from checkpoints find the model"
    booth.enrol("a", "b", start="another")
    booth.start("a", torch.ones(D))
    assert booth.server.version == 0
    assert booth.x == 1.0
