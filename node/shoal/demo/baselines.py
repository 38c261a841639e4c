"""What the nodes are compared with, computed in this process on the same parts, seeds and budget of samples."""

import dataclasses

from torch import Tensor

from shoal.learner import Counts, Learner
from shoal.settings import Settings
from shoal.simulation import Point, Scenario, population, simulate


@dataclasses.dataclass
class Row:
    """One line of the table and one curve of the picture."""

    name: str
    accuracy: float
    loss: float  # on held-out data
    curve: list[Point]  # with samples in the place of gradients
    samples: int
    train_loss: float | None = None  # of the mean model, on all the data it was trained on
    seconds: float | None = None
    megabytes: float | None = None


def pooled_sgd(settings: Settings, nodes: int) -> Row:
    """SGD on all the data in one place: one worker, batch n times as large."""
    pooled = dataclasses.replace(
        settings, algorithm="d-psgd", batch=settings.batch * nodes, partition="iid", topology="complete"
    )
    learners, states = population(pooled, 1)
    return _run("SGD on all the data", pooled, learners, states, learners)


def d_psgd(settings: Settings, nodes: int) -> Row:
    """D-PSGD over the same graph."""
    chosen = dataclasses.replace(settings, algorithm="d-psgd")
    learners, states = population(chosen, nodes)
    return _run(f"D-PSGD, {nodes} workers", chosen, learners, states, learners)


def each_alone(settings: Settings, nodes: int) -> list[Row]:
    """Every node on its own part only, judged on everybody's held-out data."""
    alone = dataclasses.replace(settings, algorithm="d-psgd", topology="complete")
    everyone, states = population(alone, nodes)
    return [_run(f"node {k + 1} alone", alone, [everyone[k]], [states[k]], everyone) for k in range(nodes)]


def _run(name: str, settings: Settings, learners: list[Learner], states: list[Tensor], judges: list[Learner]) -> Row:
    def held_out(state: Tensor) -> tuple[float, float | None]:
        counts = sum((judge.evaluate(state) for judge in judges), start=Counts.nothing())
        return counts.loss, counts.accuracy

    every = max(1, settings.total_gradients(len(learners)) // 40)
    result = simulate(settings, Scenario(), learners, states, evaluate=held_out, evaluate_every=every)
    curve = [dataclasses.replace(point, gradients=point.gradients * settings.batch) for point in result.curve]
    train = Learner.of_all(learners).evaluate(result.mean, held_out=False).loss
    return Row(name, curve[-1].accuracy or 0.0, curve[-1].loss, curve, curve[-1].gradients, train)
