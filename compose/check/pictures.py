"""Pictures of the dashboards, drawn by this script from what a live Prometheus answers. They are not Grafana's own.

    python compose/check/pictures.py URL docs/pictures --without gpu,tls --choose 'shoal-node:node=node-1.*'

The panels, their places, expressions, units and legends are those of compose/grafana/dashboards; the drawing is
matplotlib's. Panels of what `--without` names are left empty. `--choose` sets a variable of a dashboard, or of all.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from dashboards import NEEDS, left_out
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from prometheus import Prometheus, dashboards, filled

Chosen = dict[str, str]

COLUMN, ROW = 0.62, 0.38
"""Inches of a dashboard's column and row."""
POINTS = 200
LEGENDS = 8
"""More lines than these are drawn without names."""
BYTES = ("B", "kB", "MB", "GB", "TB")


def shown(value: float, unit: str) -> str:
    """A value with its unit, about as Grafana writes it."""
    match unit:
        case "percentunit":
            return f"{100 * value:.3g} %"
        case "s" if abs(value) >= 86400:
            return f"{value / 86400:.3g} d"
        case "s" if abs(value) >= 120:
            return f"{value / 60:.3g} min"
        case "s":
            return f"{value:.3g} s" if abs(value) >= 1 or value == 0 else f"{1000 * value:.3g} ms"
        case "decbytes" | "Bps":
            power = min(len(BYTES) - 1, int(math.log10(abs(value)) / 3)) if abs(value) >= 1 else 0
            return f"{value / 1000**power:.3g} {BYTES[power]}" + ("/s" if unit == "Bps" else "")
        case "cps" | "ops":
            return f"{value:.3g}/s"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def named(legend: str, labels: dict[str, str]) -> str:
    """The legend of a series."""
    for label, value in labels.items():
        legend = legend.replace("{{" + label + "}}", value)
    return legend


def draw(
    prometheus: Prometheus, board: dict[str, Any], chosen: Chosen, minutes: float, without: set[str], out: Path
) -> None:
    """One picture of one dashboard."""
    end = time.time()
    begin = end - 60 * minutes
    depth = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    width, height = 24 * COLUMN, depth * ROW + 0.9
    figure = plt.figure(figsize=(width, height), dpi=100, facecolor="#f4f5f5")
    figure.text(0.012, 1 - 0.3 / height, board["title"], fontsize=15, weight="bold", va="center")
    figure.text(
        0.03 + 0.0105 * len(board["title"]),
        1 - 0.3 / height,
        board["description"],
        fontsize=10,
        va="center",
        color="#555555",
    )
    note = "Drawn by compose/check/pictures.py from Prometheus' answers of a real run; Grafana shows the same panels."
    figure.text(0.012, 0.12 / height, note, fontsize=8, color="#777777", va="center")
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, bottom = place["x"] * COLUMN / width, 1 - (0.6 + (place["y"] + place["h"]) * ROW) / height
        box = figure.add_axes((left + 0.003, bottom + 0.01, place["w"] / 24 - 0.006, place["h"] * ROW / height - 0.012))
        box.set(xticks=[], yticks=[], facecolor="white")
        box.spines[:].set_color("#d8d9da")
        box.text(0.02, 0.965, panel["title"], transform=box.transAxes, fontsize=9, weight="bold", va="top")
        if need := next((n for t in panel["targets"] if (n := left_out(t["expr"], without))), ""):
            box.text(0.5, 0.5, f"no {need} in this run", transform=box.transAxes, ha="center", color="#999999")
        elif panel["type"] == "timeseries":
            _lines(prometheus, panel, chosen, box, begin, end)
        elif panel["type"] == "stat":
            _numbers(_now(prometheus, panel, chosen), panel, box)
        else:
            _bars(_now(prometheus, panel, chosen), panel, box)
    figure.savefig(out, facecolor=figure.get_facecolor())
    plt.close(figure)


