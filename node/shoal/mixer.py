"""One worker's mixing with its neighbours by W: sum_j W_ij y_j, in full, rounded or packed. Over tagged posts."""

import hashlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import torch
from torch import Tensor

from shoal import quantiser, rounding
from shoal.apart import Apart
from shoal.collective import Collective
from shoal.delta import distance
from shoal.errors import BadVector
from shoal.messages import PeerId, Tag


def noise(seed: int, me: PeerId) -> torch.Generator:
    """Draws what a worker's packing rounds at random."""
    digest = hashlib.sha256(f"noise {seed}/{me}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Mixer:
    """`enter` says with whom; sums run in the order of the ids."""

    def __init__(self, collective: Collective, draw: torch.Generator) -> None:
        self._together, self._draw = collective, draw
        self._weights: dict[PeerId, float] = {}
        self.taken = 0  # vectors of others that were mixed in
        self.apart = Apart()

    def enter(self, weights: Mapping[PeerId, float]) -> None:
        """Row i of W in the view that holds, this worker's own weight included."""
        self._weights = dict(sorted(weights.items()))

    def full(self, t: int, y: Tensor) -> Coroutine[Any, Any, Tensor]:
        """(m,): posted at once, and collected when it is awaited."""
        tag = Tag(self._together.view, t, "mix")
        self._post(tag, y)
        return self._collected(tag, y, lambda theirs, peer: theirs, models=True)

    def rounded(self, t: int, y: Tensor, codec: str) -> Coroutine[Any, Any, Tensor]:
        """(m,): y + sum_j W_ij (y^_j - y^_i), y^ being y as bf16 or f16 has it; posted at once, as `full`.

        What is own stays unrounded, and W is symmetric, so the sum over all workers is kept, but for float32's own
        rounding. A result is off by at most 2 (1 - W_ii) times the largest rounding: 2^-8 or 2^-11 of a number.
        """
        tag, own = Tag(self._together.view, t, "rounded"), rounding.halved(y, codec)
        self._post(tag, own)
        return self._of_rounded(tag, y, own, codec)

    async def _of_rounded(self, tag: Tag, y: Tensor, own: Tensor, codec: str) -> Tensor:
        def opened(packed: Tensor, peer: PeerId) -> Tensor:
            return rounding.unhalved(packed, codec, y.numel(), peer)

        total = await self._collected(tag, own, opened, models=True)
        return total.add_(y).sub_(opened(own, self._together.me))

    async def packed(self, t: int, z: Tensor, bits: int, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """((d+b,): the mix of what z, (d,), was packed to and of the buffers, which go in full; (d,): own z as packed).

        Raises BadVector, naming the peer, for another length.
        """
        by = quantiser if bits in quantiser.LEVELS else rounding
        d, size = z.numel(), by.packed_bytes(z.numel(), bits)
        own = torch.cat((by.pack(z, bits, self._draw), buffers.cpu().view(torch.uint8)))

        def opened(packed: Tensor, peer: PeerId) -> Tensor:
            if packed.numel() != size + buffers.nbytes:
                raise BadVector(f"packed vector from {peer} has {packed.numel()} bytes, expected {len(own)}")
            q, _ = by.unpack(packed[:size], bits, d, peer)
            return torch.cat((q, packed[size:].cpu().clone().view(buffers.dtype))).to(z)

        tag = Tag(self._together.view, t, "packed")
        self._post(tag, own)
        total = await self._collected(tag, own, opened)
        return total, opened(own, self._together.me)[:d]

    def _post(self, tag: Tag, payload: Tensor) -> None:
        for peer in self._weights:
            if peer != self._together.me:
                self._together.post.post(peer, tag, payload)

    async def _collected(
        self, tag: Tag, own: Tensor, opened: Callable[[Tensor, PeerId], Tensor], *, models: bool = False
    ) -> Tensor:
        """`models`: what travels is the model itself, so that its distance to a neighbour's can be told."""
        me = self._together.me
        total = torch.zeros_like(opened(own, me))
        for peer, weight in self._weights.items():
            theirs = own if peer == me else await self._together.collect(peer, tag)
            part = opened(theirs, peer)
            total.add_(part, alpha=weight)
            if models and peer != me:
                self._measure(part, lambda: opened(own, me))
        self.taken += len(self._weights) - 1
        return total

    def _measure(self, theirs: Tensor, mine: Callable[[], Tensor]) -> None:
        self.apart.look(lambda: distance(theirs, mine()), lambda: float(torch.linalg.vector_norm(mine())))
