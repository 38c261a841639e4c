"""What the members of a view form together, without anyone in the middle: sums over a ring.

Everything travels as a tagged post (`rounds.py`), so that it arrives exactly once though connections break.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.errors import BadVector
from shoal.messages import Message, PeerId, Tag
from shoal.ring import piece_length, ring_sum
from shoal.rounds import Rounds


class Collective:
    """One worker's part in it. Posts wait in `post` until whoever needs them collects them."""

    def __init__(self, me: PeerId, *, send: Callable[[PeerId, Message], None], clock: Callable[[], float]) -> None:
        self.me, self._clock = me, clock
        self.post = Rounds(send=send, arrived=self._arrived)
        self.view, self.members = "", (me,)  # type: str, tuple[PeerId, ...]
        self._awaited: dict[tuple[PeerId, Tag], asyncio.Future[Tensor]] = {}
        self._waiting_since: dict[PeerId, float] = {}

    def enter(self, view: str, members: Sequence[PeerId], round: int) -> None:
        """Begin a view: its members, sorted, and its first round."""
        self.view, self.members = view, tuple(members)
        self.post.enter(view, round)

    async def sum(self, purpose: str, vector: Tensor, *, round: int = 0, step: int = 0) -> Tensor:
        """(m,): the sum of all members' vectors, the same bits on each. (purpose, round, step) name it."""
        rank, n = self.members.index(self.me), len(self.members)
        right, left = self.members[(rank + 1) % n], self.members[(rank - 1) % n]
        view, first = self.view, step * 2 * max(1, n - 1)

        async def swap(step: int, piece: Tensor) -> Tensor:
            tag = Tag(view, round, purpose, first + step)
            self.post.post(right, tag, piece)
            got = await self.collect(left, tag)
            check(got, piece_length(vector.numel(), n, rank, step), vector.dtype, left, f"piece {step} of {purpose}")
            return got

        return await ring_sum(rank, n, vector, swap)

    async def collect(self, peer: PeerId, tag: Tag) -> Tensor:
        """The post of `peer` under `tag`, once it has come."""
        vector = self.post.take(peer, tag)
        if vector is None:
            waiting: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
            self._awaited[peer, tag] = waiting
            self._waiting_since[peer] = self._clock()
            vector = await waiting
        return vector

    def waits(self) -> list[dict[str, Any]]:
        """For whose posts this worker waits, how long, and for what."""
        now = self._clock()
        return [
            {"for": peer, "seconds": now - self._waiting_since[peer], "why": f"{tag.purpose} of round {tag.round}"}
            for peer, tag in self._awaited
        ]

    def _arrived(self, tag: Tag, peer: PeerId) -> None:
        waiting = self._awaited.pop((peer, tag), None)
        if waiting is not None and not waiting.done():
            vector = self.post.take(peer, tag)
            assert vector is not None
            waiting.set_result(vector)


def check(got: Tensor, elements: int, dtype: torch.dtype, peer: PeerId, what: str) -> None:
    """Raises BadVector, naming the peer, for a vector of another length or dtype than expected."""
    if got.numel() != elements or got.dtype != dtype:
        have, want = (
            f"{n} elements of {str(t).removeprefix('torch.')}" for n, t in ((got.numel(), got.dtype), (elements, dtype))
        )
        raise BadVector(f"{what} from {peer} has {have}, expected {want}")
