"""How the bench measures: ratios of pairs that were taken one after the other in one run, and their median."""

import dataclasses
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure, with what it is to be. A missed bar is said, and is no error: a busy machine misses some."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    less_is_better: bool = False
    samples: Sequence[float] = ()
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.less_is_better else self.value >= self.bar

    def line(self) -> str:
        """In words."""
        if self.bar is None:
            return f"      {self.name}: {self.value:.4g} {self.unit}{self.note and f' ({self.note})'}"
        sign = "at most" if self.less_is_better else "at least"
        verdict = "met   " if self.met else "MISSED"
        note = self.note and f"; {self.note}"
        return f"{verdict} {self.name}: {self.value:.4g} {self.unit} ({sign} {self.bar:g}{note})"


@dataclasses.dataclass(frozen=True)
class Lab:
    """How often, and how large. `pairs`: interleaved repeats. `hivemind`: a Python that can import it."""

    pairs: int = 31
    quick: bool = False
    hivemind: str = sys.executable

    def size(self, elements: int) -> int:
        """Of a vector: a tenth where it is to be quick."""
        return elements // 10 if self.quick else elements


def ratio_of(reference: Callable[[], object], work: Callable[[], object], pairs: int) -> list[float]:
    """Seconds of the reference over those of the work, one entry a pair, after one of each to warm up."""
    reference()
    work()
    return [seconds(reference) / seconds(work) for _ in range(pairs)]


def seconds(work: Callable[[], object]) -> float:
    """That it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(name: str, samples: Sequence[float], unit: str, **more: Any) -> Figure:
    """The figure that is the median of samples."""
    return Figure(name=name, value=statistics.median(samples), unit=unit, samples=tuple(samples), **more)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import grpc
    import numpy
    import torch

    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "grpc": grpc.__version__,
    }
