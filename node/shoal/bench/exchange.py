"""What a pairwise average costs, as shipped: through two daemons and two trainers, checked and committed."""

import os
import statistics
import time
from typing import Any, NamedTuple

from shoal.bench.couple import Couple, couple
from shoal.bench.tcp import TcpPair

WARM_UP = 3
TRAINING_S = 4.0


class Paired(NamedTuple):
    """Of interleaved repeats, one entry a pair."""

    speed: list[float]  # plain TCP's seconds over ours
    cpu: list[float]  # our CPU seconds over plain TCP's
    tcp_s: list[float]
    ours_s: list[float]


def against_tcp(elements: int, repeats: int, **settings: Any) -> Paired:
    """One swap over plain TCP, then one average, and so on. Every second average is asked for by the other node."""
    tcp = TcpPair(elements)
    paired = Paired([], [], [], [])
    try:
        with couple(elements, **settings) as nodes:
            for k in range(-WARM_UP, repeats):
                tcp_s, tcp_cpu = tcp.swap()
                ours_s, ours_cpu = nodes.average(f"node-{1 + k % 2}")
                if k >= 0:
                    paired.speed.append(tcp_s / ours_s)
                    paired.cpu.append(ours_cpu / tcp_cpu)
                    paired.tcp_s.append(tcp_s)
                    paired.ours_s.append(ours_s)
    finally:
        tcp.close()
    return paired


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