def _inside(box: Axes, place: tuple[float, float, float, float]) -> Axes:
    axes = box.inset_axes(place)
    axes.tick_params(labelsize=7, length=2, colors="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color("#c0c0c0")
    return axes


def _lines(prometheus: Prometheus, panel: dict[str, Any], chosen: Chosen, box: Axes, begin: float, end: float) -> None:
    axes, unit = _inside(box, (0.13, 0.3, 0.84, 0.56)), panel["fieldConfig"]["defaults"]["unit"]
    names, times, columns = [], [begin + (end - begin) * k / POINTS for k in range(POINTS + 1)], []
    step = (end - begin) / POINTS
    for target in panel["targets"]:
        for series in prometheus.over(filled(target["expr"], **chosen), begin, end, step):
            values = {round((float(t) - begin) / step): float(v) for t, v in series["values"]}
            names.append(named(target["legendFormat"], series["metric"]))
            columns.append([values.get(k, math.nan) for k in range(POINTS + 1)])
    minutes = [(t - end) / 60 for t in times]
    settings = panel["fieldConfig"]["defaults"]
    colors = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    if settings["custom"]["stacking"]["mode"] == "normal":
        filled_in = [[0.0 if math.isnan(v) else v for v in column] for column in columns]
        axes.stackplot(minutes, filled_in, colors=[colors[k % 10] for k in range(len(names))], alpha=0.7)
    else:
        for k, column in enumerate(columns):
            axes.plot(minutes, column, linewidth=0.9, color=colors[k % 10])
    if settings["custom"]["scaleDistribution"]["type"] == "log":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=settings.get("min"), top=settings.get("max"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} min"))
    axes.set_xlim(minutes[0], 0)
    axes.set_axisbelow(True)
    axes.grid(color="#eeeeee", linewidth=0.6)
    _legend(box, names, colors)


def _legend(box: Axes, names: list[str], colors: Any) -> None:
    if not names:
        box.text(0.5, 0.5, "no data", transform=box.transAxes, ha="center", color="#999999")
    for k, name in enumerate(names[:LEGENDS]):
        x, y = 0.03 + 0.49 * (k % 2), 0.2 - 0.055 * (k // 2)
        box.text(x, y, "\N{BLACK SQUARE}", transform=box.transAxes, fontsize=6.5, color=colors[k % 10], va="center")
        box.text(x + 0.03, y, name[:34], transform=box.transAxes, fontsize=6.5, color="#333333", va="center")
    if len(names) > LEGENDS:
        text = f"and {len(names) - LEGENDS} more"
        box.text(0.97, 0.965, text, transform=box.transAxes, fontsize=6.5, color="#777777", va="top", ha="right")


def _now(prometheus: Prometheus, panel: dict[str, Any], chosen: Chosen) -> list[tuple[str, float]]:
    found = []
    for target in panel["targets"]:
        for series in prometheus.now(filled(target["expr"], **chosen)):
            found.append((named(target["legendFormat"], series["metric"]), float(series["value"][1])))  # noqa: PERF401
    return sorted(found)


def _numbers(found: list[tuple[str, float]], panel: dict[str, Any], box: Axes) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for k, (name, value) in enumerate(found):
        x = (k + 0.5) / len(found)
        style = {"transform": box.transAxes, "ha": "center", "va": "center"}
        box.text(x, 0.48, shown(value, unit), fontsize=15, color="#1a7f37", weight="bold", **style)
        box.text(x, 0.17, name, fontsize=8, color="#555555", **style)


def _bars(found: list[tuple[str, float]], panel: dict[str, Any], box: Axes) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes = _inside(box, (0.13, 0.06, 0.7, 0.8))
    axes.barh(range(len(found)), [value for _, value in found], color="#3274d9", height=0.7)
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.invert_yaxis()
    axes.set_xticks([])
    for k, (_, value) in enumerate(found):
        axes.text(value, k, " " + shown(value, unit), fontsize=7, va="center")


def main() -> None:
    """Writes one PNG a dashboard."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of Prometheus, such as http://localhost:9090")
    parser.add_argument("out", type=Path, help="the folder that they go into")
    parser.add_argument("--minutes", type=float, default=10.0, help="how far back (10)")
    parser.add_argument("--without", default="", help=f"what there is none of: {', '.join(NEEDS)}")
    parser.add_argument("--choose", action="append", default=[], metavar="[UID:]NAME=REGEX", help="a variable's value")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for board in dashboards():
        path = given.out / f"{board['uid']}.png"
        mine = [
            text.rpartition(":")[2] for text in given.choose if text.startswith(f"{board['uid']}:") or ":" not in text
        ]
        chosen = dict(text.split("=", 1) for text in mine)
        draw(Prometheus(given.url), board, chosen, given.minutes, set(filter(None, given.without.split(","))), path)
        print(path)


if __name__ == "__main__":
    main()
