"""How long a worker lets itself be kept busy by an initiator that says nothing more."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import torch
from small_tasks import Line, learner

from shoal.messages import Kind, Message
from shoal.runtime import FIRST_PATIENCE_S, Runtime
from shoal.settings import Settings

T = TypeVar("T")


class Host:
    """`runtime.Host` whose clock the test turns. Nothing is computed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[tuple[str, Kind]] = []

    def send(self, peer: str, message: Message) -> None:
        self.sent.append((peer, message.kind))

    def compute(self, work: Callable[[], T]) -> Awaitable[T]:
        raise NotImplementedError

    def clock(self) -> float:
        return self.now

    def total_gradients(self) -> int:
        return 0

    def counted(self) -> None:
        """Nothing to do."""

    def record(self, event: str, **fields: Any) -> None:
        """Nobody reads it."""


class Serving:
    """A worker that trains and is asked for averages."""

    def __init__(self) -> None:
        self.host = Host()
        made = learner(Line())
        settings = Settings(algorithm="ad-psgd", rounds=1)
        self.runtime = Runtime("b", 1, made, torch.zeros(made.model.layout.d), settings, self.host)
        self.runtime.retire  # noqa: B018
        for peer in "acd":
            self.runtime.up(peer)

    def hears(self, peer: str, kind: Kind, at_s: float) -> list[tuple[str, Kind]]:
        """What it answers."""
        self.host.now = at_s
        self.host.sent.clear()
        self.runtime.received(peer, Message(kind, seq=1, initiator=1))
        return list(self.host.sent)
