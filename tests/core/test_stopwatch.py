"""What a stopwatch counts, with a clock that the test turns."""

import asyncio

import pytest

from shoal.stopwatch import Begun, Stopwatch


class Watch(Stopwatch):
    """One whose clock stands at `now`."""

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__(lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds

    @property
    def spent(self) -> dict[str, float]:
        """What is not zero."""
        return {phase: seconds for phase, seconds in self.seconds.items() if seconds}


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_at_first_and_while_nothing_runs_no_time_is_counted(watch: Watch) -> None:
    watch.passes(5)
    assert watch.seconds == {"compute": 0, "wait": 0, "exchange": 0, "apply": 0}
    with watch.at("apply"):
        watch.passes(1)
    watch.passes(5)
    assert watch.spent == {"apply": 1}


def test_every_moment_belongs_to_one_phase_and_they_add_up_to_all_of_the_time(watch: Watch) -> None:
    with watch.at("apply"):
        for _ in range(3):
            watch.passes(1)
            with watch.at("compute"):
                watch.passes(10)
                with watch.at("wait"):
                    watch.passes(100)
                watch.passes(10)
            watch.passes(2)
    assert watch.spent == {"apply": 9, "compute": 60, "wait": 300}
    assert sum(watch.seconds.values()) == watch.now - 100


def test_what_lasts_still_is_counted_up_to_now(watch: Watch) -> None:
    with watch.at("apply"):
        watch.passes(1)
        with watch.at("wait"):
            watch.passes(2)
            assert watch.spent == {"apply": 1, "wait": 2}
            watch.passes(3)
            assert watch.spent == {"apply": 1, "wait": 5}
    assert watch.spent == {"apply": 1, "wait": 5}


def test_what_goes_on_beside_the_algorithm_is_counted_and_takes_nothing_from_it(watch: Watch) -> None:
    with watch.at("compute"):
        with watch.beside("exchange"):
            watch.passes(4)
        watch.passes(1)
    assert watch.spent == {"compute": 5, "exchange": 4}


def test_a_function_is_counted_at_each_call_and_gets_its_argument(watch: Watch) -> None:
    taken = []

    def work(argument: int) -> None:
        taken.append(argument)
        watch.passes(argument)

    counted = watch.around("apply", work)
    counted(2)
    watch.passes(50)
    counted(3)
    assert taken == [2, 3]
    assert watch.spent == {"apply": 5}


def test_an_error_ends_a_phase_as_its_end_does(watch: Watch) -> None:
    def fails() -> None:
        with watch.at("apply"), watch.at("compute"), watch.beside("exchange"):
            watch.passes(2)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    watch.passes(7)
    assert watch.spent == {"compute": 2, "exchange": 2}


# --- what was begun -------------------------------------------------------------------------------------------------


async def begun(watch: Watch, ready: asyncio.Event) -> Begun[int]:
    """Ends with 7 when the test says so."""

    async def work() -> int:
        await ready.wait()
        return 7

    return Begun(asyncio.get_running_loop().create_task(work()), watch)


async def test_only_the_time_for_which_it_is_awaited_is_a_wait(watch: Watch) -> None:
    ready = asyncio.Event()
    with watch.at("apply"):
        work = await begun(watch, ready)
        watch.passes(10)
        asyncio.get_running_loop().call_soon(lambda: (watch.passes(3), ready.set()))
        assert await work == 7
        watch.passes(1)
    assert watch.spent == {"apply": 11, "wait": 3}


async def test_what_is_done_already_is_not_waited_for(watch: Watch) -> None:
    ready = asyncio.Event()
    ready.set()
    work = await begun(watch, ready)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with watch.at("apply"):
        watch.passes(2)
        assert await work == 7
        assert await work == 7, "again is harmless"
    assert watch.spent == {"apply": 2}


async def test_a_wait_that_is_cancelled_ends_there(watch: Watch) -> None:
    work = await begun(watch, asyncio.Event())

    async def algorithm() -> None:
        with watch.at("apply"):
            await work

    task = asyncio.get_running_loop().create_task(algorithm())
    await asyncio.sleep(0)
    watch.passes(4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    watch.passes(9)
    assert watch.spent == {"wait": 4}
