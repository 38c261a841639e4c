"""All algorithms in one picture: loss against bytes sent, and against time, on equal and on unequal data."""

import math
from pathlib import Path
from typing import Any

from shoal.reproduce import pictures
from shoal.reproduce.finite_sums import passes
from shoal.reproduce.lab import Criterion, Finding, Lab, tuned
from shoal.reproduce.runs import DIGITS, Outcome, Run, curve, mean, row
from shoal.simulation import Scenario
from shoal.traits import ALGORITHMS

WORKERS, ROUNDS = 5, 400
PARTITIONS = ("iid", "labels:2")
GRID = (0.1, 0.3, 0.9)
VOTE_GRID = (0.001, 0.003, 0.009)
PORT_BYTES_PER_S = 1.25e6
"""10 Mbit/s, each way, at each worker and at the coordinator."""
PARAMETERS, ROWS = 4810, 1437
"""Of the digits' perceptron; training samples."""
POINTS = 20
TARGET, LEAST = 0.3, 7.5
SMALL = ("signsgd", "signum", "ef-signsgd", "ad-psgd sign", "d2 sign", "d-psgd sign")
"""Methods that send few bits."""

Found = dict[tuple[str, str], list[Outcome]]


def methods(quick: bool) -> list[str]:
    """All algorithms, and those with a codec once more."""
    if quick:
        return ["allreduce-sgd", "ef-signsgd", "d2 sign"]
    return [*ALGORITHMS, *(f"{name} sign" for name, traits in ALGORITHMS.items() if traits.packs)]


def experiment(lab: Lab) -> Finding:
    """Equal budget of single gradients; the step size tuned on a grid of three with the first seed."""
    chosen, partitions = methods(lab.quick), PARTITIONS[1:] if lab.quick else PARTITIONS
    best: dict[tuple[str, str], float] = {(p, m): _grid(m)[1] for p in partitions for m in chosen}
    if not lab.quick:
        runs = {(p, m, lr): _run(m, p, lr) for p in partitions for m in chosen for lr in _grid(m)}
        grid = lab.train(runs, seeds=lab.seeds[:1])
        for p, m in best:
            best[p, m] = tuned({lr: outcomes for (q, n, lr), outcomes in grid.items() if (q, n) == (p, m)})
    rounds = ROUNDS // 2 if lab.quick else ROUNDS
    found: Found = lab.train({(p, m): _run(m, p, lr, rounds) for (p, m), lr in best.items()})
    needed = {key: bytes_to(outcomes, TARGET) for key, outcomes in found.items()}
    return Finding(
        setting={
            **DIGITS,
            "workers": WORKERS,
            "budget": f"{rounds} rounds x {WORKERS} workers x 16 samples' gradients, for every method",
            "network": f"{PORT_BYTES_PER_S * 8 / 1e6:g} Mbit/s each way at each port; a gradient takes 0.01 s",
            "tuning": {"lr": list(GRID), "lr where signs are voted on": list(VOTE_GRID), "by": "train loss, seed 0"},
        },
        emulated=["the network and the time of a gradient (virtual time)"],
        rows=[
            row(found[p, m], partition=p, method=m, lr=lr, **{f"MB to loss {TARGET}": needed[p, m] / 1e6})
            for (p, m), lr in best.items()
        ],
        criteria=[_criterion(p, needed) for p in partitions],
        shown=[
            *(f"{p}: on the front of loss and bytes: {', '.join(front(p, found))}" for p in partitions),
            *lost_in_packing(found),
        ],
        draw=lambda path: _draw(path, partitions, found),
    )


def _grid(method: str) -> tuple[float, ...]:
    return VOTE_GRID if ALGORITHMS[pictures.method(method)].votes else GRID


def _run(method: str, partition: str, lr: float, rounds: int = ROUNDS) -> Run:
    name = pictures.method(method)
    traits = ALGORITHMS[name]
    settings: dict[str, Any] = {"codec": "sign"} if method != name else {}
    if traits.finite_sum:  # a round is an epoch there
        b = WORKERS * DIGITS["batch"]  # type: ignore[operator]
        rounds = max(1, round(rounds * b / (ROWS * passes(ROWS, b))))
    if traits.mixes:
        settings["topology"] = "ring"
    number_bytes = 8 if traits.finite_sum else 4
    return Run(
        workers=WORKERS,
        settings={**DIGITS, "algorithm": name, "partition": partition, "lr": lr, "rounds": rounds, **settings},
        scenario=Scenario(jitter=0.1, port_s=PARAMETERS * number_bytes / PORT_BYTES_PER_S),
        points=POINTS,
    )


def bytes_to(outcomes: list[Outcome], target: float) -> float:
    """Bytes that all sent until the mean curve is at the target; infinite if it never is."""
    pairs = zip(curve(outcomes, "sent_bytes"), curve(outcomes, "loss"), strict=True)
    return next((sent for sent, loss in pairs if loss <= target), math.inf)


def _criterion(partition: str, needed: dict[tuple[str, str], float]) -> Criterion:
    least = {m: sent for (p, m), sent in needed.items() if p == partition and m in SMALL}
    best = min(least, key=lambda m: least[m])
    what = f"{partition}: bytes to train loss {TARGET}: AllReduce-SGD / {pictures.title(best)}"
    return Criterion(what, needed[partition, "allreduce-sgd"] / least[best], "at least", LEAST)


def front(partition: str, found: Found) -> list[str]:
    """Methods of which no other one has both a smaller loss and fewer bytes at the end."""
    ends = {m: (mean(o, "loss"), mean(o, "sent_bytes")) for (p, m), o in found.items() if p == partition}
    return [
        pictures.title(m)
        for m, (loss, sent) in ends.items()
        if not any(other[0] < loss and other[1] < sent for other in ends.values())
    ]


def lost_in_packing(found: Found) -> list[str]:
    """Packed runs that ended more than a tenth above the same method's in full, each with its own best step size."""
    lost = []
    for (partition, method), outcomes in found.items():
        full = found.get((partition, pictures.method(method)))
        if method.endswith(" sign") and full and mean(outcomes, "loss") > 1.1 * mean(full, "loss"):
            seeds = ", ".join(f"{o.loss:.3g}" for o in outcomes)
            what = f"{pictures.title(method)} ends at {mean(outcomes, 'loss'):.3g} (seeds: {seeds})"
            lost.append(f"{partition}: {what}, in full at {mean(full, 'loss'):.3g}")
    return lost


def _draw(path: Path, partitions: tuple[str, ...], found: Found) -> None:
    heading = (
        f"Loss against bytes and against time: {WORKERS} workers, digits, equal budget of gradients, "
        f"{PORT_BYTES_PER_S * 8 / 1e6:g} Mbit/s ports (virtual time)"
    )
    with pictures.picture(path, heading, columns=2, rows=len(partitions)) as axes:
        for line, partition in zip(axes.reshape(-1, 2), partitions, strict=True):
            for axis, figure, scale in zip(line, ("sent_bytes", "t"), (1e6, 1.0), strict=True):
                for (p, method), outcomes in found.items():
                    if p == partition and not any(o.diverged for o in outcomes):
                        xs = [x / scale for x in curve(outcomes, figure)][1:]
                        pictures.line(axis, method, xs, curve(outcomes, "loss")[1:], ms=3, lw=1.2)
                axis.set(xscale="log", yscale="log", ylabel=f"train loss of the mean model, {partition}")
            line[0].set_xlabel("MB of vectors sent by all")
            line[1].set_xlabel("virtual seconds")
        first = axes.reshape(-1, 2)[0, 0]
        first.figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
