"""A task of one's own: shoal node --task examples/my_task.py:Tumours --partition iid --shard 0/5"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from shoal import Data, Place, Task


class Tumours(Task):
    """Benign or malignant, from 30 measurements of cell nuclei (Wisconsin, 569 samples)."""

    classes = ("malignant", "benign")

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))

    def data(self, place: Place) -> Data:
        measured, label = load_breast_cancer(return_X_y=True)
        logs = torch.tensor(measured).float().log1p()
        inputs = logs / logs.amax(0)  # one scale for all nodes, or they would train different functions
        # Here every node has all samples and keeps its part. For samples that only this machine has,
        # `return place.own(inputs, targets)`.
        return place.split(inputs, torch.tensor(label))
