"""AD-PSGD (1710.06952) and its baseline D-PSGD (1705.09056)."""

import pytest
import torch

from paper.runs import final_accuracy, final_loss, pooled, quadratic, train
from shoal.settings import Settings
from shoal.simulation import Scenario, population


def test_one_worker_is_sgd() -> None:
    """n = 1: no neighbour, no average, no staleness."""
    settings = {"rounds": 50, "lr": 0.2, "partition": "iid", "seed": 5}
    alone = quadratic(1, algorithm="ad-psgd", **settings)
    learners, (x,) = population(Settings(task="quadratic", batch=4, **settings), 1)
    for _ in range(50):
        x -= 0.2 * learners[0].gradient(x).g
    assert torch.allclose(alone.mean, x, atol=1e-6)


def test_without_gradients_an_average_keeps_the_sum_and_draws_the_models_together() -> None:
    """W_k = I - (e_i - e_j)(e_i - e_j)'/2 is symmetric and doubly stochastic."""
    result = quadratic(6, algorithm="ad-psgd", lr=1e-12, rounds=40)
    assert result.curve[-1].spread < 1e-6


def test_averaged_with_others_the_mean_model_learns_all_labels() -> None:
    """Two labels a worker; equal speeds. Accuracy within a point of SGD on all the data, from as many samples."""
    differences = []
    for seed in range(5):
        common = {"lr": 0.5, "rounds": 540, "seed": seed}
        together = train(5, Scenario(jitter=0.2, vector_s=0.002), algorithm="ad-psgd", **common)
        differences.append(final_accuracy(pooled(5, **common)) - final_accuracy(together))
    assert sum(differences) / 5 <= 0.01


@pytest.mark.parametrize("slowness", [1.0, 10.0])
def test_on_iid_data_its_loss_is_that_of_synchronous_sgd_though_one_worker_is_slow(slowness: float) -> None:
    """Section 5: epoch for epoch the curves of AD-PSGD and AllReduce-SGD overlap (its table is unverified here). What
    AllReduce-SGD does is SGD on all the data (`test_allreduce.py`), from as many gradients."""
    common = {"lr": 0.2, "rounds": 1000, "partition": "iid"}
    scenario = Scenario(jitter=0.2, vector_s=0.002, slow=((0, slowness),))
    synchronous, together = pooled(5, **common), train(5, scenario, algorithm="ad-psgd", **common)
    assert final_loss(together) == pytest.approx(final_loss(synchronous), rel=0.15)
    assert final_accuracy(together) == pytest.approx(final_accuracy(synchronous), abs=0.01)


def test_its_fixed_point_weighs_each_worker_by_its_speed() -> None:
    """The problem the paper states is min sum_i p_i f_i with p_i the part of the updates that worker i makes. So on
    data that differs a slow worker counts less: with five of ten workers ten times slower, the mean settles where the
    speeds say, not where the data say."""
    common = {"algorithm": "ad-psgd", "lr": 0.01, "rounds": 600, "batch": 64, "partition": "labels:1"}
    slowness = 10.0
    scenario = Scenario(slow=tuple((k, slowness) for k in range(5)), vector_s=0.0005, jitter=0.1)
    uneven = quadratic(10, scenario, **common)
    x = uneven.mean
    own_optima = torch.stack([x - r.learner.full_gradient(x) for r in uneven.runtimes])  # of f_i = E ||x - a||^2 / 2
    speeds = torch.tensor([1 / slowness] * 5 + [1.0] * 5)
    by_speed = (speeds[:, None] * own_optima).sum(0) / speeds.sum()
    uniform = own_optima.mean(0)
    assert (x - by_speed).norm() < 0.3 * (x - uniform).norm()


def test_d_psgd_on_a_complete_graph_is_sgd_on_the_mean_gradient() -> None:
    """With W = 11'/n and equal starts x^{t+1} = mean_j x_j^t - lr g_i: the mean takes the mean gradient."""
    settings = {"lr": 0.2, "rounds": 20, "seed": 2, "topology": "complete"}
    ours = quadratic(4, algorithm="d-psgd", **settings)
    learners, states = population(
        Settings(task="quadratic", partition="iid", batch=4, algorithm="d-psgd", **settings), 4
    )
    x = torch.stack(states)
    for _ in range(20):
        g = torch.stack([le.gradient(row).g for le, row in zip(learners, x, strict=True)])
        x = x.mean(0, keepdim=True) - 0.2 * g
    assert torch.allclose(torch.stack(ours.states), x, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["ad-psgd", "d-psgd", "d2"])
def test_local_momentum_speeds_every_algorithm_up_on_iid_data(algorithm: str) -> None:
    common = {"algorithm": algorithm, "lr": 0.02, "rounds": 200, "partition": "iid", "topology": "complete"}
    assert final_loss(train(4, momentum=0.9, **common)) < 0.6 * final_loss(train(4, **common))


def test_overlap_saves_averages_and_still_learns() -> None:
    scenario = Scenario(vector_s=0.02, jitter=0.1)
    common = {"algorithm": "ad-psgd", "lr": 0.2, "rounds": 200, "partition": "iid"}
    waiting, overlapping = train(5, scenario, **common), train(5, scenario, overlap=3, **common)
    assert overlapping.seconds < 0.6 * waiting.seconds
    assert final_loss(overlapping) < 1.5 * final_loss(waiting)
