"""Katyusha X (1802.03866): one line of momentum on SVRG, where the terms of a sum are not convex though the sum is."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch

from shoal.data.pca import synthetic
from shoal.reproduce import pictures
from shoal.reproduce.finite_sums import System, leading_eigenvector, passes, solve, tau
from shoal.reproduce.lab import Criterion, Finding, Lab

N, ROOT_N, DELTA = 1000, 32, 1e-3
STEPS = (1, 2, 4, 8)
"""The grid, in units of 1 / (2 L), for every method."""
EPOCHS = {"KatX s": 60, "KatX w": 90, "SVRG": 260}
BATCHES = {1: 60, 8: 80, 32: 80, 64: 115, 128: 165}
"""b -> epochs that are run to find where it reaches 1e-2; b = 1 only on the first seed's problem, being slow to run."""


Curves = dict[tuple[str, float], list[list[float]]]
"""(form, steps) -> suboptimality over the epochs, of each seed."""
Needed = dict[tuple[int, int], float]
"""(b, seed) -> passes."""


@dataclasses.dataclass(frozen=True)
class Solving:
    """One run on the synthetic problem of a seed."""

    form: str  # KatX s, KatX w, SVRG
    steps: float  # step size in units of the theory's largest
    b: int
    epochs: int
    seed: int
    workers: int = 1


def suboptimality(job: Solving) -> list[float]:
    """Before the run and after each epoch; in a process of its own."""
    return _solved(job)[1]


def model(job: Solving) -> torch.Tensor:
    """x at the end."""
    return _solved(job)[0].mean  # type: ignore[no-any-return]


def _solved(job: Solving) -> tuple[Any, list[float]]:
    torch.set_num_threads(1)
    system = System(*synthetic(seed=job.seed, delta=DELTA))
    lr = job.steps * system.step(job.b)
    coupling = tau(system, job.b, lr, DELTA) if job.form == "KatX s" else None
    algorithm = "svrg" if job.form == "SVRG" else "katyusha-x"
    parts = list(torch.tensor_split(system.rows, job.workers))
    return solve(
        system, parts, algorithm=algorithm, lr=lr, epochs=job.epochs, b=job.b, coupling=coupling, seed=job.seed
    )


def experiment(lab: Lab) -> Finding:
    """Passes against SVRG's, passes over b, the same iterates on any number of workers, and PCA on digits."""
    speed, curves = _speed(lab)
    flat, needed = _flat(lab) if not lab.quick else ([], {})
    return Finding(
        setting={
            "problem": f"shift-and-invert, n = {N}, d = 50, all terms non-convex, strong convexity {DELTA}; one a seed",
            "tuning": {"lr / (1 / (2 L))": [4] if lab.quick else list(STEPS)},
            "b": ROOT_N,
            "passes over b": f"lr of theory, to 1e-2; b = {list(BATCHES)}, of which b = 1 for the first seed only",
            "pca": "digits' pixels, rows split over 5 workers by label (0-1, 2-3, ...)",
        },
        rows=[
            *({"form": f, "lr of theory x": s, "b": ROOT_N, "epochs to 1e-3": e} for (f, s), e in _tabled(curves)),
            *(
                {"form": "KatX s", "lr of theory x": 1, "b": b, "seed": seed, "passes to 1e-2": p}
                for (b, seed), p in needed.items()
            ),
        ],
        criteria=[*speed, *flat, *_equal(lab), _pca()],
        draw=lambda path: _draw(path, curves, needed),
    )


def _below(curve: list[float], target: float) -> float:
    """Epochs until then; infinite if never."""
    return next((k for k, value in enumerate(curve) if value <= target), float("inf"))


def _speed(lab: Lab) -> tuple[list[Criterion], Curves]:
    """Epochs to 1e-3, each form with the best step of one grid, in each of the seeds' problems."""
    forms = {"KatX s": 60, "SVRG": 120} if lab.quick else EPOCHS
    steps = (4,) if lab.quick else STEPS
    jobs = [Solving(f, s, ROOT_N, epochs, seed) for f, epochs in forms.items() for s in steps for seed in lab.seeds]
    curves: Curves = {}
    for job, curve in zip(jobs, lab.each(suboptimality, jobs), strict=True):
        curves.setdefault((job.form, job.steps), []).append(curve)

    def best(form: str, k: int) -> float:
        return min(_below(runs[k], 1e-3) for (f, _), runs in curves.items() if f == form)

    criteria = []
    for k, seed in enumerate(lab.seeds):
        fast, slow = best("KatX s", k), min(best("SVRG", k), forms["SVRG"] + 1)  # never: more than were run
        criteria.append(Criterion(f"passes to 1e-3, KatX^s / SVRG, seed {seed}", fast / slow, "at most", 1 / 3))
    return criteria, curves


