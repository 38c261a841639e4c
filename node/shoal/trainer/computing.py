"""The trainer's second thread: it computes, one piece of work at a time, while the event loop answers peers."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Computing:
    """Begins with the first piece of work, and ends with the process. The ways of `concurrent.futures` take 30
    microseconds longer there and back, which is half a percent of a small model's step."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._given = 0  # pieces that are not done yet, whoever still waits for them

    def busy(self) -> bool:
        """Whether there is something to do."""
        return self._given > 0

    def submit(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """What `work` returns or raises. A waiter that is cancelled does not stop it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(asyncio.get_running_loop(),), daemon=True)
            self._thread.name = "compute"
            self._thread.start()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._given += 1
        self._work.put((work, future))
        return future

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            work, future = self._work.get()
            try:
                result, error = work(), None
            except BaseException as raised:
                result, error = None, raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._done, future, result, error)
            del work, future, result, error  # they may hold a whole vector, and the next work may come late

    def _done(self, future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
        self._given -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
