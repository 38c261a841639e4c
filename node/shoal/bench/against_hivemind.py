"""The same average by hivemind: two of its averagers, uncompressed, over its own daemon on loopback.

Only the averaging itself is counted. Finding a group is left out: hivemind schedules that ahead of time.
"""

import statistics
import subprocess
from pathlib import Path

from shoal.bench.baselines import in_turn
from shoal.bench.couple import couple
from shoal.bench.lab import Figure, Lab, median
from shoal.bench.told import Pair

VERSION = "1.1.12"
AVERAGER = Path(__file__).with_name("averager.py")
ELEMENTS = (11_700_000, 25_600_000)


def measure(lab: Lab) -> list[Figure]:
    """How many times faster ours is. Raises RuntimeError where hivemind is not installed."""
    version = installed(lab.hivemind)
    figures = []
    for elements in ELEMENTS[:1] if lab.quick else ELEMENTS:
        n = lab.size(elements)
        with Pair([lab.hivemind, str(AVERAGER), str(n)]) as theirs, couple(n) as nodes:

            def swap(theirs: Pair = theirs) -> tuple[float, float]:
                theirs.both("group", "done")
                return theirs.swap()

            taken = in_turn({"theirs": swap, "ours": nodes.average}, lab.pairs)
        pairs = list(zip(taken["theirs"], taken["ours"], strict=True))
        walls = [1e3 * statistics.median(wall for wall, _ in taken[who]) for who in ("ours", "theirs")]
        name, note = f"average of {n / 1e6:g} M", f"{walls[0]:.0f} ms, hivemind {version} {walls[1]:.0f} ms"
        faster, spared = [a[0] / b[0] for a, b in pairs], [a[1] / b[1] for a, b in pairs]
        figures.append(median(f"{name}: speed / hivemind", faster, "x", bar=4, note=note))
        figures.append(median(f"{name}: CPU of hivemind / ours", spared, "x"))
    return figures


def installed(python: str) -> str:
    """The version of hivemind that an interpreter imports. Raises RuntimeError, with what to do, where it has none."""
    try:
        argv = [python, "-c", "import hivemind; print(hivemind.__version__)"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        said = done.stdout.strip() if done.returncode == 0 else ""
    except OSError:
        said = ""
    if not said:
        how = f"`pip install hivemind=={VERSION}` in an environment of its own, and name its Python with --hivemind"
        raise RuntimeError(f"{python} cannot import hivemind: {how}")
    return said
