"""Whole nodes, daemon and trainer, on loopback: they find each other, train, tell how it goes, and end together."""

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from nodes_kit import (
    GATED,
    Shoal,
    assert_one_model,
    events,
    log,
    losses,
    mean_model,
    own,
    shoal_command,
    shoal_in,
    states,
)
from prometheus_client.parser import text_string_to_metric_families

from shoal.demo.fleet import NodeProcess

pytestmark = pytest.mark.live


def ask(node: NodeProcess, path: str) -> tuple[int, str]:
    """(status, body) of a GET."""
    facts = node.facts()
    assert facts is not None
    try:
        with urllib.request.urlopen(f"http://{facts['http']}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# --- finding each other -------------------------------------------------------------------------------------------


def test_nodes_that_know_one_address_find_each_other_without_mdns(tmp_path: Path) -> None:
    with shoal_in(tmp_path, algorithm="d2", rounds=20, discovery="static") as shoal:
        nodes = shoal.start_all(3)
        assert shoal.codes() == [0, 0, 0]
        assert_one_model(nodes)
        assert [len(losses(node)) for node in nodes] == [20, 20, 20]
        assert "node-3" in log(nodes[1]), "which nobody told it by hand"


def test_nodes_that_know_no_address_find_each_other_by_mdns(tmp_path: Path) -> None:
    with shoal_in(tmp_path, task="digits", partition="labels:2", rounds=20, discovery="mdns") as shoal:
        nodes = shoal.start_all(3)
        assert shoal.codes() == [0, 0, 0]
        assert_one_model(nodes)
        assert sum(len(losses(node)) for node in nodes) >= 60
        results = [node.result() or {} for node in nodes]
        assert {(r["right"], r["total"], r["loss"]) for r in results} == {
            (results[0]["right"], 360, results[0]["loss"])
        }
        histograms = [r["histogram"] for r in results]
        assert [sum(count > 0 for count in histogram) for histogram in histograms] == [2, 2, 2]


# --- what a node tells --------------------------------------------------------------------------------------------


def test_a_running_node_answers_monitoring_and_people(tmp_path: Path) -> None:
    (tmp_path / "gate").write_text("7")
    with shoal_in(tmp_path, task=GATED, data_dir=tmp_path, rounds=10, min_nodes=2) as shoal:
        first = shoal.start("first", shard="0/2")
        shoal.until(first.facts, "it listens")
        shoal.until(lambda: ask(first, "/readyz")[1] == "not ready: 1 of 2 nodes are ready and linked\n", "it is ready")
        assert ask(first, "/readyz")[0] == 503
        assert ask(first, "/healthz") == (200, "ok\n")

        second = shoal.start("second", shard="1/2")
        shoal.until(lambda: ask(first, "/readyz")[0] == 200, "training begins")
        shoal.until_step(7, first, second)
        check_metrics(first)
        check_status(shoal, first, second)
        check_grpc(first)

        (tmp_path / "gate").unlink()
        assert shoal.codes() == [0, 0]


def check_metrics(node: NodeProcess) -> None:
    status, text = ask(node, "/metrics")
    assert status == 200
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    values = {(s.name, *s.labels.values()): s.value for s in samples}
    assert values["shoal_gradients_total",] == 7
    assert values["shoal_members", "alive"] == 1
    assert values["shoal_view_members",] == 2
    assert values["shoal_heartbeats_total", "received"] > 0
    assert values["shoal_connections_total", "up"] == 1
    assert sum(s.value for s in samples if s.name == "shoal_label_samples") == own(node)["samples"]


def check_status(shoal: Shoal, first: NodeProcess, second: NodeProcess) -> None:
    def counted() -> dict[str, Any] | None:
        status = first.status()
        return status if status is not None and status["shoal"]["gradients"] == 14 else None

    status = shoal.until(counted, "the first has heard of all gradients")
    assert status["shoal"] == {"name": shoal.common["shoal"], "gradients": 14, "accuracy": None}
    assert status["node"]["step"] == 7
    assert status["node"]["phase"] == "running"
    assert states(first) == {"first": "self", "second": "alive"}
    assert len(status["view"]["members"]) == 2
    (facts, others) = first.facts(), second.facts()
    assert facts is not None
    assert others is not None
    code, shown = shoal_command(shoal.folder, "status", facts["http"])
    assert code == 0
    assert all(word in shown for word in ("first", "second", "alive", others["address"], "7"))


def check_grpc(node: NodeProcess) -> None:
    facts = node.facts()
    assert facts is not None
    with grpc.insecure_channel(facts["address"]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "shoal.v1.NodeService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        assert "shoal.v1.NodeService" in [s.name for s in listed.list_services_response.service]


# --- who comes late, or again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_nodes", [1, 2], ids=["may start alone", "must not start alone"])
def test_a_latecomer_begins_with_a_members_model(tmp_path: Path, min_nodes: int) -> None:
    (tmp_path / "gate").write_text("100")
    with shoal_in(tmp_path, task=GATED, lr=0.2, rounds=150) as shoal:
        early = shoal.start_all(2, data_dir=tmp_path)
        shoal.until_step(100, *early)
        late = shoal.start("late", shard="0/1", min_nodes=min_nodes)
        shoal.until(lambda: own(late).get("step", 0) > 5, "the latecomer trains")
        (tmp_path / "gate").unlink()
        assert shoal.codes() == [0, 0, 0]
        assert_one_model([*early, late])

        (joined,) = events(late, "joined")
        assert joined["model_from"] in [node.result()["own"]["id"] for node in early]
        assert losses(early[0])[0] > 100 * losses(early[0])[-1], "the task begins far away"
        assert max(losses(late)) < 2 * losses(early[0])[-1], "and the latecomer never was there"
        assert "with the model of" in log(late)
        assert "training goes on" in log(early[0])


@pytest.mark.parametrize("algorithm", ["d2", "signum"])
def test_a_latecomer_of_a_synchronous_run_takes_part_in_the_rounds_that_are_left(
    tmp_path: Path, algorithm: str
) -> None:
    (tmp_path / "gate").write_text("5")
    with shoal_in(tmp_path, task=GATED, data_dir=tmp_path, algorithm=algorithm, rounds=10) as shoal:
        early = shoal.start_all(2)
        shoal.until_step(5, *early)
        late = shoal.start("late", min_nodes=1)
        shoal.until_logged("of 3 members: joining the training with the model of node-", late)
        (tmp_path / "gate").unlink()
        assert shoal.codes() == [0, 0, 0]
        assert_one_model([*early, late])
        assert (len(losses(early[0])), len(losses(late))) == (10, 5)


def test_nodes_of_a_finished_run_that_are_resumed_find_it_finished(tmp_path: Path) -> None:
    with shoal_in(tmp_path, rounds=20) as shoal:
        nodes = shoal.start_all(2)
        assert shoal.codes() == [0, 0]
        before = mean_model(nodes[0])
        again = shoal.start_all(2, resume=True)
        assert shoal.codes(*again) == [0, 0]
        assert_one_model(again)
        assert torch.equal(mean_model(again[0])["x"], before["x"])
        assert all(len(events(node, "resumed")) == 1 for node in again)


def test_one_node_of_a_finished_run_that_is_resumed_alone_finds_it_finished_too(tmp_path: Path) -> None:
    with shoal_in(tmp_path, rounds=20) as shoal:
        nodes = shoal.start_all(2)
        assert shoal.codes() == [0, 0]
        steps = len(losses(nodes[0]))
        again = shoal.start("node-1", shard="0/2", resume=True, peers="")
        assert shoal.codes(again) == [0]
        assert len(losses(again)) == max(steps, 20)
