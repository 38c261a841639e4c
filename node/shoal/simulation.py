"""Many workers in one process and in virtual time: the same algorithms, settlement and rounds as over gRPC.

Only what surrounds them is made up: how long a gradient takes, how long a message travels, when links break and workers
die. The same scenario gives the same trace, digest and models.
"""

import asyncio
import dataclasses
import hashlib
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from shoal import virtual_time
from shoal.carrier import View
from shoal.data.loading import load_task, local_data
from shoal.data.task import Data, Place, Task
from shoal.errors import Diverged, MemberLost, PeerError, SettingsError, TopologyError
from shoal.learner import Learner, initial_state
from shoal.messages import AVERAGES, Message, PeerId
from shoal.runtime import Runtime
from shoal.settings import Settings

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Cut:
    """The link between two workers breaks at `at_s` and stands again after `for_s`; in flight is lost."""

    at_s: float
    a: int
    b: int
    for_s: float


@dataclasses.dataclass(frozen=True)
class Crash:
    """A worker dies at `at_s`, with all it holds."""

    at_s: float
    worker: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """The made-up surroundings. Times are virtual seconds."""

    compute_s: float = 0.01  # a gradient
    jitter: float = 0.0  # a gradient takes compute_s (1 +- jitter), uniformly; 0: all exactly alike
    vector_s: float = 0.0  # a full vector keeps a link busy, one way; less if it is packed, or a piece
    port_s: float = 0.0  # a full vector keeps the ports of sender and receiver busy; what comes next waits
    latency_s: float = 0.0001  # any message on its way
    slow: tuple[tuple[int, float], ...] = ()  # (worker, factor on compute_s)
    slow_links: tuple[tuple[int, int, float], ...] = ()  # (worker, worker, factor on vector_s)
    attackers: tuple[tuple[int, float], ...] = ()  # emulated: (worker, factor on each of its gradients)
    cuts: tuple[Cut, ...] = ()
    crashes: tuple[Crash, ...] = ()

    def check(self, workers: int) -> None:
        """Raises SettingsError when it speaks of a worker that is not there."""
        named = [w for w, _ in self.slow] + [w for a, b, _ in self.slow_links for w in (a, b)]
        named += [w for w, _ in self.attackers]
        named += [w for c in self.cuts for w in (c.a, c.b)] + [c.worker for c in self.crashes]
        if (unknown := max(named, default=0)) >= workers:
            raise SettingsError(f"worker {unknown} is not there: workers are numbered from 0 to {workers - 1}")


@dataclasses.dataclass
class Link:
    """Between two workers: up or down, and how often it broke (what was sent before a break never arrives)."""

    up: bool = True
    breaks: int = 0


class Participant(Protocol):
    """Whoever has a link: a worker's runtime, or a coordinator."""

    me: PeerId

    def received(self, peer: PeerId, message: Message) -> None:
        """A message has arrived."""

    def down(self, peer: PeerId) -> None:
        """The link broke."""


class Coordinator(Participant, Protocol):
    """What `World` needs of one; `shoal_coordinator.beside` makes it."""

    def left(self, peer: PeerId) -> None:
        """The worker died, and that was noticed."""

    def model(self) -> Tensor | None:
        """A parameter server's."""


MakeCoordinator = Callable[[PeerId, Callable[[PeerId, Message], None], Callable[[], float]], Coordinator]
"""(its name, what it sends with, its clock) -> the coordinator."""
COORDINATOR = "coordinator"
"""Its name in virtual time."""


@dataclasses.dataclass(slots=True)
class Way:
    """One direction of a link."""

    source: PeerId
    to: Participant
    link: Link
    travel_s: float  # that any message travels
    full_s: float  # that a full vector takes more
    arrival: float = 0.0  # of the last message sent
    messages: deque[tuple[Message, int]] = dataclasses.field(default_factory=deque)  # with the link's breaks when sent


Fault = Callable[[PeerId, PeerId, Message], float | None]
"""(from, to, message as it is sent) -> seconds for which the link breaks now, the message lost; None: it travels."""


