"""What signs cost on the wire, counted where nothing can be left out: at the network interface of each worker's host.

A long run is compared with short ones, so that meeting, forming the mean model and parting cancel.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Host, hosts, why_not
from wide_task import WIDTH

D = WIDTH * WIDTH
WIDE = f"{Path(__file__).parents[1] / 'wide_task.py'}:Wide"
WORKERS = 2
PORT = 7700

pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture
def lab() -> Iterator[list[Host]]:
    with hosts(["centre", *(f"worker-{k}" for k in range(WORKERS))]) as made:
        yield made


def traffic_of_a_run(lab: list[Host], folder: Path, algorithm: str, rounds: int) -> tuple[int, int]:
    """(sent, received) bytes at the first worker's interface, from the start of its node to its end."""
    centre, *workers = lab
    shoal = [sys.executable, "-m", "shoal"]
    before = workers[0].traffic()
    common = ["--shoal", "bytes", "--insecure", "--discovery", "static"]
    listening = ["--listen", f"{centre.ip}:{PORT}", "--state-dir", str(folder / "centre")]
    with (folder / "centre.log").open("wb") as log:
        coordinator = centre.start([*shoal, "coordinator", *common, *listening], stdout=log, stderr=log)
    nodes = []
    for k, host in enumerate(workers):
        task = ["--task", WIDE, "--shard", f"{k}/{WORKERS}", "--min-nodes", str(WORKERS), "--eval-every", "0"]
        run = ["--algorithm", algorithm, "--rounds", str(rounds), "--batch", "4", "--over", "coordinator"]
        place = ["--coordinator", f"{centre.ip}:{PORT}", "--listen", f"{host.ip}:{PORT}", "--device", "cpu"]
        own = ["--name", host.name, "--state-dir", str(folder / host.name)]
        with (folder / f"{host.name}.log").open("wb") as log:
            nodes.append(host.start([*shoal, "node", *common, *task, *run, *place, *own], stdout=log, stderr=log))
    codes = [node.wait() for node in nodes]
    centre.kill(coordinator)
    for path in sorted(folder.glob("*.log")):
        print(f"--- {path.name}\n{path.read_text()}")
    assert codes == [0] * WORKERS
    after = workers[0].traffic()
    return after[0] - before[0], after[1] - before[1]


def bytes_a_step(lab: list[Host], folder: Path, algorithm: str, more: int) -> tuple[float, float]:
    """(sent, received) bytes that each step of a worker costs.

    Now and then a busy kernel sends a segment of 64 KiB twice. That can only add: the least of three short runs is
    what a run costs whatever its length, and what was sent twice in the long run stays in the figure."""

    def run(rounds: int, name: str) -> tuple[int, int]:
        (place := folder / f"{algorithm}-{name}").mkdir()
        return traffic_of_a_run(lab, place, algorithm, rounds)

    short = [run(10, f"short-{k}") for k in range(3)]
    long = run(10 + more, "long")
    sent, received = ((long[way] - min(one[way] for one in short)) / more for way in (0, 1))
    return sent, received


def test_a_vote_costs_one_bit_a_coordinate_each_way_and_a_thirtieth_of_full_precision(
    lab: list[Host], tmp_path: Path
) -> None:
    """1802.04434, section 1: one bit a coordinate in both directions. d / 8 bytes, all headers within 5 %."""
    signs = bytes_a_step(lab, tmp_path, "signum", more=300)
    full = bytes_a_step(lab, tmp_path, "allreduce-sgd", more=40)
    print(f"bytes a step, (sent, received): signum {signs}, float32 {full}; d / 8 = {D / 8:.0f}")
    for sign, float32 in zip(signs, full, strict=True):
        assert D / 8 <= sign <= 1.05 * D / 8
        assert float32 >= 30 * sign
