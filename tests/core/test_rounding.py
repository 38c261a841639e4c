"""16, 8 and 4 bits a coordinate: how far off each may be, what is never lost, and what is refused from whom."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal import rounding
from shoal.element_codecs import BetweenRounded
from shoal.errors import BadVector
from shoal.rotation import BLOCK, blocks, rotate

RELATIVE = {"bf16": 2.0**-8, "f16": 2.0**-11}
LEAST = 2.0**-39
"""Of f16, against the largest number of its vector."""
DENORMAL = 2.0**-126


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=draw(seed))


def halved(x: Tensor, name: str) -> Tensor:
    """As the other end reads it."""
    return rounding.unhalved(rounding.halved(x, name), name, len(x), "b")


def packed(z: Tensor, bits: int, seed: int = 0) -> Tensor:
    """As the other end reads it."""
    return rounding.unpack(rounding.pack(z, bits, draw(seed)), bits, len(z), "b")[0]


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    """Numbers of one size, or of sizes that differ by ten powers of ten."""
    n, seed = draw(st.integers(1, 2 * BLOCK)), draw(st.integers(0, 1000))
    size, spread = draw(st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e5, 1e25])), draw(st.sampled_from([0.0, 5.0]))
    return noise(n, seed) * size * torch.exp(spread * noise(n, seed + 1))


# --- 16 bits --------------------------------------------------------------------------------------------------------


@given(vectors(), st.sampled_from(["bf16", "f16"]))
def test_a_number_in_16_bits_is_within_its_bound(x: Tensor, name: str) -> None:
    assert rounding.halved(x, name).numel() == rounding.half_bytes(len(x), name)
    allowed = RELATIVE[name] * x.abs() + DENORMAL
    if name == "f16":
        allowed += LEAST * x.abs().max()
    assert bool(((halved(x, name) - x).abs() <= allowed).all())


@pytest.mark.parametrize("largest", [65504.0, 65505.0, 1e9, 3e38])
def test_f16_holds_numbers_of_any_size_by_a_power_of_two_in_front(largest: float) -> None:
    x = torch.tensor([largest, -largest / 3, 1.0])
    torch.testing.assert_close(halved(x, "f16")[:2], x[:2], rtol=RELATIVE["f16"], atol=0)


def test_small_weights_alone_keep_their_bits_in_f16() -> None:
    x = 1e-6 * noise(100)
    torch.testing.assert_close(halved(x, "f16"), x, rtol=RELATIVE["f16"], atol=1e-15)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_what_has_come_by_16_bits_goes_by_them_unchanged(name: str) -> None:
    once = halved(noise(1000), name)
    assert torch.equal(halved(once, name), once)


@pytest.mark.parametrize("name", ["bf16", "f16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(name: str, bad: float) -> None:
    x = noise(rounding.PIECE + 3)
    x[-1] = bad
    with pytest.raises(BadVector, match=f"{name} vector from b holds NaN or Inf: its model has diverged"):
        halved(x, name)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_16_bits_of_another_length_or_kind_are_refused_by_name(name: str) -> None:
    expected = rounding.half_bytes(10, name)
    with pytest.raises(BadVector, match=f"{name} vector from b has 5 of uint8, expected {expected} of uint8"):
        rounding.unhalved(torch.zeros(5, dtype=torch.uint8), name, 10, "b")
    with pytest.raises(BadVector, match="has 10 of float32"):
        rounding.unhalved(torch.zeros(10), name, 10, "b")


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_half_a_difference_is_that_of_what_both_read_over_several_pieces(name: str) -> None:
    n = 2 * rounding.PIECE + 7
    r, s = noise(n, 1), noise(n, 2)
    read = [rounding.Halved(rounding.halved(x, name), name, n, "b") for x in (s, r)]
    delta, x = BetweenRounded(*read), noise(n, 3)
    assert torch.equal(delta.tensor(), (halved(r, name) - halved(s, name)) / 2)
    moved = x.clone()
    delta.add_to(moved)
    torch.testing.assert_close(moved, x + delta.tensor(), rtol=0, atol=1e-6)
    shorter = x[:5].clone()
    delta.add_to(shorter)
    assert torch.equal(shorter, moved[:5])


@pytest.mark.parametrize("scale", [math.nan, math.inf, 3e38])
def test_a_power_of_two_that_makes_numbers_too_large_is_refused(scale: float) -> None:
    packed = rounding.halved(noise(10), "f16")
    packed[:4] = torch.tensor([scale]).view(torch.uint8)
    with pytest.raises(BadVector, match="f16 vector from b holds NaN or Inf"):
        rounding.unhalved(packed, "f16", 10, "b")


# --- 8 and 4 bits ---------------------------------------------------------------------------------------------------


@given(vectors(), st.sampled_from([8, 4]))
def test_a_rotated_coordinate_is_at_most_half_a_step_off(z: Tensor, bits: int) -> None:
    sent = rounding.pack(z, bits, draw(3))
    assert sent.numel() == rounding.packed_bytes(len(z), bits) == 4 + blocks(len(z)) * (2 + bits * 32)
    seed, steps, levels = rounding.taken_apart(sent, bits, len(z), "b")
    y, top = rotate(z, seed), 2 ** (bits - 1) - 1
    read = (levels.float() - (top + 1)) * steps[:, None]
    assert bool(((read - y).abs() <= 0.5001 * steps[:, None] + DENORMAL).all())
    assert bool((steps <= y.abs().amax(1) * (1 + 2.0**-6) / top + DENORMAL).all())


@given(vectors(), st.sampled_from([8, 4]))
def test_a_block_is_off_by_at_most_eight_steps_in_length(z: Tensor, bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    seed, *_ = rounding.taken_apart(rounding.pack(z, bits, draw(3)), bits, len(z), "b")
    steps = rotate(z, seed).abs().amax(1).double() * (1 + 2.0**-6) / top
    filled = torch.nn.functional.pad(packed(z, bits, 3) - z, (0, -len(z) % BLOCK)).view(-1, BLOCK).double()
    assert bool((filled.norm(dim=1) <= 8 * steps + 1e-5 * z.double().norm() + 1e-30).all())


@pytest.mark.parametrize(("bits", "usual"), [(8, 0.009), (4, 0.14)])
def test_what_looks_like_noise_is_off_by_the_part_that_is_said(bits: int, usual: float) -> None:
    z = noise(20 * BLOCK)
    assert usual / 2 < float((packed(z, bits) - z).norm() / z.norm()) < usual


@pytest.mark.parametrize("bits", [8, 4])
def test_over_many_rotations_it_is_right_on_average(bits: int) -> None:
    z, tries = noise(BLOCK), 400
    mean = torch.stack([packed(z, bits, seed) for seed in range(tries)]).mean(0)
    off = float((packed(z, bits) - z).norm())
    assert float((mean - z).norm()) < 1.5 * off / tries**0.5


def test_the_lower_half_of_a_byte_is_the_first_of_two_coordinates() -> None:
    levels = torch.arange(BLOCK, dtype=torch.uint8).remainder_(16).view(1, BLOCK)
    sent = rounding.assembled(7, torch.ones(1, dtype=torch.bfloat16), levels, 4)
    assert sent[:4].tolist() == [7, 0, 0, 0]
    assert sent[6:8].tolist() == [0x10, 0x32]
    assert torch.equal(rounding.taken_apart(sent, 4, BLOCK, "b")[2], levels)


def break_scale(sent: Tensor) -> Tensor:
    sent[4:6] = torch.tensor([math.nan], dtype=torch.bfloat16).view(torch.uint8)
    return sent


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda sent: sent[:-1], "packed vector from b has 261 of uint8, expected 262 of uint8"),
        (lambda sent: sent.float(), "packed vector from b has 262 of float32"),
        (break_scale, "packed vector from b has a scale that is negative or not finite"),
    ],
)
def test_what_is_no_packed_vector_is_refused_by_name(wrong: Callable[[Tensor], Tensor], complaint: str) -> None:
    with pytest.raises(BadVector, match=complaint):
        rounding.unpack(wrong(rounding.pack(noise(BLOCK), 8, draw())), 8, BLOCK, "b")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_has_diverged_is_refused_by_whoever_reads_it(bad: float) -> None:
    z = noise(BLOCK)
    z[3] = bad
    with pytest.raises(BadVector, match="its model has diverged"):
        packed(z, 8)
