"""Small tasks and data for the tests of learners."""

from typing import Any

import torch
from torch import Tensor, nn

from shoal.data.task import Data, Place, Task
from shoal.learner import Learner, initial_state
from shoal.vector import FlatModel

N, M = 600, 90  # samples to train on, more than two chunks of them, and samples held out


class Small(Task):
    """Four inputs, three classes."""

    classes = ("a", "b", "c")

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def data(self, place: Place) -> Data:
        return samples()


class Normed(Small):
    """With BatchNorm: ten floats are carried."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


class Dropping(Small):
    """With dropout."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3))


class Line(Task):
    """A regression: no labels, no accuracy."""

    def model(self) -> nn.Module:
        return nn.Linear(4, 1)

    def data(self, place: Place) -> Data:
        return samples()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.squeeze(1) - target).square().mean()


def samples(n: int = N, m: int = M) -> Data:
    """The same n + m samples each time."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n + m, 4, generator=draw)
    y = torch.randint(3, (n + m,), generator=draw)
    return Data(x[:n], y[:n], x[n:], y[n:])


def learner(task: Task, data: Data | None = None, model: FlatModel | None = None, **options: Any) -> Learner:
    """A learner of batch 16, on `samples()` unless other data is given."""
    options = {"batch": 16, "seed": 0, "shard": 0, **options}
    return Learner(task, data or samples(), model or initial_state(task, 0)[0], **options)
