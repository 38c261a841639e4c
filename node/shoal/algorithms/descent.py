"""What a local step is made of: heavy-ball momentum and the schedule of the step size."""

import itertools
import math
from collections.abc import Callable

from torch import Tensor

from shoal.algorithms.worker import Worker
from shoal.errors import SettingsError

Schedule = Callable[[float], float]
"""Part of the run that is done, 0 to 1 -> factor on the step size, 0 to 1."""


def direction(me: Worker, g: Tensor) -> Tensor:
    """(d,): momentum m + g; g itself without momentum. m stays as it is until `keep_direction`."""
    if me.momentum == 0:
        return g
    return me.keep("momentum").mul(me.momentum).add_(g)


def keep_direction(me: Worker, u: Tensor) -> None:
    """m <- u. To be called after the last await of a step: a node that stops while it waits for others draws the
    step's gradient again when it resumes, and would count it twice."""
    if me.momentum:
        me.keep("momentum").copy_(u)


def schedule(spec: str, warmup: float = 0.0) -> Schedule:
    """The factor on the step size: constant, linear (to 0), cosine (to 0), step:FACTOR@P1,P2; after a linear warm-up.

    Raises SettingsError for another word, a FACTOR outside (0, 1], or parts that do not rise between 0 and 1.
    """
    shape = _shape(spec)

    def factor(done: float) -> float:
        done = min(max(done, 0.0), 1.0)
        return done / warmup if done < warmup else shape(done)

    return factor


def _shape(spec: str) -> Schedule:
    kind, _, rest = spec.partition(":")
    if spec == "constant":
        return lambda done: 1.0
    if spec == "linear":
        return lambda done: 1.0 - done
    if spec == "cosine":
        return lambda done: 0.5 * (1.0 + math.cos(math.pi * done))
    if kind == "step":
        try:
            factor_text, _, parts_text = rest.partition("@")
            drop, parts = float(factor_text), [float(p) for p in parts_text.split(",")]
        except ValueError:
            raise SettingsError(f"schedule {spec!r}: expected step:FACTOR@P1,P2, such as step:0.1@0.5,0.75") from None
        if not 0 < drop <= 1 or parts != sorted(parts) or not all(0 < p < 1 for p in parts):
            raise SettingsError(f"schedule {spec!r}: FACTOR must lie in (0, 1], the parts must rise between 0 and 1")
        return lambda done: drop ** sum(done >= p for p in parts)
    raise SettingsError(f"unknown schedule {spec!r}; known: constant, linear, cosine, step:FACTOR@P1,P2")


def largest_growth(factor: Schedule, rounds: int) -> float:
    """The largest ratio of two step sizes that follow each other, at least 1: D2 with a W that is not lazy needs its
    smallest eigenvalue above -1/(1 + 2 growth). Steps from 0 do not count: the correction rests there."""
    values = [factor(t / rounds) for t in range(rounds)]
    floor = 1e-3 * max(values, default=0.0)
    return max(1.0, *(b / a for a, b in itertools.pairwise(values) if a > floor), 1.0)
