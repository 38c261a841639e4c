"""One average between two settlements, with nothing between them but a queue."""

from collections import deque
from typing import Any

import torch
from codecs_kit import CODECS
from torch import Tensor

from shoal.exchange import Settlement
from shoal.messages import Kind, Message
from shoal.pair_codec import PairCodecs
from shoal.settling import Outcome


class Pair:
    """a at 0 offers an average to b, whose model is at Euclid's distance 5, unless others are given."""

    def __init__(
        self,
        codec: str,
        a: dict[str, Any] | None = None,
        b: dict[str, Any] | None = None,
        *,
        x: tuple[Tensor, Tensor] | None = None,
        lost: Kind | None = None,
    ) -> None:
        """`a`, `b`: what their settlements are given. `lost`: the link breaks in place of this message."""
        first, second = x or (torch.zeros(4), torch.tensor([3.0, 0.0, 4.0, 0.0]))
        self.x = {"a": first, "b": second}
        self.way: deque[tuple[str, str, Message]] = deque()
        self.said: list[tuple[str, Kind, str]] = []
        self.ended: list[tuple[str, Outcome]] = []
        self.settled = {name: self._one(name, codec, given or {}) for name, given in (("a", a), ("b", b))}
        self._up()
        self.settled["a"].offer("b")
        while self.way:
            source, target, message = self.way.popleft()
            if message.kind is lost:
                self._break()
            else:
                self.said.append((source, message.kind, message.reason))
                self.settled[target].received(source, message)

    def meet_again(self) -> None:
        """The link stands again, and what is said over it arrives."""
        self._up()
        while self.way:
            source, target, message = self.way.popleft()
            self.settled[target].received(source, message)

    def _up(self) -> None:
        for name, other in (("a", "b"), ("b", "a")):
            self.settled[name].up(other)

    def _break(self) -> None:
        self.way.clear()
        for name, other in (("a", "b"), ("b", "a")):
            self.settled[name].down(other)

    def _one(self, name: str, codec: str, given: dict[str, Any]) -> Settlement:
        return Settlement(
            name,
            1,
            snapshot=lambda: self.x[name].clone(),
            add=lambda delta: delta.add_to(self.x[name]),
            send=lambda peer, message: self.way.append((name, peer, message)),
            ended=lambda role, peer, seq, outcome, reason: self.ended.append((name, outcome)),
            codecs=PairCodecs(codec, CODECS),
            **given,
        )
