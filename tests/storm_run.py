"""A whole run in the storm, beside the same run in quiet: what `make chaos` and its short part have in common."""

import re
import time
from pathlib import Path

from applied import applied
from hosted import HostedShoal, accuracy, hosted
from nodes_kit import assert_one_model, log
from storm import LOOK_S, ROWS, SUSPECT_AFTER_S, Row, Storm

from shoal.settings import Settings
from shoal.simulation import Scenario, World, evaluator, population
from shoal.virtual_time import run
from shoal_coordinator import beside

COMPUTE_S = 0.1
"""Emulated: what a gradient takes at least, so that the machine is not the fault. No run is shorter than its rounds
take by this alone, so none ends before its storm does."""
POINT = 0.01
KILLED = re.compile(r"error: the trainer process (was killed by SIGKILL|died \d+ times in \d+ minutes)")
"""What the storm has done to a node; of any other death its daemon says another thing first. With the second a daemon
gives up, and is started again."""
OWN_WORDS = re.compile(
    r'Traceback .*\n  File "src/python/grpcio/.*_schedule_rpc_coro\n(asyncio.exceptions.)?CancelledError\n'
)
"""What grpc.aio itself prints of a stream that is still open where its server stops: noise, and no crash."""
QUIET_GAP_S = 10.0
"""Longest time without a step of any node in the quiet that follows."""


def rounds_for(seconds: float) -> int:
    """So many that the run lasts longer."""
    return int(seconds / COMPUTE_S)


def quiet_accuracy(row: Row, nodes: int, rounds: int) -> float:
    """Of the mean model of the same run in virtual time, where nothing befalls it."""
    settings = Settings(**{**row.settings, "rounds": rounds, "over": "coordinator" if row.coordinator else "peers"})
    learners, states = population(settings, nodes)
    options = {"coordinator": beside(settings)} if row.coordinator else {}

    async def go() -> float:
        result = await World(settings, Scenario(), learners, states, evaluate=evaluator(learners), **options).run()
        found = result.curve[-1].accuracy
        assert found is not None
        return found

    return run(go())


def stormy(name: str, folder: Path, *, nodes: int, storm_s: float, quiet_s: float, seed: int) -> None:
    """That row of the table through a storm and the quiet after it, to its end. Raises AssertionError."""
    row, rounds = ROWS[name], rounds_for(storm_s + quiet_s)
    common = {
        "task": "digits",
        "rounds": rounds,
        "emulate_compute_s": COMPUTE_S,
        "suspect_after_s": SUSPECT_AFTER_S,
        "checkpoint_every": 20,
        "eval_every": 0,
        **row.settings,
    }
    print(f"{name}: {nodes} nodes, {rounds} rounds, {storm_s:.0f} s of faults, seed {seed}", flush=True)
    with hosted(folder, nodes, coordinator=row.coordinator, **common) as shoal:
        shoal.start_all()
        until_steps(shoal, 5)
        storm = Storm(shoal, seed, row.faults)
        try:
            storm.blow(storm_s)
        finally:
            print(storm.told(), flush=True)
        quiet(shoal, quiet_s)
        shoal.until_end(longest_s=60 + 3 * rounds * COMPUTE_S)
        check(shoal, storm)
        reached, expected = accuracy(shoal.nodes[0]), quiet_accuracy(row, nodes, rounds)
        print(f"accuracy {reached:.3f}, in quiet {expected:.3f}", flush=True)
        assert reached >= expected - POINT


def until_steps(shoal: HostedShoal, count: int) -> None:
    """Until each node has so many."""
    for node in shoal.nodes:
        shoal.shoal.until(lambda node=node: node.steps() >= count, f"{node.name} trains")


def quiet(shoal: HostedShoal, seconds: float) -> None:
    """So long nothing happens, and everybody trains."""
    end = time.monotonic() + seconds
    seen = {node.name: (node.steps(), time.monotonic()) for node in shoal.nodes}
    while (now := time.monotonic()) < end:
        for node in shoal.nodes:
            assert node.running, f"{node.name} has ended in the quiet: {node.log_tail(2)}"
            steps, since = seen[node.name]
            if node.steps() > steps or node.finished:
                seen[node.name] = node.steps(), now
            assert now - since < QUIET_GAP_S, f"{node.name} stands still in the quiet: {node.log_tail(2)}"
        time.sleep(LOOK_S)


def check(shoal: HostedShoal, storm: Storm) -> None:
    """Nobody crashed but who was killed, no gradient is in a model twice, and all have one model."""
    lost = 0
    for node in shoal.everybody:
        assert "Traceback" not in OWN_WORDS.sub("", log(node)), f"{node.name} crashed"
        found = [line for line in log(node).splitlines() if line.startswith("error:") and not KILLED.match(line)]
        assert found == [], f"{node.name}: {found}"
    for node in shoal.nodes:
        books = applied(node.history())
        assert books.lives == node.lives
        assert any(batch is not None for _, batch in books.survived), "no line says which batch"
        lost += books.lost
    print(f"{lost} gradients were lost with killed processes, none is in a model twice", flush=True)
    assert_one_model(shoal.nodes)
