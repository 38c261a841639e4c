"""MNIST, Fashion-MNIST and CIFAR-10, as torchvision reads them."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from shoal.data.folder import Shape, read_folder
from shoal.data.task import Data, Place, Task
from shoal.data.vision import require_torchvision
from shoal.errors import DataError


class Images(Task):
    """A classifier of images with a data set of torchvision that brings its own test split."""

    dataset: ClassVar[str]
    """Its class in torchvision.datasets."""
    shape: ClassVar[Shape]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    """A channel, of the training pixels between 0 and 1: what inputs are normalised with."""

    def data(self, place: Place) -> Data:
        """Inputs (N, C, H, W) float32, normalised. Raises DataError when the data set is not there."""
        if place.partition == "folder":
            raw = place.own(*read_folder(place.data_dir, self.classes, self.shape))
        else:
            raw = place.divide(*self._read(place, train=True), *self._read(place, train=False))
        # Only this node's part becomes float32: the whole of CIFAR-10 would take 740 MB.
        return raw.with_inputs(self._normalised(raw.inputs), self._normalised(raw.held_out_inputs))

    def _read(self, place: Place, *, train: bool) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) uint8, (N,) int64."""
        require_torchvision()
        from torchvision import datasets

        try:
            # torchvision unpickles CIFAR-10, but nothing whose MD5 is not the published one.
            found = getattr(datasets, self.dataset)(place.data_dir, train=train, download=place.download)
        except (RuntimeError, OSError) as error:
            if place.download:
                raise DataError(f"{self.dataset} could not be downloaded to {place.data_dir}: {error}") from error
            raise DataError(
                f"{self.dataset} is not in {place.data_dir}; add --download, or give the folder that holds it"
                " with --data-dir"
            ) from error
        return self._channels_first(found.data), torch.as_tensor(found.targets, dtype=torch.int64)

    def _channels_first(self, pixels: Any) -> Tensor:
        images = torch.as_tensor(np.asarray(pixels))
        return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


class MNIST(Images):
    """70,000 handwritten digits, 28x28."""

    name = "mnist"
    classes = tuple("0123456789")
    dataset = "MNIST"
    shape = (1, 28, 28)
    mean, std = (0.1307,), (0.3081,)

    def model(self) -> nn.Module:
        """61,706 parameters, in the manner of LeNet-5 (LeCun et al. 1998), with ReLU and max-pooling."""
        return nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )


class FashionMNIST(MNIST):
    """70,000 pictures of clothes, 28x28; the model of MNIST."""

    name = "fashion-mnist"
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
    dataset = "FashionMNIST"
    mean, std = (0.2860,), (0.3530,)


class CIFAR10(Images):
    """60,000 photographs in ten classes, 32x32, without augmentation."""

    name = "cifar10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    dataset = "CIFAR10"
    shape = (3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def model(self) -> nn.Module:
        """ResNet-18 for small images: the first convolution is 3x3 with stride 1, and no pooling follows (He et al.
        2016, section 4.2, has this stem)."""
        require_torchvision()
        from torchvision.models import resnet18

        net: nn.Module = resnet18(num_classes=10)
        net.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
        return net
