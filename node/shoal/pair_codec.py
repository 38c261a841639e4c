"""How two models travel while a pair is averaged: in full, or in three bits one way and two the other. Pure.

    j  first  ->                of its model r
       <- second  i             of the difference to its own model s, as far as i knows r from `first`

Both deltas are made of the same bytes, of `second`, so they cancel whatever is lost in packing: the sum of all models
is kept, and what an average leaves between the two is left for the next one.

Packed, both are rotated at random in blocks of 256 (`rotation.py`). `first` tells each coordinate of r modulo 8 steps
of a lattice, and i takes the point of the lattice nearest to its own model (Moniqua, 2002.11787; SwarmSGD, 1910.12308:
decoding against the receiver's own model). That is right while the two are less than four steps apart. Where they are
not, what i takes for the difference is wrong and bounded by four steps: noise, which cancels between the two ends, and
by which both see that the next lattice must be wider. `second` is `quantiser.py`'s two bits without bias.

Measured: leaving blocks that a checksum says were not read as they are costs more than trusting the nearest point, for
what is skipped drifts further apart; four bits and one are 9 % above full precision in loss over ten seeds, where three
and two are 3 %.
"""

import abc
from collections.abc import Mapping

import torch
from torch import Tensor

from shoal import quantiser
from shoal.delta import Between, Delta, Made
from shoal.errors import BadVector
from shoal.messages import PeerId
from shoal.rotation import BLOCK, blocks, draw_seed, rotate

FIRST_BITS, SECOND_BITS = 3, 2
SPAN = 5.3
"""A lattice reaches so many times as far, either way, as the models of a pair lay apart before (root mean square)."""
DECAY = 0.97
LEAST = 1e-7
"""Of a step: where models were equal before, the lattice must have something to grow from."""
FINEST = 2.0**-20
"""Of a step against the largest coordinate of its block: float32 tells such points apart."""


class Duplex(abc.ABC):
    """Both models travel at the same time, for neither message depends on the other. Models are (n,) float32."""

    as_it_is = False
    """Whether what is sent is the model itself, so that `own` must be given a copy."""

    @abc.abstractmethod
    def own(self, x: Tensor) -> Tensor:
        """What either end sends of its model."""

    @abc.abstractmethod
    def delta(self, mine: Tensor, theirs: Tensor, peer: PeerId) -> Delta:
        """That of the end that sent `mine`; it may hold both vectors. Raises BadVector for what cannot be."""


class InTurn(abc.ABC):
    """One after the other, as drawn above. Models are (n,) float32. Each method raises BadVector for what cannot be."""

    @abc.abstractmethod
    def first(self, r: Tensor) -> Tensor:
        """What j answers."""

    @abc.abstractmethod
    def second(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, Delta]:
        """(what i sends, i's delta)."""

    @abc.abstractmethod
    def last(self, r: Tensor, second: Tensor, peer: PeerId) -> Delta:
        """j's delta."""


PairCodec = Duplex | InTurn


