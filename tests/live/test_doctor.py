"""`shoal doctor` as a user runs it, beside real processes on loopback: what it finds, says, and ends with."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates_kit import DAY, Members, now
from nodes_kit import shoal_command, shoal_in

from shoal.cli import main
from shoal.demo.fleet import NodeProcess
from shoal.doctor.finding import Finding
from shoal.doctor.peers import CLOCK_S, _clock
from shoal.errors import PeerError
from shoal.transport import dial_back

pytestmark = pytest.mark.live


def doctor(folder: Path, *options: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and the findings by what was looked at."""
    place = [] if "--state-dir" in options else ["--state-dir", str(folder / "state")]
    code = main(["doctor", "--json", str(folder / "found.json"), *place, *options])
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads((folder / "found.json").read_text())["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return code, found


def states(found: dict[str, list[dict[str, Any]]], check: str) -> list[str]:
    return [finding["state"] for finding in found[check]]


@contextlib.contextmanager
def coordinator(folder: Path, **settings: Any) -> Iterator[NodeProcess]:
    """A peer that is there at once: it loads no torch."""
    with shoal_in(folder) as shoal:
        it = shoal.coordinate(**settings)
        shoal.until(it.facts, "it listens")
        yield it


def address(node: NodeProcess) -> str:
    return str((node.facts() or {})["address"])


# --- with a peer ----------------------------------------------------------------------------------------------------


def test_a_peer_that_can_dial_back_and_whose_clock_is_right(tmp_path: Path) -> None:
    with coordinator(tmp_path / "peer") as peer:
        code, found = doctor(tmp_path, "--peers", address(peer))
        assert code == 0, found
        assert states(found, "peer") == states(found, "dial back") == states(found, "clock") == ["ok"]
        assert "as 127.0.0.1" in found["dial back"][0]["words"]


def test_a_node_that_runs_is_dialled_at_its_own_port(tmp_path: Path) -> None:
    with coordinator(tmp_path / "peer") as peer, coordinator(tmp_path / "own") as own:
        code, found = doctor(tmp_path, "--peers", address(peer), "--state-dir", str(own.folder))
        assert code == 0, found
        assert address(own) in found["listen"][0]["words"]
        assert address(own).rpartition(":")[2] in found["dial back"][0]["words"]


def test_a_peer_with_the_certificate_of_the_same_authority(tmp_path: Path) -> None:
    members = Members(tmp_path)
    centre, mine = members.issue("centre", role="coordinator"), members.issue("me")
    with coordinator(tmp_path / "peer", shoal="default", name="centre", tls=centre) as peer:
        code, found = doctor(tmp_path, "--peers", address(peer), "--tls", str(mine))
        assert code == 0, found
        assert states(found, "certificates") == states(found, "dial back") == ["ok"]
        code, found = doctor(tmp_path, "--peers", address(peer), "--tls", str(Members(tmp_path / "x").issue("me")))
        assert (code, states(found, "peer")) == (1, ["failure"])
        assert "certs show" in found["peer"][0]["remedy"]
        code, found = doctor(tmp_path, "--peers", address(peer))
        assert (code, states(found, "peer")) == (1, ["failure"]), "and none at all is no way in"


def test_nobody_there_and_a_name_that_nobody_knows(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, found = doctor(tmp_path, "--peers", f"127.0.0.1:{port},nowhere.invalid:7450")
    assert code == 1
    assert states(found, "peer") == states(found, "dns") == ["failure"]
    assert "refused" in found["peer"][0]["words"]
    assert "nowhere.invalid" in found["dns"][0]["words"]


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_a_clock_that_is_off_by_an_hour(ahead_s: float) -> None:
    assert _clock("a:1", ahead_s, 0.1).state == "failure"
    assert _clock("a:1", ahead_s / 3600, 0.1).state == "ok"
    assert _clock("a:1", CLOCK_S + 1, 2.0).state == "ok", "a slow answer proves nothing"


# --- DialBack itself ------------------------------------------------------------------------------------------------


async def test_a_port_that_nobody_listens_on_is_said_to_be_so(tmp_path: Path) -> None:
    with coordinator(tmp_path) as peer:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            said = await dial_back.ask(address(peer), port, None)
            assert (said.reached, said.host, said.reason) == (True, "127.0.0.1", "")
            assert abs(said.time - time.time()) < 60
        said = await dial_back.ask(address(peer), port, None)
        assert not said.reached
        assert "refused" in said.reason


@pytest.mark.parametrize("port", [0, 65536])
async def test_a_port_that_cannot_be_is_refused(tmp_path: Path, port: int) -> None:
    words = "INVALID_ARGUMENT: expected a DialBackRequest with a port, 1 to 65535"
    with coordinator(tmp_path) as peer, pytest.raises(PeerError, match=words):
        await dial_back.ask(address(peer), port, None)


@pytest.mark.parametrize(
    ("peer", "host"),
    [("ipv4:10.0.0.1:5", "10.0.0.1"), ("ipv6:%5B::1%5D:5", "::1"), ("ipv6:[fd00::2]:80", "fd00::2")],
)
def test_only_the_caller_is_dialled(peer: str, host: str) -> None:
    assert dial_back._host(peer) == host


# --- this machine ---------------------------------------------------------------------------------------------------


def test_a_machine_on_which_nothing_is_wrong(tmp_path: Path) -> None:
    code, said = shoal_command(tmp_path, "doctor")
    assert code == 0, said
    for words in ("interfaces", "multicast", "disk", "gpu", "none is named", "only nodes of this machine"):
        assert words in said
    assert "failure" not in said


def test_a_port_that_is_taken_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        code, found = doctor(tmp_path, "--listen", listen, "--http", listen)
    assert code == 1
    assert states(found, "listen") == states(found, "http") == ["failure"]
    assert "port 0" in found["listen"][0]["remedy"]


@pytest.mark.parametrize(
    ("options", "check", "state", "words"),
    [
        (["--listen", "0.0.0.0:7450"], "address", "failure", "beyond loopback"),
        (["--listen", "203.0.113.7:0", "--insecure"], "listen", "failure", "203.0.113.7:0"),
        (["--listen", "nowhere.invalid:0", "--insecure"], "interfaces", "failure", "nowhere.invalid"),
        (
            ["--listen", "0.0.0.0:0", "--insecure", "--advertise", "nowhere.invalid:1"],
            "address",
            "failure",
            "is unknown here",
        ),
        (
            ["--listen", "0.0.0.0:0", "--insecure", "--advertise", "203.0.113.7:1"],
            "address",
            "warning",
            "no address of",
        ),
        (["--discovery", "static"], "multicast", "skipped", "discovery is static"),
        (["--tls", "nothing-there"], "certificates", "failure", "nothing-there"),
        (["--device", "cuda:99"], "gpu", "failure", "cuda:99 is not there"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, options: list[str], check: str, state: str, words: str) -> None:
    code, found = doctor(tmp_path, *options)
    assert code == (state == "failure"), found
    assert states(found, check) == [state]
    assert words in found[check][0]["words"]
    assert found[check][0]["remedy"] or state == "skipped"


def test_a_certificate_that_has_ended_and_one_that_soon_will(tmp_path: Path) -> None:
    members = Members(tmp_path)
    ended = members.issue_from_to("old", now() - 2 * DAY, now() - DAY)
    code, found = doctor(tmp_path, "--tls", str(ended))
    assert (code, states(found, "certificates")) == (1, ["failure"])
    assert "ended at" in found["certificates"][0]["words"]
    code, found = doctor(tmp_path, "--tls", str(members.issue("soon", days=3)))
    assert (code, states(found, "certificates")) == (0, ["warning"])


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs a folder nobody may write")
def test_a_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "--state-dir", "/proc/self/state")
    assert (code, states(found, "disk")) == (1, ["failure"])
    assert "volume" in found["disk"][0]["remedy"]


def test_a_failure_without_a_remedy_is_our_own_fault() -> None:
    with pytest.raises(ValueError, match="no remedy"):
        Finding("disk", "failure", "it is full")
