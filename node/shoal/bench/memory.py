"""What memory a node takes beyond a plain PyTorch loop with the same model, by algorithm."""

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shoal.bench.blank import layers_file
from shoal.bench.lab import Figure, Lab
from shoal.bench.processes import family, memory_bytes
from shoal.bench.told import Told
from shoal.demo.fleet import Fleet, NodeProcess, loopback_nodes, start
from shoal.traits import ALGORITHMS

WIDTH, LARGE, BATCH = 1825, 2920, 16
"""Of three layers: 1e7 and 2.56e7 parameters."""
BARS = {"ad-psgd": 5.0}
WITHIN_S = 120.0
STEPS = 5
"""After so many all that a step or an average needs has been taken once."""
LOOKS = 20
EVERY_S = 0.1


def measure(lab: Lab) -> list[Figure]:
    """The most that either of two nodes takes, daemon and trainer, less the most that the plain loop takes."""
    if lab.quick:
        return [_beyond("ad-psgd", WIDTH // 10, None)]
    figures = [_beyond("ad-psgd", LARGE, BARS["ad-psgd"])]
    return [*figures, *(_beyond(algorithm, WIDTH, BARS.get(algorithm)) for algorithm in ALGORITHMS)]


def _beyond(algorithm: str, width: int, bar: float | None) -> Figure:
    d = 3 * width * (width + 1)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "blank.py"
        file.write_text(layers_file(width))
        trainer, daemon, plain = most(f"{file}:Blank", algorithm, Path(place) / algorithm)
    return Figure(
        name=f"memory of a node beyond a plain loop, {algorithm}, {d / 1e6:.3g} M",
        value=(trainer + daemon - plain) / (4 * d),
        unit="vectors",
        bar=bar,
        less_is_better=True,
        note=f"trainer {trainer >> 20} MiB, daemon {daemon >> 20}; plain {plain >> 20}; a vector {4 * d >> 20}",
    )


def most(task: str, algorithm: str, folder: Path) -> tuple[int, int, int]:
    """Bytes (PSS): of trainer and daemon of one of two nodes when they were the most together, and the most of the
    plain loop. All of them are at work at the same time, so that pages of torch's code are shared by as many."""
    common: dict[str, Any] = {
        "shoal": f"{folder.parent.name}-{algorithm}",
        "task": task,
        "algorithm": algorithm,
        "precision": "f32",
        "lr": 1e-4,
        "batch": BATCH,
        "rounds": 1_000_000,
        "checkpoint_every": 0,
        "eval_every": 0,
        "partition": "iid",
    }
    with contextlib.ExitStack() as stack:
        if ALGORITHMS[algorithm].over[0] == "coordinator":
            specs: dict[str, Any] = {"name": "coordinator", "shoal": common["shoal"], "log": "human"}
            stack.callback(_kill, start(folder, specs, verb="coordinator"))
        plain = stack.enter_context(Told([sys.executable, "-m", "shoal.bench.plain", task, str(BATCH)]))
        fleet = stack.enter_context(Fleet(folder, loopback_nodes(2, **common)))
        for node in fleet.nodes:  # neither a checkpoint nor an end in order is of any use
            stack.callback(_kill, node)
        plain.expect("ready")
        plain.tell("steps 1000000")
        _until_trained(fleet)
        of_plain, of_nodes = [], []
        for _ in range(LOOKS):
            time.sleep(EVERY_S)
            of_plain.append(memory_bytes(plain.pid))
            of_nodes += [_of_both_processes(node) for node in fleet.nodes]
    return *max(of_nodes, key=sum), max(of_plain)


def _kill(node: NodeProcess) -> None:
    node.process.kill()
    node.process.wait()


def _until_trained(fleet: Fleet) -> None:
    until = time.monotonic() + WITHIN_S
    while any(_steps(node) < STEPS for node in fleet.nodes):
        if time.monotonic() > until or fleet.failures():
            logs = " | ".join(node.log_tail() for node in fleet.nodes)
            raise RuntimeError(f"two nodes have not taken {STEPS} steps within {WITHIN_S:g} s: {logs}")
        time.sleep(0.1)


def _steps(node: NodeProcess) -> int:
    return int((node.status() or {}).get("node", {}).get("step", 0))


def _of_both_processes(node: NodeProcess) -> tuple[int, int]:
    daemon, *rest = family(node.process.pid)
    return sum(map(memory_bytes, rest)), memory_bytes(daemon)
