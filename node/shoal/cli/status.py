"""`shoal status`: what a running node and its members do, from the node's /v1/status."""

import http.client
import json
import time
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shoal.cli.terminal import JsonFile, printable, write_json
from shoal.errors import UserError
from shoal.fields import parse_address
from shoal.settings import field

TIMEOUT_S = 5.0
REFRESH_S = 1.0
MAX_BYTES = 8 << 20
"""Of an answer: 10,000 members at 800 bytes each. More is refused before it is read."""

MEMBER_COLUMNS = ("name", "address", "state", "phase", "gradients", "loss", "accuracy", "rtt", "heard", "codec")
PIPE_WIDTH = 160
"""Characters of a line that goes to a file or another program: nothing is cut off there."""


def command(
    address: Annotated[
        str, typer.Argument(metavar="ADDR", help="HOST:PORT of the node's http address, or its state folder.")
    ] = str(field("state_dir").default),
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Show a running node and its members: progress, loss, held-out accuracy, and what is waited for."""
    address = of_folder(Path(address)) if Path(address).is_dir() else address
    status = fetch(address)
    write_json(json_file, status)
    if str(json_file) == "-":
        return
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    if not watch:
        console.print(render(status))
        return
    with Live(render(status), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_S)
            status = fetch(address)
            write_json(json_file, status)
            live.update(render(status), refresh=True)


def of_folder(folder: Path) -> str:
    """The http address of the node that runs on that state folder. Raises UserError when none does."""
    try:
        return str(json.loads((folder / "node.json").read_text())["http"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"no node runs on {folder}: start one, or give the http address of another") from None


def fetch(address: str) -> dict[str, Any]:
    """The node's status. Raises UserError when nobody answers there, or not as a node does."""
    host, port = _host_and_port(address)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/v1/status", headers={"Accept": "application/json"})
        with connection.getresponse() as response:
            body = response.read(MAX_BYTES + 1)
    except ConnectionRefusedError as error:
        raise UserError(
            f"nothing listens on {address}: give the http address that `shoal node` shows at its start,"
            " `shoal status HOST:PORT`"
        ) from error
    except TimeoutError as error:
        raise UserError(f"{address} did not answer within {TIMEOUT_S:g} s") from error
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise UserError(f"{address} cannot be asked: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise UserError(f"{address} answered {response.status} {response.reason}; is it a node's http address?")
    return _parsed(address, body)


def _host_and_port(address: str) -> tuple[str, int]:
    if "://" in address:
        raise UserError(f"ADDR is HOST:PORT without a scheme, got {address!r}; the status is served by plain http")
    try:
        return parse_address(address)
    except ValueError as expected:
        raise UserError(f"ADDR must be {expected}, or the state folder of a node that runs; got {address!r}") from None


def _parsed(address: str, body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BYTES:
        raise UserError(f"{address} answered more than {MAX_BYTES >> 20} MiB: not the status of a node")
    try:
        status = json.loads(body)
    except (ValueError, RecursionError):
        status = None
    if not isinstance(status, dict) or not isinstance(status.get("node"), dict):
        raise UserError(f"{address} answered {body[:40]!r}, expected the status of a node")
    return status


def render(status: dict[str, Any]) -> Group:
    """Tables for the terminal. Keys that are missing show as `-`: the node may be older or newer than we are."""
    own = _coordinator_table(status) if _dict(status, "node").get("role") == "coordinator" else _node_table(status)
    parts = [own, _member_table(status)]
    waits = [w for w in _list(status, "waits") if isinstance(w, dict)]
    return Group(*parts, *(Text(_wait(w), style="yellow") for w in waits))


def _wait(wait: dict[str, Any]) -> str:
    seconds = wait.get("seconds")
    since = f" since {seconds:.1f} s" if _is_number(seconds) else ""
    return f"waits for {printable(wait.get('for', '?'))}{since}: {printable(wait.get('why', ''))}"


def _node_table(status: dict[str, Any]) -> Table:
    node, shoal, view = (_dict(status, key) for key in ("node", "shoal", "view"))
    exchanges = _dict(node, "exchanges")
    members = _list(view, "members") or _list(status, "members")
    rows = {
        "node": f"{_text(node, 'name')}  {_text(node, 'phase')}  {_text(node, 'address')}",
        "training": f"{_text(node, 'algorithm')} on {_text(node, 'task')}, {_text(node, 'device')},"
        f" codec {_text(node, 'codec')}",
        "progress": f"step {_text(node, 'step')}, {_text(node, 'gradients')} gradients,"
        f" {_text(shoal, 'gradients')} in the shoal",
        "a step": _step(_dict(node, "seconds_a_step")),
        "loss": _number(node.get("loss"), ".4f"),
        "held-out accuracy": f"{_number(node.get('accuracy'), '.4f')}, of all {_number(shoal.get('accuracy'), '.4f')}",
        "data": f"{_text(node, 'samples')} samples, by label {_text(node, 'histogram')}",
        "exchanges": f"{_text(exchanges, 'done')} done, {_text(exchanges, 'busy')} busy,"
        f" {_text(exchanges, 'gone')} gone; {_number(node.get('averages_per_gradient'), '.2f')} averages a gradient",
        "bytes": _traffic(node),
        "members": f"{len(members)} in view {_text(view, 'number')} of shoal {_text(shoal, 'name')}",
    }
    return _rows(rows)


def _coordinator_table(status: dict[str, Any]) -> Table:
    node, serves, shoal = (_dict(status, key) for key in ("node", "coordinator", "shoal"))
    rounds, votes, staleness = (_dict(serves, key) for key in ("rounds", "votes", "staleness"))
    rows = {
        "coordinator": f"{_text(node, 'name')}  {_text(node, 'address')}, of shoal {_text(shoal, 'name')}",
        "run": f"{_text(node, 'algorithm')}, {len(_list(serves, 'enrolled'))} workers,"
        f" {_text(shoal, 'gradients')} gradients in the shoal",
    }
    if "round" in serves:
        quorum = f"quorum {_text(serves, 'quorum')}, {_text(serves, 'deadline_s')} s after the first"
        rows["rounds"] = f"at {_text(serves, 'round')}; closed by all {_text(rounds, 'all')}, by quorum"
        rows["rounds"] += f" {_text(rounds, 'quorum')} ({quorum})"
        rows["votes"] = ", ".join(f"{_text(votes, key)} {printable(key)}" for key in votes)
        rows["agreement"] = _number(serves.get("agreement"), ".3f")
    if "version" in serves:
        rows["model"] = f"{_text(serves, 'version')} of {_text(serves, 'budget')} gradients"
        rows["staleness"] = f"{_number(staleness.get('mean'), '.2f')} models on average,"
        rows["staleness"] += f" {_text(staleness, 'largest')} at most"
    rows["bytes"] = _traffic(node)
    return _rows(rows)


def _step(seconds: dict[str, Any]) -> str:
    """The mean step of that process: what it is made of, and what went on beside it."""
    compute, wait, apply, exchange = (_ms(seconds.get(key)) for key in ("compute", "wait", "apply", "exchange"))
    return f"compute {compute}, wait {wait}, apply {apply}; exchange {exchange}, beside the others or waited for"


def _ms(seconds: Any) -> str:
    return _number(seconds * 1000 if _is_number(seconds) else None, ".1f", " ms")


def _traffic(node: dict[str, Any]) -> str:
    text = f"{_bytes(node.get('bytes_sent'))} sent, {_bytes(node.get('bytes_received'))} received"
    if node.get("bytes_shared"):
        text += f", {_bytes(node.get('bytes_shared'))} in memory"
    if node.get("max_rate"):
        text += f"; held back to {_text(node, 'max_rate')} for {_number(node.get('limited_s'), '.1f')} s"
    return text


def _rows(rows: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in rows.items():
        table.add_row(Text(name, style="bold"), Text(text))
    return table


def _member_table(status: dict[str, Any]) -> Table:
    table = Table(*MEMBER_COLUMNS, header_style="bold", box=None, pad_edge=False)
    node = _dict(status, "node")
    codecs, in_memory = _dict(_dict(node, "exchanges"), "codecs"), _list(node, "in_memory")
    for member in _list(status, "members"):
        if not isinstance(member, dict):
            continue
        cells = [_text(member, key) for key in ("name", "address", "state", "phase", "gradients")]
        cells += [_number(member.get("loss"), ".4f"), _number(member.get("accuracy"), ".4f")]
        cells.append(_ms(member.get("rtt_s")))
        cells.append(_number(member.get("heard_s_ago"), ".1f", " s"))
        where = " in memory" if member.get("id") in in_memory else ""
        cells.append(_text(codecs, str(member.get("id"))) + where)
        gone = member.get("state") in ("suspect", "gone")
        table.add_row(*(Text(cell) for cell in cells), style="red" if gone else "")
    return table


def _dict(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _list(parent: dict[str, Any], key: str) -> list[Any]:
    value = parent.get(key)
    return value if isinstance(value, list) else []


def _text(parent: dict[str, Any], key: str) -> str:
    value = parent.get(key)
    return "-" if value is None else printable(value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it can be shown as one; NaN and integers beyond any float cannot."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _number(value: Any, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if _is_number(value) else "-"


def _bytes(value: Any) -> str:
    if not _is_number(value):
        return "-"
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} GB"
