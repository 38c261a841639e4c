"""How long nodes take from nothing to their first average: import of torch, data, discovery, view, first step."""

import tempfile
import time
from pathlib import Path
from typing import Any

from shoal.bench.lab import Figure, Lab, median
from shoal.demo.fleet import Fleet, NodeProcess, loopback_nodes

WITHIN_S = 120.0
RUNS = 3


def measure(lab: Lab) -> list[Figure]:
    """Seconds until the last of five nodes of the digits has finished an average. The first run only fills the
    page cache."""
    count = 2 if lab.quick else 5
    runs = [until_averaged(count) for _ in range(1 if lab.quick else 1 + RUNS)]
    name = f"{count} nodes of the digits: from spawn until each has averaged"
    return [median(name, runs if lab.quick else runs[1:], "s", bar=10, less_is_better=True)]


def until_averaged(count: int) -> float:
    """Seconds, for that many nodes that are started at once."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        specs = loopback_nodes(count, shoal=folder.name, task="digits", algorithm="ad-psgd", rounds=100_000)
        began_s = time.time()
        with Fleet(folder, specs) as fleet:
            until = began_s + WITHIN_S
            while not all(_has_averaged(node) for node in fleet.nodes):
                if time.time() > until or fleet.failures():
                    logs = " | ".join(node.log_tail() for node in fleet.nodes)
                    raise RuntimeError(f"{count} nodes have not all averaged within {WITHIN_S:g} s: {logs}")
                time.sleep(0.25)
            for node in fleet.nodes:  # a checkpoint is of no use
                node.process.kill()
        return max(first_average(node.history()) for node in fleet.nodes) - began_s


def _has_averaged(node: NodeProcess) -> bool:
    """Its history says so, which it writes once a second: what is asked for over HTTP costs a start its processor."""
    return any(line["kind"] == "exchange" and line["outcome"] == "done" for line in node.history())


def first_average(history: list[dict[str, Any]]) -> float:
    """When a node's first average was done, in seconds of the epoch."""
    began = next(line for line in history if line.get("what") == "began")
    done = next(line for line in history if line["kind"] == "exchange" and line["outcome"] == "done")
    return float(began["epoch_s"] - began["t"] + done["t"])
