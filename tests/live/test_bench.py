"""Each measurement of the bench, once and quick: that it comes to an end with its figures. Times are no assertions."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shoal.bench.blank import layers_file
from shoal.bench.couple import couple, obedient
from shoal.bench.measurements import MEASUREMENTS
from shoal.bench.processes import children, memory_bytes
from shoal.bench.quiet import quiet_nodes
from shoal.cli import main

pytestmark = pytest.mark.live

FIGURES = {
    "exchange": ["average of 0.1 M, f32: speed / TCP", "average of 0.1 M, f32: CPU / TCP"],
    "tls": [f"average of 1.17 M, f32, over TLS / in plain text: {what}" for what in ("time", "CPU")],
    "baselines": ["plain TCP", "memcpy", "gloo, send and receive", "gloo, all_reduce", "shoal, f32"],
    "sizes": ["average of 0.01 M"],
    "step": ["step of 1e5 parameters: overhead"],
    "memory": ["memory of a node beyond a plain loop, ad-psgd, 0.0999 M"],
    "start": ["2 nodes of the digits: from spawn until each has averaged"],
    "idle": ["idle daemon, 2 peers: CPU", "idle daemon, 2 peers: resident memory"],
    "crowd": ["membership alone: bytes out, growth from 16 to 64 nodes"],
    "nodes": ["CPU of an idle daemon: growth from 2 to 4 nodes", "average of 0.1 M, 2 nodes"],
}
"""What each finds, among others."""


def quick(name: str, folder: Path) -> Mapping[str, Any]:
    """Its figures in bench.json, by name."""
    assert main(["bench", name, "--quick", "--pairs", "1", "--out", str(folder)]) == 0
    figures = json.loads((folder / "bench.json").read_text())["figures"][name]
    return {figure["name"]: figure for figure in figures}


def test_every_measurement_has_a_quick_run() -> None:
    elsewhere = {"signs", "training", "hivemind"}  # in core; eight seconds of averages; what is not installed
    assert {*FIGURES, *elsewhere} == set(MEASUREMENTS)


@pytest.mark.parametrize("name", FIGURES)
def test_a_quick_run_finds_its_figures(name: str, tmp_path: Path) -> None:
    before = children(os.getpid())
    found = quick(name, tmp_path)
    assert found.keys() >= set(FIGURES[name])
    assert all(math.isfinite(figure["value"]) for figure in found.values())
    assert set(children(os.getpid())) <= set(before)


def test_hivemind_is_measured_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("hivemind")
    assert quick("hivemind", tmp_path)["average of 1.17 M: speed / hivemind"]["bar"] == 4


def test_a_quiet_node_is_linked_and_its_trainer_has_no_torch() -> None:
    with quiet_nodes(2) as nodes:
        for node in nodes:
            status = node.status()
            assert status is not None
            assert {member["state"] for member in status["members"]} == {"self", "alive"}
            (trainer,) = children(node.process.pid)
            assert "torch" not in Path(f"/proc/{trainer}/maps").read_text()
            assert memory_bytes(trainer) < memory_bytes(os.getpid())
            facts = node.facts()
            assert facts is not None


def test_a_node_alone_takes_the_steps_that_it_is_told_to() -> None:
    with obedient(layers_file(4), 1) as nodes:
        assert nodes.steps(3) > 0
        assert nodes.steps(2) > 0
        (node,) = nodes.fleet.nodes
        nodes.fleet.stop()
        assert [line["step"] for line in node.history() if line["kind"] == "step"] == [1, 2, 3, 4, 5]


def test_one_of_several_nodes_averages_with_one_other() -> None:
    with couple(1000, 3) as nodes:
        wall, cpu = nodes.average("node-2")
        assert wall > 0
        assert cpu >= 0
        nodes.fleet.stop()
        done = [[line for line in node.history() if line["kind"] == "exchange"] for node in nodes.fleet.nodes]
        assert [line["outcome"] for lines in done for line in lines] == ["done", "done"]
