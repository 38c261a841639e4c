"""AD-PSGD keeps its pace: one finished average to a gradient, no livelock, and a slow worker slows nobody else."""

import functools

import pytest

from shoal.settings import Settings
from shoal.simulation import Result, Scenario, population, simulate

STEP_S = 0.01


@functools.cache
def paced(
    algorithm: str, workers: int, topology: str, exchange_in_steps: float, slow: float = 1.0, rounds: int = 100
) -> Result:
    """Equal speeds to the last digit, so that offers collide as often as they can. An average is two vectors long."""
    settings = Settings(
        algorithm=algorithm, topology=topology, rounds=rounds, task="quadratic", partition="iid", lr=0.01, batch=1
    )
    scenario = Scenario(
        compute_s=STEP_S, vector_s=exchange_in_steps * STEP_S / 2, latency_s=1e-6, slow=((0, slow),) if slow > 1 else ()
    )
    return simulate(settings, scenario, *population(settings, workers))


@pytest.mark.parametrize("exchange_in_steps", [0.5, 2.0])
@pytest.mark.parametrize(("workers", "topology"), [(2, "complete"), (5, "complete"), (8, "ring"), (8, "star")])
def test_equal_speeds_finish_an_average_a_gradient(workers: int, topology: str, exchange_in_steps: float) -> None:
    result = paced("ad-psgd", workers, topology, exchange_in_steps)
    for runtime in result.runtimes:
        tally = runtime.settlement.tally
        assert (tally.active + tally.passive) / runtime.gradients >= 1.0


def throughput(result: Result) -> float:
    return result.gradients / result.seconds


def test_a_worker_ten_times_slower_costs_the_others_nothing() -> None:
    """1710.06952, the table on a slow worker (its numbers are unverified here): the others go on at their own pace."""
    even, uneven = (paced("ad-psgd", 8, "complete", 0.5, slow=s, rounds=300) for s in (1.0, 10.0))
    without_the_lost_worker = (7 + 1 / 10) / 8
    assert throughput(uneven) / throughput(even) >= 0.9 * without_the_lost_worker


def test_a_worker_ten_times_slower_slows_a_synchronous_run_tenfold() -> None:
    even, uneven = (paced("d-psgd", 8, "ring", 0.5, slow=s) for s in (1.0, 10.0))
    assert throughput(even) / throughput(uneven) == pytest.approx(10, rel=0.1)
