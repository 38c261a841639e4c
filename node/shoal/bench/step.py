"""What a node's own step costs beyond a plain PyTorch loop's: same task, batch, step size and one thread each.

The plain loop is a process of its own, as it would be without shoal, so that its memory is managed as such a program's
is; the two take their steps in turn, a stretch each, and never at the same time.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from shoal.bench.blank import layers_file
from shoal.bench.couple import obedient
from shoal.bench.lab import Figure, Lab, median
from shoal.bench.told import Told
from shoal.settings import Settings

ROWS: list[tuple[str, int, int, float]] = [("1e5", 182, 768, 5.0), ("1e7", 1825, 16, 15.0)]
"""(parameters, width of three layers, batch, bar in percent)."""
STRETCH_S = 0.25
"""Of steps in a row."""


def measure(lab: Lab) -> list[Figure]:
    """Percent by which a step of `ad_psgd` without neighbours takes longer."""
    figures = []
    for d, width, batch, bar in ROWS[:1] if lab.quick else ROWS:
        plain_s, ours_s = stretches(width, batch, lab.pairs)
        over = [100 * (ours / plain - 1) for plain, ours in zip(plain_s, ours_s, strict=True)]
        note = f"{1e3 * statistics.median(ours_s):.2f} ms, plain {1e3 * statistics.median(plain_s):.2f} ms"
        figures.append(median(f"step of {d} parameters: overhead", over, "%", bar=bar, less_is_better=True, note=note))
    return figures


def stretches(width: int, batch: int, pairs: int) -> tuple[list[float], list[float]]:
    """(seconds a step of the plain loop, of ours), one entry a pair of stretches."""
    plain_s, ours_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "blank.py"
        file.write_text(layers_file(width))
        plain_argv = [sys.executable, "-m", "shoal.bench.plain", f"{file}:Blank", str(batch)]
        with Told(plain_argv) as plain, obedient(layers_file(width), 1, batch=batch, lr=Settings().lr) as nodes:
            plain.expect("ready")

            def plainly(count: int) -> float:
                plain.tell(f"steps {count}")
                return float(plain.heard())

            plainly(3)
            nodes.steps(3)
            count = max(1, round(STRETCH_S / (plainly(10) / 10)))
            for _ in range(pairs):
                plain_s.append(plainly(count) / count)
                ours_s.append(nodes.steps(count) / count)
    return plain_s, ours_s
