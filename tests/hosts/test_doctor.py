"""`shoal doctor` on hosts of their own: a firewall that lets nobody in, a network without multicast."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netlab import Host, hosts, why_not

PORT = 7700
PATIENCE_S = 60.0

pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(why_not("nft")), reason=why_not("nft"))]


@pytest.fixture
def lab() -> Iterator[list[Host]]:
    with hosts(["centre", "patient"]) as made:
        yield made


def doctor(host: Host, folder: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the findings by what was looked at."""
    found = folder / "found.json"
    own = ["--listen", f"{host.ip}:{PORT}", "--insecure", "--state-dir", str(folder / "state"), "--json", str(found)]
    code = host.start([sys.executable, "-m", "shoal", "doctor", *own, *options]).wait(PATIENCE_S)
    return code, {finding["check"]: finding for finding in json.loads(found.read_text())["findings"]}


def start_coordinator(host: Host, folder: Path) -> "subprocess.Popen[bytes]":
    place = ["--listen", f"{host.ip}:{PORT}", "--insecure", "--state-dir", str(folder / "centre")]
    command = [sys.executable, "-m", "shoal", "coordinator", "--discovery", "static", *place]
    with (folder / "centre.log").open("wb") as log:
        process = host.start(command, stdout=log, stderr=log)
    end = time.monotonic() + PATIENCE_S
    while not (folder / "centre" / "node.json").exists():
        assert time.monotonic() < end, (folder / "centre.log").read_text()
        time.sleep(0.05)
    return process


def test_a_firewall_that_lets_nobody_in_is_found_from_the_other_side(lab: list[Host], tmp_path: Path) -> None:
    centre, patient = lab
    process = start_coordinator(centre, tmp_path)
    peer = ("--peers", f"{centre.ip}:{PORT}")
    code, found = doctor(patient, tmp_path, *peer)
    assert code == 0, found
    assert found["dial back"]["state"] == "ok"
    assert patient.ip in found["dial back"]["words"]
    assert found["interfaces"]["words"].startswith(patient.ip)

    patient.sh(
        "nft add table inet wall; nft 'add chain inet wall in { type filter hook input priority 0; }';"
        f"nft add rule inet wall in tcp dport {PORT} drop"
    )
    code, found = doctor(patient, tmp_path, *peer)
    assert code == 1
    assert found["peer"]["state"] == "ok", "the way out is open"
    assert found["dial back"]["state"] == "failure"
    assert "firewall" in found["dial back"]["words"]
    centre.kill(process)


def test_a_host_that_hears_no_multicast(lab: list[Host], tmp_path: Path) -> None:
    patient = lab[1]
    assert doctor(patient, tmp_path)[1]["multicast"]["state"] == "ok"
    patient.sh(
        "nft add table inet wall; nft 'add chain inet wall in { type filter hook input priority 0; }';"
        "nft add rule inet wall in ip daddr 224.0.0.0/4 drop"
    )
    code, found = doctor(patient, tmp_path)
    assert (code, found["multicast"]["state"]) == (1, "failure")
    assert "--peers" in found["multicast"]["remedy"]
