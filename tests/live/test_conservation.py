"""500 averages among nodes that drift apart, over gRPC through proxies that cut: the sum of the models is kept.

Each node starts from a vector of its own, by way of a checkpoint, and moves along a direction of its own. All that they
say to each other passes a proxy, which reads along and cuts inside messages. `scenarios/test_conservation.py` is the
same in virtual time.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import drift_task
import pytest
import torch
from balance import CHECKPOINT, LR, account, begun, check
from drift_task import D
from nodes_kit import PATIENCE_S, Shoal, children, shoal_in
from shears import Proxy, Shears

from shoal.checkpoint import write
from shoal.demo.fleet import NodeProcess
from shoal.settings import Settings

pytestmark = pytest.mark.live

N = 3
DECIDING = ("ACCEPT chunk", "VALUES chunk", "READY", "COMMIT", "CONFIRM")
"""The last chunks of both vectors, then what is lost before the promise, before the commit and before the confirm."""

STOPPED = 128 + signal.SIGTERM


# --- the nodes ------------------------------------------------------------------------------------------------------


class Drifting:
    """Nodes node-1 ... that know each other by their proxies alone, each with a model of its own to begin with."""

    def __init__(self, shoal: Shoal, settings: Settings, shears: Shears) -> None:
        self.shoal, self.settings = shoal, settings
        generator = torch.Generator().manual_seed(settings.seed)
        self.x0 = torch.randn(N, D, generator=generator) * 3
        self._nodes: list[dict[str, Any]] = []
        self._proxies = [Proxy(shears) for _ in range(N)]

    async def prepare(self, stack: contextlib.AsyncExitStack) -> None:
        """Proxies that serve, and checkpoints to begin from."""
        addresses = [await stack.enter_async_context(proxy.serving()) for proxy in self._proxies]
        for shard, mine in enumerate(addresses):
            name = f"node-{shard + 1}"
            others = ",".join(address for address in addresses if address != mine)
            self._nodes.append({"name": name, "shard": f"{shard}/{N}", "advertise": mine, "peers": others})
            write(self.shoal.folder / name / CHECKPOINT, begun(name, self.settings, self.x0[shard]))

    async def start(self, shard: int) -> NodeProcess:
        """Starts that node; it goes on from its checkpoint."""
        node = await asyncio.to_thread(self.shoal.start, min_nodes=N, resume=True, **self._nodes[shard])
        self._proxies[shard].target = lambda: (node.facts() or {}).get("address")
        return node

    async def start_all(self) -> list[NodeProcess]:
        """Starts all of them, which begin together."""
        return [await self.start(shard) for shard in range(N)]

    async def until_step(self, step: int, *nodes: NodeProcess) -> None:
        """Until each has come so far."""
        await asyncio.to_thread(self.shoal.until_step, step, *nodes)

    async def codes(self, *nodes: NodeProcess) -> list[int]:
        """Exit codes of these, once they have ended."""
        return await asyncio.to_thread(self.shoal.codes, *nodes)


@contextlib.asynccontextmanager
async def drifting(
    folder: Path, shears: Shears, *, rounds: int, seed: int, share_memory: bool = False, clip_distance: float = 0.0
) -> AsyncIterator[Drifting]:
    chosen: dict[str, Any] = {"rounds": rounds, "seed": seed, "clip_distance": clip_distance}
    settings = Settings(algorithm="ad-psgd", topology="complete", lr=LR, batch=1, **chosen)
    run = {key: value for key, value in settings.run_document().items() if value is not None}
    own = {"task": f"{drift_task.__file__}:Drift", "emulate_compute_s": 0.015, "checkpoint_every": 0, "eval_every": 0}
    async with contextlib.AsyncExitStack() as stack:
        shoal = stack.enter_context(shoal_in(folder, **{**own, **run, "share_memory": share_memory}))
        it = Drifting(shoal, settings, shears)
        await it.prepare(stack)
        yield it


# --- the tests ------------------------------------------------------------------------------------------------------


def cutting(seed: int) -> Shears:
    """At any message, and at each of those that decide at least once."""
    return Shears(seed, chance=0.02, elsewhere=0.001, surely=dict.fromkeys(DECIDING, 1))


@pytest.mark.parametrize(
    ("memory", "clip_distance"),
    [(False, 0.0), (True, 0.0), (True, 0.5)],
    ids=["on the wire", "in memory", "in memory, clipped"],
)
async def test_the_sum_is_kept_over_500_averages_with_cuts_in_every_message_that_decides(
    memory: bool, clip_distance: float, tmp_path: Path
) -> None:
    shears = cutting(1)
    run: dict[str, Any] = {"rounds": 360, "seed": 1, "share_memory": memory, "clip_distance": clip_distance}
    async with drifting(tmp_path, shears, **run) as it:
        nodes = await it.start_all()
        assert await it.codes(*nodes) == [0] * N
    books = account(it.x0, nodes)
    print(f"{len(books.committed)} averages, miss {books.miss:.1e}, bound {books.bound:.1e}; {shears.cuts}")
    assert len(books.committed) >= 500
    assert set(books.committed.values()) == {1}
    assert all(shears.cuts[stage] > 0 for stage in DECIDING), shears.cuts
    check(books, nodes)


async def test_an_average_that_a_stop_leaves_half_done_is_settled_by_the_next_incarnations(tmp_path: Path) -> None:
    """The commit is in one checkpoint, the delta in doubt in the other; they meet when the nodes go on."""
    shears = Shears(2, severed=("COMMIT", 10))
    async with drifting(tmp_path, shears, rounds=60, seed=2) as it:
        nodes = await it.start_all()
        await asyncio.wait_for(shears.is_severed.wait(), PATIENCE_S)
        for node in nodes:
            node.process.send_signal(signal.SIGTERM)
        assert await it.codes(*nodes) == [STOPPED] * N
        stopped = account(it.x0, nodes)
        assert stopped.committed - stopped.served
        assert stopped.miss > stopped.bound
        shears.mend()
        nodes = await it.start_all()
        assert await it.codes(*nodes) == [0] * N
    check(account(it.x0, nodes), nodes)


async def test_the_sum_is_kept_when_one_node_stops_and_comes_back_to_the_others(tmp_path: Path) -> None:
    """It goes on with its own model, which holds gradients that no other has, and not with a member's."""
    async with drifting(tmp_path, cutting(3), rounds=300, seed=3) as it:
        first, second, third = await it.start_all()
        await it.until_step(20, second)
        second.process.send_signal(signal.SIGTERM)
        assert await it.codes(second) == [STOPPED]
        with frozen_trainers(first, third):  # or they might be done before it is back
            second = await it.start(1)
            await asyncio.to_thread(it.shoal.until_logged, "training goes on", second)
        assert await it.codes(first, second, third) == [0] * N
    check(account(it.x0, [first, second, third]), [first, second, third])


