"""What a simulated run gives."""

import dataclasses

from torch import Tensor

from shoal.messages import PeerId
from shoal.runtime import Runtime


@dataclasses.dataclass
class Point:
    """The mean model at one moment of a run."""

    t: float
    gradients: int
    loss: float
    accuracy: float | None
    spread: float  # root mean square distance of the workers' models from their mean
    sent_bytes: int = 0  # by all workers until then


@dataclasses.dataclass
class Result:
    """What a simulated run gives."""

    digest: str  # sha256 of the trace and of the final models
    seconds: float  # virtual
    gradients: int
    mean: Tensor  # (d+b,)
    states: list[Tensor]
    curve: list[Point]
    runtimes: list[Runtime]
    finished_s: list[float]  # when each worker was done; nan if it died
    sent_bytes: dict[PeerId, int]  # vectors that each worker sent
