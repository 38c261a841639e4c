"""A task with a million weights and next to no work: what it costs to train is what it costs to send."""

import torch
from torch import Tensor, nn

from shoal.data.task import Data, Place, Task

WIDTH = 1000


class Wide(Task):
    """One linear layer without a bias, d = 1,000,000, that learns to give back what it is given."""

    def model(self) -> nn.Module:
        return nn.Linear(WIDTH, WIDTH, bias=False)

    def data(self, place: Place) -> Data:
        inputs = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(place.shard))
        return Data(inputs, inputs, inputs[:4], inputs[:4])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    def right(self, output: Tensor, target: Tensor) -> None:
        return None
