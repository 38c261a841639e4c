"""`shoal reproduce`: run the papers' claims again, and say which hold."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from shoal.cli.terminal import write_json
from shoal.errors import UserError
from shoal.reproduce.claims import CLAIMS
from shoal.reproduce.lab import PROCESSES, Claim, Finding, Lab


def command(
    claims: Annotated[list[str] | None, typer.Argument(metavar="CLAIM... | all", help="See --list.")] = None,
    list_claims: Annotated[bool, typer.Option("--list", help="Name the claims, one line each.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the pictures and figures.")] = Path("reproduce"),
    seeds: Annotated[int, typer.Option(help="Seeds, from 0; figures are means over them.", min=1, max=100)] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One seed and the core of each claim.")] = False,
    over: Annotated[str, typer.Option(help="virtual time, or grpc: real processes on this machine.")] = "virtual",
    processes: Annotated[int, typer.Option(help="Runs at once, each on one core.", min=1, max=256)] = PROCESSES,
) -> int | None:
    """Run experiments of the papers again and hold each figure against its bar.

    Writes CLAIM.png and CLAIM.json for each. Ends with code 0 only if every criterion of every claim was met, else
    with 1. Whatever is emulated, time included, is named so.
    """
    console = Console(highlight=False)
    if list_claims:
        for claim in CLAIMS.values():
            console.print(f"{claim.name:14} {claim.line}{' (also over grpc)' if claim.over_grpc else ''}")
        return None
    chosen = _chosen(claims or [], over)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made: {error.strerror or error}") from error
    verdicts = {}
    with Lab(seeds, quick=quick, processes=processes) as lab:
        for claim in chosen:
            began = time.monotonic()
            console.rule(claim.name)
            console.print(claim.line, soft_wrap=True)
            finding = _found(claim, lab, out, over)
            finding.draw(out / f"{claim.name}.png")
            wall_s = time.monotonic() - began
            about = {"claim": claim.name, "line": claim.line, "over": over, "quick": quick, "seeds": list(lab.seeds)}
            write_json(out / f"{claim.name}.json", {**about, "wall_s": wall_s, **document(finding)})
            _show(console, finding)
            console.print(f"{wall_s:.0f} s; {out / claim.name}.png and .json", soft_wrap=True)
            verdicts[claim.name] = finding.holds
    if len(verdicts) > 1:
        console.rule("in short")
        for name, holds in verdicts.items():
            console.print(f"{'PASS' if holds else 'FAIL'}  {name}")
    return 0 if all(verdicts.values()) else 1


def _chosen(names: list[str], over: str) -> list[Claim]:
    if over not in ("virtual", "grpc"):
        raise UserError(f"--over {over}: expected virtual or grpc")
    if not names:
        raise UserError("which claim? `shoal reproduce all`, or names from `shoal reproduce --list`")
    able = [c for c in CLAIMS.values() if over == "virtual" or c.over_grpc]
    if names == ["all"]:
        return able
    if unknown := [name for name in names if name not in CLAIMS]:
        raise UserError(f"unknown claim {unknown[0]!r}; known: {', '.join(CLAIMS)}")
    if virtual := [name for name in names if CLAIMS[name] not in able]:
        raise UserError(f"{virtual[0]} runs in virtual time only; over grpc: {', '.join(c.name for c in able)}")
    return [CLAIMS[name] for name in names]


def _found(claim: Claim, lab: Lab, out: Path, over: str) -> Finding:
    if over == "virtual" or claim.over_grpc is None:
        return claim.experiment(lab)
    return claim.over_grpc(lab, out)


def document(finding: Finding) -> dict[str, Any]:
    """What CLAIM.json says of it."""
    return {
        "holds": finding.holds,
        "criteria": [
            {"what": c.what, "figure": c.figure, "must be": c.must_be, "bar": c.bar, "passed": c.passed}
            for c in finding.criteria
        ],
        "shown": list(finding.shown),
        "emulated": list(finding.emulated),
        "setting": dict(finding.setting),
        "rows": [dict(row) for row in finding.rows],
    }


def _show(console: Console, finding: Finding) -> None:
    columns = [key for key in dict.fromkeys(k for row in finding.rows for k in row) if key != "of each seed"]
    table = Table(show_header=True)
    for column in columns:
        table.add_column(column, justify="right" if _is_number(finding.rows, column) else "left")
    for row in finding.rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    console.print(table)
    for what in finding.emulated:
        console.print(f"emulated: {what}", soft_wrap=True)
    for text in finding.shown:
        console.print(f"shown: {text}", soft_wrap=True)
    for criterion in finding.criteria:
        colour = "green" if criterion.passed else "red"
        console.print(f"[{colour}]{criterion.line()[:4]}[/]{criterion.line()[4:]}", soft_wrap=True)


def _is_number(rows: Any, column: str) -> bool:
    return all(isinstance(row.get(column, 0), (int, float)) for row in rows)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
