"""AllReduce-SGD, the synchronous baseline: exactly SGD on the mean gradient, at the least number of bytes."""

import statistics

import pytest
import torch

from paper.runs import quadratic
from shoal.settings import Settings
from shoal.simulation import Cut, Result, Scenario, population

ROUNDS = 20
COMMON = {"algorithm": "allreduce-sgd", "lr": 0.1, "rounds": ROUNDS, "hash_every": 0}


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_it_is_sgd_on_the_mean_gradient(workers: int) -> None:
    ours = quadratic(workers, seed=2, **COMMON)
    settings = Settings(task="quadratic", partition="iid", batch=4, seed=2, **COMMON)  # type: ignore[arg-type]
    learners, (x, *_) = population(settings, workers)
    for _ in range(ROUNDS):
        x = x - 0.1 * torch.stack([learner.gradient(x).g for learner in learners]).mean(0)
    torch.testing.assert_close(ours.mean, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_a_step_sends_the_least_that_a_sum_can_cost(workers: int) -> None:
    """2 (n-1)/n of the vector a worker and step, though 20 elements cannot be divided by 3 or 7."""
    result = quadratic(workers, **COMMON)
    d = result.mean.numel()
    assert sum(result.sent_bytes.values()) == 2 * (workers - 1) * d * 4 * ROUNDS
    assert max(result.sent_bytes.values()) <= 2 * (workers - 1) * (d // workers + 1) * 4 * ROUNDS


def test_momentum_acts_on_the_mean_so_that_all_stay_equal() -> None:
    result = quadratic(4, momentum=0.9, **COMMON)
    assert all(torch.equal(state, result.states[0]) for state in result.states)


def test_a_link_that_breaks_delays_a_step_and_changes_nothing() -> None:
    whole = quadratic(4, **COMMON)
    cut = quadratic(4, Scenario(cuts=(Cut(at_s=0.05, a=0, b=1, for_s=0.5),)), **COMMON)
    assert torch.equal(cut.mean, whole.mean)
    assert cut.seconds > whole.seconds + 0.4


# --- against AD-PSGD (1710.06952, section 5; its tables are unverified here) ------------------------------------------


def throughput(algorithm: str, workers: int, scenario: Scenario, gradients: int) -> float:
    """Gradients a virtual second of all workers together, until half of them have seen the end of the run: at its end
    the others do not wait for the last gradient of a slow one."""
    length = {"rounds": 10} if algorithm != "ad-psgd" else {"gradients": gradients}
    result: Result = quadratic(workers, scenario, algorithm=algorithm, lr=0.01, **length)
    return result.gradients / statistics.median(result.finished_s)


@pytest.mark.parametrize("slowness", [1.0, 2.0, 10.0, 100.0])
def test_one_slow_worker_of_sixteen_makes_ad_psgd_the_faster_one_by_what_the_others_would_wait(slowness: float) -> None:
    """(15 s + 1) / 16 times as many gradients a second, within a quarter."""
    scenario = Scenario(compute_s=0.05, vector_s=0.001, jitter=0.05, slow=((0, slowness),))
    ratio = throughput("ad-psgd", 16, scenario, 3000) / throughput("allreduce-sgd", 16, scenario, 0)
    assert ratio == pytest.approx((15 * slowness + 1) / 16, rel=0.25)


def test_a_worker_a_hundred_times_slower_costs_little_more_than_itself() -> None:
    even, uneven = (
        throughput("ad-psgd", 16, Scenario(compute_s=0.05, vector_s=0.001, jitter=0.05, slow=((0, s),)), 3000)
        for s in (1.0, 100.0)
    )
    assert uneven >= 0.9 * even * 15.01 / 16


def test_one_slow_link_of_twenty_eight_costs_ad_psgd_a_quarter_and_the_ring_two_thirds() -> None:
    """A vector takes as long as half a gradient, on one link ten times as long. Both its ends wait for the averages
    that they happen to ask each other for; on a ring everybody waits in every step."""
    speeds = {
        (algorithm, factor): throughput(
            algorithm, 8, Scenario(compute_s=0.05, vector_s=0.025, jitter=0.05, slow_links=((0, 1, factor),)), 1500
        )
        for algorithm in ("ad-psgd", "allreduce-sgd")
        for factor in (1.0, 10.0)
    }
    kept = {a: speeds[a, 10.0] / speeds[a, 1.0] for a in ("ad-psgd", "allreduce-sgd")}
    assert kept["ad-psgd"] >= 0.7
    assert kept["allreduce-sgd"] <= 0.35
