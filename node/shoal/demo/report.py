"""The demo's table and picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from shoal.demo.baselines import Row

COLOURS = {"AD-PSGD": "#d1495b", "D2": "#00798c", "D-PSGD": "#edae49", "SGD": "#444444", "alone": "#b0b0b0"}


def table(rows: Sequence[Row], nodes: int) -> Table:
    """Accuracy and cost, one line a method."""
    shown = Table(title=f"{nodes} nodes, two labels each; every method saw its budget of samples once")
    for title in ("method", "held-out accuracy", "held-out loss", "samples", "seconds", "MB sent a node"):
        shown.add_column(title, justify="left" if title == "method" else "right")
    for row in rows:
        shown.add_row(
            row.name,
            f"{row.accuracy:.3f}",
            f"{row.loss:.3f}",
            f"{row.samples:,}",
            "" if row.seconds is None else f"{row.seconds:.1f}",
            "" if row.megabytes is None else f"{row.megabytes:.1f}",
        )
    return shown


def _colour(name: str) -> str:
    return next((c for key, c in COLOURS.items() if name.startswith(key)), COLOURS["alone"])


def picture(
    path: Path, rows: Sequence[Row], histograms: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> None:
    """A PNG: loss and accuracy over samples for all, over time for what ran for real, and who held which labels."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    figure.suptitle(
        f"{title}\nwhile it runs the nodes' own models are shown, at the end of each curve their mean", fontsize=11
    )
    real = [row for row in rows if row.seconds is not None]
    for column, (chosen, over) in enumerate(((rows, "samples"), (real, "seconds since the start of the processes"))):
        for row in chosen:
            xs = [p.gradients if over == "samples" else p.t for p in row.curve]
            style = {"color": _colour(row.name), "lw": 1.0 if "alone" in row.name else 1.8, "label": row.name}
            axes[0, column].plot(xs, [p.loss for p in row.curve], **style)
            axes[1, column].plot(xs, [math.nan if p.accuracy is None else p.accuracy for p in row.curve], **style)
        for line, what in enumerate(("held-out loss", "held-out accuracy")):
            axes[line, column].set(xlabel=over, ylabel=what)
            axes[line, column].grid(alpha=0.3)
        axes[0, column].set_yscale("log")
        axes[1, column].set_ylim(0, 1.02)
    _legend(axes[1, 0])
    _legend(axes[1, 1])
    _histograms(axes[0, 2], histograms, classes)
    _bars(axes[1, 2], rows)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _legend(axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    once: dict[str, Any] = {}
    for handle, label in zip(handles, labels, strict=True):
        once.setdefault("each node alone" if "alone" in label else label, handle)
    axis.legend(once.values(), once.keys(), fontsize=8, loc="center right")


def _histograms(axis: Any, histograms: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    axis.imshow(histograms, cmap="Blues", aspect="auto")
    for node, counts in enumerate(histograms):
        for label, count in enumerate(counts):
            if count:
                dark = count > 0.6 * max(map(max, histograms))
                axis.text(
                    label, node, str(count), ha="center", va="center", color="white" if dark else "black", fontsize=8
                )
    axis.set(title="training samples of each label", xlabel="label", ylabel="node")
    axis.set_xticks(range(len(classes)), classes)
    axis.set_yticks(range(len(histograms)), [str(k + 1) for k in range(len(histograms))])


def _bars(axis: Any, rows: Sequence[Row]) -> None:
    names = [row.name for row in rows]
    axis.barh(names, [row.accuracy for row in rows], color=[_colour(n) for n in names])
    for position, row in enumerate(rows):
        inside = row.accuracy > 0.85
        x, colour = (0.88, "white") if inside else (row.accuracy + 0.01, "black")
        axis.text(x, position, f"{row.accuracy:.3f}", va="center", fontsize=8, color=colour)
    axis.invert_yaxis()
    axis.set(title="held-out accuracy at the end", xlim=(0, 1))
