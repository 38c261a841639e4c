"""The dashboard *Shoal*: all nodes together."""

from expressions import OFFERED, SENT_VECTORS, SHOALS, here, rate
from panels import Board, Panel

SHOAL = Board(
    uid="shoal",
    title="Shoal",
    words="Does it learn, do the models agree, does everybody take part.",
    variables={"shoal": SHOALS},
    panels=[
        Panel(
            title="Accuracy of all",
            words="Part of all held-out samples classified rightly, summed over the live nodes' own counts.",
            unit="percentunit",
            lines=[(f"max by (shoal) ({here('shoal_shoal_accuracy')})", "{{shoal}}")],
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            title="Gradients",
            words="Gradients that all nodes together apply in a second.",
            unit="cps",
            lines=[('shoal:gradients:rate1m{shoal=~"$shoal"}', "{{shoal}}")],
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            title="Apart",
            words="Distance between neighbours' models, as a part of a model's length. Near 0 they agree; an alert "
            "comes at 25 %. No number where no averages of two are made.",
            unit="percentunit",
            lines=[('shoal:model_distance:ratio{shoal=~"$shoal"} >= 0', "{{shoal}}")],
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            title="Sent",
            words="Bytes that all nodes and coordinators together send in a second.",
            unit="Bps",
            lines=[('shoal:sent_bytes:rate1m{shoal=~"$shoal"}', "{{shoal}}")],
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            title="Loss",
            words="Mean loss of each node's recent minibatches, on its own data. Nodes with other labels have other "
            "losses.",
            unit="none",
            lines=[(here("shoal_train_loss"), "{{node}}")],
            log=True,
        ),
        Panel(
            title="Held-out accuracy",
            words="Part of each node's own held-out samples that its own model classifies rightly.",
            unit="percentunit",
            lines=[(here("shoal_held_out_accuracy"), "{{node}}")],
            most=1,
        ),
        Panel(
            title="Consensus distance",
            words="Distance (Euclid's) of each node's model to that of the neighbour it averaged with, measured at "
            "every 16th average. It should stay small while the loss falls.",
            unit="none",
            lines=[(here("(shoal_model_distance >= 0)"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Throughput",
            words="Gradients that each node applies in a second. A node that is slow, or waits, lies below the others.",
            unit="cps",
            lines=[(here(rate("shoal_gradients_total")), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Vectors sent, by codec",
            words="Bytes of vectors that nodes send in a second, by how they are packed. Heartbeats are not in it.",
            unit="Bps",
            lines=[(f"sum by (codec) ({here(SENT_VECTORS)}) > 0", "{{codec}}")],
            stacked=True,
            least=0,
        ),
        Panel(
            title="Averages by result",
            words="Averages of two that were offered, by how they ended: done; busy, the neighbour was in another "
            "one; gone, the link broke; withdrawn, no answer came in time.",
            unit="ops",
            lines=[(f"sum by (outcome) ({here(OFFERED)})", "{{outcome}}")],
            stacked=True,
            least=0,
        ),
        Panel(
            title="The others",
            words="How many others a node knows, by what it believes of them; of nodes that differ the larger number. "
            "Suspect and gone are trouble, left is one that said goodbye.",
            unit="none",
            lines=[(f"max by (state) ({here('shoal_members')})", "{{state}}")],
            least=0,
        ),
        Panel(
            title="Steps behind",
            words="Steps that the furthest node is ahead of each. With averages of two, gradients of slow nodes are "
            "older.",
            unit="none",
            lines=[(here("shoal_steps_behind"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Phase",
            words="How far each node is: 0 loading, 1 ready, 2 running, 3 finished, 4 it holds the mean model.",
            unit="none",
            lines=[(here("shoal_phase"), "{{node}}")],
            least=0,
            most=4,
        ),
    ],
)
