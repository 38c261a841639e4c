"""Nodes whose daemon is as shipped and whose trainer has no torch and never says more than that it is ready.

python -m shoal.bench.quiet node ...       a node, like `python -m shoal node ...`
python -m shoal.bench.quiet FD FD          its trainer, started by the daemon
"""

import asyncio
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoal import child
from shoal.demo.fleet import Fleet, NodeProcess, loopback_nodes
from shoal.link import LEAST_SLOT, RECEIVE, TRANSMIT, Channel, Segment

START_WITHIN_S = 120.0
READY: dict[str, Any] = {
    "elements": 1,
    "element_bytes": 4,
    "slot_bytes": LEAST_SLOT,
    "task_document": {"name": "quiet"},
    "samples": 1,
    "histogram": [],
    "classes": [],
    "step": 0,
    "gradients": 0,
    "device": "cpu",
    "memory": None,
}
"""What a trainer says of a task with one parameter and one sample."""


async def trainer(control_fd: int, memory_fd: int) -> None:
    """Ready, and then silent until the daemon is gone or says stop."""
    channel = await Channel.open(socket.socket(fileno=control_fd))
    segment = Segment(memory_fd)
    segment.size(LEAST_SLOT, TRANSMIT + RECEIVE)
    channel.send("ready", **READY)
    while (packet := await channel.receive()) is not None:
        if packet.kind == "stop":
            channel.send("stopped", checkpoint="")


@contextmanager
def quiet_nodes(count: int, **settings: Any) -> Iterator[list[NodeProcess]]:
    """So many, each linked with each. Raises RuntimeError when they do not come that far."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        common = {"shoal": folder.name, "algorithm": "ad-psgd", **settings}
        with Fleet(folder, loopback_nodes(count, **common), entry=("-m", "shoal.bench.quiet")) as fleet:
            try:
                until = time.monotonic() + START_WITHIN_S
                for node in fleet.nodes:
                    while not _complete(node, count):
                        if time.monotonic() > until:
                            what = f"{node.name} of {count} is not linked with all after {START_WITHIN_S:g} s"
                            raise RuntimeError(f"{what}: {node.log_tail(1)}")
                        time.sleep(0.2)
                yield fleet.nodes
            finally:
                for node in fleet.nodes:
                    node.process.kill()


def _complete(node: NodeProcess, count: int) -> bool:
    view = (node.status() or {}).get("view")  # the first status comes a moment after the port
    return view is not None and len(view["members"]) == count


def main(arguments: list[str]) -> int:
    """Either process."""
    if len(arguments) == 2 and all(word.isdigit() for word in arguments):
        asyncio.run(trainer(*map(int, arguments)))
        return 0
    child.TRAINER = "shoal.bench.quiet"
    sys.argv = ["shoal", *arguments]
    runpy.run_module("shoal", run_name="__main__")  # which exits
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
