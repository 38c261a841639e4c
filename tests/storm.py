"""Random faults on a running shoal, from a seed, and what must hold whatever they are.

An episode is one or two faults at once, on nodes of their own, for a few seconds; then all is well again, and every
node that runs must make a step within `HEAL_S`. Nodes that were killed are started again, as a service manager would.
"""

import dataclasses
import random
import signal
import time
from collections.abc import Callable
from typing import Any

from hosted import Hosted, HostedShoal

HEAL_S = 10.0
"""After a fault is over: seconds within which a node that has lived through it makes its next step."""
START_S = 60.0
"""The same for a process that was started again: it has to load torch and its data, on a busy machine."""
SUSPECT_AFTER_S = 2.0
LONGEST_S = 6.0
"""Of a fault: three times the silence after which a member counts as gone."""
LOOK_S = 0.1

Undo = Callable[[], None]
Fault = Callable[["Storm", int, random.Random], Undo]
"""Befalls node k, at once; what it returns ends it."""


@dataclasses.dataclass
class Storm:
    """Faults on the nodes of a shoal, and a record of them."""

    shoal: HostedShoal
    seed: int
    faults: dict[str, Fault]
    befell: dict[str, int] = dataclasses.field(default_factory=dict)
    healed_s: list[float] = dataclasses.field(default_factory=list)  # from the end of a fault to a node's next step
    started_s: list[float] = dataclasses.field(default_factory=list)  # from a node's start to its next step
    again: set[str] = dataclasses.field(default_factory=set)  # names of those that this episode has killed

    def blow(self, seconds: float) -> None:
        """Episodes for so long. Raises AssertionError where a promise is broken."""
        rng, until = random.Random(self.seed), time.monotonic() + seconds
        while time.monotonic() < until:
            self.episode(rng)

    def episode(self, rng: random.Random) -> None:
        """One; it ends when everybody has made a step again."""
        self.again = set()
        nodes = rng.sample(range(len(self.shoal.nodes)), 2 if rng.random() < 0.3 else 1)
        chosen = [(k, rng.choice(sorted(self.faults))) for k in nodes]
        what = " and ".join(f"{name} on {self.shoal.nodes[k].name}" for k, name in chosen)
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
        ends = [self.faults[name](self, k, rng) for k, name in chosen]
        for _, name in chosen:
            self.befell[name] = self.befell.get(name, 0) + 1
        time.sleep(rng.uniform(0.5, LONGEST_S))
        for end in ends:
            end()
        self.until_all_step(what)

    def until_all_step(self, after: str) -> None:
        """Every node makes a step, within its time from now."""
        began = time.monotonic()
        before = {node.name: node.steps() for node in self.shoal.nodes}
        while before:
            for node in self.shoal.nodes:
                assert node.running, f"after {after}: {node.name} has ended by itself: {node.log_tail(2)}"
                took, fresh = time.monotonic() - began, node.name in self.again
                if node.name not in before:
                    continue
                if node.finished or node.steps() > before[node.name]:
                    (self.started_s if fresh else self.healed_s).append(took)
                    del before[node.name]
                else:
                    bound = START_S if fresh or self.again_coordinator else HEAL_S
                    assert took < bound, f"{took:.0f} s after {after}: {node.name} makes no step: {node.log_tail(2)}"
            time.sleep(LOOK_S)

    @property
    def again_coordinator(self) -> bool:
        """Whether everybody waits for a coordinator that was started again."""
        return "coordinator" in self.again

    def start_again(self, node: Hosted) -> None:
        """One that this storm has killed."""
        node.process.wait()
        node.start_again()
        self.again.add(node.name)

    def told(self) -> str:
        """What happened, in a line for each."""
        healed, started = (max(times, default=0.0) for times in (self.healed_s, self.started_s))
        return (
            f"seed {self.seed}: {sum(self.befell.values())} faults {dict(sorted(self.befell.items()))}\n"
            f"next step at most {healed:.1f} s after a fault ({len(self.healed_s)} times), "
            f"{started:.1f} s after a start ({len(self.started_s)} times)"
        )


# --- faults ---------------------------------------------------------------------------------------------------------


def kill_daemon(storm: Storm, k: int, rng: random.Random) -> Undo:
    node = storm.shoal.nodes[k]
    node.end()
    return lambda: storm.start_again(node)


def kill_trainer(storm: Storm, k: int, rng: random.Random) -> Undo:
    """Its daemon starts again with another, unless too many have died."""
    node = storm.shoal.nodes[k]
    dead = node.processes()[1:]
    node.signal(signal.SIGKILL, *dead)

    def followed() -> None:
        storm.shoal.shoal.until(lambda: not node.running or set(node.processes()[1:]) - {*dead}, "another follows")
        if node.running:
            node.lives += 1
            storm.again.add(node.name)
        else:
            storm.start_again(node)

    return followed


