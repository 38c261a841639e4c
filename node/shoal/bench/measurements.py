"""The table of measurements, by name."""

from collections.abc import Callable
from typing import NamedTuple

from shoal.bench import exchange, signs
from shoal.bench.lab import Figure, Lab


class Measurement(NamedTuple):
    """One, and its line in `shoal bench --list`."""

    line: str
    measure: Callable[[Lab], list[Figure]]


MEASUREMENTS: dict[str, Measurement] = {
    "signs": Measurement("packing, unpacking and counting signs, against memcpy", signs.measure),
    "exchange": Measurement("one average through both processes of two nodes, against plain TCP", exchange.measure),
    "training": Measurement("what an average beside it costs a node's training", exchange.measure_lost),
}
