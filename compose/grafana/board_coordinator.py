"""The dashboard *Coordinator*: for runs that have one."""

from expressions import COORDINATORS, SHOALS, middle, quantile, rate
from panels import Board, Panel

COORDINATOR = Board(
    uid="shoal-coordinator",
    title="Coordinator",
    words="What stands in the middle where an algorithm wants that: rounds that are voted, or a model that is served.",
    variables={"shoal": SHOALS, "coordinator": COORDINATORS},
    panels=[
        Panel(
            title="Workers",
            words="Workers that take part, and with how many answers a round may close; 0 is all of them.",
            unit="none",
            lines=[
                (middle("shoal_enrolled"), "{{node}} take part"),
                (middle("shoal_quorum"), "{{node}} quorum"),
            ],
            least=0,
        ),
        Panel(
            title="Rounds",
            words="Rounds that were answered in a second, by what closed them: all workers, or a quorum, which leaves "
            "somebody's work out.",
            unit="ops",
            lines=[(middle(rate("shoal_rounds_total")), "{{node}} {{how}}")],
            stacked=True,
            least=0,
        ),
        Panel(
            title="Agreement",
            words="Part of the signs of the last vote that were the majority's. 50 % is chance: the gradients are "
            "noise, or workers lie.",
            unit="percentunit",
            lines=[(middle("(shoal_vote_agreement_ratio >= 0)"), "{{node}}")],
            least=0.5,
            most=1,
        ),
        Panel(
            title="Votes",
            words="Vectors of workers in a second: counted, missing from a round that a quorum closed, late, sent "
            "twice, refused.",
            unit="ops",
            lines=[(middle(rate("shoal_votes_total")), "{{node}} {{outcome}}")],
            least=0,
        ),
        Panel(
            title="Staleness",
            words="How many models the server has made between the one that a gradient was computed at and the one it "
            "changed: of half of the gradients less than the first line, of 95 of 100 less than the second.",
            unit="none",
            lines=[
                (middle(quantile(0.5, "shoal_gradient_staleness")) + " >= 0", "{{node}} half"),
                (middle(quantile(0.95, "shoal_gradient_staleness")) + " >= 0", "{{node}} 95 %"),
            ],
            least=0,
        ),
        Panel(
            title="Gradients taken",
            words="Gradients that the parameter server applies in a second.",
            unit="cps",
            lines=[(middle("(deriv((shoal_model_version >= 0)[1m:5s]) >= 0)"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Bytes",
            words="Bytes of frames that the coordinator sends and receives in a second. All models pass through it.",
            unit="Bps",
            lines=[
                (middle(rate("shoal_sent_bytes_total")), "{{node}} sent"),
                (middle(rate("shoal_received_bytes_total")), "{{node}} received"),
            ],
            least=0,
        ),
        Panel(
            title="Round trips",
            words="Smoothed round-trip time of heartbeats to each worker.",
            unit="s",
            lines=[(middle("shoal_peer_rtt_seconds"), "{{node}} - {{peer}}")],
            least=0,
        ),
        Panel(
            title="Process",
            words="Processor seconds in a second that the coordinator takes. At 1 it is what holds the run up.",
            unit="none",
            lines=[(middle(rate("process_cpu_seconds_total")), "{{node}}")],
            least=0,
        ),
    ],
)
