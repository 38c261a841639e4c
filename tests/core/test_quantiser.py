"""One or two bits a coordinate: lengths, errors, no bias; and what is refused from whom."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal import quantiser
from shoal.errors import BadVector
from shoal.quantiser import SEED_BYTES
from shoal.rotation import BLOCK, blocks


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sent(z: Tensor, bits: int, seed: int = 0) -> Tensor:
    """As the other end reads it."""
    return quantiser.unpack(quantiser.pack(z, bits, draw(seed)), bits, len(z), "b")[0]


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    n, seed = draw(st.integers(1, 3 * BLOCK)), draw(st.integers(0, 1000))
    size = draw(st.sampled_from([0.0, 1e-20, 1.0, 1e6, 1e25]))
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * size


@given(vectors(), st.sampled_from([1, 2]))
def test_a_packed_vector_has_its_length_and_comes_back_nearer_than_nothing_would(z: Tensor, bits: int) -> None:
    packed = quantiser.pack(z, bits, draw())
    assert packed.numel() == quantiser.packed_bytes(len(z), bits) == SEED_BYTES + blocks(len(z)) * (2 + bits * 32)
    back, scales = quantiser.unpack(packed, bits, len(z), "b")
    assert back.shape == z.shape
    assert scales.shape == (blocks(len(z)),)
    assert float((back - z).double().norm()) <= float(z.double().norm()) + 1e-30


@pytest.mark.parametrize(("bits", "error"), [(1, 0.57), (2, 0.133)])
@pytest.mark.parametrize("kind", ["noise", "one large coordinate"])
def test_its_error_is_what_normal_noise_has_or_less(bits: int, error: float, kind: str) -> None:
    """|z^ - z|^2 / |z|^2 = pi/2 - 1 for one bit (DRIVE); two levels of Lloyd and Max: .1175, made unbiased .133."""
    n = 200 * BLOCK
    z = torch.randn(n, generator=draw(1))
    if kind != "noise":
        z = 0.01 * z + 30 * torch.nn.functional.one_hot(torch.arange(n) % BLOCK, BLOCK)[:, 7].float()
    relative = float((sent(z, bits) - z).square().sum() / z.square().sum())
    if kind == "noise":
        assert relative == pytest.approx(error, rel=0.05)
    assert relative < 1.05 * error


@pytest.mark.parametrize("bits", [1, 2])
def test_its_mean_over_many_rotations_is_what_went(bits: int) -> None:
    z = torch.randn(BLOCK, generator=draw()) * torch.linspace(0.1, 3, BLOCK)
    tries = 2000
    generator = draw(1)
    total = torch.zeros(BLOCK)
    for _ in range(tries):
        total += quantiser.unpack(quantiser.pack(z, bits, generator), bits, BLOCK, "b")[0]
    deviation = math.sqrt({1: 0.57, 2: 0.133}[bits] * float(z.square().mean()))  # of a coordinate in one draw
    assert (total / tries - z).abs().max() < 5 * deviation / math.sqrt(tries)


@pytest.mark.parametrize("bits", [1, 2])
def test_a_scale_tells_how_large_normal_noise_is(bits: int) -> None:
    z = 3.0 * torch.randn(50 * BLOCK, generator=draw())
    _, scales = quantiser.unpack(quantiser.pack(z, bits, draw()), bits, len(z), "b")
    assert float(scales.mean()) * quantiser.RMS[bits] == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -0.5])
def test_a_scale_that_cannot_be_is_refused_by_name(scale: float) -> None:
    packed = quantiser.pack(torch.ones(BLOCK), 2, draw())
    packed[SEED_BYTES : SEED_BYTES + 2] = torch.tensor([scale], dtype=torch.bfloat16).view(torch.uint8)
    with pytest.raises(BadVector, match="packed vector from b has a scale"):
        quantiser.unpack(packed, 2, BLOCK, "b")


def test_another_length_is_refused_by_name() -> None:
    packed = quantiser.pack(torch.ones(BLOCK), 1, draw())
    with pytest.raises(BadVector, match="packed vector from b has 38 of uint8, expected 72 of uint8"):
        quantiser.unpack(packed, 1, BLOCK + 1, "b")
