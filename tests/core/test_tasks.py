"""The tasks that ship: their data, their models, and what is known of their optima."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.data.loading import load_task, local_data
from shoal.data.quadratic import CLUSTERS, DIMENSIONS, optimum
from shoal.data.task import Data, Place, Task
from shoal.data.vision import require_torchvision
from shoal.errors import DataError
from shoal.learner import Counts, Learner, initial_state

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def place(shard: int = 0, shards: int = 1, partition: str = "iid", folder: Path = Path("data")) -> Place:
    return Place(shard, shards, partition, 0, folder, download=False)


def shares(task: Task, shards: int, partition: str) -> list[Data]:
    return [local_data(task, place(i, shards, partition)) for i in range(shards)]


# --- digits -------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    everything = shares(load_task("digits"), 1, "iid")[0]
    inputs = torch.cat([everything.inputs, everything.held_out_inputs]) * 16
    targets = torch.cat([everything.targets, everything.held_out_targets])
    ours = torch.cat([inputs, targets.unsqueeze(1)], 1)
    theirs = torch.tensor(np.column_stack([pixels, labels])).float()
    assert sorted(ours.tolist()) == sorted(theirs.tolist())


def test_five_nodes_of_two_labels_hold_all_digits_between_them() -> None:
    task = load_task("digits")
    parts = shares(task, 5, "labels:2")
    assert sum(len(part.inputs) for part in parts) == 1437
    assert sum(len(part.held_out_inputs) for part in parts) == 360
    for i, part in enumerate(parts):
        assert set(part.targets.tolist()) == {2 * i, 2 * i + 1}
    held_out = torch.cat([part.held_out_targets for part in parts])
    assert all(count > 20 for count in torch.bincount(held_out, minlength=10).tolist())


def test_a_thousand_nodes_can_share_the_digits() -> None:
    last = local_data(load_task("digits"), place(999, 1000))
    assert (len(last.inputs), len(last.held_out_inputs)) == (1, 0)


def test_the_digits_model_learns_them() -> None:
    task = load_task("digits")
    model, x = initial_state(task, 0)
    assert (model.layout.d, model.layout.b) == (9610, 0)
    learner = Learner(task, shares(task, 1, "iid")[0], model, batch=80, seed=0, shard=0)
    for _ in range(150):
        x -= 0.5 * learner.gradient(x).g
    accuracy = learner.evaluate(x).accuracy
    assert accuracy is not None
    assert accuracy > 0.9


def test_counts_of_the_nodes_add_up_to_those_of_the_whole() -> None:
    task = load_task("digits")
    model, x0 = initial_state(task, 1)

    def count(parts: list[Data]) -> Counts:
        learners = [Learner(task, part, model, batch=1, seed=0, shard=i) for i, part in enumerate(parts)]
        return sum((learner.evaluate(x0) for learner in learners), start=Counts.nothing())

    whole, parts = count(shares(task, 1, "iid")), count(shares(task, 7, "dirichlet:0.5"))
    assert (parts.right, parts.total) == (whole.right, whole.total)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


# --- torchvision's data sets --------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "MNIST" / "raw").is_dir(), reason=f"needs MNIST in {SHARED}")
def test_mnist_is_divided_and_brings_its_own_test_samples() -> None:
    task = load_task("mnist")
    part = local_data(task, place(1, 5, "labels:2", folder=SHARED))
    assert part.inputs.shape[1:] == (1, 28, 28)
    assert set(part.targets.tolist()) == {2, 3}
    assert len(part.inputs) == 5958 + 6131  # as published
    assert len(part.held_out_inputs) == 2000
    assert abs(float(part.inputs.mean())) < 0.2
    model, x0 = initial_state(task, 0)
    learner = Learner(task, part, model, batch=16, seed=0, shard=1)
    assert learner.histogram == [0, 0, 5958, 6131, 0, 0, 0, 0, 0, 0]
    assert learner.gradient(x0).g.shape == (61_706,)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_data_set_that_is_not_there_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"task {name}: .* is not in .*; add --download, or .* --data-dir"):
        local_data(load_task(name), place(folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_cifar10_trains_a_resnet18_with_a_small_stem() -> None:
    task = load_task("cifar10")
    model, x0 = initial_state(task, 0)
    assert model.layout.d == 11_173_962
    assert model.layout.b == 2 * 4800  # a mean and a variance for each of 4,800 normalised channels
    assert x0.shape == (11_173_962 + 9_600,)
    features: list[torch.Size] = []
    model.module.get_submodule("layer1").register_forward_hook(lambda _module, _in, out: features.append(out.shape))
    assert model.module(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert features == [torch.Size([2, 64, 32, 32])]  # nothing is scaled down before the first block


def test_torchvision_can_be_asked_for_again_and_again() -> None:
    for _ in range(3):
        require_torchvision()
    from torchvision import datasets

    assert datasets.MNIST.__name__ == "MNIST"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_lenets_take_28_by_28_pixels(name: str) -> None:
    task = load_task(name)
    assert task.model()(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert len(task.classes) == 10


# --- quadratic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["iid", "labels:2", "quantity:0.5"])
def test_the_gradients_of_a_quadratic_cancel_at_its_optimum_and_only_there(partition: str) -> None:
    task = load_task("quadratic")
    parts = shares(task, 5, partition)
    model, x0 = initial_state(task, 0)
    learners = [Learner(task, part, model, batch=4, seed=0, shard=i) for i, part in enumerate(parts)]
    best = optimum(parts).float()
    mean = torch.stack([learner.full_gradient(best) for learner in learners]).mean(0)
    assert mean.abs().max() < 1e-5
    away = torch.stack([learner.full_gradient(x0) for learner in learners]).mean(0)
    assert torch.allclose(away, x0 - best, atol=1e-5)


def test_the_clusters_of_a_quadratic_pull_nodes_apart() -> None:
    parts = shares(load_task("quadratic"), 5, "labels:2")
    means = torch.stack([part.inputs.mean(0) for part in parts])
    assert float((means - means.mean(0)).norm(dim=1).min()) > 1.0


def test_a_quadratic_has_a_loss_and_no_accuracy() -> None:
    task = load_task("quadratic")
    part = shares(task, 1, "iid")[0]
    model, x0 = initial_state(task, 0)
    assert (part.inputs.shape[1], len(task.classes)) == (DIMENSIONS, CLUSTERS)
    counts = Learner(task, part, model, batch=4, seed=0, shard=0).evaluate(x0, held_out=False)
    assert counts.accuracy is None
    assert counts.loss == pytest.approx(float((x0 - part.inputs).square().sum(1).mean() / 2), rel=1e-5)