def _tabled(curves: Curves) -> list[tuple[tuple[str, float], list[float]]]:
    return [(key, [_below(c, 1e-3) for c in runs]) for key, runs in curves.items()]


def _flat(lab: Lab) -> tuple[list[Criterion], Needed]:
    """Passes to 1e-2 with the theory's step, over b, in each seed's problem."""
    jobs = [
        Solving("KatX s", 1, b, epochs, seed)
        for b, epochs in BATCHES.items()
        for seed in (lab.seeds[:1] if b == 1 else lab.seeds)
    ]
    needed = {
        (job.b, job.seed): _below(curve, 1e-2) * passes(N, job.b)
        for job, curve in zip(jobs, lab.each(suboptimality, jobs), strict=True)
    }
    criteria = []
    for seed in lab.seeds:
        small = [p for (b, of), p in needed.items() if of == seed and b <= ROOT_N]
        flat = max(small) / min(small)
        criteria += [
            Criterion(f"passes for b up to sqrt(n): most / least, seed {seed}", flat, "at most", 1.1),
            Criterion(f"passes, b = 128 / 32, seed {seed}", needed[128, seed] / needed[32, seed], "at least", 1.3),
        ]
    return criteria, needed


def _equal(lab: Lab) -> list[Criterion]:
    alone, *shared = lab.each(model, [Solving("KatX s", 1, ROOT_N, 3, 0, workers) for workers in (1, 4, 16)])
    return [
        Criterion(f"P = {p} against P = 1: largest difference", float((x - alone).abs().max()), "at most", 1e-10)
        for p, x in zip((4, 16), shared, strict=True)
    ]


def _pca() -> Criterion:
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)
    digits = load_digits()
    pixels = torch.from_numpy(digits.data) / 16
    parts = [pixels[digits.target // 2 == k] for k in range(5)]
    found = leading_eigenvector(parts, gap=0.2, iterations=6, epochs=3, b=100)
    _, vectors = torch.linalg.eigh(pixels.T @ pixels / len(pixels))
    best = vectors[:, -1]
    apart = min(float((found - best).norm()), float((found + best).norm()))
    return Criterion("PCA on digits: distance from the leading eigenvector", apart, "at most", 1e-6)


def _draw(path: Path, curves: Curves, needed: Needed) -> None:
    heading = "A sum of non-convex terms: suboptimality over passes, each form at its best step of the grid"
    with pictures.picture(path, heading, columns=2 if needed else 1) as axes:
        left, right = axes if needed else (axes, None)
        for form, key in (("KatX s", "katyusha-x"), ("KatX w", "signum"), ("SVRG", "svrg")):
            runs = {s: c for (f, s), c in curves.items() if f == form}
            if runs:
                best = min(runs, key=lambda s: min(runs[s][0]) if form == "SVRG" else _below(runs[s][0], 1e-3))
                curve = runs[best][0]
                xs = [k * passes(N, ROOT_N) for k in range(len(curve))]
                style = {"color": pictures.colour(key), "ms": 0, "label": f"{form}, lr = {best:g} / (2 L)"}
                pictures.line(left, key, xs, curve, **style)
        left.axhline(1e-3, color="black", ls=":", lw=1)
        left.set(
            yscale="log", xlabel="passes over the data", ylabel="suboptimality, first = 1 (seed 0)", ylim=(1e-6, 2)
        )
        left.legend(fontsize=8)
        if right is not None:
            for seed, mark in zip(
                sorted({seed for _, seed in needed}), itertools.cycle(pictures.MARKERS), strict=False
            ):
                passed = {b: p for (b, of), p in needed.items() if of == seed}
                style = {"marker": mark, "color": pictures.colour("katyusha-x"), "label": f"KatX s, seed {seed}"}
                right.plot(list(passed), list(passed.values()), **style)
            right.axvline(N**0.5, color="black", ls=":", lw=1, label="b = sqrt(n)")
            right.set(xscale="log", xlabel="mini-batch b of all workers", ylabel="passes to 1e-2", ylim=0)
            right.legend(fontsize=8)
