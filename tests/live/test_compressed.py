"""Packed models over gRPC: rounds go as in virtual time, averages keep the sum, and the bytes are few."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from nodes_kit import own, shoal_in

from shoal.checkpoint import read
from shoal.settings import Settings
from shoal.simulation import Scenario, population, simulate

pytestmark = pytest.mark.live

NODES = 3


@pytest.mark.parametrize(
    ("algorithm", "codec"), [("d2", "sign"), ("d-psgd", "sign"), ("d2", "bf16"), ("d-psgd", "q4"), ("d-psgd", "f16")]
)
def test_packed_rounds_follow_the_virtual_time_run(algorithm: str, codec: str, tmp_path: Path) -> None:
    """To rounding: what rounds at random is drawn for a worker by its id, and the ids are those of the processes."""
    settings = Settings(algorithm=algorithm, codec=codec, topology="ring", lr=0.5, batch=16, rounds=60, seed=3)
    run = {key: value for key, value in settings.run_document().items() if value is not None}
    with shoal_in(tmp_path, **{"task": settings.task, "checkpoint_every": 0, "eval_every": 0, **run}) as it:
        nodes = it.start_all(NODES)
        assert it.codes() == [0] * NODES
    members = (nodes[0].result() or {})["members"]
    learners, x0 = population(settings, NODES)
    expected = torch.stack(simulate(settings, Scenario(), learners, x0, names=members).states)
    found = torch.stack([read(node.folder / "checkpoint.safetensors").state for node in nodes])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float((found - found.mean(0)).abs().max()) > 1e-3  # they are not all the same anyway


AVERAGED = {"algorithm": "ad-psgd", "task": "digits", "partition": "labels:2", "lr": 0.1, "eval_every": 0}


def test_packed_averages_keep_the_sum(tmp_path: Path) -> None:
    run = {**AVERAGED, "correction": "pairwise", "rounds": 60, "emulate_compute_s": 0.005}
    with shoal_in(tmp_path, codec="sign", **run) as it:
        nodes = it.start_all(NODES)
        assert it.codes() == [0] * NODES
    moved = torch.stack([read(node.folder / "checkpoint.safetensors").memory["moved"] for node in nodes])
    assert float(moved.abs().max()) > 0.01
    assert float(moved.sum(0).abs().max()) < 1e-4 * float(moved.abs().max())


def test_packed_averages_send_a_tenth_of_the_bytes(tmp_path: Path) -> None:
    """With headers, heartbeats, and the first models, which go in full."""
    sent = {}
    for codec in ("f32", "sign"):
        with shoal_in(tmp_path / codec, codec=codec, rounds=100_000, emulate_compute_s=0.005, **AVERAGED) as it:
            nodes = it.start_all(NODES)
            it.until_step(60, *nodes)
            seen = [own(node) for node in nodes]
            sent[codec] = sum(one["bytes_sent"] for one in seen) / sum(averages(one) for one in seen)
    print(f"bytes an average: {sent}")
    assert sent["f32"] > 9 * sent["sign"]


def test_each_edge_takes_the_smaller_wish_of_its_two_nodes(tmp_path: Path) -> None:
    run = {**AVERAGED, "correction": "pairwise", "rounds": 60, "emulate_compute_s": 0.005}
    with shoal_in(tmp_path, **run) as it:
        together = {"min_nodes": NODES}
        nodes = [
            it.start(f"node-{k}", shard=f"{k}/{NODES}", codec=codec, **together)
            for k, codec in enumerate(("bf16", "f32", "q8"))
        ]
        assert it.codes() == [0] * NODES
    ends = [(node.result() or {})["own"] for node in nodes]
    a, b, c = (end["id"] for end in ends)
    assert [end["exchanges"]["codecs"] for end in ends] == [
        {b: "bf16", c: "q8"},
        {a: "bf16", c: "q8"},
        {a: "q8", b: "q8"},
    ]
    moved = torch.stack([read(node.folder / "checkpoint.safetensors").memory["moved"] for node in nodes])
    assert float(moved.abs().max()) > 0.01
    assert float(moved.sum(0).abs().max()) < 1e-4 * float(moved.abs().max())


def averages(seen: Mapping[str, Any]) -> int:
    """That a node has served."""
    return int(seen["exchanges"]["passive"])
