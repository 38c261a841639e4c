"""The history of a node: what is written can be read, whatever moment the node died at."""

import json
from pathlib import Path

import pytest

from shoal.errors import UserError
from shoal.history import History, plain, read_history


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.jsonl"


def test_lines_come_back_in_order_with_their_time(path: Path) -> None:
    clock = Clock()
    with History(path, clock=clock) as history:
        history.write("step", step=1, loss=2.5, gradients=1)
        clock.now = 1.5
        history.write("exchange", peer="b-00ff00", seq=1, role="active", outcome="done")
    assert list(read_history(path)) == [
        {"t": 0.0, "kind": "step", "step": 1, "loss": 2.5, "gradients": 1},
        {"t": 1.5, "kind": "exchange", "peer": "b-00ff00", "seq": 1, "role": "active", "outcome": "done"},
    ]


def test_time_starts_at_zero_by_default(path: Path) -> None:
    with History(path) as history:
        history.write("step", step=1)
    (line,) = read_history(path)
    assert 0 <= line["t"] < 60


def test_a_line_is_one_json_object_in_plain_utf8(path: Path) -> None:
    with History(path) as history:
        history.write("event", what="two\nlines, ünïcode")
    raw = path.read_bytes()
    assert raw.count(b"\n") == 1
    assert json.loads(raw)["what"] == "two\nlines, ünïcode"


def test_a_loss_that_is_not_finite_becomes_null(path: Path) -> None:
    with History(path) as history:
        history.write("step", loss=float("nan"), parts=[float("inf"), 1.0], deep={"a": (float("-inf"),)})
    (line,) = read_history(path)
    assert (line["loss"], line["parts"], line["deep"]) == (None, [None, 1.0], {"a": [None]})
    assert plain("nan") == "nan"


def test_lines_are_held_back_until_the_flush_is_due(path: Path) -> None:
    clock = Clock()
    history = History(path, clock=clock, flush_every_s=1.0)
    history.write("step", step=1)
    assert path.read_bytes() == b""
    clock.now = 1.0
    history.write("step", step=2)
    assert len(list(read_history(path))) == 2
    history.write("step", step=3)
    assert len(list(read_history(path))) == 2
    history.flush()
    assert len(list(read_history(path))) == 3
    history.close()


def test_closing_flushes_and_may_be_repeated(path: Path) -> None:
    history = History(path, clock=Clock())
    history.write("step", step=1)
    history.close()
    history.close()
    assert len(list(read_history(path))) == 1


def test_what_is_not_json_is_a_mistake_of_the_caller_and_leaves_no_half_line(path: Path) -> None:
    with History(path) as history:
        with pytest.raises(TypeError):
            history.write("step", loss=object())
        history.write("step", step=2)
    assert [line["step"] for line in read_history(path)] == [2]


def test_a_second_start_appends_and_says_so(path: Path) -> None:
    with History(path) as history:
        history.write("step", step=1)
    size = path.stat().st_size
    with History(path) as history:
        history.write("step", step=2)
    first, event, second = read_history(path)
    assert (first["step"], second["step"]) == (1, 2)
    assert (event["kind"], event["what"], event["bytes_before"], event["bytes_cut"]) == ("event", "reopened", size, 0)


def test_an_empty_file_counts_as_a_first_start(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    History(path).close()
    assert list(read_history(path)) == []


@pytest.mark.parametrize("tail", [b"{", b'{"t": 1, "kind": "st', b'{"t": 1}', b"x" * 200_000])
def test_a_last_line_cut_short_is_left_out_by_the_reader_and_removed_on_resume(path: Path, tail: bytes) -> None:
    with History(path) as history:
        history.write("step", step=1)
    with path.open("ab") as file:
        file.write(tail)
    assert [line["step"] for line in read_history(path)] == [1]
    History(path).close()
    step, event = read_history(path)
    assert (step["step"], event["bytes_cut"]) == (1, len(tail))


def test_a_file_without_one_whole_line_is_emptied_on_resume(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"t": 1')
    with History(path) as history:
        history.write("step", step=1)
    assert [line["kind"] for line in read_history(path)] == ["step"]


@pytest.mark.parametrize("line", [b"garbage\n", b"[1, 2]\n", b"\xff\xfe\n"])
def test_a_broken_line_before_the_last_is_an_error_that_names_it(path: Path, line: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"t": 0}\n' + line + b'{"t": 2}\n')
    with pytest.raises(UserError, match="line 2: expected a JSON object"):
        list(read_history(path))


def test_a_missing_history_is_an_error_that_names_the_file(path: Path) -> None:
    with pytest.raises(UserError, match=r"history\.jsonl cannot be read: No such file"):
        list(read_history(path))
