"""Packed averages: the two deltas cancel to the last bit, and a model that cannot be read is left as it is."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.errors import BadVector
from shoal.pair_codec import Full, Packed
from shoal.quantiser import BLOCK

N = 3 * BLOCK + 5


def packed(seed: int) -> Packed:
    return Packed(N, torch.Generator().manual_seed(seed))


def random(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(N, generator=torch.Generator().manual_seed(seed))


def average(i: Packed | Full, j: Packed | Full, s: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """(i's delta, j's delta) of one average between models s and r."""
    first = j.first(r)
    second, own = i.second(first, s, "j")
    return own, j.last(second, r, "i")


def test_in_full_the_deltas_are_half_the_difference() -> None:
    s, r = random(1), random(2)
    own, theirs = average(Full(), Full(), s, r)
    assert torch.equal(own, (r - s) / 2)
    assert torch.equal(theirs, (s - r) / 2)


@given(st.integers(0, 500), st.sampled_from([1e-6, 1e-2, 1.0, 1e3]))
def test_packed_deltas_cancel_to_the_last_bit_however_far_apart_the_models_are(seed: int, apart: float) -> None:
    i, j = packed(1), packed(2)
    base = random(seed)
    for k in range(4):
        own, theirs = average(i, j, base + random(seed + 1 + k, apart), base)
        assert torch.equal(own, -theirs)
        assert bool(torch.isfinite(own).all())


def test_models_that_are_averaged_again_and_again_meet() -> None:
    i, j = packed(1), packed(2)
    s, r = random(1), random(1) + random(2, 0.1)
    mean = (s + r) / 2
    for _ in range(300):
        own, theirs = average(i, j, s, r)
        s, r = s + own, r + theirs
    assert (s - r).abs().max() < 1e-3
    torch.testing.assert_close((s + r) / 2, mean, rtol=0, atol=1e-4)


def test_the_first_model_travels_in_full_and_the_next_in_four_bits_and_a_half() -> None:
    i, j = packed(1), packed(2)
    s, r = random(1), random(1) + random(2, 0.1)
    assert j.first(r).dtype == torch.float32
    average(i, j, s, r)
    first = j.first(r)
    assert first.dtype == torch.uint8
    assert first.numel() == 4 * (4 + BLOCK // 2)
    second, _ = i.second(first, s, "j")
    assert second.numel() == 4 * (2 + 3 * BLOCK // 8)


def test_a_block_that_moved_too_far_is_left_as_it_is_and_read_the_time_after() -> None:
    """Decoding would give another point of the lattice, with confidence; the checksum tells."""
    i, j = packed(1), packed(2)
    base = random(1)
    average(i, j, base + random(2, 0.01), base)
    far = base.clone()
    far[BLOCK : 2 * BLOCK] += 1.0
    own, _ = average(i, j, far, base)
    assert not own[BLOCK : 2 * BLOCK].any()
    assert own[:BLOCK].any()
    assert i.missed_blocks == j.missed_blocks == 1
    for _ in range(8):
        own, _ = average(i, j, far, base)
    assert own[BLOCK : 2 * BLOCK].any()


@given(st.binary(min_size=0, max_size=300))
def test_noise_is_refused_or_read_and_nothing_else(noise: bytes) -> None:
    i, j = packed(1), packed(2)
    average(i, j, random(1), random(1) + 0.01)
    given = torch.tensor(list(noise), dtype=torch.uint8)
    for read in (lambda: i.second(given, random(1), "j"), lambda: j.last(given, random(1), "i")):
        with contextlib.suppress(BadVector):
            read()


def test_a_step_that_cannot_be_is_refused_by_name() -> None:
    i, j = packed(1), packed(2)
    average(i, j, random(1), random(1) + 0.01)
    first = j.first(random(1))
    first[:2] = torch.zeros(1, dtype=torch.bfloat16).view(torch.uint8)
    with pytest.raises(BadVector, match="packed model from j has a step that is not above 0"):
        i.second(first, random(1), "j")


def test_a_block_in_which_all_models_were_equal_is_read_again_once_one_has_moved() -> None:
    i, j = packed(1), packed(2)
    s = r = random(1)
    average(i, j, s, r)
    s = s + 1.0
    for _ in range(60):
        own, theirs = average(i, j, s, r)
        s, r = s + own, r + theirs
    assert (s - r).abs().max() < 0.5
