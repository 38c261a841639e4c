"""Leading eigenvectors by shift-and-invert: a finite sum whose terms are not convex, though their mean is.

With A = (1/n) sum_i a_i a_i^T and a shift s above its largest eigenvalue, one step of inverse power iteration from u
solves (s I - A) x = u, which is the minimum of the mean of

    f_i(x) = (1/2) x^T (s I - a_i a_i^T) x - u^T x.

Every f_i with |a_i|^2 > s is non-convex; the mean is (s - lambda_1)-strongly convex (1802.03866, introduction, names
PCA as the use; the reduction is that of shift-and-invert preconditioning).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from shoal.data.task import Data, Place, Task


class Form(nn.Module):
    """One parameter x, (d,), at `start`; gives f_i(x) for every row a_i."""

    def __init__(self, shift: float, u: Tensor, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start.float())
        self.shift = shift
        self.register_buffer("u", u, persistent=False)
        self.u: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        flat = (self.shift * self.x.square().sum()) / 2 - self.u @ self.x
        return flat - (rows @ self.x).square() / 2


class ShiftAndInvert(Task):
    """One linear system of the iteration, over rows that are given; node k of m holds the k-th of m equal blocks."""

    name = "shift-and-invert"
    classes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, rows: Tensor, shift: float, u: Tensor, start: Tensor | None = None) -> None:
        """rows: (n, d); u: (d,); start: where x begins, (d,), 0 if not given."""
        self.rows, self.shift, self.u = rows, shift, u
        self.start = torch.zeros_like(u) if start is None else start

    def model(self) -> nn.Module:
        """d parameters."""
        return Form(self.shift, self.u, self.start)

    def data(self, place: Place) -> Data:
        """All rows are trained on; none is held out."""
        mine = torch.tensor_split(self.rows, place.shards)[place.shard]
        return self.of(mine)

    @staticmethod
    def of(rows: Tensor) -> Data:
        """A node's data: these rows."""
        none = torch.zeros(0)
        return Data(rows, torch.zeros(len(rows)), rows[:0], none)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean of f_i."""
        return output.mean()

    def right(self, output: Tensor, target: Tensor) -> int | None:
        """There is nothing to be right about."""
        return None


def synthetic(seed: int, delta: float, n: int = 1000, d: int = 50) -> tuple[Tensor, float, Tensor]:
    """(rows (n, d), shift, u (d,)), float64: A has eigenvalues 1, .98 and smaller ones, the shift is 1 + delta."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=draw, dtype=torch.float64)
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    values = torch.cat((torch.tensor([1.0, 0.98]), torch.linspace(0.65, 0.01, d - 2))).double()
    rows = left * (n * values).sqrt() @ right
    u = torch.randn(d, generator=draw, dtype=torch.float64)
    return rows, 1.0 + delta, u / u.norm()


def solution(rows: Tensor, shift: float, u: Tensor) -> Tensor:
    """(d,) float64: the exact minimum, by a direct solver."""
    a = rows.T @ rows / len(rows)
    exact: Tensor = torch.linalg.solve(shift * torch.eye(len(u), dtype=rows.dtype) - a, u)
    return exact
