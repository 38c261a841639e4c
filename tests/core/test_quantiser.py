"""A few bits a coordinate: lengths, bounds, no bias; and what is refused from whom."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal import quantiser
from shoal.errors import BadVector
from shoal.quantiser import BLOCK, SKIPPED, blocks, in_blocks


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    n, seed = draw(st.integers(1, 300)), draw(st.integers(0, 1000))
    size = draw(st.sampled_from([0.0, 1e-20, 1.0, 1e6]))
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * size


@given(vectors(), st.integers(1, 8))
def test_what_comes_back_lies_within_one_step_of_what_went(z: Tensor, bits: int) -> None:
    packed = quantiser.pack(z, bits, draw())
    assert packed.numel() == quantiser.packed_bytes(len(z), bits) == blocks(len(z)) * (2 + 8 * bits)
    back, scales = quantiser.unpack(packed, bits, len(z), "b")
    step = 2 * scales / (2**bits - 1)
    assert (in_blocks(back - z).abs() <= step[:, None] * 1.0001).all()


@pytest.mark.parametrize("bits", [2, 3])
def test_its_mean_is_what_went(bits: int) -> None:
    z = torch.randn(BLOCK, generator=draw())
    tries = 3000
    mean = sum(quantiser.unpack(quantiser.pack(z, bits, draw(k)), bits, BLOCK, "b")[0] for k in range(tries)) / tries
    deviation = 2 * float(z.abs().max()) / (2**bits - 1) / 2  # of one draw, at most
    assert (mean - z).abs().max() < 5 * deviation / math.sqrt(tries)


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=20))
def test_a_scale_is_rounded_up_by_less_than_a_hundredth(scales: list[float]) -> None:
    exact = torch.tensor(scales)
    short = quantiser.rounded_up(exact).float()
    assert (short >= exact).all()
    assert (short <= exact * 1.01 + 1e-37).all()


@given(st.lists(st.integers(0, 15), min_size=8, max_size=64).filter(lambda codes: len(codes) % 8 == 0))
def test_codes_come_back(codes: list[int]) -> None:
    given = torch.tensor(codes, dtype=torch.uint8)
    packed = quantiser.pack_codes(given, 4)
    assert packed.numel() == len(codes) // 2
    assert torch.equal(quantiser.unpack_codes(packed, 4), given)


def test_a_block_that_is_skipped_carries_nothing_and_says_so() -> None:
    z = torch.ones(2 * BLOCK)
    back, scales = quantiser.unpack(quantiser.pack(z, 2, draw(), torch.tensor([True, False])), 2, 2 * BLOCK, "b")
    assert scales[0] == SKIPPED
    assert not back[:BLOCK].any()
    assert back[BLOCK:].all()


@pytest.mark.parametrize("scale", [math.nan, math.inf, -0.5])
def test_a_scale_that_cannot_be_is_refused_by_name(scale: float) -> None:
    packed = quantiser.pack(torch.ones(BLOCK), 2, draw())
    packed[:2] = torch.tensor([scale], dtype=torch.bfloat16).view(torch.uint8)
    with pytest.raises(BadVector, match="packed vector from b has a scale"):
        quantiser.unpack(packed, 2, BLOCK, "b")


def test_another_length_is_refused_by_name() -> None:
    packed = quantiser.pack(torch.ones(BLOCK), 2, draw())
    with pytest.raises(BadVector, match="packed vector from b has 18 of uint8, expected 36 of uint8"):
        quantiser.unpack(packed, 2, BLOCK + 1, "b")
