"""What an average adds to a model: half of the difference to another, which need not be made first. Pure."""

import abc
import dataclasses

import torch
from torch import Tensor

PIECE = 1 << 17
"""Coordinates that are worked on in one go, while they lie in the cache."""


class Delta(abc.ABC):
    """(n,), of one end of an average; that of the other end is its negative, to the last bit."""

    @abc.abstractmethod
    def add_to(self, x: Tensor) -> None:
        """Adds its first coordinates to x, as many as x has."""

    @abc.abstractmethod
    def length(self) -> float:
        """Euclid's; with no room for a difference as large as the model."""

    @abc.abstractmethod
    def tensor(self) -> Tensor:
        """(n,), new: for whoever keeps it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Made(Delta):
    """`part` of a vector that is there: 1, or 1/2 of a difference."""

    vector: Tensor
    part: float = 1.0

    def add_to(self, x: Tensor) -> None:
        """In one pass."""
        x.add_(self.vector[: x.numel()], alpha=self.part)

    def length(self) -> float:
        """Of all that there is."""
        return abs(self.part) * float(torch.linalg.vector_norm(self.vector))

    def tensor(self) -> Tensor:
        """A copy."""
        return self.vector * self.part


@dataclasses.dataclass(frozen=True, slots=True)
class Between(Delta):
    """Half the way from one model to another, both (n,)."""

    mine: Tensor
    theirs: Tensor

    def add_to(self, x: Tensor) -> None:
        """Piece by piece, with no room for a difference as large as the model."""
        gap = x.new_empty(min(PIECE, x.numel()))
        for start in range(0, x.numel(), PIECE):
            piece = x[start : start + PIECE]
            place = slice(start, start + piece.numel())
            part = torch.sub(self.theirs[place], self.mine[place], out=gap[: piece.numel()])
            piece.add_(part, alpha=0.5)

    def length(self) -> float:
        """Piece by piece."""
        return 0.5 * distance(self.theirs, self.mine)

    def tensor(self) -> Tensor:
        """The difference, halved."""
        return self.theirs.sub(self.mine).mul_(0.5)


def distance(a: Tensor, b: Tensor) -> float:
    """Euclid's, of two vectors, each (n,): piece by piece, with no room for their difference."""
    squares = a.new_zeros((), dtype=torch.float64)
    for start in range(0, a.numel(), PIECE):
        place = slice(start, start + PIECE)
        squares += torch.linalg.vector_norm(a[place] - b[place]).double() ** 2
    return float(squares.sqrt())
