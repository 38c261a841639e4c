"""A convex task with real data: softmax regression on digits."""

from torch import Tensor, nn

from shoal.data.digits import Digits
from shoal.data.task import Data, Place


class Softmax(Digits):
    """One linear layer."""

    def model(self) -> nn.Module:
        return nn.Linear(64, 10)

    def data(self, place: Place) -> Data:
        data = super().data(place)
        return data.with_inputs(flat(data.inputs), flat(data.held_out_inputs))


def flat(images: Tensor) -> Tensor:
    return images.reshape(len(images), -1)
