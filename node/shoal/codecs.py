"""Vectors packed into bytes, and back: one bit a coordinate, with or without a scale. Pure.

A packed vector is a uint8 tensor on the CPU. Bit k of it, counted from the highest bit of the first byte, is 1 where
coordinate k is negative; the bits that fill the last byte are 0 (`bits.py`).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal import bits
from shoal.bits import Bits

SCALE_BYTES = 4
"""A scale is a little-endian float32."""


def sign_bytes(elements: int) -> int:
    """Bytes that the signs of so many coordinates take."""
    return -(-elements // 8)


def pack_signs(negative: Bits) -> Tensor:
    """(ceil(m / 8),) uint8 from (m,) truth values."""
    return torch.from_numpy(np.packbits(negative))


def unpack_signs(packed: Tensor, elements: int) -> Tensor:
    """(m,) float32 of +1 and -1."""
    return torch.from_numpy(bits.ones(packed.numpy(), elements))


def padded_with_zeros(packed: Tensor, elements: int) -> bool:
    """Whether the bits after the last coordinate are 0, as whoever packed them left them."""
    spare = -elements % 8
    return spare == 0 or not int(packed[-1]) & ((1 << spare) - 1)


class Coins:
    """Fair coins that every machine throws alike: one for each (name, round, coordinate).

    In round 2k+1 each shows the other side of what it showed in round 2k. A coordinate whose sign is decided by coins
    alone therefore steps forth and back and stays where it is, where independent coins would make it walk.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._of = f"coins {seed} {name}"

    def throw(self, round: int, coordinates: npt.NDArray[np.int64]) -> Bits:
        """(k,): the coins of these coordinates."""
        digest = hashlib.sha256(f"{self._of} {round // 2}".encode()).digest()
        z = coordinates.astype(np.uint64) + np.uint64(int.from_bytes(digest[:8], "big"))
        # The finaliser of splitmix64 (Steele, Lea, Flood, 2014): neighbouring numbers give unrelated bits.
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        heads: Bits = (z >> np.uint64(63)).astype(bool)
        return ~heads if round % 2 else heads


def pack_scaled(y: Tensor, segments: Sequence[int]) -> Tensor:
    """One scale, the mean of |y|, for each segment of y, then its signs; the sign of 0 is +.

    y: (m,) float32, m the sum of `segments` (1901.09847, algorithm 1: the compressor of EF-signSGD, tensor by tensor).
    """
    parts = torch.split(y.abs(), list(segments))
    scales = torch.stack([part.mean() if len(part) else part.sum() for part in parts]).to("cpu", torch.float32)
    signs = pack_signs((y < 0).cpu().numpy())
    return torch.cat((scales.contiguous().view(torch.uint8), signs))


def unpack_scaled(packed: Tensor, segments: Sequence[int]) -> Tensor:
    """(m,) float32: each coordinate its sign times the scale of its segment."""
    head = SCALE_BYTES * len(segments)
    sizes = torch.tensor(segments)
    scales = packed[:head].clone().view(torch.float32).repeat_interleave(sizes)
    return unpack_signs(packed[head:], int(sizes.sum())).mul_(scales)


def scales_of(packed: Tensor, segments: Sequence[int]) -> Tensor:
    """(segments,) float32."""
    return packed[: SCALE_BYTES * len(segments)].clone().view(torch.float32)