class Full(Duplex):
    """Both models as they are: the deltas are (r - s) / 2 and (s - r) / 2."""

    as_it_is = True

    def own(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def delta(self, mine: Tensor, theirs: Tensor, peer: PeerId) -> Delta:
        """(theirs - mine) / 2."""
        if theirs.dtype != mine.dtype or theirs.numel() != mine.numel():
            got = f"{theirs.numel()} of {str(theirs.dtype).removeprefix('torch.')}"
            raise BadVector(f"model from {peer} has {got}, expected {mine.numel()} as they are")
        return Between(mine, theirs)


class Lattice(InTurn):
    """What the docstring of this file says, for any number of bits. Learns from each average how far apart the models
    lie; before the first one, r travels in full."""

    bits: int
    """Of a coordinate in `first`."""
    span: float = SPAN

    def __init__(self, elements: int, draw: torch.Generator) -> None:
        self.elements, self._draw = elements, draw
        self.apart: Tensor | None = None  # (blocks,): root mean square of the difference, of late

    @abc.abstractmethod
    def _tell(self, seed: int, steps: Tensor, residues: Tensor) -> Tensor:
        """`first` of a seed, (blocks,) bfloat16 steps, and residues, (blocks, 256) uint8."""

    @abc.abstractmethod
    def _told(self, first: Tensor, peer: PeerId) -> tuple[int, Tensor, Tensor]:
        """The same, back; the steps as float32. Raises BadVector for another length."""

    @abc.abstractmethod
    def _pack(self, difference: Tensor, seed: int) -> Tensor:
        """`second` of s - r, (blocks, 256), rotated by `seed`."""

    @abc.abstractmethod
    def _read(self, second: Tensor, peer: PeerId) -> tuple[Tensor, Tensor]:
        """((n,): the s - r that it tells; (blocks,): its root mean squares)."""

    def first(self, r: Tensor) -> Tensor:
        """A seed, steps, and `bits` a coordinate; at first r, in a copy: what lies in memory that was lent would be
        answered in kind."""
        if self.apart is None:
            return r.clone()
        seed, points = draw_seed(self._draw), 2**self.bits
        y = rotate(r.cpu(), seed)
        finest = (y.abs().amax(1) * FINEST).clamp_min_(LEAST)
        steps = torch.maximum(self.apart * (2 * self.span / points), finest).to(torch.bfloat16)
        return self._tell(seed, steps, (y / steps.float()[:, None]).round_().remainder_(points).to(torch.uint8))

    def second(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, Delta]:
        """What i sends of s - r."""
        if first.dtype == s.dtype:
            seed = draw_seed(self._draw)
            sent = self._pack(rotate(s.sub(first).cpu(), seed), seed)
        else:
            difference, seed = self._difference(first, s.cpu(), peer)
            sent = self._pack(difference, seed)
        return sent, Made(self._learn(sent, peer).to(s), -0.5)

    def last(self, r: Tensor, second: Tensor, peer: PeerId) -> Delta:
        """Half of what i sent."""
        return Made(self._learn(second, peer).to(r), 0.5)

    def _learn(self, second: Tensor, peer: PeerId) -> Tensor:
        """(n,): the difference that it tells. How far apart models lie grows at once and shrinks slowly; an average
        over the past that grows slowly diverges."""
        difference, now = self._read(second, peer)
        before = torch.zeros_like(now) if self.apart is None else self.apart
        self.apart = torch.maximum(DECAY * before, now).clamp_max_(1e30)
        return difference

    def _difference(self, first: Tensor, s: Tensor, peer: PeerId) -> tuple[Tensor, int]:
        """((blocks, 256): s - r rotated, or nearly; its seed)."""
        seed, steps, residues = self._told(first, peer)
        if not bool((torch.isfinite(steps) & (steps > 0)).all()):
            raise BadVector(f"packed model from {peer} has a step that is not above 0: its model has diverged")
        points = 2**self.bits
        own = (rotate(s, seed) / steps[:, None]).clamp_(-1 / FINEST, 1 / FINEST)
        apart = own.sub_(residues)  # of s and the point `residue`, in steps
        return apart.sub_(apart.div(points).round_().mul_(points)).mul_(steps[:, None]), seed


class Packed(Lattice):
    """By bit planes: three bits one way, two the other."""

    bits = FIRST_BITS

    def _tell(self, seed: int, steps: Tensor, residues: Tensor) -> Tensor:
        planes = residues.numpy()
        return quantiser.assembled(seed, steps, [(planes >> bit & 1).astype(bool) for bit in range(FIRST_BITS)])

    def _told(self, first: Tensor, peer: PeerId) -> tuple[int, Tensor, Tensor]:
        count, expected = blocks(self.elements), quantiser.packed_bytes(self.elements, FIRST_BITS)
        check_bytes(first, expected, peer)
        seed, steps, planes = quantiser.taken_apart(first.cpu(), count, FIRST_BITS)
        residues = torch.zeros(count, BLOCK, dtype=torch.uint8)
        for bit, plane in enumerate(planes):
            residues += plane.to(torch.uint8) << bit
        return seed, steps, residues

    def _pack(self, difference: Tensor, seed: int) -> Tensor:
        return quantiser.pack_rotated(difference, SECOND_BITS, seed)

    def _read(self, second: Tensor, peer: PeerId) -> tuple[Tensor, Tensor]:
        difference, scales = quantiser.unpack(second, SECOND_BITS, self.elements, peer)
        return difference, scales * quantiser.RMS[SECOND_BITS]


def check_bytes(packed: Tensor, expected: int, peer: PeerId) -> None:
    """Raises BadVector, naming the peer, for a packed model of another length."""
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        kind = "bytes" if packed.dtype == torch.uint8 else f"of {str(packed.dtype).removeprefix('torch.')}"
        raise BadVector(f"packed model from {peer} has {packed.numel()} {kind}, expected {expected}")


class PairCodecs:
    """The codecs that a node knows, by name, those of more bytes first, and the one that it wishes for. An average
    takes, of the wishes of its two ends, the one of fewer bytes: a node behind a thin link gets its way."""

    def __init__(self, wish: str = "", known: Mapping[str, PairCodec] | None = None) -> None:
        """Without a wish: the first. Without any known: models travel as they are."""
        self._known: Mapping[str, PairCodec] = known or {"f32": Full()}
        self.wish = wish or next(iter(self._known))

    def __getitem__(self, name: str) -> PairCodec:
        return self._known[name]

    def agreed(self, offered: str) -> tuple[str, str]:
        """(the codec of an average with a node that wishes for `offered`, or ""; why there is none)."""
        names = list(self._known)
        if offered and offered not in self._known:
            return "", f"codec {offered!r} is unknown here; known: {', '.join(names)}"
        return max(offered or names[0], self.wish, key=names.index), ""

    def chosen(self, said: str) -> tuple[str, str]:
        """(the codec that the other end has chosen, or ""; why it must not be)."""
        name, wrong = self.agreed(said)
        said = said or next(iter(self._known))
        if wrong or name == said:
            return name, wrong
        return "", f"codec {said} has more bytes than {self.wish}, which was asked for"
