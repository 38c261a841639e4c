"""Transport under bad frames, cuts and slow readers, over real gRPC on loopback."""

import asyncio
import itertools
import math
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from checksum import checksum
from transport_kit import CuttingProxy, HandMade, NewNode, Node, header_of, joined, nodes

from shoal.errors import BadFrame
from shoal.transport import connection
from shoal.transport.frames import CHUNK_BYTES, frames
from shoal.v1 import node_pb2 as pb
from shoal.v1.node_pb2_grpc import NodeServiceStub

pytestmark = pytest.mark.live

CHUNK_ELEMENTS = CHUNK_BYTES // 4


@pytest.fixture
async def node(caplog: pytest.LogCaptureFixture) -> AsyncIterator[NewNode]:
    async with nodes(caplog) as make:
        yield make


async def status(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


class TestBadFrames:
    @pytest.mark.parametrize(
        ("bad", "complaint"),
        [
            (lambda: [*frames(header_of(1, 12), None)], r"vector from a has 12 bytes \(3 elements\), expected 8 bytes"),
            (lambda: list(frames(header_of(1, 8), memoryview(b"abcdefgh")))[1:2], "chunk from a, expected a header"),
            (
                lambda: [*list(frames(header_of(1, 8), memoryview(b"abcdefgh")))[:2], b"\x1a\x00"],
                "vector from a has checksum",
            ),
            (lambda: [b"\x2a\x00"], "frame from a holds field tag 0x2a"),
            (lambda: [*frames(header_of(1, 8), None)] * 2, "header from a after 0 bytes of a vector that is not whole"),
            (lambda: [b"\x0a\x02\xff\xff"], "header from a is not a Header"),
        ],
        ids=["wrong size", "out of order", "wrong checksum", "unknown field", "header twice", "no header"],
    )
    async def test_a_bad_frame_resets_its_peer_with_a_reason_and_nobody_else(
        self, node: NewNode, bad: Callable[[], list[bytes]], complaint: str
    ) -> None:
        b, other = await node("b", elements=2), await node("aa", elements=2)
        at_other, at_b = await joined(other, b)
        async with HandMade(b) as a:
            await a.connect()
            await b.up()
            for frame in bad():
                await a.exchange.write(frame)
            peer, error = await b.heard.refusals.get()
            assert peer == "a"
            assert isinstance(error, BadFrame)
            assert await b.heard.downs.get() == ("a", at_b + 1, str(error))
            for call in (a.exchange, a.control):
                assert await status(call) == (grpc.StatusCode.INVALID_ARGUMENT, str(error))
            with pytest.raises(BadFrame, match=complaint):
                raise error
        other.send(b, at_other, 9, b"as usual")
        assert (await b.heard.messages.get()).vector == b"as usual"

    @pytest.mark.parametrize("raw", [b"", b"\x0a\x00", b"\x0a\x02\x7a\x00", b"\xff\xff"])
    async def test_a_control_frame_that_holds_nothing_known_is_refused(self, node: NewNode, raw: bytes) -> None:
        b = await node("b")
        async with HandMade(b) as a:
            await a.connect()
            await a.control.write(raw)
            assert (await a.control.code()) is grpc.StatusCode.INVALID_ARGUMENT
        assert str((await b.heard.refusals.get())[1]).startswith("control frame from a")
        await b.up()

    async def test_bad_frames_from_the_one_who_was_dialled_end_it_too(self, node: NewNode) -> None:
        a, b = await node("a", elements=2), await node("b", elements=3)
        _, at_b = await joined(a, b)
        b.send(a, at_b, 1, bytes(12))
        peer, error = await a.heard.refusals.get()
        assert (peer, str(error)) == ("b", "vector from b has 12 bytes (3 elements), expected 8 bytes")
        assert await a.down() == str(error)
        assert await b.down() == "closed by a, or lost on the way"
        await a.up()

    async def test_an_error_of_our_own_ends_the_connection_and_is_logged(
        self, node: NewNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = await node("a"), await node("b")
        at_a, _ = await joined(a, b)
        monkeypatch.setattr(b.heard, "message", {}.__getitem__)
        a.send(b, at_a, 1)
        assert await b.down() == await a.down() == "internal error"
        assert "TypeError" in caplog.text
        caplog.clear()

    async def test_a_frame_above_the_limit_never_reaches_us(self, node: NewNode) -> None:
        b = await node("b", elements=1)
        async with HandMade(b) as a:
            await a.connect()
            await a.exchange.write(bytes(CHUNK_BYTES + 100))
            assert (await a.exchange.code()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await b.up()
        await b.down()

    async def test_noise_instead_of_a_hello_is_refused(self, node: NewNode) -> None:
        b = await node("b")
        async with grpc.aio.insecure_channel(b.identity.address) as channel:
            with pytest.raises(grpc.RpcError, match="not a HelloRequest"):
                await channel.unary_unary("/shoal.v1.NodeService/Hello")(b"\xff\xff")
        assert "is none" in str((await b.heard.refusals.get())[1])


async def test_any_protobuf_client_can_talk_to_a_node(node: NewNode) -> None:
    """With the generated stub and its serializers, and chunks of its own size."""
    b = await node("b", elements=3)
    header, vector = pb.Header.FromString(header_of(5, 12)), b"hello, world"
    trailer = pb.Trailer(sum=checksum(vector, 6))
    async with HandMade(b) as a:
        await a.hello()
        stub = NodeServiceStub(a.channel)
        control = stub.Control(metadata=a.ends.metadata())
        await control.initial_metadata()
        exchange = stub.Exchange(metadata=a.ends.metadata())
        conn = await b.up()

        await control.write(pb.ControlRequest(control=pb.Control(leave=pb.Leave(reason="bye"))))
        assert (await b.heard.controls.get()).leave.reason == "bye"
        for frame in ({"header": header}, {"chunk": vector[:6]}, {"chunk": vector[6:]}, {"trailer": trailer}):
            await exchange.write(pb.ExchangeRequest(**frame))
        assert await b.heard.messages.get() == ("a", conn, header, vector)

        b.transport.send_control("a", pb.Control(heartbeat=pb.Heartbeat(number=3)))
        assert (await control.read()).control.heartbeat.number == 3
        b.send("a", conn, 5, vector)
        assert [await exchange.read() for _ in range(3)] == [
            pb.ExchangeResponse(header=header),
            pb.ExchangeResponse(chunk=vector),
            pb.ExchangeResponse(trailer=pb.Trailer(sum=checksum(vector))),
        ]


class TestCuts:
    async def test_cut_at_any_byte_a_connection_delivers_whole_messages_in_order_or_none(self, node: NewNode) -> None:
        rng = random.Random(2)
        elements = 40_000
        a, b = await node("a", elements=elements), await node("b", elements=elements)
        vectors = [rng.randbytes(4 * elements) for _ in range(4)]
        there, back = (
            CuttingProxy(each.identity.address, lambda: rng.choice((rng.uniform(1, 3e3), rng.uniform(1, 2e6))))
            for each in (b, a)
        )

        async def talk(me: Node, to: Node) -> None:
            """Sends numbered messages, every second one with a vector, for as long as each connection stands."""
            while True:
                conn, seq = await me.up(), 0
                while me.heard.current.get(to.id) == conn:
                    await me.send(to, conn, seq, vectors[seq % 4] if seq % 2 else None).wait()
                    seq += 1

        async def listen(me: Node) -> None:
            conn, expected = 0, 0
            while True:
                got = await me.heard.messages.get()
                expected = expected if got.conn == conn else 0
                assert got.header.seq == expected
                assert got.vector == (vectors[expected % 4] if expected % 2 else None)
                conn, expected = got.conn, expected + 1

        async with there.serving() as to_b, back.serving() as to_a, asyncio.TaskGroup() as group:
            await a.transport.greet(b.identity.address)
            a.transport.connect(pb.Identity(node_id="b", incarnation=1, address=to_b))
            b.transport.connect(pb.Identity(node_id="a", incarnation=1, address=to_a))  # who dials too, if a is slow
            tasks = [group.create_task(work) for work in (talk(a, b), talk(b, a), listen(a), listen(b))]
            for _ in range(40):
                await a.down()
            a.transport.forget("b", "enough")
            b.transport.forget("a", "enough")
            for task in tasks:
                task.cancel()
        assert there.cuts + back.cuts > 20
        for each in (a, b):
            assert [what for what, _, _ in each.heard.history].count("message") > 20

    @pytest.mark.parametrize("cut", [0, 1], ids=["control", "exchange"])
    async def test_a_cut_of_either_stream_takes_both_down_and_only_once(self, node: NewNode, cut: int) -> None:
        a, b = await node("a", elements=CHUNK_ELEMENTS), await node("b", elements=CHUNK_ELEMENTS)
        # Streams have a TCP connection each, Control first; of each pair only one is cut.
        limits = itertools.cycle((50_000, math.inf) if cut == 0 else (math.inf, 50_000))
        proxy = CuttingProxy(b.identity.address, lambda: next(limits))
        async with proxy.serving() as address:
            await a.transport.greet(b.identity.address)
            a.transport.connect(pb.Identity(node_id="b", incarnation=1, address=address))
            for n in range(1, 6):
                at_a, _ = await asyncio.gather(a.up(), b.up())
                if cut == 0:
                    a.transport.send_control("b", pb.Control(leave=pb.Leave(reason="x" * 100_000)))
                else:
                    a.send(b, at_a, n, bytes(CHUNK_BYTES))
                await asyncio.gather(a.down(), b.down())
                assert proxy.cuts == n
            a.transport.forget("b", "enough")
        assert b.heard.messages.empty()
        assert b.heard.controls.empty()


class TestBackpressure:
    async def test_without_a_free_slot_only_that_stream_waits(self, node: NewNode) -> None:
        elements = 2 * CHUNK_ELEMENTS
        a, b = await node("a", elements=elements), await node("b", elements=elements, slots=1)
        at_a, at_b = await joined(a, b)
        held = await b.heard.slots.take()
        sent = [a.send(b, at_a, seq, bytes(4 * elements)) for seq in range(8)]
        for number in range(20):  # there and back, while the vectors wait
            a.transport.send_control("b", pb.Control(heartbeat=pb.Heartbeat(number=number)))
            assert (await b.heard.controls.get()).heartbeat.number == number
            b.transport.send_control("a", pb.Control(heartbeat=pb.Heartbeat(answers=number)))
            assert (await a.heard.controls.get()).heartbeat.answers == number
        b.send(a, at_b, 77)  # the other direction of the same stream flows as well
        assert (await a.heard.messages.get()).header.seq == 77
        assert b.heard.messages.empty()
        assert not sent[-1].is_set()
        b.heard.slots.give(held)
        assert [(await b.heard.messages.get()).header.seq for _ in range(8)] == list(range(8))

    async def test_a_slow_reader_does_not_hold_up_another_peer(self, node: NewNode) -> None:
        elements = 2 * CHUNK_ELEMENTS
        a, slow, quick = [await node(name, elements=elements, slots=1) for name in ("a", "b", "c")]
        to_slow, _ = await joined(a, slow)
        to_quick, _ = await joined(a, quick)
        held = await slow.heard.slots.take()
        stuck = [a.send(slow, to_slow, seq, bytes(4 * elements)) for seq in range(8)]
        for seq in range(8):
            a.send(quick, to_quick, seq, bytes(4 * elements))
            assert (await quick.heard.messages.get()).header.seq == seq
        assert not stuck[-1].is_set()
        slow.heard.slots.give(held)
        assert [(await slow.heard.messages.get()).header.seq for _ in range(8)] == list(range(8))

    async def test_a_stalled_connection_still_ends_when_it_breaks(self, node: NewNode) -> None:
        a, b = await node("a", elements=1, slots=1), await node("b", elements=1, slots=1)
        at_a, at_b = await joined(a, b)
        held = [await each.heard.slots.take() for each in (a, b)]
        a.send(b, at_a, 1, b"into")
        b.send(a, at_b, 1, b"void")
        b.transport.reset("a", "cut")
        assert await a.down() == "cut"
        for each, slot in zip((a, b), held, strict=True):
            each.heard.slots.give(slot)
        at_a, _ = await a.up(), await b.up()
        a.send(b, at_a, 2, b"next")
        assert (await b.heard.messages.get()).vector == b"next"

    async def test_a_peer_that_never_reads_is_dropped_with_every_slot_given_back(self, node: NewNode) -> None:
        b = await node("b", elements=CHUNK_ELEMENTS)
        async with HandMade(b) as a:
            await a.connect()
            conn = await b.up()
            sent = [b.send("a", conn, seq, bytes(CHUNK_BYTES)) for seq in range(connection.MESSAGE_QUEUE + 2)]
            assert await b.down() == f"a leaves {connection.MESSAGE_QUEUE} messages unread"
            assert all(each.is_set() for each in sent)

    async def test_control_frames_for_a_peer_that_never_reads_are_bounded_too(self, node: NewNode) -> None:
        b = await node("b")
        async with HandMade(b) as a:
            await a.connect()
            await b.up()
            for _ in range(connection.CONTROL_QUEUE + 1):
                b.transport.send_control("a", pb.Control(leave=pb.Leave(reason="x" * 100_000)))
            assert await b.down() == f"a leaves {connection.CONTROL_QUEUE} control frames unread"
