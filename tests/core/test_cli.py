"""The command line: exit codes, one-line errors, what is imported when, and `shoal status`."""

import http.server
import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import shoal
from shoal import errors
from shoal.cli import VERBS, main
from shoal.cli.status import MAX_BYTES, fetch, render
from shoal.cli.terminal import printable, write_json
from shoal.errors import ShoalError, UserError

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without shoal.toml and without SHOAL_* in the environment."""
    monkeypatch.chdir(tmp_path)
    for variable in [v for v in os.environ if v.startswith("SHOAL_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Put a function in the place of `shoal node`."""

    def replace(function: Callable[[], object]) -> None:
        module = types.ModuleType("verb_of_a_test")
        module.command = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(VERBS, "node", (module.__name__, "A verb of a test."))

    return replace


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


# --- exit codes and errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UserError("no such thing"), 2),
        (errors.SettingsError("lr = 0 must be above 0"), 2),
        (errors.PortInUse("127.0.0.1:80 is taken"), 2),
        (errors.CheckpointError("cut short"), 2),
        (errors.MemberLost("node-b is gone"), 3),
        (errors.Diverged("the loss is nan"), 4),
        (errors.Mismatch("another shoal"), 1),
        (errors.Deadlock("every task waits"), 1),
    ],
)
def test_an_error_of_the_tree_is_one_line_and_its_exit_code(
    error: ShoalError, code: int, verb: Callable[..., None], capsys: Output
) -> None:
    verb(raising(error))
    assert main(["node"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"error: {error}\n"
    assert captured.out == ""


def test_a_second_line_of_an_error_is_indented(verb: Callable[..., None], capsys: Output) -> None:
    verb(raising(UserError("one\ntwo")))
    assert main(["node"]) == 2
    assert capsys.readouterr().err == "error: one\n  two\n"


def test_an_error_that_quotes_a_peer_cannot_steer_the_terminal(verb: Callable[..., None], capsys: Output) -> None:
    verb(raising(UserError("peer said \x1b[2J\x07")))
    main(["node"])
    assert "\x1b" not in capsys.readouterr().err


def test_ctrl_c_is_130(verb: Callable[..., None], capsys: Output) -> None:
    verb(raising(KeyboardInterrupt()))
    assert main(["node"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_any_other_exception_is_our_fault_and_keeps_its_traceback(verb: Callable[..., None]) -> None:
    verb(raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["node"])


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_a_verb_may_return_its_exit_code(returned: int | None, code: int, verb: Callable[..., None]) -> None:
    verb(lambda: returned)
    assert main(["node"]) == code


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["config", "show", "--lrr", "1"], "error: No such option: --lrr"),
        (["confg"], "error: No such command 'confg'"),
        (["config"], "error: Missing command"),
        (["status", "a", "b"], "error: Got unexpected extra argument"),
        (["config", "show", "--lr"], "error: Option '--lr' requires an argument"),
        (["config", "show", "--lr", "fast"], "error: flag --lr: lr = 'fast' must be a number"),
        (["config", "show", "--algorithm", "?"], "error: flag --algorithm: unknown algorithm '?'; known: ad-psgd"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args: list[str], message: str, capsys: Output) -> None:
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_help_lists_every_verb_and_every_exit_code(capsys: Output) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    codes = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ShoalError)}
    assert all(f" {code}  " in text for code in {0, 130, *codes})


def test_no_arguments_show_the_help(capsys: Output) -> None:
    assert main([]) == 0
    assert "Usage: shoal" in capsys.readouterr().out


def test_version(capsys: Output) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"shoal {shoal.__version__}\n"


# --- in a process of its own ----------------------------------------------------------------------------------------


def in_process(*args: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `shoal ARGS`; the last line on stdout says whether torch was imported."""
    script = (
        f"import sys\n{before}\nfrom shoal.cli import main\ncode = main({list(args)!r})\n"
        "print('torch' in sys.modules)\nsys.exit(code)\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["config", "show"], 0),
        (["config", "validate", "--lr", "-1"], 2),
        (["status", "127.0.0.1:1"], 2),
        (["node", "--help"], 0),
    ],
)
def test_a_verb_that_computes_nothing_imports_no_torch(args: list[str], code: int) -> None:
    if args[0] == "node" and importlib.util.find_spec("shoal.daemon") is None:
        pytest.skip("there is no daemon")
    done = in_process(*args)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, "False"), done.stderr


def test_our_own_fault_ends_the_process_with_1_and_a_traceback() -> None:
    before = "import types; m = types.ModuleType('m'); m.command = lambda: 1 / 0; sys.modules['m'] = m\n"
    before += "import shoal.cli; shoal.cli.VERBS['node'] = ('m', '')"
    done = in_process("node", before=before)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


# --- what verbs share -----------------------------------------------------------------------------------------------


def test_printable_text_is_one_line_without_control_characters() -> None:
    assert printable("a\nb\x1b[31m\u202e\x00") == "a\ufffdb\ufffd[31m\ufffd\ufffd"
    assert printable("ünïcode ✓") == "ünïcode ✓"
    assert printable("x" * 300, limit=10) == "x" * 9 + "…"
    assert printable("x" * 10, limit=10) == "x" * 10


def test_json_goes_to_a_file_or_to_the_terminal(tmp_path: Path, capsys: Output) -> None:
    result = {"loss": float("nan"), "accuracy": 0.5, "name": "ü"}
    write_json(None, result)
    write_json(tmp_path / "out.json", result)
    write_json(Path("-"), result)
    expected = {"loss": None, "accuracy": 0.5, "name": "ü"}
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == expected
    assert json.loads(capsys.readouterr().out) == expected
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        write_json(tmp_path, result)


# --- shoal status ---------------------------------------------------------------------------------------------------

STATUS: dict[str, Any] = {
    "node": {
        "id": "a-00ff00",
        "name": "a",
        "address": "127.0.0.1:5000",
        "phase": "training",
        "algorithm": "ad-psgd",
        "task": "digits",
        "device": "cpu",
        "step": 120,
        "gradients": 121,
        "loss": 0.25,
        "accuracy": 0.875,
        "samples": 287,
        "histogram": [142, 145, 0],
        "exchanges": {"done": 130, "busy": 4, "gone": 1, "codecs": {"b-123456": "q8"}},
        "codec": "f32",
        "seconds_a_step": {"compute": 0.0102, "wait": 0.00325, "exchange": 0.5, "apply": 0.0001},
        "bytes_sent": 5_200_000,
        "bytes_received": 512,
        "bytes_shared": 3_000_000,
        "in_memory": ["b-123456"],
        "averages_per_gradient": 1.07,
    },
    "view": {"id": "5f", "number": 1, "members": ["a-00ff00", "b-123456"]},
    "members": [
        {
            "id": "b-123456",
            "name": "b",
            "address": "127.0.0.1:5001",
            "state": "alive",
            "phase": "training",
            "gradients": 99,
            "loss": 0.5,
            "accuracy": 0.75,
            "rtt_s": 0.0015,
            "heard_s_ago": 0.2,
        },
        {"name": "c", "state": "gone"},
    ],
    "waits": [{"for": "c", "seconds": 3.25, "why": "no post of round 7"}],
    "shoal": {"name": "default", "gradients": 220, "accuracy": 0.9},
}


class Server(http.server.ThreadingHTTPServer):
    """Answers every request with `status` and `body`, and keeps the paths asked for."""

    body: bytes = json.dumps(STATUS).encode()
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def shown(status: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(render(status))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_the_node_its_members_and_what_it_waits_for() -> None:
    text = shown(STATUS)
    for part in (
        "a  training  127.0.0.1:5000",
        "ad-psgd on digits, cpu, codec f32",
        "step 120, 121 gradients, 220 in the shoal",
        "compute 10.2 ms, wait 3.2 ms, apply 0.1 ms; exchange 500.0 ms, beside the others or waited for",
        "0.8750, of all 0.9000",
        "287 samples, by label [142, 145, 0]",
        "130 done, 4 busy, 1 gone; 1.07 averages a gradient",
        "5.2 MB sent, 512 B received, 3 MB in memory",
        "2 in view 1 of shoal default",
        "waits for c since 3.2 s: no post of round 7",
    ):
        assert part in text
    (row,) = (line for line in text.splitlines() if "127.0.0.1:5001" in line)
    cells = re.split(r" {2,}", row.strip())
    assert cells == [
        "b",
        "127.0.0.1:5001",
        "alive",
        "training",
        "99",
        "0.5000",
        "0.7500",
        "1.5 ms",
        "0.2 s",
        "q8 in memory",
    ]


def test_of_a_coordinator_the_table_shows_rounds_and_votes_or_the_model() -> None:
    node = {"role": "coordinator", "name": "c", "address": "127.0.0.1:7", "algorithm": "signum", "bytes_sent": 512}
    serves = {"round": 12, "rounds": {"all": 9, "quorum": 3}, "votes": {"counted": 30, "late": 4}, "agreement": 0.75}
    text = shown({"node": node, "coordinator": {**serves, "quorum": 2, "deadline_s": 1.0, "enrolled": ["a", "b"]}})
    for part in (
        "c  127.0.0.1:7, of shoal -",
        "signum, 2 workers",
        "at 12; closed by all 9, by quorum 3 (quorum 2, 1.0 s after the first)",
        "30 counted, 4 late",
        "0.750",
        "512 B sent, - received",
    ):
        assert part in text
    model = {"version": 40, "budget": 90, "staleness": {"mean": 1.5, "largest": 4}}
    text = shown({"node": node, "coordinator": model})
    assert "40 of 90 gradients" in text
    assert "1.50 models on average, 4 at most" in text


@pytest.mark.parametrize("role", ["node", "coordinator"])
def test_a_limit_is_shown_with_the_seconds_for_which_it_held_something_back(role: str) -> None:
    node = {"role": role, "bytes_sent": 512, "bytes_received": 7, "max_rate": "10Mbit", "limited_s": 3.25}
    assert "512 B sent, 7 B received; held back to 10Mbit for 3.2 s" in shown({"node": node})
    assert "held back" not in shown({"node": {**node, "max_rate": ""}})


def test_what_is_waited_for_is_told_with_its_seconds_where_they_are_known() -> None:
    assert "waits for a view: 1 of 2 nodes are ready" in shown(
        {"node": {}, "waits": [{"for": "a view", "seconds": None, "why": "1 of 2 nodes are ready"}]}
    )


def test_nothing_is_cut_off_where_no_terminal_is(server: Server, capsys: Output) -> None:
    main(["status", server.address])
    assert "127.0.0.1:5001  alive" in capsys.readouterr().out


@pytest.mark.parametrize(
    "status",
    [
        {"node": {}},
        {"node": {"exchanges": 3, "loss": None}, "members": None, "waits": {}, "view": []},
        {"node": {"seconds_a_step": {"compute": "long", "wait": None}}},
        {"node": {}, "members": [{}, 7, {"rtt_s": "fast", "loss": True, "gradients": 10**400}], "waits": [{}, 1]},
        {"node": {"loss": float("nan"), "accuracy": 10**400, "bytes_sent": float("inf")}},
    ],
)
def test_what_is_missing_or_of_another_type_does_not_stop_the_table(status: dict[str, Any]) -> None:
    assert "-" in shown(status)


def test_a_member_cannot_steer_the_terminal_or_the_markup() -> None:
    text = shown({"node": {}, "members": [{"name": "[red]x[/] \x1b[2J"}], "waits": [{"for": "\x1b]0;", "why": "[b]"}]})
    assert "[red]x[/]" in text
    assert "[b]" in text
    assert "\x1b[2J" not in text
    assert "\x1b]0;" not in text


def test_status_asks_the_node_and_prints_the_table(server: Server, capsys: Output) -> None:
    assert main(["status", server.address]) == 0
    assert server.paths == ["/v1/status"]
    assert "step 120" in capsys.readouterr().out


def test_status_as_json_is_the_nodes_answer(server: Server, tmp_path: Path, capsys: Output) -> None:
    assert main(["status", server.address, "--json", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == STATUS
    capsys.readouterr()
    assert main(["status", server.address, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_watching_asks_again_until_ctrl_c(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    naps = iter([None, None, KeyboardInterrupt()])

    def sleep(_: float) -> None:
        if (nap := next(naps)) is not None:
            raise nap

    monkeypatch.setattr(time, "sleep", sleep)
    assert main(["status", server.address, "--watch"]) == 130
    assert len(server.paths) == 3
    assert "step 120" in capsys.readouterr().out


def test_an_address_where_nobody_listens_says_what_to_do(capsys: Output) -> None:
    with socket.socket() as bound:  # bound and not listening: nobody else can take the port
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert main(["status", address]) == 2
    assert f"error: nothing listens on {address}: give the http address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:80", "without a scheme"),
        ("https://127.0.0.1:80", "without a scheme"),
        ("127.0.0.1:99999", "ADDR must be HOST:PORT"),
        ("a b", "ADDR must be HOST:PORT"),
        ("127.0.0.1:80/v1", "ADDR must be HOST:PORT"),
        ("", "ADDR must be HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fetch(address)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b"{}", "answered 404 Not Found; is it a node's http address?"),
        (302, b"{}", "answered 302 Found"),
        (200, b"<html>", "answered b'<html>', expected the status of a node"),
        (200, b"[]", "expected the status of a node"),
        (200, b'{"node": 1}', "expected the status of a node"),
        (200, b"[" * 100_000, "expected the status of a node"),
        (200, b" " * (MAX_BYTES + 1), "answered more than 8 MiB"),
    ],
)
def test_an_answer_that_is_no_status_is_refused(server: Server, status: int, body: bytes, message: str) -> None:
    server.status, server.body = status, body
    with pytest.raises(UserError) as caught:
        fetch(server.address)
    assert message in str(caught.value)
