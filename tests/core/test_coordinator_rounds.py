"""When a round closes, who is in it, and which answer comes next: tables."""

import math

import pytest

from shoal.enrolment import Enrolment, Position, kept_answers
from shoal.settings import Settings
from shoal_coordinator.rounds import (
    Roll,
    Terms,
    begins,
    closes_at,
    fits,
    following,
    from_position,
    may_close,
    purpose_of,
    quorum_fits,
)

P = Position
SIGNUM = Settings(algorithm="signum", over="coordinator", hash_every=10)
NEVER = Settings(algorithm="signum", over="coordinator", hash_every=0)
KATYUSHA = Settings(algorithm="katyusha-x", over="coordinator")


# --- may it close? ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quorum", "members", "answered", "after_s", "how", "why"),
    [
        (None, "abc", "abc", 0.0, "all", "all 3 have answered"),
        (None, "abc", "ab", 99.0, None, "waits for c; 2 have answered"),
        (None, "abc", "", 99.0, None, "nobody has answered"),
        (None, "a", "a", 0.0, "all", "all 1 have answered"),
        (None, "abcdef", "a", 0.0, None, "waits for b, c, d and others; 1 have answered"),
        (2, "abc", "abc", 0.0, "all", "all 3 have answered"),
        (2, "abc", "ab", 0.9, None, "waits for c until the deadline; 2 have answered"),
        (2, "abc", "ab", 1.0, "quorum", "2 of 3 answered within 1 s; without c"),
        (2, "abc", "a", 99.0, None, "waits for b, c; 1 have answered, the quorum is 2"),
        (4, "abc", "abc", 99.0, None, "the quorum of 4 is larger than the view, which has 3 members"),
        (3, "ab", "abc", 99.0, "all", "all 3 have answered"),  # one has answered, and left
    ],
)
def test_a_round_closes_when_all_have_answered_or_a_quorum_in_time(
    quorum: int | None, members: str, answered: str, after_s: float, how: str | None, why: str
) -> None:
    terms = Terms(quorum, deadline_s=1.0)
    assert may_close(terms, list(members), list(answered), first_at=5.0, first=False, now=5.0 + after_s) == (how, why)


def test_the_first_round_waits_for_the_least_number_of_nodes_and_no_other_does() -> None:
    terms = Terms(least=3)
    decided = [may_close(terms, ["a"], ["a"], first_at=0, first=first, now=9)[0] for first in (True, False)]
    assert decided == [None, "all"]


def test_without_a_quorum_no_deadline_runs() -> None:
    assert closes_at(Terms(), 5.0) == math.inf
    assert closes_at(Terms(quorum=2, deadline_s=0.5), 5.0) == 5.5


@pytest.mark.parametrize(("quorum", "members", "fits"), [(None, "ab", True), (2, "ab", True), (3, "ab", False)])
def test_a_quorum_must_not_be_larger_than_the_view_that_begins(quorum: int | None, members: str, fits: bool) -> None:
    ok, why = quorum_fits(Terms(quorum), list(members))
    assert ok is fits
    assert fits or "start the coordinator with --quorum 2 or less, or the run with more nodes" in why


def test_a_finite_sum_needs_every_answer() -> None:
    assert fits(Terms(quorum=2), SIGNUM) == (True, "")
    assert fits(Terms(), KATYUSHA) == (True, "")
    ok, why = fits(Terms(quorum=2), KATYUSHA)
    assert not ok
    assert "katyusha-x sums over all samples" in why


# --- who is in it? ----------------------------------------------------------------------------------------------------


def test_who_began_the_run_is_waited_for_until_it_enrols_or_is_gone() -> None:
    roll = Roll(expected={"a", "b"})
    roll.enrol("b", P(0, 0))
    assert roll.members == ["a", "b"]
    assert roll.leave("a")
    assert roll.members == ["b"]
    roll.enrol("c", P(7, 0))  # it came later
    assert roll.members == ["b", "c"]
    assert not roll.leave("d")


def test_a_model_is_asked_of_the_furthest_who_has_one_that_is_far_enough() -> None:
    roll = Roll(enrolled={"a": P(3, 0), "c": P(9, 1), "b": P(9, 1)})
    assert roll.furthest(P(8, 1)) == "b"
    assert roll.furthest(P(9, 1)) is None
    assert Roll().furthest(P(0, 0)) is None


# --- which answer comes next? -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("closed", "next_ones"),
    [(P(0, 1), [P(1, 1)]), (P(9, 1), [P(10, 0)]), (P(10, 0), [P(10, 1)]), (P(10, 1), [P(11, 1)])],
)
def test_votes_follow_one_a_round_and_a_comparison_before_every_tenth(closed: Position, next_ones: list[P]) -> None:
    assert following(SIGNUM, closed) == next_ones


def test_without_comparisons_no_round_begins_with_one() -> None:
    assert following(NEVER, P(9, 1)) == [P(10, 1)]


def test_an_epoch_has_as_many_means_as_it_needs() -> None:
    assert following(KATYUSHA, P(4, 7)) == [P(4, 8), P(5, 0), P(5, 1)]


@pytest.mark.parametrize(
    ("needed", "next_ones"),
    [
        (P(0, 0), [P(0, 1)]),
        (P(10, 0), [P(10, 0)]),
        (P(10, 1), [P(10, 1)]),
        (P(10, 2), [P(11, 1)]),
        (P(9, 2), [P(10, 0)]),
    ],
)
def test_a_worker_that_needs_a_position_goes_on_at_the_first_one_from_there(
    needed: Position, next_ones: list[P]
) -> None:
    assert from_position(SIGNUM, needed) == next_ones


@pytest.mark.parametrize(
    ("algorithm", "step", "purpose"),
    [
        ("signum", 1, "vote"),
        ("signsgd", 1, "vote"),
        ("ef-signsgd", 1, "ef-mean"),
        ("allreduce-sgd", 1, "mean"),
        ("katyusha-x", 5, "mean"),
        ("signum", 0, "hash"),
    ],
)
def test_what_is_counted_is_the_algorithms(algorithm: str, step: int, purpose: str) -> None:
    assert purpose_of(Settings(algorithm=algorithm, over="coordinator"), P(10, step)) == purpose


@pytest.mark.parametrize(("nbytes", "kept"), [(1000, 64), (4 << 20, 64), (8 << 20, 32), (1 << 30, 2)])
def test_answers_are_kept_up_to_a_number_and_up_to_a_size(nbytes: int, kept: int) -> None:
    assert kept_answers(nbytes) == kept


@pytest.mark.parametrize(
    ("first", "round", "others", "expected"),
    [
        (0, 0, "", True),
        (0, 0, "bc", True),
        (0, 20, "bc", False),
        (0, 20, "", True),
        (40, 20, "", True),
        (40, 20, "c", False),
        (40, 20, "x", True),
    ],
)
def test_a_view_begins_a_run_unless_its_worker_comes_back_to_others_of_it(
    first: int, round: int, others: str, expected: bool
) -> None:
    enrolled = Enrolment(
        position=Position(round, 1), start="view", first=first, members=tuple("abc"), segments=(4,), carried=0
    )
    assert begins(enrolled, others) is expected
