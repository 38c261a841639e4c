"""How much a node sends at most: the bucket as a table, the queue and a connection in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport_kit import Recorder, header_of

from shoal import virtual_time
from shoal.transport.connection import Connection, Traffic
from shoal.transport.frames import CHUNK_BYTES
from shoal.transport.rate import FRAMING_BYTES, Bucket, Limit, chunk_bytes
from shoal.v1 import node_pb2 as pb

MBIT = 125_000.0


def depth_of(limit: Limit) -> int:
    """What may go at once."""
    return 2 * (limit.chunk_bytes + FRAMING_BYTES)


def within(sent: list[tuple[float, int]], rate: float, depth: float) -> bool:
    """Whether all that went in any stretch of time is at most depth + rate x its length; (when, bytes), by time."""
    return all(
        sum(nbytes for _, nbytes in sent[i : j + 1]) <= depth + rate * (sent[j][0] - sent[i][0]) + 1
        for i in range(len(sent))
        for j in range(i, len(sent))
    )


# --- the bucket -----------------------------------------------------------------------------------------------------


def test_a_bucket_is_full_at_first_and_fills_at_its_rate_up_to_its_depth() -> None:
    bucket = Bucket(rate=100.0, depth=50)
    assert bucket.ready_in(50, now=3.0) == 0
    bucket.take(50, now=3.0)
    assert bucket.ready_in(10, now=3.0) == pytest.approx(0.1)
    assert bucket.ready_in(10, now=3.06) == pytest.approx(0.04)
    assert bucket.ready_in(10, now=3.1) == 0
    bucket.take(50, now=1000.0)
    assert bucket.ready_in(50, now=1000.0) == pytest.approx(0.5), "no more than its depth was there"


def test_more_than_the_depth_is_ready_when_the_bucket_is_full_and_is_paid_for_afterwards() -> None:
    bucket = Bucket(rate=100.0, depth=50)
    assert bucket.ready_in(80, now=0.0) == 0
    bucket.take(80, now=0.0)
    assert bucket.ready_in(1, now=0.0) == pytest.approx(0.31)


def test_what_is_taken_though_it_is_not_there_is_filled_up_first() -> None:
    bucket = Bucket(rate=100.0, depth=50)
    for _ in range(3):
        bucket.take(40, now=0.0)
    assert bucket.ready_in(30, now=0.0) == pytest.approx(1.0)


STEPS = st.lists(st.tuples(st.floats(0, 0.7), st.integers(1, 60), st.booleans()), max_size=60)


@given(steps=STEPS, rate=st.floats(10, 1000))
def test_no_stretch_of_time_has_more_than_the_depth_and_the_rate_times_its_length(
    steps: list[tuple[float, int, bool]], rate: float
) -> None:
    """Whatever comes when: chunks, which wait, and small frames, which do not and are paid for by the chunks."""
    bucket, now, sent = Bucket(rate, depth=100), 5.0, []
    for pause_s, nbytes, waits in steps:
        now += pause_s
        while waits and (wait_s := bucket.ready_in(nbytes, now)) > 0:
            now += wait_s
        bucket.take(nbytes, now)
        sent.append((now, nbytes, waits))
    for j, (end, _, waits) in enumerate(sent):
        if waits:
            for i, (begin, _, _) in enumerate(sent[: j + 1]):
                went = sum(nbytes for _, nbytes, _ in sent[i : j + 1])
                assert went <= 100 + rate * (end - begin) + 1.01


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.0, CHUNK_BYTES),
        (8_000.0, 16 << 10),
        (MBIT, 16 << 10),
        (10 * MBIT, 122_880),
        (100 * MBIT, 1_249_280),
        (1000 * MBIT, CHUNK_BYTES),
        (1e12, CHUNK_BYTES),
    ],
)
def test_a_chunk_is_a_tenth_of_a_second_in_whole_pages_and_within_bounds(rate: float, expected: int) -> None:
    assert chunk_bytes(rate) == expected


# --- the queue ------------------------------------------------------------------------------------------------------


def at_virtual_time(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    return virtual_time.run(main())


async def stream(limit: Limit, chunks: int, log: list[tuple[float, int]], start_s: float = 0.0) -> None:
    """Sends so many chunks as fast as it may."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(start_s)
    for _ in range(chunks):
        await limit.turn(limit.chunk_bytes)
        log.append((loop.time(), limit.chunk_bytes))
        await asyncio.sleep(0)  # as a write does


