"""Log lines of a node: for people on a terminal, one JSON object a line everywhere else.

Fields beside the message are given by keyword, `log.info("exchange done", extra={"peer": peer, "seconds": 0.2})`; the
first form appends them to the line, the second makes them keys. Text of peers reaches a terminal only as printable
characters.
"""

import asyncio
import datetime
import json
import logging
import sys
from typing import Any, TextIO

from shoal.errors import SettingsError
from shoal.history import plain

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
STYLES = {logging.DEBUG: "dim", logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}
FORMS = ("auto", "human", "json")
ROOT = "shoal"
"""Its level is the one asked for. Other people's libraries are heard from warnings on."""
OWN_KEYS = frozenset({"time", "level", "logger", "message", "exception"})

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


def configure(form: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Sends all log lines to `stream` (standard error), and to nothing else; may be called again.

    `form` is human, json, or auto: human if the stream is a terminal. Raises SettingsError for unknown names.
    """
    stream = sys.stderr if stream is None else stream
    if form not in FORMS:
        raise SettingsError(f"unknown log {form!r}; known: {', '.join(FORMS)}")
    if level not in LEVELS:
        raise SettingsError(f"unknown log_level {level!r}; known: {', '.join(LEVELS)}")
    human = form == "human" or (form == "auto" and stream.isatty())
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "of_shoal", False):
            root.removeHandler(handler)
    handler = _human_handler(stream) if human else logging.StreamHandler(stream)
    if not human:
        handler.setFormatter(JsonFormatter())
    handler.addFilter(is_no_cancelled_call)
    handler.of_shoal = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(LEVELS[level])


def is_no_cancelled_call(record: logging.LogRecord) -> bool:
    """Whether a line is to be shown. gRPC reports a call that its peer hung up on, while this end was closing it, as an
    error with a traceback; it is neither, and the connection's own line says what happened."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("grpc") and isinstance(error, asyncio.CancelledError))


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC, RFC 3339), level, logger, message, the fields, and exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        for key, value in fields(record).items():
            line[f"{key}_" if key in OWN_KEYS else key] = value
        return json.dumps(plain(line), default=str, allow_nan=False)


class HumanFormatter(logging.Formatter):
    """The message on one line, its fields behind it as key=value; a traceback below. Time and level come before it."""

    def format(self, record: logging.LogRecord) -> str:
        """The text."""
        found = [f"{key}={_short(value)}" for key, value in fields(record).items()]
        line = printable("  ".join([record.getMessage(), *found]))
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line = "\n".join([line, *map(printable, trace)])
        return line


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`, in its order."""
    return {k: v for k, v in record.__dict__.items() if k not in _STANDARD and not k.startswith("_")}


def printable(text: str) -> str:
    """`text` with every character that could steer a terminal written as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return repr(text) if " " in text or not text else text


def _human_handler(stream: TextIO) -> logging.Handler:
    from rich.console import Console  # only people need it, and it takes a tenth of a second
    from rich.text import Text

    class HumanHandler(logging.Handler):
        """Time, level if it is not the usual one, and the text; the terminal breaks long lines."""

        console = Console(file=stream, highlight=False)

        def emit(self, record: logging.LogRecord) -> None:
            """Writes one record; like every handler's, its failure must not end the work that is logged."""
            try:
                when = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S ")
                level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
                line = Text.assemble((when, "dim"), (level, STYLES.get(record.levelno, "")), self.format(record))
                self.console.print(line, soft_wrap=True)
            except Exception:
                self.handleError(record)

    handler = HumanHandler()
    handler.setFormatter(HumanFormatter())
    return handler
