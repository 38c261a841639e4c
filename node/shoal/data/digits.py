"""1,797 handwritten digits, 8x8 pixels of 17 greys: real data that needs no download."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal.data.folder import read_folder
from shoal.data.task import Data, Place, Task
from shoal.errors import DataError


class Digits(Task):
    """The test set of Alpaydin and Kaynak's optical digits (UCI, 1998), as scikit-learn ships it."""

    name = "digits"
    classes = tuple("0123456789")

    def model(self) -> nn.Module:
        """9,610 parameters."""
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def data(self, place: Place) -> Data:
        """Inputs (N, 64) between 0 and 1: 1,437 samples to divide, 360 held out."""
        if place.partition == "folder":
            images, labels = read_folder(place.data_dir, self.classes, (1, 8, 8))
            return place.own(images.reshape(-1, 64).float() / 255, labels)
        return place.split(*_digits())


@functools.cache  # the simulator's thousand workers read it once
def _digits() -> tuple[Tensor, Tensor]:
    table = _table()
    return torch.from_numpy(table[:, :64]).float() / 16, torch.from_numpy(table[:, 64]).long()


def _table() -> NDArray[np.int64]:
    """(1797, 65): 64 pixels, 0 to 16, and the label. Importing scikit-learn takes a second, its file 10 ms."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.int64)
