"""An asyncio event loop whose clock jumps to the next timer: scenarios take no real time and never race.

It does no input or output, so the only things that happen are calls and timers, in one fixed order: the same program
gives the same trace. When every task waits and no timer is set, nothing can happen again, and that is raised.
"""

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from shoal.errors import Deadlock

T = TypeVar("T")


class _Clock(selectors.BaseSelector):
    """Stands where the loop asks the system to wait for sockets: it moves the clock instead."""

    def __init__(self) -> None:
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock(f"deadlock at t={self.now:.3f} s: every task waits, no timer is set")
        self.now += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual seconds since 0."""

    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-9  # far above the rounding of hours, far below any delay that means something

    def time(self) -> float:
        return self._virtual.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time. Raises Deadlock where a real run would hang."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
