"""Short runs in virtual time that the claims are tested on."""

from typing import Any

from shoal.settings import Settings
from shoal.simulation import Result, Scenario, evaluator, population, simulate


def train(workers: int, scenario: Scenario | None = None, **settings: Any) -> Result:
    """A run over real parts of a task; the curve's last point is the mean model on all training data."""
    chosen = Settings(**{"task": "digits", "partition": "labels:2", "batch": 16, **settings})
    learners, states = population(chosen, workers)
    return simulate(chosen, scenario or Scenario(), learners, states, evaluate=evaluator(learners))


def pooled(workers: int, **settings: Any) -> Result:
    """SGD on all the data: one worker, and as many samples a step as `workers` would use together."""
    one = {**settings, "algorithm": "d-psgd", "partition": "iid", "batch": 16 * workers, "topology": "complete"}
    return train(1, **one)


def final_loss(result: Result) -> float:
    """Train loss of the mean model at the end."""
    return result.curve[-1].loss


def final_accuracy(result: Result) -> float:
    """Held-out accuracy of the mean model at the end."""
    accuracy = result.curve[-1].accuracy
    assert accuracy is not None
    return accuracy


def quadratic(workers: int, scenario: Scenario | None = None, **settings: Any) -> Result:
    """On the task whose optimum is known exactly."""
    return train(workers, scenario, **{"task": "quadratic", "partition": "iid", "batch": 4, **settings})
