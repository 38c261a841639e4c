"""Counting without anyone in the middle: member j of the view counts the j-th part of the coordinates for all.

Every member sends and receives (n-1)/n of a packed vector twice. A ring could not do better, and would have to unpack
and pack again at every hop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.collective import Collective
from shoal.messages import PeerId, Tag
from shoal.rules import Rule, parts, rule


class Part(NamedTuple):
    """What one member counts."""

    member: PeerId
    place: slice
    rule: Rule


class Counting:
    """One worker's part in it. What a counter keeps from round to round lies in `memory`, as PURPOSE.NAME."""

    def __init__(
        self, collective: Collective, *, segments: Sequence[int], seed: int, memory: dict[str, Tensor]
    ) -> None:
        """`segments`: sizes of the model's tensors, in order."""
        self._together, self._segments, self._seed, self._memory = collective, segments, seed, memory
        self._parts: dict[str, list[Part]] = {}

    def enter(self) -> None:
        """The collective is in another view: the parts are cut anew."""
        self._parts = {}

    async def combine(self, purpose: str, y: Tensor, *, round: int, step: int = 0) -> tuple[Tensor, Tensor]:
        """(answer, own y as the others got it), each (d,), by a rule of `rules.py`. Raises BadVector."""
        together = self._together
        ballots, answers = (Tag(together.view, round, purpose, 2 * step + k) for k in range(2))
        found = self._parts_of(purpose)
        own = {part.member: part.rule.pack(y[part.place], round, together.me) for part in found}
        for part in found:
            if part.member != together.me:
                together.post.post(part.member, ballots, own[part.member])
        counted = {}
        for part in found:
            if part.member == together.me:
                counted[part.member] = await self._count(part, own[part.member], ballots)
                for member in self._others():
                    together.post.post(member, answers, counted[part.member])
        for part in found:
            if part.member != together.me:
                counted[part.member] = await self._received(part.member, answers, part.rule)
        self._keep(purpose, found)
        answer, sent = torch.empty_like(y), torch.empty_like(y)
        for part in found:
            answer[part.place] = part.rule.unpack(counted[part.member]).to(y)
            sent[part.place] = part.rule.unpack(own[part.member]).to(y)
        return answer, sent

    def _keep(self, purpose: str, found: Sequence[Part]) -> None:
        """What goes into a checkpoint. Not before the last await of a round: whoever stops in it counts it again."""
        for part in found:
            if part.member == self._together.me:
                self._memory.update({f"{purpose}.{name}": tensor for name, tensor in part.rule.memory.items()})

    def _others(self) -> list[PeerId]:
        return [member for member in self._together.members if member != self._together.me]

    async def _count(self, part: Part, own: Tensor, ballots: Tag) -> Tensor:
        packed = {self._together.me: own}
        for member in self._others():
            packed[member] = await self._received(member, ballots, part.rule)
        return part.rule.count(packed, ballots.round)

    async def _received(self, member: PeerId, tag: Tag, rule: Rule) -> Tensor:
        packed = await self._together.collect(member, tag)
        rule.check(packed, member)
        return packed

    def _parts_of(self, purpose: str) -> list[Part]:
        """Those that are not empty: there may be more members than coordinates to share out."""
        if purpose not in self._parts:
            found = []
            cut = parts(self._segments, len(self._together.members))
            for member, (low, inside) in zip(self._together.members, cut, strict=True):
                if inside:
                    place = slice(low, low + sum(inside))
                    found.append(Part(member, place, rule(purpose, inside, offset=low, seed=self._seed)))
                if inside and member == self._together.me:
                    self._remember(found[-1], f"{purpose}.")
            self._parts[purpose] = found
        return self._parts[purpose]

    def _remember(self, part: Part, prefix: str) -> None:
        """After a resume. What was kept for another cut of the coordinates is of no use."""
        for name, tensor in self._memory.items():
            if name.startswith(prefix) and tensor.numel() == part.rule.elements:
                part.rule.memory[name.removeprefix(prefix)] = tensor
