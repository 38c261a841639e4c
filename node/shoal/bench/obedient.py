"""Nodes of the bench: daemon and trainer as shipped, but the trainer does what it is told to.

    python -m shoal.bench.obedient node ...       a node, like `python -m shoal node ...`
    python -m shoal.bench.obedient FD FD          its trainer, started by the daemon

It is told over a Unix socket in the folder above the node's state, one line a command:

    average       with the first neighbour; answers with the outcome when it has confirmed that its half is applied
    steps COUNT   of `ad_psgd` as shipped; answers with the seconds that they took
    work SECONDS  computes for so long where gradients are computed; answers with the seconds of each piece, in a line
"""

import asyncio
import runpy
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shoal import child
from shoal.algorithms.ad_psgd import ad_psgd
from shoal.algorithms.worker import Worker

if TYPE_CHECKING:  # the daemon imports no torch
    from shoal.runtime import Runtime

SOCKET = "bench.sock"


async def obey(me: Worker) -> None:
    """In place of `ad_psgd`."""
    from shoal.runtime import Runtime

    assert isinstance(me, Runtime)
    reader, writer = await asyncio.open_unix_connection(Path(me.settings.state_dir).parent / SOCKET)
    writer.write(f"{me.settings.name}\n".encode())
    while line := await reader.readline():
        command, _, argument = line.decode().strip().partition(" ")
        if command == "average":
            peer = me.neighbours[0]
            outcome = await me.average(peer)
            await me.pairing.settled([peer])
            answer = outcome.value
        elif command == "steps":
            answer = f"{await train(me, int(argument)):.6f}"
        else:
            answer = " ".join([f"{piece:.6f}" for piece in await work(me, float(argument))])
        writer.write(f"{answer}\n".encode())


async def train(me: "Runtime", count: int) -> float:
    """Seconds of so many steps, each with its gradient, and with an average where there is a neighbour."""
    budget = iter(range(count))
    vars(me)["more"] = lambda: next(budget, None) is not None  # `ad_psgd` asks before each step
    began = time.perf_counter()
    await ad_psgd(me)
    return time.perf_counter() - began


async def work(me: "Runtime", seconds: float) -> list[float]:
    """Pieces of some five milliseconds of matrix products, as a small model's gradients are."""
    import torch

    a = torch.randn(128, 128) / 16

    def piece() -> None:
        b = a
        for _ in range(60):
            b = (a @ b).tanh_()

    took: list[float] = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        await me.host.compute(piece)
        took.append(time.monotonic() - began)
    return took


def main(arguments: list[str]) -> int:
    """Either process."""
    if len(arguments) == 2 and all(word.isdigit() for word in arguments):
        from shoal.algorithms import BY_NAME
        from shoal.trainer import __main__ as trainer

        BY_NAME["ad-psgd"] = obey
        return trainer.run(*map(int, arguments))
    child.TRAINER = "shoal.bench.obedient"
    sys.argv = ["shoal", *arguments]
    runpy.run_module("shoal", run_name="__main__")  # which exits
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
