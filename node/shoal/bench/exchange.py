"""What a pairwise average costs, as shipped: through two daemons and two trainers, checked and committed."""

import os
import statistics
import time
from typing import Any, NamedTuple

from shoal.bench.couple import Couple, couple
from shoal.bench.lab import Figure, Lab, median
from shoal.bench.tcp import TcpPair

WARM_UP = 3
TRAINING_S = 4.0
ROWS: list[tuple[int, str, dict[str, Any], float]] = [
    (1_000_000, "f32", {}, 0.3),
    (11_700_000, "f32", {}, 0.45),
    (25_600_000, "f32", {}, 0.45),
    (11_700_000, "bf16", {"codec": "bf16"}, 0.75),
    (11_700_000, "f32 in shared memory", {"share_memory": True}, 2.0),
]
"""(parameters, how they go, settings, bar on the speed against plain TCP)."""


def measure(lab: Lab) -> list[Figure]:
    """Speed and CPU against plain TCP, by size and codec; a codec's is counted as the f32 work that it does."""
    figures = []
    for elements, how, settings, bar in ROWS[:1] if lab.quick else ROWS:
        paired = against_tcp(lab.size(elements), lab.pairs, **settings)
        name = f"average of {lab.size(elements) / 1e6:g} M, {how}"
        note = f"{1e3 * statistics.median(paired.ours_s):.1f} ms, TCP {1e3 * statistics.median(paired.tcp_s):.1f} ms"
        figures.append(median(f"{name}: speed / TCP", paired.speed, "x", bar=bar, note=note))
        figures.append(median(f"{name}: CPU / TCP", paired.cpu, "x", bar=2.5, less_is_better=True))
    return figures


def measure_lost(lab: Lab) -> list[Figure]:
    """Training that an average beside it costs, on two cores."""
    lost = [1e3 * each for each in training_lost(lab.size(11_700_000), 1 if lab.quick else 5)]
    note = "the trainer has one core; its daemon and both processes of the peer share the other"
    return [median("training lost beside an average of 11.7 M", lost, "ms", bar=25, less_is_better=True, note=note)]


class Paired(NamedTuple):
    """Of interleaved repeats, one entry a pair."""

    speed: list[float]  # plain TCP's seconds over ours
    cpu: list[float]  # our CPU seconds over plain TCP's
    tcp_s: list[float]
    ours_s: list[float]


def against_tcp(elements: int, repeats: int, **settings: Any) -> Paired:
    """One swap over plain TCP, then one average, and so on. Every second average is asked for by the other node."""
    paired = Paired([], [], [], [])
    with TcpPair(elements) as tcp, couple(elements, **settings) as nodes:
        for k in range(-WARM_UP, repeats):
            tcp_s, tcp_cpu = tcp.swap()
            ours_s, ours_cpu = nodes.average(f"node-{1 + k % 2}")
            if k >= 0:
                paired.speed.append(tcp_s / ours_s)
                paired.cpu.append(ours_cpu / tcp_cpu)
                paired.tcp_s.append(tcp_s)
                paired.ours_s.append(ours_s)
    return paired


def measure_tls(lab: Lab) -> list[Figure]:
    """Wall and CPU time of an average over TLS against the same in plain text, taken in turn."""
    walls, cpus = [], []
    elements = lab.size(11_700_000)
    with couple(elements) as plain, couple(elements, certified=True) as safe:
        for k in range(-WARM_UP, lab.pairs):
            plain_s, plain_cpu = plain.average()
            safe_s, safe_cpu = safe.average()
            if k >= 0:
                walls.append(safe_s / plain_s)
                cpus.append(safe_cpu / plain_cpu)
    name = f"average of {elements / 1e6:g} M, f32, over TLS / in plain text"
    return [median(f"{name}: time", walls, "x"), median(f"{name}: CPU", cpus, "x")]


def training_lost(elements: int, repeats: int, **settings: Any) -> list[float]:
    """Seconds of training that one average costs the node that serves it, one entry a repeat.

    On two cores: that node's trainer has one, its daemon and both processes of the peer share the other.
    """
    with couple(elements, **settings) as nodes:
        ours = nodes.trainer("node-1")
        for pid in nodes.pids:
            _pin(pid, {0} if pid == ours else {1})
        nodes.average("node-2")
        return [_lost(nodes) for _ in range(repeats)]


def _lost(nodes: Couple) -> float:
    nodes.work(TRAINING_S / 4)
    usual_s = statistics.median(nodes.worked())
    nodes.work(TRAINING_S)
    end, averages = time.monotonic() + 0.9 * TRAINING_S, 0
    while time.monotonic() < end:
        nodes.average("node-2")
        averages += 1
    took = nodes.worked()
    return (sum(took) - usual_s * len(took)) / averages


def _pin(pid: int, cores: set[int]) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), cores)
