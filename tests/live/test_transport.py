"""Connections and messages over real gRPC on loopback: how they come, and how they end."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from transport_kit import NewNode, header_of, joined, nodes

from shoal.transport.connection import Connection
from shoal.transport.frames import CHUNK_BYTES
from shoal.v1 import node_pb2 as pb

pytestmark = pytest.mark.live

CHUNK_ELEMENTS = CHUNK_BYTES // 4
CHILD = """
import asyncio, sys
from transport_kit import Node

async def main(incarnation, address):
    a = await Node("a", incarnation=incarnation, elements=1).listen()
    a.transport.connect((await a.transport.greet(address)).identity)
    while True:
        got = await a.heard.messages.get()
        a.send("b", got.conn, got.header.seq, got.vector)

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


async def echoing_child(incarnation: int, address: str) -> asyncio.subprocess.Process:
    """A process with a node "a" that greets `address` and sends every message back."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = (sys.executable, "-c", CHILD, str(incarnation), address)
    return await asyncio.create_subprocess_exec(*command, env=environment)


@pytest.fixture
async def node(caplog: pytest.LogCaptureFixture) -> AsyncIterator[NewNode]:
    async with nodes(caplog) as make:
        yield make


class TestMessages:
    @pytest.mark.parametrize("elements", [0, 1, 777, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 3 * CHUNK_ELEMENTS + 5])
    async def test_vectors_arrive_bit_for_bit_both_ways_at_once(self, node: NewNode, elements: int) -> None:
        a, b = await node("a", elements=elements), await node("b", elements=elements)
        at_a, at_b = await joined(a, b)
        one, other = (random.Random(seed).randbytes(4 * elements) for seed in (1, 2))
        sent = a.send(b, at_a, 1, one), b.send(a, at_b, 2, other)
        at_b_came, at_a_came = await b.heard.messages.get(), await a.heard.messages.get()
        assert at_b_came == ("a", at_b, pb.Header.FromString(header_of(1, len(one))), one)
        assert at_a_came == ("b", at_a, pb.Header.FromString(header_of(2, len(other))), other)
        for each in sent:
            await each.wait()

    async def test_order_is_kept_with_and_without_vectors(self, node: NewNode) -> None:
        a, b = await node("a", elements=1000), await node("b", elements=1000)
        at_a, _ = await joined(a, b)
        for seq in range(60):
            a.send(b, at_a, seq, seq.to_bytes(2) * 2000 if seq % 3 == 0 else None)
        for seq in range(60):
            got = await b.heard.messages.get()
            assert got.header.seq == seq
            assert got.vector == (seq.to_bytes(2) * 2000 if seq % 3 == 0 else None)

    async def test_control_frames_arrive_in_order_both_ways(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b")
        await joined(a, b)
        for number in range(30):
            a.transport.send_control("b", pb.Control(heartbeat=pb.Heartbeat(number=number)))
            b.transport.send_control("a", pb.Control(leave=pb.Leave(reason=f"{number}")))
        assert [(await b.heard.controls.get()).heartbeat.number for _ in range(30)] == list(range(30))
        assert [(await a.heard.controls.get()).leave.reason for _ in range(30)] == [str(n) for n in range(30)]

    async def test_bytes_are_counted_by_peer_the_same_at_both_ends(self, node: NewNode) -> None:
        a, b = await node("a", elements=5), await node("b", elements=5)
        at_a, _ = await joined(a, b)
        await a.send(b, at_a, 1, bytes(20)).wait()
        a.transport.send_control("b", pb.Control(leave=pb.Leave(reason="why")))
        await b.heard.messages.get()
        await b.heard.controls.get()
        sent, received = a.transport.traffic["b"], b.transport.traffic["a"]
        assert sent.sent_payload_bytes == received.received_payload_bytes == 20
        assert sent.sent_bytes == received.received_bytes > 20
        assert sent.received_bytes == received.sent_bytes == 0

    async def test_a_message_for_a_connection_that_is_over_is_dropped_and_its_slot_given_back(
        self, node: NewNode
    ) -> None:
        a, b = await node("a", elements=1), await node("b", elements=1)
        at_a, _ = await joined(a, b)
        a.transport.reset("b", "to begin again")
        assert a.send(b, at_a, 1, b"late").is_set()
        assert a.send("nobody", 1, 1).is_set()
        a.send(b, await a.up(), 2, b"good")
        assert (await b.heard.messages.get()).vector == b"good"

    async def test_a_reset_gives_back_everything_that_waits_to_be_sent(self, node: NewNode) -> None:
        a, b = await node("a", elements=CHUNK_ELEMENTS), await node("b", elements=CHUNK_ELEMENTS, slots=1)
        at_a, _ = await joined(a, b)
        held = await b.heard.slots.take()
        sent = [a.send(b, at_a, seq, bytes(4 * CHUNK_ELEMENTS)) for seq in range(20)]
        a.transport.reset("b", "enough")
        assert all(each.is_set() for each in sent)
        assert await b.down() == "closed by a, or lost on the way"
        b.heard.slots.give(held)


class TestConnections:
    async def test_both_ends_hear_of_a_reset_and_connect_again(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b")
        await joined(a, b)
        b.transport.reset("a", "a vector did not come")
        assert await b.down() == "a vector did not come"
        assert await a.down() == "a vector did not come"
        await a.up()
        await b.up()
        a.transport.reset("b", "nor did another")
        assert await a.down() == "nor did another"
        assert await b.down() == "closed by a, or lost on the way"
        await a.up()
        await b.up()

    async def test_the_reason_of_a_reset_arrives_even_in_the_middle_of_writing(self, node: NewNode) -> None:
        a, b = await node("a", elements=CHUNK_ELEMENTS), await node("b", elements=CHUNK_ELEMENTS)
        at_a, _ = await joined(a, b)
        for n in range(20):
            for seq in range(30):
                a.send(b, at_a, seq, bytes(CHUNK_BYTES))
            await b.heard.messages.get()
            b.transport.reset("a", f"reason {n}")
            assert await a.down() == f"reason {n}"
            at_a, _ = await asyncio.gather(a.up(), b.up())

    async def test_a_reason_cannot_break_the_lines_of_a_log(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b")
        await joined(a, b)
        b.transport.reset("a", "one\nERROR two\x1b[31m")
        assert await a.down() == "one ERROR two [31m"

    async def test_the_lower_id_dials_whoever_said_hello(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b")
        hello = await b.transport.greet(a.identity.address)
        b.transport.connect(hello.identity)
        a.transport.connect(b.identity)
        assert await a.heard.ups.get() == (b.identity, 1)
        assert await b.heard.ups.get() == (a.identity, 1)

    async def test_to_connect_again_with_other_or_older_news_keeps_the_connection(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b", incarnation=5)
        at_a, at_b = await joined(a, b)
        a.transport.connect(b.identity)
        a.transport.connect(pb.Identity(node_id="b", incarnation=5, address="127.0.0.1:1"))
        a.transport.connect(pb.Identity(node_id="b", incarnation=4, address="127.0.0.1:2"))
        b.transport.connect(a.identity)
        await a.send(b, at_a, 1).wait()
        assert (await b.heard.messages.get()).conn == at_b
        assert a.heard.downs.empty()

    async def test_a_peer_is_dialled_until_it_is_there_and_at_its_newest_address(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b")
        await b.transport.greet(a.identity.address)
        attempts: asyncio.Queue[None] = asyncio.Queue()
        nobody = await asyncio.start_server(lambda _, w: (attempts.put_nowait(None), w.close())[1], "127.0.0.1", 0)
        host, port = nobody.sockets[0].getsockname()
        a.transport.connect(pb.Identity(node_id="b", incarnation=1, address="nonsense"))
        a.transport.connect(pb.Identity(node_id="b", incarnation=1, address=f"{host}:{port}"))
        for _ in range(3):
            await attempts.get()
        a.transport.connect(b.identity)
        await asyncio.gather(a.up(), b.up())
        nobody.close()

    async def test_a_forgotten_peer_must_say_hello_again(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b")
        await joined(a, b)
        b.transport.forget("a", "silent for 5 s")
        assert await b.down() == await a.down() == "silent for 5 s"
        a.transport.forget("b", "then not")
        await joined(a, b)

    async def test_a_new_incarnation_takes_the_place_of_the_old(self, node: NewNode) -> None:
        a, b = await node("a"), await node("b")
        await joined(a, b)
        again = await node("a", incarnation=2)
        await again.transport.greet(b.identity.address)
        assert await b.down() == "a has started again"
        again.transport.connect(b.identity)
        await again.up()
        peer, _ = await b.heard.ups.get()
        assert peer.incarnation == 2
        a.transport.forget("b", "the old one is refused from now on")

    async def test_closing_tells_the_peers_why(self, node: NewNode) -> None:
        a, b, c = await node("a"), await node("b"), await node("c")
        await joined(a, b)
        await joined(b, c)
        await b.close()
        assert await a.down() == "b closes"
        assert await c.down() == "closed by b, or lost on the way"

    async def test_a_peer_that_is_killed_goes_down_and_may_come_back(self, node: NewNode) -> None:
        b = await node("b", elements=1)
        for incarnation in (1, 2):
            child = await echoing_child(incarnation, b.identity.address)
            peer, conn = await b.heard.ups.get()
            assert peer.incarnation == incarnation
            b.send("a", conn, 7, b"ping")
            assert (await b.heard.messages.get()).vector == b"ping"
            child.send_signal(signal.SIGKILL)
            await child.wait()
            await b.down()
        b.transport.forget("a", "it is dead")

    async def test_a_peer_that_stops_answering_goes_down_by_keepalive(self, node: NewNode) -> None:
        b = await node("b", heartbeat_s=0.05)  # a ping after 1 s, and 4 s to answer
        child = await echoing_child(1, b.identity.address)
        await b.up()
        child.send_signal(signal.SIGSTOP)
        await b.down()
        child.send_signal(signal.SIGKILL)
        await child.wait()

    async def test_many_reconnects_leave_no_task_behind(self, node: NewNode) -> None:
        a, b = await node("a", elements=2), await node("b", elements=2)
        await joined(a, b)
        base = None
        for n in range(200):
            (a, b)[n % 2].transport.reset("ba"[n % 2], "again")
            await asyncio.gather(a.down(), b.down())
            at_a, at_b = await asyncio.gather(a.up(), b.up())
            a.send(b, at_a, n, bytes(8))
            assert (await b.heard.messages.get())[1:3] == (at_b, pb.Header.FromString(header_of(n, 8)))
            if n == 20:
                base = len(asyncio.all_tasks())
        assert base is not None
        async with asyncio.timeout(5):
            while len(tasks := asyncio.all_tasks()) > base:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


class TestLastWords:
    @pytest.mark.parametrize("who", ["a", "b"])
    async def test_a_leave_that_was_said_before_closing_is_heard_whoever_dialled(self, node: NewNode, who: str) -> None:
        a, b = await node("a"), await node("b")
        await joined(a, b)
        speaker, listener = (a, b) if who == "a" else (b, a)
        speaker.transport.send_control(listener.id, pb.Control(leave=pb.Leave(reason="tired")))
        await speaker.close()
        assert (await listener.heard.controls.get()).leave.reason == "tired"
        await listener.down()

    async def test_it_is_heard_though_the_other_stream_ends_before_it_is_read(
        self, node: NewNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, other_is_over = Connection._read, asyncio.Event()

        async def late(self: Connection, stream: Any) -> Any:
            if self.peer.node_id != "b":
                return await read(self, stream)
            try:
                frame = await read(self, stream)
            finally:
                if stream is self._exchange:  # on which nothing is said
                    other_is_over.set()
            await other_is_over.wait()
            return frame

        monkeypatch.setattr(Connection, "_read", late)
        a, b = await node("a"), await node("b")
        await joined(a, b)
        b.transport.send_control("a", pb.Control(leave=pb.Leave(reason="tired")))
        await b.close()
        assert (await a.heard.controls.get()).leave.reason == "tired"
        assert await a.down() == "b closes"