def test_without_a_limit_nothing_waits() -> None:
    limit, log = Limit(), []

    async def work() -> None:
        await stream(limit, 1000, log)
        limit.count(10**9)
        await stream(limit, 10, log)

    at_virtual_time(work)
    assert {t for t, _ in log} == {0.0}
    assert limit.waited_s == 0


@pytest.mark.parametrize("rate", [8_000.0, MBIT, 10 * MBIT, 1000 * MBIT])
def test_a_long_stream_has_the_rate_and_at_no_time_more(rate: float) -> None:
    limit, log = Limit(rate), []
    at_virtual_time(lambda: stream(limit, 100, log))
    assert within(log, rate, depth_of(limit))
    assert log[-1][0] == pytest.approx(98 * limit.chunk_bytes / rate, rel=0.01), "but for the two that go at once"
    assert limit.waited_s == pytest.approx(log[-1][0])


def test_what_goes_below_the_rate_never_waits() -> None:
    limit, log = Limit(10 * MBIT), []

    async def work() -> None:
        for _ in range(50):
            await asyncio.sleep(limit.chunk_bytes / (9 * MBIT))
            await stream(limit, 1, log)

    at_virtual_time(work)
    assert limit.waited_s == 0


def test_peers_share_the_rate_in_turn_and_all_of_them_stay_below_it_together() -> None:
    limit = Limit(10 * MBIT)
    logs: list[list[tuple[float, int]]] = [[], [], []]

    async def work() -> None:
        await asyncio.gather(*(stream(limit, 40, log) for log in logs))

    at_virtual_time(work)
    together = sorted(entry for log in logs for entry in log)
    assert within(together, 10 * MBIT, depth_of(limit))
    for k in range(40):  # the k-th chunks of all go one after the other
        assert max(log[k][0] for log in logs) - min(log[k][0] for log in logs) < 2.01 * limit.chunk_bytes / (10 * MBIT)


def test_who_comes_late_waits_for_one_chunk_of_each_and_not_for_their_vectors() -> None:
    limit = Limit(10 * MBIT)
    first, second, late = [], [], []  # type: list[tuple[float, int]], list[tuple[float, int]], list[tuple[float, int]]

    async def work() -> None:
        await asyncio.gather(stream(limit, 100, first), stream(limit, 100, second), stream(limit, 1, late, start_s=2.0))

    at_virtual_time(work)
    assert late[0][0] - 2.0 <= 3.01 * limit.chunk_bytes / (10 * MBIT)


def test_seconds_are_counted_once_however_many_wait() -> None:
    limit, logs = Limit(MBIT), ([], [], [])  # type: Limit, tuple[list[tuple[float, int]], ...]

    async def work() -> None:
        await asyncio.gather(*(stream(limit, 20, log) for log in logs))

    at_virtual_time(work)
    assert limit.waited_s == pytest.approx(max(log[-1][0] for log in logs))


def test_small_frames_go_at_once_and_the_chunks_pay_for_them() -> None:
    limit, log, beats = Limit(MBIT), [], []  # type: Limit, list[tuple[float, int]], list[tuple[float, int]]

    async def beat() -> None:
        for _ in range(100):
            limit.count(500)
            beats.append((asyncio.get_running_loop().time(), 500))
            await asyncio.sleep(0.05)

    async def work() -> None:
        await asyncio.gather(beat(), stream(limit, 30, log))

    at_virtual_time(work)
    assert [t for t, _ in beats] == pytest.approx([0.05 * k for k in range(100)])
    before = sum(nbytes for t, nbytes in beats if t <= log[-1][0])
    assert log[-1][0] == pytest.approx((28 * limit.chunk_bytes + before) / MBIT, rel=0.02)
    chunks_and_beats = sorted(log + [(t, n) for t, n in beats if t <= log[-1][0]])
    assert within(chunks_and_beats, MBIT, depth_of(limit) + 500)


