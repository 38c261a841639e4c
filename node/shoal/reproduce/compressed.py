"""Models that travel in one to four bits a coordinate (LEAD, 2007.00232, for D2; CHOCO, 1902.00340, for D-PSGD; lattice
codes decoded against the receiver's own model, as in Moniqua, 2002.11787, for AD-PSGD): the same for fewer bytes."""

from pathlib import Path

from shoal.reproduce import pictures
from shoal.reproduce.lab import Criterion, Finding, Lab, not_worse, points_lost
from shoal.reproduce.runs import DIGITS, Outcome, Run, mean, row
from shoal.simulation import Scenario

METHODS = ("ad-psgd", "d2", "d-psgd")
STEPS = (0.2, 0.5)
WORKERS, ROUNDS = 5, 540
LEAST = 7.5

Key = tuple[str, float, str]


def experiment(lab: Lab) -> Finding:
    """Two labels a node: bytes, train loss and accuracy, sign beside f32, with the same step size."""
    methods, steps = (METHODS[1:2], STEPS[1:]) if lab.quick else (METHODS, STEPS)
    found = lab.train({(m, lr, c): _run(m, lr, c) for m in methods for lr in steps for c in ("f32", "sign")})
    criteria: list[Criterion] = []
    for method in methods:
        for lr in steps:
            full, packed = found[method, lr, "f32"], found[method, lr, "sign"]
            name = f"{pictures.title(method)}, lr {lr}"
            fewer = mean(full, "sent_bytes") / mean(packed, "sent_bytes")
            criteria += [
                Criterion(f"{name}: bytes f32 / sign", fewer, "at least", LEAST),
                not_worse(f"{name}: train loss sign / f32", mean(packed, "loss"), mean(full, "loss"), 0.1),
                points_lost(name, mean(packed, "accuracy"), mean(full, "accuracy"), 1),
            ]
    return Finding(
        setting={
            **DIGITS,
            "workers": WORKERS,
            "partition": "labels:2",
            "topology": "complete for ad-psgd, ring for d2 and d-psgd",
            "rounds": ROUNDS,
            "tuning": "none: the same lr for both codecs, two of them",
            "bytes": "of vectors with their scales and seeds; headers not counted",
        },
        rows=[row(outcomes, method=m, lr=lr, codec=codec) for (m, lr, codec), outcomes in found.items()],
        criteria=criteria,
        draw=lambda path: _draw(path, found),
    )


def _run(method: str, lr: float, codec: str) -> Run:
    graph = "complete" if method == "ad-psgd" else "ring"
    settings = {**DIGITS, "partition": "labels:2", "algorithm": method, "lr": lr, "codec": codec, "topology": graph}
    return Run(
        workers=WORKERS,
        settings={**settings, "rounds": ROUNDS},
        scenario=Scenario(jitter=0.2, vector_s=0.002),
    )


def _draw(path: Path, found: dict[Key, list[Outcome]]) -> None:
    heading = "Packed models: train loss for a fraction of the bytes (5 workers, two labels each)"
    with pictures.picture(path, heading) as axis:
        pairs = dict.fromkeys((method, lr) for method, lr, _ in found)
        for method, lr in pairs:
            both = [found[method, lr, codec] for codec in ("f32", "sign")]
            xs, ys = ([mean(outcomes, f) for outcomes in both] for f in ("sent_bytes", "loss"))
            style = {"ls": ":" if lr == STEPS[0] else "-", "label": f"{pictures.title(method)}, lr {lr}"}
            pictures.line(axis, method, [x / 1e6 for x in xs], ys, **style)
            axis.annotate("sign", (xs[1] / 1e6, ys[1]), fontsize=8, xytext=(4, 4), textcoords="offset points")
        axis.set(xscale="log", yscale="log", xlabel="MB of vectors sent by all", ylabel="train loss of the mean model")
        axis.legend(fontsize=8)
