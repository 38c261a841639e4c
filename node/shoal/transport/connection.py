"""One connection: the Control and the Exchange stream between this node and one incarnation of a peer.

Both streams stand or fall together. Down is a plain function: from the moment it has run, nothing of the connection
is delivered any more, whatever is still under way.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import grpc
from google.protobuf.message import DecodeError

from shoal.errors import BadFrame, PeerError
from shoal.transport.frames import CHUNK_TAG, Assembler, frames
from shoal.transport.rate import Limit
from shoal.v1 import node_pb2 as pb

if TYPE_CHECKING:
    from shoal.certificates.member import Member

MESSAGE_QUEUE = 64
"""Messages that may wait for a peer that does not read: far above what an exchange has under way at a time."""
CONTROL_QUEUE = 64
"""Control frames likewise: half a minute of heartbeats."""
STALL_S = 60.0
"""Without a frame in the middle of a vector: it holds a receive slot, of which all peers have four. The longest chunk
passes in that time at 280 kbit/s; `max_rate` makes chunks shorter."""
HEARD_OUT_S = 0.5
"""How long what a peer said before it ended may take to be read."""
REASON_GRACE_S = 0.1
"""How long a failed write waits for the status that says why: it may be right behind."""

STREAM_ERRORS = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)
"""What reading or writing raises when a stream has ended; the last is a write after the status has come."""

log = logging.getLogger(__name__)


class TransportEvents(Protocol):
    """What happens, told on the event loop, one at a time. Only `buffer` may wait, and only its stream waits with it.

    Per peer, up and down alternate strictly; what lies between an up and its down carries the same `conn`.
    """

    def up(self, peer: pb.Identity, conn: int) -> None:
        """Both streams stand. `conn` is this node's number for the connection, larger than any before."""

    def down(self, peer_id: str, conn: int, reason: str) -> None:
        """Nothing of connection `conn` comes after this."""

    def control(self, peer_id: str, conn: int, control: pb.Control) -> None:
        """A control frame."""

    async def buffer(self, nbytes: int) -> tuple[int, memoryview]:
        """A receive slot and its view, (nbytes,) uint8; waits while none is free."""
        ...

    def release(self, slot: int) -> None:
        """The slot is not used after all: its message broke off."""

    def message(self, peer_id: str, conn: int, header: bytes, slot: int | None, finite: bool) -> None:
        """A whole message; its vector, if any, lies in `slot`, which is the receiver's from now on, and is known to
        be `finite` or not."""

    def refused(self, peer_id: str, error: PeerError) -> None:
        """A peer's fault: a Hello that does not fit, or a bad frame (whose connection then goes down)."""


class Stream(Protocol):
    """What a client's call and a server's context have in common. `read` gives grpc.aio.EOF at the end."""

    async def read(self) -> Any: ...

    async def write(self, message: bytes) -> None: ...


@dataclasses.dataclass(slots=True)
class Traffic:
    """Bytes to and from one peer since the start, in frames as protobuf counts them (without HTTP/2 and TCP)."""

    sent_bytes: int = 0  # everything: control, headers, vectors, framing
    received_bytes: int = 0
    sent_payload_bytes: int = 0  # vectors that went or came whole
    received_payload_bytes: int = 0


class _Outgoing(NamedTuple):
    header: bytes
    payload: memoryview | None
    sent: Callable[[], None]


