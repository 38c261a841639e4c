"""How the vectors of many workers become one answer for all. Pure: vectors in, vector out.

Whoever counts runs these: a member for its part of the coordinates, or the coordinator for all of them. Everybody
decodes the same bytes, its own included, or the replicas would drift apart.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from shoal import bits, codecs
from shoal.errors import BadVector
from shoal.messages import PeerId

PURPOSES = ("mean", "vote", "ef-mean")


class Rule(Protocol):
    """For the m coordinates of one part."""

    elements: int
    """m."""
    memory: dict[str, Tensor]
    """What the counter keeps from round to round."""

    def pack(self, y: Tensor, round: int, worker: PeerId) -> Tensor:
        """What a worker with vector y, (m,), sends."""

    def count(self, packed: Mapping[PeerId, Tensor], round: int) -> Tensor:
        """The answer for all, packed."""

    def unpack(self, packed: Tensor) -> Tensor:
        """(m,): what a packed vector or answer says."""

    def check(self, packed: Tensor, peer: PeerId) -> None:
        """Raises BadVector, naming the peer, for what is not a packed vector of this part."""


class Mean:
    """The mean in full precision, summed in the order of the ids."""

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self.elements, self.dtype = elements, dtype
        self.memory: dict[str, Tensor] = {}

    def pack(self, y: Tensor, round: int, worker: PeerId) -> Tensor:
        """y itself."""
        return y

    def count(self, packed: Mapping[PeerId, Tensor], round: int) -> Tensor:
        """(m,)."""
        total = torch.zeros(self.elements, dtype=self.dtype)
        for peer in sorted(packed):
            total.add_(packed[peer])
        return total.div_(len(packed))

    def unpack(self, packed: Tensor) -> Tensor:
        """A copy."""
        return packed.clone()

    def check(self, packed: Tensor, peer: PeerId) -> None:
        """Length and dtype; that it is finite is seen where it comes in."""
        _check_shape(packed, self.elements, self.dtype, peer, "vector")


class Vote:
    """Majority vote of signs (signSGD, 1802.04434, algorithm 3; 1810.05291, algorithm 1).

    The papers' runs take sign(0) as 0, or as +1; with one bit and ties to +1 every coordinate without a gradient walks.
    Here both are decided by coins that everybody throws alike: sign(0) by one of (worker, round, coordinate), for one
    that the workers shared would make all zeros vote as a bloc; a tie by one of (round, coordinate).
    """

    def __init__(self, elements: int, offset: int, seed: int) -> None:
        self.elements, self.offset, self.seed = elements, offset, seed
        self._ties = codecs.Coins(seed, "tie")
        self.memory: dict[str, Tensor] = {}

    def pack(self, y: Tensor, round: int, worker: PeerId) -> Tensor:
        """One bit a coordinate."""
        coins = codecs.Coins(self.seed, f"zero {worker}")
        signs = bits.packed_signs(y.detach().cpu().numpy(), lambda where: coins.throw(round, where + self.offset))
        return torch.from_numpy(signs)

    def count(self, packed: Mapping[PeerId, Tensor], round: int) -> Tensor:
        """One bit a coordinate: what more than half say."""
        more, half = bits.majority([packed[peer].numpy() for peer in sorted(packed)])
        answer = bits.with_coins(more, half, lambda where: self._ties.throw(round, where + self.offset))
        return torch.from_numpy(answer)

    def unpack(self, packed: Tensor) -> Tensor:
        """+1 and -1."""
        return codecs.unpack_signs(packed, self.elements)

    def check(self, packed: Tensor, peer: PeerId) -> None:
        """Length, and that nothing stands in the bits that fill the last byte."""
        _check_shape(packed, codecs.sign_bytes(self.elements), torch.uint8, peer, "vote")
        _check_padding(packed, self.elements, peer)


class ErrorFeedbackMean:
    """The mean, one bit a coordinate and one scale a segment both ways; what an answer leaves out goes into the next.

    EF-signSGD (1901.09847, algorithm 1) compresses on the worker; with a memory of the counter's own the way back has
    one bit, too (double compression, as in dist-EF-SGD). The worker's memory is the algorithm's (`ef_signsgd.py`).
    Scales are trusted: one liar can ruin the mean, which a vote would not let happen.
    """

    def __init__(self, segments: Sequence[int]) -> None:
        self.segments, self.elements = tuple(segments), sum(segments)
        self.memory: dict[str, Tensor] = {}

    def pack(self, y: Tensor, round: int, worker: PeerId) -> Tensor:
        """Scales, then signs."""
        return codecs.pack_scaled(y, self.segments)

    def count(self, packed: Mapping[PeerId, Tensor], round: int) -> Tensor:
        """Scales and signs of the mean and of what was left out before."""
        total = torch.zeros(self.elements)
        for peer in sorted(packed):
            total.add_(self.unpack(packed[peer]))
        wanted = total.div_(len(packed)).add_(self.memory.get("error", 0.0))
        answer = codecs.pack_scaled(wanted, self.segments)
        self.memory["error"] = wanted.sub_(self.unpack(answer))
        return answer

    def unpack(self, packed: Tensor) -> Tensor:
        """Sign times scale."""
        return codecs.unpack_scaled(packed, self.segments)

    def check(self, packed: Tensor, peer: PeerId) -> None:
        """Length, finite scales that are not negative, padding."""
        head = codecs.SCALE_BYTES * len(self.segments)
        _check_shape(packed, head + codecs.sign_bytes(self.elements), torch.uint8, peer, "scaled signs")
        scales = codecs.scales_of(packed, self.segments)
        if not bool(torch.isfinite(scales).all()) or bool((scales < 0).any()):
            raise BadVector(f"scaled signs from {peer} have a scale that is negative or not finite: it has diverged")
        _check_padding(packed, self.elements, peer)


def rule(
    purpose: str, segments: Sequence[int], *, offset: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Rule:
    """The rule of that purpose for a part that begins at coordinate `offset` and is made of `segments`, the sizes of
    the tensors (or of what the part holds of each). Raises ValueError for an unknown purpose."""
    elements = sum(segments)
    if purpose == "mean":
        return Mean(elements, dtype)
    if purpose == "vote":
        return Vote(elements, offset, seed)
    if purpose == "ef-mean":
        return ErrorFeedbackMean(segments)
    raise ValueError(f"unknown purpose {purpose!r}; known: {', '.join(PURPOSES)}")


def parts(segments: Sequence[int], n: int) -> list[tuple[int, list[int]]]:
    """(offset, segments) of each of n parts, as equal as can be and cut at multiples of 8 coordinates."""
    found, eighths = [], -(-sum(segments) // 8)
    cuts = [min(8 * (k * eighths // n), sum(segments)) for k in range(n + 1)]
    for low, high in itertools.pairwise(cuts):
        inside, begin = [], 0
        for size in segments:
            overlap = min(high, begin + size) - max(low, begin)
            if overlap > 0:
                inside.append(overlap)
            begin += size
        found.append((low, inside))
    return found


def _check_shape(packed: Tensor, elements: int, dtype: torch.dtype, peer: PeerId, what: str) -> None:
    if packed.numel() != elements or packed.dtype != dtype:
        got, expected = f"{packed.numel()} of {packed.dtype}", f"{elements} of {dtype}"
        raise BadVector(f"{what} from {peer} has {got}, expected {expected}".replace("torch.", ""))


def _check_padding(packed: Tensor, elements: int, peer: PeerId) -> None:
    if elements and not codecs.padded_with_zeros(packed, elements):
        raise BadVector(f"signs from {peer} go on after coordinate {elements}: they are of another vector")
