"""How what a node costs grows with the number of nodes, on this one machine."""

import os
import statistics
from collections.abc import Mapping, Sequence

from shoal.bench.couple import couple
from shoal.bench.idle import WATCH_S, Use, watch
from shoal.bench.lab import Figure, Lab, median
from shoal.bench.processes import available_bytes
from shoal.bench.quiet import quiet_nodes

COUNTS = (4, 8, 16, 32, 64)
A_NODE_BYTES = 160 << 20
"""That a daemon and its silent trainer may take."""
FULL = 0.45
"""Of all cores. Twice as many daemons use at least twice as much: from there on they would wait for each other."""
OF_A_PAIR = (2, 4, 8, 16)
PAIR_ELEMENTS = 1_000_000


def measure(lab: Lab) -> list[Figure]:
    """Idle daemons in a ring, medians over them; and the time of a pair's average, with others beside it."""
    return [*of_uses(_uses(lab)), *_pairs(lab)]


def _uses(lab: Lab) -> dict[int, list[Use]]:
    """By their number, as many as there is room for."""
    uses: dict[int, list[Use]] = {}
    for count in (2, 4) if lab.quick else COUNTS:
        if count * A_NODE_BYTES > available_bytes():
            break
        with quiet_nodes(count, topology="ring") as nodes:
            uses[count] = watch(nodes, 1.0 if lab.quick else WATCH_S)
        if sum(use.cpu for use in uses[count]) > 100 * FULL * (os.cpu_count() or 1):
            break
    if not uses:
        raise RuntimeError(f"{COUNTS[0]} nodes need {COUNTS[0] * A_NODE_BYTES >> 20} MiB")
    return uses


def of_uses(uses: Mapping[int, Sequence[Use]]) -> list[Figure]:
    """By the number of nodes what one of them uses, and by how much that grows from the fewest to the most."""
    what = {"cpu": "% of a core", "own": "MiB (PSS)", "sent": "B/s sent"}
    figures = []
    for field, unit in what.items():
        name = {"cpu": "CPU", "own": "memory", "sent": "control traffic"}[field]
        values = {count: [getattr(use, field) for use in each] for count, each in uses.items()}
        figures += [median(f"{name} of an idle daemon, {count} nodes", each, unit) for count, each in values.items()]
        few, many = min(values), max(values)
        growth = statistics.median(values[many]) / statistics.median(values[few])
        figures.append(
            Figure(name=f"{name} of an idle daemon: growth from {few} to {many} nodes", value=growth, unit="x")
        )
    return figures


def _pairs(lab: Lab) -> list[Figure]:
    """Every node is connected with every other; two of them average, the others look on."""
    figures, n = [], lab.size(PAIR_ELEMENTS)
    for count in OF_A_PAIR[:1] if lab.quick else OF_A_PAIR:
        with couple(n, count) as nodes:
            first = nodes.fleet.nodes[0].name
            nodes.average(first)
            took = [1e3 * nodes.average(first)[0] for _ in range(lab.pairs)]
        figures.append(median(f"average of {n / 1e6:g} M, {count} nodes", took, "ms"))
    return figures
