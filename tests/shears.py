"""A TCP proxy that reads along, and cuts connections inside the messages of an exchange, at a random byte."""

import asyncio
import collections
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping

from google.protobuf.message import DecodeError

from shoal.messages import Kind
from shoal.v1 import node_pb2 as pb

PREFACE = 24
"""Bytes that a client sends before its first frame (RFC 9113, section 3.4)."""
FRAME_HEAD, DATA = 9, 0
"""Length, type, flags and stream of an HTTP/2 frame (RFC 9113, section 4.1); the type that carries gRPC's messages."""
MESSAGE_HEAD = 5
"""gRPC's own prefix of a message: a flag and a length."""


class Shears:
    """Where to cut: inside the messages of an exchange with one chance, elsewhere with another. Counts the cuts.

    A stage is a kind of message, such as COMMIT; `VALUES chunk` and `VALUES trailer` are what follows its header.
    Of those in `surely`, so many are cut before chance decides. What is `late` travels so many seconds longer, and
    whatever comes after it on its connection, too. With `severed` = (stage, k), the k-th of that stage is cut and
    everything else with it, until `mend`.
    """

    def __init__(
        self,
        seed: int,
        *,
        chance: float = 0.0,
        elsewhere: float = 0.0,
        surely: Mapping[str, int] | None = None,
        late: Mapping[str, float] | None = None,
        severed: tuple[str, int] | None = None,
    ) -> None:
        self.cuts: collections.Counter[str] = collections.Counter()
        self.is_severed = asyncio.Event()
        self._severed, self._seen = severed, 0
        self._rng = random.Random(seed)
        self._chance, self._elsewhere = chance, elsewhere
        self._surely, self._late = surely or {}, late or {}

    def mend(self) -> None:
        """Connections may stand again."""
        self.is_severed.clear()

    def delay_s(self, stages: list[tuple[str, int, int]]) -> float:
        """How long a frame with these stages is held."""
        return sum(self._late.get(stage, 0.0) for stage, _, _ in stages)

    def cut(self, stages: list[tuple[str, int, int]]) -> int | None:
        """How many bytes of a frame may pass, None for all; `stages` are (stage, from byte, to byte) in it."""
        for stage, start, stop in stages:
            surely = self.cuts[stage] < self._surely.get(stage, 0)
            if self._severed is not None and stage == self._severed[0]:
                self._seen += 1
                if self._seen == self._severed[1]:
                    surely = True
                    self.is_severed.set()
            if surely or self._rng.random() < (self._chance if stage else self._elsewhere):
                self.cuts[stage or "elsewhere"] += 1
                return self._rng.randrange(start, stop)
        return None


class Follower:
    """One direction of a connection: what its frames carry."""

    def __init__(self) -> None:
        self._rest = b""
        self._carrier = ""  # the message whose vector comes next

    def stages(self, frame: bytes) -> list[tuple[str, int, int]]:
        """(stage, from byte, to byte) of each message that ends in this frame; "" is the stage of anything else."""
        found = []
        if frame[3] == DATA:
            self._rest += frame[FRAME_HEAD:]
            while len(self._rest) >= MESSAGE_HEAD:
                end = MESSAGE_HEAD + int.from_bytes(self._rest[1:MESSAGE_HEAD])
                if len(self._rest) < end:
                    break
                start = max(FRAME_HEAD, len(frame) - len(self._rest))
                found.append((self._stage(self._rest[MESSAGE_HEAD:end]), start, len(frame) - len(self._rest) + end))
                self._rest = self._rest[end:]
        return found or [("", 0, len(frame))]

    def _stage(self, message: bytes) -> str:
        try:
            frame = pb.ExchangeRequest.FromString(message)
        except DecodeError:  # a Hello, or a control frame
            return ""
        if frame.WhichOneof("frame") != "header":
            return f"{self._carrier} {frame.WhichOneof('frame')}" if self._carrier else ""
        stage = Kind(frame.header.kind).name if frame.header.kind else ""
        self._carrier = stage if frame.header.HasField("vector") else ""
        return stage


class Proxy:
    """Stands in front of a node, whose own address is known only once it listens: until then it hangs up."""

    def __init__(self, shears: Shears) -> None:
        self.target: Callable[[], str | None] = lambda: None
        self._shears = shears
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its own address, while it serves."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield "{}:{}".format(*server.sockets[0].getsockname())
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side closes, or the shears cut."""
        with contextlib.closing(writer.transport), contextlib.suppress(OSError):
            address = self.target()
            if address is None or self._shears.is_severed.is_set():
                return
            host, port = address.rsplit(":", 1)
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            ends = (
                self._forward(reader, there_writer, PREFACE),
                self._forward(there_reader, writer, 0),
                self._shears.is_severed.wait(),
            )
            pumps = [asyncio.create_task(end) for end in ends]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                for end in (writer, there_writer):
                    end.transport.abort()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, preface: int) -> None:
        follower = Follower()
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            writer.write(await reader.readexactly(preface))
            while True:
                head = await reader.readexactly(FRAME_HEAD)
                frame = head + await reader.readexactly(int.from_bytes(head[:3]))
                stages = follower.stages(frame)
                await asyncio.sleep(self._shears.delay_s(stages))
                left = self._shears.cut(stages)
                writer.write(frame[:left])
                await writer.drain()
                if left is not None:
                    return
