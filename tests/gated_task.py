"""A task whose gradients wait at a gate, so that a test can act upon nodes at a known place of their run."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from shoal.data.quadratic import Quadratic
from shoal.data.task import Data, Place

FAR = 100.0
"""How far from all data the first model lies, in each direction: its loss is about a thousand times the best."""


class Gated(Quadratic):
    """`quadratic` that begins far away. While there is a file `gate` in --data-dir with a number in it, a gradient
    after that many is not finished. While there is a file `closed`, there are no data yet."""

    name = "gated"

    def __init__(self) -> None:
        self._gate = Path()
        self._gradients = 0

    def model(self) -> nn.Module:
        module = super().model()
        with torch.no_grad():
            module.get_parameter("x").add_(FAR)
        return module

    def data(self, place: Place) -> Data:
        self._gate = place.data_dir / "gate"
        while (place.data_dir / "closed").exists():
            time.sleep(0.01)
        return super().data(place)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._gradients += 1
            while self._is_held():
                time.sleep(0.01)
        return super().loss(output, target)

    def _is_held(self) -> bool:
        try:
            return self._gradients > int(self._gate.read_text())
        except FileNotFoundError:
            return False
