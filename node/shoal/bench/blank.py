"""A task of any size with nothing to learn: what an exchange costs does not depend on what is in the vector."""

import torch
from torch import Tensor, nn

from shoal.data.task import Data, Place, Task


class Weights(nn.Module):
    """(n,) parameters, of which the loss uses the first."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(n))

    def forward(self, a: Tensor) -> Tensor:
        return self.x[:1] - a


class Blank(Task):
    """`size` parameters."""

    name = "blank"
    size = 1000
    classes = ("only",)

    def model(self) -> nn.Module:
        """One vector."""
        return Weights(self.size)

    def data(self, place: Place) -> Data:
        """Two rows a node, of zeros."""
        return place.split(torch.zeros(4 * place.shards, 1), torch.zeros(4 * place.shards, dtype=torch.long))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Half the mean square."""
        return output.square().mean() / 2


def task_file(size: int) -> str:
    """A task file for nodes, with so many parameters."""
    return f"from shoal.bench import blank\n\n\nclass Blank(blank.Blank):\n    size = {size}\n"