class Connection:
    """From the moment its two streams stand until either breaks."""

    def __init__(
        self,
        peer: pb.Identity,
        conn: int,
        streams: tuple[Stream, Stream],
        vector_bytes: int,
        events: TransportEvents,
        traffic: Traffic,
        limit: Limit,
    ) -> None:
        self.peer = peer
        self.conn = conn
        self.member: Member | None = None  # with TLS, by the certificate of the other end
        self.over = asyncio.Event()
        self.reason = ""
        self.code = grpc.StatusCode.OK
        # Why, when a stream ends without a word: of one that has called there is no status to say which.
        self.lost, self.lost_code = f"closed by {peer.node_id}, or lost on the way", grpc.StatusCode.CANCELLED
        self._control, self._exchange = streams
        self._assembler = Assembler(peer.node_id, vector_bytes)
        self._events = events
        self._traffic = traffic
        self._limit = limit
        self._controls: asyncio.Queue[bytes] = asyncio.Queue(CONTROL_QUEUE)
        self._messages: asyncio.Queue[_Outgoing] = asyncio.Queue(MESSAGE_QUEUE)
        self._writing: _Outgoing | None = None
        self._reads: set[asyncio.Task[Any]] = set()  # under way, whether anybody still waits for them or not
        self._pumps: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Up. Call once."""
        for name, work in (
            ("control reader", self._read_control),
            ("control writer", self._write_control),
            ("exchange reader", self._read_exchange),
            ("exchange writer", self._write_exchange),
        ):
            task = asyncio.create_task(self._pump(work), name=f"{name} of {self.peer.node_id} {self.conn}")
            self._pumps.append(task)
        self._events.up(self.peer, self.conn)

    def end(self, reason: str, code: grpc.StatusCode = grpc.StatusCode.ABORTED) -> None:
        """Down, at once; the first reason counts. A peer that dialled gets code and reason as its status."""
        if self.over.is_set():
            return
        self.reason, self.code = reason, code
        self.over.set()
        for pump in self._pumps:
            pump.cancel()
        unsent = [self._writing] if self._writing else []
        while not self._messages.empty():
            unsent.append(self._messages.get_nowait())
        for outgoing in unsent:
            outgoing.sent()
        self._events.down(self.peer.node_id, self.conn, reason)

    async def last_words(self) -> None:
        """Returns when the peer has, or no longer can have, every control frame that was queued. Nothing may be sent
        after this, and the connection ends by it where this end has dialled."""
        said, over = (asyncio.ensure_future(one) for one in (self._say_all(), self.over.wait()))
        try:
            await asyncio.wait((said, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            said.cancel()
            over.cancel()

    async def _say_all(self) -> None:
        await self._controls.join()
        # A call that is cancelled drops what gRPC has not put on the wire yet; a status is sent after all that.
        if (done_writing := getattr(self._control, "done_writing", None)) is not None:
            with contextlib.suppress(*STREAM_ERRORS):
                await done_writing()
            await self.over.wait()  # the peer has read to the end, and answers by its status

    async def heard_out(self) -> None:
        """Returns when the peer, which ends the connection, has no control frame left unread here: its last word, most
        of all. Nobody waits long for that."""
        reader = self._pumps[0]
        if reader is not asyncio.current_task():
            await asyncio.wait({reader}, timeout=HEARD_OUT_S)

    async def settle(self) -> None:
        """Waits until no task of an ended connection is left."""
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def send(self, header: bytes, payload: memoryview | None, sent: Callable[[], None]) -> None:
        """Queues a message; `sent` is called once, when `payload` is not needed any more, sent or not."""
        if self.over.is_set():
            sent()
            return
        try:
            self._messages.put_nowait(_Outgoing(header, payload, sent))
        except asyncio.QueueFull:
            sent()
            self.end(f"{self.peer.node_id} leaves {MESSAGE_QUEUE} messages unread")

    def send_control(self, control: pb.Control) -> None:
        """Queues a control frame."""
        if self.over.is_set():
            return
        try:
            # ControlRequest and ControlResponse are the same bytes, whoever dialled.
            self._controls.put_nowait(pb.ControlRequest(control=control).SerializeToString())
        except asyncio.QueueFull:
            self.end(f"{self.peer.node_id} leaves {CONTROL_QUEUE} control frames unread")

    async def _pump(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs one direction of one stream; however it ends, the connection ends with it."""
        try:
            await work()
            await self.heard_out()
            reason, code = self.lost, self.lost_code
        except BadFrame as error:
            self._events.refused(self.peer.node_id, error)
            reason, code = str(error), grpc.StatusCode.INVALID_ARGUMENT
        except TimeoutError:
            reason = f"{self.peer.node_id} sends nothing for {STALL_S:g} s in the middle of a vector"
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        except STREAM_ERRORS:
            # Whoever watches over the streams (dialler or server) knows the status better.
            await self.heard_out()
            await asyncio.sleep(REASON_GRACE_S)
            reason, code = self.lost, self.lost_code
        except Exception:
            log.exception("connection %d to %s", self.conn, self.peer.node_id)
            reason, code = "internal error", grpc.StatusCode.INTERNAL
        self.end(reason, code)

    async def _read(self, stream: Stream) -> Any:
        """The next frame, or EOF. Whoever waits may be cancelled, the read is not: grpc.aio never frees the message
        that comes for a cancelled one (measured, 1.85: some 40 KB each). It ends with its stream."""
        read = asyncio.ensure_future(stream.read())
        self._reads.add(read)
        read.add_done_callback(self._has_read)
        return await asyncio.shield(read)

    def _has_read(self, read: "asyncio.Task[Any]") -> None:
        self._reads.discard(read)
        if not read.cancelled():
            read.exception()  # looked at, though nobody may wait for it any more

    async def _read_control(self) -> None:
        while (raw := await self._read(self._control)) is not grpc.aio.EOF:
            self._traffic.received_bytes += len(raw)
            try:
                control = pb.ControlRequest.FromString(raw).control
            except DecodeError as error:
                raise BadFrame(f"control frame from {self.peer.node_id} is none: {error}") from None
            if control.WhichOneof("control") is None:
                raise BadFrame(f"control frame from {self.peer.node_id} holds nothing that this version knows")
            self._events.control(self.peer.node_id, self.conn, control)

    async def _write_control(self) -> None:
        while True:
            raw = await self._controls.get()
            self._limit.count(len(raw))
            self._traffic.sent_bytes += len(raw)
            await self._control.write(raw)
            self._controls.task_done()

    async def _read_exchange(self) -> None:
        slot: int | None = None
        try:
            while True:
                async with asyncio.timeout(None if slot is None else STALL_S):
                    frame = await self._read(self._exchange)
                if frame is grpc.aio.EOF:
                    return
                self._traffic.received_bytes += len(frame)
                if self._assembler.wanted is not None:  # not before there is something to put into it
                    slot, view = await self._events.buffer(self._assembler.wanted)
                    self._assembler.fill(view)
                message = self._assembler.feed(frame)
                if message is not None:
                    header, vector, finite = message
                    self._traffic.received_payload_bytes += 0 if vector is None else len(vector)
                    filled, slot = slot, None
                    self._events.message(self.peer.node_id, self.conn, header, filled, finite)
        finally:
            if slot is not None:
                self._events.release(slot)

    async def _write_exchange(self) -> None:
        while True:
            self._writing = outgoing = await self._messages.get()
            for frame in frames(outgoing.header, outgoing.payload, self._limit.chunk_bytes):
                if frame[0] == CHUNK_TAG:
                    await self._limit.turn(len(frame))
                else:
                    self._limit.count(len(frame))
                self._traffic.sent_bytes += len(frame)
                await self._exchange.write(frame)
            self._traffic.sent_payload_bytes += 0 if outgoing.payload is None else len(outgoing.payload)
            self._writing = None
            outgoing.sent()
