"""A task whose gradient is a known vector, another one on each node: the models stay apart, and the sum is known.

Each step adds lr * v(shard) to the node's model, so sum_i x_i = sum_i x0_i + sum_i steps_i lr v_i if every gradient and
every average has been applied exactly once.
"""

import torch
from torch import Tensor, nn

from shoal.data.task import Data, Place, Task

D = 257


def direction(shard: int, d: int = D) -> Tensor:
    """(d,): the drift v of that shard, in 64ths: with a step size that is a power of two, a step is far coarser than
    float32's grid. A finer one would be rounded the same way at every step, and that would add up."""
    return (torch.randn(d, generator=torch.Generator().manual_seed(1000 + shard)) * 64).round() / 64


class Point(nn.Module):
    """One vector; whatever goes in, it comes out."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(d))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.x.expand(len(inputs), -1)


class Drift(Task):
    """Loss -<v, x>: the gradient is -v wherever x is."""

    d = D

    def model(self) -> nn.Module:
        return Point(self.d)

    def data(self, place: Place) -> Data:
        inputs, targets = torch.zeros(1, 1), direction(place.shard, self.d)[None]
        return Data(inputs, targets, inputs, targets)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -(output * target).sum(1).mean()

    def right(self, output: Tensor, target: Tensor) -> None:
        return None
