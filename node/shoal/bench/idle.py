"""What daemons use that have nothing to do: heartbeats, membership, discovery, metrics."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from shoal.bench.lab import Figure, Lab, median
from shoal.bench.processes import cpu_seconds, memory_bytes
from shoal.bench.quiet import quiet_nodes
from shoal.demo.fleet import NodeProcess

PEERS = 10
SETTLE_S = 3.0
"""Until what a start leaves behind is done."""
WATCH_S = 15.0


class Use(NamedTuple):
    """Of one daemon, its trainer left out."""

    cpu: float  # percent of a core
    resident: float  # MiB, shared pages counted in full
    own: float  # MiB, of shared pages its share
    sent: float  # bytes a second in frames, without HTTP/2 and TCP


def measure(lab: Lab) -> list[Figure]:
    """Medians over the daemons, each with ten peers."""
    peers = 2 if lab.quick else PEERS
    with quiet_nodes(peers + 1) as nodes:
        uses = watch(nodes, 1.0 if lab.quick else WATCH_S)
    name, note = f"idle daemon, {peers} peers", f"PSS {statistics.median(use.own for use in uses):.1f} MiB"
    resident, cpu = [use.resident for use in uses], [use.cpu for use in uses]
    return [
        median(f"{name}: CPU", cpu, "% of a core", bar=2, less_is_better=True),
        median(f"{name}: resident memory", resident, "MiB", bar=120, less_is_better=True, note=note),
    ]


def watch(nodes: Sequence[NodeProcess], seconds: float) -> list[Use]:
    """What the daemon of each uses over so many seconds."""
    time.sleep(min(SETTLE_S, seconds))
    before, began = [_counted(node) for node in nodes], time.monotonic()
    time.sleep(seconds)
    after, took = [_counted(node) for node in nodes], time.monotonic() - began
    uses = []
    for node, (cpu, sent), (cpu_then, sent_then) in zip(nodes, after, before, strict=True):
        resident, own = (memory_bytes(node.process.pid, kind) / 2**20 for kind in ("Rss", "Pss"))
        uses.append(Use(100 * (cpu - cpu_then) / took, resident, own, (sent - sent_then) / took))
    return uses


def _counted(node: NodeProcess) -> tuple[float, int]:
    """(CPU seconds, bytes sent) so far."""
    status = node.status()
    if status is None:
        raise RuntimeError(f"{node.name} does not answer: {node.log_tail()}")
    return cpu_seconds([node.process.pid]), status["node"]["bytes_sent"]
