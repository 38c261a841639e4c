"""What travels between the workers of a simulation: links that take their time, break, and stand again."""

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from shoal.errors import PeerError
from shoal.messages import AVERAGES, Message, PeerId
from shoal.simulation.scenario import Scenario

Fault = Callable[[PeerId, PeerId, Message], float | None]
"""(from, to, message as it is sent) -> seconds for which the link breaks now, the message lost; None: it travels."""


@dataclasses.dataclass
class Link:
    """Between two workers: up or down, and how often it broke (what was sent before a break never arrives)."""

    up: bool = True
    breaks: int = 0

    def sever(self) -> None:
        """It is down; what is on its way is lost."""
        self.up = False
        self.breaks += 1


class Participant(Protocol):
    """Whoever has a link: a worker's runtime, or a coordinator."""

    me: PeerId

    def received(self, peer: PeerId, message: Message) -> None:
        """A message has arrived."""

    def down(self, peer: PeerId) -> None:
        """The link broke."""


class Ends(Protocol):
    """What links need of the world that they are in."""

    def participant(self, name: PeerId) -> Participant:
        """By its name."""
        ...

    def is_alive(self, name: PeerId) -> bool:
        """Whether it has not died."""
        ...

    def tell(self, a: PeerId, b: PeerId, *, up: bool) -> None:
        """Both ends learn that their link stands again, or broke."""

    def note(self, what: str, one: PeerId, other: PeerId = "", kind: int = 0, seq: int = 0) -> None:
        """A line of the trace."""

    def end(self, error: BaseException) -> None:
        """The run ends with that error."""


@dataclasses.dataclass(slots=True)
class Way:
    """One direction of a link."""

    source: PeerId
    to: Participant
    link: Link
    full_s: float  # that a full vector takes beyond what any message takes
    arrival: float = 0.0  # of the last message sent
    messages: deque[tuple[Message, int]] = dataclasses.field(default_factory=deque)  # with the link's breaks when sent


class Links:
    """Between any two of `everybody`; `workers` are numbered as the scenario numbers them."""

    def __init__(
        self,
        scenario: Scenario,
        workers: Sequence[PeerId],
        everybody: Sequence[PeerId],
        *,
        full_bytes: int,
        ends: Ends,
        fault: Fault | None,
    ) -> None:
        self._scenario, self._full_bytes, self._ends, self._fault = scenario, full_bytes, ends, fault
        self.sent_bytes = dict.fromkeys(everybody, 0)  # of vectors, headers not counted
        self._leaving = dict.fromkeys(everybody, 0.0)  # when each port is free again, outwards
        self._entering = dict.fromkeys(everybody, 0.0)  # and inwards
        self._slow = {frozenset((workers[a], workers[b])): factor for a, b, factor in scenario.slow_links}
        self._ways: dict[tuple[PeerId, PeerId], Way] = {}
        self._loop: asyncio.AbstractEventLoop

    def begin(self) -> None:
        """In a loop of virtual time, before anything is sent."""
        self._loop = asyncio.get_running_loop()

    def between(self, a: PeerId, b: PeerId) -> Link:
        """The link of two, in either order."""
        return self._way(a, b).link

    def _way(self, source: PeerId, to: PeerId) -> Way:
        way = self._ways.get((source, to))
        if way is None:
            link = Link()
            full_s = self._slow.get(frozenset((source, to)), 1.0) * self._scenario.vector_s
            for one, other in ((source, to), (to, source)):
                self._ways[one, other] = Way(one, self._ends.participant(other), link, full_s)
            way = self._ways[source, to]
        return way

    def carry(self, source: PeerId, to: PeerId, message: Message) -> None:
        """One message on its way; what one worker sends to another arrives in order, or not at all."""
        way = self._way(source, to)
        if not way.link.up:
            return
        if self._fault is not None and (broken_s := self._fault(source, to, message)) is not None:
            self.cut(source, to, broken_s)
            return
        way.arrival = max(self._arrival(way, message), way.arrival)
        # Timers due at the same moment fire in no particular order, so each delivers the first message on its way.
        way.messages.append((message, way.link.breaks))
        self._loop.call_at(way.arrival, self._deliver, way)

    def _arrival(self, way: Way, message: Message) -> float:
        """When it is there, if nothing that was sent before is in its way."""
        now, travel_s = self._loop.time(), self._scenario.latency_s
        if message.vector is None:
            return now + travel_s
        self.sent_bytes[way.source] += message.vector.nbytes
        part = message.vector.nbytes / self._full_bytes
        there = max(now, way.arrival - travel_s) + part * way.full_s + travel_s  # one after the other
        if busy_s := part * self._scenario.port_s:
            left = self._leaving[way.source] = max(now, self._leaving[way.source]) + busy_s
            there = max(there, left + travel_s + part * way.full_s, self._entering[way.to.me] + busy_s)
            self._entering[way.to.me] = there
        return there

    def _deliver(self, way: Way) -> None:
        message, breaks = way.messages.popleft()
        if way.link.breaks == breaks and way.link.up:
            self._ends.note("m", way.source, way.to.me, message.kind, message.seq)
            if message.kind in AVERAGES and message.vector is not None:  # the receiver's to change
                message = dataclasses.replace(message, vector=message.vector.clone())
            try:
                way.to.received(way.source, message)
            except PeerError as error:
                self._ends.end(error)

    def cut(self, a: PeerId, b: PeerId, for_s: float) -> None:
        """Break the link for a while. Both ends hear of it, after what they do now."""
        link = self.between(a, b)
        if not link.up:
            return
        link.sever()
        self._loop.call_soon(self._broken, a, b)
        self._loop.call_later(for_s, self._mend, a, b)

    def _broken(self, a: PeerId, b: PeerId) -> None:
        self._ends.tell(a, b, up=False)

    def _mend(self, a: PeerId, b: PeerId) -> None:
        if self._ends.is_alive(a) and self._ends.is_alive(b):
            self.between(a, b).up = True
            self._ends.tell(a, b, up=True)
