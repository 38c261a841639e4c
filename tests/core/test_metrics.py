"""The table of names obeys Prometheus' rules, and what is exported is what was told."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from shoal import __version__
from shoal.metric_table import BY_NAME, OF_COORDINATOR, PEERS_LIMIT, PROCESS, TABLE, TALLY, TRAINER, Row
from shoal.metrics import Metrics

NAME = re.compile(r"shoal_[a-z]+(_[a-z]+)*")
MINIMUM = [
    "shoal_info",
    "shoal_phase",
    "shoal_step",
    "shoal_gradients_total",
    "shoal_train_loss",
    "shoal_held_out_accuracy",
    "shoal_held_out_samples",
    "shoal_shoal_gradients",
    "shoal_shoal_accuracy",
    "shoal_members",
    "shoal_exchanges_total",
    "shoal_exchange_seconds",
    "shoal_averages_per_gradient",
    "shoal_in_doubt",
    "shoal_unsettled_lost_total",
    "shoal_refused_total",
    "shoal_sent_bytes_total",
    "shoal_received_bytes_total",
    "shoal_peer_rtt_seconds",
    "shoal_step_seconds_total",
    "shoal_label_samples",
    "shoal_checkpoint_timestamp_seconds",
    "shoal_checkpoint_failures_total",
    "shoal_heartbeats_total",
    "shoal_connections_total",
]

STATUS: dict[str, Any] = {
    "step": 40,
    "gradients": 41,
    "loss": 0.5,
    "lr": 0.1,
    "distance": 0.75,
    "norm": 3.0,
    "gpu": {"total": 80, "used": 20, "trainer": 10},
    "right": 30,
    "total": 40,
    "exchanges": {
        "active": 5,
        "passive": 6,
        "busy": 1,
        "gone": 2,
        "withdrawn": 3,
        "refused": 4,
        "clipped": 9,
        "resolved": 7,
        "lost": 8,
        "codecs": {"node-b": "bf16"},
    },
    "in_doubt": 2,
    "unconfirmed": 3,
    "shared_bytes": 4000,
    "seconds": {"compute": 1.5, "wait": 0.25, "exchange": 0.75, "apply": 0.125},
    "exchange_seconds": [0.004, 0.4],
    "waits": [{"for": "node-b", "seconds": 2.5, "why": "average"}, {"for": "node-c", "seconds": 1.0, "why": "mix"}],
    "saved_at": 1.7e9,
    "save_failures": 1,
}


INFO = {
    "node": "node-a-1",
    "shoal": "default",
    "role": "node",
    "algorithm": "ad-psgd",
    "task": "digits",
    "version": __version__,
}


def member(node_id: str, state: str = "alive", rtt_s: float | None = 0.002) -> dict[str, Any]:
    row = {
        "id": node_id,
        "state": state,
        "rtt_s": rtt_s,
        "role": "node",
        "reason": "",
        "step": 45 if state == "alive" else 99,
    }
    return row | {"bytes_sent": 300, "bytes_received": 400}


def published(*members: dict[str, Any]) -> dict[str, Any]:
    node = {
        "phase": "running",
        "step": 40,
        "averages_per_gradient": 1.25,
        "bytes_sent": 1000,
        "bytes_received": 2000,
        "limited_s": 2.5,
    }
    rows = [member("node-me", "self", None) | {"step": 40}, *members]
    return {
        "node": node,
        "view": {"members": ["a", "b"]},
        "members": rows,
        "shoal": {"gradients": 99, "accuracy": 0.875},
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(node="node-a-1", algorithm="ad-psgd", task="digits")


def samples(metrics: Metrics) -> Iterator[Sample]:
    """Everything that a scrape gets, read back by Prometheus' own parser."""
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        yield from family.samples


def value(metrics: Metrics, name: str, **labels: str) -> float:
    (found,) = [s.value for s in samples(metrics) if s.name == name and s.labels == labels]
    return float(found)


# --- the table --------------------------------------------------------------------------------------------------


def test_every_name_asked_for_is_in_the_table() -> None:
    assert set(MINIMUM) <= set(BY_NAME)


def test_no_name_is_there_twice() -> None:
    assert len(BY_NAME) == len(TABLE) + len(OF_COORDINATOR)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_names_obey_the_rules_of_prometheus(row: Row) -> None:
    assert NAME.fullmatch(row.name)
    assert row.name.endswith("_total") == (row.kind == "counter"), "counters end in _total, nothing else does"
    assert not re.search(r"_(ms|milliseconds|minutes|percent|kb|mb|count|sum|bucket|created)(_|$)", row.name)
    stem = row.name.removesuffix("_total")
    if row.unit in ("seconds", "bytes"):
        assert stem.endswith(f"_{row.unit}"), "base units end the name"
    assert all(
        re.fullmatch(r"[a-z]+", label) and label not in ("le", "quantile", "instance", "job") for label in row.labels
    )
    assert row.help.endswith(".")
    assert row.more.endswith(".")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_scrape_says_what_a_higher_value_means(row: Row, metrics: Metrics) -> None:
    text = generate_latest(metrics.registry).decode()
    assert f"# HELP {row.name} {row.help} Higher: " in text
    assert f"# TYPE {row.name} {row.kind}\n" in text