class SimHost:
    """What carries one worker: `carrier.Host` in virtual time."""

    def __init__(self, world: "World", index: int, me: PeerId) -> None:
        self.world, self.index, self.me = world, index, me
        self.rng = random.Random(f"{world.settings.seed}/host/{index}")
        slow = dict(world.scenario.slow)
        self.compute_s = world.scenario.compute_s * slow.get(index, 1.0)

    def send(self, peer: PeerId, message: Message) -> None:
        self.world.carry(self.me, peer, message)

    def room(self, elements: int, dtype: torch.dtype) -> Tensor | None:
        return None

    def is_read(self, memory: Tensor) -> bool:
        return False

    async def compute(self, work: Callable[[], T], cost: float = 1.0) -> T:
        result = work()
        jitter = self.world.scenario.jitter
        await asyncio.sleep(cost * self.compute_s * (1 + self.rng.uniform(-jitter, jitter) if jitter else 1))
        return result

    def computes(self) -> bool:
        return False  # all of the work is done at once, and only its time passes

    def clock(self) -> float:
        return self.world.now()

    def total_gradients(self) -> int:
        return self.world.gradients  # an ideal heartbeat: everybody knows at once

    def gradients_of(self, member: PeerId) -> int:
        return self.world.gradients_of(member)

    def counted(self) -> None:
        loss = self.world.runtimes[self.index].computed.last_loss
        if loss is not None and not math.isfinite(loss):
            raise Diverged(f"the loss of {self.me} is {loss}: the model has diverged; try a smaller --lr")
        self.world.on_count(self.index)

    def record(self, event: str, **fields: Any) -> None:
        self.world.on_record(self.me, event, fields)

    def warn(self, text: str) -> None:
        self.world.on_record(self.me, "warning", {"text": text})


@dataclasses.dataclass
class Point:
    """The mean model at one moment of a run."""

    t: float
    gradients: int
    loss: float
    accuracy: float | None
    spread: float  # root mean square distance of the workers' models from their mean
    sent_bytes: int = 0  # by all workers until then


@dataclasses.dataclass
class Result:
    """What a simulated run gives."""

    digest: str  # sha256 of the trace and of the final models
    seconds: float  # virtual
    gradients: int
    mean: Tensor  # (d+b,)
    states: list[Tensor]
    curve: list[Point]
    runtimes: list[Runtime]
    finished_s: list[float]  # when each worker was done; nan if it died
    sent_bytes: dict[PeerId, int]  # vectors that each worker sent


