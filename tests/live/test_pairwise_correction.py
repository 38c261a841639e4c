"""The pairwise correction over gRPC: what averages moved the models by cancels over all nodes, checkpoints included."""

from pathlib import Path

import pytest
import torch
from nodes_kit import shoal_in

from shoal.checkpoint import read

pytestmark = pytest.mark.live

NODES = 3


def test_what_the_nodes_moved_each_other_by_sums_to_zero(tmp_path: Path) -> None:
    run = {"algorithm": "ad-psgd", "correction": "pairwise", "lr": 0.1, "rounds": 100, "emulate_compute_s": 0.005}
    with shoal_in(tmp_path, task="quadratic", partition="iid", checkpoint_every=0, eval_every=0, **run) as it:
        nodes = it.start_all(NODES)
        assert it.codes() == [0] * NODES
    moved = torch.stack([read(node.folder / "checkpoint.safetensors").memory["moved"] for node in nodes])
    assert float(moved.abs().max()) > 0.01
    assert float(moved.sum(0).abs().max()) < 1e-4 * float(moved.abs().max())
