"""Packing: what comes back, how long it is, and how fair and how equal the coins are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal import codecs

lengths = st.integers(1, 70)


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    values = draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=70))
    return torch.tensor(values, dtype=torch.float32)


@st.composite
def segmented(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    y = torch.tensor(draw(st.lists(st.floats(-100, 100, width=32), min_size=sum(sizes), max_size=sum(sizes))))
    return y, sizes


@given(vectors())
def test_signs_come_back_and_take_one_bit_each(y: Tensor) -> None:
    packed = codecs.pack_signs((y < 0).numpy())
    assert packed.dtype == torch.uint8
    assert packed.numel() == codecs.sign_bytes(y.numel()) == math.ceil(y.numel() / 8)
    assert torch.equal(codecs.unpack_signs(packed, y.numel()), torch.where(y < 0, -1.0, 1.0))


def test_the_first_coordinate_is_the_highest_bit_of_the_first_byte() -> None:
    negative = np.zeros(9, bool)
    negative[[0, 8]] = True
    assert codecs.pack_signs(negative).tolist() == [0b10000000, 0b10000000]


@given(vectors())
def test_what_fills_the_last_byte_is_zero_and_anything_else_is_seen(y: Tensor) -> None:
    packed = codecs.pack_signs((y < 0).numpy())
    assert codecs.padded_with_zeros(packed, y.numel())
    if y.numel() % 8:
        packed[-1] |= 1
        assert not codecs.padded_with_zeros(packed, y.numel())


# --- scaled signs ---------------------------------------------------------------------------------------------------


@given(segmented())
def test_scaled_signs_have_the_mean_size_of_their_segment(case: tuple[Tensor, list[int]]) -> None:
    y, sizes = case
    packed = codecs.pack_scaled(y, sizes)
    assert packed.numel() == 4 * len(sizes) + math.ceil(y.numel() / 8)
    back = codecs.unpack_scaled(packed, sizes)
    for part, came in zip(y.split(sizes), back.split(sizes), strict=True):
        torch.testing.assert_close(came.abs(), part.abs().mean().expand_as(part))
        assert torch.equal(came < 0, (part < 0) & (came != 0))


@given(segmented())
def test_scaled_signs_leave_less_than_was_there(case: tuple[Tensor, list[int]]) -> None:
    """A contraction, |y - C(y)|^2 <= (1 - 1/m) |y|^2 in each segment: what error feedback needs (1901.09847, lemma 8,
    number unverified)."""
    y, sizes = case
    left = y - codecs.unpack_scaled(codecs.pack_scaled(y, sizes), sizes)
    for part, rest in zip(y.double().split(sizes), left.double().split(sizes), strict=True):
        least = part.abs().mean() ** 2 * len(part)  # what C(y) holds of it
        assert rest.square().sum() <= part.square().sum() - least + 1e-5 * (1 + part.square().sum())


def test_scales_are_read_without_the_signs() -> None:
    packed = codecs.pack_scaled(torch.tensor([1.0, -3.0, 5.0]), [2, 1])
    assert codecs.scales_of(packed, [2, 1]).tolist() == [2.0, 5.0]


# --- coins ----------------------------------------------------------------------------------------------------------


def throw(
    round: int, name: str = "w", seed: int = 0, count: int = 20_000
) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return codecs.Coins(seed, name).throw(round, np.arange(count))


def test_coins_are_known_to_everybody() -> None:
    """Pinned: another machine, another version of numpy must throw the same."""
    assert np.packbits(throw(0, count=64)).tobytes().hex() == "6a869e97b959faa7"
    coordinates = np.array([5, 3, 8])
    assert codecs.Coins(0, "w").throw(4, coordinates).tolist() == throw(4)[coordinates].tolist()


@pytest.mark.parametrize("other", [{"round": 2}, {"name": "v"}, {"seed": 1}])
def test_coins_are_fair_and_those_of_another_round_worker_or_run_have_nothing_to_do_with_them(
    other: dict[str, int | str],
) -> None:
    these, those = throw(0), throw(**{"round": 0, **other})  # type: ignore[arg-type]
    tolerance = 5 * 0.5 / math.sqrt(len(these))
    assert abs(these.mean() - 0.5) < tolerance
    assert abs((these == those).mean() - 0.5) < tolerance
    assert abs((these[1:] == these[:-1]).mean() - 0.5) < tolerance


def test_a_coin_shows_its_other_side_in_every_second_round() -> None:
    assert (throw(6) != throw(7)).all()
    assert (throw(7) != throw(8)).any()
