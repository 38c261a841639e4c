"""Pictures of claims: one idea each, in colours that differ for colour-blind eyes, too (Okabe and Ito, 2008)."""

import contextlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "ad-psgd": "#D55E00",
    "d-psgd": "#E69F00",
    "d2": "#0072B2",
    "allreduce-sgd": "#000000",
    "a-psgd": "#CC79A7",
    "signsgd": "#F0E442",
    "signum": "#009E73",
    "ef-signsgd": "#56B4E9",
    "katyusha-x": "#7F3C8D",
    "svrg": "#8C8C8C",
    "SGD on all the data": "#8C8C8C",
}
NAMES = {
    "ad-psgd": "AD-PSGD",
    "d-psgd": "D-PSGD",
    "d2": "D2",
    "allreduce-sgd": "AllReduce-SGD",
    "a-psgd": "A-PSGD",
    "signsgd": "signSGD",
    "signum": "Signum",
    "ef-signsgd": "EF-signSGD",
    "katyusha-x": "Katyusha X",
    "svrg": "SVRG",
}
MARKERS = "osD^vPX*<>"


def method(name: str) -> str:
    """`d2` of `d2 sign` and of `d2, lr .5`."""
    return name if name in COLOURS else re.split("[ ,]", name)[0]


def colour(name: str) -> str:
    """By the method."""
    return COLOURS.get(method(name), "#555555")


def title(name: str) -> str:
    """A name with the method as people write it."""
    first = method(name)
    return NAMES.get(first, first) + name[len(first) :]


def marker(name: str) -> str:
    """A shape for each method, so that colour is not all that tells curves apart."""
    known = list(COLOURS)
    return MARKERS[known.index(method(name)) % len(MARKERS)] if method(name) in known else "o"


@contextlib.contextmanager
def picture(path: Path, heading: str, columns: int = 1, rows: int = 1) -> Iterator[Any]:
    """Axes, in an array if there are several; the PNG is written at the end of the `with` block."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, 4.8 * rows), layout="constrained")
    figure.suptitle(textwrap.fill(heading, 72 * columns), fontsize=11)
    try:
        yield axes
        for axis in axes.flat if hasattr(axes, "flat") else [axes]:
            axis.grid(alpha=0.3)
            axis.set_axisbelow(True)
        figure.savefig(path, dpi=110)
    finally:
        plt.close(figure)


def line(axis: Any, name: str, xs: Sequence[float], ys: Sequence[float], **style: Any) -> None:
    """One method's curve. Forms in one bit are dashed."""
    dashes = "--" if name.endswith(" sign") else "-"
    given = {"color": colour(name), "marker": marker(name), "ms": 4, "lw": 1.6, "ls": dashes, "label": title(name)}
    axis.plot(xs, ys, **{**given, **style})


def bars(axis: Any, values: Mapping[str, float], *, what: str, bar: float | None = None) -> None:
    """One horizontal bar a name, with its figure; `bar`: a dashed line where the criterion lies."""
    names = list(values)
    axis.barh([textwrap.fill(title(n), 30) for n in names], list(values.values()), color=[colour(n) for n in names])
    for position, value in enumerate(values.values()):
        axis.text(value, position, f" {value:.3g}", va="center", fontsize=8)
    if bar is not None:
        axis.axvline(bar, color="black", ls="--", lw=1)
    axis.invert_yaxis()
    axis.set(xlabel=what)
    axis.margins(x=0.15)