def test_every_count_of_an_exchange_has_its_place() -> None:
    assert set(STATUS["exchanges"]) == {*TALLY, "codecs"}
    assert {name for name, _ in TALLY.values()} <= set(BY_NAME)


# --- what is exported -------------------------------------------------------------------------------------------


def busy(metrics: Metrics) -> Metrics:
    """With everything told once."""
    left = member("node-d", "gone") | {"reason": "left: finished"}
    metrics.from_status(STATUS)
    metrics.from_members(published(member("node-b"), member("node-c", "gone"), left))
    metrics.labels({"0": 12, "1": 0})
    metrics.refused("BadVector")
    metrics.connection("up")
    metrics.heartbeats(3, 4)
    metrics.vectors("bf16", sent=7)
    metrics.vectors("bf16", received=9)
    metrics.disk(5000)
    metrics.certificate(1.8e9)
    return metrics


def test_nothing_is_exported_that_is_not_in_the_table_and_all_of_it_is(metrics: Metrics) -> None:
    suffixes = ("", "_bucket", "_sum", "_count")
    allowed = {row.name + s for row in TABLE for s in (suffixes if row.kind == "histogram" else ("",))}
    exported = {s.name for s in samples(busy(metrics)) if s.name not in PROCESS}
    assert exported <= allowed
    assert {row.name for row in TABLE if row.kind != "histogram"} <= exported


def test_labels_are_those_of_the_table(metrics: Metrics) -> None:
    for sample in samples(busy(metrics)):
        if sample.name in BY_NAME:
            row = BY_NAME[sample.name]
            assert set(sample.labels) == set(row.labels)
            assert all(not row.labels[key] or value in row.labels[key] for key, value in sample.labels.items())


def test_two_nodes_in_one_process_do_not_share_values(metrics: Metrics) -> None:
    other = Metrics(node="node-b-2", algorithm="d2", task="digits")
    metrics.connection("up")
    assert value(other, "shoal_connections_total", event="up") == 0
    assert value(metrics, "shoal_connections_total", event="up") == 1


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("shoal_info", INFO, 1),
        ("shoal_step", {}, 40),
        ("shoal_steps_behind", {}, 5),
        ("shoal_model_distance", {}, 0.75),
        ("shoal_model_norm", {}, 3),
        ("shoal_vector_bytes_total", {"codec": "bf16", "direction": "sent"}, 7),
        ("shoal_vector_bytes_total", {"codec": "bf16", "direction": "received"}, 9),
        ("shoal_peer_bytes_total", {"peer": "node-b", "direction": "sent"}, 300),
        ("shoal_peer_bytes_total", {"peer": "node-b", "direction": "received"}, 400),
        ("shoal_state_free_bytes", {}, 5000),
        ("shoal_certificate_expiry_timestamp_seconds", {}, 1.8e9),
        ("shoal_gpu_memory_bytes", {"kind": "used"}, 20),
        ("shoal_gradients_total", {}, 41),
        ("shoal_train_loss", {}, 0.5),
        ("shoal_learning_rate", {}, 0.1),
        ("shoal_held_out_accuracy", {}, 0.75),
        ("shoal_held_out_samples", {}, 40),
        ("shoal_exchanges_total", {"role": "active", "outcome": "done"}, 5),
        ("shoal_exchanges_total", {"role": "passive", "outcome": "done"}, 6),
        ("shoal_exchanges_total", {"role": "active", "outcome": "busy"}, 1),
        ("shoal_unsettled_lost_total", {}, 8),
        ("shoal_doubts_resolved_total", {}, 7),
        ("shoal_vectors_refused_total", {}, 4),
        ("shoal_differences_clipped_total", {}, 9),
        ("shoal_in_doubt", {}, 2),
        ("shoal_unconfirmed", {}, 3),
        ("shoal_step_seconds_total", {"phase": "compute"}, 1.5),
        ("shoal_step_seconds_total", {"phase": "wait"}, 0.25),
        ("shoal_step_seconds_total", {"phase": "exchange"}, 0.75),
        ("shoal_step_seconds_total", {"phase": "apply"}, 0.125),
        ("shoal_step_seconds_total", {"phase": "other"}, 0),
        ("shoal_exchange_seconds_count", {}, 2),
        ("shoal_exchange_seconds_bucket", {"le": "0.005"}, 1),
        ("shoal_longest_wait_seconds", {}, 2.5),
        ("shoal_checkpoint_timestamp_seconds", {}, 1.7e9),
        ("shoal_checkpoint_failures_total", {}, 1),
        ("shoal_phase", {}, 2),
        ("shoal_averages_per_gradient", {}, 1.25),
        ("shoal_view_members", {}, 2),
        ("shoal_shoal_gradients", {}, 99),
        ("shoal_shoal_accuracy", {}, 0.875),
        ("shoal_sent_bytes_total", {}, 1000),
        ("shoal_received_bytes_total", {}, 2000),
        ("shoal_shared_bytes_total", {}, 4000),
        ("shoal_sending_limited_seconds_total", {}, 2.5),
        ("shoal_members", {"state": "alive"}, 1),
        ("shoal_members", {"state": "suspect"}, 0),
        ("shoal_members", {"state": "gone"}, 1),
        ("shoal_members", {"state": "left"}, 1),
        ("shoal_peer_rtt_seconds", {"peer": "node-b"}, 0.002),
        ("shoal_peer_codec", {"peer": "node-b", "codec": "bf16"}, 1),
        ("shoal_label_samples", {"label": "0"}, 12),
        ("shoal_refused_total", {"reason": "BadVector"}, 1),
        ("shoal_heartbeats_total", {"direction": "received"}, 4),
    ],
)
def test_what_was_told_is_exported(metrics: Metrics, name: str, labels: dict[str, str], expected: float) -> None:
    assert value(busy(metrics), name, **labels) == expected


