"""The ring sum over any number of members and any length: what is summed, what travels, and that all hold the same."""

import asyncio

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.ring import piece_length, ring_sum

members = st.integers(1, 9)
lengths = st.integers(0, 40)
numbers = st.integers(0, 2**32 - 1)


class Ring:
    """Members in one process; what goes to the right waits in a queue of that member's own."""

    def __init__(self, vectors: list[Tensor]) -> None:
        self.vectors, self.n = vectors, len(vectors)
        self.pieces: list[list[int]] = [[] for _ in vectors]  # elements that each member sent, step by step
        self._queues: list[asyncio.Queue[tuple[int, Tensor]]] = []

    async def sums(self) -> list[Tensor]:
        """What each member gets."""
        self._queues = [asyncio.Queue() for _ in self.vectors]
        return await asyncio.gather(*map(self._member, range(self.n)))

    async def _member(self, rank: int) -> Tensor:
        async def swap(step: int, piece: Tensor) -> Tensor:
            self.pieces[rank].append(piece.numel())
            self._queues[(rank + 1) % self.n].put_nowait((step, piece))
            of_step, got = await self._queues[rank].get()
            assert of_step == step
            assert got.numel() == piece_length(self.vectors[rank].numel(), self.n, rank, step)
            return got

        return await ring_sum(rank, self.n, self.vectors[rank], swap)


def drawn(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """n vectors of d normal numbers."""
    return list(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def summed(vectors: list[Tensor]) -> list[Tensor]:
    return asyncio.run(Ring(vectors).sums())


@given(n=members, d=lengths, seed=numbers)
def test_every_member_gets_the_sum(n: int, d: int, seed: int) -> None:
    vectors = drawn(n, d, seed, torch.float64)
    for total in summed(vectors):
        torch.testing.assert_close(total, torch.stack(vectors).sum(0), rtol=0, atol=1e-12)


@given(n=members, d=lengths, seed=numbers)
def test_all_hold_the_same_bits_whatever_rounding_did(n: int, d: int, seed: int) -> None:
    """Floats add up differently in another order, so each piece is added up once and then copied."""
    vectors = [10.0 ** (k % 7) * vector for k, vector in enumerate(drawn(n, d, seed))]
    first, *others = summed(vectors)
    assert all(torch.equal(first, other) for other in others)


@given(n=members, d=lengths, seed=numbers)
def test_nobody_sends_more_than_two_n_minus_one_pieces_of_a_vector_cut_in_n(n: int, d: int, seed: int) -> None:
    """2 (n-1)/n of the vector, the least for a sum that all shall hold; a piece may be one element longer."""
    ring = Ring(drawn(n, d, seed))
    asyncio.run(ring.sums())
    assert sum(map(sum, ring.pieces)) == 2 * (n - 1) * d
    for sent in ring.pieces:
        assert len(sent) == 2 * (n - 1)
        assert set(sent) <= {d // n, d // n + 1}


@given(n=members, d=lengths, seed=numbers)
def test_what_a_member_gave_stays_as_it_was(n: int, d: int, seed: int) -> None:
    vectors = drawn(n, d, seed)
    before = [vector.clone() for vector in vectors]
    summed(vectors)
    assert all(torch.equal(vector, old) for vector, old in zip(vectors, before, strict=True))


@given(n=members, d=lengths)
def test_the_pieces_that_come_in_either_half_are_those_that_others_own(n: int, d: int) -> None:
    for rank in range(n):
        coming = [piece_length(d, n, rank, step) for step in range(2 * (n - 1))]
        own = [d // n + (k < d % n) for k in range(n)]
        assert sum(coming[: n - 1]) == d - own[rank]
        assert sum(coming[n - 1 :]) == d - own[(rank + 1) % n]


def test_one_member_alone_sends_nothing_and_gets_a_copy() -> None:
    ring = Ring(drawn(1, 5, 0))
    (total,) = asyncio.run(ring.sums())
    assert torch.equal(total, ring.vectors[0])
    assert total.data_ptr() != ring.vectors[0].data_ptr()
    assert ring.pieces == [[]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_has_the_precision_of_what_is_summed(dtype: torch.dtype) -> None:
    assert {total.dtype for total in summed(drawn(3, 4, 0, dtype))} == {dtype}
