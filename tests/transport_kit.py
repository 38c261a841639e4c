"""What the transport's tests share: a node that records what it hears, a TCP proxy that cuts, a peer made by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, Self

import grpc
import pytest

from shoal.errors import PeerError
from shoal.link import Slots
from shoal.transport import Transport
from shoal.transport.channels import CONTROL, EXCHANGE, Ends
from shoal.transport.tls import Tls
from shoal.v1 import node_pb2 as pb
from shoal.v1.node_pb2_grpc import NodeServiceStub


class Got(NamedTuple):
    """A message as it arrived."""

    peer: str
    conn: int
    header: pb.Header
    vector: bytes | None


class Recorder:
    """TransportEvents that keep everything: a queue for each kind of event, and the order of all in `history`."""

    def __init__(self, slots: int) -> None:
        self.slots = Slots(range(slots))
        self.views: dict[int, memoryview] = {}
        self.history: list[tuple[str, str, int]] = []
        self.current: dict[str, int] = {}
        self.ups: asyncio.Queue[tuple[pb.Identity, int]] = asyncio.Queue()
        self.downs: asyncio.Queue[tuple[str, int, str]] = asyncio.Queue()
        self.controls: asyncio.Queue[pb.Control] = asyncio.Queue()
        self.messages: asyncio.Queue[Got] = asyncio.Queue()
        self.refusals: asyncio.Queue[tuple[str, PeerError]] = asyncio.Queue()

    def up(self, peer: pb.Identity, conn: int) -> None:
        self.history.append(("up", peer.node_id, conn))
        self.current[peer.node_id] = conn
        self.ups.put_nowait((peer, conn))

    def down(self, peer_id: str, conn: int, reason: str) -> None:
        self.history.append(("down", peer_id, conn))
        self.current.pop(peer_id, None)
        self.downs.put_nowait((peer_id, conn, reason))

    def control(self, peer_id: str, conn: int, control: pb.Control) -> None:
        self.history.append(("control", peer_id, conn))
        self.controls.put_nowait(control)

    async def buffer(self, nbytes: int) -> tuple[int, memoryview]:
        slot = await self.slots.take()
        self.views[slot] = memoryview(bytearray(nbytes))
        return slot, self.views[slot]

    def release(self, slot: int) -> None:
        self.slots.give(slot)

    def message(self, peer_id: str, conn: int, header: bytes, slot: int | None, finite: bool) -> None:
        self.history.append(("message", peer_id, conn))
        vector = None
        if slot is not None:
            vector = bytes(self.views.pop(slot))
            self.slots.give(slot)
        self.messages.put_nowait(Got(peer_id, conn, pb.Header.FromString(header), vector))

    def refused(self, peer_id: str, error: PeerError) -> None:
        self.refusals.put_nowait((peer_id, error))

    def check_order(self) -> None:
        """Per peer: up and down alternate, numbers grow, and all between carries the connection's number."""
        current: dict[str, int | None] = {}
        last: dict[str, int] = {}
        for what, peer, conn in self.history:
            if what == "up":
                assert current.get(peer) is None, f"up {peer} {conn} without a down"
                assert conn > last.get(peer, 0)
                current[peer] = last[peer] = conn
            else:
                assert current.get(peer) == conn, f"{what} {peer} {conn} outside of its connection"
                if what == "down":
                    current[peer] = None


class Node:
    """A transport with its recorder."""

    def __init__(
        self,
        node_id: str,
        *,
        incarnation: int = 1,
        elements: int = 0,
        judge: Callable[[pb.Hello], str | None] = lambda hello: None,
        slots: int = 4,
        document: str = "{}",
        heartbeat_s: float = 0.5,
        max_rate: float = 0.0,
        tls: Tls | None = None,
    ) -> None:
        self.identity = pb.Identity(node_id=node_id, incarnation=incarnation, name=node_id)
        self.elements = elements
        self.document = document
        self.slots = slots
        self.tls = tls
        self.heard = Recorder(slots)
        self.transport = Transport(
            identity=self.identity,
            hello=self.hello,
            judge=judge,
            events=self.heard,
            heartbeat_s=heartbeat_s,
            redial_s=(0.005, 0.1),
            max_rate=max_rate,
            tls=tls,
        )

    @property
    def id(self) -> str:
        return self.identity.node_id

    def hello(self) -> pb.Hello:
        return pb.Hello(identity=self.identity, protocol=1, elements=self.elements, run_document=self.document)

    async def listen(self) -> "Node":
        self.identity.address = await self.transport.listen("127.0.0.1:0")
        return self

    async def up(self) -> int:
        """The number of the next connection that comes up."""
        return (await self.heard.ups.get())[1]

    async def down(self) -> str:
        """The reason of the next connection that goes down."""
        return (await self.heard.downs.get())[2]

    def send(self, to: "Node | str", conn: int, seq: int, vector: bytes | None = None) -> asyncio.Event:
        """Sends a message, ACCEPT with a vector or OFFER without; the event is `sent`."""
        done = asyncio.Event()
        header = header_of(seq, None if vector is None else len(vector))
        payload = None if vector is None else memoryview(vector)
        self.transport.send(to if isinstance(to, str) else to.id, conn, header, payload, done.set)
        return done

    async def close(self) -> None:
        await self.transport.close()
        self.heard.check_order()
        assert self.heard.slots.free == self.slots, "a receive slot was lost"


