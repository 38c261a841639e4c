"""What there is to reach, side by side: how fast float32 is copied, swapped and averaged by others, and by us."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shoal.bench.couple import couple
from shoal.bench.exchange import WARM_UP
from shoal.bench.lab import Figure, Lab, median
from shoal.bench.tcp import TcpPair
from shoal.bench.told import Pair
from shoal.traits import CODECS

ELEMENTS = 11_700_000
Work = Callable[[], tuple[float, float]]
"""Does it once: (wall seconds, CPU seconds of all processes that took part)."""


def measure(lab: Lab) -> list[Figure]:
    """GB/s and CPU seconds a GB of each, counted in the float32 bytes of one vector that is averaged."""
    n = lab.size(ELEMENTS)
    figures = _others(lab, n)
    ours: dict[str, dict[str, Any]] = {f"shoal, {codec}": {"codec": codec} for codec in CODECS}
    ours["shoal, f32 in shared memory"] = {"share_memory": True}
    for name, settings in list(ours.items())[: 1 if lab.quick else None]:
        with TcpPair(n) as tcp, couple(n, **settings) as nodes:
            taken = in_turn({"plain TCP": tcp.swap, name: nodes.average}, lab.pairs)
        figures += rates(taken, 4 * n)[2:]  # the speed of TCP is there already; here it is the reference
    return figures


def _others(lab: Lab, n: int) -> list[Figure]:
    gloo = [sys.executable, "-m", "shoal.bench.gloo", str(n)]
    with TcpPair(n) as tcp, Pair(gloo) as distributed:
        works: dict[str, Work] = {
            "plain TCP": tcp.swap,
            "memcpy": copying(n),
            "gloo, send and receive": distributed.swap,
            "gloo, all_reduce": lambda: distributed.both("reduce", "done"),
        }
        return rates(in_turn(works, lab.pairs), 4 * n)


def copying(elements: int) -> Work:
    """A copy of a vector of that size, in this thread."""
    x, y = np.ones(elements, np.float32), np.zeros(elements, np.float32)

    def copied() -> tuple[float, float]:
        cpu, began = time.thread_time(), time.perf_counter()
        np.copyto(y, x)
        return time.perf_counter() - began, time.thread_time() - cpu

    return copied


def in_turn(works: Mapping[str, Work], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """One of each, then again: what each took, one entry a repeat, after a few to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for k in range(-WARM_UP, repeats):
        for name, work in works.items():
            took = work()
            if k >= 0:
                taken[name].append(took)
    return taken


def rates(taken: Mapping[str, list[tuple[float, float]]], nbytes: int) -> list[Figure]:
    """Two figures each: the speed, with its ratio to the first one's of the same turn, and the CPU."""
    figures: list[Figure] = []
    first = next(iter(taken.values()))
    for name, took in taken.items():
        ratio = statistics.median(a[0] / b[0] for a, b in zip(first, took, strict=True))
        note = f"{ratio:.2f} of TCP" if took is not first else ""
        figures.append(median(name, [nbytes / 1e9 / wall for wall, _ in took], "GB/s of f32", note=note))
        figures.append(median(f"{name}: CPU", [1e9 * cpu / nbytes for _, cpu in took], "s a GB of f32"))
    return figures
