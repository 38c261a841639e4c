"""`shoal bench`: what things cost on this machine, as ratios to what there is to reach."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shoal.bench.lab import Figure, Lab, machine
from shoal.bench.measurements import MEASUREMENTS
from shoal.bench.picture import draw
from shoal.cli.terminal import write_json
from shoal.errors import UserError


def command(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME... | all", help="See --list.")] = None,
    list_names: Annotated[bool, typer.Option("--list", help="Name the measurements, one line each.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("bench"),
    pairs: Annotated[int, typer.Option(help="Interleaved repeats; figures are medians.", min=1, max=10_000)] = 31,
    quick: Annotated[bool, typer.Option("--quick", help="Small vectors, the first of each kind.")] = False,
    hivemind: Annotated[str, typer.Option(metavar="PYTHON", help="An interpreter that has hivemind.")] = sys.executable,
) -> None:
    """Measure this machine: what an average, a vote, a step cost, each beside a reference taken in the same run.

    Writes bench.json and, of the figures that have a bar, bench.png. A bar that is missed is said and is no error: on
    a busy machine many are.
    """
    console = Console(highlight=False)
    if list_names:
        for name, measurement in MEASUREMENTS.items():
            console.print(f"{name:10} {measurement.line}")
        return
    chosen = _chosen(names or [])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made: {error.strerror or error}") from error
    lab, found = Lab(pairs, quick, hivemind), dict[str, list[Figure]]()
    about = machine()
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), soft_wrap=True)
    for name in chosen:
        console.rule(name)
        try:
            found[name] = MEASUREMENTS[name].measure(lab)
        except (OSError, RuntimeError) as error:
            console.print(f"{name} cannot be measured here: {error}", soft_wrap=True)
            continue
        for figure in found[name]:
            console.print(figure.line(), soft_wrap=True)
    write_json(out / "bench.json", {"machine": about, "pairs": pairs, "quick": quick, "figures": document(found)})
    console.print(f"written to {out / 'bench.json'}", soft_wrap=True)
    figures = [figure for each in found.values() for figure in each]
    if draw(out / "bench.png", figures, f"shoal bench on {about['cores']} cores, load {about['load']:.1f}"):
        console.print(f"picture: {out / 'bench.png'}", soft_wrap=True)


def document(found: dict[str, list[Figure]]) -> dict[str, list[dict[str, object]]]:
    """What bench.json says."""
    return {
        name: [{**dataclasses.asdict(figure), "met": figure.met} for figure in figures]
        for name, figures in found.items()
    }


def _chosen(names: list[str]) -> list[str]:
    if not names:
        raise UserError("which measurement? `shoal bench all`, or names from `shoal bench --list`")
    if unknown := [name for name in names if name != "all" and name not in MEASUREMENTS]:
        raise UserError(f"unknown measurement {unknown[0]!r}; known: {', '.join(MEASUREMENTS)}")
    return list(MEASUREMENTS) if "all" in names else names
