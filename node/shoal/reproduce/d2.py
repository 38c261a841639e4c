"""D2 (1803.07068): unlike data cost it nothing, where they cost D-PSGD a lot; and what it needs for that."""

from pathlib import Path

import numpy as np

from shoal.mixing import mixing, uniform
from shoal.reproduce import pictures
from shoal.reproduce.lab import Criterion, Finding, Lab, not_worse
from shoal.reproduce.runs import DIGITS, Outcome, Run, mean, row
from shoal.topology import Matrix, graph

SGD = "SGD on all the data"
METHODS = (SGD, "d-psgd", "d2")
CASES = {
    (5, "labels:2", 0.2): (750, 1.4),
    (5, "labels:2", 0.5): (750, 1.4),
    (10, "labels:1", 0.2): (400, 2.5),
    (10, "labels:1", 0.5): (800, 2.5),
    (5, "iid", 0.2): (750, None),
}
"""(workers, partition, lr) -> (rounds, by how much at least D-PSGD's loss lies above SGD's)."""

Case = tuple[int, str, float]


def experiment(lab: Lab) -> Finding:
    """Train loss on a ring against SGD on all the data, from as many samples; and the controls."""
    cases = {case: CASES[case] for case in ([(5, "labels:2", 0.5)] if lab.quick else CASES)}
    found = lab.train({(case, method): _run(method, case) for case in cases for method in METHODS})
    criteria: list[Criterion] = []
    for case, (_, above) in cases.items():
        n, partition, lr = case
        where = f"n = {n}, {partition}, lr {lr}"
        sgd, gossip, ours = (mean(found[case, method], "loss") for method in METHODS)
        criteria.append(not_worse(f"D2's train loss / SGD's, {where}", ours, sgd, 0.1))
        if above is None:
            criteria.append(not_worse(f"D-PSGD's train loss / SGD's, {where}", gossip, sgd, 0.1))
        else:
            criteria.append(Criterion(f"D-PSGD's train loss / SGD's, {where}", gossip / sgd, "at least", above))
    return Finding(
        setting={
            **DIGITS,
            "topology": "ring (d2: made lazy)",
            "rounds": {str(case): rounds for case, (rounds, _) in cases.items()},
            "tuning": "none: the same lr for all, two of them",
        },
        rows=[
            row(outcomes, workers=n, partition=partition, lr=lr, method=method)
            for ((n, partition, lr), method), outcomes in found.items()
        ],
        criteria=[*criteria, *controls()],
        draw=lambda path: _draw(path, found),
    )


def _run(method: str, case: Case) -> Run:
    workers, partition, lr = case
    common = {**DIGITS, "lr": lr, "rounds": CASES[case][0]}
    if method == SGD:  # one worker, with all the data and as many samples a step as the others together
        alone = {"algorithm": "d-psgd", "partition": "iid", "batch": 16 * workers, "topology": "complete"}
        return Run(workers=1, settings={**common, **alone})
    return Run(workers=workers, settings={**common, "algorithm": method, "partition": partition, "topology": "ring"})


# --- controls: the recursion on losses |x - a_i|^2 / 2, with noise ------------------------------------------------


def controls() -> list[Criterion]:
    """Where it must fail: weights that it may not use, and a step size that falls, handled as the paper writes it."""
    cube = uniform(graph("hypercube", 8), 0.25)
    lazy = (np.eye(8) + cube) / 2
    broken, whole = (distances(W, np.full(50, 0.05), naive=True)[0] for W in (cube, lazy))
    ring = mixing(graph("ring", 5)).W
    falling, small = np.repeat([0.1, 0.01], 1000), np.full(2000, 0.01)
    drifted, ours = (distances(ring, falling, naive=naive)[1] for naive in (True, False))
    reference = distances(ring, small, naive=False)[1]
    return [
        Criterion("hypercube of 8, weights 1/4: distance between models", broken, "at least", 1e3),
        Criterion("the same made lazy: distance between models", whole, "at most", 1.0),
        Criterion(
            "lr falls, naive form: error of the mean / with the small lr alone", drifted / reference, "at least", 5
        ),
        Criterion("lr falls, our form: error of the mean / with the small lr alone", ours / reference, "at most", 1.2),
    ]


def distances(W: Matrix, sizes: Matrix, *, naive: bool) -> tuple[float, float]:
    """(of the models from their mean at the end, of the mean from the optimum over the last quarter), root mean
    square. sizes: (steps,), the step size of each. naive: the paper's recursion with the newest step size before both
    gradients; otherwise the correction in gradient units, as in `algorithms/d2.py`."""
    rng, targets = np.random.default_rng(0), np.random.default_rng(1).standard_normal((len(W), 4))
    x, h = np.zeros_like(targets), np.zeros_like(targets)
    before, before_g = x, h
    errors = []
    for step, lr in enumerate(sizes):
        g = x - targets + rng.standard_normal(x.shape)
        first = naive and step == 0
        y = x - lr * g if first else 2 * x - before - lr * (g - before_g) if naive else x - lr * (g - h)
        before, before_g, x = x, g, W @ y
        h += (x - y) / lr
        errors.append(np.mean((x - targets).mean(axis=0) ** 2))
    apart = float(np.mean((x - x.mean(axis=0)) ** 2) ** 0.5)
    return apart, float(np.mean(errors[-len(errors) // 4 :]) ** 0.5)


def _draw(path: Path, found: dict[tuple[Case, str], list[Outcome]]) -> None:
    cases = list(dict.fromkeys(case for case, _ in found))
    with pictures.picture(
        path, "On unlike data D2 ends where SGD on all the data does; D-PSGD does not (ring)"
    ) as axis:
        for k, method in enumerate(METHODS):
            places = [c + 0.27 * (k - 1) for c in range(len(cases))]
            losses = [mean(found[case, method], "loss") for case in cases]
            colour = pictures.colour(method)
            axis.bar(places, losses, 0.25, color=colour, label=pictures.title(method))
            for c, case in enumerate(cases):
                seeds = [o.loss for o in found[case, method]]
                axis.plot([places[c]] * len(seeds), seeds, "k.", ms=4)
        axis.set_xticks(range(len(cases)), [f"n = {n}\n{partition}\nlr {lr}" for n, partition, lr in cases])
        axis.set(yscale="log", ylabel="train loss of the mean model (dots: seeds)")
        axis.legend(fontsize=8)
