"""How two models travel while a pair is averaged: in full, or in four bits one way and three the other. Pure.

    j  first  ->                of its model r
       <- second  i             of the difference to its own model s, as far as i knows r from `first`

Both deltas are made of the same bytes, of `second`, so they cancel to the last bit whatever is lost in packing: the sum
of all models is kept, and what an average leaves between the two is left for the next one.

Packed, `first` tells each coordinate of r modulo 16 steps of a lattice, and i takes the point of the lattice nearest to
its own model (Moniqua, 2002.11787; SwarmSGD, 1910.12308: decoding against the receiver's own model). That is right
while the two are less than eight steps apart; a checksum of each block tells when it was not, and then that block is
left as it is, and the next lattice is twice as wide there. `second` is `quantiser.py`'s three bits without bias. With
one bit (a scaled sign) too little of the difference went over, and the loss was two to three times that of full
precision; with two the noise of packing was about what an average takes away.
"""

from typing import Protocol

import torch
from torch import Tensor

from shoal import quantiser
from shoal.errors import BadVector
from shoal.messages import PeerId
from shoal.quantiser import BLOCK, blocks, in_blocks

FIRST_BITS, SECOND_BITS = 4, 3
LATTICE = 2**FIRST_BITS
MARGIN = 4.0
"""A lattice reaches so many times as far as the models of a pair lay apart before."""
DECAY = 0.97
LEAST = 1e-4
"""What a block that could not be read was apart before, at least: twice nothing would be nothing for ever."""
PRIME = 65521
WEIGHTS = (torch.arange(BLOCK, dtype=torch.int64) * 40503 + 12345) % PRIME
FINEST = 2.0**-20
"""Of a lattice's step against the largest coordinate of its block: float32 tells such points apart."""


class PairCodec(Protocol):
    """Models are (n,) float32, as snapshots of the state. Each method raises BadVector for what cannot be."""

    def first(self, r: Tensor) -> Tensor:
        """What j answers."""

    def second(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, Tensor]:
        """(what i sends, i's delta)."""

    def last(self, second: Tensor, r: Tensor, peer: PeerId) -> Tensor:
        """j's delta."""


class Full:
    """Both models as they are: the deltas are (r - s) / 2 and (s - r) / 2."""

    def first(self, r: Tensor) -> Tensor:
        """r."""
        return r

    def second(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, Tensor]:
        """s."""
        return s, first.sub(s).mul_(0.5)

    def last(self, second: Tensor, r: Tensor, peer: PeerId) -> Tensor:
        """(s - r) / 2."""
        return second.sub(r).mul_(0.5)


class Packed:
    """Learns from each average how far apart the models lie; before the first one, r travels in full."""

    def __init__(self, elements: int, draw: torch.Generator) -> None:
        self.elements, self._draw = elements, draw
        self.apart: Tensor | None = None  # (blocks,): the largest difference, of late
        self.missed_blocks = 0
        """That could not be read, and were left as they were."""

    def first(self, r: Tensor) -> Tensor:
        """Steps, checksums, and four bits a coordinate: 4.5 bits in all."""
        if self.apart is None:
            return r
        rows = in_blocks(r.cpu())
        finest = torch.maximum(rows.abs().amax(1) * FINEST, torch.tensor(1e-30))
        steps = quantiser.rounded_up(torch.maximum(self.apart * (2 * MARGIN / (LATTICE - 1)), finest))
        points = (rows.double() / steps.double()[:, None]).round_().long()
        residues = (points % LATTICE).to(torch.uint8).view(-1)
        return torch.cat((steps.view(torch.uint8), _checksums(points), quantiser.pack_codes(residues, FIRST_BITS)))

    def second(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, Tensor]:
        """Two bits a coordinate of s - r."""
        if first.dtype == s.dtype:
            r, unread = in_blocks(first.cpu()), torch.zeros(blocks(self.elements), dtype=torch.bool)
        else:
            r, unread = self._nearest(first, in_blocks(s.cpu()), peer)
        difference = in_blocks(s.cpu()) - r
        sent = quantiser.pack(difference.view(-1)[: self.elements], SECOND_BITS, self._draw, unread)
        return sent, self._learn(sent, peer).to(s).mul_(-0.5)

    def last(self, second: Tensor, r: Tensor, peer: PeerId) -> Tensor:
        """Half of what i sent."""
        return self._learn(second, peer).to(r).mul_(0.5)

    def _learn(self, second: Tensor, peer: PeerId) -> Tensor:
        """(n,): the difference that it tells."""
        difference, scales = quantiser.unpack(second, SECOND_BITS, self.elements, peer)
        before = torch.zeros_like(scales) if self.apart is None else self.apart
        unread = scales == quantiser.SKIPPED
        self.missed_blocks += int(unread.sum())
        wider = 2 * before.clamp_min(LEAST)
        self.apart = torch.where(unread, wider, torch.maximum(DECAY * before, scales)).clamp_max(1e30)
        return difference

    def _nearest(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, Tensor]:
        """((blocks, 64) float32: r, or nearly; (blocks,) bool: where it is not)."""
        count = blocks(self.elements)
        expected = count * (4 + FIRST_BITS * BLOCK // 8)
        if first.dtype != torch.uint8 or first.numel() != expected:
            raise BadVector(f"packed model from {peer} has {first.numel()} bytes, expected {expected}")
        first = first.cpu()
        steps = first[: 2 * count].clone().view(torch.bfloat16).double()[:, None]
        if not bool((torch.isfinite(steps) & (steps > 0)).all()):
            raise BadVector(f"packed model from {peer} has a step that is not above 0: its model has diverged")
        residues = quantiser.unpack_codes(first[4 * count :], FIRST_BITS).view(-1, BLOCK).long()
        own = (s.double() / steps).clamp_(-(2.0**40), 2.0**40)
        points = residues + LATTICE * ((own - residues) / LATTICE).round_().long()
        wrong = (_checksums(points).view(-1, 2) != first[2 * count : 4 * count].view(-1, 2)).any(1)
        return (points.double() * steps).float(), wrong


def _checksums(points: Tensor) -> Tensor:
    """(2 blocks,) uint8: sixteen bits a block. A point that is wrong is so by a multiple of 16, which is no divisor of
    the prime."""
    sums = ((points % PRIME) * WEIGHTS).sum(1) % PRIME
    return torch.stack((sums & 255, sums >> 8), 1).to(torch.uint8).view(-1)
