"""Two nodes as shipped, four processes, that average when they are told to."""

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoal.bench.blank import task_file
from shoal.bench.obedient import SOCKET
from shoal.bench.processes import children, cpu_seconds
from shoal.demo.fleet import Fleet, loopback_nodes

START_WITHIN_S = 60.0


class Couple:
    """Made by `couple`."""

    def __init__(self, fleet: Fleet, commands: dict[str, socket.socket]) -> None:
        self.fleet, self._commands = fleet, commands
        self._streams = {name: connection.makefile("rw") for name, connection in commands.items()}
        daemons = [node.process.pid for node in fleet.nodes]
        self.pids = [*daemons, *(child for pid in daemons for child in children(pid))]

    def average(self, name: str = "node-1") -> tuple[float, float]:
        """(wall seconds, CPU seconds of all four processes) until both have applied their halves."""
        stream = self._streams[name]
        cpu, began = cpu_seconds(self.pids), time.perf_counter()
        stream.write("average\n")
        stream.flush()
        outcome = stream.readline().strip()
        took = time.perf_counter() - began, cpu_seconds(self.pids) - cpu
        if outcome != "done":
            raise RuntimeError(f"the average ended {outcome or 'with its node'}, expected done: {self.logs()}")
        return took

    def work(self, seconds: float, name: str = "node-1") -> None:
        """Let that node compute for so long; `worked` waits for it."""
        self._streams[name].write(f"work {seconds}\n")
        self._streams[name].flush()

    def worked(self, name: str = "node-1") -> list[float]:
        """Seconds of each piece of work."""
        return [float(word) for word in self._streams[name].readline().split()]

    def trainer(self, name: str) -> int:
        """Its process."""
        (node,) = (node for node in self.fleet.nodes if node.name == name)
        (pid,) = children(node.process.pid)
        return pid

    def logs(self) -> str:
        """The last lines of both."""
        return " | ".join(node.log_tail() for node in self.fleet.nodes)


@contextmanager
def couple(elements: int, **settings: Any) -> Iterator[Couple]:
    """Two nodes on loopback, connected, with vectors of that size. Raises RuntimeError when they do not start."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listening:
        folder = Path(place)
        (folder / "blank.py").write_text(task_file(elements))
        listening.bind(str(folder / SOCKET))
        listening.listen()
        listening.settimeout(START_WITHIN_S)
        common = {
            "shoal": folder.name,
            "task": f"{folder / 'blank.py'}:Blank",
            "algorithm": "ad-psgd",
            "partition": "iid",
            "checkpoint_every": 0,
            "eval_every": 0,
            **settings,
        }
        with Fleet(folder, loopback_nodes(2, **common), entry=("-m", "shoal.bench.obedient")) as fleet:
            try:
                commands = dict(_connected(listening) for _ in fleet.nodes)
            except TimeoutError:
                logs = " | ".join(node.log_tail() for node in fleet.nodes)
                raise RuntimeError(f"two nodes did not start within {START_WITHIN_S:g} s: {logs}") from None
            yield Couple(fleet, commands)
            for node in fleet.nodes:  # they have no end of their own
                node.process.kill()


def _connected(listening: socket.socket) -> tuple[str, socket.socket]:
    connection, _ = listening.accept()
    name = b""
    while not name.endswith(b"\n"):
        name += connection.recv(1)
    return name.decode().strip(), connection
