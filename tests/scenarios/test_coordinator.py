"""Runs over a coordinator in virtual time: the very class that serves over gRPC, with broken links, slow and dead
workers, and a coordinator that is killed."""

import asyncio
from pathlib import Path
from typing import Any

import drift_task
import pytest
import torch
from drift_task import direction
from torch import Tensor

from shoal import virtual_time
from shoal.errors import MemberLost, SettingsError, UserError
from shoal.messages import Message
from shoal.settings import Settings
from shoal.simulation import COORDINATOR, Crash, Result, Scenario, World, population
from shoal_coordinator import Server, Terms, beside
from shoal_coordinator.parameters import ParameterServer
from shoal_coordinator.store import Store
from shoal_coordinator.teller import Teller

WORKERS = 3
DRIFT = f"{drift_task.__file__}:Drift"
ALL = ("signum", "ef-signsgd", "allreduce-sgd")


class Mortal:
    """A coordinator that can be killed: all that lives on is what its store holds."""

    def __init__(self, settings: Settings, terms: Terms, folder: Path | None) -> None:
        self.settings, self.terms, self.folder = settings, terms, folder
        self.killed = 0

    def __call__(self, me: str, send: Any, clock: Any) -> "Mortal":
        self.me, self.send, self.clock = me, send, clock
        self.server = self._start()
        return self

    def _start(self) -> Server:
        store = None if self.folder is None else Store(self.folder)
        return beside(self.settings, self.terms, store)(self.me, self.send, self.clock)

    def kill(self) -> None:
        """And start another."""
        self.killed += 1
        self.server.close()
        self.server = self._start()

    def down(self, peer: str) -> None:
        self.server.down(peer)

    def left(self, peer: str) -> None:
        self.server.left(peer)

    def received(self, peer: str, message: Message) -> None:
        self.server.received(peer, message)

    def model(self) -> Tensor | None:
        return self.server.model()

    @property
    def teller(self) -> Teller:
        assert isinstance(self.server.serves, Teller)
        return self.server.serves

    @property
    def parameters(self) -> ParameterServer:
        assert isinstance(self.server.serves, ParameterServer)
        return self.server.serves


class Run:
    """A world around a mortal coordinator; `at(t)` of it is called at that time."""

    def __init__(
        self,
        algorithm: str,
        *,
        terms: Terms | None = None,
        scenario: Scenario | None = None,
        workers: int = WORKERS,
        folder: Path | None = None,
        **run: Any,
    ) -> None:
        common = {"task": "quadratic", "partition": "iid", "batch": 4, "rounds": 30}
        self.settings = Settings(algorithm=algorithm, over="coordinator", **{**common, **run})
        self.coordinator = Mortal(self.settings, terms or Terms(), folder)
        self.scenario = scenario or Scenario(vector_s=0.001)
        self.workers = workers
        self.acts: list[tuple[float, Any]] = []

    def at(self, t: float, act: Any) -> "Run":
        self.acts.append((t, act))
        return self

    def cut(self, worker: int, for_s: float = 0.05) -> None:
        """Its link to the coordinator."""
        self.world.cut(self.world.names[worker], COORDINATOR, for_s)

    def kill_coordinator(self) -> None:
        self.coordinator.kill()
        for worker in range(self.workers):
            self.cut(worker)

    def go(self) -> Result:
        learners, states = population(self.settings, self.workers)
        return virtual_time.run(self._go(learners, states))

    async def _go(self, learners: Any, states: Any) -> Result:
        self.world = World(self.settings, self.scenario, learners, states, coordinator=self.coordinator)
        self.world.records = []
        for t, act in self.acts:
            asyncio.get_running_loop().call_at(t, act)
        return await self.world.run()

    def events(self, what: str) -> list[tuple[str, dict[str, Any]]]:
        assert self.world.records is not None
        return [(who, said) for _, who, event, said in self.world.records if event == "event" and said["what"] == what]


def equal(result: Result) -> bool:
    return all(torch.equal(state, result.states[0]) for state in result.states)


# --- the same as without one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["signsgd", "signum"])
def test_a_vote_that_a_coordinator_counts_is_that_of_the_members_bit_for_bit(algorithm: str) -> None:
    run = Run(algorithm, workers=4)  # an even number, so that there are ties
    over = run.go()
    learners, states = population(run.settings, 4)
    among = Settings(**{**run.settings.run_document(), "over": "peers", "task": "quadratic"})
    peers = virtual_time.run(World(among, run.scenario, learners, states).run())
    assert equal(over)
    assert torch.equal(over.states[0], peers.states[0])


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "katyusha-x"])
def test_a_mean_that_a_coordinator_forms_is_that_of_the_ring_to_rounding(algorithm: str) -> None:
    run = Run(algorithm, rounds=5, precision="f64", lr=0.05)
    over = run.go()
    learners, states = population(run.settings, WORKERS)
    among = Settings(**{**run.settings.run_document(), "over": "peers", "task": "quadratic"})
    peers = virtual_time.run(World(among, run.scenario, learners, states).run())
    assert equal(over)
    torch.testing.assert_close(over.states[0], peers.states[0], rtol=1e-12, atol=1e-12)


