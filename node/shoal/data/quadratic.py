"""A convex task whose optimum is known exactly, to see where an algorithm settles."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.data.task import Data, Place, Task

DIMENSIONS = 20
CLUSTERS = 10
POINTS = 1000
CENTRE_STD, POINT_STD = 3.0, 1.0


class Offset(nn.Module):
    """One parameter x, (DIMENSIONS,); gives x - a for every row a."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(DIMENSIONS))

    def forward(self, a: Tensor) -> Tensor:
        return self.x - a


class Quadratic(Task):
    """f_i(x) = mean of ||x - a||^2 / 2 over the points a of node i. They lie in clusters, which a partition takes for
    labels."""

    name = "quadratic"
    classes = tuple(f"cluster-{k}" for k in range(CLUSTERS))

    def model(self) -> nn.Module:
        """20 parameters."""
        return Offset()

    def data(self, place: Place) -> Data:
        """Inputs (N, 20): the points, drawn from the run's seed. Targets: their clusters."""
        rng = np.random.RandomState([place.seed & 0xFFFFFFFF, place.seed >> 32])
        centres = rng.normal(scale=CENTRE_STD, size=(CLUSTERS, DIMENSIONS))
        cluster = np.arange(POINTS) % CLUSTERS
        points = centres[cluster] + rng.normal(scale=POINT_STD, size=(POINTS, DIMENSIONS))
        return place.split(torch.from_numpy(points).float(), torch.from_numpy(cluster).long())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Half the mean squared distance; clusters play no part."""
        return output.square().sum(1).mean() / 2

    def right(self, output: Any, target: Tensor) -> int | None:
        """There is nothing to be right about."""
        return None


def optimum(shares: Sequence[Data]) -> Tensor:
    """(20,) float64, where the mean of the nodes' f_i is least: the mean over nodes of the mean of their points."""
    return torch.stack([share.inputs.double().mean(0) for share in shares]).mean(0)
