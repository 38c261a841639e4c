"""One worker's mixing with its neighbours by W: sum_j W_ij y_j, in full or packed. Over tagged posts."""

import hashlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import torch
from torch import Tensor

from shoal import quantiser
from shoal.collective import Collective
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

    def enter(self, weights: Mapping[PeerId, float]) -> None:
        """Row i of W in the view that holds, this worker's own weight included."""
        self._weights = dict(sorted(weights.items()))

    def full(self, t: int, y: Tensor) -> Coroutine[Any, Any, Tensor]:
        """(m,): posted at once, and collected when it is awaited."""
        tag = Tag(self._together.view, t, "mix")
        self._post(tag, y)
        return self._collected(tag, y, lambda theirs, peer: theirs)

    async def packed(self, t: int, z: Tensor, bits: int, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """((d+b,): the mix of what z, (d,), was packed to and of the buffers, which go in full; (d,): own z as packed).

        Raises BadVector, naming the peer, for another length.
        """
        d, size = z.numel(), quantiser.packed_bytes(z.numel(), bits)
        own = torch.cat((quantiser.pack(z, bits, self._draw), buffers.cpu().view(torch.uint8)))

        def opened(packed: Tensor, peer: PeerId) -> Tensor:
            if packed.numel() != size + buffers.nbytes:
                raise BadVector(f"packed vector from {peer} has {packed.numel()} bytes, expected {len(own)}")
            q, _ = quantiser.unpack(packed[:size], bits, d, peer)
            return torch.cat((q, packed[size:].cpu().clone().view(buffers.dtype))).to(z)

        tag = Tag(self._together.view, t, "packed")
        self._post(tag, own)
        total = await self._collected(tag, own, opened)
        return total, opened(own, self._together.me)[:d]

    def _post(self, tag: Tag, payload: Tensor) -> None:
        for peer in self._weights:
            if peer != self._together.me:
                self._together.post.post(peer, tag, payload)

    async def _collected(self, tag: Tag, own: Tensor, opened: Callable[[Tensor, PeerId], Tensor]) -> Tensor:
        me = self._together.me
        total = torch.zeros_like(opened(own, me))
        for peer, weight in self._weights.items():
            theirs = own if peer == me else await self._together.collect(peer, tag)
            total.add_(opened(theirs, peer), alpha=weight)
        self.taken += len(self._weights) - 1
        return total
