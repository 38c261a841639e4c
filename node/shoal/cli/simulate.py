"""`shoal simulate`: the same algorithms among many workers in one process, in virtual time."""

import math
import re
import time
from dataclasses import fields
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from shoal.cli.options import with_settings
from shoal.cli.terminal import JsonFile, write_json
from shoal.errors import SettingsError
from shoal.settings import Settings
from shoal.simulation import Crash, Cut, Result, Scenario, evaluator, population, simulate
from shoal_coordinator import Terms, beside

RUN_SETTINGS = [f.name for f in fields(Settings) if f.metadata["scope"] == "run"] + [
    "task",
    "data_dir",
    "download",
    "quorum",
    "deadline_s",
]


@with_settings(only=RUN_SETTINGS)
def command(
    settings: Settings,
    workers: Annotated[int, typer.Option(help="Number of workers.", min=1, max=100_000)] = 5,
    compute: Annotated[float, typer.Option(help="Seconds that a gradient takes.", min=0)] = 0.01,
    jitter: Annotated[float, typer.Option(help="A gradient takes compute (1 +- jitter).", min=0, max=1)] = 0.0,
    link: Annotated[float, typer.Option(help="Seconds that a full vector keeps a link busy, one way.", min=0)] = 0.001,
    port: Annotated[float, typer.Option(help="Seconds that it keeps a worker's network port busy.", min=0)] = 0.0,
    latency: Annotated[float, typer.Option(help="Seconds that any message travels.", min=0)] = 0.0001,
    slow: Annotated[list[str] | None, typer.Option(help="WORKER:FACTOR, a slow worker.")] = None,
    slow_link: Annotated[list[str] | None, typer.Option(help="A-B:FACTOR, a slow link.")] = None,
    cut: Annotated[list[str] | None, typer.Option(help="AT:A-B:SECONDS, a link that breaks for a while.")] = None,
    crash: Annotated[list[str] | None, typer.Option(help="AT:WORKER, a worker that dies.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="WORKER:FACTOR on its gradients; -1 flips them.")] = None,
    curve_every: Annotated[int, typer.Option(help="Gradients between two points of the curve; 0: ends only.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Run an algorithm among many workers in one process and in virtual time.

    The same seed and scenario give the same trace digest, on any day and whatever PYTHONHASHSEED.
    """
    scenario = Scenario(
        compute_s=compute,
        jitter=jitter,
        vector_s=link,
        port_s=port,
        latency_s=latency,
        slow=tuple((int(w), float(f)) for w, f in _parsed(slow, r"(\d+):([\d.]+)", "--slow WORKER:FACTOR")),
        slow_links=tuple(
            (int(a), int(b), float(f))
            for a, b, f in _parsed(slow_link, r"(\d+)-(\d+):([\d.]+)", "--slow-link A-B:FACTOR")
        ),
        attackers=tuple((int(w), float(f)) for w, f in _parsed(attack, r"(\d+):(-?[\d.]+)", "--attack WORKER:FACTOR")),
        cuts=tuple(
            Cut(float(t), int(a), int(b), float(s))
            for t, a, b, s in _parsed(cut, r"([\d.]+):(\d+)-(\d+):([\d.]+)", "--cut AT:A-B:SECONDS")
        ),
        crashes=tuple(Crash(float(t), int(w)) for t, w in _parsed(crash, r"([\d.]+):(\d+)", "--crash AT:WORKER")),
    )
    scenario.check(workers)
    torch.set_num_threads(settings.threads)  # one thread is fastest for small models
    began = time.monotonic()
    learners, states = population(settings, workers)
    evaluate = evaluator(learners)
    terms = Terms(settings.quorum, settings.deadline_s)
    coordinator = beside(settings, terms) if settings.over == "coordinator" else None
    options: dict[str, Any] = {"evaluate": evaluate, "evaluate_every": curve_every, "coordinator": coordinator}
    result = simulate(settings, scenario, learners, states, **options)
    summary = summarise(settings, result, time.monotonic() - began)
    summary["worst_accuracy"] = min(
        (a for a in (evaluate(s)[1] for s in result.states[:64]) if a is not None), default=None
    )
    _show(settings, workers, result, summary)
    write_json(json_file, {"settings": settings.run_document(), **summary})


def _parsed(given: list[str] | None, pattern: str, expected: str) -> list[tuple[str, ...]]:
    found = []
    for text in given or []:
        match = re.fullmatch(pattern, text)
        if match is None:
            raise SettingsError(f"{text!r}: expected {expected}")
        found.append(match.groups())
    return found


def summarise(settings: Settings, result: Result, real_s: float) -> dict[str, Any]:
    """The figures of a run, as plain values."""
    tallies = [r.settlement.tally for r in result.runtimes]
    last = result.curve[-1]
    return {
        "workers": len(result.runtimes),
        "gradients": result.gradients,
        "virtual_seconds": result.seconds,
        "real_seconds": real_s,
        "gradients_per_virtual_second": result.gradients / result.seconds if result.seconds else None,
        "train_loss": last.loss,
        "accuracy": last.accuracy,
        "spread": last.spread,
        "sent_bytes": sum(result.sent_bytes.values()),
        "averages_done": sum(t.active for t in tallies),
        "averages_busy": sum(t.busy for t in tallies),
        "averages_broken": sum(t.gone for t in tallies),
        "digest": result.digest,
        "curve": [vars(point) for point in result.curve],
    }


def _show(settings: Settings, workers: int, result: Result, summary: dict[str, Any]) -> None:
    console = Console()
    mixing = result.runtimes[0].mixing
    if mixing is not None:
        console.print(mixing.describe(), highlight=False)
    table = Table(
        title=f"{settings.algorithm}, {workers} workers, {settings.topology}, {settings.partition}", show_header=False
    )
    rows = {
        "train loss of the mean model": _number(summary["train_loss"]),
        "held-out accuracy of the mean model": _number(summary["accuracy"]),
        "worst worker's accuracy (of the first 64)": _number(summary["worst_accuracy"]),
        "spread of the models": _number(summary["spread"]),
        "gradients": f"{summary['gradients']:,}",
        "virtual time": f"{summary['virtual_seconds']:.3f} s",
        "bytes of vectors sent, a gradient": f"{summary['sent_bytes'] / max(1, summary['gradients']):,.0f}",
        "gradients a virtual second": _number(summary["gradients_per_virtual_second"]),
        "real time": f"{summary['real_seconds']:.1f} s",
    }
    if settings.traits.pairs:
        per_gradient = summary["averages_done"] / max(1, summary["gradients"])
        rows["averages done, a gradient"] = f"{per_gradient:.3f}"
        rows["offers answered busy, a gradient"] = f"{summary['averages_busy'] / max(1, summary['gradients']):.3f}"
    rows["trace digest"] = summary["digest"][:16]
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
