"""A few bits a coordinate, without bias: what packed exchanges send of a difference. Pure.

In blocks of 64, each with the largest |z| as its scale s, a coordinate becomes one of 2^bits levels from -s to s,
evenly spaced: one of the two around it, at random, so that its mean is z. A block's scale travels as bfloat16, rounded
up, so that nothing lies outside. Two bits are four levels, not three (-s, 0, s): measured, LEAD with three diverges.
"""

import numpy as np
import torch
from torch import Tensor

from shoal.errors import BadVector
from shoal.messages import PeerId

BLOCK = 64
SKIPPED = -1.0
"""Scale of a block that carries nothing, because it could not be told what to send."""


def blocks(elements: int) -> int:
    """In so many coordinates."""
    return -(-elements // BLOCK)


def in_blocks(z: Tensor) -> Tensor:
    """(blocks, 64): z, (n,), filled up with zeros."""
    return torch.nn.functional.pad(z, (0, -len(z) % BLOCK)).view(-1, BLOCK)


def rounded_up(scales: Tensor) -> Tensor:
    """(k,) bfloat16, none below its float32. Scales are not negative."""
    short = scales.to(torch.bfloat16)
    return torch.where(short.float() < scales, (short.view(torch.int16) + 1).view(torch.bfloat16), short)


def packed_bytes(elements: int, bits: int) -> int:
    """Of n coordinates: bits and a quarter each."""
    return blocks(elements) * (2 + bits * BLOCK // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """(bits n / 8,) uint8 from (n,) uint8 below 2^bits, n divisible by 8: one bit of all, then the next."""
    planes = [np.packbits((codes >> bit & 1).numpy()) for bit in range(bits)]
    return torch.from_numpy(np.concatenate(planes))


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """(n,) uint8."""
    planes = [torch.from_numpy(np.unpackbits(plane.numpy())) for plane in packed.view(bits, -1)]
    return sum((plane << bit for bit, plane in enumerate(planes)), torch.zeros_like(planes[0]))


def pack(z: Tensor, bits: int, draw: torch.Generator, skip: Tensor | None = None) -> Tensor:
    """(packed_bytes,) uint8 from z, (n,) float32. `skip`: (blocks,) bool, blocks that carry nothing."""
    rows, top = in_blocks(z.detach().cpu()), 2**bits - 1
    scales = rounded_up(rows.abs().amax(1))
    place = (rows / scales.float().clamp_min(1e-38)[:, None] + 1) * (top / 2)
    codes = (place + torch.rand(place.shape, generator=draw)).floor_().clamp_(0, top).to(torch.uint8)
    if skip is not None:
        scales = torch.where(skip, torch.tensor(SKIPPED, dtype=torch.bfloat16), scales)
    return torch.cat((scales.view(torch.uint8), pack_codes(codes.view(-1), bits)))


def unpack(packed: Tensor, bits: int, elements: int, peer: PeerId) -> tuple[Tensor, Tensor]:
    """((n,) float32: the levels; (blocks,) float32: the scales, SKIPPED among them). Raises BadVector, naming the peer,
    for another length, and for a scale that cannot be."""
    if packed.dtype != torch.uint8 or packed.numel() != packed_bytes(elements, bits):
        got = f"{packed.numel()} of {str(packed.dtype).removeprefix('torch.')}"
        raise BadVector(f"packed vector from {peer} has {got}, expected {packed_bytes(elements, bits)} of uint8")
    head = 2 * blocks(elements)
    packed = packed.cpu()
    scales = packed[:head].clone().view(torch.bfloat16).float()
    if not bool((torch.isfinite(scales) & ((scales >= 0) | (scales == SKIPPED))).all()):
        raise BadVector(f"packed vector from {peer} has a scale that is negative or not finite: its model has diverged")
    levels = unpack_codes(packed[head:], bits).view(-1, BLOCK).float() * (2 / (2**bits - 1)) - 1
    return (levels * scales.clamp_min(0)[:, None]).view(-1)[:elements], scales
