"""One or two bits a coordinate, without bias: what packed exchanges send of a difference. Pure.

Each block of 256 is rotated at random (`rotation.py`), and of a rotated coordinate go its sign and, with two bits,
whether it is large. The levels are those of least error for normal noise (Lloyd, Max); a scale for each block makes
the whole right on average: |y|^2 / <y, levels> (DRIVE, 2105.08339; EDEN, 2108.08842: from memory, unverified). The
error, squared, is .57 |z|^2 with one bit and .13 |z|^2 with two. Of a block with but a few coordinates that are not 0,
small ones beside large ones are lost; they come when they are large beside the others.

Packed, a vector is its seed (a little-endian 32-bit number), a bfloat16 scale for each block, then one bit of all
coordinates, and the next. Measured on LEAD: as good with one bit as two bits were without a rotation, where one bit
diverged.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.errors import BadVector
from shoal.messages import PeerId
from shoal.rotation import BLOCK, blocks, draw_seed, rotate, rotate_back

LEVELS = {1: (1.0,), 2: (0.4528, 1.510)}
"""By bits: the sizes that a coordinate can have; for two bits in units of its block's root mean square."""
SEED_BYTES = 4


def packed_bytes(elements: int, bits: int) -> int:
    """Of n coordinates: bits and a sixteenth each."""
    return SEED_BYTES + blocks(elements) * (2 + bits * BLOCK // 8)


def pack(z: Tensor, bits: int, draw: torch.Generator) -> Tensor:
    """(packed_bytes,) uint8 on the CPU from z, (n,) float32."""
    seed = draw_seed(draw)
    return pack_rotated(rotate(z.detach(), seed), bits, seed)


def pack_rotated(y: Tensor, bits: int, seed: int) -> Tensor:
    """The same from (blocks, 256) that are rotated by `seed` already."""
    sizes = LEVELS[bits]
    squares = torch.linalg.vector_norm(y, dim=1, dtype=torch.float64).square_()
    planes = [y < 0]
    if bits == 1:
        along = torch.linalg.vector_norm(y, 1, dim=1, dtype=torch.float64)
    else:
        rms = (squares / BLOCK).sqrt().to(y.dtype)
        planes.append(y.abs() > rms[:, None] * (sum(sizes) / 2))
        levels = torch.where(planes[1], sizes[1], sizes[0])
        along = (y.abs() * levels).sum(1, dtype=torch.float64)
    scales = (squares / along.clamp_min(1e-300)).to(torch.bfloat16).cpu()
    return assembled(seed, scales, [plane.cpu().numpy() for plane in planes])


def unpack(packed: Tensor, bits: int, elements: int, peer: PeerId) -> tuple[Tensor, Tensor]:
    """((n,) float32: what was packed, or nearly; (blocks,) float32: the scales). Raises BadVector, naming the peer, for
    another length, and for a scale that cannot be."""
    expected = packed_bytes(elements, bits)
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        got = f"{packed.numel()} of {str(packed.dtype).removeprefix('torch.')}"
        raise BadVector(f"packed vector from {peer} has {got}, expected {expected} of uint8")
    seed, scales, planes = taken_apart(packed.cpu(), blocks(elements), bits)
    if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
        raise BadVector(f"packed vector from {peer} has a scale that is negative or not finite: its model has diverged")
    sizes = LEVELS[bits]
    levels = torch.where(planes[1], sizes[1], sizes[0]) if bits == 2 else torch.ones(())
    y = torch.where(planes[0], -levels, levels) * scales[:, None]
    return rotate_back(y, seed, elements), scales


def assembled(seed: int, scales: Tensor, planes: list[npt.NDArray[np.bool_]]) -> Tensor:
    """(bytes,) uint8: a seed, (blocks,) bfloat16, and truth values, (blocks, 256) each."""
    head = torch.from_numpy(np.array([seed], "<u4").view(np.uint8))
    return torch.cat((head, scales.view(torch.uint8), *(torch.from_numpy(np.packbits(plane)) for plane in planes)))


def taken_apart(packed: Tensor, count: int, bits: int) -> tuple[int, Tensor, list[Tensor]]:
    """(seed, (count,) float32 scales, `bits` planes of truth values, (count, 256) each) of a length that fits."""
    raw = packed.numpy()
    seed = int(raw[:SEED_BYTES].view("<u4")[0])
    head = SEED_BYTES + 2 * count
    scales = torch.from_numpy(raw[SEED_BYTES:head].copy()).view(torch.bfloat16).float()
    planes = np.unpackbits(raw[head:]).reshape(bits, count, BLOCK)
    return seed, scales, [torch.from_numpy(plane.view(np.bool_)) for plane in planes]


RMS = {1: math.sqrt(2 / math.pi), 2: 0.8825}
"""Of normal noise: its root mean square over the scale that so many bits of it get."""
