"""A coordinator and its nodes as real processes: killed, joined, cut short. What it refuses: test_coordinating.py."""

import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from nodes_kit import GATED, Shoal, assert_one_model, events, own, shoal_in
from safetensors.torch import load_file
from torch import Tensor

from shoal import virtual_time
from shoal.checkpoint import read
from shoal.demo.fleet import NodeProcess
from shoal.settings import Settings
from shoal.simulation import Scenario, World, population
from shoal_coordinator import beside

pytestmark = pytest.mark.live

NODES = 3


def served(shoal: Shoal) -> dict[str, Any]:
    """What the coordinator says of its work."""
    assert shoal.coordinator is not None
    return (shoal.coordinator.status() or {}).get("coordinator", {})


def metrics(node: NodeProcess) -> dict[str, float]:
    """Name with labels -> value."""
    facts = node.facts()
    assert facts is not None
    with urllib.request.urlopen(f"http://{facts['http']}/metrics", timeout=5) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def kill(node: NodeProcess) -> None:
    """At once, with nothing said to anybody."""
    os.kill(node.process.pid, signal.SIGKILL)
    node.process.wait()


def state(node: NodeProcess) -> Tensor:
    """Of its checkpoint."""
    return read(node.folder / "checkpoint.safetensors").state


def in_virtual_time(settings: Settings, names: list[str]) -> list[Tensor]:
    """The workers' models at the end of the same run."""
    learners, states = population(settings, len(names))
    world = World(settings, Scenario(), learners, states, names=names, coordinator=beside(settings))
    return virtual_time.run(world.run()).states


def test_a_coordinator_that_is_killed_and_started_again_ends_with_the_models_of_virtual_time(tmp_path: Path) -> None:
    """And is the only address that the nodes were told: from it they know each other."""
    run = {"algorithm": "signum", "rounds": 60, "batch": 4, "seed": 3, "hash_every": 25, "partition": "iid"}
    (tmp_path / "gate").write_text("30")
    with shoal_in(tmp_path, task=GATED, data_dir=tmp_path, **run) as shoal:
        first = shoal.coordinate()
        nodes = shoal.start_all(NODES)
        shoal.until_step(30, *nodes)
        facts = first.facts()
        assert facts is not None
        assert served(shoal)["rounds"] == {"all": 31, "quorum": 0}, "thirty votes and a comparison"
        kill(first)
        shoal.coordinate(listen=facts["address"])
        shoal.until(lambda: len(served(shoal).get("enrolled", [])) == NODES, "all are back")
        assert served(shoal)["round"] == 30
        (tmp_path / "gate").unlink()
        assert shoal.codes() == [0] * NODES
        shoal.until_logged("the run is over; the next may be another", shoal.coordinator or first)
    names = (nodes[0].result() or {})["members"]
    settings = Settings(task=GATED, over="coordinator", data_dir=str(tmp_path), **run)
    for node, expected in zip(nodes, in_virtual_time(settings, names), strict=True):
        assert torch.equal(state(node), expected)
    assert_one_model(nodes)


def test_one_joins_and_one_dies_and_the_rounds_go_on(tmp_path: Path) -> None:
    run = {"algorithm": "signum", "rounds": 60, "batch": 4, "suspect_after_s": 2.0, "partition": "iid"}
    (tmp_path / "gate").write_text("20")
    with shoal_in(tmp_path, task=GATED, data_dir=tmp_path, **run) as shoal:
        shoal.coordinate(quorum=2, deadline_s=0.2, suspect_after_s=2.0)
        early = shoal.start_all(2)
        shoal.until_step(20, *early)
        late = shoal.start("node-3", shard="2/3")
        shoal.until(lambda: len(served(shoal)["enrolled"]) == 3, "the third is enrolled")
        shoal.until(lambda: own(late).get("step", 0) >= 20, "it is at the others' round")
        kill(early[1])
        (tmp_path / "gate").unlink()
        rest = [early[0], late]
        assert shoal.codes(*rest) == [0, 0]
        assert torch.equal(state(early[0]), state(late))
        assert len(events(late, "joined")) == 1
        assert read(late.folder / "checkpoint.safetensors").gradients <= 40


def test_a_parameter_server_found_by_multicast_serves_one_model(tmp_path: Path) -> None:
    run = {"algorithm": "a-psgd", "rounds": 60, "lr": 0.01, "batch": 4, "discovery": "mdns"}
    with shoal_in(tmp_path, **run) as shoal:
        server = shoal.coordinate()
        nodes = shoal.start_all(NODES)
        finals = shoal.until(lambda: final(shoal), "all gradients are there")
        assert shoal.codes() == [0] * NODES
        assert finals["version"] == finals["budget"] == 60 * NODES
        shown = metrics(server)
        assert shown["shoal_gradient_staleness_count"] == 60 * NODES
        assert shown["shoal_gradient_staleness_sum"] > 0
        assert shown['shoal_members{state="alive"}'] <= NODES
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 130
    assert_one_model(nodes)
    assert sum(read(n.folder / "checkpoint.safetensors").gradients for n in nodes) == 60 * NODES
    (name,) = load_file(nodes[0].folder / "model.safetensors").values()
    torch.testing.assert_close(name, state(nodes[0]))


def final(shoal: Shoal) -> dict[str, Any] | None:
    now = served(shoal)
    return now if now.get("version") and now["version"] == now["budget"] else None
