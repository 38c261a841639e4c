"""All figures that have a bar in one picture: how far from its bar each is."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from shoal.bench.lab import Figure

MET, MISSED = "#0072B2", "#D55E00"
"""Colours that differ for colour-blind eyes, too (Okabe and Ito, 2008)."""
FARTHEST = 16.0
"""Times its bar, or that part of it, beyond which a figure is drawn no longer."""


def reached(figure: Figure) -> float:
    """1 at the bar, 2 where the figure is twice as good, .5 where it is half as good."""
    assert figure.bar is not None
    value, bar = (figure.bar, figure.value) if figure.less_is_better else (figure.value, figure.bar)
    ratio = value / bar if bar > 0 else math.inf
    return min(max(ratio, 1 / FARTHEST), FARTHEST)


def draw(path: Path, figures: Sequence[Figure], heading: str) -> bool:
    """A PNG with one horizontal bar a figure, from the line of its bar to the right where it is met, else to the left.
    False, and no file, where no figure has a bar."""
    barred = [figure for figure in figures if figure.bar is not None]
    if not barred:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sheet, axis = plt.subplots(figsize=(10, 1.6 + 0.34 * len(barred)), layout="constrained")
    try:
        for row, figure in enumerate(barred):
            far = math.log2(reached(figure))
            axis.barh(row, far, color=MET if figure.met else MISSED)
            axis.text(far, row, said(figure), va="center", ha="left" if far >= 0 else "right", fontsize=8)
        axis.axvline(0, color="black", lw=1)
        axis.set_yticks(range(len(barred)), [textwrap.shorten(f.name, 60) for f in barred], fontsize=8)
        axis.set_ylim(len(barred) - 0.4, -0.6)
        least, most = (math.log2(pick(map(reached, barred))) for pick in (min, max))
        ticks = range(math.floor(min(least, -1)), math.ceil(max(most, 1)) + 1)
        axis.set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
        axis.set_xlim(ticks[0] - 1.2, ticks[-1] + 1.2)
        axis.set_xlabel("times as good as its bar (blue: met, orange: missed)")
        axis.set_title(heading, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        sheet.savefig(path, dpi=110)
    finally:
        plt.close(sheet)
    return True


def said(figure: Figure) -> str:
    """Value and bar, beside it."""
    sign = "≤" if figure.less_is_better else "≥"
    return f" {figure.value:.3g} {figure.unit} ({sign} {figure.bar:g}) "
