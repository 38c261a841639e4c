"""`shoal demo`: five nodes with two labels each learn together what none of them can learn alone."""

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from shoal.cli.terminal import JsonFile, write_json
from shoal.demo.fleet import Fleet, NodeProcess, loopback_nodes
from shoal.errors import SettingsError, ShoalError
from shoal.settings import Settings

ALGORITHMS = ("ad-psgd", "d2")
NAMES = {"ad-psgd": "AD-PSGD", "d2": "D2", "d-psgd": "D-PSGD"}
ABOVE_ALONE, BELOW_POOLED = 0.4, 0.03
"""The claim: at least so much more accurate than the best node alone, at most so much less than SGD on all the data."""
RUN_LIMIT_S = 300.0


def command(
    algorithm: Annotated[str, typer.Option(help="ad-psgd, d-psgd or d2; default: ad-psgd, then d2.")] = "",
    nodes: Annotated[int, typer.Option(help="Node processes.", min=2, max=32)] = 5,
    rounds: Annotated[int, typer.Option(help="Gradients a node.", min=10)] = 540,
    seed: Annotated[int, typer.Option(help="Seed of the model, the split and every draw.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the picture and of the nodes' state.")] = Path("demo"),
    json_file: JsonFile = None,
) -> int:
    """Start five nodes on this machine, each with two of the ten digits, and train one model among them.

    They find each other by zeroconf and talk gRPC, all on loopback. Ends with a table, a picture, and exit code 0 only
    if the mean model beats the best node alone by .4 and comes within .03 of SGD on all the data.
    """
    if algorithm and algorithm not in NAMES:
        raise SettingsError(f"unknown algorithm {algorithm!r} for the demo; known: {', '.join(NAMES)}")
    console = Console()
    chosen = (algorithm,) if algorithm else ALGORITHMS
    settings = Settings(
        task="digits", partition="labels:2", lr=0.5, batch=16, rounds=rounds, seed=seed, topology="ring", algorithm="d2"
    )
    out.mkdir(parents=True, exist_ok=True)
    states = Path(tempfile.mkdtemp(prefix="run-", dir=out))
    console.print(
        f"[bold]{nodes} nodes, each with two of the ten handwritten digits.[/] State and logs: {states}",
        highlight=False,
    )
    real = [_run_nodes(console, name, settings, nodes, states) for name in chosen]
    console.print("The same budget in this process, for comparison: SGD on all the data, D-PSGD, each node alone ...")
    import torch  # it and matplotlib: not while the nodes load theirs

    from shoal.demo import baselines, report

    torch.set_num_threads(1)
    pooled = baselines.pooled_sgd(settings, nodes)
    alone = baselines.each_alone(settings, nodes)
    mine = [_row(baselines.Row, NAMES[name], run, settings) for name, run in zip(chosen, real, strict=True)]
    rows = [*alone, baselines.d_psgd(settings, nodes), pooled, *mine]
    console.print(report.table(rows, nodes))
    histograms = [n["histogram"] for n in real[0]["nodes"]]
    title = f"shoal demo: {nodes} nodes, digits, two labels each, {rounds} gradients a node, seed {seed}"
    report.picture(out / "demo.png", rows, histograms, real[0]["classes"], title)
    console.print(f"Picture: {out / 'demo.png'}", highlight=False)
    verdicts = [_verdict(console, row, max(a.accuracy for a in alone), pooled.accuracy) for row in mine]
    write_json(
        json_file, {"rows": [dataclasses.asdict(r) for r in rows], "holds": all(verdicts), "runs": real, "seed": seed}
    )
    return 0 if all(verdicts) else 1


def _verdict(console: Console, row: Any, alone: float, pooled: float) -> bool:
    holds = row.accuracy >= alone + ABOVE_ALONE and row.accuracy >= pooled - BELOW_POOLED
    word = "[green]holds[/]" if holds else "[red]does not hold[/]"
    console.print(
        f"{row.name}: {row.accuracy:.3f} against {alone:.3f} of the best node alone (claimed: +{ABOVE_ALONE}) and "
        f"{pooled:.3f} of SGD on all the data (claimed: at most {BELOW_POOLED} less): {word}",
        highlight=False,
    )
    return bool(holds)


