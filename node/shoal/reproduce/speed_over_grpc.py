"""AD-PSGD's headline with real processes: eight nodes on this machine, one of them slow, over zeroconf and gRPC."""

import tempfile
from pathlib import Path
from typing import Any

from shoal.demo.fleet import Fleet, NodeProcess, loopback_nodes
from shoal.errors import ShoalError
from shoal.reproduce import pictures
from shoal.reproduce.ad_psgd_speed import expected
from shoal.reproduce.lab import Criterion, Finding, Lab, within
from shoal.reproduce.runs import TINY

METHODS = ("allreduce-sgd", "ad-psgd")
NODES = 8
SLOWNESS = (1.0, 4.0, 10.0)
COMPUTE_S = 0.6
"""Slept beside each gradient: far above what eight trainers need of two cores."""
ROUNDS, GRADIENTS = 6, 160
LIMIT_S = 180.0

Rates = dict[tuple[str, float], float]


def experiment(lab: Lab, folder: Path) -> Finding:
    """Steps a second of all nodes, once each: how fast real processes are varies more between machines than here."""
    slowness = SLOWNESS[::2] if lab.quick else SLOWNESS
    states = Path(tempfile.mkdtemp(prefix="nodes-", dir=folder))
    rates = {(m, s): _rate(m, s, states / f"{m}-{s:g}") for m in METHODS for s in slowness}
    ratios = {s: rates["ad-psgd", s] / rates["allreduce-sgd", s] for s in slowness}
    last = slowness[-1]
    kept = rates["ad-psgd", last] / rates["ad-psgd", 1.0] / ((NODES - 1 + 1 / last) / NODES)
    return Finding(
        setting={"nodes": NODES, "a gradient": f"{COMPUTE_S} s", "runs": "one each, seed 0", "states": str(states)},
        emulated=[f"the time of a gradient: {COMPUTE_S} s of sleep, {last:g} times as long on the slow node"],
        rows=[
            {"method": m, "emulated: one node slower by": s, "steps a second": rate} for (m, s), rate in rates.items()
        ],
        criteria=[
            *(within(f"AD-PSGD / AllReduce, s = {s:g}", r, expected(NODES, s), 0.25) for s, r in ratios.items()),
            Criterion(f"AD-PSGD at s = {last:g}, of what the other nodes could do", kept, "at least", 0.9),
        ],
        draw=lambda path: _draw(path, rates, slowness),
    )


def _rate(method: str, slowness: float, folder: Path) -> float:
    length: dict[str, Any] = {"gradients": GRADIENTS} if method == "ad-psgd" else {"rounds": ROUNDS}
    common = {**TINY, **length, "algorithm": method, "eval_every": 0, "checkpoint_every": 0}
    specs = loopback_nodes(NODES, shoal=f"reproduce-{folder.parent.name}-{folder.name}", **common)
    for k, spec in enumerate(specs):
        spec["emulate_compute_s"] = COMPUTE_S * (slowness if k == 0 else 1.0)
    with Fleet(folder, specs) as fleet:
        codes = fleet.wait(LIMIT_S)
    for node, code in zip(fleet.nodes, codes, strict=True):
        if code != 0:
            how = f"ended with exit code {code}" if code is not None else f"was not done after {LIMIT_S:.0f} s"
            raise ShoalError(f"{node.name} {how}; its log ends:\n{node.log_tail()}")
    return sum(_steps_a_second(node) for node in fleet.nodes)


def _steps_a_second(node: NodeProcess) -> float:
    """From its first step to its last: how long processes take to start is no part of it."""
    times = [line["t"] for line in node.history() if line["kind"] == "step"]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


def _draw(path: Path, rates: Rates, slowness: tuple[float, ...]) -> None:
    heading = f"One of {NODES} node processes made slow by sleep (emulated), over gRPC on this machine"
    with pictures.picture(path, heading) as axis:
        for method in METHODS:
            pictures.line(axis, method, slowness, [rates[method, s] for s in slowness])
        bound = [rates["allreduce-sgd", s] * expected(NODES, s) for s in slowness]
        axis.plot(slowness, bound, "k:", lw=1, label=f"AllReduce x ({NODES - 1} s + 1) / {NODES}")
        axis.set(xscale="log", yscale="log", xlabel="slowness s of one node", ylabel="steps a second, all nodes")
        axis.legend(fontsize=8)
