"""Several nodes, each on a host of its own (`netlab.py`), that can be stopped, killed and started again.

A node's folder outlives its processes: what it did is read from there, for its HTTP address is inside its host.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from netlab import Host, Lab, children, lab
from nodes_kit import Shoal

from shoal.demo.fleet import NodeProcess

PORT = 7450
CHECKPOINT = "checkpoint.safetensors"


class Hosted(NodeProcess):
    """One node, or the coordinator, over all its lives. `process` is what entered its host for it."""

    def __init__(self, name: str, folder: Path, host: Host, argv: Sequence[str]) -> None:
        self.name, self.folder, self.host, self._argv = name, folder, host, list(argv)
        self.lives, self._read, self._steps, self.finished = 0, 0, 0, False
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(name, folder, self._start())

    def _start(self) -> "subprocess.Popen[bytes]":
        self.lives += 1
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        with (self.folder / "log").open("ab") as log:
            return self.host.start(self._argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    def start_again(self) -> None:
        """Another life; it goes on from its checkpoint, if there is one. The last one must be over."""
        assert self.process.poll() is not None
        if (self.folder / CHECKPOINT).exists() and "--resume" not in self._argv:
            self._argv.append("--resume")
        self.process = self._start()

    @property
    def running(self) -> bool:
        """Whether its daemon has not ended."""
        return self.process.poll() is None

    def processes(self) -> list[int]:
        """Ids of its daemon and its trainer, as far as they run."""
        daemons = children(self.process.pid) if self.running else []
        found = []
        for daemon in daemons:
            with contextlib.suppress(OSError):
                found += [daemon, *children(daemon)]
        return found

    def signal(self, number: signal.Signals, *pids: int) -> None:
        """To these of its processes, by default to all; those that have ended are left out."""
        for pid in pids or self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number is signal.SIGCONT and self.running:
            self.process.send_signal(number)  # what entered the host stops with its daemon

    def end(self) -> None:
        """SIGKILL to its daemon, whose trainer follows by itself; returns when both are gone."""
        self.signal(signal.SIGKILL, *self.processes()[:1])
        self.signal(signal.SIGCONT)  # what is stopped cannot follow
        self.process.wait()

    def steps(self) -> int:
        """Steps of all its lives, those included that were lost and done again; as late as its history, a second."""
        path = self.folder / "history.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    self._steps += b'"kind": "step"' in line
                    self.finished = self.finished or b'"what": "finished"' in line
        return self._steps


class HostedShoal:
    """Nodes node-1, node-2, ... on the hosts of a lab, which know each other's addresses, and perhaps a coordinator on
    the last of its hosts."""

    def __init__(self, lab: Lab, folder: Path, nodes: int, *, coordinator: bool = False, **common: Any) -> None:
        self.lab, self.folder = lab, folder
        self.shoal = Shoal(folder)  # for its patience
        self._common = {"shoal": f"test-{secrets.token_hex(4)}", "discovery": "static", "insecure": True, **common}
        self.addresses = [f"{host.ip}:{PORT}" for host in lab.hosts]
        self.coordinator: Hosted | None = None
        if coordinator:
            known = {key: self._common[key] for key in ("shoal", "discovery", "insecure", "suspect_after_s")}
            at = {"listen": self.addresses[nodes], "log": "human"}
            self.coordinator = self._hosted("coordinator", nodes, "coordinator", **known, **at)
        self.nodes: list[Hosted] = []
        self.count = nodes

    def start_all(self, **settings: Any) -> list[Hosted]:
        """All nodes, which begin together, each with its part of the data."""
        self.nodes = [self.start(k, **settings) for k in range(self.count)]
        return self.nodes

    def start(self, k: int, **settings: Any) -> Hosted:
        """The node of host k."""
        known = {"peers": ",".join(a for a in self.addresses[: self.count] if a != self.addresses[k])}
        if self.coordinator is not None:
            known = {"coordinator": self.addresses[self.count]}
        common = {"device": "cpu", "log": "human", "share_memory": False, "min_nodes": self.count, **self._common}
        place = {"listen": self.addresses[k], "shard": f"{k}/{self.count}", **known}
        return self._hosted(f"node-{k + 1}", k, "node", **{**common, **place, **settings})

    def _hosted(self, name: str, k: int, verb: str, **settings: Any) -> Hosted:
        argv = [sys.executable, "-m", "shoal", verb, "--name", name, "--state-dir", str(self.folder / name)]
        for key, value in settings.items():
            flag = "--" + key.replace("_", "-")
            argv += [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, str(value)]
        return Hosted(name, self.folder / name, self.lab.hosts[k], argv)

    @property
    def everybody(self) -> list[Hosted]:
        """Nodes and coordinator."""
        return [*self.nodes, *([self.coordinator] if self.coordinator else [])]

    def until_end(self, longest_s: float) -> None:
        """Until every node has ended with exit code 0."""
        end = time.monotonic() + longest_s
        for node in self.nodes:
            try:
                code = node.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{node.name} has not ended after {longest_s:.0f} s: {node.log_tail(2)}") from None
            assert code == 0, f"{node.name} ended with exit code {code}: {node.log_tail(3)}"

    def close(self) -> None:
        """What runs still ends with its host; it is waited for here."""
        for each in self.everybody:
            each.signal(signal.SIGKILL)
            if each.running:
                each.process.kill()
            each.process.wait()

    def logs(self) -> str:
        """The last lines of everybody's log."""
        return "\n".join(f"--- {each.name}, life {each.lives}\n{each.log_tail(12)}" for each in self.everybody)


@contextlib.contextmanager
def hosted(folder: Path, nodes: int, *, coordinator: bool = False, **common: Any) -> Iterator[HostedShoal]:
    """A shoal on hosts, not started yet, that is gone afterwards; its logs are printed."""
    names = [f"node-{k + 1}" for k in range(nodes)] + (["coordinator"] if coordinator else [])
    with lab(names) as made:
        it = HostedShoal(made, folder, nodes, coordinator=coordinator, **common)
        try:
            yield it
        finally:
            print(it.logs())
            it.close()


def accuracy(node: NodeProcess) -> float:
    """Held-out accuracy of the mean model that a node ended with."""
    found = json.loads((node.folder / "result.json").read_text())["accuracy"]
    assert isinstance(found, float)
    return found