# --- over time --------------------------------------------------------------------------------------------------


def test_what_is_not_known_is_not_a_number_and_what_never_happened_is_zero(metrics: Metrics) -> None:
    assert math.isnan(value(metrics, "shoal_train_loss"))
    assert math.isnan(value(metrics, "shoal_held_out_accuracy"))
    assert value(metrics, "shoal_gradients_total") == 0
    assert value(metrics, "shoal_refused_total", reason="BadFrame") == 0
    metrics.from_status(STATUS | {"loss": None, "right": None, "total": 0, "saved_at": None})
    assert math.isnan(value(metrics, "shoal_train_loss"))
    assert math.isnan(value(metrics, "shoal_checkpoint_timestamp_seconds"))


def test_a_total_told_again_is_not_counted_again(metrics: Metrics) -> None:
    for _ in range(3):
        metrics.from_status(STATUS | {"exchange_seconds": []})
    assert value(metrics, "shoal_gradients_total") == 41
    assert value(metrics, "shoal_exchanges_total", role="active", outcome="done") == 5
    assert value(metrics, "shoal_step_seconds_total", phase="compute") == 1.5


def test_a_counter_goes_on_where_it_was_when_the_trainer_starts_again(metrics: Metrics) -> None:
    metrics.from_status(STATUS)
    metrics.from_status(STATUS | {"gradients": 4})
    assert value(metrics, "shoal_gradients_total") == 45
    metrics.from_status(STATUS | {"gradients": 10})
    assert value(metrics, "shoal_gradients_total") == 51


def test_the_gradients_of_a_checkpoint_are_not_work_of_this_process(metrics: Metrics) -> None:
    metrics.resumed(40)
    assert value(metrics, "shoal_gradients_total") == 0
    metrics.from_status(STATUS)
    assert value(metrics, "shoal_gradients_total") == 1


def test_a_neighbour_that_is_gone_loses_its_series(metrics: Metrics) -> None:
    metrics.from_members(published(member("node-b"), member("node-c")))
    metrics.from_members(published(member("node-b", "gone"), member("node-c", rtt_s=0.5)))
    peers = {s.labels["peer"]: s.value for s in samples(metrics) if s.name == "shoal_peer_rtt_seconds"}
    assert peers == {"node-c": 0.5}


def test_a_neighbour_has_the_series_of_one_codec(metrics: Metrics) -> None:
    metrics.from_status(STATUS)
    metrics.from_status({"exchanges": {"codecs": {"node-b": "sign", "node-c": "f32"}}})
    found = {(s.labels["peer"], s.labels["codec"]): s.value for s in samples(metrics) if s.name == "shoal_peer_codec"}
    assert found == {("node-b", "sign"): 1, ("node-c", "f32"): 1}