# --- links that break, and a coordinator that dies --------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALL)
def test_broken_links_change_nothing_but_the_time(algorithm: str) -> None:
    calm = Run(algorithm).go()
    run = Run(algorithm)
    for k in range(20):
        run.at(0.0071 * (k + 1), lambda k=k: run.cut(k % WORKERS, 0.004))
    broken = run.go()
    assert equal(broken)
    assert torch.equal(broken.states[0], calm.states[0])
    assert run.coordinator.teller.tally.votes["double"] == 0
    assert run.coordinator.teller.tally.votes["late"] == 0
    assert broken.seconds > calm.seconds


@pytest.mark.parametrize("algorithm", ALL)
def test_a_coordinator_that_is_killed_goes_on_where_it_stopped(algorithm: str, tmp_path: Path) -> None:
    calm = Run(algorithm).go()
    run = Run(algorithm, folder=tmp_path)
    for k in range(6):
        run.at(0.0501 + 0.0293 * k, run.kill_coordinator)
    killed = run.go()
    assert run.coordinator.killed == 6
    assert equal(killed)
    assert torch.equal(killed.states[0], calm.states[0])


def test_one_that_has_lost_its_state_goes_on_from_the_furthest_worker(tmp_path: Path) -> None:
    """A model that nobody else has yet counts for all: no round is voted on twice."""
    run = Run("signum", folder=tmp_path, rounds=40)

    def lose() -> None:
        for path in tmp_path.iterdir():
            path.unlink()
        run.kill_coordinator()

    result = run.at(0.2, lose).go()
    assert equal(result)
    assert [r.round for r in run.world.runtimes] == [40] * WORKERS


# --- slow and dead workers --------------------------------------------------------------------------------------------


def test_without_a_quorum_all_wait_for_the_slowest() -> None:
    run = Run("signum", scenario=Scenario(slow=((0, 5.0),)))
    result = run.go()
    assert run.coordinator.teller.tally.rounds == {"all": 30, "quorum": 0}
    assert result.seconds == pytest.approx(30 * 0.05, rel=0.1)


@pytest.mark.parametrize("algorithm", ALL)
def test_with_a_quorum_a_straggler_takes_the_answers_that_it_missed(algorithm: str) -> None:
    run = Run(algorithm, terms=Terms(quorum=2, deadline_s=0.002), scenario=Scenario(slow=((0, 5.5),)), momentum=0.0)
    result = run.go()
    tally = run.coordinator.teller.tally
    assert equal(result)
    assert tally.rounds["quorum"] > 20
    assert tally.rounds["all"] + tally.rounds["quorum"] == 30
    assert tally.votes["missing"] == tally.rounds["quorum"]
    assert result.finished_s[1] < 30 * 0.016
    slow, *others = run.world.runtimes
    assert slow.gradients < 12
    assert [r.gradients for r in others] == [30, 30]
    assert [r.round for r in run.world.runtimes] == [30] * WORKERS


def test_momentum_of_the_mean_stays_the_same_on_a_straggler() -> None:
    terms = Terms(quorum=2, deadline_s=0.002)
    assert equal(Run("allreduce-sgd", terms=terms, scenario=Scenario(slow=((0, 5.5),)), momentum=0.9).go())


@pytest.mark.parametrize("algorithm", ["signum", "allreduce-sgd"])
def test_one_that_is_too_far_behind_takes_the_model_of_another(algorithm: str) -> None:
    momentum = 0.9 if algorithm == "allreduce-sgd" else None
    scenario = Scenario(slow=((0, 100.0),))
    run = Run(
        algorithm, terms=Terms(quorum=2, deadline_s=0.0), scenario=scenario, rounds=250, momentum=momentum, hash_every=0
    )
    result = run.go()
    assert {who for who, _ in run.events("behind")} == {"w0"}
    assert equal(result)


def test_the_run_goes_on_without_a_worker_that_died() -> None:
    crash = Scenario(crashes=(Crash(0.1, 1),))
    run = Run("signum", scenario=crash, suspect_after_s=1.0)
    result = run.go()
    assert len(result.states) == 2
    assert equal(result)
    assert 1.0 < result.seconds < 2.0, "for as long as it was silent it was waited for"
    assert run.coordinator.teller.roll.members == ["w0", "w2"]