class World:
    """All workers, their links and the trace."""

    def __init__(
        self,
        settings: Settings,
        scenario: Scenario,
        learners: Sequence[Learner],
        states: Sequence[Tensor],
        *,
        fault: Fault | None = None,
        evaluate: Callable[[Tensor], tuple[float, float | None]] | None = None,
        evaluate_every: int = 0,
        names: Sequence[PeerId] | None = None,
        coordinator: MakeCoordinator | None = None,
    ) -> None:
        """Raises SettingsError when the run needs a coordinator and there is none."""
        if (coordinator is None) == (settings.over == "coordinator"):
            has = "no coordinator is" if coordinator is None else "a coordinator is"
            raise SettingsError(f"{settings.algorithm} over {settings.over}, and {has} in this simulation")
        self.settings, self.scenario, self.fault = settings, scenario, fault
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.gradients = 0
        self._counted = [0] * len(learners)  # of each worker
        self.curve: list[Point] = []
        self.records: list[tuple[float, PeerId, str, dict[str, Any]]] | None = None  # set to [] to keep them
        self._trace = hashlib.sha256()
        width = len(str(len(learners) - 1))
        self.names = list(names) if names else [f"w{i:0{width}}" for i in range(len(learners))]
        self.alive = [True] * len(learners)
        everybody = [*self.names, *([COORDINATOR] if coordinator else [])]
        self.sent_bytes = dict.fromkeys(everybody, 0)  # of vectors, headers not counted
        self._full_bytes = states[0].nbytes
        self._leaving = dict.fromkeys(everybody, 0.0)  # when each port is free again, outwards
        self._entering = dict.fromkeys(everybody, 0.0)  # and inwards
        self._ways: dict[tuple[PeerId, PeerId], Way] = {}
        self._slow_links = {frozenset((self.names[a], self.names[b])): f for a, b, f in scenario.slow_links}
        for worker, factor in scenario.attackers:
            learners[worker].factor = factor
        self.hosts = [SimHost(self, i, name) for i, name in enumerate(self.names)]
        self.runtimes = [
            Runtime(name, 1, learner, state, settings, host)
            for name, learner, state, host in zip(self.names, learners, states, self.hosts, strict=True)
        ]
        self._by_name = dict(zip(self.names, self.runtimes, strict=True))
        self.coordinator: Coordinator | None = None
        self._make_coordinator = coordinator
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._finished = [float("nan")] * len(learners)
        self._views = 0  # after the first

    # --- links --------------------------------------------------------------------------------------------------

    def link(self, a: PeerId, b: PeerId) -> Link:
        """The link between two workers, in either order."""
        return self._way(a, b).link

    def _way(self, source: PeerId, to: PeerId) -> Way:
        way = self._ways.get((source, to))
        if way is None:
            link, factor = Link(), self._slow_links.get(frozenset((source, to)), 1.0)
            latency_s, full_s = self.scenario.latency_s, factor * self.scenario.vector_s
            for one, other in ((source, to), (to, source)):
                self._ways[one, other] = Way(one, self._participant(other), link, latency_s, full_s)
            way = self._ways[source, to]
        return way

    def _participant(self, name: PeerId) -> Participant:
        if name != COORDINATOR:
            return self._by_name[name]
        assert self.coordinator is not None
        return self.coordinator

    def carry(self, source: PeerId, to: PeerId, message: Message) -> None:
        """One message on its way; what one worker sends to another arrives in order, or not at all."""
        way = self._way(source, to)
        if not way.link.up:
            return
        if self.fault is not None and (broken_s := self.fault(source, to, message)) is not None:
            self.cut(source, to, broken_s)
            return
        way.arrival = max(self._arrival(way, message), way.arrival)
        # Timers due at the same moment fire in no particular order, so each delivers the first message on its way.
        way.messages.append((message, way.link.breaks))
        self._loop.call_at(way.arrival, self._deliver, way)

    def _carry_answer(self, to: PeerId, message: Message) -> None:
        self.carry(COORDINATOR, to, message)

    def _arrival(self, way: Way, message: Message) -> float:
        """When it is there, if nothing that was sent before is in its way."""
        now = self._loop.time()
        if message.vector is None:
            return now + way.travel_s
        self.sent_bytes[way.source] += message.vector.nbytes
        part = message.vector.nbytes / self._full_bytes
        there = max(now, way.arrival - way.travel_s) + part * way.full_s + way.travel_s  # one after the other
        if busy_s := part * self.scenario.port_s:
            left = self._leaving[way.source] = max(now, self._leaving[way.source]) + busy_s
            there = max(there, left + way.travel_s + part * way.full_s, self._entering[way.to.me] + busy_s)
            self._entering[way.to.me] = there
        return there

    def _deliver(self, way: Way) -> None:
        message, breaks = way.messages.popleft()
        if way.link.breaks == breaks and way.link.up:
            self._note("m", way.source, way.to.me, message.kind, message.seq)
            if message.kind in AVERAGES and message.vector is not None:  # the receiver's to change
                message = dataclasses.replace(message, vector=message.vector.clone())
            try:
                way.to.received(way.source, message)
            except PeerError as error:
                self._end(error)

    def cut(self, a: PeerId, b: PeerId, for_s: float) -> None:
        """Break the link for a while. Both ends hear of it, after what they do now."""
        link = self.link(a, b)
        if not link.up:
            return
        link.up = False
        link.breaks += 1
        self._loop.call_soon(self._tell, a, b, False)
        self._loop.call_later(for_s, self._mend, a, b)

    def _mend(self, a: PeerId, b: PeerId) -> None:
        if all(x == COORDINATOR or self.alive[self.names.index(x)] for x in (a, b)):
            self.link(a, b).up = True
            self._tell(a, b, True)

    def _tell(self, a: PeerId, b: PeerId, up: bool) -> None:
        self._note("u" if up else "d", a, b)
        for one, other in ((a, b), (b, a)):
            if not up:
                self._participant(one).down(other)
            elif one in self._by_name:  # a coordinator learns of it by what the worker sends
                self._by_name[one].up(other, coordinates=other == COORDINATOR)

    def _die(self, worker: int) -> None:
        name = self.names[worker]
        self.alive[worker] = False
        self._tasks[worker].cancel()
        for other, alive in zip(self.names, self.alive, strict=True):
            if alive and other != name:
                link = self.link(name, other)
                link.up, link.breaks = False, link.breaks + 1
                self._by_name[other].down(name)
        if self.coordinator is not None:
            self.link(name, COORDINATOR).up = False
            self.coordinator.down(name)
            self._loop.call_later(self.settings.suspect_after_s, self.coordinator.left, name)
        self._note("x", name)
        if self.settings.fixed_view:
            self._loop.call_later(self.settings.suspect_after_s, self._form_again)

    def _form_again(self) -> None:
        """The members that are left have agreed on a view, all at this moment: as `agreement.py` has them do."""
        living = [i for i, alive in enumerate(self.alive) if alive]
        if not any(not self._tasks[i].done() for i in living):
            return
        for i in living:
            self._tasks[i].cancel()
        rounds = {i: self.runtimes[i].pause() for i in living}
        furthest = max(rounds.values())
        source = self.names[next(i for i in living if rounds[i] == furthest)]
        members = tuple(self.names[i] for i in living)
        samples = tuple(self.runtimes[i].learner.samples for i in living)
        self._views += 1
        view = View(f"simulated {self._views}", members, samples, furthest, same_round=False, parent="simulated")
        try:
            for i in living:
                self.runtimes[i].install(view)
        except (MemberLost, TopologyError) as error:
            self._end(error)
            return
        for i in living:
            self._start(i, source if self.settings.traits.replicas and rounds[i] < furthest else "")
        for i in living:
            for peer in self.runtimes[i].peers_in_view():
                if peer not in self.runtimes[i].neighbours and self.link(self.names[i], peer).up:
                    self.runtimes[i].up(peer)

    def _start(self, worker: int, model_from: PeerId = "") -> None:
        """Its part of the run, first with the model of another if one is named."""

        async def work() -> None:
            if model_from:
                await self.runtimes[worker].fetch_model(model_from)
            await self.runtimes[worker].run()
            self._finished[worker] = self._loop.time()

        task = self._tasks[worker] = self._loop.create_task(work(), name=self.names[worker])
        task.add_done_callback(self._on_end)

    # --- the run ------------------------------------------------------------------------------------------------

    async def run(self) -> Result:
        """Start all workers at t = 0 and run to the end."""
        loop = self._loop = asyncio.get_running_loop()
        if self._make_coordinator is not None:
            self.coordinator = self._make_coordinator(COORDINATOR, self._carry_answer, self.now)
        self._error: BaseException | None = None
        samples = tuple(r.learner.samples for r in self.runtimes)
        view = View("simulated", tuple(self.names), samples)
        for runtime in self.runtimes:
            runtime.install(view)
        for runtime in self.runtimes:
            for peer in runtime.peers_in_view():
                runtime.up(peer)
            if self.coordinator is not None:
                self._tell(runtime.me, COORDINATOR, True)

        self._measure()
        for worker in range(len(self.names)):
            self._start(worker)
        for cut in self.scenario.cuts:
            loop.call_at(cut.at_s, self.cut, self.names[cut.a], self.names[cut.b], cut.for_s)
        for crash in self.scenario.crashes:
            loop.call_at(crash.at_s, self._die, crash.worker)
        while at_work := [task for task in self._tasks.values() if not task.done()]:  # others, after a death
            await asyncio.wait(at_work)
        if self._error is not None:
            raise self._error
        await self._settle()
        self._measure()
        return self._result(self._finished)

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        """The first error of any worker ends the run of all."""
        if self._error is None:
            self._error = error
            for task in self._tasks.values():
                task.cancel()

    async def _settle(self) -> None:
        """Until no exchange between living workers is open: what broke is asked about when its link stands again."""
        living = {name for name, alive in zip(self.names, self.alive, strict=True) if alive}
        while any(r.settlement.unsettled(living) or r.post.unconfirmed for r in self._living()):
            await asyncio.sleep(self.scenario.compute_s + self.scenario.latency_s)

    def _living(self) -> list[Runtime]:
        return [r for r, alive in zip(self.runtimes, self.alive, strict=True) if alive]

    def _result(self, finished: list[float]) -> Result:
        states = [r.state for r in self._living()]
        for state in states:
            self._trace.update(state.numpy().tobytes())
        return Result(
            digest=self._trace.hexdigest(),
            seconds=max((t for t in finished if t == t), default=0.0),
            gradients=self.gradients,
            mean=torch.stack(states).mean(0),
            states=states,
            curve=self.curve,
            runtimes=self.runtimes,
            finished_s=finished,
            sent_bytes=self.sent_bytes,
        )

    def on_count(self, worker: int) -> None:
        """A worker has applied a gradient."""
        new = self.runtimes[worker].gradients - self._counted[worker]
        self._counted[worker] += new
        self.gradients += new
        self._note("g", self.names[worker])
        if new and self.evaluate_every and self.gradients % self.evaluate_every == 0:
            self._measure()

    def gradients_of(self, worker: PeerId) -> int:
        """How many it has applied."""
        return self._by_name[worker].gradients

    def on_record(self, worker: PeerId, event: str, fields: dict[str, Any]) -> None:
        """A line of a worker's history."""
        if self.records is not None:
            self.records.append((self.now(), worker, event, fields))

    def _measure(self) -> None:
        if self.evaluate is None:
            return
        states = torch.stack([r.state for r in self._living()])
        served = None if self.coordinator is None else self.coordinator.model()
        mean = states.mean(0) if served is None else served
        loss, accuracy = self.evaluate(mean)
        spread = float((states - mean).pow(2).sum(1).mean().sqrt())
        self.curve.append(Point(self.now(), self.gradients, loss, accuracy, spread, sum(self.sent_bytes.values())))

    def now(self) -> float:
        """Virtual seconds."""
        return self._loop.time()

    def _note(self, what: str, one: PeerId, other: PeerId = "", kind: int = 0, seq: int = 0) -> None:
        self._trace.update(f"{self._loop.time()!r} {what} {one} {other} {kind:d} {seq}\n".encode())


