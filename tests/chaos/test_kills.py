"""A coordinator killed in the midst of rounds, again and again; what a death costs those who live on, and how soon a
node that was killed or stopped takes part again."""

import os
import random
import secrets
import signal
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from nodes_kit import Shoal, assert_one_model, children, own, shoal_in, states

from shoal import virtual_time
from shoal.checkpoint import read
from shoal.demo.fleet import NodeProcess
from shoal.settings import Settings
from shoal.simulation import Scenario, World, population
from shoal.traits import ALGORITHMS
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


# --- how long rounds stand still ------------------------------------------------------------------------------------

SUSPECT_AFTER_S = 2.0
NEXT_STEP_S, AGAIN_S = 5.0, 10.0
"""In which the others must go on after a death, and in which one that comes back must; torch takes a few to load."""
SIX: dict[str, Any] = {
    "task": "digits",
    "rounds": 4000,
    "eval_every": 0,
    "checkpoint_every": 10,
    "suspect_after_s": SUSPECT_AFTER_S,
    "emulate_compute_s": 0.3,  # of six nodes: two cores are idle for more than half of the time
}


class Machine:
    """What part of the time its cores were busy, with whatever, since this was made."""

    def __init__(self) -> None:
        self._before = self._spent()

    def share(self) -> float:
        """0 to 1."""
        busy, idle = (now - before for now, before in zip(self._spent(), self._before, strict=True))
        return busy / (busy + idle)

    def _spent(self) -> tuple[int, int]:
        """(busy, idle), in ticks of all cores together: the first line of /proc/stat, whose 4th and 5th are idle."""
        ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, idle


def took(shoal: Shoal, since: float, what: str, *conditions: Callable[[], bool]) -> float:
    """Seconds since then until each has held once, looked at ten times a second: to be asked costs a node time, too."""
    pending = list(conditions)

    def now_and_then() -> bool:
        time.sleep(0.1)
        pending[:] = [condition for condition in pending if not condition()]
        return not pending

    shoal.until(now_and_then, what)
    return time.monotonic() - since


def steps_once(node: NodeProcess, moment: Callable[[], bool]) -> Callable[[], bool]:
    """A condition: it has made a step since that moment."""
    seen: list[int] = []

    def made() -> bool:
        if (seen or moment()) and (now := own(node).get("gradients")) is not None:
            seen.append(now)
        return bool(seen) and seen[-1] > seen[0]

    return made


def takes_part(name: str, node: NodeProcess) -> bool | None:
    """Whether the member of that name does, as `node` says: it is in its view, or for pairs not gone. None while `node`
    does not answer."""
    status = node.status()
    if status is None or status["view"] is None:
        return None
    it = next(member for member in status["members"] if member["name"] == name)
    if ALGORITHMS[status["node"]["algorithm"]].rounds:
        return it["id"] in status["view"]["members"]
    return bool(it["state"] != "gone")


def sees(name: str, node: NodeProcess) -> bool:
    """Whether `node` says that it takes part."""
    return takes_part(name, node) is True


def is_left_out(name: str, node: NodeProcess) -> bool:
    """Whether `node` says that it is gone, and goes on without it."""
    return states(node).get(name) == "gone" and takes_part(name, node) is False


def stop(node: NodeProcess, how: signal.Signals) -> None:
    """SIGSTOP or SIGCONT to both of its processes."""
    for pid in (node.process.pid, *children(node.process.pid)):
        os.kill(pid, how)


@pytest.mark.parametrize("algorithm", ["d2", "allreduce-sgd", "ad-psgd"])
def test_a_death_holds_up_the_others_for_seconds_and_who_comes_back_steps_within_seconds(
    algorithm: str, tmp_path: Path
) -> None:
    """One of six is killed and started again; then another is stopped and goes on."""
    with shoal_in(tmp_path, algorithm=algorithm, **SIX) as shoal:
        nodes = shoal.start_all(6)
        shoal.until_step(20, *nodes)
        machine = Machine()
        first, dead, *_, stopped = nodes
        others = [node for node in nodes if node is not dead]

        kill(dead)
        without = [steps_once(node, partial(is_left_out, dead.name, node)) for node in others]
        death_s = took(shoal, time.monotonic(), "all others step without it", *without)

        saved, since = read(dead.folder / "checkpoint.safetensors").gradients, time.monotonic()
        back = shoal.start(dead.name, shard="1/6", min_nodes=6, resume=True)
        return_s = took(shoal, since, "it steps again", lambda: own(back).get("gradients", 0) > saved)
        took(shoal, since, "all see it", *(partial(sees, back.name, node) for node in others))

        stop(stopped, signal.SIGSTOP)
        awake = [first, back, *others[1:-1]]
        since, gone = time.monotonic(), [partial(is_left_out, stopped.name, node) for node in awake]
        gone_s = took(shoal, since, "it counts as gone", *gone)
        stop(stopped, signal.SIGCONT)
        steps_again = steps_once(stopped, partial(sees, stopped.name, first))
        again_s = took(shoal, time.monotonic(), "it steps again", steps_again)
        share = machine.share()
    print(
        f"{algorithm}: after a death all others have stepped in {death_s:.1f} s, the dead one {return_s:.1f} s after "
        f"its new start; a stopped one was gone in {gone_s:.1f} s, and stepped {again_s:.1f} s after it was let go; "
        f"cores busy for {share:.0%} of the time, with whatever runs here"
    )
    assert death_s < NEXT_STEP_S
    assert max(return_s, again_s) < AGAIN_S