def _run_nodes(console: Console, algorithm: str, settings: Settings, nodes: int, folder: Path) -> dict[str, Any]:
    """One run of real node processes; what each wrote at its end."""
    common = {key: getattr(settings, key) for key in ("task", "partition", "lr", "batch", "rounds", "seed", "topology")}
    specs = loopback_nodes(
        nodes, algorithm=algorithm, shoal=f"demo-{folder.name}-{algorithm}", eval_every=20, checkpoint_every=0, **common
    )
    console.rule(f"{NAMES[algorithm]}: {nodes} processes find each other and train")
    began = time.monotonic()
    with Fleet(folder / algorithm, specs) as fleet:
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            while fleet.running():
                _check(fleet, began)
                live.update(_progress(fleet.nodes, settings.rounds or 1, time.monotonic() - began))
                time.sleep(0.25)
            live.update(_progress(fleet.nodes, settings.rounds or 1, time.monotonic() - began))
        _check(fleet, began)
        results = [node.result() or {} for node in fleet.nodes]
        histories = [node.history() for node in fleet.nodes]
    curve = _curve(histories, min(r["began"] for r in results), results[0]["accuracy"], results[0]["loss"])
    return {
        "algorithm": algorithm,
        "seconds": time.monotonic() - began,
        "nodes": results,
        "classes": results[0]["classes"],
        "curve": curve,
    }


def _check(fleet: Fleet, began: float) -> None:
    for node, code in fleet.failures():
        raise ShoalError(f"{node.name} ended with exit code {code}; its log ends:\n{node.log_tail()}")
    if time.monotonic() - began > RUN_LIMIT_S:
        raise ShoalError(
            f"the nodes have not finished within {RUN_LIMIT_S:.0f} s; logs: {fleet.nodes[0].folder.parent}"
        )


def _progress(nodes: list[NodeProcess], rounds: int, seconds: float) -> Table:
    shown = Table(caption=f"{seconds:.0f} s", box=None, pad_edge=False)
    for title in ("node", "phase", "progress", "loss", "acc.", "peers", "swaps", "MB out"):
        shown.add_column(title, justify="left" if title in ("node", "phase", "progress") else "right", no_wrap=True)
    for node in nodes:
        status = node.status() or {}
        own = status.get("node", {})
        result = node.result()
        done = 1.0 if result else min(1.0, own.get("gradients", 0) / rounds)
        phase = "done" if result else own.get("phase", "starting")
        bar = "━" * round(16 * done) + "╌" * (16 - round(16 * done))
        source = result["own"] if result else own
        shown.add_row(
            node.name,
            phase,
            f"[cyan]{bar}[/] {done:4.0%}",
            _figure(source.get("loss"), ".3f"),
            _figure(source.get("accuracy"), ".3f"),
            str(sum(m["state"] == "alive" for m in status.get("members", []))) if not result else "",
            str(source.get("exchanges", {}).get("done", "")),
            _figure(source.get("bytes_sent", 0) / 1e6, ".1f"),
        )
    return shown


def _figure(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def _curve(histories: list[list[dict[str, Any]]], zero: float, accuracy: float, loss: float) -> list[dict[str, float]]:
    """Held-out loss and accuracy of the nodes' own models on their own held-out rows, added up over the nodes, at each
    evaluation; at the end the mean model's."""
    evaluations = []
    for lines in histories:
        start = next(line["epoch_s"] - line["t"] for line in lines if line.get("what") == "began")
        shifted = [{**line, "t": start - zero + line["t"]} for line in lines]
        evaluations.append([line for line in shifted if line["kind"] == "eval" and "step" in line])
    curve = []
    for turn in zip(*evaluations, strict=False):  # as many as the slowest node has made
        total = sum(line["total"] for line in turn)
        curve.append(
            {
                "t": sum(line["t"] for line in turn) / len(turn),
                "gradients": sum(line["step"] for line in turn),
                "loss": sum(line["loss"] * line["total"] for line in turn) / total,
                "accuracy": sum(line["right"] for line in turn) / total,
            }
        )
    if curve:
        curve.append({**curve[-1], "accuracy": accuracy, "loss": loss})
    return curve


def _row(row: Any, name: str, run: dict[str, Any], settings: Settings) -> Any:
    from shoal.simulation import Point

    results = run["nodes"]
    curve = [
        Point(p["t"], int(p["gradients"]) * settings.batch, p["loss"], p["accuracy"], math.nan) for p in run["curve"]
    ]
    gradients = sum(r["own"]["gradients"] for r in results)
    megabytes = sum(r["own"]["bytes_sent"] for r in results) / len(results) / 1e6
    return row(
        f"{name}, {len(results)} nodes",
        results[0]["accuracy"],
        results[0]["loss"],
        curve,
        gradients * settings.batch,
        seconds=run["seconds"],
        megabytes=megabytes,
    )
