"""The table of measurements, by name."""

from collections.abc import Callable
from typing import NamedTuple

from shoal.bench import (
    against_hivemind,
    baselines,
    crowd,
    exchange,
    idle,
    memory,
    nodes,
    signs,
    sizes,
    start,
    step,
)
from shoal.bench.lab import Figure, Lab


class Measurement(NamedTuple):
    """One, and its line in `shoal bench --list`."""

    line: str
    measure: Callable[[Lab], list[Figure]]


MEASUREMENTS: dict[str, Measurement] = {
    "signs": Measurement("packing, unpacking and counting signs, against memcpy", signs.measure),
    "exchange": Measurement("one average through both processes of two nodes, against plain TCP", exchange.measure),
    "tls": Measurement("the same average over TLS, against plain text", exchange.measure_tls),
    "baselines": Measurement("memcpy, TCP, gloo and an average in every codec, side by side", baselines.measure),
    "sizes": Measurement("an average by the size of the model, beside TCP", sizes.measure),
    "hivemind": Measurement("the same average by hivemind, if it is installed", against_hivemind.measure),
    "step": Measurement("a step of a node that averages with nobody, against a plain loop", step.measure),
    "training": Measurement("what an average beside it costs a node's training", exchange.measure_lost),
    "memory": Measurement("memory of a node beyond a plain loop, by algorithm", memory.measure),
    "start": Measurement("from spawn until each of five nodes has averaged", start.measure),
    "idle": Measurement("processor and memory of a daemon with ten peers and nothing to do", idle.measure),
    "crowd": Measurement("what membership costs a node among up to 1,000, in virtual time", crowd.measure),
    "nodes": Measurement("what a daemon, and a pair's average, cost by the number of nodes", nodes.measure),
}
