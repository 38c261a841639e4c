"""Bits at the speed of memory say what plain counting says."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import bits

MORE_THAN_A_PIECE = bits.PIECE + 100


def odd(where: npt.NDArray[np.int64]) -> bits.Bits:
    """Coins that can be told: minus at odd coordinates."""
    return (where % 2).astype(bool)


def no_coins(where: npt.NDArray[np.int64]) -> bits.Bits:
    raise AssertionError(f"nothing was undecided, and yet coins were thrown for {where}")


def signs(draw: np.random.Generator, n: int) -> npt.NDArray[Any]:
    return draw.integers(-1, 2, n).astype(np.float32)


@given(n=st.sampled_from([0, 1, 7, 8, 9, 63, 64, 65, 1000]), seed=st.integers(0, 1000))
def test_signs_are_packed_and_coins_decide_the_zeros(n: int, seed: int) -> None:
    values = signs(np.random.default_rng(seed), n)
    expected = np.where(values == 0, np.arange(n) % 2 == 1, values < 0)
    assert np.array_equal(bits.packed_signs(values, odd), np.packbits(expected))


def test_coins_are_thrown_by_the_place_in_the_whole_vector() -> None:
    values = np.ones(MORE_THAN_A_PIECE, np.float32)
    values[[3, bits.PIECE + 2, bits.PIECE + 5]] = 0
    packed = bits.packed_signs(values, odd)
    assert np.flatnonzero(np.unpackbits(packed)).tolist() == [3, bits.PIECE + 5]


@pytest.mark.parametrize("value", [-0.0, 0.0])
def test_minus_zero_is_a_zero(value: float) -> None:
    assert bits.packed_signs(np.full(4, value, np.float32), odd).tolist() == [0b01010000]


def test_where_there_is_no_zero_no_coin_is_thrown() -> None:
    assert bits.packed_signs(np.array([1.0, -1.0, np.nan, -np.inf]), no_coins).tolist() == [0b01010000]


@given(n=st.integers(0, 200), seed=st.integers(0, 1000))
def test_bits_become_ones_and_come_back(n: int, seed: int) -> None:
    negative = np.random.default_rng(seed).integers(0, 2, n).astype(bool)
    ones = bits.ones(np.packbits(negative), n)
    assert ones.dtype == np.float32
    assert np.array_equal(ones, np.where(negative, -1, 1))


def test_more_than_a_piece_comes_back_too() -> None:
    values = signs(np.random.default_rng(0), MORE_THAN_A_PIECE) + 0.5
    packed = bits.packed_signs(values, no_coins)
    assert np.array_equal(bits.ones(packed, len(values)), np.sign(values))


@given(voters=st.integers(1, 40), n=st.integers(1, 150), seed=st.integers(0, 1000))
def test_the_majority_is_that_of_counting(voters: int, n: int, seed: int) -> None:
    votes = np.random.default_rng(seed).integers(0, 2, (voters, n)).astype(bool)
    more, half = bits.majority([np.packbits(vote) for vote in votes])
    assert np.array_equal(np.unpackbits(more)[:n], 2 * votes.sum(0) > voters)
    assert np.array_equal(np.unpackbits(half)[:n], 2 * votes.sum(0) == voters)
    assert not np.unpackbits(more | half)[n:].any()


@pytest.mark.parametrize("voters", [255, 256, 300])
def test_more_votes_than_a_byte_counts_are_counted(voters: int) -> None:
    against, evenly = np.array([0b10000000], np.uint8), np.array([0], np.uint8)
    votes = [against] * (voters // 2 + 1) + [evenly] * (voters - voters // 2 - 1)
    more, half = bits.majority(votes)
    assert more.tolist() == [0b10000000]
    assert half.tolist() == [0]


def test_votes_are_counted_beyond_the_first_piece() -> None:
    votes = np.random.default_rng(0).integers(0, 256, (4, MORE_THAN_A_PIECE // 8)).astype(np.uint8)
    more, half = bits.majority(list(votes))
    counts = sum(np.unpackbits(vote).astype(int) for vote in votes)
    assert np.array_equal(np.unpackbits(more), counts > 2)
    assert np.array_equal(np.unpackbits(half), counts == 2)


@given(seed=st.integers(0, 100), n=st.sampled_from([3, 17, MORE_THAN_A_PIECE // 8]))
def test_coins_decide_what_is_open_and_leave_the_rest(seed: int, n: int) -> None:
    draw = np.random.default_rng(seed)
    undecided = draw.integers(0, 256, n).astype(np.uint8)
    decided = draw.integers(0, 256, n).astype(np.uint8) & ~undecided
    found = np.unpackbits(bits.with_coins(decided.copy(), undecided, odd))
    expected = np.where(np.unpackbits(undecided) == 1, np.arange(8 * n) % 2, np.unpackbits(decided))
    assert np.array_equal(found, expected)


def test_what_is_decided_needs_no_coin() -> None:
    packed = np.array([5, 6], np.uint8)
    assert bits.with_coins(packed, np.zeros(2, np.uint8), no_coins).tolist() == [5, 6]