def stop(which: slice) -> Fault:
    """SIGSTOP to daemon, trainer, or both."""

    def fault(storm: Storm, k: int, rng: random.Random) -> Undo:
        node = storm.shoal.nodes[k]
        node.signal(signal.SIGSTOP, *node.processes()[which])
        return lambda: node.signal(signal.SIGCONT)

    return fault


def cut_off(storm: Storm, k: int, rng: random.Random) -> Undo:
    """From everybody."""
    return _cut(storm, [(k, j) for j in range(len(storm.shoal.lab.hosts)) if j != k])


def part(storm: Storm, k: int, rng: random.Random) -> Undo:
    """Two halves; a coordinator is with the lower ones."""
    count = len(storm.shoal.lab.hosts)
    half = {*rng.sample(range(storm.shoal.count), storm.shoal.count // 2)}
    return _cut(storm, [(a, b) for a in half for b in range(count) if b not in half])


def cut_edge(storm: Storm, k: int, rng: random.Random) -> Undo:
    """To one other."""
    return _cut(storm, [(k, rng.choice([j for j in range(len(storm.shoal.lab.hosts)) if j != k]))])


def block_one_way(storm: Storm, k: int, rng: random.Random) -> Undo:
    """What it sends arrives nowhere, or at one other not; it hears all."""
    others = [j for j in range(len(storm.shoal.lab.hosts)) if j != k]
    pairs = [(k, j) for j in (others if rng.random() < 0.5 else [rng.choice(others)])]
    for pair in pairs:
        storm.shoal.lab.block(*pair)
    return lambda: storm.shoal.lab.mend(pairs)


def _cut(storm: Storm, edges: list[tuple[int, int]]) -> Undo:
    for one, other in edges:
        storm.shoal.lab.cut(one, other)
    return lambda: storm.shoal.lab.mend([pair for one, other in edges for pair in ((one, other), (other, one))])


def lose_frames(storm: Storm, k: int, rng: random.Random) -> Undo:
    """1 to 2 %, everybody's."""
    storm.shoal.lab.loss(rng.uniform(1, 2))
    return lambda: storm.shoal.lab.loss(0)


def thin_link(storm: Storm, k: int, rng: random.Random) -> Undo:
    """2 Mbit/s each way."""
    storm.shoal.lab.limit(k, "2mbit")
    return lambda: storm.shoal.lab.limit(k)


def kill_coordinator(storm: Storm, k: int, rng: random.Random) -> Undo:
    coordinator = storm.shoal.coordinator
    assert coordinator is not None
    if coordinator.name in storm.again or not coordinator.running:
        return lambda: None  # it befell already
    coordinator.end()

    def again() -> None:
        if not coordinator.running:
            storm.start_again(coordinator)

    return again


def stop_coordinator(storm: Storm, k: int, rng: random.Random) -> Undo:
    coordinator = storm.shoal.coordinator
    assert coordinator is not None
    coordinator.signal(signal.SIGSTOP)
    return lambda: coordinator.signal(signal.SIGCONT)


SPARING: dict[str, Fault] = {
    "stop node": stop(slice(None)),
    "stop daemon": stop(slice(0, 1)),
    "stop trainer": stop(slice(1, None)),
    "cut off": cut_off,
    "partition": part,
    "cut edge": cut_edge,
    "one way": block_one_way,
    "loss": lose_frames,
    "thin link": thin_link,
}
"""They kill no process."""
KILLING: dict[str, Fault] = {"kill daemon": kill_daemon, "kill trainer": kill_trainer}
COORDINATOR: dict[str, Fault] = {"kill coordinator": kill_coordinator, "stop coordinator": stop_coordinator}


# --- rows of the table ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One algorithm in the storm."""

    settings: dict[str, Any]
    coordinator: bool = False

    @property
    def faults(self) -> dict[str, Fault]:
        """All that may befall it."""
        return {**SPARING, **KILLING, **(COORDINATOR if self.coordinator else {})}


SKEWED = {"partition": "labels:3", "lr": 0.5, "schedule": "linear"}
EVEN = {"partition": "iid", "schedule": "linear"}  # a vote is a median of signs: see docs/algorithms.md

ROWS = {
    "ad-psgd": Row({"algorithm": "ad-psgd", **SKEWED}),
    "signum over a coordinator": Row({"algorithm": "signum", **EVEN}, coordinator=True),
    "d2": Row({"algorithm": "d2", **SKEWED}),
    "signum among peers": Row({"algorithm": "signum", "over": "peers", **EVEN}),
}
