"""A node on a host that lets nobody in, with the highest id: it opens the streams itself."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from certificates_kit import Members
from netlab import Host, hosts, why_not
from safetensors.torch import load_file

PORT = 7700
PATIENCE_S = 100.0
WALL = (
    "nft add table inet wall; nft 'add chain inet wall in { type filter hook input priority 0; }';"
    f"nft add rule inet wall in tcp dport {PORT} drop"
)

pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(why_not("nft")), reason=why_not("nft"))]


@pytest.fixture
def lab() -> Iterator[list[Host]]:
    with hosts(["host-0", "host-1", "host-2"]) as made:
        yield made


def start(host: Host, folder: Path, k: int, peer: str, trust: list[str]) -> "subprocess.Popen[bytes]":
    run = ["--task", "quadratic", "--partition", "iid", "--rounds", "30", "--min-nodes", "3", "--device", "cpu"]
    place = ["--listen", f"{host.ip}:{PORT}", *trust, "--discovery", "static", "--log", "human"]
    own = ["--shard", f"{k}/3", "--state-dir", str(folder / host.name), "--peers", peer]
    with (folder / f"{host.name}.log").open("wb") as log:
        command = [sys.executable, "-m", "shoal", "node", "--shoal", "wall", *run, *place, *own]
        return host.start(command, stdout=log, stderr=log)


def wait_for(words: str, log: Path) -> None:
    """Until that log has them."""
    end = time.monotonic() + PATIENCE_S
    while words not in log.read_text():
        assert time.monotonic() < end, f"{words!r} not in\n{log.read_text()}"
        time.sleep(0.1)


@pytest.mark.parametrize(("last", "tls"), [(0, False), (2, False), (0, True)])
def test_a_node_behind_a_firewall_trains_with_the_others(lab: list[Host], tmp_path: Path, last: int, tls: bool) -> None:
    """Each knows one other; the one that comes last finds the two others linked already. If that is not the one behind
    the wall, it hears of one that it cannot greet."""
    lab[2].sh(WALL)
    trust = [["--name", host.name, "--insecure"] for host in lab]
    if tls:
        members = Members(tmp_path / "certificates")
        trust = [["--tls", str(members.issue(host.name, shoal="wall"))] for host in lab]
    first, second = (k for k in range(3) if k != last)
    nodes = []
    try:
        for k in (first, second, last):
            nodes.append(start(lab[k], tmp_path, k, f"{lab[1 if k != 1 else 0].ip}:{PORT}", trust[k]))
            if k == second:
                wait_for(f"{lab[second].name}-", tmp_path / f"{lab[first].name}.log")
        assert [node.wait(PATIENCE_S) for node in nodes] == [0, 0, 0]
    finally:
        for node, k in zip(nodes, (first, second, last), strict=False):
            node.kill()
            node.wait()
            print(f"--- {lab[k].name}\n{(tmp_path / f'{lab[k].name}.log').read_text()}")
    models = [load_file(tmp_path / host.name / "model.safetensors") for host in lab]
    assert all(torch.equal(model["x"], models[0]["x"]) for model in models)
