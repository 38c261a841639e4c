"""Every Prometheus name that a node exports, in one table, and what fills it.

Names follow prometheus.io/docs/practices/naming: prefix `shoal_`, base units, `_total` on what only grows. A label's
values are fixed in the table, or are this node's classes or neighbours; no label takes what another node makes up.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from shoal import __version__
from shoal.roster import PHASE_WORDS, State
from shoal.settings import CODECS

Kind = Literal["gauge", "counter", "histogram"]
Labels = Mapping[str, tuple[str, ...]]

PEERS_LIMIT = 256
"""Neighbours with a series of their own."""
OTHER = "other"
"""Stands for a label value that the table does not name."""
EXCHANGE_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

# So that only what the table names is exported: `_created` series are for a format that is not served.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One name: its kind and unit, what it says, and what a higher value means.

    `labels` maps each label to its values, () where these are classes or neighbours. `status` is the key of the
    trainer's status that fills it, a total there for a counter.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    more: str
    labels: Labels = dataclasses.field(default_factory=dict)
    status: str = ""
    buckets: tuple[float, ...] = EXCHANGE_BUCKETS_S


PHASES = ", ".join(f"{number} {word}" for number, word in PHASE_WORDS.items())
REFUSED = ("Mismatch", "Untrusted", "BadVector", "BadFrame", "PeerError", OTHER)
EVENTS = ("up", "down", OTHER)
PARTS = ("compute", "wait", "exchange", "apply", OTHER)
EXCHANGES: Labels = {
    "role": ("active", "passive"),
    "outcome": ("done", "busy", "gone", "withdrawn"),
}
HOW = ("all", "quorum")
VOTES = ("counted", "missing", "late", "double", "refused")
STALENESS_BUCKETS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
STATES = tuple(state.value for state in State)

# fmt: off
TABLE = (
    Row("shoal_info", "gauge", "", "Always 1; what runs here.", "No meaning.",
        {"node": (), "algorithm": (), "task": (), "version": ()}),
    Row("shoal_phase", "gauge", "", f"How far this node is: {PHASES}.", "Further."),
    Row("shoal_step", "gauge", "steps", "Round, or local steps, this node is at.", "Further; falls on a resume.",
        status="step"),
    Row("shoal_gradients_total", "counter", "gradients", "Gradients applied by this node.", "More work done.",
        status="gradients"),
    Row("shoal_learning_rate", "gauge", "", "Step size in use.", "Bigger steps.", status="lr"),
    Row("shoal_train_loss", "gauge", "", "Mean loss of recent minibatches here.", "Worse.", status="loss"),
    Row("shoal_held_out_accuracy", "gauge", "ratio", "Part of this node's held-out samples classified rightly, 0 to 1.",
        "Better."),
    Row("shoal_held_out_samples", "gauge", "samples", "Held-out samples the accuracy is measured on.",
        "A surer figure.", status="total"),
    Row("shoal_shoal_gradients", "gauge", "gradients", "Gradients of all members ever met, as far as known here.",
        "More work done."),
    Row("shoal_shoal_accuracy", "gauge", "ratio", "Held-out accuracy summed over the counts of all live members.",
        "Better."),
    Row("shoal_members", "gauge", "nodes", "Other nodes by what is believed of them.",
        "More of them; any but alive is trouble.", {"state": STATES}),
    Row("shoal_view_members", "gauge", "nodes", "Members of the view that holds, 0 before the first.", "More nodes."),
    Row("shoal_exchanges_total", "counter", "exchanges", "Pairwise averages by this node's role and how they ended.",
        "More averaging; many but done is wasted effort.", EXCHANGES),
    Row("shoal_exchange_seconds", "histogram", "seconds", "Duration of the averages that this node offered.",
        "Slower links or busier peers.", status="exchange_seconds"),
    Row("shoal_averages_per_gradient", "gauge", "ratio", "Averages finished here for each gradient.",
        "Models closer together; below 1 they drift."),
    Row("shoal_in_doubt", "gauge", "exchanges", "Averages whose other half may or may not have happened yet.",
        "More broken links not healed.", status="in_doubt"),
    Row("shoal_unconfirmed", "gauge", "messages", "Messages kept until a peer has confirmed them.",
        "Peers that fall behind.", status="unconfirmed"),
    Row("shoal_doubts_resolved_total", "counter", "exchanges", "Doubts settled by asking.",
        "More broken links healed."),
    Row("shoal_unsettled_lost_total", "counter", "exchanges", "Averages of which only one half may have happened.",
        "The sum of the models is off by more."),
    Row("shoal_vectors_refused_total", "counter", "vectors", "Vectors of peers that were not finite.",
        "A peer that diverges."),
    Row("shoal_refused_total", "counter", "messages", "Hellos and messages of peers that were refused, by error.",
        "A peer that does not fit or is broken.", {"reason": REFUSED}),
    Row("shoal_sent_bytes_total", "counter", "bytes", "Bytes of frames sent to peers.", "More traffic."),
    Row("shoal_sending_limited_seconds_total", "counter", "seconds", "Time for which max_rate held a vector back.",
        "The limit holds up training; a rate of 1 is all of the time."),
    Row("shoal_received_bytes_total", "counter", "bytes", "Bytes of frames received from peers.", "More traffic."),
    Row("shoal_shared_bytes_total", "counter", "bytes", "Bytes of vectors that others read in this one's memory.",
        "Less traffic.", status="shared_bytes"),
    Row("shoal_peer_rtt_seconds", "gauge", "seconds", "Smoothed round-trip time of heartbeats.", "Further or busier.",
        {"peer": ()}),
    Row("shoal_peer_codec", "gauge", "", "1 for the codec of the last average with that neighbour.", "No meaning.",
        {"peer": (), "codec": CODECS}),
    Row("shoal_step_seconds_total", "counter", "seconds", "Time by what the algorithm was at; exchange: beside it.",
        "A larger part of each step.", {"phase": PARTS}, status="seconds"),
    Row("shoal_longest_wait_seconds", "gauge", "seconds", "How long the algorithm waits for the slowest peer by now.",
        "A peer that is stuck."),
    Row("shoal_label_samples", "gauge", "samples", "Training samples held here, by label.", "More of that label.",
        {"label": ()}),
    Row("shoal_checkpoint_timestamp_seconds", "gauge", "seconds", "Unix time of the last checkpoint.", "Newer.",
        status="saved_at"),
    Row("shoal_checkpoint_failures_total", "counter", "checkpoints", "Checkpoints that could not be written.",
        "A disk that is full or gone.", status="save_failures"),
    Row("shoal_certificate_expiry_timestamp_seconds", "gauge", "seconds", "Unix time at which the certificate ends.",
        "Later; NaN without TLS."),
    Row("shoal_heartbeats_total", "counter", "heartbeats", "Heartbeats and answers to them.", "More members or time.",
        {"direction": ("sent", "received")}),
    Row("shoal_connections_total", "counter", "connections", "Connections to peers that came up or went down.",
        "Less stable links.", {"event": EVENTS}),
)

OF_COORDINATOR = (
    Row("shoal_round", "gauge", "rounds", "Round that is open at the coordinator.", "Further."),
    Row("shoal_rounds_total", "counter", "rounds", "Answers given, by what closed the round.",
        "Further; many by quorum leave somebody's work out.", {"how": HOW}),
    Row("shoal_quorum", "gauge", "nodes", "Answers with which a round may close without the rest; 0: all must come.",
        "Longer waits, less left out."),
    Row("shoal_enrolled", "gauge", "nodes", "Workers that take part.", "More nodes."),
    Row("shoal_votes_total", "counter", "vectors", "Vectors that workers sent, or should have, by what became of them.",
        "More work; all but the counted are wasted.", {"outcome": VOTES}),
    Row("shoal_vote_agreement_ratio", "gauge", "ratio", "Part of the signs of the last vote that were the majority's.",
        "Workers that agree; 0.5 is chance."),
    Row("shoal_model_version", "gauge", "gradients", "Gradients that the parameter server has applied.", "Further."),
    Row("shoal_gradient_staleness", "histogram", "models", "Models between a gradient's own and the one it changed.",
        "More workers, or slower ones.", buckets=STALENESS_BUCKETS),
)
"""What a coordinator exports, beside what it has in common with nodes."""
# fmt: on

IN_COMMON = (
    "shoal_info",
    "shoal_members",
    "shoal_refused_total",
    "shoal_sent_bytes_total",
    "shoal_sending_limited_seconds_total",
    "shoal_received_bytes_total",
    "shoal_peer_rtt_seconds",
    "shoal_certificate_expiry_timestamp_seconds",
    "shoal_heartbeats_total",
    "shoal_connections_total",
)
BY_NAME = {row.name: row for row in (*TABLE, *OF_COORDINATOR)}
PROCESS = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
"""prometheus-client's own, of the daemon process, on Linux only."""

