"""Real nodes and a coordinator: each tells Prometheus of all."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from nodes_kit import shoal_in

from shoal.demo.fleet import NodeProcess

pytestmark = pytest.mark.live


def targets(node: NodeProcess) -> dict[str, Any]:
    """HTTP address -> labels, as that node tells them."""
    http = (node.facts() or {})["http"]
    with urllib.request.urlopen(f"http://{http}/v1/targets", timeout=5) as answer:
        return {entry["targets"][0]: entry["labels"] for entry in json.load(answer)}


def test_every_node_and_the_coordinator_know_where_all_are_scraped(tmp_path: Path) -> None:
    with shoal_in(tmp_path, algorithm="signum", rounds=100_000) as shoal:
        everybody = [shoal.coordinate(), *shoal.start_all(2)]
        shoal.until_logged("training begins", *everybody[1:])
        https = {(one.facts() or {})["http"]: one.name for one in everybody}
        for one in everybody:
            shoal.until(lambda one=one: targets(one).keys() == https.keys(), f"{one.name} knows all")
            assert {labels["__meta_shoal_name"] for labels in targets(one).values()} == set(https.values())
        roles = sorted(labels["__meta_shoal_role"] for labels in targets(everybody[1]).values())
        assert roles == ["coordinator", "node", "node"]

        stopped, left = everybody[2], everybody[1]
        stopped.process.terminate()
        shoal.codes(stopped)
        shoal.until(lambda: https.keys() - targets(left).keys(), "one that took its leave is no target")
