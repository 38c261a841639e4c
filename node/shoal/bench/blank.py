"""Tasks of any size with nothing to learn: what steps and exchanges cost does not depend on what is in the vector."""

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


class Layers(Task):
    """A perceptron: `depth` layers of `width` x `width`, about `depth` * `width`**2 parameters."""

    name = "layers"
    width, depth = 8, 3

    def model(self) -> nn.Module:
        """With ReLU between the layers."""
        layers: list[nn.Module] = []
        for _ in range(self.depth):
            layers += [nn.Linear(self.width, self.width), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def data(self, place: Place) -> Data:
        """32 rows a node of noise, to be made into other noise."""
        draw = torch.Generator().manual_seed(place.shard)
        inputs, targets = torch.randn(2, 32, self.width, generator=draw)
        return Data(inputs, targets, inputs[:2], targets[:2])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean square of the difference."""
        return (output - target).square().mean()

    def right(self, output: Tensor, target: Tensor) -> None:
        """Means nothing here."""


def task_file(size: int) -> str:
    """A task file with `Blank` of so many parameters, for nodes."""
    return f"from shoal.bench import blank\n\n\nclass Blank(blank.Blank):\n    size = {size}\n"


def layers_file(width: int, depth: int = 3) -> str:
    """A task file whose `Blank` is `Layers` of that size."""
    sizes = f"    width, depth = {width}, {depth}\n"
    return f"from shoal.bench import blank\n\n\nclass Blank(blank.Layers):\n{sizes}"
