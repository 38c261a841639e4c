"""What a node did, on disk: one JSON object a line, only ever appended.

    {"t": 1.204, "kind": "step", "step": 12, "loss": 0.61, "gradients": 58, "batch": "9c41e0d2a7b35f18"}
    {"t": 1.219, "kind": "exchange", "peer": "node-b-9f3a01", "seq": 4, "role": "active", "outcome": "done"}
    {"t": 2.730, "kind": "eval", "step": 100, "loss": 0.22, "accuracy": 0.93, "samples": 72}
    {"t": 0.003, "kind": "event", "what": "reopened", "bytes_before": 8210, "bytes_cut": 0}

`t` is seconds since the start of the process that wrote the line; after an event `reopened` it starts again.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from shoal.errors import UserError

BUFFER_BYTES = 1 << 16
FLUSH_EVERY_S = 1.0
"""A busy node that is killed loses at most so many seconds; a flush a line would be a system call a gradient."""


class History:
    """Appends to `path`; a line that a crash cut short is taken off first, and an event `reopened` is written."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] | None = None, flush_every_s: float = FLUSH_EVERY_S
    ) -> None:
        started = time.monotonic()
        self._clock = clock or (lambda: time.monotonic() - started)
        self._flush_every_s, self._flushed_at = flush_every_s, self._clock()
        path.parent.mkdir(parents=True, exist_ok=True)
        kept, cut = _drop_cut_line(path)
        self._file: IO[bytes] = path.open("ab", buffering=BUFFER_BYTES)
        if kept:
            self.write("event", what="reopened", bytes_before=kept, bytes_cut=cut)

    def write(self, kind: str, /, **fields: Any) -> None:
        """One line. Values are JSON; a number that is not finite becomes null: JSON has no word for it."""
        now = self._clock()
        line = json.dumps(plain({"t": round(now, 6), "kind": kind, **fields}), ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        if now - self._flushed_at >= self._flush_every_s:
            self.flush()

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()
        self._flushed_at = self._clock()

    def close(self) -> None:
        """Flush and close; again is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """Every line of a history as a dict, in order; a last line cut short is left out.

    Raises UserError for a file that is missing, or a line before the last that is not a JSON object.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"history {path} cannot be read: {error.strerror or error}") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield _record(path, number, line)


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"history {path}, line {number}: expected a JSON object, got {line[:40]!r}") from error
    if not isinstance(record, dict):
        raise UserError(f"history {path}, line {number}: expected a JSON object, got {line[:40]!r}")
    return record


def _drop_cut_line(path: Path) -> tuple[int, int]:
    """Truncate the file after its last newline; (bytes kept, bytes cut)."""
    if not path.exists():
        return 0, 0
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BUFFER_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
    return end, size - end


def plain(value: Any) -> Any:
    """`value` with None in place of every float that is not finite, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value
