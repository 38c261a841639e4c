"""A coordinator killed in the midst of rounds, again and again; what a death costs those who live on."""

import os
import random
import secrets
import signal
import statistics
import time
from pathlib import Path

import pytest
import torch
from nodes_kit import Shoal, assert_one_model, own, shoal_in

from shoal import virtual_time
from shoal.checkpoint import read
from shoal.demo.fleet import NodeProcess
from shoal.settings import Settings
from shoal.simulation import Scenario, World, population
from shoal_coordinator import beside

SEED = int(os.environ.get("SHOAL_CHAOS_SEED", secrets.randbelow(10**6)))
NODES, KILLS, COMPUTE_S = 4, 20, 0.1

pytestmark = [pytest.mark.live, pytest.mark.timeout(1200)]


def kill(node: NodeProcess) -> None:
    """At once, with nothing said to anybody."""
    os.kill(node.process.pid, signal.SIGKILL)
    node.process.wait()


def steps(node: NodeProcess) -> int:
    return int(own(node).get("step", 0))


def test_a_coordinator_killed_twenty_times_loses_no_vote_and_counts_none_twice(tmp_path: Path) -> None:
    """Shown by the models: they are those of a run in virtual time where nobody died, bit for bit."""
    rng, back_s, waits = random.Random(SEED), list[float](), set[str]()
    run = {"algorithm": "signum", "rounds": 900, "batch": 4, "seed": 3, "hash_every": 50, "partition": "iid"}
    print(f"seed {SEED}")
    with shoal_in(tmp_path, emulate_compute_s=COMPUTE_S, **run) as shoal:
        coordinator = shoal.coordinate()
        facts = shoal.until(coordinator.facts, "it listens")
        nodes = shoal.start_all(NODES)
        shoal.until_step(5, *nodes)
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.3, 1.5))  # at any moment of a round
            kill(coordinator)
            shoal.until(lambda: all(map(held_up, nodes)), "the nodes say what they wait for")
            waits |= {why for node in nodes for why in held_up(node)}
            before = [steps(node) for node in nodes]
            coordinator = shoal.coordinate(listen=facts["address"])
            shoal.until(coordinator.status, "it answers again")
            since = time.monotonic()
            shoal.until(lambda before=before: all(steps(n) > s for n, s in zip(nodes, before, strict=True)), "a round")
            back_s.append(time.monotonic() - since)
        assert min(map(steps, nodes)) < 900, "all kills fell into the run"
        assert shoal.codes() == [0] * NODES
    print(f"a round within {max(back_s):.1f} s of its return, median {statistics.median(back_s):.1f}; waits: {waits}")
    assert max(back_s) < 5
    names = (nodes[0].result() or {})["members"]
    settings = Settings(over="coordinator", task="quadratic", **run)
    learners, models = population(settings, NODES)
    world = World(settings, Scenario(), learners, models, names=names, coordinator=beside(settings))
    for node, expected in zip(nodes, virtual_time.run(world.run()).states, strict=True):
        assert torch.equal(read(node.folder / "checkpoint.safetensors").state, expected)
    assert_one_model(nodes)


def held_up(node: NodeProcess) -> set[str]:
    """What it waits for, in words, since the coordinator is gone."""
    status = node.status() or {}
    words = [wait["why"] for wait in status.get("waits", []) if wait["why"]] + [status.get("waiting") or ""]
    return {why for why in words if "coordinator" in why}


def speed(shoal: Shoal, nodes: list[NodeProcess], seconds: float) -> float:
    """Steps a second of these, together."""
    before, since = sum(map(steps, nodes)), time.monotonic()
    time.sleep(seconds)
    return (sum(map(steps, nodes)) - before) / (time.monotonic() - since)


def test_a_death_costs_the_others_of_ad_psgd_no_speed(tmp_path: Path) -> None:
    """Measured over the ten seconds in which the dead one is missed, beside the ten before."""
    kept = []
    with shoal_in(tmp_path, task="digits", rounds=4000, eval_every=0, emulate_compute_s=COMPUTE_S) as shoal:
        nodes = shoal.start_all(6)
        shoal.until_step(20, *nodes)
        for dead in nodes[1:4]:
            others = [node for node in nodes if node.process.poll() is None and node is not dead]
            before = speed(shoal, others, 10)
            kill(dead)
            kept.append(speed(shoal, others, 10) / before)
    print("steps a second after a death / before: " + ", ".join(f"{each:.3f}" for each in kept))
    assert statistics.median(kept) > 0.95
