"""A TCP proxy that reads along, and cuts connections inside the messages of an exchange, at a random byte."""

import asyncio
import collections
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from google.protobuf.message import DecodeError

from shoal.messages import Kind
from shoal.v1 import node_pb2 as pb

PREFACE = 24
"""Bytes that a client sends before its first frame (RFC 9113, section 3.4)."""
FRAME_HEAD, DATA = 9, 0
"""Length, type, flags and stream of an HTTP/2 frame (RFC 9113, section 4.1); the type that carries gRPC's messages."""
MESSAGE_HEAD = 5
"""gRPC's own prefix of a message: a flag and a length."""


class Stage(NamedTuple):
    """A message in a frame: a kind, such as COMMIT, or `VALUES chunk` and `VALUES trailer` for what follows a header.
    "" is anything that is not part of an exchange."""

    name: str
    start: int  # byte of the frame
    stop: int


class Shears:
    """Where to cut: inside the messages of an exchange with one chance, elsewhere with another. Counts the cuts.

    Of the stages in `surely`, so many are cut before chance decides. What is `late` travels so many seconds longer,
    and whatever comes after it on its connection, too. With `severed` = (stage, k), the k-th of that stage is cut
    and all connections with it, until `mend`.
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
        self._severed = severed
        self._seen: collections.Counter[str] = collections.Counter()
        self._rng = random.Random(seed)
        self._chance, self._elsewhere = chance, elsewhere
        self._surely, self._late = surely or {}, late or {}

    def mend(self) -> None:
        """Connections may stand again."""
        self.is_severed.clear()

    def delay_s(self, stages: list[Stage]) -> float:
        """How long a frame with these stages is held."""
        return sum(self._late.get(stage.name, 0.0) for stage in stages)

    def cut(self, stages: list[Stage]) -> int | None:
        """How many bytes may pass of a frame that holds these stages; None for all."""
        for name, start, stop in stages:
            self._seen[name] += 1
            severed = self._severed == (name, self._seen[name])
            surely = severed or self.cuts[name] < self._surely.get(name, 0)
            if surely or self._rng.random() < (self._chance if name else self._elsewhere):
                self.cuts[name or "elsewhere"] += 1
                if severed:
                    self.is_severed.set()
                return self._rng.randrange(start, stop)
        return None


class Follower:
    """One direction of a connection: what its frames carry."""

    def __init__(self) -> None:
        self._rest = b""
        self._carrier = ""  # the message whose vector comes next

    def stages(self, frame: bytes) -> list[Stage]:
        """Of all messages that end in this frame."""
        found = []
        if frame[3] == DATA:
            self._rest += frame[FRAME_HEAD:]
            while len(self._rest) >= MESSAGE_HEAD:
                end = MESSAGE_HEAD + int.from_bytes(self._rest[1:MESSAGE_HEAD])
                if len(self._rest) < end:
                    break
                start = max(FRAME_HEAD, len(frame) - len(self._rest))
                stop = len(frame) - len(self._rest) + end
                found.append(Stage(self._name(self._rest[MESSAGE_HEAD:end]), start, stop))
                self._rest = self._rest[end:]
        return found or [Stage("", 0, len(frame))]

    def _name(self, message: bytes) -> str:
        try:
            frame = pb.ExchangeRequest.FromString(message)
        except DecodeError:  # a Hello, or a control frame
            return ""
        if frame.WhichOneof("frame") != "header":
            return f"{self._carrier} {frame.WhichOneof('frame')}" if self._carrier else ""
        name = Kind(frame.header.kind).name if frame.header.kind else ""
        self._carrier = name if frame.header.HasField("vector") else ""
        return name


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
