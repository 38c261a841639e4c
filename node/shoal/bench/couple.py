"""Nodes as shipped, two processes each, that average or train when they are told to."""

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal.bench.blank import task_file
from shoal.bench.obedient import SOCKET
from shoal.bench.processes import children, cpu_seconds, family
from shoal.certificates import credentials, encoding
from shoal.certificates.authority import Authority
from shoal.demo.fleet import Fleet, loopback_nodes

START_WITHIN_S = 60.0


class Couple:
    """Made by `couple`."""

    def __init__(self, fleet: Fleet, commands: dict[str, socket.socket]) -> None:
        self.fleet = fleet
        self._streams = {name: connection.makefile("rw") for name, connection in commands.items()}
        self.pids = [pid for node in fleet.nodes for pid in family(node.process.pid)]

    def average(self, name: str = "node-1") -> tuple[float, float]:
        """(wall seconds, CPU seconds of all processes) until that node and its first neighbour have applied their
        halves."""
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

    def steps(self, count: int, name: str = "node-1") -> float:
        """Seconds that so many steps of `ad_psgd` take that node."""
        self._streams[name].write(f"steps {count}\n")
        self._streams[name].flush()
        return float(self._streams[name].readline())

    def close(self) -> None:
        """Tell them nothing any more."""
        for stream in self._streams.values():
            with contextlib.suppress(OSError):  # one may have ended with something unread
                stream.close()

    def trainer(self, name: str) -> int:
        """Its process."""
        (node,) = (node for node in self.fleet.nodes if node.name == name)
        (pid,) = children(node.process.pid)
        return pid

    def logs(self) -> str:
        """The last lines of both."""
        return " | ".join(node.log_tail() for node in self.fleet.nodes)


@contextlib.contextmanager
def couple(elements: int, count: int = 2, certified: bool = False, **settings: Any) -> Iterator[Couple]:
    """Two nodes on loopback, or `count`, connected, with vectors of that size, over TLS if `certified`. Raises
    RuntimeError when they do not start."""
    with obedient(task_file(elements), count, certified, **settings) as nodes:
        yield nodes


@contextlib.contextmanager
def obedient(task: str, count: int, certified: bool = False, **settings: Any) -> Iterator[Couple]:
    """Likewise, with the class Blank of a task file with that text."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listening:
        folder = Path(place)
        (folder / "blank.py").write_text(task)
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
        nodes = loopback_nodes(count, **common)
        if certified:
            _certify(folder, nodes)
        with (
            contextlib.ExitStack() as stack,
            Fleet(folder, nodes, entry=("-m", "shoal.bench.obedient")) as fleet,
        ):
            commands = {}
            try:
                for _ in fleet.nodes:
                    name, connection = _connected(listening)
                    commands[name] = stack.enter_context(connection)
            except TimeoutError:
                logs = " | ".join(node.log_tail() for node in fleet.nodes)
                raise RuntimeError(f"{count} nodes did not start within {START_WITHIN_S:g} s: {logs}") from None
            told = Couple(fleet, commands)
            stack.callback(told.close)
            yield told
            for node in fleet.nodes:  # they have no end of their own
                node.process.kill()


def _certify(folder: Path, nodes: list[dict[str, Any]]) -> None:
    """A certificate for each, of an authority of their own."""
    authority = Authority.make(folder / "ca")
    for node in nodes:
        key, node["tls"] = encoding.new_key(), folder / f"tls-{node['name']}"
        member = {"shoal": node["shoal"], "role": "node", "name": node["name"]}
        certificate = authority.issue(encoding.request_of(key), **member)
        parts = {"authority": authority.pem, "certificate": certificate, "crl": authority.crl}
        credentials.store(node["tls"], key=encoding.pem_of(key), **parts)


def _connected(listening: socket.socket) -> tuple[str, socket.socket]:
    connection, _ = listening.accept()
    name = b""
    while not name.endswith(b"\n"):
        name += connection.recv(1)
    return name.decode().strip(), connection
