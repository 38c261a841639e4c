"""Where claims are tried: the seeds, the processes that share the work, and what a claim must hand over."""

import concurrent.futures
import dataclasses
import math
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from shoal.reproduce.runs import Outcome, Run, execute, mean

K = TypeVar("K")
T = TypeVar("T")
Item = TypeVar("Item")

PROCESSES = 2


class Lab:
    """Seeds, and processes over which independent runs are spread. Use with `with`."""

    def __init__(self, seeds: int = 3, *, quick: bool = False, processes: int = PROCESSES) -> None:
        """quick: one seed, and each claim only its core. processes = 1 runs all in this process."""
        self.seeds = range(1 if quick else seeds)
        self.quick = quick
        self._pool = None
        if processes > 1:
            context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
            self._pool = concurrent.futures.ProcessPoolExecutor(processes, context)

    def each(self, function: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """function(item) of all, in their order; both must be picklable."""
        if self._pool is None:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))

    def train(self, runs: Mapping[K, Run], seeds: Sequence[int] | None = None) -> dict[K, list[Outcome]]:
        """Every run with every seed: its outcomes, in the order of the seeds; those of the lab, if not given."""
        seeds = self.seeds if seeds is None else seeds
        seeded = [
            dataclasses.replace(run, settings={**run.settings, "seed": seed}) for run in runs.values() for seed in seeds
        ]
        outcomes = self.each(execute, seeded)
        n = len(seeds)
        return {key: outcomes[k * n : (k + 1) * n] for k, key in enumerate(runs)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def tuned(outcomes: Mapping[K, Sequence[Outcome]]) -> K:
    """The step size, or whatever the grid is over, with the smallest mean loss."""
    return min(outcomes, key=lambda key: mean(outcomes[key], "loss"))


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One figure beside its bar. A figure that is not finite never passes an upper bar."""

    what: str
    figure: float
    must_be: Literal["at most", "at least"]
    bar: float

    @property
    def passed(self) -> bool:
        """The verdict."""
        return self.figure <= self.bar if self.must_be == "at most" else self.figure >= self.bar

    def line(self) -> str:
        """For the terminal and the picture."""
        return f"{'PASS' if self.passed else 'FAIL'}  {self.what}: {self.figure:.4g} ({self.must_be} {self.bar:.4g})"


def within(what: str, figure: float, of: float, part: float) -> Criterion:
    """|figure / of - 1| at most `part`."""
    off = abs(figure / of - 1) if math.isfinite(figure) else math.inf
    return Criterion(f"{what}: {figure:.4g} against {of:.4g}, off by", off, "at most", part)


def not_worse(what: str, figure: float, than: float, part: float) -> Criterion:
    """A loss at most `part` above another; less is no fault."""
    return Criterion(f"{what}: {figure:.4g} over {than:.4g}", figure / than, "at most", 1 + part)


def points_lost(what: str, accuracy: float, of: float, points: float) -> Criterion:
    """Accuracy at most so many hundredths below another."""
    return Criterion(f"{what}: points of accuracy lost", 100 * (of - accuracy), "at most", points)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What an experiment found."""

    setting: Mapping[str, Any]  # what was equal for all, the tuning grid, what is emulated
    rows: Sequence[Mapping[str, Any]]
    criteria: Sequence[Criterion]
    draw: Callable[[Path], None]  # writes the picture
    emulated: Sequence[str] = ()
    shown: Sequence[str] = ()  # results that speak against a method, in words with their figures

    @property
    def holds(self) -> bool:
        """Whether every criterion passed; a claim without any is none."""
        return bool(self.criteria) and all(c.passed for c in self.criteria)


@dataclasses.dataclass(frozen=True)
class Claim:
    """An experiment with its name and one line."""

    name: str
    line: str
    experiment: Callable[[Lab], Finding]
    over_grpc: Callable[[Lab, Path], Finding] | None = None  # the same with real processes; Path: for their state
