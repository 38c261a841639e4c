"""Where a step's time goes, in virtual time: a gradient takes STEP_S, a vector what is said, and arithmetic nothing."""

from typing import Any

import pytest

from shoal.settings import Settings
from shoal.simulation import Crash, Result, Scenario, population, simulate
from shoal_coordinator import Terms, beside

STEP_S, STEPS = 0.01, 50


def run(workers: int = 2, *, vector_s: float, slow: float = 1.0, **settings: Any) -> Result:
    """Equal workers but for the last, which is `slow` times slower."""
    common = {"task": "quadratic", "partition": "iid", "lr": 0.01, "batch": 1, "rounds": STEPS}
    chosen = Settings(**{**common, **settings})
    factor = ((workers - 1, slow),) if slow > 1 else ()
    scenario = Scenario(compute_s=STEP_S, vector_s=vector_s, latency_s=1e-6, slow=factor)
    coordinator = beside(chosen, Terms(None, 1.0)) if chosen.over == "coordinator" else None
    return simulate(chosen, scenario, *population(chosen, workers), coordinator=coordinator)


def a_step(result: Result, worker: int = 0) -> dict[str, float]:
    """The phases of a worker's mean step, in gradients."""
    runtime = result.runtimes[worker]
    assert runtime.stopwatch.steps == runtime.steps
    return {phase: seconds / runtime.steps / STEP_S for phase, seconds in runtime.seconds.items()}


ALL = ["ad-psgd", "d-psgd", "d2", "allreduce-sgd", "signum", "ef-signsgd", "a-psgd", "katyusha-x"]


@pytest.mark.parametrize("algorithm", ALL)
def test_compute_wait_and_apply_are_all_of_a_workers_time(algorithm: str) -> None:
    batch = {"batch": 64, "rounds": 3} if algorithm == "katyusha-x" else {}
    result = run(3, vector_s=0.007, slow=2.0, algorithm=algorithm, **batch)
    for runtime, finished_s in zip(result.runtimes, result.finished_s, strict=True):
        spent = runtime.seconds
        assert spent["compute"] + spent["wait"] + spent["apply"] == pytest.approx(finished_s)
        assert spent["apply"] == 0, "arithmetic takes no virtual time"


@pytest.mark.parametrize(("codec", "exchange"), [("f32", 0.5), ("f32", 2.0), ("f32", 5.0)])
def test_a_mix_that_stands_alone_is_waited_for_from_its_beginning(codec: str, exchange: float) -> None:
    """d2 has nothing to compute while its models travel."""
    step = a_step(run(vector_s=exchange * STEP_S, algorithm="d2", codec=codec))
    assert step["compute"] == pytest.approx(1.0)
    assert step["wait"] == pytest.approx(exchange, rel=0.01)
    assert step["exchange"] == pytest.approx(exchange, rel=0.01)


@pytest.mark.parametrize(("exchange", "wait"), [(0.5, 0.0), (0.99, 0.0), (2.0, 1.0), (5.0, 4.0)])
def test_a_mix_beside_a_gradient_is_waited_for_as_far_as_it_takes_longer(exchange: float, wait: float) -> None:
    step = a_step(run(vector_s=exchange * STEP_S, algorithm="d-psgd"))
    assert step["compute"] == pytest.approx(1.0)
    assert step["wait"] == pytest.approx(wait, abs=0.01)
    assert step["exchange"] == pytest.approx(exchange, rel=0.01)


@pytest.mark.parametrize(("algorithm", "wait"), [("d-psgd", 2.0), ("d2", 3.0)])
def test_where_rounds_wait_for_a_link_averages_that_may_lag_do_not(algorithm: str, wait: float) -> None:
    """A link three times as slow as a gradient, once for rounds and once for averages that may be overtaken."""
    rounds = a_step(run(vector_s=3 * STEP_S, algorithm=algorithm))
    averages = a_step(run(vector_s=3 * STEP_S, algorithm="ad-psgd", overlap=12))
    assert rounds["wait"] == pytest.approx(wait, rel=0.02)
    assert averages["wait"] < 0.1
    assert averages["exchange"] > 0.2, "they went on beside the gradients"


def test_an_average_that_is_shorter_than_a_gradient_is_not_waited_for() -> None:
    step = a_step(run(vector_s=0.2 * STEP_S, algorithm="ad-psgd"))
    assert step["wait"] < 0.03, "but for the very last one"
    assert step["compute"] == pytest.approx(1.0)
    assert 0.2 <= step["exchange"] < 1.0


def test_without_overlap_ad_psgd_waits_for_an_average_that_is_longer_than_a_gradient() -> None:
    step = a_step(run(vector_s=3 * STEP_S, algorithm="ad-psgd"))
    assert step["wait"] >= 1.9


@pytest.mark.parametrize(("algorithm", "waits"), [("d-psgd", True), ("allreduce-sgd", True), ("ad-psgd", False)])
def test_who_is_fast_waits_for_the_slow_in_rounds_only(algorithm: str, waits: bool) -> None:
    result = run(3, vector_s=0.01 * STEP_S, slow=4.0, algorithm=algorithm)
    fast, slow = a_step(result, 0), a_step(result, 2)
    assert slow["compute"] == pytest.approx(4.0)
    assert slow["wait"] < 0.2
    assert (fast["wait"] > 2.8) is waits
    assert waits or fast["wait"] < 0.1


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "signum", "ef-signsgd", "a-psgd"])
def test_a_coordinators_answers_are_waited_for(algorithm: str) -> None:
    step = a_step(run(vector_s=STEP_S, algorithm=algorithm, over="coordinator"))
    assert step["compute"] == pytest.approx(1.0)
    assert step["wait"] > 0
    assert step["wait"] == pytest.approx(step["exchange"])


def test_of_a_worker_whose_neighbour_dies_in_an_average_no_second_is_lost() -> None:
    settings = Settings(algorithm="ad-psgd", task="quadratic", partition="iid", lr=0.01, batch=1, gradients=40)
    scenario = Scenario(compute_s=STEP_S, vector_s=0.1 * STEP_S, latency_s=1e-6, crashes=(Crash(0.1, 1),))
    result = simulate(settings, scenario, *population(settings, 2))
    left = result.runtimes[0]
    assert left.steps >= 30
    assert left.seconds["wait"] + left.seconds["compute"] == pytest.approx(result.finished_s[0])
