"""Other nodes that do not fit or send what cannot be: refused by name, with what is wrong, and the others unharmed."""

import asyncio
import contextlib
import math
from pathlib import Path

import pytest
import torch
from nodes_kit import GATED, Shoal, assert_one_model, errors, log, losses, mean_model, shoal_in
from puppet import Puppet, address_of, puppet, settings_of
from transport_kit import Got

from shoal import checkpoint
from shoal.demo.fleet import NodeProcess
from shoal.messages import Kind
from shoal.settings import Settings
from shoal.simulation import Scenario, population, simulate
from shoal.transport import frames
from shoal.v1 import node_pb2 as pb

pytestmark = pytest.mark.live

ANOTHER = """
import torch
from torch import nn
from shoal import Task

class Another(Task):
    def model(self): return nn.Linear(2, 2)
    def data(self, place): return place.split(torch.zeros(100, 2), torch.zeros(100).long())
"""

# --- peers that do not fit --------------------------------------------------------------------------------------------

NEXT_PROTOCOL = (
    "import sys; from shoal import hello; hello.PROTOCOL_VERSION = 5; from shoal.cli import main; sys.exit(main())"
)


def test_nodes_that_do_not_fit_are_refused_by_name_and_harm_nobody(tmp_path: Path) -> None:
    (tmp_path / "another.py").write_text(ANOTHER)
    (tmp_path / "gate").write_text("5")
    with shoal_in(tmp_path, task=GATED, data_dir=tmp_path, rounds=10, min_nodes=2) as shoal:
        pair = shoal.start_all(2)
        shoal.until_step(5, *pair)
        misfits = {
            "classes: node-1-": shoal.start("task", task=f"{tmp_path / 'another.py'}:Another"),
            "protocol 5": shoal.start("protocol", entry=("-c", NEXT_PROTOCOL)),
            "of shoal 'elsewhere'": shoal.start("elsewhere", shoal="elsewhere"),
            "lr: node-1-": shoal.start("run", lr=0.3),
        }
        for key, node in misfits.items():
            shoal.until_logged(f"refused {node.name}-", pair[0])
            shoal.until_logged("refuses: ", node)
            shoal.until_logged(key, node)
            (ours,) = (line for line in log(pair[0]).splitlines() if f"refused {node.name}-" in line)
            assert key in ours, "the other side names it, too"
            assert errors(node) == []
        (tmp_path / "gate").unlink()
        assert shoal.codes(*pair) == [0, 0]
        assert_one_model(pair)
        for node in misfits.values():
            node.process.terminate()
        assert shoal.codes(*misfits.values()) == [143] * 4
        assert not any(losses(node) for node in misfits.values())


# --- vectors that cannot be -------------------------------------------------------------------------------------------


def dtype_unknown(header: pb.Header) -> None:
    header.vector.dtype = 9  # type: ignore[assignment]


async def test_vectors_that_cannot_be_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages are answered with one bad vector after the other; then the node trains on as if alone."""
    run = {"rounds": 20, "lr": 0.05, "task": GATED}
    gate = Gate(tmp_path)
    with shoal_in(tmp_path, data_dir=tmp_path, **run) as shoal:
        node = shoal.start("node", min_nodes=2)
        async with puppet(settings_of(shoal, **run), min_nodes=2) as bad:
            await bad.meet(await address_of(shoal, node))
            whole = torch.zeros(bad.elements)

            bad.answer(await gate.offer(bad), Kind.ACCEPT, whole[1:])
            await said(
                shoal, node, f"vector from puppet-000000 has {4 * bad.elements - 4} bytes (19 elements), expected"
            )
            bad.answer(await gate.offer(bad), Kind.ACCEPT, whole, dtype_unknown)
            await said(shoal, node, "ACCEPT with a vector of unknown dtype 9; known: f32, f64, u8")
            with monkeypatch.context() as patched:
                patched.setattr(frames.Sum, "add", lambda *_: None)
                bad.answer(await gate.offer(bad), Kind.ACCEPT, whole + 1)
                await said(shoal, node, "vector from puppet-000000 has checksum ")
            for value in (math.nan, math.inf):
                bad.answer(await gate.offer(bad), Kind.ACCEPT, torch.full_like(whole, value))
                assert (await bad.messages.get()).header.reason == "your vector is not finite"
            await said(shoal, node, "vector from puppet-000000 holds NaN or Inf")
            bad.leave()
            gate.open()
            assert await asyncio.to_thread(shoal.codes) == [0]
        alone = Settings(**{**run, "rounds": 40, "partition": "iid"})  # type: ignore[arg-type]
        await asyncio.to_thread(assert_trained_alone, node, alone)


async def test_a_post_that_is_not_finite_ends_a_synchronous_run_by_name_with_a_checkpoint(tmp_path: Path) -> None:
    run = {"algorithm": "d2", "rounds": 20, "partition": "iid"}
    with shoal_in(tmp_path, **run) as shoal:
        node = shoal.start("node", min_nodes=2)
        async with puppet(settings_of(shoal, **run), min_nodes=2) as bad:
            await bad.meet(await address_of(shoal, node))
            whole = torch.zeros(bad.elements)
            bad.answer(await bad.next(Kind.POST), Kind.POST, whole)
            bad.answer(await bad.next(Kind.POST), Kind.POST, whole + math.nan)
            assert await asyncio.to_thread(shoal.codes) == [1]
        (line,) = errors(node)
        assert line == "error: vector from puppet-000000 in round 1 holds NaN or Inf: its model has diverged"
        assert checkpoint.read(node.folder / "checkpoint.safetensors").round == 1


class Gate:
    """Lets the node make one step after the other until it offers an average."""

    def __init__(self, folder: Path) -> None:
        self._file, self._steps = folder / "gate", 0
        self._file.write_text("0")

    async def offer(self, to: Puppet) -> Got:
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(to.next(Kind.OFFER), 0.5)
            self._steps += 1
            following = self._file.with_name("next")
            following.write_text(str(self._steps))
            following.replace(self._file)

    def open(self) -> None:
        self._file.unlink()


async def said(shoal: Shoal, node: NodeProcess, words: str) -> None:
    await asyncio.to_thread(shoal.until_logged, words, node)


def assert_trained_alone(node: NodeProcess, settings: Settings) -> None:
    learners, states = population(settings, 1)
    (expected,) = simulate(settings, Scenario(), learners, states).states
    torch.testing.assert_close(mean_model(node)["x"], expected, rtol=1e-5, atol=1e-5)
