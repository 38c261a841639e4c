"""Nodes of one machine read each other's vectors where they lie: the same training, and nothing of it on the wire."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nodes_kit import Shoal, children, errors, own, shoal_in, trainer

from shoal.checkpoint import read
from shoal.demo.fleet import NodeProcess

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sealed memory and /proc"),
]

AVERAGED: dict[str, Any] = {
    "algorithm": "ad-psgd",
    "task": "digits",
    "partition": "labels:2",
    "lr": 0.1,
    "eval_every": 0,
    "emulate_compute_s": 0.005,
}
MODEL_BYTES = 4 * 9610


def bytes_an_average(node: NodeProcess) -> float:
    """On the wire."""
    seen = own(node)
    return float(seen["bytes_sent"] / (seen["exchanges"]["active"] + seen["exchanges"]["passive"]))


def segments(pid: int) -> set[str]:
    """Names of the shared memory that a process has open."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return {link.removesuffix(" (deleted)") for link in links if "memfd:shoal" in link}


def mapped(pid: int) -> str:
    """What a process sees of memory and files."""
    return Path(f"/proc/{pid}/maps").read_text()


def train(it: Shoal, step: int, **settings: Any) -> list[NodeProcess]:
    nodes = it.start_all(3, **settings)
    it.until_step(step, *nodes)
    return nodes


def test_vectors_of_averages_do_not_travel_and_status_says_so(tmp_path: Path) -> None:
    with shoal_in(tmp_path, share_memory=True, rounds=100_000, **AVERAGED) as it:
        nodes = train(it, 60)
        seen = [own(node) for node in nodes]
        for one in seen:
            others = {other["id"] for other in seen if other is not one}
            assert set(one["in_memory"]) == others
            assert one["bytes_shared"] > MODEL_BYTES * one["exchanges"]["active"]
        print([f"{bytes_an_average(node):.0f} B an average" for node in nodes])
        assert all(bytes_an_average(node) < MODEL_BYTES / 4 for node in nodes)
        assert all(not errors(node) for node in nodes)


def test_the_sum_is_kept(tmp_path: Path) -> None:
    run = {**AVERAGED, "correction": "pairwise", "rounds": 80}
    with shoal_in(tmp_path, share_memory=True, **run) as it:
        nodes = it.start_all(3)
        assert it.codes() == [0] * 3
    moved = torch.stack([read(node.folder / "checkpoint.safetensors").memory["moved"] for node in nodes])
    assert float(moved.abs().max()) > 0.01
    assert float(moved.sum(0).abs().max()) < 1e-4 * float(moved.abs().max())


@pytest.mark.parametrize("algorithm", ["d2", "d-psgd", "allreduce-sgd"])
def test_rounds_come_to_the_same_models_as_over_the_wire(algorithm: str, tmp_path: Path) -> None:
    ends = []
    for share in (True, False):
        run = {"algorithm": algorithm, "task": "digits", "rounds": 30, "eval_every": 0, "share_memory": share}
        with shoal_in(tmp_path / str(share), **run) as it:
            nodes = it.start_all(3)
            assert it.codes() == [0] * 3
        ends.append(sorted(read(node.folder / "checkpoint.safetensors").state.norm().item() for node in nodes))
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


def test_one_that_shares_nothing_is_served_over_the_wire_by_those_who_do(tmp_path: Path) -> None:
    with shoal_in(tmp_path, rounds=100_000, **AVERAGED) as it:
        nodes = [it.start(f"node-{k}", shard=f"{k}/3", min_nodes=3, share_memory=k > 0) for k in range(3)]
        it.until_step(60, *nodes)
        alone, *pair = (own(node) for node in nodes)
        assert alone["in_memory"] == []
        assert alone["bytes_shared"] == 0
        assert alone["bytes_sent"] > MODEL_BYTES * alone["exchanges"]["active"]
        assert [one["in_memory"] for one in pair] == [[pair[1]["id"]], [pair[0]["id"]]]


@pytest.mark.parametrize("what", ["daemon", "trainer"])
def test_a_killed_process_leaves_nothing_behind_and_the_others_go_on(what: str, tmp_path: Path) -> None:
    with shoal_in(tmp_path, share_memory=True, rounds=100_000, **AVERAGED) as it:
        nodes = train(it, 20)
        *others, victim = nodes
        daemon, workers = victim.process.pid, children(victim.process.pid)
        (segment,) = segments(daemon)
        assert all(segment in mapped(trainer(node)) for node in nodes)
        os.kill(daemon if what == "daemon" else trainer(victim), signal.SIGKILL)
        it.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers) or None, "its trainer is gone")
        steps = {node.name: own(node)["step"] for node in others}
        it.until_step(max(steps.values()) + 30, *others)
        if what == "daemon":
            assert all(own(node)["in_memory"] == [own(other)["id"]] for node, other in (others, others[::-1]))
        else:  # its daemon has started another, with memory of its own
            it.until(lambda: set(own(others[0])["in_memory"]) == {own(n).get("id") for n in nodes[1:]}, "it shares")
        assert not any(segment in mapped(pid) for node in others for pid in (node.process.pid, trainer(node)))
        assert not [name for name in os.listdir("/dev/shm") if "shoal" in name]


def test_a_node_that_comes_back_shares_again(tmp_path: Path) -> None:
    with shoal_in(tmp_path, share_memory=True, rounds=100_000, **{**AVERAGED, "checkpoint_every": 10}) as it:
        nodes = train(it, 20)
        victim = nodes[-1]
        victim.process.kill()
        victim.process.wait()
        again = it.start(victim.name, shard="2/3", resume=True)
        it.until_step(60, again)
        before = own(again)["bytes_shared"]
        it.until(lambda: own(again)["bytes_shared"] > before + 10 * MODEL_BYTES or None, "it shares")
        assert len(own(again)["in_memory"]) == 2
