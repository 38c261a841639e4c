"""500 averages among nodes that drift apart, over gRPC through proxies that cut: the sum of the models is kept.

Each node starts from a vector of its own, by way of a checkpoint, and moves along a direction of its own. All that they
say to each other passes a proxy, which reads along and cuts inside messages. `scenarios/test_conservation.py` is the
same in virtual time.
"""

import asyncio
import collections
import contextlib
import dataclasses
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import drift_task
import pytest
import torch
from drift_task import D, Drift, direction
from nodes_kit import PATIENCE_S, Shoal, children, mean_model, shoal_in
from shears import Proxy, Shears
from torch import Tensor

from shoal.checkpoint import Checkpoint, read, write
from shoal.data.loading import task_document
from shoal.demo.fleet import NodeProcess
from shoal.settings import Settings
from shoal.vector import FlatModel

pytestmark = pytest.mark.live

N = 3
LR = 2.0**-7  # with drifts in 64ths, each step is exact in float32
CHECKPOINT = "checkpoint.safetensors"
DECIDING = ("ACCEPT chunk", "VALUES chunk", "READY", "COMMIT", "CONFIRM")
"""The last chunks of both vectors, then what is lost before the promise, before the commit and before the confirm."""

STOPPED = 128 + signal.SIGTERM

Average = tuple[str, str, int]
"""(initiator, its peer, number)."""


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
    folder: Path, shears: Shears, *, rounds: int, seed: int, share_memory: bool = False
) -> AsyncIterator[Drifting]:
    settings = Settings(algorithm="ad-psgd", topology="complete", lr=LR, batch=1, rounds=rounds, seed=seed)
    run = {key: value for key, value in settings.run_document().items() if value is not None}
    own = {"task": f"{drift_task.__file__}:Drift", "emulate_compute_s": 0.015, "checkpoint_every": 0, "eval_every": 0}
    async with contextlib.AsyncExitStack() as stack:
        shoal = stack.enter_context(shoal_in(folder, **{**own, **run, "share_memory": share_memory}))
        it = Drifting(shoal, settings, shears)
        await it.prepare(stack)
        yield it


def begun(name: str, settings: Settings, state: Tensor) -> Checkpoint:
    """Of a node that has done nothing yet, and stands at `state`."""
    version, internal, gauss = random.Random(name).getstate()
    return Checkpoint(
        task_document=task_document(Drift(), FlatModel(Drift().model()).layout),
        run_document=settings.run_document(),
        node_id=name,
        incarnation=0,
        step=0,
        gradients=0,
        round=0,
        state=state,
        memory={"batches": torch.Generator().get_state()},
        rng={"algorithm": [version, list(internal), gauss]},
        settlement={},
    )


# --- the books ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Account:
    """Both sides of the balance, and the averages by the histories of those who decided and of those who served."""

    ends: list[Checkpoint]
    miss: float  # max |sum x - (sum x0 + sum of drifts)|
    bound: float  # 1e-5 n max|x|
    committed: "collections.Counter[Average]"
    served: "collections.Counter[Average]"


def account(x0: Tensor, nodes: list[NodeProcess]) -> Account:
    ends = [read(node.folder / CHECKPOINT) for node in nodes]
    states = torch.stack([end.state for end in ends]).double()
    expected = x0.double().sum(0)
    committed, served = collections.Counter[Average](), collections.Counter[Average]()
    for shard, (node, end) in enumerate(zip(nodes, ends, strict=True)):
        history = node.history()
        steps = [line["step"] for line in history if line["kind"] == "step"]
        assert steps == list(range(1, end.step + 1)), "a gradient was not applied, or twice"
        expected += len(steps) * LR * direction(shard).double()
        for line in history:
            if line["kind"] == "exchange" and line["outcome"] == "done":
                if line["role"] == "passive":
                    served[line["peer"], end.node_id, line["seq"]] += 1
                elif "crossing" not in line["reason"]:  # the peer's offer became the average, and is its to count
                    committed[end.node_id, line["peer"], line["seq"]] += 1
    miss = float((states.sum(0) - expected).abs().max())
    return Account(ends, miss, 1e-5 * N * float(states.abs().max()), committed, served)


def check(books: Account, nodes: list[NodeProcess]) -> None:
    """The sum is kept, each average has two halves, nothing is left open, and the mean model is that of the ends."""
    assert books.miss <= books.bound
    assert books.committed == books.served, "an average that one end alone has done"
    mean = torch.stack([end.state for end in books.ends]).double().mean(0)
    for node, end in zip(nodes, books.ends, strict=True):
        assert end.settlement["records"] == []
        assert end.settlement["doubts"] == []
        torch.testing.assert_close(mean_model(node)["x"].double(), mean, rtol=0, atol=books.bound)


# --- the tests ------------------------------------------------------------------------------------------------------


def cutting(seed: int) -> Shears:
    """At any message, and at each of those that decide at least once."""
    return Shears(seed, chance=0.02, elsewhere=0.001, surely=dict.fromkeys(DECIDING, 1))


@pytest.mark.parametrize("memory", [False, True], ids=["on the wire", "in memory"])
async def test_the_sum_is_kept_over_500_averages_with_cuts_in_every_message_that_decides(
    memory: bool, tmp_path: Path
) -> None:
    shears = cutting(1)
    async with drifting(tmp_path, shears, rounds=360, seed=1, share_memory=memory) as it:
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
