"""The dashboard *Wire*: what goes over the network."""

from expressions import NODES, OFFERED, SENT_VECTORS, SHOALS, one, quantile, rate
from panels import Board, Panel

WIRE = Board(
    uid="shoal-wire",
    title="Wire",
    words="What goes over the network, how fast, and what goes wrong there.",
    variables={"shoal": SHOALS, "node": NODES},
    panels=[
        Panel(
            title="Sent",
            words="Bytes of frames that each node sends in a second, heartbeats and all; TCP and HTTP/2 come on top.",
            unit="Bps",
            lines=[(one(rate("shoal_sent_bytes_total")), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Received",
            words="Bytes of frames that each node receives in a second.",
            unit="Bps",
            lines=[(one(rate("shoal_received_bytes_total")), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Vectors sent, by codec",
            words="Bytes of vectors in a second by how they are packed. Each pair of nodes takes the smaller of its "
            "wishes.",
            unit="Bps",
            lines=[(f"sum by (codec) ({one(SENT_VECTORS)}) > 0", "{{codec}}")],
            stacked=True,
            least=0,
        ),
        Panel(
            title="Edges by codec",
            words="Pairs of neighbours, seen from each end, by how their last average travelled.",
            unit="none",
            lines=[(f"count by (codec) ({one('shoal_peer_codec')})", "{{codec}}")],
            kind="bargauge",
            least=0,
        ),
        Panel(
            title="Slowest round trip",
            words="Each node's longest smoothed round-trip time to a neighbour.",
            unit="s",
            lines=[(one("max by (job, instance) (shoal_peer_rtt_seconds)"), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Averages",
            words="What 95 of 100 averages that a node offers take less than.",
            unit="s",
            lines=[(one(quantile(0.95, "shoal_exchange_seconds")), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Averages by result",
            words="Offers by how they ended. Busy ones cost little; gone and withdrawn ones are links that break or "
            "are too slow.",
            unit="ops",
            lines=[(f"sum by (outcome) ({one(OFFERED)})", "{{outcome}}")],
            stacked=True,
            least=0,
        ),
        Panel(
            title="Not settled",
            words="Averages of which this node does not know whether the other half happened, and messages that no "
            "peer has confirmed. They fall to 0 when a link comes back.",
            unit="none",
            lines=[
                (one("shoal_in_doubt"), "{{node}} in doubt"),
                (one("shoal_unconfirmed"), "{{node}} unconfirmed"),
            ],
            least=0,
        ),
        Panel(
            title="Connections",
            words="Connections that came up or went down since the start. Both climb where a link is not stable.",
            unit="none",
            lines=[(f"sum by (event) ({one('shoal_connections_total')})", "{{event}}")],
            least=0,
        ),
        Panel(
            title="Heartbeats",
            words="Heartbeats and answers to them that all nodes send and hear in a second.",
            unit="cps",
            lines=[(f"sum by (direction) ({one(rate('shoal_heartbeats_total'))})", "{{direction}}")],
            least=0,
        ),
        Panel(
            title="Held back",
            words="Part of the time for which --max-rate kept a vector waiting; 100 % is always.",
            unit="percentunit",
            lines=[(one(rate("shoal_sending_limited_seconds_total")), "{{node}}")],
            least=0,
        ),
        Panel(
            title="Refused",
            words="Hellos and messages of peers that did not fit or were broken, since the start, by error.",
            unit="none",
            lines=[(f"sum by (reason) ({one('shoal_refused_total')})", "{{reason}}")],
            least=0,
        ),
    ],
)
