"""The checksum of what lies in memory is that of its definition, and nothing that is not finite passes."""

import numpy as np
import pytest
from checksum import checksum
from hypothesis import given
from hypothesis import strategies as st

from shoal.words import PIECE_BYTES, words_and_finite, words_of


@given(st.binary(max_size=3000))
def test_the_sum_of_words_is_that_of_its_definition(data: bytes) -> None:
    assert words_of(memoryview(data)) % 2**64 == checksum(data, 4096)


@pytest.mark.parametrize("elements", [0, 1, 5, PIECE_BYTES // 4, PIECE_BYTES // 4 + 3, PIECE_BYTES])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_in_pieces_it_is_the_same(elements: int, dtype: str) -> None:
    numbers = np.random.default_rng(elements).standard_normal(elements).astype(dtype)
    data = memoryview(numbers).cast("B") if elements else memoryview(b"")
    assert words_and_finite(data, dtype) == (words_of(data) % 2**64, True)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, PIECE_BYTES // 4, PIECE_BYTES // 2 - 1])
def test_one_number_that_is_not_finite_is_found(wrong: float, at: int) -> None:
    numbers = np.ones(PIECE_BYTES // 2, np.float32)
    numbers[at] = wrong
    assert not words_and_finite(memoryview(numbers).cast("B"), "<f4")[1]


def test_numbers_whose_squares_overflow_are_finite() -> None:
    assert words_and_finite(memoryview(np.full(100, 3e38, np.float32)).cast("B"), "<f4")[1]


@pytest.mark.parametrize("elements", [0, 5, PIECE_BYTES // 4, PIECE_BYTES // 4 + 3, PIECE_BYTES])
def test_work_beside_is_told_of_each_number_once_and_in_order(elements: int) -> None:
    told: list[int] = []
    data = memoryview(np.ones(elements, np.float32)).cast("B") if elements else memoryview(b"")
    words_and_finite(data, "<f4", lambda start, stop: told.extend(range(start, stop)))
    assert told == list(range(elements))
