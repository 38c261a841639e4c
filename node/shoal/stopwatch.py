"""Where a worker's time goes.

While an algorithm runs it is at one thing at a time, and these add up to all of its time:

    compute   gradients, from when they are asked for until they are there
    wait      for others, with nothing to compute: the end of an average or of a mix, a mean, an answer
    apply     the rest: changing the model, and the bookkeeping of a step

Beside them others go on at their own pace, which are counted as well: `exchange`, all the time that own averages, mixes
and means take, whether the algorithm waits for them or computes meanwhile; and in `apply` the halves of averages, which
land on the model whenever they are settled.
"""

import contextlib
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Stopwatch:
    """One worker's. `clock()` is seconds, monotonic; each change from one phase to another reads it once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.steps = 0  # that were counted
        self._clock = clock
        self._spent = {"compute": 0.0, "wait": 0.0, "exchange": 0.0, "apply": 0.0}
        self._phase: str | None = None  # what the algorithm is at; None: it does not run
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Spent by phase, what the algorithm is at included until now."""
        spent = dict(self._spent)
        if self._phase is not None:
            spent[self._phase] += self._clock() - self._since
        return spent

    @contextlib.contextmanager
    def at(self, phase: str) -> Iterator[None]:
        """What the algorithm does here is that, and afterwards again what it was before."""
        before = self._change(phase)
        try:
            yield
        finally:
            self._change(before)

    @contextlib.contextmanager
    def beside(self, phase: str) -> Iterator[None]:
        """This is that as well, whatever the algorithm is at."""
        began = self._clock()
        try:
            yield
        finally:
            self._spent[phase] += self._clock() - began

    def around(self, phase: str, work: Callable[[T], None]) -> Callable[[T], None]:
        """`work`, with each of its calls counted as `beside` counts."""

        def counted(argument: T) -> None:
            with self.beside(phase):
                work(argument)

        return counted

    def _change(self, phase: str | None) -> str | None:
        now = self._clock()
        if self._phase is not None:
            self._spent[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before


class Begun(Generic[T]):
    """What an algorithm has begun beside itself: while it awaits that, it waits."""

    def __init__(self, work: Awaitable[T], stopwatch: Stopwatch) -> None:
        self._work, self._stopwatch = work, stopwatch

    def __await__(self) -> Generator[Any, None, T]:
        with self._stopwatch.at("wait"):
            return (yield from self._work.__await__())
