"""AD-PSGD with a dual variable for each worker: no paper's claim, our own measurements.

The sum of the duals is conserved as the sum of the models is; labels that only slow nodes hold are learnt.
"""

import pytest
import torch

from paper.runs import final_loss, quadratic, train
from shoal.errors import SettingsError
from shoal.settings import Settings
from shoal.simulation import Cut, Result, Scenario

FIVE_SLOW = Scenario(jitter=0.1, vector_s=0.001, slow=tuple((k, 10.0) for k in range(5)))
ONE_VERY_SLOW = Scenario(jitter=0.1, vector_s=0.001, slow=((0, 100.0),))


def distance(scenario: Scenario, **settings: object) -> float:
    """Of the mean model from the optimum of ten nodes that count the same and each want something else."""
    common = {"algorithm": "ad-psgd", "lr": 0.02, "rounds": 800, "batch": 64, "partition": "labels:1"}
    result: Result = quadratic(10, scenario, **{**common, **settings})
    x = result.mean
    optimum = torch.stack([x - r.learner.full_gradient(x) for r in result.runtimes]).mean(0)
    return float((x - optimum).norm())


def test_what_averages_moved_sums_to_zero_over_all_workers_though_links_break() -> None:
    cuts = tuple(Cut(at_s=0.05 * k, a=k % 4, b=(k + 1) % 4, for_s=0.02) for k in range(1, 20))
    scenario = Scenario(jitter=0.3, vector_s=0.004, slow=((0, 5.0),), cuts=cuts)
    result = quadratic(4, scenario, algorithm="ad-psgd", lr=0.05, rounds=200, correction="pairwise", schedule="linear")
    moved = torch.stack([runtime.moved for runtime in result.runtimes])
    assert float(moved.abs().max()) > 0.1
    assert float(moved.sum(0).abs().max()) < 1e-4


def test_it_settles_where_every_node_counts_the_same_however_slow() -> None:
    """Five of ten nodes are ten times slower and hold other data; plain AD-PSGD settles near what the others want."""
    assert distance(FIVE_SLOW, correction="pairwise") < 0.1 * distance(FIVE_SLOW)


def test_a_step_size_that_decays_neither_blows_it_up_nor_takes_it_back() -> None:
    schedule = {"schedule": "step:0.01@0.7", "rounds": 400, "lr": 0.05}
    assert distance(FIVE_SLOW, correction="pairwise", **schedule) < 0.2 * distance(FIVE_SLOW, **schedule)


def test_it_learns_the_label_of_a_node_a_hundred_times_slower_and_does_not_wait_for_it() -> None:
    """Seven gradients of 6000 are that node's. With a step that ignores it, the others would be held back instead."""
    common = {"algorithm": "ad-psgd", "lr": 0.5, "gradients": 6000, "partition": "labels:1"}
    plain, corrected = (train(10, ONE_VERY_SLOW, correction=c, **common) for c in ("none", "pairwise"))
    assert final_loss(corrected) < 0.7 * final_loss(plain)


def test_without_it_nothing_is_kept_and_nothing_changes() -> None:
    result = quadratic(3, algorithm="ad-psgd", rounds=5)
    assert "moved" not in result.runtimes[0].memory


def test_an_algorithm_without_pairs_refuses_it() -> None:
    with pytest.raises(SettingsError, match="correction = pairwise is for ad-psgd: d2 averages no pairs"):
        Settings(algorithm="d2", correction="pairwise")
