"""What AD-PSGD's speed costs in learning: nothing much on equal data, a bias on unequal data and speeds (1710.06952).

The paper's table of accuracies is unverified; the bias is in its problem statement, min sum_i p_i f_i with p_i the
part of the updates that worker i makes.
"""

import statistics
from pathlib import Path

from shoal.reproduce import pictures
from shoal.reproduce.lab import Criterion, Finding, Lab, points_lost, within
from shoal.reproduce.runs import DIGITS, Outcome, Run, curve, mean, row
from shoal.simulation import Scenario

WORKERS = 10
LR = 0.2
LABELS = "labels:1"


def iid(lab: Lab) -> Finding:
    """At equal total gradients on equal parts, with one slow worker and without: the loss of all-reduce."""
    common = {**DIGITS, "partition": "iid", "lr": LR, "rounds": 300 if lab.quick else 700}
    runs = {
        "allreduce-sgd": Run(workers=WORKERS, settings={**common, "algorithm": "allreduce-sgd"}, points=10),
        **{f"ad-psgd, s = {s}": _asynchronous(common, ((0, float(s)),)) for s in ((10,) if lab.quick else (1, 10))},
    }
    found = lab.train(runs)
    full = found["allreduce-sgd"]
    criteria = []
    for name in list(found)[1:]:
        criteria.append(within(f"{name}: train loss", mean(found[name], "loss"), mean(full, "loss"), 0.15))
        criteria.append(points_lost(name, mean(found[name], "accuracy"), mean(full, "accuracy"), 1))
    return Finding(
        setting={**common, "workers": WORKERS, "tuning": f"none: lr = {LR} for both"},
        emulated=["one worker 10x slower (virtual time)"],
        rows=[row(outcomes, method=name) for name, outcomes in found.items()],
        criteria=criteria,
        draw=lambda path: _draw_iid(path, found),
    )


def bias(lab: Lab) -> Finding:
    """One label a worker, five of ten workers 10x slower: the mean model serves the fast ones' data first."""
    common = {**DIGITS, "partition": LABELS, "lr": LR, "rounds": 300 if lab.quick else 700}
    slow = tuple((k, 10.0) for k in range(WORKERS // 2))
    runs = {
        "ad-psgd, equal speeds": _asynchronous(common, ()),
        "ad-psgd, five 10x slower": _asynchronous(common, slow),
        "ad-psgd, five 10x slower, pairwise correction": _asynchronous({**common, "correction": "pairwise"}, slow),
        "allreduce-sgd": Run(workers=WORKERS, settings={**common, "algorithm": "allreduce-sgd"}),
    }
    found = lab.train(runs)
    ratios = {name: statistics.fmean(map(_slow_over_fast, outcomes)) for name, outcomes in found.items()}
    plain, uneven, corrected, _ = found
    losses = {name: mean(outcomes, "loss") for name, outcomes in found.items()}
    return Finding(
        setting={**common, "workers": WORKERS, "slow": "workers 0 to 4", "tuning": f"none: lr = {LR} for all"},
        emulated=["five of ten workers 10x slower (virtual time)"],
        rows=[row(outcomes, method=n, **{"slow / fast": ratios[n]}) for n, outcomes in found.items()],
        criteria=[
            Criterion("the bias is there: loss on slow workers' data / fast ones'", ratios[uneven], "at least", 1.5),
            Criterion("speed alone makes it: the same at equal speeds", ratios[plain], "at most", 1.5),
            Criterion(
                "pairwise correction: train loss / without it", losses[corrected] / losses[uneven], "at most", 1.0
            ),
        ],
        shown=[
            f"AD-PSGD's train loss is {losses[uneven]:.3g} with five slow workers and unequal data, against "
            f"{losses[plain]:.3g} at equal speeds and {losses['allreduce-sgd']:.3g} of all-reduce"
        ],
        draw=lambda path: _draw_bias(path, ratios, losses),
    )


def _asynchronous(common: dict[str, object], slow: tuple[tuple[int, float], ...]) -> Run:
    settings = {**common, "algorithm": "ad-psgd"}
    return Run(
        workers=WORKERS,
        settings=settings,
        scenario=Scenario(compute_s=0.01, jitter=0.2, vector_s=0.001, slow=slow),
        points=10,
    )


def _slow_over_fast(outcome: Outcome) -> float:
    half = WORKERS // 2
    return sum(outcome.own_losses[:half]) / sum(outcome.own_losses[half:])


def _draw_iid(path: Path, found: dict[str, list[Outcome]]) -> None:
    heading = f"Equal data: AD-PSGD learns as much from a gradient as all-reduce ({WORKERS} workers, digits)"
    with pictures.picture(path, heading) as axis:
        for name, outcomes in found.items():
            style = {"ls": "--"} if "= 10" in name else {}
            pictures.line(axis, name, curve(outcomes, "gradients"), curve(outcomes, "loss"), **style)
        axis.set(xlabel="gradients of all workers", ylabel="train loss of the mean model", yscale="log")
        axis.legend(fontsize=8)


def _draw_bias(path: Path, ratios: dict[str, float], losses: dict[str, float]) -> None:
    heading = "One label a worker, five of ten slow (emulated): AD-PSGD weighs data by speed"
    with pictures.picture(path, heading, columns=2) as (left, right):
        pictures.bars(left, ratios, what="loss on slow workers' data / on fast ones'")
        pictures.bars(right, losses, what="train loss of the mean model")
        right.set_yticklabels([])