def test_with_a_quorum_nobody_waits_for_the_dead() -> None:
    crash = Scenario(crashes=(Crash(0.1, 1),))
    run = Run("signum", scenario=crash, suspect_after_s=100.0, terms=Terms(quorum=2, deadline_s=0.01))
    assert run.go().seconds < 1.0


def test_katyusha_x_over_a_coordinator_cannot_go_on_without_a_member() -> None:
    with pytest.raises(MemberLost, match="the members are w0, w2 now, and katyusha-x over a coordinator needs those"):
        Run("katyusha-x", scenario=Scenario(crashes=(Crash(0.1, 1),)), rounds=5).go()


# --- replicas ---------------------------------------------------------------------------------------------------------


def test_a_replica_that_differs_takes_the_model_of_one_that_is_right() -> None:
    run = Run("allreduce-sgd", hash_every=10, momentum=0.9)

    def spoil() -> None:
        run.world.runtimes[1].x[3] += 1.0
        run.world.runtimes[1].memory["momentum"][0] += 1.0

    result = run.at(0.055, spoil).go()
    assert [said["wrong"] for _, said in run.events("replicas differed")] == [["w1"]] * WORKERS
    assert [who for who, _ in run.events("behind")] == ["w1"]
    assert equal(result)


# --- terms that cannot be ---------------------------------------------------------------------------------------------


def test_a_quorum_larger_than_the_view_is_refused_to_every_worker() -> None:
    run = Run("signum", terms=Terms(quorum=5))
    with pytest.raises(UserError, match="answers of 5, and the run began with 3 members; start the coordinator with"):
        run.go()
    assert run.coordinator.teller.tally.rounds == {"all": 0, "quorum": 0}


def test_a_run_over_a_coordinator_needs_one() -> None:
    settings = Settings(algorithm="a-psgd", task="quadratic", partition="iid")
    learners, states = population(settings, 2)
    with pytest.raises(SettingsError, match="a-psgd over coordinator, and no coordinator is in this simulation"):
        World(settings, Scenario(), learners, states)


# --- the parameter server ---------------------------------------------------------------------------------------------


def test_every_gradient_is_in_the_model_once_and_all_end_with_it() -> None:
    run = Run("a-psgd", scenario=Scenario(jitter=0.3, vector_s=0.001))
    result = run.go()
    assert run.coordinator.parameters.version == sum(r.gradients for r in run.world.runtimes) == 30 * WORKERS
    assert equal(result)
    model = run.coordinator.model()
    assert model is not None
    assert torch.equal(model, result.states[0])


def test_broken_links_lose_no_gradient_and_apply_none_twice() -> None:
    run = Run("a-psgd", scenario=Scenario(jitter=0.3, vector_s=0.001))
    for k in range(20):
        run.at(0.0071 * (k + 1), lambda k=k: run.cut(k % WORKERS, 0.004))
    result = run.go()
    assert run.coordinator.parameters.version == sum(r.gradients for r in run.world.runtimes) == 30 * WORKERS
    assert equal(result)


def test_a_parameter_server_that_is_killed_gets_again_what_it_had_not_saved(tmp_path: Path) -> None:
    run = Run("a-psgd", folder=tmp_path, rounds=400, task=DRIFT, lr=2.0**-12, batch=1)
    for k in range(3):
        run.at(0.9501 + 1.0293 * k, run.kill_coordinator)
    result = run.go()
    assert run.coordinator.killed == 3
    assert run.coordinator.parameters.version == 400 * WORKERS
    assert equal(result)
    expected = sum(r.gradients * direction(k) for k, r in enumerate(run.world.runtimes)) * run.settings.lr
    assert sum(r.gradients for r in run.world.runtimes) == 400 * WORKERS
    torch.testing.assert_close(result.states[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("workers", [1, 4, 8])
def test_a_gradient_is_about_as_old_as_there_are_other_workers(workers: int) -> None:
    run = Run("a-psgd", scenario=Scenario(jitter=0.2), workers=workers, rounds=60)
    run.go()
    assert run.coordinator.parameters.staleness["mean"] == pytest.approx(workers - 1, rel=0.05)


def test_a_staleness_aware_step_is_divided_by_the_age_of_its_gradient() -> None:
    """On a gradient that is the same everywhere, n workers go as far together as one does alone."""
    plain, aware = (
        Run("a-psgd", task=DRIFT, rounds=40, lr=2.0**-12, batch=1, partition="shared", staleness_aware=aware).go()
        for aware in (False, True)
    )
    assert float(aware.states[0].norm()) == pytest.approx(float(plain.states[0].norm()) / (WORKERS - 1), rel=0.1)
