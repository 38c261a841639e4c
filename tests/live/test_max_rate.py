"""--max-rate over real gRPC: what two nodes send stays below it, and they train and end as without it.

A busy machine only makes them slower, so a bound from above on bytes a second can be broken by a fault alone.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nodes_kit import assert_one_model, log, shoal_in
from transport_kit import NewNode, joined, nodes

from shoal.demo.fleet import NodeProcess
from shoal.fields import parse_rate
from shoal.transport.rate import FRAMING_BYTES, chunk_bytes

pytestmark = pytest.mark.live

RATE = "2Mbit"
VECTOR_BYTES = 4 * 9610
"""Of a model of the digits."""


def at_once(rate: float) -> int:
    """Bytes of chunks that may go without a wait."""
    return 2 * (chunk_bytes(rate) + FRAMING_BYTES)


@pytest.fixture
async def node(caplog: pytest.LogCaptureFixture) -> AsyncIterator[NewNode]:
    async with nodes(caplog) as make:
        yield make


async def test_two_peers_together_are_sent_no_more_than_the_rate(node: NewNode) -> None:
    rate, size = 4e6, 800_000
    a = await node("a", elements=size // 4, max_rate=rate)
    b, c = await node("b", elements=size // 4), await node("c", elements=size // 4)
    ends = {b.id: (await joined(a, b))[0], c.id: (await joined(a, c))[0]}
    clock = asyncio.get_running_loop().time
    began, before = clock(), sum(a.transport.traffic[peer.id].sent_bytes for peer in (b, c))
    for seq in range(3):
        for peer in (b, c):
            a.send(peer, ends[peer.id], seq, bytes(size))
    for peer in (b, c, b, c, b, c):
        assert (await peer.heard.messages.get()).vector == bytes(size)
    took_s = clock() - began
    sent = sum(a.transport.traffic[peer.id].sent_bytes for peer in (b, c)) - before
    assert 6 * size < sent <= at_once(rate) + rate * took_s + 1000, "headers and trailers go at once"
    assert 0 < a.transport.limited_s <= took_s
    assert b.transport.limited_s == 0


def averages(node: NodeProcess) -> list[float]:
    """When it was done with each of its averages, in seconds of its trainer."""
    done = [line for line in node.history() if line["kind"] == "exchange" and line["outcome"] == "done"]
    return [line["t"] for line in done if line["role"] == "passive" or "crossing" not in line["reason"]]


def test_nodes_average_no_faster_than_their_rate_and_say_for_how_long_it_held_them_back(tmp_path: Path) -> None:
    rate = parse_rate(RATE)
    with shoal_in(tmp_path, task="digits", rounds=20, max_rate=RATE) as shoal:
        both = shoal.start_all(2)
        assert shoal.codes() == [0, 0]
        assert_one_model(both)
        for each in both:
            times = averages(each)
            assert len(times) >= 20
            sent = (len(times) - 3) * VECTOR_BYTES  # the first, and two that may have been under way with it
            assert sent <= at_once(rate) + rate * (times[-1] - times[0])
            own = (each.result() or {})["own"]
            assert own["max_rate"] == RATE
            assert own["limited_s"] > 0
            assert own["bytes_sent"] >= len(times) * VECTOR_BYTES
            assert "is gone: silent" not in log(each), "heartbeats do not wait"


def test_a_rate_that_cannot_be_read_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    with shoal_in(tmp_path) as shoal:
        node = shoal.start("node-1", max_rate="10Mb")
        assert shoal.codes(node) == [2]
        assert "max_rate = '10Mb' must be a number and a unit (kbit, Mbit, Gbit, kB, MB, GB; a second)" in log(node)
