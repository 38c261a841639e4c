"""10,000 random histories of the views of synchronous runs, of which `make test` runs some hundred. Minutes."""

import random

import pytest
from view_histories import all_step_in_one_view_at_last, replicas_stay_equal, some_deaths, some_weather

HISTORIES = 10_000

pytestmark = pytest.mark.timeout(7200)


def min_nodes(seed: int) -> int:
    return random.Random(f"start {seed}").randint(1, 4)


@pytest.mark.parametrize("replicas", [False, True], ids=["mixing", "replicas"])
def test_all_come_to_share_a_view_and_step(replicas: bool) -> None:
    seeds = range(HISTORIES // 4)
    broken = [s for s in seeds if not all_step_in_one_view_at_last(some_weather(s), min_nodes(s), replicas=replicas)]
    assert broken == []


def test_replicas_are_equal_at_any_moment() -> None:
    seeds = range(HISTORIES // 2)
    broken = [s for s in seeds if not replicas_stay_equal(some_weather(s), min_nodes(s), some_deaths(s))]
    assert broken == []