def test_the_series_of_neighbours_are_bounded_and_each_node_is_watched_by_as_many() -> None:
    ids = [f"node-{k:03}" for k in range(2 * PEERS_LIMIT)]
    watchers = dict.fromkeys(ids, 0)
    for me in ids:
        one = Metrics(node=me, algorithm="ad-psgd", task="digits")
        one.from_members(published(*(member(peer) for peer in ids if peer != me)))
        one.from_status({"exchanges": {"codecs": {peer: "f32" for peer in ids if peer != me}}})
        seen = [s.labels["peer"] for s in samples(one) if s.name == "shoal_peer_rtt_seconds"]
        assert sum("peer" in s.labels for s in samples(one)) == 4 * PEERS_LIMIT, "rtt, codec, bytes both ways"
        for peer in seen:
            watchers[peer] += 1
    assert set(watchers.values()) == {PEERS_LIMIT}


def test_the_bytes_of_a_neighbour_that_comes_back_are_counted_on(metrics: Metrics) -> None:
    metrics.from_members(published(member("node-b")))
    metrics.from_members(published(member("node-b", "gone")))
    assert not [s for s in samples(metrics) if s.name == "shoal_peer_bytes_total"]
    metrics.from_members(published(member("node-b") | {"bytes_sent": 310}))
    assert value(metrics, "shoal_peer_bytes_total", peer="node-b", direction="sent") == 10


def test_a_node_without_a_gpu_has_no_series_of_one(metrics: Metrics) -> None:
    metrics.from_status(STATUS | {"gpu": {}})
    assert not [s for s in samples(metrics) if s.name == "shoal_gpu_memory_bytes"]


def test_the_trainer_is_measured_while_it_lives() -> None:
    made = Metrics(node="node-a-1", algorithm="ad-psgd", task="digits")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        made.trainer(lambda: child.pid)
        assert value(made, "shoal_trainer_process_resident_memory_bytes") > 0
        child.communicate(b"\n")
    assert not [s for s in samples(made) if s.name.startswith(TRAINER)]


def test_a_label_value_that_the_table_does_not_name_becomes_other(metrics: Metrics) -> None:
    metrics.refused("Whatever a peer makes us raise")
    metrics.connection("sideways")
    metrics.from_status({"seconds": {"dreaming": 3.0}})
    assert value(metrics, "shoal_refused_total", reason="other") == 1
    assert value(metrics, "shoal_connections_total", event="other") == 1
    assert value(metrics, "shoal_step_seconds_total", phase="other") == 3.0


def test_labels_with_quotes_and_line_breaks_survive_a_scrape(metrics: Metrics) -> None:
    metrics.labels({'a "b"\nc\\': 3})
    assert value(metrics, "shoal_label_samples", label='a "b"\nc\\') == 3


def test_a_status_of_another_version_is_taken_as_far_as_it_goes(metrics: Metrics) -> None:
    metrics.from_status({"step": 3, "new_key": {"x": 1}, "exchanges": {"invented": 5}})
    assert value(metrics, "shoal_step") == 3


# --- a coordinator ----------------------------------------------------------------------------------------------


def of_coordinator() -> Metrics:
    return Metrics(node="coordinator-1", algorithm="", task="", coordinates=True)


def test_a_coordinator_exports_its_own_names_and_those_in_common() -> None:
    families = {s.name.removesuffix("_bucket") for s in samples(of_coordinator())}
    for row in OF_COORDINATOR:
        assert row.name in families
    assert {"shoal_sent_bytes_total", "shoal_sending_limited_seconds_total"} <= families
    assert "shoal_train_loss" not in families


def test_what_a_coordinator_shows_is_exported() -> None:
    made = of_coordinator()
    serves = {
        "quorum": 3,
        "round": 12,
        "rounds": {"all": 9, "quorum": 3},
        "votes": {"counted": 30, "missing": 6, "late": 4, "double": 1, "refused": 2},
        "agreement": 0.8,
        "enrolled": ["a", "b"],
    }
    for _ in range(2):  # totals told again are not counted again
        made.from_coordinator(published() | {"coordinator": serves}, [])
    assert value(made, "shoal_rounds_total", how="quorum") == 3
    assert value(made, "shoal_votes_total", outcome="late") == 4
    assert value(made, "shoal_votes_total", outcome="refused") == 2
    assert value(made, "shoal_enrolled") == 2
    assert value(made, "shoal_quorum") == 3
    assert value(made, "shoal_vote_agreement_ratio") == 0.8


def test_the_staleness_of_gradients_is_a_histogram_of_models() -> None:
    made = of_coordinator()
    made.from_coordinator(published() | {"coordinator": {"quorum": None, "version": 4}}, [0, 1, 1, 5])
    assert value(made, "shoal_gradient_staleness_count") == 4
    assert value(made, "shoal_gradient_staleness_sum") == 7
    assert value(made, "shoal_gradient_staleness_bucket", le="1.0") == 3
    assert value(made, "shoal_model_version") == 4
    assert value(made, "shoal_quorum") == 0
