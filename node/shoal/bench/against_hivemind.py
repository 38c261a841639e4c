"""The same average by hivemind: two of its averagers, uncompressed, over its own daemon on loopback.

The bar is on the averaging alone: hivemind may find a group ahead of time. Its whole step is beside it; ours is whole
in either.
"""

import statistics
import subprocess
from collections.abc import Sequence
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
            grouped: list[float] = []

            def swap(theirs: Pair = theirs, grouped: list[float] = grouped) -> tuple[float, float]:
                grouped.append(theirs.both("group", "done")[0])
                return theirs.swap()

            taken = in_turn({"theirs": swap, "ours": nodes.average}, lab.pairs)
        figures += compared(f"average of {n / 1e6:g} M", taken["theirs"], taken["ours"], grouped, version)
    return figures


def compared(
    name: str,
    theirs: Sequence[tuple[float, float]],
    ours: Sequence[tuple[float, float]],
    grouped: Sequence[float],
    version: str,
) -> list[Figure]:
    """Of what each took, (wall seconds, CPU seconds), turn for turn; the last entries of `grouped` are the seconds in
    which the two of hivemind had found each other before."""
    turns = list(zip(theirs, ours, grouped[-len(ours) :], strict=True))
    milliseconds = [1e3 * statistics.median(wall for wall, _ in taken) for taken in (ours, theirs)]
    note = f"{milliseconds[0]:.0f} ms, hivemind {version} {milliseconds[1]:.0f} ms"
    return [
        median(f"{name}: speed / hivemind", [a[0] / b[0] for a, b, _ in turns], "x", bar=4, note=note),
        median(f"{name}: speed / hivemind with its search for a group", [(a[0] + s) / b[0] for a, b, s in turns], "x"),
        median(f"{name}: CPU of hivemind / ours", [a[1] / b[1] for a, b, _ in turns], "x"),
    ]


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
