"""Every Prometheus name that a node or a coordinator exports, in one table: docs/metrics.md is made from it.

Names follow prometheus.io/docs/practices/naming: prefix `shoal_`, base units, `_total` on what only grows. A label's
values are fixed in the table, or are this node's classes or some of its neighbours; no label takes what another node
makes up, and no node has more series the more nodes there are, beyond `PEERS_LIMIT` neighbours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from shoal.roster import PHASE_WORDS, State
from shoal.traits import CODECS

Kind = Literal["gauge", "counter", "histogram"]
Labels = Mapping[str, tuple[str, ...]]

PEERS_LIMIT = 32
"""Neighbours with series of their own at one node: those whose ids follow its own. So N nodes have 32 N such series,
not N squared, and each node is watched by 32 others."""
OTHER = "other"
"""Stands for a label value that the table does not name."""
EXCHANGE_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


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
DIRECTIONS = ("sent", "received")
EVENTS = ("up", "down", OTHER)
PARTS = ("compute", "wait", "exchange", "apply", OTHER)
EXCHANGES: Labels = {
    "role": ("active", "passive"),
    "outcome": ("done", "busy", "gone", "withdrawn"),
}
HOW = ("all", "quorum")
VOTES = ("counted", "missing", "late", "double", "refused")
STALENESS_BUCKETS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
LEFT = "left"
"""Of a member that took its leave, in order or not; one that is gone fell silent."""
STATES = (*(state.value for state in State), LEFT)

# fmt: off
TABLE = (
    Row("shoal_info", "gauge", "", "Always 1; what runs here.", "No meaning.",
        {"node": (), "shoal": (), "role": ("node", "coordinator"), "algorithm": (), "task": (), "version": ()}),
    Row("shoal_phase", "gauge", "", f"How far this node is: {PHASES}.", "Further."),
    Row("shoal_step", "gauge", "steps", "Round, or local steps, this node is at.", "Further; falls on a resume.",
        status="step"),
    Row("shoal_steps_behind", "gauge", "steps", "Steps that the furthest live node is ahead of this one.",
        "Older gradients: this node is slow, or was away."),
    Row("shoal_gradients_total", "counter", "gradients", "Gradients applied here since this process began.",
        "More work done.", status="gradients"),
    Row("shoal_learning_rate", "gauge", "", "Step size in use.", "Bigger steps.", status="lr"),
    Row("shoal_train_loss", "gauge", "", "Mean loss of recent minibatches here.", "Worse.", status="loss"),
    Row("shoal_model_distance", "gauge", "", "Distance (Euclid's) to a neighbour's model, as last measured.",
        "Models that drift apart.", status="distance"),
    Row("shoal_model_norm", "gauge", "", "Length (Euclid's) of this node's model at that moment.", "Larger weights.",
        status="norm"),
    Row("shoal_held_out_accuracy", "gauge", "ratio", "Part of this node's held-out samples classified rightly, 0 to 1.",
        "Better."),
    Row("shoal_held_out_samples", "gauge", "samples", "Held-out samples the accuracy is measured on.",
        "A surer figure.", status="total"),
    Row("shoal_shoal_gradients", "gauge", "gradients", "Gradients of all members ever met, as far as known here.",
        "More work done."),
    Row("shoal_shoal_accuracy", "gauge", "ratio", "Held-out accuracy summed over the counts of all live members.",
        "Better."),
    Row("shoal_members", "gauge", "nodes", "Other nodes by what is believed of them.",
        "More of them; suspect and gone are trouble.", {"state": STATES}),
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
    Row("shoal_differences_clipped_total", "counter", "vectors", "Differences to peers' models that were shortened.",
        "Models further apart, or a hostile peer."),
    Row("shoal_refused_total", "counter", "messages", "Hellos and messages of peers that were refused, by error.",
        "A peer that does not fit or is broken.", {"reason": REFUSED}),
    Row("shoal_sent_bytes_total", "counter", "bytes", "Bytes of frames sent to peers.", "More traffic."),
    Row("shoal_sending_limited_seconds_total", "counter", "seconds", "Time for which max_rate held a vector back.",
        "The limit holds up training; a rate of 1 is all of the time."),
    Row("shoal_received_bytes_total", "counter", "bytes", "Bytes of frames received from peers.", "More traffic."),
    Row("shoal_vector_bytes_total", "counter", "bytes", "Bytes of vectors that travelled, by how they were packed.",
        "More traffic.", {"codec": (*CODECS, "f64", OTHER), "direction": DIRECTIONS}),
    Row("shoal_peer_bytes_total", "counter", "bytes", "Bytes of frames to and from that neighbour.", "More traffic.",
        {"peer": (), "direction": DIRECTIONS}),
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
    Row("shoal_state_free_bytes", "gauge", "bytes", "Free space on the disk of the state folder.", "Better."),
    Row("shoal_gpu_memory_bytes", "gauge", "bytes", "Memory of the trainer's GPU: total, used by all, by the trainer.",
        "More of that kind; no series without a GPU.", {"kind": ()}, status="gpu"),
    Row("shoal_heartbeats_total", "counter", "heartbeats", "Heartbeats and answers to them.", "More members or time.",
        {"direction": DIRECTIONS}),
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
    "shoal_peer_bytes_total",
    "shoal_state_free_bytes",
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
TRAINER = "shoal_trainer"
"""The same names with this before them: of the trainer process, while there is one."""

TALLY = {
    "active": ("shoal_exchanges_total", {"role": "active", "outcome": "done"}),
    "passive": ("shoal_exchanges_total", {"role": "passive", "outcome": "done"}),
    "busy": ("shoal_exchanges_total", {"role": "active", "outcome": "busy"}),
    "gone": ("shoal_exchanges_total", {"role": "active", "outcome": "gone"}),
    "withdrawn": ("shoal_exchanges_total", {"role": "active", "outcome": "withdrawn"}),
    "refused": ("shoal_vectors_refused_total", {}),
    "clipped": ("shoal_differences_clipped_total", {}),
    "resolved": ("shoal_doubts_resolved_total", {}),
    "lost": ("shoal_unsettled_lost_total", {}),
}
"""Where the counts of `exchange.Tally` go."""
