"""One piece of work at a time, in another thread; whoever waits is told, and a loop that is gone is no trouble."""

import asyncio
import gc
import threading
import weakref

import pytest

from shoal.trainer.computing import Computing


class Held:
    """Work that lasts until the test lets it end."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.end.wait(10)
        return threading.current_thread().name

    async def until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 10)


async def test_work_is_done_in_a_thread_of_its_own_and_its_result_comes_back() -> None:
    computing = Computing()
    assert await computing.submit(lambda: threading.current_thread().name) == "compute"
    assert threading.current_thread().name != "compute"
    assert not computing.busy()


async def test_the_loop_goes_on_meanwhile_and_pieces_run_one_after_the_other() -> None:
    computing, first, second = Computing(), Held(), Held()
    futures = [computing.submit(first), computing.submit(second)]
    await first.until_begun()
    assert computing.busy()
    assert not second.begun.is_set()
    first.end.set()
    await second.until_begun()
    second.end.set()
    assert await asyncio.gather(*futures) == ["compute", "compute"]
    assert not computing.busy()


async def test_what_work_raises_comes_back_and_the_next_piece_is_done() -> None:
    computing = Computing()
    with pytest.raises(ZeroDivisionError):
        await computing.submit(lambda: 1 / 0)
    assert await computing.submit(lambda: 2) == 2


async def test_a_waiter_that_is_cancelled_leaves_the_work_running() -> None:
    computing, held = Computing(), Held()
    future = computing.submit(held)
    await held.until_begun()
    future.cancel()
    assert computing.busy(), "the model is still in use"
    held.end.set()
    assert await computing.submit(lambda: 3) == 3
    assert not computing.busy()


async def test_work_and_result_are_let_go_of_before_the_next_piece() -> None:
    """Each may hold a vector as large as the model."""

    class Large:
        pass

    computing, large = Computing(), Large()
    gone = weakref.ref(large)
    assert await computing.submit(lambda held=large: held) is large  # type: ignore[misc]
    await computing.submit(lambda: None)
    del large
    gc.collect()
    assert gone() is None


def test_work_that_outlives_its_loop_is_no_error() -> None:
    held, next_one = Held(), threading.Event()

    async def begin() -> None:
        computing = Computing()
        computing.submit(held)
        computing.submit(next_one.set)
        await held.until_begun()

    asyncio.run(begin())
    held.end.set()
    assert next_one.wait(10), "the thread did not survive the end of the loop"