def test_a_wait_that_is_cancelled_leaves_the_queue_and_takes_nothing() -> None:
    limit, log = Limit(MBIT), []  # type: Limit, list[tuple[float, int]]

    async def work() -> None:
        await stream(limit, 2, log)
        gone = [asyncio.ensure_future(stream(limit, 50, [])) for _ in range(2)]  # one that sleeps, one behind it
        await asyncio.sleep(0.01)
        behind = asyncio.ensure_future(stream(limit, 1, log))
        await asyncio.sleep(0.01)
        for task in gone:
            task.cancel()
        await behind

    at_virtual_time(work)
    assert log[-1][0] == pytest.approx(limit.chunk_bytes / MBIT, rel=0.01)


# --- a connection ---------------------------------------------------------------------------------------------------


class Written:
    """A stream that takes whatever is written, notes when, and never says anything."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, bytes]] = []

    async def read(self) -> Any:
        await asyncio.Event().wait()

    async def write(self, message: bytes) -> None:
        self.frames.append((asyncio.get_running_loop().time(), message))


class Connected:
    """A connection whose streams are two of those."""

    def __init__(self, limit: Limit, vector_bytes: int, peer: str = "b") -> None:
        self.control, self.exchange, self.traffic = Written(), Written(), Traffic()
        streams = self.control, self.exchange
        identity = pb.Identity(node_id=peer, incarnation=1)
        self.connection = Connection(identity, 1, streams, vector_bytes, Recorder(1), self.traffic, limit)
        self.connection.begin()

    async def close(self) -> None:
        self.connection.end("the test is over")
        await self.connection.settle()


def test_vectors_to_several_peers_are_cut_into_small_chunks_and_held_to_the_rate_together() -> None:
    rate, size = 2 * MBIT, 400_000
    limit = Limit(rate)

    async def work() -> list[Connected]:
        made = [Connected(limit, size, peer) for peer in "bcd"]
        for each in made:
            done = asyncio.Event()
            each.connection.send(header_of(1, size), memoryview(bytes(size)), done.set)
            each.connection.send(header_of(2, size), memoryview(bytes(size)), done.set)
        await asyncio.sleep(60)
        for each in made:
            await each.close()
        return made

    made = at_virtual_time(work)
    frames = [(t, len(frame)) for each in made for t, frame in each.exchange.frames]
    assert all(nbytes <= limit.chunk_bytes + FRAMING_BYTES for _, nbytes in frames)
    assert within(sorted(frames), rate, depth_of(limit) + 200), "headers go at once"
    total = sum(nbytes for _, nbytes in frames)
    assert total == sum(each.traffic.sent_bytes for each in made) > 6 * size
    assert max(t for t, _ in frames) == pytest.approx((total - depth_of(limit)) / rate, rel=0.01), "and no slower"


def test_a_heartbeat_goes_out_at_once_while_a_vector_is_held_back() -> None:
    limit, size = Limit(8_000.0), 160_000

    async def work() -> Connected:
        made = Connected(limit, size)
        made.connection.send(header_of(1, size), memoryview(bytes(size)), lambda: None)
        for number in range(20):
            await asyncio.sleep(0.5)
            made.connection.send_control(pb.Control(heartbeat=pb.Heartbeat(number=number)))
        await asyncio.sleep(0)
        await made.close()
        return made

    made = at_virtual_time(work)
    assert [t for t, _ in made.control.frames] == pytest.approx([0.5 * k for k in range(1, 21)])
    assert len(made.exchange.frames) < 1 + size / limit.chunk_bytes, "the vector is still on its way"


def test_a_connection_that_ends_while_it_is_held_back_gives_its_vector_back_and_lets_others_go() -> None:
    limit, size = Limit(8_000.0), 160_000

    async def work() -> tuple[bool, float]:
        one, other = Connected(limit, size, "b"), Connected(limit, size, "c")
        sent, arrived = asyncio.Event(), asyncio.Event()
        one.connection.send(header_of(1, size), memoryview(bytes(size)), sent.set)
        await asyncio.sleep(0.5)
        other.connection.send(header_of(1, size), memoryview(bytes(size)), arrived.set)
        await one.close()
        given_back = sent.is_set()
        await arrived.wait()
        await other.close()
        return given_back, asyncio.get_running_loop().time()

    given_back, ended_s = at_virtual_time(work)
    assert given_back
    assert ended_s == pytest.approx(size / 8_000.0, rel=0.01), "what the first had left over was not waited for"
