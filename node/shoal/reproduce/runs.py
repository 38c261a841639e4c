"""What a claim is made of: runs in virtual time, as plain values that travel to another process and back."""

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shoal.errors import Diverged
from shoal.settings import Settings
from shoal.simulation import Point, Result, Scenario, evaluator, population, simulate
from shoal_coordinator import beside

DIGITS = {"task": "digits", "batch": 16}
"""1,797 handwritten digits of 8 x 8 pixels, a perceptron with one hidden layer."""
TINY = {"task": "quadratic", "partition": "iid", "batch": 4, "lr": 0.01}
"""Twenty numbers to learn: for claims about speed, which no learning changes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and what surrounds it."""

    workers: int
    settings: Mapping[str, Any]
    scenario: Scenario = dataclasses.field(default_factory=Scenario)
    points: int = 1  # of its curve, after the start
    judged: bool = True  # False: only its speed is of interest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one training gave. One that diverged has an infinite loss and nothing else."""

    seed: int
    loss: float = math.inf  # of the mean model on all training data
    accuracy: float = 0.0  # of the mean model on all held-out data
    gradients: int = 0
    seconds: float = 0.0  # virtual
    rate: float = 0.0  # gradients a virtual second, of all workers
    sent_bytes: int = 0  # of vectors, by everybody
    own_losses: Sequence[float] = ()  # of the mean model on each worker's training data
    curve: Sequence[Point] = ()
    real_s: float = 0.0

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return not math.isfinite(self.loss)


def execute(run: Run) -> Outcome:
    """Train, in this process and on one thread. The same run gives the same figures."""
    torch.set_num_threads(1)
    began = time.monotonic()
    settings = Settings(**run.settings)
    learners, states = population(settings, run.workers)
    options: dict[str, Any] = {"coordinator": beside(settings)} if settings.over == "coordinator" else {}
    if run.judged:
        options |= {"evaluate": evaluator(learners), "evaluate_every": _every(run, settings)}
    try:
        result = simulate(settings, run.scenario, learners, states, **options)
    except Diverged:
        return Outcome(seed=settings.seed, real_s=time.monotonic() - began)
    outcome = Outcome(
        seed=settings.seed,
        gradients=result.gradients,
        seconds=result.seconds,
        rate=rate(result),
        sent_bytes=sum(result.sent_bytes.values()),
        curve=result.curve,
        real_s=time.monotonic() - began,
    )
    if not run.judged:
        return outcome
    last = result.curve[-1]
    own = [learner.evaluate(result.mean, held_out=False).loss for learner in learners]
    loss = last.loss if math.isfinite(last.loss) else math.inf
    return dataclasses.replace(outcome, loss=loss, accuracy=last.accuracy or 0.0, own_losses=own)


def _every(run: Run, settings: Settings) -> int:
    """Gradients between points; whole rounds where there are rounds."""
    every = max(1, settings.total_gradients(run.workers) // run.points)
    return max(run.workers, every // run.workers * run.workers) if settings.synchronous else every


def rate(result: Result) -> float:
    """Gradients a second until half of the workers have seen the end: they do not wait for a slow one's last."""
    return result.gradients / statistics.median(t for t in result.finished_s if t == t)


def mean(outcomes: Sequence[Outcome], figure: str) -> float:
    """Of one figure over the seeds."""
    return statistics.fmean(getattr(o, figure) for o in outcomes)


def curve(outcomes: Sequence[Outcome], figure: str) -> list[float]:
    """Of one figure of the points, the mean over the seeds; as far as the shortest goes."""
    points = zip(*([getattr(p, figure) for p in o.curve] for o in outcomes), strict=False)
    return [statistics.fmean(values) for values in points]


def row(outcomes: Sequence[Outcome], **names: Any) -> dict[str, Any]:
    """A line of a claim's table: means over the seeds, with each seed's loss and accuracy."""
    return {
        **names,
        "train loss": mean(outcomes, "loss"),
        "accuracy": mean(outcomes, "accuracy"),
        "MB sent": mean(outcomes, "sent_bytes") / 1e6,
        "virtual s": mean(outcomes, "seconds"),
        "of each seed": [{"seed": o.seed, "loss": o.loss, "accuracy": o.accuracy} for o in outcomes],
    }
