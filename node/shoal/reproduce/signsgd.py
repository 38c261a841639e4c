"""signSGD and Signum with majority vote (1802.04434, 1810.05291), error feedback (1901.09847): what one bit can do."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.reproduce import pictures
from shoal.reproduce.lab import Criterion, Finding, Lab, points_lost, tuned
from shoal.reproduce.runs import DIGITS, Outcome, Run, mean, row
from shoal.simulation import Scenario

VOTE, MEAN = "signum", "allreduce-sgd"
GRID = {VOTE: (0.001, 0.003, 0.009, 0.027, 0.081), MEAN: (0.03, 0.09, 0.27, 0.81, 2.43)}
"""Five step sizes a factor of three apart for either, around its usual one."""
VOTERS = (1, 3, 7, 15)
SKEWED_LR = {VOTE: 0.003, MEAN: 0.5, "ef-signsgd": 0.5}
ROUNDS = 600

Found = Mapping[Any, list[Outcome]]


def experiment(lab: Lab) -> Finding:
    """Accuracy against full precision, more voters, attackers, unlike data."""
    runs = _core() if lab.quick else {**_grid(), **_voters(), **_attacks(), **_skew()}
    found = lab.train(runs)
    criteria, shown = _of_shouting(found)
    if not lab.quick:
        criteria = [*_of_grid(found), *_of_voters(found), *_of_flippers(found), *criteria, *_of_skew(found)]
        apart = [100 * mean(found["disjoint parts", f], "accuracy") for f in (0, 3)]
        shown.append(
            f"where seven workers hold disjoint parts of the data, 3 flippers cost {apart[0] - apart[1]:.1f} points: "
            "the theorem's workers draw from one distribution"
        )
    return Finding(
        setting={
            **DIGITS,
            "rounds": ROUNDS,
            "schedule": "linear to 0",
            "tuning": {name: list(grid) for name, grid in GRID.items()},
            "data": "all 7 draw from one set (partition shared), but for the rows that say otherwise",
        },
        emulated=["attackers: they multiply their gradients by a factor"],
        rows=[row(outcomes, run=title(*key)) for key, outcomes in found.items()],
        criteria=criteria,
        shown=shown,
        draw=lambda path: _draw(path, found),
    )


def title(what: str, which: Any) -> str:
    """A run's name, the algorithm first."""
    match what:
        case "voters":
            return f"signsgd, {which} voters, batch 4"
        case "flippers":
            return f"{VOTE}, {which} of 7 flip"
        case "disjoint parts":
            return f"{VOTE}, {which} of 7 flip, disjoint parts"
        case "one shouts":
            return f"{which}, one sends -10 g"
        case "labels:2":
            return f"{which}, labels:2"
    return f"{what}, lr {which}"


def _run(algorithm: str, workers: int = 7, *, attackers: int = 0, factor: float = -1.0, **settings: Any) -> Run:
    momentum = {"momentum": 0.9} if algorithm in (VOTE, MEAN) else {}
    common = {**DIGITS, "rounds": ROUNDS, "schedule": "linear", "partition": "shared", "lr": 0.003, **momentum}
    return Run(
        workers=workers,
        settings={**common, "algorithm": algorithm, **settings},
        scenario=Scenario(attackers=tuple((k, factor) for k in range(attackers))),
    )


def _grid() -> dict[Any, Run]:
    return {(name, lr): _run(name, lr=lr) for name, grid in GRID.items() for lr in grid}


def _of_grid(found: Found) -> list[Criterion]:
    best = {name: tuned({lr: found[name, lr] for lr in grid}) for name, grid in GRID.items()}
    vote, full = (mean(found[name, best[name]], "accuracy") for name in (VOTE, MEAN))
    fewer = mean(found[MEAN, best[MEAN]], "sent_bytes") / mean(found[VOTE, best[VOTE]], "sent_bytes")
    return [
        points_lost(f"vote (lr {best[VOTE]}) against momentum SGD (lr {best[MEAN]})", vote, full, 1),
        Criterion("bytes of vectors: full precision / vote", fewer, "at least", 30),
    ]


def _voters() -> dict[Any, Run]:
    return {("voters", m): _run("signsgd", m, batch=4, rounds=300) for m in VOTERS}


def _of_voters(found: Found) -> list[Criterion]:
    losses = [mean(found["voters", m], "loss") for m in VOTERS]
    return [
        Criterion(f"train loss of {more} voters / of {less}", fewer[1] / fewer[0], "at most", 0.999)
        for (less, more), fewer in zip(itertools.pairwise(VOTERS), itertools.pairwise(losses), strict=True)
    ]


def _attacks() -> dict[Any, Run]:
    return {
        **{("flippers", f): _run(VOTE, attackers=f) for f in (0, 3, 4)},
        ("one shouts", VOTE): _run(VOTE, attackers=1, factor=-10.0),
        ("one shouts", MEAN): _run(MEAN, attackers=1, factor=-10.0, lr=0.09),
        **{("disjoint parts", f): _run(VOTE, attackers=f, partition="iid") for f in (0, 3)},
    }


def _core() -> dict[Any, Run]:
    """What `--quick` runs, and shorter."""
    wanted = [("flippers", 0), ("one shouts", VOTE), ("one shouts", MEAN)]
    runs = {key: run for key, run in _attacks().items() if key in wanted}
    return {key: dataclasses.replace(run, settings={**run.settings, "rounds": 250}) for key, run in runs.items()}


def _of_flippers(found: Found) -> list[Criterion]:
    clean, three, four = (mean(found["flippers", f], "accuracy") for f in (0, 3, 4))
    return [
        points_lost("3 of 7 flip their signs", three, clean, 2),
        Criterion("4 of 7 flip their signs: accuracy", four, "at most", 0.5),
    ]


def _of_shouting(found: Found) -> tuple[list[Criterion], list[str]]:
    clean, vote = (mean(found[key], "accuracy") for key in (("flippers", 0), ("one shouts", VOTE)))
    ruined = found["one shouts", MEAN]
    criteria = [
        points_lost("one of 7 sends -10 g, vote", vote, clean, 1),
        Criterion("one of 7 sends -10 g, mean SGD: accuracy", mean(ruined, "accuracy"), "at most", 0.5),
    ]
    return criteria, [f"mean SGD diverged with {sum(o.diverged for o in ruined)} of {len(ruined)} seeds under -10 g"]


def _skew() -> dict[Any, Run]:
    return {
        ("labels:2", name): _run(name, 5, lr=lr, partition="labels:2", momentum=0.9 if name == VOTE else 0.0)
        for name, lr in SKEWED_LR.items()
    }


def _of_skew(found: Found) -> list[Criterion]:
    vote, full, repaired = (mean(found["labels:2", name], "accuracy") for name in SKEWED_LR)
    return [
        Criterion("labels:2 breaks the vote: accuracy", vote, "at most", 0.8),
        points_lost("labels:2, ef-signsgd against mean SGD", repaired, full, 1),
    ]


def _draw(path: Path, found: Found) -> None:
    with pictures.picture(path, "Majority vote among 7 workers, digits (attackers emulated)") as axis:
        values = {title(*key): mean(outcomes, "accuracy") for key, outcomes in found.items() if key[0] != "voters"}
        pictures.bars(axis, values, what="held-out accuracy of the mean model at the end (0: diverged)")
        axis.tick_params(axis="y", labelsize=7)
