"""Peers that open and send nothing, or come by the hundred: what each may hold, and that the others get on."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import grpc
import pytest
from transport_kit import HandMade, NewNode, header_of, joined, nodes

from shoal.transport import channels, connection, server
from shoal.transport.channels import CONTROL
from shoal.transport.frames import frames

pytestmark = pytest.mark.live

IDLE = 500


@pytest.fixture
async def node(caplog: pytest.LogCaptureFixture) -> AsyncIterator[NewNode]:
    async with nodes(caplog) as make:
        yield make


@contextlib.asynccontextmanager
async def idle(address: str, count: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    """TCP connections on which nothing is said."""
    host, _, port = address.rpartition(":")
    made = [await asyncio.open_connection(host, int(port)) for _ in range(count)]
    try:
        yield [reader for reader, _ in made]
    finally:
        for _, writer in made:
            writer.transport.abort()


async def test_vectors_pass_while_five_hundred_connections_say_nothing(node: NewNode) -> None:
    a, b = await node("a", elements=1000), await node("b", elements=1000)
    async with idle(b.identity.address, IDLE):
        at_a, at_b = await joined(a, b)
        for seq in range(20):
            a.send(b, at_a, seq, bytes(4000))
            b.send(a, at_b, seq, bytes(4000))
        for one in (a, b):
            for seq in range(20):
                got = await one.heard.messages.get()
                assert got.header.seq == seq
                assert got.vector == bytes(4000)


async def test_a_connection_that_never_says_what_it_is_is_closed(
    node: NewNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "HANDSHAKE_S", 0.5)
    b = await node("b")
    async with idle(b.identity.address, 20) as readers:
        for reader in readers:
            while await reader.read(1000):  # the server's own greeting, and then the end
                pass


async def test_no_more_connections_are_held_than_allowed(node: NewNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "CONNECTIONS_LIMIT", 10)
    b = await node("b")
    async with idle(b.identity.address, 40) as readers:
        ends = asyncio.as_completed([_closed(reader) for reader in readers])
        for _, closed in zip(range(30), ends, strict=False):
            await closed  # the rest stays open


async def _closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1000):
            pass


async def test_a_peer_may_leave_few_control_streams_without_their_exchange(node: NewNode) -> None:
    b = await node("b")
    async with HandMade(b) as a:
        await a.hello()
        held = [await a.open(CONTROL, a.ends._replace(number=k)) for k in range(server.HALVES_LIMIT)]
        with pytest.raises(grpc.RpcError) as refused:
            await a.open(CONTROL, a.ends._replace(number=99))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.details() == "4 Control streams of a wait for their Exchange stream already"
        async with HandMade(b, node_id="aa") as other:
            await other.connect()
            await b.up()
        for call in held:
            call.cancel()
    await b.down()


async def test_vectors_that_are_announced_and_do_not_come_hold_up_nobody(node: NewNode) -> None:
    b = await node("b", elements=1000)
    async with contextlib.AsyncExitStack() as stack:
        for k in range(2 * b.slots):
            a = await stack.enter_async_context(HandMade(b, node_id=f"a{k}"))
            await a.connect()
            await b.up()
            await a.exchange.write(next(frames(header_of(1, 4000), None)))
        honest = await node("a", elements=1000)
        at_a, _ = await joined(honest, b)
        honest.send(b, at_a, 1, bytes(4000))
        assert (await b.heard.messages.get()).peer == "a"
    for _ in range(2 * b.slots):
        await b.down()


async def test_a_vector_that_stops_half_way_gives_its_slot_back(node: NewNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.2)
    b = await node("b", elements=1000, slots=1)
    async with HandMade(b, node_id="a0") as a:
        await a.connect()
        await b.up()
        for frame in itertools.islice(frames(header_of(1, 4000), memoryview(bytes(4000)), 1000), 3):
            await a.exchange.write(frame)
        assert await b.down() == "a0 sends nothing for 0.2 s in the middle of a vector"
        assert await a.exchange.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    honest = await node("a", elements=1000)
    at_a, _ = await joined(honest, b)
    honest.send(b, at_a, 1, bytes(4000))
    assert (await b.heard.messages.get()).vector == bytes(4000)


async def test_a_connection_without_a_vector_under_way_may_be_silent_for_as_long_as_it_likes(
    node: NewNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.01)
    a, b = await node("a", elements=1000), await node("b", elements=1000)
    at_a, _ = await joined(a, b)
    a.send(b, at_a, 1, bytes(4000))
    await b.heard.messages.get()
    async with HandMade(b, node_id="a0") as other:  # by the time that it has come and gone, more has passed
        await other.connect()
        await b.up()
    assert await b.down() != ""
    assert b.heard.current.keys() == {"a"}


async def test_a_peer_that_connects_again_and_again_holds_one_connection(node: NewNode) -> None:
    b = await node("b")
    async with contextlib.AsyncExitStack() as stack:
        for k in range(20):
            a = await stack.enter_async_context(HandMade(b))
            a.ends = a.ends._replace(number=k)
            await a.connect()
            await b.up()
        assert b.heard.current.keys() == {"a"}
        assert b.heard.downs.qsize() == 19
    await b.down()
