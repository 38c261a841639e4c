"""What verbs share at the terminal: text that is safe to print, and `--json FILE`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.errors import UserError
from shoal.history import plain

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; - writes it to the terminal."),
]
"""Annotation of a verb's `json_file` parameter; default None."""


def printable(text: object, limit: int = 200) -> str:
    """`text` on one line without control characters: what another node sends must not steer the terminal."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def write_json(path: Path | None, result: Any) -> None:
    """Write `result` to `path`, `-` for stdout; nothing for None. UserError when it cannot be written."""
    if path is None:
        return
    text = json.dumps(plain(result), indent=2, ensure_ascii=False, allow_nan=False)
    if str(path) == "-":
        sys.stdout.write(text + "\n")
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {error.strerror or error}") from error
