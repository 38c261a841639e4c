"""Packed averages: the two deltas cancel to the last bit however wrong a model was read, and what was wrong heals."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.errors import BadVector
from shoal.pair_codec import Full, Packed
from shoal.quantiser import SEED_BYTES
from shoal.rotation import BLOCK

N = 3 * BLOCK + 5
BLOCKS = 4


def packed(seed: int) -> Packed:
    return Packed(N, torch.Generator().manual_seed(seed))


def random(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(N, generator=torch.Generator().manual_seed(seed))


def average(i: Packed, j: Packed, s: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """(i's delta, j's delta) of one average between models s and r."""
    first = j.first(r)
    second, own = i.second(first, s, "j")
    return own.tensor(), j.last(r, second, "i").tensor()


def test_in_full_the_deltas_are_half_the_difference() -> None:
    full, s, r = Full(), random(1), random(2)
    assert torch.equal(full.delta(full.own(s), full.own(r), "j").tensor(), (r - s) / 2)
    assert torch.equal(full.delta(full.own(r), full.own(s), "i").tensor(), (s - r) / 2)


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


def test_the_first_model_travels_in_full_and_the_next_in_three_bits_and_what_comes_back_in_two() -> None:
    i, j = packed(1), packed(2)
    s, r = random(1), random(1) + random(2, 0.1)
    assert j.first(r).dtype == torch.float32
    average(i, j, s, r)
    first = j.first(r)
    assert first.dtype == torch.uint8
    assert first.numel() == SEED_BYTES + BLOCKS * (2 + 3 * BLOCK // 8)
    second, _ = i.second(first, s, "j")
    assert second.numel() == SEED_BYTES + BLOCKS * (2 + 2 * BLOCK // 8)


def test_a_delta_is_half_the_difference_on_average() -> None:
    i, j = packed(1), packed(2)
    s, r = random(1), random(1) + random(2, 0.1)
    average(i, j, s, r)
    tries = 400
    total = torch.zeros(N)
    for _ in range(tries):
        total += average(i, j, s, r)[0]
    whole = slice(0, N // BLOCK * BLOCK)  # the last block has five coordinates: no noise
    assert (total / tries - (r - s) / 2)[whole].abs().max() < 5 * 0.5 * 0.1 / tries**0.5


def test_a_model_that_moved_too_far_to_be_read_is_moved_no_further_than_the_lattice_reaches() -> None:
    """Decoding gives another point of the lattice, with confidence; it lies within four steps."""
    i, j = packed(1), packed(2)
    base = random(1)
    average(i, j, base + random(2, 0.01), base)
    far = base + random(3, 10.0)
    reach = float(j.apart.max()) * 5.3 * 1.01  # type: ignore[union-attr]
    own, _ = average(i, j, far, base)
    lengths = torch.nn.functional.pad(2 * own, (0, -N % BLOCK)).view(-1, BLOCK).norm(dim=1)
    # Without bias a block becomes no longer than its largest coordinate would be in all of them, or little.
    assert (lengths <= reach * BLOCK**0.5).all()


@pytest.mark.parametrize("away", [1.0, 1e4])
def test_models_that_were_equal_for_long_meet_again_once_one_has_moved(away: float) -> None:
    i, j = packed(1), packed(2)
    s = r = random(1)
    for _ in range(5):
        average(i, j, s, r)
    s = s + away
    for _ in range(300):
        own, theirs = average(i, j, s, r)
        s, r = s + own, r + theirs
    assert (s - r).abs().max() < 0.02 * away


def test_models_of_zeros_that_begin_to_move_are_read() -> None:
    i, j = packed(1), packed(2)
    s, r = torch.zeros(N), torch.zeros(N)
    for _ in range(60):
        own, theirs = average(i, j, s, r)
        s, r = s + own + 0.01, r + theirs
    assert (s - r).abs().max() < 0.2


def test_how_far_apart_models_lie_grows_at_once_and_shrinks_slowly() -> None:
    i, j = packed(1), packed(2)
    base = random(1)
    average(i, j, base + random(2, 1.0), base)
    large = j.apart
    assert large is not None
    assert 0.7 < float(large.mean()) < 1.3
    average(i, j, base, base)
    assert j.apart is not None
    torch.testing.assert_close(j.apart, 0.97 * large)


@given(st.binary(min_size=0, max_size=700))
def test_noise_is_refused_or_read_and_nothing_else(noise: bytes) -> None:
    i, j = packed(1), packed(2)
    average(i, j, random(1), random(1) + 0.01)
    given = torch.tensor(list(noise), dtype=torch.uint8)
    for read in (lambda: i.second(given, random(1), "j"), lambda: j.last(random(1), given, "i")):
        with contextlib.suppress(BadVector):
            read()


def test_a_step_that_cannot_be_is_refused_by_name() -> None:
    i, j = packed(1), packed(2)
    average(i, j, random(1), random(1) + 0.01)
    first = j.first(random(1))
    first[SEED_BYTES : SEED_BYTES + 2] = torch.zeros(1, dtype=torch.bfloat16).view(torch.uint8)
    with pytest.raises(BadVector, match="packed model from j has a step that is not above 0"):
        i.second(first, random(1), "j")


def test_a_model_of_another_length_is_refused_by_name() -> None:
    i, j = packed(1), packed(2)
    average(i, j, random(1), random(1) + 0.01)
    with pytest.raises(BadVector, match="packed model from j has 10 bytes, expected 396"):
        i.second(torch.zeros(10, dtype=torch.uint8), random(1), "j")
