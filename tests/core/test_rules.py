"""How many vectors become one: means, majorities, error feedback; and what is refused from whom."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.errors import BadVector
from shoal.rules import ErrorFeedbackMean, Mean, Vote, parts, rule

coordinates = st.lists(st.sampled_from([-2.0, -1.0, 1.0, 3.0]), min_size=10, max_size=10)


def voted(votes: list[Tensor], round: int = 0, **options: int) -> Tensor:
    """What a vote of workers w0, w1, ... gives."""
    vote = Vote(votes[0].numel(), **{"offset": 0, "seed": 0, **options})
    packed = {f"w{k}": vote.pack(y, round, f"w{k}") for k, y in enumerate(votes)}
    for peer, one in packed.items():
        vote.check(one, peer)
    return vote.unpack(vote.count(packed, round))


# --- the vote -------------------------------------------------------------------------------------------------------


@given(st.lists(coordinates, min_size=1, max_size=7).filter(lambda votes: len(votes) % 2 == 1))
def test_an_odd_number_of_workers_gives_the_sign_of_the_median(votes: list[list[float]]) -> None:
    stacked = torch.tensor(votes)
    assert torch.equal(voted(list(stacked)), stacked.median(0).values.sign())


@given(coordinates)
def test_a_vote_of_one_is_its_own_sign(y: list[float]) -> None:
    """signSGD on one machine is the vote of one (1802.04434, algorithm 3 with M = 1)."""
    assert torch.equal(voted([torch.tensor(y)]), torch.tensor(y).sign())


def test_ties_fall_to_either_side_and_back_in_the_next_round() -> None:
    tied = [torch.ones(4000), -torch.ones(4000)]
    first, second, third = (voted(tied, round) for round in (0, 1, 2))
    assert abs(first.mean()) < 5 / math.sqrt(4000)
    assert torch.equal(first, -second)
    assert not torch.equal(first, third)


def test_zeros_of_several_workers_do_not_vote_as_a_bloc() -> None:
    """Three of seven say +, four have no gradient: + wins unless all four coins say -, 15 times of 16. With one coin
    for all workers it would be every second time (our own finding)."""
    votes = [torch.ones(8000)] * 3 + [torch.zeros(8000)] * 4
    assert (voted(votes) > 0).float().mean() == pytest.approx(15 / 16, abs=0.02)


def test_a_part_throws_the_coins_of_its_own_coordinates() -> None:
    whole = voted([torch.zeros(64)] * 2)
    assert torch.equal(voted([torch.zeros(24)] * 2, offset=40), whole[40:])


def test_minus_zero_is_a_zero() -> None:
    assert torch.equal(voted([torch.full((500,), -0.0)]), voted([torch.zeros(500)]))


# --- means ----------------------------------------------------------------------------------------------------------


def test_a_mean_is_summed_in_the_order_of_the_ids() -> None:
    values = {"a": 1e8, "b": 1.0, "c": -1e8}
    packed = {peer: torch.tensor([values[peer]]) for peer in ("c", "b", "a")}
    in_order = (torch.tensor([1e8]) + 1.0 - 1e8) / 3
    assert torch.equal(Mean(1, torch.float32).count(packed, 0), in_order)


@given(st.integers(0, 1000))
def test_error_feedback_loses_nothing(seed: int) -> None:
    """All answers so far and what is kept add up to all means so far."""
    draw = torch.Generator().manual_seed(seed)
    mean = ErrorFeedbackMean([3, 5])
    wanted, answered = torch.zeros(8), torch.zeros(8)
    for round in range(6):
        packed = {peer: mean.pack(torch.randn(8, generator=draw), round, peer) for peer in "abc"}
        wanted += torch.stack([mean.unpack(one) for one in packed.values()]).mean(0)
        answered += mean.unpack(mean.count(packed, round))
    torch.testing.assert_close(answered + mean.memory["error"], wanted, rtol=1e-5, atol=1e-5)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("purpose", "packed", "complaint"),
    [
        ("vote", torch.zeros(3, dtype=torch.uint8), "vote from b has 3 of uint8, expected 2 of uint8"),
        ("vote", torch.zeros(2), "vote from b has 2 of float32, expected 2 of uint8"),
        ("vote", torch.tensor([0, 1], dtype=torch.uint8), "signs from b go on after coordinate 9"),
        ("ef-mean", torch.zeros(2, dtype=torch.uint8), "scaled signs from b has 2 of uint8, expected 10 of uint8"),
        ("mean", torch.zeros(8), "vector from b has 8 of float32, expected 9 of float32"),
        ("mean", torch.zeros(9, dtype=torch.float64), "vector from b has 9 of float64, expected 9 of float32"),
    ],
)
def test_what_is_no_packed_vector_of_this_part_is_refused_by_name(purpose: str, packed: Tensor, complaint: str) -> None:
    with pytest.raises(BadVector, match=complaint):
        rule(purpose, [4, 5]).check(packed, "b")


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_a_scale_that_cannot_be_is_refused(scale: float) -> None:
    mean = ErrorFeedbackMean([2])
    packed = mean.pack(torch.ones(2), 0, "b")
    packed[:4] = torch.tensor([scale]).view(torch.uint8)
    with pytest.raises(BadVector, match="scaled signs from b have a scale"):
        mean.check(packed, "b")


def test_an_unknown_purpose_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown purpose 'median'; known: mean, vote, ef-mean"):
        rule("median", [1])


# --- parts ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 9))
def test_parts_follow_each_other_and_are_cut_at_bytes(segments: list[int], n: int) -> None:
    found = parts(segments, n)
    assert len(found) == n
    begin = 0
    for low, inside in found:
        assert low == begin
        assert low % 8 == 0 or not inside
        begin += sum(inside)
    assert begin == sum(segments)
    sizes = [sum(inside) for _, inside in found]
    assert max(sizes) - min(sizes) <= 16


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 9))
def test_the_parts_of_a_segment_add_up_to_it(segments: list[int], n: int) -> None:
    borders = {sum(segments[:k]) for k in range(len(segments) + 1)}
    seen = set()
    for low, inside in parts(segments, n):
        position = low
        for size in inside:
            seen.add(position)
            position += size
            seen.add(position)
    assert borders <= seen
