"""AD-PSGD's headline (1710.06952, section 5): one slow worker, or one slow link, does not hold up the others."""

import statistics
from pathlib import Path
from typing import Any

from shoal.reproduce import pictures
from shoal.reproduce.lab import Criterion, Finding, Lab, within
from shoal.reproduce.runs import TINY, Outcome, Run, mean
from shoal.simulation import Scenario

METHODS = ("allreduce-sgd", "d-psgd", "a-psgd", "ad-psgd")
WORKERS, LINKED = 16, 8
SLOWNESS = (1.0, 2.0, 10.0, 100.0)
COMPUTE_S, JITTER = 0.05, 0.05
GRADIENTS, ROUNDS = 2000, 40

Runs = dict[tuple[str, float], list[Outcome]]


def expected(workers: int, s: float) -> float:
    """Throughput of those that do not wait over throughput of those that do, with one worker s times slower."""
    return ((workers - 1) * s + 1) / workers


def experiment(lab: Lab) -> Finding:
    """Throughput of four methods in virtual time; the model is tiny, since only speed is measured."""
    methods = ("allreduce-sgd", "ad-psgd") if lab.quick else METHODS
    slowness = (1.0, 100.0) if lab.quick else SLOWNESS
    gradients = GRADIENTS // 2 if lab.quick else GRADIENTS
    workers = lab.train({(m, s): _run(m, WORKERS, _slow_worker(s), gradients) for m in methods for s in slowness})
    linked = [m for m in methods if m != "a-psgd"]  # its workers talk to the coordinator alone
    links = lab.train({(m, f): _run(m, LINKED, _slow_link(f), gradients) for m in linked for f in (1.0, 10.0)})
    return Finding(
        setting={
            "compute": f"{COMPUTE_S} s a gradient, +- {JITTER:.0%}",
            "a vector on a link": "0.001 s; 0.025 s where a link is slow, there ten times as long",
            "workers": {"one slow worker": WORKERS, "one slow link": LINKED},
        },
        emulated=["the slow worker (virtual time)", "the slow link (virtual time)"],
        rows=[*_rows(workers, "one worker slower by"), *_rows(links, "one link slower by")],
        criteria=_criteria(workers, links),
        draw=lambda path: _draw(path, workers, links),
    )


def _run(method: str, workers: int, scenario: Scenario, gradients: int) -> Run:
    length: dict[str, Any] = {"gradients": gradients} if method in ("ad-psgd", "a-psgd") else {"rounds": ROUNDS}
    topology = {"topology": "ring"} if method == "d-psgd" else {}
    return Run(
        workers=workers,
        settings={**TINY, "algorithm": method, **length, **topology},
        scenario=scenario,
        judged=False,
    )


def _slow_worker(s: float) -> Scenario:
    return Scenario(compute_s=COMPUTE_S, jitter=JITTER, vector_s=0.001, slow=((0, s),))


def _slow_link(factor: float) -> Scenario:
    return Scenario(compute_s=COMPUTE_S, jitter=JITTER, vector_s=0.025, slow_links=((0, 1, factor),))


def _criteria(workers: Runs, links: Runs) -> list[Criterion]:
    ratios = {s: mean(workers["ad-psgd", s], "rate") / mean(workers["allreduce-sgd", s], "rate") for _, s in workers}
    even, uneven = (mean(workers["ad-psgd", s], "rate") for s in (1, 100))
    kept = {m: mean(links[m, 10], "rate") / mean(links[m, 1], "rate") for m in ("ad-psgd", "allreduce-sgd")}
    return [
        *(within(f"AD-PSGD / AllReduce, s = {s:g}", r, expected(WORKERS, s), 0.25) for s, r in ratios.items()),
        Criterion(
            "AD-PSGD at s = 100, of what the other workers could do",
            uneven / even / ((WORKERS - 1 + 0.01) / WORKERS),
            "at least",
            0.9,
        ),
        Criterion("one link 10x slower: AD-PSGD keeps of its speed", kept["ad-psgd"], "at least", 0.7),
        Criterion("one link 10x slower: AllReduce keeps of its speed", kept["allreduce-sgd"], "at most", 0.35),
    ]


def _rows(runs: Runs, what: str) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            f"emulated: {what}": s,
            "gradients a second": mean(outcomes, "rate"),
            "of each seed": [o.rate for o in outcomes],
        }
        for (method, s), outcomes in runs.items()
    ]


def _draw(path: Path, workers: Runs, links: Runs) -> None:
    methods = list(dict.fromkeys(m for m, _ in workers))
    slowness = sorted({s for _, s in workers})
    heading = f"One slow worker of {WORKERS}, and one slow link among {LINKED} workers (emulated, virtual time)"
    with pictures.picture(path, heading, columns=2) as (left, right):
        for method in methods:
            pictures.line(left, method, slowness, [mean(workers[method, s], "rate") for s in slowness])
        for method in dict.fromkeys(m for m, _ in links):
            right.errorbar(
                [pictures.title(method)],
                [mean(links[method, 10], "rate") / mean(links[method, 1], "rate")],
                yerr=statistics.pstdev([o.rate for o in links[method, 10]]) / mean(links[method, 1], "rate"),
                fmt=pictures.marker(method),
                color=pictures.colour(method),
            )
        bound = [mean(workers["allreduce-sgd", s], "rate") * expected(WORKERS, s) for s in slowness]
        left.plot(slowness, bound, "k:", lw=1, label="AllReduce x (15 s + 1) / 16")
        left.set(
            xscale="log", yscale="log", xlabel="slowness s of one worker", ylabel="gradients a second, all workers"
        )
        left.legend(fontsize=8)
        right.set(ylabel="speed kept when one link is 10x slower", ylim=(0, 1.05))
