"""Codecs of a pair, all six: the two deltas cancel to the last bit, each is as near as is said, models meet; and which
one a pair takes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.element_codecs import pair_codecs
from shoal.errors import BadVector
from shoal.pair_codec import Duplex, Lattice, PairCodecs
from shoal.rotation import BLOCK, rotate
from shoal.traits import CODECS

N = 2 * BLOCK + 5
HALF = {"bf16": 2.0**-9, "f16": 2.0**-12}
"""Of |r| + |s|: how far off a delta may be."""


def node(seed: int, wish: str = "f32") -> PairCodecs:
    return pair_codecs(wish, N, torch.Generator().manual_seed(seed))


def random(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(N, generator=torch.Generator().manual_seed(seed))


def average(i: PairCodecs, j: PairCodecs, name: str, s: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """(i's delta, j's delta) of one average between models s and r."""
    one, other = i[name], j[name]
    if isinstance(one, Duplex):
        assert isinstance(other, Duplex)
        mine, theirs = one.own(s), other.own(r)
        return one.delta(mine, theirs, "j").tensor(), other.delta(theirs, mine, "i").tensor()
    assert not isinstance(other, Duplex)
    first = other.first(r)
    second, own = one.second(first, s, "j")
    return own.tensor(), other.last(r, second, "i").tensor()


@pytest.mark.parametrize("name", CODECS)
@given(seed=st.integers(0, 300), size=st.sampled_from([1e-6, 1.0, 1e3]), apart=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]))
def test_the_deltas_cancel_to_the_last_bit(name: str, seed: int, size: float, apart: float) -> None:
    i, j = node(1), node(2)
    base = random(seed, size)
    for k in range(3):
        own, theirs = average(i, j, name, base + random(seed + 1 + k, size * apart), base)
        assert torch.equal(own, -theirs)
        assert bool(torch.isfinite(own).all())


@pytest.mark.parametrize("name", HALF)
@given(seed=st.integers(0, 300), apart=st.sampled_from([1e-6, 1e-3, 1.0, 1e4]))
def test_in_16_bits_a_delta_is_within_its_bound(name: str, seed: int, apart: float) -> None:
    s = random(seed)
    r = s + random(seed + 1, apart)
    own, _ = average(node(1), node(2), name, s, r)
    allowed = HALF[name] * (r.abs() + s.abs()) + 2.0**-23 * (r - s).abs() + 2.0**-38 * (r.abs().max() + s.abs().max())
    assert bool(((own - (r - s) / 2).abs() <= allowed).all())


@pytest.mark.parametrize("name", ["q8", "q4"])
@given(seed=st.integers(0, 300))
def test_within_the_span_a_lattice_is_off_by_half_of_each_of_its_two_steps(name: str, seed: int) -> None:
    i, j = node(1), node(2)
    s, r = random(seed), random(seed) + random(seed + 1, 0.1)
    average(i, j, name, s, r)
    one, other = i[name], j[name]
    assert isinstance(one, Lattice)
    assert isinstance(other, Lattice)
    assert other.apart is not None
    points = 2**one.bits
    lattice = other.apart * (2 * other.span / points) * (1 + 2.0**-7)
    first = other.first(r)
    second, own = one.second(first, s, "j")
    told = (s - r).double() + 2 * own.tensor().double()  # what is wrong of s - r
    largest = rotate(s - r, 0).abs().amax() * 2  # whatever the rotation of a block, of noise
    scale = (largest + lattice.max()) * (1 + 2.0**-6) / (points / 2 - 1)
    blocks = torch.nn.functional.pad(told, (0, -N % BLOCK)).view(-1, BLOCK)
    assert bool((blocks.norm(dim=1) <= 16 * (lattice.double() + scale) / 2 + 1e-5).all())
    assert second.numel() < N * one.bits / 8 * 1.6


@pytest.mark.parametrize("name", CODECS)
def test_models_that_are_averaged_again_and_again_come_as_near_as_their_numbers_have_bits(name: str) -> None:
    i, j = node(1), node(2)
    s, r = random(1), random(1) + random(2, 0.1)
    mean = (s + r) / 2
    for _ in range(300):
        own, theirs = average(i, j, name, s, r)
        s, r = s + own, r + theirs
    bound = {"bf16": 2.0**-7, "f16": 2.0**-10}.get(name, 2e-3)
    assert float(((s - r).abs() / (1 + s.abs())).max()) < bound
    torch.testing.assert_close((s + r) / 2, mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_equal_models_do_not_move_in_16_bits(name: str) -> None:
    own, _ = average(node(1), node(2), name, random(1), random(1))
    assert not own.any()


@pytest.mark.parametrize(("name", "fewer"), [("f32", 1), ("bf16", 2), ("f16", 1.99), ("q8", 3.8), ("q4", 7.5)])
def test_an_average_takes_so_many_times_fewer_bytes(name: str, fewer: float) -> None:
    n = 100 * BLOCK
    i, j = (pair_codecs(name, n, torch.Generator().manual_seed(k)) for k in (1, 2))
    s, one, other = torch.ones(n), i[name], j[name]
    if isinstance(one, Duplex):
        sent = 2 * one.own(s).nbytes
    else:
        assert not isinstance(other, Duplex)
        other.last(s, one.second(other.first(s), s + 0.1, "j")[0], "i")
        first = other.first(s)
        sent = first.nbytes + one.second(first, s, "j")[0].nbytes
    assert 2 * s.nbytes >= fewer * sent


# --- what a peer may send -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_a_vector_of_another_codec_is_refused_by_name(name: str) -> None:
    i, j = node(1), node(2)
    for _ in range(2):
        average(i, j, name, random(1), random(1) + 0.01)
    for wrong in (torch.zeros(10, dtype=torch.uint8), torch.zeros(N, dtype=torch.float64)):
        one = i[name]
        with pytest.raises(BadVector, match=rf"from j has (10|{N})\b"):
            one.delta(one.own(random(1)), wrong, "j") if isinstance(one, Duplex) else one.second(wrong, random(1), "j")


@pytest.mark.parametrize("name", [name for name in CODECS if name != "f32"])
def test_a_model_that_has_diverged_is_refused_by_name(name: str) -> None:
    i, j = node(1), node(2)
    average(i, j, name, random(1), random(1) + 0.01)
    bad = random(1)
    bad[3] = math.nan
    with pytest.raises(BadVector, match="has diverged"):
        average(i, j, name, bad, bad)


# --- which one a pair takes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "taken"),
    [
        ("f32", "f32", "f32"),
        ("f32", "sign", "sign"),
        ("q4", "q8", "q4"),
        ("q8", "bf16", "q8"),
        ("f16", "bf16", "bf16"),
        ("f32", "f16", "f16"),
        ("q4", "", "q4"),
        ("f32", "", "f32"),
    ],
)
def test_of_two_wishes_the_one_with_fewer_bytes_is_taken_whoever_asks(mine: str, theirs: str, taken: str) -> None:
    assert node(1, mine).agreed(theirs) == (taken, "")
    assert node(1, theirs).agreed(mine) == (taken, "")


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    codec, why = node(1).agreed("zstd")
    assert not codec
    assert why == "codec 'zstd' is unknown here; known: f32, f16, bf16, q8, q4, sign"


def test_what_the_other_end_chose_must_not_have_more_bytes_than_was_asked_for() -> None:
    assert node(1, "q8").chosen("q8") == ("q8", "")
    assert node(1, "q8").chosen("sign") == ("sign", "")
    assert node(1, "q8").chosen("bf16") == ("", "codec bf16 has more bytes than q8, which was asked for")
    assert node(1, "q8").chosen("") == ("", "codec f32 has more bytes than q8, which was asked for")
    assert node(1, "q8").chosen("zstd")[1].startswith("codec 'zstd' is unknown here")
