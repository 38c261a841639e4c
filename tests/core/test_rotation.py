"""Random rotation of blocks: its own way back, keeps lengths, spreads one large coordinate over all of its block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.rotation import BLOCK, blocks, draw_seed, rotate, rotate_back


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 3 * BLOCK), st.integers(0, 2**31 - 1))
def test_turned_back_it_is_what_it_was(n: int, seed: int) -> None:
    z = noise(n, seed)
    y = rotate(z, seed)
    assert y.shape == (blocks(n), BLOCK)
    torch.testing.assert_close(rotate_back(y, seed, n), z, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**31 - 1))
def test_each_block_keeps_its_length(seed: int) -> None:
    z = noise(2 * BLOCK, seed)
    torch.testing.assert_close(rotate(z, seed).norm(dim=1), z.view(2, BLOCK).norm(dim=1))


@pytest.mark.parametrize("where", [0, 17, BLOCK - 1])
def test_one_large_coordinate_is_spread_evenly_over_its_block_and_over_no_other(where: int) -> None:
    z = torch.zeros(2 * BLOCK)
    z[where] = 16.0
    y = rotate(z, 3)
    torch.testing.assert_close(y[0].abs(), torch.ones(BLOCK))
    assert not y[1].any()


def test_it_is_linear_and_each_seed_turns_another_way() -> None:
    a, b = noise(BLOCK, 1), noise(BLOCK, 2)
    torch.testing.assert_close(rotate(a + 2 * b, 5), rotate(a, 5) + 2 * rotate(b, 5))
    assert (rotate(a, 5) - rotate(a, 6)).norm() > 1


def test_the_signs_are_the_bits_of_a_hash_that_another_program_can_compute() -> None:
    """SHA-256("signs 7") begins with the byte 11010110: a bit of 1 is a minus."""
    import hashlib

    first = hashlib.sha256(b"signs 7").digest()[0]
    z = torch.zeros(BLOCK)
    wanted = []
    for k in range(8):
        z.zero_()[k] = 16.0
        wanted.append(float(rotate(z, 7)[0, 0]))  # row 0 of H is all plus
    assert wanted == [-1.0 if first >> (7 - k) & 1 else 1.0 for k in range(8)]


def test_seeds_are_drawn_from_the_generator_that_is_given() -> None:
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    drawn = [draw_seed(one) for _ in range(5)]
    assert drawn == [draw_seed(other) for _ in range(5)]
    assert len(set(drawn)) == 5
    assert all(0 <= seed < 2**31 for seed in drawn)
