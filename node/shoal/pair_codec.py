"""How two models travel while a pair is averaged: in full, or in four bits one way and one the other. Pure.

    j  first  ->                of its model r
       <- second  i             of the difference to its own model s, as far as i knows r from `first`

Both deltas are made of the same bytes, of `second`, so they cancel whatever is lost in packing: the sum of all models
is kept, and what an average leaves between the two is left for the next one.

Packed, both are rotated at random in blocks of 256 (`rotation.py`). `first` tells each coordinate of r modulo 16 steps
of a lattice, and i takes the point of the lattice nearest to its own model (Moniqua, 2002.11787; SwarmSGD, 1910.12308:
decoding against the receiver's own model). That is right while the two are less than eight steps apart. Where they are
not, what i takes for the difference is wrong and bounded by eight steps: noise, which cancels between the two ends, and
by which both see that the next lattice must be wider. `second` is `quantiser.py`'s one bit without bias.

Measured: leaving blocks that a checksum says were not read as they are costs more than trusting the nearest point, for
what is skipped drifts further apart; without the rotation one bit is not enough.
"""

from typing import Protocol

import torch
from torch import Tensor

from shoal import quantiser
from shoal.errors import BadVector
from shoal.messages import PeerId
from shoal.rotation import BLOCK, blocks, draw_seed, rotate

FIRST_BITS, SECOND_BITS = 4, 1
LATTICE = 2**FIRST_BITS
SPAN = 6.0
"""A lattice reaches so many times as far, either way, as the models of a pair lay apart before (root mean square)."""
DECAY = 0.97
LEAST = 1e-7
"""Of a step: where models were equal before, the lattice must have something to grow from."""
FINEST = 2.0**-20
"""Of a step against the largest coordinate of its block: float32 tells such points apart."""


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
        self.apart: Tensor | None = None  # (blocks,): root mean square of the difference, of late

    def first(self, r: Tensor) -> Tensor:
        """A seed, steps, and four bits a coordinate."""
        if self.apart is None:
            return r
        seed = draw_seed(self._draw)
        y = rotate(r.cpu(), seed)
        finest = (y.abs().amax(1) * FINEST).clamp_min_(LEAST)
        steps = torch.maximum(self.apart * (2 * SPAN / LATTICE), finest).to(torch.bfloat16)
        residues = (y / steps.float()[:, None]).round_().remainder_(LATTICE).to(torch.uint8).numpy()
        return quantiser.assembled(seed, steps, [(residues >> bit & 1).astype(bool) for bit in range(FIRST_BITS)])

    def second(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, Tensor]:
        """One bit a coordinate of s - r."""
        if first.dtype == s.dtype:
            sent = quantiser.pack(s.sub(first).cpu(), SECOND_BITS, self._draw)
        else:
            difference, seed = self._difference(first, s.cpu(), peer)
            sent = quantiser.pack_rotated(difference, SECOND_BITS, seed)
        return sent, self._learn(sent, peer).to(s).mul_(-0.5)

    def last(self, second: Tensor, r: Tensor, peer: PeerId) -> Tensor:
        """Half of what i sent."""
        return self._learn(second, peer).to(r).mul_(0.5)

    def _learn(self, second: Tensor, peer: PeerId) -> Tensor:
        """(n,): the difference that it tells. How far apart models lie grows at once and shrinks slowly; an average
        over the past that grows slowly diverges."""
        difference, scales = quantiser.unpack(second, SECOND_BITS, self.elements, peer)
        now = scales * quantiser.ONE_BIT_RMS
        before = torch.zeros_like(now) if self.apart is None else self.apart
        self.apart = torch.maximum(DECAY * before, now).clamp_max_(1e30)
        return difference

    def _difference(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, int]:
        """((blocks, 256): s - r rotated, or nearly; its seed)."""
        count = blocks(self.elements)
        expected = quantiser.packed_bytes(self.elements, FIRST_BITS)
        if first.dtype != torch.uint8 or first.numel() != expected:
            raise BadVector(f"packed model from {peer} has {first.numel()} bytes, expected {expected}")
        seed, steps, planes = quantiser.taken_apart(first.cpu(), count, FIRST_BITS)
        if not bool((torch.isfinite(steps) & (steps > 0)).all()):
            raise BadVector(f"packed model from {peer} has a step that is not above 0: its model has diverged")
        residues = torch.zeros(count, BLOCK, dtype=torch.uint8)
        for bit, plane in enumerate(planes):
            residues += plane.to(torch.uint8) << bit
        own = (rotate(s, seed) / steps[:, None]).clamp_(-1 / FINEST, 1 / FINEST)
        apart = own.sub_(residues)  # of s and the point `residue`, in steps
        return apart.sub_(apart.div(LATTICE).round_().mul_(LATTICE)).mul_(steps[:, None]), seed
