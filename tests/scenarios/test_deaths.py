"""Workers that die in the middle of a synchronous run, in virtual time: what the others do with the round and after."""

import random
from typing import Any

import pytest
import torch

from shoal import virtual_time
from shoal.data.quadratic import optimum
from shoal.data.task import Place
from shoal.learner import Learner
from shoal.settings import Settings
from shoal.simulation import Crash, Result, Scenario, World, population

ROUNDS = 200
WORKERS = 5
MIXING = ["d-psgd", "d2"]
REPLICAS = ["allreduce-sgd", "signum", "ef-signsgd", "katyusha-x"]
SMALL: dict[str, Any] = {"katyusha-x": {"rounds": 6, "lr": 0.02}}


def run(
    algorithm: str, *crashes: Crash, workers: int = WORKERS, **settings: Any
) -> tuple[Result, World, list[Learner]]:
    run = {"task": "quadratic", "partition": "iid", "batch": 4, "rounds": ROUNDS, "lr": 0.05}
    chosen = Settings(algorithm=algorithm, **{**run, **SMALL.get(algorithm, {}), "suspect_after_s": 0.5, **settings})
    learners, states = population(chosen, workers)
    scenario = Scenario(crashes=crashes, jitter=0.3)
    world = World(chosen, scenario, learners, states)
    world.records = []
    return virtual_time.run(world.run()), world, learners


def living(world: World) -> list[int]:
    return [i for i, alive in enumerate(world.alive) if alive]


@pytest.mark.parametrize("algorithm", [*MIXING, *REPLICAS])
def test_the_others_take_all_rounds_and_each_gradient_counts_once(algorithm: str) -> None:
    result, world, _ = run(algorithm, Crash(0.505, 2))
    rounds = world.settings.total_rounds(WORKERS)
    assert len(result.states) == 4
    for i in living(world):
        assert world.runtimes[i].round == rounds
        assert world.runtimes[i].gradients <= rounds
        assert world.runtimes[i].gradients >= rounds - 1, "a round that it missed was the others' doing"


@pytest.mark.parametrize("algorithm", REPLICAS)
@pytest.mark.parametrize("seed", range(5))
def test_replicas_are_equal_whenever_the_death_came(algorithm: str, seed: int) -> None:
    at = random.Random(seed).uniform(0.02, 1.0)
    result, _, _ = run(algorithm, Crash(at, seed % WORKERS), hash_every=0)
    assert all(torch.equal(state, result.states[0]) for state in result.states)


def test_a_round_that_is_done_again_takes_the_same_gradient() -> None:
    """Nothing of a minibatch is lost, and none is drawn in vain: as many are drawn as rounds are counted."""
    drawn: list[int] = []
    settings = Settings(algorithm="allreduce-sgd", task="quadratic", partition="iid", rounds=20, suspect_after_s=0.5)
    learners, states = population(settings, 3)
    for learner in learners:
        draw = learner.gradient

        def counted(*args: Any, draw: Any = draw, **options: Any) -> Any:
            drawn.append(1)
            return draw(*args, **options)

        learner.gradient = counted  # type: ignore[method-assign]
    # Both have sent the gradient of round 5 when the third, which has not, dies.
    scenario = Scenario(compute_s=0.01, slow=((2, 1.5),), crashes=(Crash(0.0875, 2),))
    world = World(settings, scenario, learners, states)
    virtual_time.run(world.run())
    assert [world.runtimes[i].gradients for i in (0, 1)] == [20, 20]
    assert len(drawn) == 20 + 20 + world.runtimes[2].gradients + 1


@pytest.mark.parametrize("algorithm", MIXING)
def test_a_run_that_loses_two_ends_at_the_optimum_of_those_that_are_left(algorithm: str) -> None:
    """D2's corrections begin anew on all: if one kept its own, their sum would not be 0, and the end another."""
    result, world, _ = run(
        algorithm, Crash(0.31, 1), Crash(0.83, 3), partition="labels:2", rounds=1500, schedule="linear"
    )
    places = [Place(i, WORKERS, "labels:2", 0, world.settings.data_dir, False) for i in living(world)]  # type: ignore[arg-type]
    best = optimum([world.runtimes[i].learner.task.data(place) for i, place in zip(living(world), places, strict=True)])
    away = (result.mean[: best.numel()] - best.float()).square().mean().sqrt()
    assert away < 0.05


def test_corrections_of_d2_still_sum_to_zero_after_a_death() -> None:
    _, world, _ = run("d2", Crash(0.505, 2), partition="labels:2")
    h = torch.stack([world.runtimes[i].memory["h"] for i in living(world)])
    assert h.abs().max() > 0.01
    assert h.sum(0).abs().max() < 1e-3 * h.abs().max()


def test_the_last_worker_goes_on_alone() -> None:
    result, world, _ = run("d2", Crash(0.2, 0), Crash(0.4, 1), workers=3, rounds=60)
    assert len(result.states) == 1
    assert world.runtimes[2].round == 60


@pytest.mark.parametrize("topology", ["hypercube", "torus"])
def test_a_graph_that_cannot_be_had_on_those_who_are_left_becomes_a_ring(topology: str) -> None:
    result, world, _ = run("d2", Crash(0.3, 1), workers=8, topology=topology, rounds=60)
    assert len(result.states) == 7
    assert world.records is not None
    warnings = [fields["text"] for _, _, event, fields in world.records if event == "warning"]
    assert any(f"{topology} cannot be had on what is left of 7 nodes: the graph is ring" in text for text in warnings)


def test_a_w_that_would_not_do_is_made_lazy_rather_than_ending_the_run() -> None:
    """A ring of 5 with weights 1/3 passes D2's bound; one of 4 sits on it."""
    result, world, _ = run("d2", Crash(0.3, 1), topology="ring", lazy="never", rounds=60)
    assert len(result.states) == 4
    assert world.runtimes[0].mixing is not None
    assert world.runtimes[0].mixing.lazy
