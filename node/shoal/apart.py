"""How far a worker's model is from its neighbours', measured now and then where both lie side by side. Pure."""

import dataclasses
import math
from collections.abc import Callable

MEASURE_EVERY = 16
"""Averages: a distance reads both models once, which an average does several times."""


@dataclasses.dataclass(slots=True)
class Apart:
    """The last measurement, None before the first. Both are Euclid's, of models as they are sent."""

    distance: float | None = None  # to a neighbour's model
    norm: float | None = None  # of this worker's own
    chances: int = 0

    def look(self, distance: Callable[[], float], norm: Callable[[], float]) -> None:
        """Measures at the first chance, and at every 16th after it."""
        if self.chances % MEASURE_EVERY == 0:
            self.distance, self.norm = _finite(distance()), _finite(norm())
        self.chances += 1


def _finite(length: float) -> float | None:
    return length if math.isfinite(length) else None
