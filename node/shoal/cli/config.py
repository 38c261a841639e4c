"""`shoal config`: which settings a node would run with, and where each came from."""

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.cli.options import with_settings
from shoal.documents import fingerprint
from shoal.settings import Settings

command = typer.Typer(help="Show every setting and where it came from, or validate them.", add_completion=False)


@command.command()
@with_settings()
def show(
    settings: Settings,
    origins: dict[str, str],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print every setting: its name, its value, and where the value came from."""
    values = dataclasses.asdict(settings)
    rows = {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False, header_style="bold")
    for name, row in rows.items():
        style = "" if row["origin"] != "default" else "dim"
        table.add_row(*(Text(text) for text in (name, _shown(row["value"]), row["origin"])), style=style)
    Console().print(table)


@command.command()
@with_settings()
def validate(settings: Settings, origins: dict[str, str]) -> None:
    """Check flags, environment and file; exit code 2 with the reason when a value cannot be used."""
    changed = sum(origin != "default" for origin in origins.values())
    typer.echo(f"valid: {changed} of {len(origins)} settings are not the default")
    typer.echo(f"fingerprint of the run: {fingerprint(settings.run_document())}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)
