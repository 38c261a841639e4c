"""What carries one worker in virtual time."""

import asyncio
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from shoal.errors import Diverged
from shoal.messages import Message, PeerId

if TYPE_CHECKING:
    from shoal.simulation.world import World

T = TypeVar("T")


class SimHost:
    """What carries one worker: `carrier.Host` in virtual time."""

    def __init__(self, world: "World", index: int, me: PeerId) -> None:
        self.world, self.index, self.me = world, index, me
        self.rng = random.Random(f"{world.settings.seed}/host/{index}")
        slow = dict(world.scenario.slow)
        self.compute_s = world.scenario.compute_s * slow.get(index, 1.0)

    def send(self, peer: PeerId, message: Message) -> None:
        self.world.carry(self.me, peer, message)

    def room(self, elements: int, dtype: torch.dtype) -> Tensor | None:
        return None

    def is_read(self, memory: Tensor) -> bool:
        return False

    async def compute(self, work: Callable[[], T], cost: float = 1.0) -> T:
        result = work()
        jitter = self.world.scenario.jitter
        await asyncio.sleep(cost * self.compute_s * (1 + self.rng.uniform(-jitter, jitter) if jitter else 1))
        return result

    def computes(self) -> bool:
        return False  # all of the work is done at once, and only its time passes

    def clock(self) -> float:
        return self.world.now()

    def total_gradients(self) -> int:
        return self.world.gradients  # an ideal heartbeat: everybody knows at once

    def gradients_of(self, member: PeerId) -> int:
        return self.world.gradients_of(member)

    def counted(self) -> None:
        loss = self.world.runtimes[self.index].computed.last_loss
        if loss is not None and not math.isfinite(loss):
            raise Diverged(f"the loss of {self.me} is {loss}: the model has diverged; try a smaller --lr")
        self.world.on_count(self.index)

    def record(self, event: str, **fields: Any) -> None:
        self.world.on_record(self.me, event, fields)

    def warn(self, text: str) -> None:
        self.world.on_record(self.me, "warning", {"text": text})
