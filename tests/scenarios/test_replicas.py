"""Replicas that must be equal: a bit that flips is found at the next comparison, and repaired."""

import pytest
import torch

from shoal import virtual_time
from shoal.replicas import right_one
from shoal.settings import Settings
from shoal.simulation import Result, Scenario, World, population

ROUNDS = 30


def run(workers: int, spoilt: tuple[int, ...], hash_every: int) -> tuple[Result, World]:
    """A run in which these workers' models are spoilt after round 12, before that of round 13."""
    settings = Settings(
        algorithm="signum", task="quadratic", partition="iid", batch=4, rounds=ROUNDS, hash_every=hash_every
    )
    learners, states = population(settings, workers)

    def spoil(mean: torch.Tensor) -> tuple[float, float | None]:
        if world.gradients == 12 * workers:
            for k in spoilt:
                world.runtimes[k].x[3] += 1.0 + k
        return 0.0, None

    world = World(settings, Scenario(), learners, states, evaluate=spoil, evaluate_every=12 * workers)
    world.records = []
    return virtual_time.run(world.run()), world


def repairs(world: World) -> list[tuple[str, str, list[str]]]:
    """(who says so, whose model counted, whose was wrong)."""
    assert world.records is not None
    return [
        (worker, fields["right"], fields["wrong"])
        for _, worker, event, fields in world.records
        if event == "event" and fields["what"] == "replicas differed"
    ]


def test_a_replica_that_differs_takes_the_model_of_the_others() -> None:
    result, world = run(3, spoilt=(1,), hash_every=10)
    assert all(torch.equal(state, result.states[0]) for state in result.states)
    assert sorted(repairs(world)) == [(w, "w0", ["w1"]) for w in ("w0", "w1", "w2")]


def test_without_comparisons_it_would_stay_wrong() -> None:
    result, world = run(3, spoilt=(1,), hash_every=0)
    assert not torch.equal(result.states[1], result.states[0])
    assert repairs(world) == []


def test_two_that_differ_in_their_own_ways_are_both_put_right() -> None:
    result, world = run(4, spoilt=(0, 2), hash_every=7)
    assert all(torch.equal(state, result.states[0]) for state in result.states)
    assert {source for _, source, _ in repairs(world)} == {"w1"}


@pytest.mark.parametrize(
    ("held", "right"),
    [
        ({"a": 1, "b": 1, "c": 2}, ("a", ["c"])),
        ({"a": 2, "b": 1, "c": 1}, ("b", ["a"])),
        ({"a": 2, "b": 1}, ("a", ["b"])),
        ({"b": 1, "a": 2, "c": 2, "d": 1}, ("a", ["b", "d"])),
        ({"a": 7}, ("a", [])),
    ],
)
def test_what_most_hold_counts_and_of_equals_that_of_the_lowest_id(
    held: dict[str, int], right: tuple[str, list[str]]
) -> None:
    assert right_one({k: torch.tensor([v], dtype=torch.uint8) for k, v in held.items()}) == right


@pytest.mark.parametrize(
    ("workers", "warnings"), [(1, ["this node is alone: nobody else votes, so its own signs decide"]), (2, [])]
)
def test_one_node_alone_may_vote_and_is_told_that_nobody_else_does(workers: int, warnings: list[str]) -> None:
    _, world = run(workers, spoilt=(), hash_every=0)
    assert world.records is not None
    assert [fields["text"] for _, _, event, fields in world.records if event == "warning"] == warnings
