"""Vectors in 16, 8 or 4 bits a coordinate. Pure.

`bf16` and `f16` round each number for itself, to the nearest: bf16 keeps 8 bits of it (an error of at most 2^-8 of the
number, at any size that float32 has), f16 keeps 11 (2^-11). f16 reaches from 6e-5 to 65504 only, so a power of two
stands in front that puts the largest number of the vector between 2^14 and 2^15: nothing overflows, and what is below
2^-28 of the largest has an error of at most 2^-39 of the largest. The rounding is a rule, the same on every machine.

`q8` and `q4` have 255 and 15 equal steps of a scale for each block of 256, which is rotated at random (`rotation.py`)
first: no coordinate is more than half a step off, a step being 1/127 or 1/7 of the largest rotated coordinate of the
block, so a block z is off by at most 8 of its steps in length. Of what looks like normal noise that is .8 % and 12 % of
|z|: the largest of 256 is near 2.9 root mean squares.

Packed, q8 and q4 are the seed of the rotation (4 bytes, little endian), a bfloat16 for each block, then a byte each
coordinate, or half of one, the lower half first.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from shoal.errors import BadVector
from shoal.messages import PeerId
from shoal.rotation import BLOCK, blocks, draw_seed, rotate, rotate_back

HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}
BITS = {"q8": 8, "q4": 4}
F16_TOP = 14
"""The power of two at which the largest number of an f16 vector lies, or up to twice that."""
SCALE_BYTES = 4
PIECE = 1 << 18
"""Coordinates that are worked on in one go, while they lie in the cache."""
SEED_BYTES = 4
ROUND_UP = 1 + 2.0**-8
"""On a scale before it becomes a bfloat16, so that the largest coordinate is not above the largest level."""


# --- 16 bits --------------------------------------------------------------------------------------------------------


def half_bytes(elements: int, name: str) -> int:
    """Of n coordinates."""
    return 2 * elements + (SCALE_BYTES if name == "f16" else 0)


def halved(x: Tensor, name: str, into: Tensor | None = None) -> Tensor:
    """(half_bytes,) uint8 from (n,) float32: `into`, if that is given, else new and on its device."""
    packed = torch.empty(half_bytes(x.numel(), name), dtype=torch.uint8, device=x.device) if into is None else into
    if name == "bf16":
        packed.view(torch.bfloat16).copy_(x)
        return packed
    scale = _f16_scale(x)
    packed[:SCALE_BYTES] = torch.tensor([scale], dtype=torch.float32).view(torch.uint8)
    numbers = packed[SCALE_BYTES:].view(torch.float16)
    for piece in pieces(x.numel()):
        numbers[piece] = x[piece] * (1 / scale)
    return packed


def unhalved(packed: Tensor, name: str, elements: int, peer: PeerId) -> Tensor:
    """(n,) float32, new. Raises BadVector, naming the peer, for another length, and for what is not finite."""
    half = Halved(packed, name, elements, peer)
    half.check()
    x = torch.empty(elements, dtype=torch.float32, device=packed.device)
    for piece in pieces(elements):
        half.read(piece, x[piece])
    return x


class Halved:
    """A vector of 16 bits a coordinate, to be read piece by piece."""

    def __init__(self, packed: Tensor, name: str, elements: int, peer: PeerId) -> None:
        """Raises BadVector, naming the peer, for another length."""
        expected = half_bytes(elements, name)
        if packed.dtype != torch.uint8 or packed.numel() != expected:
            got = f"{packed.numel()} of {str(packed.dtype).removeprefix('torch.')}"
            raise BadVector(f"{name} vector from {peer} has {got}, expected {expected} of uint8")
        head = SCALE_BYTES if name == "f16" else 0
        self._scale = float(packed[:head].clone().view(torch.float32)) if head else 1.0
        self._packed = packed  # held as it is: it may lie in a buffer that is free again when nobody holds it
        self._numbers = packed[head:].view(HALVES[name])
        self._name, self._peer, self.elements = name, peer, elements

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self._numbers.device

    def check(self) -> None:
        """Raises BadVector, naming the peer, unless every number is finite in float32."""
        if not self._largest() * abs(self._scale) <= torch.finfo(torch.float32).max:  # NaN is not, either
            raise BadVector(f"{self._name} vector from {self._peer} holds NaN or Inf: its model has diverged")

    def _largest(self) -> float:
        """The largest size of a number; NaN or Inf if one is that. Without their sign, bits are in order of size."""
        bits, largest = self._numbers.view(torch.int16), 0
        room = bits.new_empty(min(PIECE, self.elements))
        for piece in pieces(self.elements):
            sizes = torch.bitwise_and(bits[piece], 0x7FFF, out=room[: piece.stop - piece.start])
            largest = max(largest, int(sizes.max()))
        return float(torch.tensor(largest, dtype=torch.int16).view(self._numbers.dtype))

    def read(self, piece: slice, part: Tensor) -> None:
        """Into `part`, which is as long."""
        part.copy_(self._numbers[piece])
        if self._scale != 1.0:
            part.mul_(self._scale)


def pieces(elements: int) -> Iterator[slice]:
    """What is worked on in one go, while it lies in the cache."""
    for start in range(0, elements, PIECE):
        yield slice(start, min(elements, start + PIECE))


def _f16_scale(x: Tensor) -> float:
    """A power of two; NaN, which the other end will refuse, where the vector is not finite."""
    least, most = torch.aminmax(x)
    largest = max(-float(least), float(most))
    if not math.isfinite(largest):
        return math.nan
    exponent = math.frexp(largest)[1] - 1 if largest else F16_TOP
    return math.ldexp(1.0, max(-126, exponent - F16_TOP))


# --- 8 and 4 bits ---------------------------------------------------------------------------------------------------


def packed_bytes(elements: int, bits: int) -> int:
    """Of n coordinates: bits and a sixteenth each."""
    return SEED_BYTES + blocks(elements) * (2 + bits * BLOCK // 8)


def pack(z: Tensor, bits: int, draw: torch.Generator) -> Tensor:
    """(packed_bytes,) uint8 on the CPU from z, (n,) float32."""
    seed = draw_seed(draw)
    return pack_rotated(rotate(z.detach().cpu(), seed), bits, seed)


def pack_rotated(y: Tensor, bits: int, seed: int) -> Tensor:
    """The same from (blocks, 256) on the CPU that are rotated by `seed` already."""
    top = 2 ** (bits - 1) - 1
    scales = (y.abs().amax(1) * (ROUND_UP / top)).to(torch.bfloat16)
    steps = scales.float()
    levels = y.div(torch.where(steps > 0, steps, 1.0)[:, None]).round_().clamp_(-top, top).add_(top + 1)
    return assembled(seed, scales, levels.nan_to_num_(0).to(torch.uint8), bits)


def unpack(packed: Tensor, bits: int, elements: int, peer: PeerId) -> tuple[Tensor, Tensor]:
    """((n,) float32: what was packed, or nearly; (blocks,) float32: its root mean squares). Raises BadVector, naming
    the peer, for another length, and for a scale that cannot be."""
    seed, scales, levels = taken_apart(packed, bits, elements, peer)
    if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
        raise BadVector(f"packed vector from {peer} has a scale that is negative or not finite: its model has diverged")
    y = levels.float().sub_(2 ** (bits - 1)).mul_(scales[:, None])
    rms = torch.linalg.vector_norm(y, dim=1).div_(math.sqrt(BLOCK))
    return rotate_back(y, seed, elements), rms


def assembled(seed: int, scales: Tensor, levels: Tensor, bits: int) -> Tensor:
    """(packed_bytes,) uint8: a seed, (blocks,) bfloat16, and (blocks, 256) uint8, each below 2^bits."""
    head = torch.from_numpy(np.array([seed], "<u4").view(np.uint8))
    pairs = levels.view(-1, 8 // bits)
    body = pairs.view(-1) if bits == 8 else pairs[:, 0] | pairs[:, 1] << 4
    return torch.cat((head, scales.view(torch.uint8), body))


def taken_apart(packed: Tensor, bits: int, elements: int, peer: PeerId) -> tuple[int, Tensor, Tensor]:
    """(seed, (blocks,) float32, (blocks, 256) uint8). Raises BadVector, naming the peer, for another length."""
    expected, count = packed_bytes(elements, bits), blocks(elements)
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        got = f"{packed.numel()} of {str(packed.dtype).removeprefix('torch.')}"
        raise BadVector(f"packed vector from {peer} has {got}, expected {expected} of uint8")
    packed = packed.cpu()
    seed = int.from_bytes(packed[:SEED_BYTES].numpy().tobytes(), "little")
    head = SEED_BYTES + 2 * count
    scales = packed[SEED_BYTES:head].clone().view(torch.bfloat16).float()
    body = packed[head:]
    levels = body if bits == 8 else torch.stack((body & 15, body >> 4), 1)
    return seed, scales, levels.reshape(count, BLOCK)
