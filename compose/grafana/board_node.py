"""The dashboard *Node*: one node, or a few beside each other."""

from expressions import A_STEP, NODES, SHOALS, one, quantile, rate
from panels import Board, Panel

NODE = Board(
    uid="shoal-node",
    title="Node",
    words="Where one node's time goes, what data it has, whom it talks to, what it takes of its machine.",
    variables={"shoal": SHOALS, "node": NODES},
    panels=[
        Panel(
            title="A step",
            words="Seconds of a mean step: computing its gradient, waiting for others, and applying, which is the "
            "rest. Much waiting: a slow link or a slow member.",
            unit="s",
            lines=[
                (
                    one(f"({rate('shoal_step_seconds_total', phase='compute|wait|apply')} / {A_STEP})"),
                    "{{node}} {{phase}}",
                )
            ],
            stacked=True,
            least=0,
        ),
        Panel(
            title="Exchanges, beside it",
            words="Seconds of a mean step for which an average was under way; what waiting lacks of it was hidden "
            "behind gradients.",
            unit="s",
            lines=[(one(f"({rate('shoal_step_seconds_total', phase='exchange')} / {A_STEP})"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="An average",
            words="How long the averages take that this node offers: half are faster than the first line, 95 of 100 "
            "than the second.",
            unit="s",
            lines=[
                (one(quantile(0.5, "shoal_exchange_seconds")), "{{node}} half"),
                (one(quantile(0.95, "shoal_exchange_seconds")), "{{node}} 95 %"),
            ],
            least=0,
        ),
        Panel(
            title="Steps behind",
            words="Staleness: how many steps the furthest node is ahead.",
            unit="none",
            lines=[(one("shoal_steps_behind"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Round trips",
            words="Smoothed round-trip time of heartbeats to each neighbour. It grows with distance, and with load.",
            unit="s",
            lines=[(one("shoal_peer_rtt_seconds"), "{{node}} - {{peer}}")],
            least=0,
        ),
        Panel(
            title="Bytes by neighbour",
            words="Bytes of frames to and from each neighbour in a second.",
            unit="Bps",
            lines=[(one(rate("shoal_peer_bytes_total")), "{{node}} - {{peer}} {{direction}}")],
            least=0,
        ),
        Panel(
            title="Labels",
            words="Training samples that the node holds, by label: its skew.",
            unit="none",
            lines=[(f"sum by (label) ({one('shoal_label_samples')})", "{{label}}")],
            kind="bargauge",
            least=0,
        ),
        Panel(
            title="Longest wait",
            words="How long the algorithm waits for the slowest neighbour by now. It is short and jumps; one that "
            "climbs is a peer that is stuck.",
            unit="s",
            lines=[(one("shoal_longest_wait_seconds"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Learning rate",
            words="The step size in use; it follows the schedule of the run.",
            unit="none",
            lines=[(one("shoal_learning_rate"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Processors",
            words="Processor seconds in a second, of the daemon (network) and of the trainer (torch).",
            unit="none",
            lines=[
                (one(rate("process_cpu_seconds_total")), "{{node}} daemon"),
                (one(rate("shoal_trainer_process_cpu_seconds_total")), "{{node}} trainer"),
            ],
            least=0,
        ),
        Panel(
            title="Memory",
            words="Resident memory of the daemon and of the trainer. They share the vectors, so do not add them up.",
            unit="decbytes",
            lines=[
                (one("process_resident_memory_bytes"), "{{node}} daemon"),
                (one("shoal_trainer_process_resident_memory_bytes"), "{{node}} trainer"),
            ],
            least=0,
        ),
        Panel(
            title="GPU memory",
            words="Of the trainer's GPU: all of it, what all processes use, what this trainer has for tensors. Empty "
            "without a GPU.",
            unit="decbytes",
            lines=[(one("shoal_gpu_memory_bytes"), "{{node}} {{kind}}")],
            least=0,
        ),
        Panel(
            title="Age of the checkpoint",
            words="Time since the last checkpoint was written; so much work is lost if the node is killed now.",
            unit="s",
            lines=[(one("(time() - shoal_checkpoint_timestamp_seconds)"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Free disk",
            words="Free space where the state folder lies. A checkpoint is written beside the last one.",
            unit="decbytes",
            lines=[(one("shoal_state_free_bytes"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Certificate",
            words="Time until the node's certificate ends; renew it before. Empty without TLS.",
            unit="s",
            lines=[(one("(shoal_certificate_expiry_timestamp_seconds - time())"), "{{node}}")],
            kind="stat",
        ),
    ],
)
