"""A checkpoint may be taken at any moment, so what a worker keeps must always be that of its last whole step."""

import asyncio

import pytest
from torch import Tensor

from shoal import virtual_time
from shoal.settings import Settings
from shoal.simulation import Scenario, World, population

MOMENTUM = {"momentum": 0.9}


def seen_at_every_moment(settings: Settings) -> list[tuple[int, dict[str, Tensor]]]:
    """(steps done, copies of what it keeps) of a worker that mostly waits for a slower one."""
    learners, states = population(settings, 3)
    world = World(settings, Scenario(slow=((1, 4.0),), latency_s=0.005), learners, states)
    fast, counted = world.runtimes[0], world.hosts[0].counted
    seen = []

    def look() -> None:
        held = {"model": fast.state, **fast.memory}
        seen.append((fast.steps, {name: tensor.clone() for name, tensor in held.items()}))

    def look_and_count() -> None:
        look()
        counted()

    async def watched() -> None:
        work = asyncio.ensure_future(world.run())
        while not work.done():
            look()
            await asyncio.sleep(0.0031)
        await work

    world.hosts[0].counted = look_and_count  # type: ignore[method-assign]

    virtual_time.run(watched())
    return seen


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("allreduce-sgd", MOMENTUM),
        ("signsgd", {}),
        ("signum", {}),
        ("ef-signsgd", {}),
        ("ef-signsgd", MOMENTUM),
        ("d-psgd", MOMENTUM),
        ("d2", {}),
        ("d2", MOMENTUM),
        ("d2", {"codec": "sign"}),
        ("svrg", {"batch": 64}),
        ("katyusha-x", {"batch": 64}),
    ],
)
def test_what_is_kept_changes_only_together_with_the_step_that_is_counted(
    algorithm: str, options: dict[str, object]
) -> None:
    settings = Settings(**{"algorithm": algorithm, "task": "quadratic", "rounds": 5, "batch": 4, **options})  # type: ignore[arg-type]
    whole: dict[int, dict[str, Tensor]] = {}
    for steps, held in seen_at_every_moment(settings):
        for name, tensor in whole.setdefault(steps, held).items() if steps else []:
            change = float((held[name].double() - tensor.double()).abs().max())
            assert change == 0, f"{name} changed by {change:.3g} after {steps} whole steps, before the next"