def population(settings: Settings, workers: int) -> tuple[list[Learner], list[Tensor]]:
    """Learners over the task's parts, one a worker, and their equal first states. They share one module."""
    s = settings
    task = load_task(s.task)
    model, x0 = initial_state(task, s.seed, torch.device("cpu"), s.precision)
    learners = []
    for shard, data in enumerate(_parts(task, s, workers)):
        decay = s.decay_in_gradient
        learner = Learner(task, data, model, batch=s.batch, seed=s.seed, shard=shard, weight_decay=decay)
        learners.append(learner)
    return learners, [x0.clone() for _ in range(workers)]


def _parts(task: Task, settings: Settings, workers: int) -> Iterator[Data]:
    """Each worker's data. What all share is there once, however many they are."""
    s = settings
    shared = s.partition == "shared"
    shards = 1 if shared else workers
    places = (Place(k, shards, s.partition, s.seed, Path(s.data_dir), s.download) for k in range(shards))
    if not shared:
        yield from (local_data(task, place) for place in places)
        return
    whole = local_data(task, next(places))
    for k in range(workers):
        inputs, targets = whole.held_out_inputs[k::workers], whole.held_out_targets[k::workers]
        yield dataclasses.replace(whole, held_out_inputs=inputs, held_out_targets=targets)


def evaluator(learners: Sequence[Learner]) -> Callable[[Tensor], tuple[float, float | None]]:
    """Loss on all training data and accuracy on all held-out data, of the workers together."""
    everything = Learner.of_all(learners)

    def evaluate(state: Tensor) -> tuple[float, float | None]:
        return everything.evaluate(state, held_out=False).loss, everything.evaluate(state).accuracy

    return evaluate


def simulate(
    settings: Settings, scenario: Scenario, learners: Sequence[Learner], states: Sequence[Tensor], **options: Any
) -> Result:
    """One run in virtual time; `options` are those of `World`."""
    return virtual_time.run(_simulate(settings, scenario, learners, states, options))


async def _simulate(
    settings: Settings,
    scenario: Scenario,
    learners: Sequence[Learner],
    states: Sequence[Tensor],
    options: dict[str, Any],
) -> Result:
    return await World(settings, scenario, learners, states, **options).run()
