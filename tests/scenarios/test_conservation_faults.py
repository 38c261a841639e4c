"""10,000 averages through partitions, ways that are blocked, and stops longer than the suspicion time: the sum of the
models is kept. And where workers die, what is missing in the sum is what the others list as not settled."""

import asyncio
import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import torch
from drift_task import D, Drift, direction
from torch import Tensor

from shoal.data.task import Place
from shoal.learner import Learner
from shoal.messages import Message, PeerId
from shoal.runtime import Runtime
from shoal.settings import Settings
from shoal.simulation import Crash, Result, Scenario, World
from shoal.vector import FlatModel
from shoal.virtual_time import run

N = 6
LR = 2.0**-7
SUSPECT_S = 0.2
"""Virtual, as is all: a silence after which the ends of a link give it up."""
SCENARIO = Scenario(compute_s=0.01, jitter=0.3, vector_s=0.002, latency_s=0.0005, slow=((1, 3.0),))

Way = tuple[int, int]


class Blocked(World):
    """Ways between workers that lose what is sent. After the suspicion time both ends give the link up, until it is
    mended."""

    ways: frozenset[Way] = frozenset()
    befell: "dict[str, int]"

    def carry(self, source: PeerId, to: PeerId, message: Message) -> None:
        """As a world does, unless that way is blocked."""
        if (self.names.index(source), self.names.index(to)) not in self.ways:
            super().carry(source, to, message)

    async def weather(self, seed: int) -> None:
        """One fault after the other, until it is cancelled."""
        rng, self.befell = random.Random(seed), {}
        while True:
            await asyncio.sleep(rng.uniform(0.05, 0.4))
            name = rng.choice(("partition", "one way", "stop"))
            self.befell[name] = self.befell.get(name, 0) + 1
            lasts_s = rng.uniform(1.5, 3) * SUSPECT_S
            self.ways = frozenset(self._fault(name, rng))
            await asyncio.sleep(SUSPECT_S)
            edges = {frozenset(way) for way in self.ways}
            for one, other in sorted(map(sorted, edges)):
                self.cut(self.names[one], self.names[other], lasts_s - SUSPECT_S)
            await asyncio.sleep(lasts_s - SUSPECT_S)
            self.ways = frozenset()

    def _fault(self, name: str, rng: random.Random) -> set[Way]:
        if name == "one way":
            one, *others = rng.sample(range(N), 3)
            return {(one, other) for other in others}
        part = rng.sample(range(N), 1 if name == "stop" else N // 2)
        rest = [k for k in range(N) if k not in part]
        return {way for one, other in itertools.product(part, rest) for way in ((one, other), (other, one))}


@dataclasses.dataclass
class Books:
    """What the models of all workers add up to, those of the dead as they were left, and what they should."""

    world: Blocked
    result: Result
    missing: Tensor  # (d,) float64: sum x - (sum x0 + sum of drifts)
    bound: float  # 1e-5 n max|x|


def drifted(seed: int, steps: int, scenario: Scenario = SCENARIO, **faults: Any) -> Books:
    settings = Settings(algorithm="ad-psgd", lr=LR, batch=1, rounds=steps, seed=seed, topology="complete")
    model = FlatModel(Drift().model())
    places = [Place(k, N, "iid", seed, Path(), False) for k in range(N)]
    learners = [Learner(Drift(), Drift().data(p), model, batch=1, seed=seed, shard=p.shard) for p in places]
    generator = torch.Generator().manual_seed(seed)
    x0 = [torch.randn(D, generator=generator) * 3 for _ in range(N)]

    async def go() -> tuple[Blocked, Result]:
        world = Blocked(settings, scenario, learners, [x.clone() for x in x0], **faults)
        weather = asyncio.get_running_loop().create_task(world.weather(seed))
        if scenario.crashes:
            weather.cancel()
        result = await world.run()
        weather.cancel()
        return world, result

    world, result = run(go())
    drifts = sum(r.gradients * LR * direction(k).double() for k, r in enumerate(world.runtimes))
    ends = torch.stack([r.state for r in world.runtimes]).double()
    missing = ends.sum(0) - (torch.stack(x0).double().sum(0) + drifts)
    return Books(world, result, missing, 1e-5 * N * float(ends.abs().max()))


def test_the_sum_is_kept_over_10_000_averages_through_partitions_blocked_ways_and_stops() -> None:
    books = drifted(seed=1, steps=2400)
    tallies = [r.settlement.tally for r in books.world.runtimes]
    resolved = sum(t.resolved for t in tallies)
    print(f"{sum(t.active for t in tallies)} averages, {books.world.befell}, {resolved} resolved")
    assert sum(t.active for t in tallies) >= 10_000
    assert min(books.world.befell.values()) >= 5
    assert books.world.befell.keys() == {"partition", "one way", "stop"}
    assert resolved > 0, "no average was ever in doubt"
    assert float(books.missing.abs().max()) <= books.bound
    assert sum(r.settlement.in_doubt + r.settlement.unconfirmed for r in books.world.runtimes) == 0


def promised(worker: Runtime) -> dict[tuple[PeerId, int, int], Tensor]:
    """Its halves that wait for the word of who asked: in doubt, or of the average that it served when it died."""
    desk = worker.settlement._desk
    found = dict(desk.ledger.doubts)
    if desk.served is not None and desk.served.delta is not None:
        found[desk.served.peer, desk.served.initiator, desk.served.seq] = desk.served.delta.tensor()
    return found


def halves(one: Runtime, other: Runtime) -> list[Tensor]:
    """The halves that are missing between two: one end has done an average, and the other never will."""
    return [
        delta
        for served, asked in ((one, other), (other, one))
        for (peer, initiator, seq), delta in promised(served).items()
        if peer == asked.me and asked.settlement._desk.ledger.has_committed((served.me, initiator, seq))
    ]


def test_what_deaths_take_from_the_sum_is_what_the_others_list_as_not_settled() -> None:
    """Of a worker that died the others keep what they have promised it, and the commits that it did not confirm."""
    slow = dataclasses.replace(SCENARIO, vector_s=0.004, latency_s=0.003)
    counted = 0
    for seed in range(12):
        crashes = tuple(Crash(0.1 + 0.013 * seed + 0.11 * k, k) for k in range(3))
        books = drifted(seed, 60, dataclasses.replace(slow, crashes=crashes))
        dead, living = books.world.runtimes[:3], books.world.runtimes[3:]
        lost = [half for one in living for other in dead for half in halves(one, other)]
        among = [half for one, other in itertools.combinations(dead, 2) for half in halves(one, other)]
        nothing = torch.zeros(D, dtype=torch.float64)
        total = books.missing + sum((half.double() for half in (*lost, *among)), nothing)
        assert float(total.abs().max()) <= books.bound, seed
        listed = sum(r.settlement.in_doubt + r.settlement.unconfirmed for r in living)
        assert len(lost) <= listed, seed
        if not lost and not among:
            assert float(books.missing.abs().max()) <= books.bound
        counted += len(lost)
    print(f"{counted} halves were lost in 36 deaths")
    assert counted > 0, "no death has left an average half done"
