"""Synchronous rounds over gRPC give the models that virtual time gives: the same files run in both places."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nodes_kit import mean_model, shoal_in
from torch import Tensor

from shoal.checkpoint import read
from shoal.demo.fleet import NodeProcess
from shoal.learner import Learner
from shoal.settings import Settings
from shoal.simulation import Scenario, population, simulate

pytestmark = pytest.mark.live

NODES = 5
TOLERANCE = 1e-5


def over_grpc(folder: Path, settings: Settings) -> list[NodeProcess]:
    """The run's nodes, ended; number k holds part k of the data."""
    run = {key: value for key, value in settings.run_document().items() if value is not None}
    with shoal_in(folder, **{"task": settings.task, "checkpoint_every": 0, "eval_every": 0, **run}) as it:
        nodes = it.start_all(NODES)
        assert it.codes() == [0] * NODES
    return nodes


def in_virtual_time(settings: Settings, **options: Any) -> tuple[Tensor, Learner]:
    """(NODES, d): each worker's model at the end, and the first of the learners."""
    learners, x0 = population(settings, NODES)
    return torch.stack(simulate(settings, Scenario(), learners, x0, **options).states), learners[0]


@pytest.mark.parametrize(("algorithm", "rounds", "every"), [("d-psgd", 60, 1), ("d-psgd", 60, 4), ("d2", 540, 1)])
def test_every_node_follows_the_virtual_time_run(algorithm: str, rounds: int, every: int, tmp_path: Path) -> None:
    run = {"algorithm": algorithm, "rounds": rounds, "exchange_every": every}
    settings = Settings(topology="ring", lr=0.5, batch=16, seed=3, **run)  # type: ignore[arg-type]
    nodes = over_grpc(tmp_path, settings)
    own = torch.stack([read(node.folder / "checkpoint.safetensors").state for node in nodes])
    expected, learner = in_virtual_time(settings)
    difference = float((own - expected).abs().max())
    print(f"{algorithm}, {rounds} rounds: largest difference {difference:.1e}")
    assert difference <= TOLERANCE
    # Not because all models are alike: they lie much further apart than that.
    assert float((own - own.mean(0)).abs().max()) > 1000 * TOLERANCE
    for node in nodes:
        steps = [line["step"] for line in node.history() if line["kind"] == "step"]
        assert steps == list(range(1, rounds + 1))
        check_mean_model(node, own.double().mean(0), learner)


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "signum", "ef-signsgd", "katyusha-x"])
def test_replicas_are_those_of_virtual_time_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    rounds, batch = (3, 64) if algorithm == "katyusha-x" else (40, 16)
    settings = Settings(algorithm=algorithm, batch=batch, rounds=rounds, seed=3, hash_every=15)
    nodes = over_grpc(tmp_path, settings)
    members = (nodes[0].result() or {})["members"]
    expected, _ = in_virtual_time(settings, names=members)  # coins are thrown for a worker by its id
    for node in nodes:
        assert torch.equal(read(node.folder / "checkpoint.safetensors").state, expected[0])


def check_mean_model(node: NodeProcess, mean: Tensor, learner: Learner) -> None:
    """The file that the node leaves holds the mean of all, under the names of the task's module."""
    expected = learner.model.state_dict(mean)
    found = mean_model(node)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=0, atol=1e-6)
