"""What an average adds to a model: half of the difference to another, which need not be made first, or less. Pure."""

import abc
import dataclasses
from typing import Self

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
    def length(self, dtype: torch.dtype | None = None) -> float:
        """Euclid's; with no room for a difference as large as the model. `dtype`: that in which squares are summed,
        None for the vector's own, which is faster."""

    @abc.abstractmethod
    def shortened(self, by: float) -> Self:
        """The same times `by`, 0 to 1."""

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

    def length(self, dtype: torch.dtype | None = None) -> float:
        """Of all that there is."""
        return abs(self.part) * float(torch.linalg.vector_norm(self.vector, dtype=dtype))

    def shortened(self, by: float) -> "Made":
        """Less of the vector."""
        return dataclasses.replace(self, part=self.part * by)

    def tensor(self) -> Tensor:
        """A copy."""
        return self.vector * self.part


@dataclasses.dataclass(frozen=True, slots=True)
class Between(Delta):
    """`part` of the way from one model to another, both (n,): half of it, unless it was shortened."""

    mine: Tensor
    theirs: Tensor
    part: float = 0.5

    @property
    def is_half(self) -> bool:
        """Whether it was not shortened."""
        return self.part == 0.5

    def add_to(self, x: Tensor) -> None:
        """Piece by piece, with no room for a difference as large as the model."""
        gap = x.new_empty(min(PIECE, x.numel()))
        for start in range(0, x.numel(), PIECE):
            piece = x[start : start + PIECE]
            place = slice(start, start + piece.numel())
            difference = torch.sub(self.theirs[place], self.mine[place], out=gap[: piece.numel()])
            piece.add_(difference, alpha=self.part)

    def length(self, dtype: torch.dtype | None = None) -> float:
        """Piece by piece."""
        return self.part * distance(self.theirs, self.mine, dtype)

    def shortened(self, by: float) -> "Between":
        """Less of the way."""
        return dataclasses.replace(self, part=self.part * by)

    def tensor(self) -> Tensor:
        """That part of the difference."""
        return self.theirs.sub(self.mine).mul_(self.part)


def distance(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> float:
    """Euclid's, of two vectors, each (n,): piece by piece, with no room for their difference; within a piece summed in
    `dtype`, None for that of `a`."""
    squares = a.new_zeros((), dtype=torch.float64)
    for start in range(0, a.numel(), PIECE):
        place = slice(start, start + PIECE)
        squares += torch.linalg.vector_norm(a[place] - b[place], dtype=dtype).double() ** 2
    return float(squares.sqrt())