TALLY = {
    "active": ("shoal_exchanges_total", {"role": "active", "outcome": "done"}),
    "passive": ("shoal_exchanges_total", {"role": "passive", "outcome": "done"}),
    "busy": ("shoal_exchanges_total", {"role": "active", "outcome": "busy"}),
    "gone": ("shoal_exchanges_total", {"role": "active", "outcome": "gone"}),
    "withdrawn": ("shoal_exchanges_total", {"role": "active", "outcome": "withdrawn"}),
    "refused": ("shoal_vectors_refused_total", {}),
    "resolved": ("shoal_doubts_resolved_total", {}),
    "lost": ("shoal_unsettled_lost_total", {}),
}
"""Where the counts of `exchange.Tally` go."""


class Metrics:
    """One node's values, in a registry of its own. What is not known is NaN, what never happened is 0."""

    def __init__(self, *, node: str, algorithm: str, task: str, coordinates: bool = False) -> None:
        self.registry = CollectorRegistry()
        rows = (*(BY_NAME[name] for name in IN_COMMON), *OF_COORDINATOR) if coordinates else TABLE
        self._made = {row.name: _make(row, self.registry) for row in rows}
        self._totals: dict[tuple[str, ...], float] = {}  # last total told by its source, which may start again
        self._peers: set[str] = set()
        self._edges: set[tuple[str, str]] = set()  # (neighbour, codec)
        for row in rows:
            if row.kind == "gauge" and not row.labels:
                self._set(row.name, math.nan)
        ProcessCollector(registry=self.registry)
        self._set("shoal_info", 1, node=node, algorithm=algorithm, task=task, version=__version__)

    def from_status(self, status: Mapping[str, Any]) -> None:
        """The trainer's status: totals for counters, since that process started, and values for gauges."""
        for row in TABLE:
            if row.status in status:
                self._take(row, status[row.status])
        for key, value in status.get("exchanges", {}).items():
            if key in TALLY:
                name, labels = TALLY[key]
                self._advance(name, value, **labels)
        self._codecs(status.get("exchanges", {}).get("codecs", {}))
        right, total = status.get("right"), status.get("total")
        self._set("shoal_held_out_accuracy", right / total if total and right is not None else None)
        self._set("shoal_longest_wait_seconds", max((w["seconds"] for w in status.get("waits", ())), default=0.0))

    def from_members(self, status: Mapping[str, Any]) -> None:
        """What /v1/status shows of this node, its view and the members."""
        node, shoal, view = status["node"], status["shoal"], status["view"]
        numbers = {word: number for number, word in PHASE_WORDS.items()}
        self._set("shoal_phase", numbers.get(node["phase"]))
        self._set("shoal_averages_per_gradient", node["averages_per_gradient"])
        self._set("shoal_view_members", 0 if view is None else len(view["members"]))
        self._set("shoal_shoal_gradients", shoal["gradients"])
        self._set("shoal_shoal_accuracy", shoal["accuracy"])
        self._members(status)

    def from_coordinator(self, status: Mapping[str, Any], staleness: Iterable[int]) -> None:
        """What a coordinator's /v1/status shows, and the staleness of the gradients since the last call."""
        serves = status["coordinator"]
        self._members(status)
        self._set("shoal_quorum", serves["quorum"] or 0)
        self._set("shoal_enrolled", len(serves.get("enrolled", ())))
        self._set("shoal_round", serves.get("round"))
        self._set("shoal_vote_agreement_ratio", serves.get("agreement"))
        self._set("shoal_model_version", serves.get("version"))
        for how, total in serves.get("rounds", {}).items():
            self._advance("shoal_rounds_total", total, how=how)
        for outcome, total in serves.get("votes", {}).items():
            self._advance("shoal_votes_total", total, outcome=outcome)
        self._observe("shoal_gradient_staleness", staleness)

    def labels(self, histogram: Mapping[str, int]) -> None:
        """Training samples held here, by label."""
        for label, count in histogram.items():
            self._set("shoal_label_samples", count, label=str(label))

    def refused(self, reason: str) -> None:
        """A peer's Hello or message was refused; `reason` is the class of the error."""
        self._count("shoal_refused_total", reason=reason)

    def certificate(self, ends: float | None) -> None:
        """This member's own, by its end in unix time; None without TLS."""
        self._set("shoal_certificate_expiry_timestamp_seconds", ends)

    def connection(self, event: str) -> None:
        """A connection came `up` or went `down`."""
        self._count("shoal_connections_total", event=event)

    def heartbeats(self, sent: int, received: int) -> None:
        """Totals since the start."""
        self._advance("shoal_heartbeats_total", sent, direction="sent")
        self._advance("shoal_heartbeats_total", received, direction="received")

    # --- inside -------------------------------------------------------------------------------------------------

    def _members(self, status: Mapping[str, Any]) -> None:
        node, members = status["node"], status["members"]
        self._advance("shoal_sent_bytes_total", node["bytes_sent"])
        self._advance("shoal_received_bytes_total", node["bytes_received"])
        self._advance("shoal_sending_limited_seconds_total", node["limited_s"])
        states = [member["state"] for member in members]
        for state in STATES:
            self._set("shoal_members", states.count(state), state=state)
        known = [m for m in members if m["rtt_s"] is not None and m["state"] != State.GONE]
        self._round_trips({m["id"]: m["rtt_s"] for m in known[:PEERS_LIMIT]})

    def _take(self, row: Row, value: Any) -> None:
        if row.kind == "histogram":
            self._observe(row.name, value)
        elif row.kind == "gauge":
            self._set(row.name, value)
        elif isinstance(value, Mapping):
            (label,) = row.labels
            for key, part in value.items():
                self._advance(row.name, part, **{label: key})
        else:
            self._advance(row.name, value)

    def _set(self, name: str, value: float | None, **labels: str) -> None:
        gauge = self._child(name, labels)
        assert isinstance(gauge, Gauge)
        gauge.set(math.nan if value is None else value)

    def _count(self, name: str, by: float = 1, **labels: str) -> None:
        counter = self._child(name, labels)
        assert isinstance(counter, Counter)
        counter.inc(by)

    def _observe(self, name: str, values: Iterable[float]) -> None:
        histogram = self._child(name, {})
        assert isinstance(histogram, Histogram)
        for value in values:
            histogram.observe(value)

    def _advance(self, name: str, total: float, **labels: str) -> None:
        """Adds what `total` has grown by. A total that fell has started again at 0: a counter never goes down."""
        key = (name, *labels.values())
        last = self._totals.get(key, 0.0)
        self._totals[key] = total
        self._count(name, total - last if total >= last else total, **labels)

    def _child(self, name: str, labels: Mapping[str, str]) -> "Gauge | Counter | Histogram":
        metric, row = self._made[name], BY_NAME[name]
        if not labels:
            return metric
        return metric.labels(**{key: _bounded(row.labels[key], value) for key, value in labels.items()})

    def _round_trips(self, rtt_s: Mapping[str, float]) -> None:
        gauge = self._made["shoal_peer_rtt_seconds"]
        for peer in self._peers - set(rtt_s):
            gauge.remove(peer)
        self._peers = set(rtt_s)
        for peer, seconds in rtt_s.items():
            self._set("shoal_peer_rtt_seconds", seconds, peer=peer)

    def _codecs(self, of_peers: Mapping[str, str]) -> None:
        gauge = self._made["shoal_peer_codec"]
        for pair in self._edges - set(of_peers.items()):
            gauge.remove(*pair)
        self._edges = set(of_peers.items())
        for peer, codec in of_peers.items():
            self._set("shoal_peer_codec", 1, peer=peer, codec=codec)


def _bounded(values: tuple[str, ...], value: str) -> str:
    return value if not values or value in values else OTHER


def _make(row: Row, registry: CollectorRegistry) -> Gauge | Counter | Histogram:
    """The metric of a row; with all its series at 0 where the table names their labels."""
    words, labels = f"{row.help} Higher: {row.more[0].lower()}{row.more[1:]}", tuple(row.labels)
    if row.kind == "histogram":
        return Histogram(row.name, words, labels, registry=registry, buckets=row.buckets)
    metric = (Counter if row.kind == "counter" else Gauge)(row.name, words, labels, registry=registry)
    if labels:
        for values in itertools.product(*row.labels.values()):
            metric.labels(*values)
    return metric
