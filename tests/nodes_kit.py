"""What the tests of whole nodes share: real processes on loopback, waiting for what they do, reading what they say."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shoal.demo.fleet import Fleet, NodeProcess
from shoal.demo.fleet import start as start_process

T = TypeVar("T")

PATIENCE_S = 100.0
"""How long anything is waited for: as long as a test may take, for the machine may be busy."""
GATED = f"{Path(__file__).parent / 'gated_task.py'}:Gated"


class Shoal:
    """Nodes of one shoal, with `common` settings. Each is given one address: that of the first node that runs. Vectors
    travel, unless that is asked for otherwise: what is tested is for machines apart."""

    def __init__(self, folder: Path, **common: Any) -> None:
        self.folder = folder
        self.common = {
            "shoal": f"test-{secrets.token_hex(4)}",
            "task": "quadratic",
            "partition": "iid",
            "discovery": "static",
            "device": "cpu",
            "share_memory": False,
            "log": "human",
            **common,
        }
        self.nodes: list[NodeProcess] = []
        self.coordinator: NodeProcess | None = None

    def start(self, name: str, entry: tuple[str, ...] = ("-m", "shoal"), **settings: Any) -> NodeProcess:
        """One more node; its settings overrule the common ones. It is told of the coordinator, if there is one, else of
        the first node that runs."""
        running = [node for node in self.nodes if node.process.poll() is None]
        if "static" in self.common["discovery"] and (self.coordinator is not None or running):
            known = self.coordinator or running[0]
            facts = self.until(known.facts, f"{known.name} listens")
            settings = {"coordinator" if self.coordinator else "peers": facts["address"], **settings}
        (node,) = Fleet(self.folder, [{"name": name, **self.common, **settings}], entry=entry).nodes
        self.nodes.append(node)
        return node

    def coordinate(self, **settings: Any) -> NodeProcess:
        """A coordinator for the nodes that are started afterwards, or another life of it."""
        common = {key: self.common[key] for key in ("shoal", "discovery", "log")}
        self.coordinator = start_process(self.folder, {"name": "coordinator", **common, **settings}, verb="coordinator")
        return self.coordinator

    def start_all(self, count: int, **settings: Any) -> list[NodeProcess]:
        """node-1, node-2, ... which begin together, each with its part of the data."""
        together = {"min_nodes": count, **settings}
        return [self.start(f"node-{k + 1}", shard=f"{k}/{count}", **together) for k in range(count)]

    def until(self, condition: Callable[[], T | None], what: str) -> T:
        """What `condition` gives as soon as it is true."""
        end = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            if time.monotonic() > end:
                pytest.fail(f"waited {PATIENCE_S:.0f} s in vain: {what}")
            time.sleep(0.02)
        return value

    def until_logged(self, words: str, *nodes: NodeProcess) -> None:
        """Until each has written that."""
        for node in nodes:
            self.until(lambda node=node: words in log(node), f"{node.name} says {words!r}")

    def until_step(self, step: int, *nodes: NodeProcess) -> None:
        """Until each has come so far."""
        for node in nodes:
            self.until(lambda node=node: own(node).get("step", 0) >= step, f"{node.name} takes {step} steps")

    def codes(self, *nodes: NodeProcess) -> list[int]:
        """Exit codes of these nodes (default all), once they have ended."""
        return [self.until(lambda n=n: _code(n), f"{n.name} ends")[0] for n in nodes or self.nodes]

    def close(self) -> None:
        """Kills what runs still, trainers first: a daemon that hangs must not hide one."""
        for node in [*self.nodes, *([self.coordinator] if self.coordinator else [])]:
            if node.process.poll() is None:
                for pid in [*children(node.process.pid), node.process.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                node.process.wait()

    def logs(self) -> str:
        """Everything that the nodes wrote."""
        everybody = [*self.nodes, *([self.coordinator] if self.coordinator else [])]
        last = {n.folder: n for n in everybody}.values()  # of a node that was started again, its last life
        return "\n".join(f"--- {n.name}, exit code {n.process.poll()}\n{log(n)}" for n in last)


def _code(node: NodeProcess) -> tuple[int] | None:
    code = node.process.poll()
    return None if code is None else (code,)


@contextlib.contextmanager
def shoal_in(folder: Path, **common: Any) -> Iterator[Shoal]:
    """A shoal that is gone afterwards. Its logs are printed, which pytest shows when the test fails."""
    it = Shoal(folder, **common)
    try:
        yield it
    finally:
        it.close()
        print(it.logs())


# --- what a node says ---------------------------------------------------------------------------------------------


def log(node: NodeProcess) -> str:
    """All that it wrote to its terminal."""
    return (node.folder / "log").read_text(errors="replace")


def errors(node: NodeProcess) -> list[str]:
    """Its lines that begin with `error:`."""
    return [line for line in log(node).splitlines() if line.startswith("error:")]


def own(node: NodeProcess) -> Mapping[str, Any]:
    """Its own figures of /v1/status; empty while it does not answer."""
    return (node.status() or {}).get("node", {})


def states(node: NodeProcess) -> dict[str, str]:
    """Name -> state of every member that it knows."""
    return {m["name"]: m["state"] for m in (node.status() or {}).get("members", [])}


def losses(node: NodeProcess) -> list[float]:
    """Of its gradients, in order."""
    return [line["loss"] for line in node.history() if line["kind"] == "step"]


def events(node: NodeProcess, what: str) -> list[dict[str, Any]]:
    """Lines of its history about that."""
    return [line for line in node.history() if line["kind"] == "event" and line["what"] == what]


def mean_model(node: NodeProcess) -> dict[str, Tensor]:
    """The model that it ended with."""
    return load_file(node.folder / "model.safetensors")


def assert_one_model(nodes: Sequence[NodeProcess]) -> None:
    """All hold the same mean model, bit for bit, and agree on whose it is."""
    models = [mean_model(node) for node in nodes]
    for model in models[1:]:
        assert model.keys() == models[0].keys()
        assert all(torch.equal(model[key], models[0][key]) for key in model)
    members = {tuple((node.result() or {})["members"]) for node in nodes}
    assert len(members) == 1
    assert len(members.pop()) == len(nodes)


# --- processes ------------------------------------------------------------------------------------------------------


def trainer(node: NodeProcess) -> int:
    """Id of its trainer process."""
    (pid,) = children(node.process.pid)
    return pid


def children(pid: int) -> list[int]:
    """Ids of its child processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether that process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def shoal_command(folder: Path, *args: str, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Runs `shoal ARGS` in that folder; its exit code and all that it wrote."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    argv: Sequence[str] = [sys.executable, "-m", "shoal", *args]
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**clean, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout
