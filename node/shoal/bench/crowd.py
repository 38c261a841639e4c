"""What membership costs one node by the number of members, in virtual time: up to shoals that fit no machine.

One node's `Membership` is as shipped. The others are a script: each heartbeats to it as often as a node of such a shoal
does, and answers what it was told last. Streams and metrics are left out; `nodes.py` has them, with real daemons.
"""

import heapq
import random
import time
from collections.abc import Iterator
from typing import NamedTuple

from shoal.bench.lab import Figure, Lab
from shoal.cadence import interval_s
from shoal.daemon import TICK_S
from shoal.membership import Membership
from shoal.messages import PeerId
from shoal.roster import Action, Send
from shoal.settings import Settings
from shoal.v1.node_pb2 import PHASE_RUNNING, Control, Heartbeat, Identity

COUNTS = (4, 16, 64, 256, 1000)
VIRTUAL_S = 60.0


class Cost(NamedTuple):
    """Of one node, in a second."""

    cpu: float  # percent of a core
    sent: float  # frames
    sent_bytes: float
    heard: float  # frames


def measure(lab: Lab) -> list[Figure]:
    """Of one node among so many, and the growth from the fewest to the most that are not all told at once."""
    counts = COUNTS[:3] if lab.quick else COUNTS
    costs = {count: among(count, 5.0 if lab.quick else VIRTUAL_S) for count in counts}
    figures = []
    for count, cost in costs.items():
        note = f"a second: {cost.sent:.0f} frames out, {cost.sent_bytes:.0f} bytes; {cost.heard:.0f} in"
        name = f"membership alone, {count} nodes, virtual time: CPU"
        figures.append(Figure(name=name, value=cost.cpu, unit="% of a core", note=note))
    few, many = counts[1], counts[-1]
    for what in ("cpu", "sent_bytes"):
        growth = getattr(costs[many], what) / getattr(costs[few], what)
        name = f"membership alone: {'CPU' if what == 'cpu' else 'bytes out'}, growth from {few} to {many} nodes"
        figures.append(Figure(name=name, value=growth, unit="x"))
    return figures


def among(count: int, seconds: float) -> Cost:
    """What one of so many costs in so many virtual seconds, once all have spoken."""
    node = Observed(count)
    node.live(2 * node.others.every_s)
    node.cpu_s, node.sent, node.sent_bytes, node.heard = 0.0, 0, 0, 0
    node.live(seconds)
    return Cost(100 * node.cpu_s / seconds, node.sent / seconds, node.sent_bytes / seconds, node.heard / seconds)


class Others:
    """What the other members of a shoal say to one of them."""

    def __init__(self, count: int, heartbeat_s: float, rng: random.Random) -> None:
        self.every_s = interval_s(heartbeat_s, count)
        self.answers = {f"p{k:04}": 0 for k in range(count)}  # by member, the heartbeat that it was sent last
        self._number = 0
        self._due = [(rng.uniform(0, self.every_s), peer) for peer in self.answers]
        heapq.heapify(self._due)

    def say(self, now: float) -> Iterator[tuple[PeerId, Control]]:
        """All that is due by now."""
        while self._due[0][0] <= now:
            at, peer = self._due[0]
            heapq.heapreplace(self._due, (at + self.every_s, peer))
            self._number += 1
            beat = Heartbeat(phase=PHASE_RUNNING, number=self._number, answers=self.answers[peer], gradients=1)
            yield peer, Control(heartbeat=beat)


class Observed:
    """One node among so many."""

    def __init__(self, count: int) -> None:
        settings, rng = Settings(), random.Random(count)
        self.others = Others(count - 1, settings.heartbeat_s, rng)
        self.membership = Membership(
            identity("n"),
            heartbeat_s=settings.heartbeat_s,
            suspect_after_s=settings.suspect_after_s,
            min_nodes=count,
            synchronous=False,
            rng=rng,
        )
        self.now = self.cpu_s = 0.0
        self.sent = self.sent_bytes = self.heard = 0
        for peer in self.others.answers:
            self.membership.met(identity(peer), 1, self.now)
        for peer in self.others.answers:
            self._do(self.membership.link_up(peer, self.now))

    def live(self, seconds: float) -> None:
        """Raises RuntimeError when a member that speaks is taken for gone: the script is wrong then, or membership."""
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            said = list(self.others.say(self.now))
            began = time.process_time()
            actions = [action for peer, control in said for action in self.membership.heard(peer, control, self.now)]
            actions += self.membership.tick(self.now)
            self.cpu_s += time.process_time() - began
            self.heard += len(said)
            self._do(actions)
        if gone := [row["id"] for row in self.membership.snapshot(self.now) if row["state"] == "gone"]:
            raise RuntimeError(f"{len(gone)} members that speak are taken for gone, first {gone[0]}")

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.sent, self.sent_bytes = self.sent + 1, self.sent_bytes + action.control.ByteSize()
                if action.control.heartbeat.number:
                    self.others.answers[action.peer_id] = action.control.heartbeat.number


def identity(name: str) -> Identity:
    """Of a node of that name."""
    return Identity(node_id=name, incarnation=1, address=f"{name}:1", name=name)
