"""What an average adds: made or not, it is the same number, and its negative at the other end."""

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.delta import PIECE, Between, Delta, Made
from shoal.element_codecs import pair_codecs
from shoal.pair_codec import Duplex


def random(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 7, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_between_adds_half_the_difference_piece_by_piece(n: int) -> None:
    x, mine, theirs = (random(n, seed) for seed in range(3))
    moved = x.clone()
    Between(mine, theirs).add_to(moved)
    assert torch.equal(moved, x + (theirs - mine) / 2)


@given(st.integers(1, 300), st.integers(0, 100))
def test_a_difference_that_was_made_adds_what_one_does_that_was_not(n: int, seed: int) -> None:
    x, mine, theirs = (random(n, 3 * seed + k) for k in range(3))
    once, twice = x.clone(), x.clone()
    Between(mine, theirs).add_to(once)
    Made(theirs - mine, 0.5).add_to(twice)
    assert torch.equal(once, twice)


@given(st.integers(1, 300), st.integers(0, 100))
def test_the_two_ends_cancel_to_the_last_bit(n: int, seed: int) -> None:
    s, r = random(n, 2 * seed), random(n, 2 * seed + 1)
    assert torch.equal(Between(s, r).tensor(), -Between(r, s).tensor())
    assert torch.equal(Made(r - s, 0.5).tensor(), -Made(s - r, 0.5).tensor())


@pytest.mark.parametrize("n", [1, PIECE + 1])
@pytest.mark.parametrize("by", [0.0, 0.3, 1.0])
def test_what_is_shortened_is_so_much_of_it(n: int, by: float) -> None:
    mine, theirs = random(n, 1), random(n, 2)
    for delta in (Between(mine, theirs), Made(theirs - mine, 0.5)):
        part, moved = delta.shortened(by), torch.zeros(n)
        part.add_to(moved)
        torch.testing.assert_close(part.tensor(), by * delta.tensor())
        torch.testing.assert_close(moved, by * delta.tensor())
        assert part.length() == pytest.approx(by * delta.length())
    assert Between(mine, theirs).shortened(by).is_half is (by == 1)


@pytest.mark.parametrize("delta", [Between(torch.zeros(5), torch.ones(5)), Made(torch.ones(5), 0.5)])
def test_a_shorter_vector_gets_the_first_of_it(delta: Delta) -> None:
    """What a correction remembers has no buffers."""
    x = torch.zeros(3)
    delta.add_to(x)
    assert x.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("made", [True, False])
def test_what_is_kept_shares_no_memory_with_what_came(made: bool) -> None:
    """A delta in doubt outlives the buffers that it came in."""
    mine, theirs = torch.zeros(4), torch.ones(4)
    kept = (Made(theirs, 0.5) if made else Between(mine, theirs)).tensor()
    theirs.fill_(9)
    mine.fill_(9)
    assert kept.tolist() == [0.5] * 4


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_a_delta_holds_the_vectors_that_it_is_made_of(name: str) -> None:
    """They lie in buffers that are used again when nobody holds the tensors any more: a view of one is not enough."""
    codec = pair_codecs(name, 10, torch.Generator())[name]
    assert isinstance(codec, Duplex)
    mine, theirs = codec.own(random(10, 1)), codec.own(random(10, 2))
    held = [weakref.ref(mine), weakref.ref(theirs)]
    delta = codec.delta(mine, theirs, "b")
    del mine, theirs
    gc.collect()
    assert all(ref() is not None for ref in held)
    del delta
