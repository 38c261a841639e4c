"""All workers of a simulated run, from its start to its end."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal import virtual_time
from shoal.carrier import View
from shoal.errors import MemberLost, SettingsError, TopologyError
from shoal.learner import Learner
from shoal.messages import Message, PeerId
from shoal.runtime import Runtime
from shoal.settings import Settings
from shoal.simulation.host import SimHost
from shoal.simulation.links import Fault, Links, Participant
from shoal.simulation.result import Point, Result
from shoal.simulation.scenario import Scenario


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
        self.settings, self.scenario = settings, scenario
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
        self._links = Links(scenario, self.names, everybody, full_bytes=states[0].nbytes, ends=self, fault=fault)
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

    def carry(self, source: PeerId, to: PeerId, message: Message) -> None:
        """One message on its way."""
        self._links.carry(source, to, message)

    def _carry_answer(self, to: PeerId, message: Message) -> None:
        self.carry(COORDINATOR, to, message)

    def cut(self, a: PeerId, b: PeerId, for_s: float) -> None:
        """Break the link between two for a while."""
        self._links.cut(a, b, for_s)

    def participant(self, name: PeerId) -> Participant:
        """A worker, or the coordinator."""
        if name != COORDINATOR:
            return self._by_name[name]
        assert self.coordinator is not None
        return self.coordinator

    def is_alive(self, name: PeerId) -> bool:
        """A coordinator does not die here."""
        return name == COORDINATOR or self.alive[self.names.index(name)]

    def tell(self, a: PeerId, b: PeerId, *, up: bool) -> None:
        """Both ends learn that their link stands again, or broke."""
        self.note("u" if up else "d", a, b)
        for one, other in ((a, b), (b, a)):
            if not up:
                self.participant(one).down(other)
            elif one in self._by_name:  # a coordinator learns of it by what the worker sends
                self._by_name[one].up(other, coordinates=other == COORDINATOR)

    def _die(self, worker: int) -> None:
        name = self.names[worker]
        self.alive[worker] = False
        self._tasks[worker].cancel()
        for other, alive in zip(self.names, self.alive, strict=True):
            if alive and other != name:
                self._links.between(name, other).sever()
                self._by_name[other].down(name)
        if self.coordinator is not None:
            self._links.between(name, COORDINATOR).sever()
            self.coordinator.down(name)
            self._loop.call_later(self.settings.suspect_after_s, self.coordinator.left, name)
        self.note("x", name)
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
            self.end(error)
            return
        for i in living:
            self._start(i, source if self.settings.traits.replicas and rounds[i] < furthest else "")
        for i in living:
            for peer in self.runtimes[i].peers_in_view():
                if peer not in self.runtimes[i].neighbours and self._links.between(self.names[i], peer).up:
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
        self._links.begin()
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
                self.tell(runtime.me, COORDINATOR, up=True)

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
            self.end(error)

    def end(self, error: BaseException) -> None:
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
            sent_bytes=self._links.sent_bytes,
        )

    def on_count(self, worker: int) -> None:
        """A worker has applied a gradient."""
        new = self.runtimes[worker].gradients - self._counted[worker]
        self._counted[worker] += new
        self.gradients += new
        self.note("g", self.names[worker])
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
        self.curve.append(
            Point(self.now(), self.gradients, loss, accuracy, spread, sum(self._links.sent_bytes.values()))
        )

    def now(self) -> float:
        """Virtual seconds."""
        return self._loop.time()

    def note(self, what: str, one: PeerId, other: PeerId = "", kind: int = 0, seq: int = 0) -> None:
        """A line of the trace."""
        self._trace.update(f"{self._loop.time()!r} {what} {one} {other} {kind:d} {seq}\n".encode())


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