async def test_the_mean_model_waits_for_averages_that_one_end_has_not_done_yet(tmp_path: Path) -> None:
    """Who serves an average may hear that all have finished, on the control stream, before it hears of the commit."""
    async with drifting(tmp_path, Shears(4, late={"COMMIT": 0.5}), rounds=2, seed=4) as it:
        nodes = await it.start_all()
        assert await it.codes(*nodes) == [0] * N
    books = account(it.x0, nodes)
    assert books.committed
    check(books, nodes)


async def test_a_settlement_whose_commit_does_nothing_misses_by_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The balance above can fail: nodes that drop their half of what they serve break it a hundredfold."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent / "sabotage"))
    async with drifting(tmp_path, cutting(5), rounds=30, seed=5) as it:
        nodes = await it.start_all()
        assert await it.codes(*nodes) == [0] * N
    books = account(it.x0, nodes)
    print(f"miss {books.miss:.1e}, bound {books.bound:.1e}")
    assert books.miss > 100 * books.bound


@contextlib.contextmanager
def frozen_trainers(*nodes: NodeProcess) -> Iterator[None]:
    """Their daemons go on; what comes for the trainers waits."""
    trainers = [pid for node in nodes for pid in children(node.process.pid)]
    for pid in trainers:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in trainers:
        os.kill(pid, signal.SIGCONT)
