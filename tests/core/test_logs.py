"""Log lines: JSON for machines, one line for people, and nothing that steers a terminal."""

import asyncio
import io
import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shoal import logs
from shoal.errors import SettingsError

log = logging.getLogger("shoal.somewhere")


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    """Loggers belong to the whole process."""
    root, own = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = list(root.handlers), root.level, own.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def configured(form: str = "json", level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(form, level, stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """What a machine reads; NaN, which is no JSON, is an error."""
    text = stream.getvalue()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=_no_json) for line in text.splitlines()]


def _no_json(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def fail(words: str) -> None:
    """Logs an exception with its traceback."""
    try:
        _raise(words)
    except ZeroDivisionError:
        log.exception("failed")


def _raise(words: str) -> None:
    raise ZeroDivisionError(words)


# --- JSON lines -------------------------------------------------------------------------------------------------


def test_a_line_of_json_has_time_level_logger_message_and_the_fields() -> None:
    stream = configured()
    log.info("exchange %d done", 7, extra={"peer": "node-b", "seconds": 0.25})
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "logger": "shoal.somewhere",
        "message": "exchange 7 done",
        "peer": "node-b",
        "seconds": 0.25,
    }


def test_times_are_utc() -> None:
    record = logging.makeLogRecord({"msg": "x", "created": 1_700_000_000.25})
    assert json.loads(logs.JsonFormatter().format(record))["time"] == "2023-11-14T22:13:20.250Z"


def test_what_json_cannot_hold_is_written_in_another_way() -> None:
    stream = configured()
    log.info("x", extra={"loss": math.nan, "bounds": [math.inf, 1.0], "what": {1}, "odd": "\ud800"})
    (line,) = lines(stream)
    assert (line["loss"], line["bounds"], line["what"], line["odd"]) == (None, [None, 1.0], "{1}", "\ud800")


def test_a_message_of_several_lines_stays_one_line() -> None:
    stream = configured()
    log.info("one\ntwo\u2028three")
    (line,) = lines(stream)
    assert line["message"] == "one\ntwo\u2028three"


def test_an_exception_is_a_field_with_its_traceback() -> None:
    stream = configured()
    fail("for the test")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: for the test")


def test_a_field_never_hides_a_part_of_the_line() -> None:
    stream = configured()
    log.info("x", extra={"level": "mine", "time": "mine"})
    (line,) = lines(stream)
    assert (line["level"], line["level_"], line["time_"]) == ("info", "mine", "mine")


# --- for people -------------------------------------------------------------------------------------------------


def test_a_person_reads_time_message_and_fields_on_one_line_however_long() -> None:
    stream = configured("human")
    log.info("x" * 300, extra={"peer": "node-b", "seconds": 0.123456, "why": "not linked"})
    wanted = r"\d\d:\d\d:\d\d x{300}  peer=node-b  seconds=0.1235  why='not linked'\n"
    assert re.fullmatch(wanted, stream.getvalue())


def test_only_an_unusual_level_is_named() -> None:
    stream = configured("human", "debug")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "x")
    assert [line[9:] for line in stream.getvalue().splitlines()] == ["debug: x", "x", "warning: x", "error: x"]


def test_a_terminal_shows_colours_and_a_file_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    logs.configure("human", "info", terminal)
    log.warning("x")
    assert "\x1b[33m" in terminal.getvalue()
    stream = configured("human")
    log.warning("x")
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("text", ["node\x1b[2J", "node\rfake line", "node\nfake line", "a\x9b31m", "b\u202ec"])
def test_text_of_a_peer_cannot_steer_the_terminal(text: str) -> None:
    stream = configured("human")
    log.info("refused %s", text, extra={"peer": text})
    (line,) = stream.getvalue().split("\n")[:-1]
    assert line.isprintable()


def test_brackets_are_no_markup() -> None:
    stream = configured("human")
    log.info("[red]x[/red] [::1]:80 :smile:")
    assert "[red]x[/red] [::1]:80 :smile:" in stream.getvalue()


def test_a_traceback_comes_below_its_message() -> None:
    stream = configured("human")
    fail("\x1b[2J")
    first, second, *_, last = stream.getvalue().splitlines()
    assert first.endswith("error: failed")
    assert second == "Traceback (most recent call last):"
    assert last == r"ZeroDivisionError: \x1b[2J"


# --- what is shown where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "is_json"), [(Terminal(), False), (io.StringIO(), True)])
def test_auto_is_human_on_a_terminal_and_json_elsewhere(stream: io.StringIO, is_json: bool) -> None:
    logs.configure("auto", "info", stream)
    log.info("x")
    assert stream.getvalue().startswith("{") == is_json


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_is_the_least_severe_that_is_shown(level: str, shown: int) -> None:
    stream = configured(level=level)
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(each, "x")
    assert len(lines(stream)) == shown


def test_libraries_are_heard_from_warnings_on() -> None:
    stream = configured(level="debug")
    library = logging.getLogger("somebody.elses")
    library.info("not shown")
    library.warning("shown")
    assert [line["message"] for line in lines(stream)] == ["shown"]


def test_configuring_again_replaces_and_leaves_other_handlers_alone() -> None:
    theirs = logging.NullHandler()
    logging.getLogger().addHandler(theirs)
    first = configured()
    second = configured("human")
    log.info("x")
    assert first.getvalue() == ""
    assert second.getvalue().count("x") == 1
    assert theirs in logging.getLogger().handlers


@pytest.mark.parametrize(
    ("form", "level", "words"),
    [
        ("xml", "info", "unknown log 'xml'; known: auto, human, json"),
        ("json", "loud", "unknown log_level 'loud'; known: debug, info, warning, error"),
    ],
)
def test_an_unknown_form_or_level_names_the_known_ones(form: str, level: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        logs.configure(form, level)


def test_a_node_without_a_terminal_does_not_load_rich() -> None:
    code = "import logging, sys; from shoal import logs; logs.configure(); logging.getLogger('shoal').info('x'); "
    code += "sys.exit('rich' in sys.modules or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stderr)["message"] == "x"


def test_a_call_that_was_cancelled_is_no_error_of_grpcs_and_any_other_is() -> None:
    stream = io.StringIO()
    logs.configure("human", "info", stream)
    for error in (asyncio.CancelledError(), RuntimeError("broken")):
        logging.getLogger("grpc._cython.cygrpc").error("not handled", exc_info=error)
    assert stream.getvalue().count("not handled") == 1
    assert "broken" in stream.getvalue()
