"""Who opens the streams: the lower id, and where that is in vain the other."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from transport_kit import NewNode, Node, nodes

from shoal.transport import dialler
from shoal.v1 import node_pb2 as pb

pytestmark = pytest.mark.live

NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def node(caplog: pytest.LogCaptureFixture) -> AsyncIterator[NewNode]:
    async with nodes(caplog) as make:
        yield make


async def ping(at: Node, to: Node, n: int) -> None:
    """Until a message has got there, over whichever connection stands; what breaks takes messages along."""
    while True:
        if to.id in at.heard.current:
            at.send(to, at.heard.current[to.id], n)
        try:
            async with asyncio.timeout(0.05):
                while (await to.heard.messages.get()).header.seq != n:
                    pass
        except TimeoutError:
            continue
        return


async def test_who_cannot_be_dialled_opens_the_streams_and_both_send_over_them(
    node: NewNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialler, "TURN_S", 0.02)
    a, b = await node("a", elements=1), await node("b", elements=1)
    hello = await b.transport.greet(a.identity.address)
    a.transport.connect(pb.Identity(node_id="b", incarnation=1, address=NOWHERE))
    b.transport.connect(hello.identity)
    for _ in range(3):
        at_a, at_b = await asyncio.gather(a.up(), b.up())
        a.send(b, at_a, 1, b"ping")
        b.send(a, at_b, 2, b"pong")
        assert (await b.heard.messages.get()).vector == b"ping"
        assert (await a.heard.messages.get()).vector == b"pong"
        assert a.transport.unreached() == [], "it is connected"
        a.transport.reset("b", "once more")
        await asyncio.gather(a.down(), b.down())


async def test_where_a_peer_was_dialled_in_vain_is_said(node: NewNode) -> None:
    a, b = await node("a"), await node("b")
    await b.transport.greet(a.identity.address)
    a.transport.connect(pb.Identity(node_id="b", incarnation=1, address=NOWHERE))
    while not (said := a.transport.unreached()):
        await asyncio.sleep(0.01)
    assert said[0].startswith(f"b is not reached at {NOWHERE}: ")
    assert "--advertise" in said[0]
    a.transport.forget("b", "it left")
    assert a.transport.unreached() == []


async def test_two_that_dial_each_other_at_once_end_with_one_connection(
    node: NewNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialler, "TURN_S", 0.0)
    a, b = await node("a"), await node("b")
    hello = await a.transport.greet(b.identity.address)
    for n in range(20):
        a.transport.connect(hello.identity)
        b.transport.connect(a.identity)
        await ping(a, b, n)
        await ping(b, a, n)
        for one, other in ((a, b), (b, a)):
            one.transport.forget(other.id, "and again")
        await a.transport.greet(b.identity.address)