NewNode = Callable[..., Awaitable[Node]]


@contextlib.asynccontextmanager
async def nodes(caplog: pytest.LogCaptureFixture, expected: str = "") -> AsyncIterator[NewNode]:
    """Makes listening nodes; afterwards each closes with its events in order, no task left and nothing logged, but for
    warnings that end as `expected`."""
    made: list[Node] = []

    async def make(node_id: str, **options: Any) -> Node:
        made.append(await Node(node_id, **options).listen())
        return made[-1]

    yield make
    for each in made:
        await each.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:  # gRPC's own tasks take a few turns to see the end
        _, left = await asyncio.wait(left, timeout=5)
    assert not left
    records = caplog.get_records("call") + caplog.get_records("teardown")
    warnings = [r.getMessage() for r in records if r.levelname in ("WARNING", "ERROR")]
    assert [w for w in warnings if not expected or not w.endswith(expected)] == []


def header_of(seq: int, nbytes: int | None) -> bytes:
    header = pb.Header(kind=pb.MESSAGE_KIND_OFFER, seq=seq)
    if nbytes is not None:
        header.kind = pb.MESSAGE_KIND_ACCEPT
        header.vector.CopyFrom(pb.Vector(elements=nbytes // 4, dtype=pb.DTYPE_F32, bytes=nbytes))
    return header.SerializeToString()


async def joined(a: Node, b: Node) -> tuple[int, int]:
    """Greets and connects two listening nodes; the numbers of the connection at each end."""
    hello = await a.transport.greet(b.identity.address)
    a.transport.connect(hello.identity)
    b.transport.connect(a.identity)
    return await a.up(), await b.up()


class CuttingProxy:
    """Forwards TCP to `target`; `cut_after` says how many bytes the next connection may carry, both ways together."""

    def __init__(self, target: str, cut_after: Callable[[], float]) -> None:
        self.cuts = 0
        self._target = target.rsplit(":", 1)
        self._cut_after = cut_after
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its own address, while it serves."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        yield "{}:{}".format(*server.sockets[0].getsockname())
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        left = [self._cut_after()]
        both = [self._forward(reader, there_writer, left), self._forward(there_reader, writer, left)]
        pumps = [asyncio.create_task(pump) for pump in both]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cuts += left[0] < 0
            for pump in pumps:
                pump.cancel()
            for end in (writer, there_writer):
                end.transport.abort()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[float]) -> None:
        while data := await reader.read(1 << 16):
            left[0] -= len(data)
            writer.write(data if left[0] >= 0 else data[: int(left[0])])
            await writer.drain()
            if left[0] < 0:
                return


class HandMade:
    """A peer named "a" made of grpc calls alone: it says Hello, opens streams, and writes what it likes."""

    def __init__(self, to: Node, incarnation: int = 1, node_id: str = "a") -> None:
        self._to = to
        self.identity = pb.Identity(node_id=node_id, incarnation=incarnation)
        self.ends = Ends(node_id, incarnation, to.id, to.identity.incarnation, 1)
        self.control: Any = None
        self.exchange: Any = None

    async def __aenter__(self) -> Self:
        self.channel = grpc.aio.insecure_channel(self._to.identity.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def hello(self) -> pb.Hello:
        request = pb.HelloRequest(hello=pb.Hello(identity=self.identity, elements=self._to.elements))
        answer: pb.HelloResponse = await NodeServiceStub(self.channel).Hello(request)
        return answer.hello

    async def open(self, method: str, ends: Ends | None = None) -> Any:
        """A stream whose other end has accepted it."""
        call = self.channel.stream_stream(method)(metadata=(ends or self.ends).metadata())
        await call.initial_metadata()
        await call.wait_for_connection()
        return call

    async def connect(self) -> None:
        await self.hello()
        self.control = await self.open(CONTROL)
        self.exchange = await self.open(EXCHANGE)
