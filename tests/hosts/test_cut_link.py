"""Two live members whose hosts do not reach each other, while both reach a third: a view without that link, in which
what has to pass goes by way of the third."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from netlab import Host, hosts, why_not
from safetensors.torch import load_file

NODES = 3
PORT = 7700
PATIENCE_S = 100.0
GONE_ON = "of 3 members: training goes on"

pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture
def lab() -> Iterator[list[Host]]:
    with hosts([f"host-{k}" for k in range(NODES)]) as made:
        yield made


def start(lab: list[Host], folder: Path, algorithm: str, rounds: int) -> list["subprocess.Popen[bytes]"]:
    """A node on each host. The middle one is known to all, and everybody else by its word."""
    run = ["--algorithm", algorithm, "--task", "quadratic", "--partition", "iid", "--rounds", str(rounds)]
    pace = ["--emulate-compute-s", "0.06", "--suspect-after-s", "2", "--eval-every", "0", "--log", "human"]
    nodes = []
    for k, host in enumerate(lab):
        own = ["--name", host.name, "--shard", f"{k}/{NODES}", "--listen", f"{host.ip}:{PORT}"]
        place = ["--state-dir", str(folder / host.name), "--insecure", "--discovery", "static", "--device", "cpu"]
        peers = ["--min-nodes", str(NODES), *(["--peers", f"{lab[1].ip}:{PORT}"] if k != 1 else [])]
        command = [sys.executable, "-m", "shoal", "node", "--shoal", "cut", *run, *pace, *own, *place, *peers]
        with (folder / f"{host.name}.log").open("wb") as log:
            nodes.append(host.start(command, stdout=log, stderr=log))
    return nodes


def cut(one: Host, other: Host) -> None:
    for a, b in ((one, other), (other, one)):
        a.sh(f"ip route add blackhole {b.ip}")


def heal(one: Host, other: Host) -> None:
    for a, b in ((one, other), (other, one)):
        a.sh(f"ip route del blackhole {b.ip}")


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {PATIENCE_S:.0f} s in vain: {what}")
        time.sleep(0.05)


@pytest.mark.parametrize("algorithm", ["d2", "signum"])
def test_a_cut_link_between_two_live_nodes_stops_nobody(lab: list[Host], tmp_path: Path, algorithm: str) -> None:
    nodes = start(lab, tmp_path, algorithm, rounds=200)

    def said(k: int) -> str:
        return (tmp_path / f"{lab[k].name}.log").read_text()

    try:
        until(lambda: all("training begins" in said(k) for k in range(NODES)), "training begins")
        cut(lab[0], lab[2])
        until(lambda: all("; no link between host-0-" in said(k) for k in range(NODES)), "a view without the link")
        assert all(said(k).count(GONE_ON) == 1 for k in range(NODES)), "nobody was taken for gone"
        assert [node.wait() for node in nodes] == [0] * NODES
    finally:
        for k in range(NODES):
            print(f"--- {lab[k].name}\n{said(k)}")
    models = [load_file(tmp_path / host.name / "model.safetensors") for host in lab]
    assert all(torch.equal(model["x"], models[0]["x"]) for model in models), "the mean passed the cut link, too"


def test_a_link_that_is_whole_again_is_used_again(lab: list[Host], tmp_path: Path) -> None:
    nodes = start(lab, tmp_path, "d2", rounds=500)

    def said(k: int) -> str:
        return (tmp_path / f"{lab[k].name}.log").read_text()

    try:
        until(lambda: all("training begins" in said(k) for k in range(NODES)), "training begins")
        cut(lab[0], lab[2])
        until(lambda: all("; no link between host-0-" in said(k) for k in range(NODES)), "a view without the link")
        heal(lab[0], lab[2])
        until(lambda: all(said(k).count(GONE_ON) == 2 for k in range(NODES)), "a view with the link")
        assert [node.wait() for node in nodes] == [0] * NODES
    finally:
        for k in range(NODES):
            print(f"--- {lab[k].name}\n{said(k)}")
