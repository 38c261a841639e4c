"""Nodes of equal speed over gRPC: an average to a gradient, whether it takes half as long as a step or twice."""

import urllib.request
from pathlib import Path

import pytest
from nodes_kit import Shoal, shoal_in
from prometheus_client.parser import text_string_to_metric_families

from shoal.demo.fleet import NodeProcess

pytestmark = pytest.mark.live

NODES = 5


@pytest.mark.parametrize("compute_s", [0.025, 0.008])
def test_every_node_finishes_an_average_a_gradient(compute_s: float, tmp_path: Path) -> None:
    """Offers collide most where all steps take the same time. Left at BUSY, such nodes would exchange nothing."""
    with shoal_in(
        tmp_path, algorithm="ad-psgd", topology="complete", lr=0.01, batch=1, rounds=80, emulate_compute_s=compute_s
    ) as it:
        nodes = it.start_all(NODES)
        it.until_step(40, nodes[0])
        print(f"an average takes {exchange_s(it, nodes[0]) / compute_s:.2f} of the emulated gradient")
        assert it.codes() == [0] * NODES
        pace = [averages(node) / gradients(node) for node in nodes]
    print("averages a gradient:", [round(p, 2) for p in pace])
    assert min(pace) >= 1.0


def gradients(node: NodeProcess) -> int:
    return sum(line["kind"] == "step" for line in node.history())


def averages(node: NodeProcess) -> int:
    """Those that this node offered or served, each counted once."""
    done = [line for line in node.history() if line["kind"] == "exchange" and line["outcome"] == "done"]
    return sum(line["role"] == "passive" or "crossing" not in line["reason"] for line in done)


def exchange_s(it: Shoal, node: NodeProcess) -> float:
    """How long the averages took, in the mean, that this node has offered so far."""
    facts = it.until(node.facts, f"{node.name} listens")
    with urllib.request.urlopen(f"http://{facts['http']}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    values = {sample.name: sample.value for family in families for sample in family.samples}
    return values["shoal_exchange_seconds_sum"] / max(1.0, values["shoal_exchange_seconds_count"])
