"""How long an average takes by the size of the model, beside plain TCP."""

import statistics

from shoal.bench.exchange import against_tcp
from shoal.bench.lab import Figure, Lab, median
from shoal.bench.processes import available_bytes

ELEMENTS = (100_000, 1_000_000, 10_000_000, 100_000_000)
VECTORS = 16
"""That two nodes and two plain processes take memory for, at most."""
LARGE = 50_000_000
"""Elements from which on fewer repeats tell enough."""


def measure(lab: Lab) -> list[Figure]:
    """Milliseconds of each size that there is memory for."""
    figures = []
    for elements in ELEMENTS[:1] if lab.quick else ELEMENTS:
        n = lab.size(elements)
        if 4 * n * VECTORS > available_bytes():
            break
        paired = against_tcp(n, max(3, lab.pairs // 4) if n > LARGE else lab.pairs)
        tcp_ms, speed = 1e3 * statistics.median(paired.tcp_s), statistics.median(paired.speed)
        note = f"TCP {tcp_ms:.2f} ms, {speed:.2f} of its speed"
        figures.append(median(f"average of {n / 1e6:g} M", [1e3 * s for s in paired.ours_s], "ms", note=note))
    return figures
