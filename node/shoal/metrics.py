"""What fills the metrics of `metric_table.py`, and where they lie.

Totals come from the trainer and the transport as they count them; a source that starts again at 0 never takes a
counter back.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from shoal import __version__
from shoal.metric_table import (
    BY_NAME,
    DIRECTIONS,
    IN_COMMON,
    LEFT,
    OF_COORDINATOR,
    OTHER,
    PEERS_LIMIT,
    STATES,
    TABLE,
    TALLY,
    TRAINER,
    Row,
)
from shoal.roster import PHASE_WORDS, State

# So that only what the table names is exported: `_created` series are for a format that is not served.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """One node's values, in a registry of its own. What is not known is NaN, what never happened is 0."""

    def __init__(
        self, *, node: str, algorithm: str, task: str, shoal: str = "default", coordinates: bool = False
    ) -> None:
        self.registry = CollectorRegistry()
        rows = (*(BY_NAME[name] for name in IN_COMMON), *OF_COORDINATOR) if coordinates else TABLE
        self._made = {row.name: _make(row, self.registry) for row in rows}
        self._totals: dict[tuple[str, ...], float] = {}  # last total told by its source, which may start again
        self._node = node
        self._of_peers: dict[str, set[tuple[str, ...]]] = {}  # name -> labels of the series that are there
        for row in rows:
            if row.kind == "gauge" and not row.labels:
                self._set(row.name, math.nan)
        ProcessCollector(registry=self.registry)
        role = "coordinator" if coordinates else "node"
        what = {"node": node, "shoal": shoal, "role": role, "algorithm": algorithm, "task": task}
        self._set("shoal_info", 1, **what, version=__version__)

    def trainer(self, pid: Callable[[], int]) -> None:
        """Time and memory of the trainer's process, as the daemon's own."""
        ProcessCollector(namespace=TRAINER, pid=pid, registry=self.registry)

    def from_status(self, status: Mapping[str, Any]) -> None:
        """The trainer's status: totals for counters, since that process started, and values for gauges."""
        for row in TABLE:
            if row.status in status:
                self._take(row, status[row.status])
        for key, value in status.get("exchanges", {}).items():
            if key in TALLY:
                name, labels = TALLY[key]
                self._advance(name, value, **labels)
        codecs = status.get("exchanges", {}).get("codecs", {})
        watched = self._watched(codecs)
        self._keep("shoal_peer_codec", {(peer, codecs[peer]) for peer in watched})
        for peer in watched:
            self._set("shoal_peer_codec", 1, peer=peer, codec=codecs[peer])
        right, total = status.get("right"), status.get("total")
        self._set("shoal_held_out_accuracy", right / total if total and right is not None else None)
        self._set("shoal_longest_wait_seconds", max((w["seconds"] for w in status.get("waits", ())), default=0.0))

    def from_members(self, status: Mapping[str, Any]) -> None:
        """What /v1/status shows of this node, its view and the members."""
        node, shoal, view = status["node"], status["shoal"], status["view"]
        numbers = {word: number for number, word in PHASE_WORDS.items()}
        self._set("shoal_phase", numbers.get(node["phase"]))
        steps = [m["step"] for m in status["members"] if m["role"] == "node" and m["state"] != State.GONE]
        self._set("shoal_steps_behind", max(steps) - node["step"])
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

    def resumed(self, gradients: int) -> None:
        """Those of a checkpoint are not counted: a rate must not show the work of an earlier process."""
        self._totals["shoal_gradients_total",] = gradients

    def vectors(self, codec: str, *, sent: int = 0, received: int = 0) -> None:
        """A vector of so many bytes goes, or came."""
        for direction, nbytes in (("sent", sent), ("received", received)):
            if nbytes:
                self._count("shoal_vector_bytes_total", nbytes, codec=codec, direction=direction)

    def disk(self, free_bytes: int | None) -> None:
        """Of the state folder; None where it cannot be told."""
        self._set("shoal_state_free_bytes", free_bytes)

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
        states = [LEFT if m["reason"].startswith("left") else m["state"] for m in members]
        for state in STATES:
            self._set("shoal_members", states.count(state), state=state)
        known = {m["id"]: m for m in members if m["rtt_s"] is not None and m["state"] != State.GONE}
        watched = self._watched(known)
        self._keep("shoal_peer_rtt_seconds", {(peer,) for peer in watched})
        self._keep("shoal_peer_bytes_total", {(peer, way) for peer in watched for way in DIRECTIONS})
        for peer in watched:
            self._set("shoal_peer_rtt_seconds", known[peer]["rtt_s"], peer=peer)
            for way in DIRECTIONS:
                self._advance("shoal_peer_bytes_total", known[peer][f"bytes_{way}"], peer=peer, direction=way)

    def _take(self, row: Row, value: Any) -> None:
        if row.kind == "histogram":
            self._observe(row.name, value)
        elif isinstance(value, Mapping):
            (label,) = row.labels
            for key, part in value.items():
                (self._set if row.kind == "gauge" else self._advance)(row.name, part, **{label: key})
        elif row.kind == "gauge":
            self._set(row.name, value)
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

    def _watched(self, peers: Iterable[str]) -> list[str]:
        """At most `PEERS_LIMIT` of them: those that follow this node in the ring of ids."""
        return sorted(peers, key=lambda peer: (peer <= self._node, peer))[:PEERS_LIMIT]

    def _keep(self, name: str, labels: set[tuple[str, ...]]) -> None:
        """Ends the series of neighbours that are not among those any more."""
        for old in self._of_peers.get(name, set()) - labels:
            self._made[name].remove(*old)
        self._of_peers[name] = labels


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
