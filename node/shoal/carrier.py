"""Between a worker and what carries it, a trainer process or the simulator: what each is told by the other."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from shoal.messages import Message, PeerId

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class View:
    """The members of a run, sorted by id, and where it starts."""

    id: str
    members: tuple[PeerId, ...]
    samples: tuple[int, ...]  # training samples, member for member
    round: int = 0
    same_round: bool = True
    parent: str = ""  # id of the view before; none: it is the first
    cut: tuple[tuple[PeerId, PeerId], ...] = ()  # members that do not reach each other, the lower id first
    most: int = 0  # members of the largest view of the run, if that was larger


class Host(Protocol):
    """What carries a worker: a trainer process, or the simulator."""

    def send(self, peer: PeerId, message: Message) -> None:
        """Hand over in order; lost if the connection breaks."""

    def room(self, elements: int, dtype: torch.dtype) -> Tensor | None:
        """Memory on the CPU for a vector, from where `send` need not copy it; None where there is none to spare.
        It is free again when nobody holds or reads it."""

    def is_read(self, memory: Tensor) -> bool:
        """Whether what lies there, and was sent, is still to be read by somebody who does not hold it."""

    def compute(self, work: Callable[[], T], cost: float = 1.0) -> Awaitable[T]:
        """Run `work` beside the loop (a thread, or some virtual seconds); `cost`: minibatch gradients it is worth."""

    def computes(self) -> bool:
        """Whether something that `compute` was given is not done yet, and uses the model."""

    def clock(self) -> float:
        """Seconds, monotonic."""

    def total_gradients(self) -> int:
        """Gradients applied by all members, as far as known here."""

    def gradients_of(self, member: PeerId) -> int:
        """Gradients applied by one member, as far as known here."""

    def counted(self) -> None:
        """A gradient was applied: the moment at which all of the worker's state fits together."""

    def record(self, event: str, **fields: Any) -> None:
        """One line of history."""

    def warn(self, text: str) -> None:
        """A line for the operator."""
