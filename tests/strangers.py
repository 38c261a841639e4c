"""Peers made of grpc calls alone, which fit and then misbehave, and what a node costs that bears them."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from mangler import Mangler
from nodes_kit import Shoal, children, log
from puppet import settings_of

from shoal import hello
from shoal.data.loading import load_task, task_document
from shoal.demo.fleet import NodeProcess
from shoal.learner import initial_state
from shoal.transport.channels import CONTROL, EXCHANGE, HELLO, Ends
from shoal.v1 import node_pb2 as pb

BROKEN = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)
"""What a stream raises that the node has ended."""


class Stranger:
    """One that says a Hello of the right task and run, under a name that makes it the one who dials, and then writes
    what it is told to. It opens its streams anew whenever the node has closed them."""

    def __init__(self, shoal: Shoal, name: str, address: str, run: dict[str, Any]) -> None:
        settings = settings_of(shoal, **run)
        task = load_task(settings.task)
        model, state = initial_state(task, settings.seed)
        document = task_document(task, model.layout)
        loaded = {"task_document": document, "elements": state.numel(), "element_bytes": 4}
        self.elements = state.numel()
        self.address, self._name, self._names = address, name, itertools.count(1)
        self.me = pb.Identity(node_id=name, incarnation=1, name=name, address="127.0.0.1:9")
        self._said = hello.own(settings, self.me, {**loaded, "samples": 1, "histogram": []})
        self.heard: list[bytes] = []  # control frames of the node
        self.connections = 0
        self._numbers = itertools.count(1)
        self._streams: tuple[Any, Any] | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._channels: list[Any] = []

    @property
    def hello(self) -> bytes:
        """An honest HelloRequest."""
        self._said.identity.CopyFrom(self.me)
        return pb.HelloRequest(hello=self._said).SerializeToString()

    async def greet(self, said: bytes | None = None) -> pb.Identity | None:
        """Says that Hello, or the honest one; None where it is refused."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            try:
                answer = await channel.unary_unary(HELLO)(self.hello if said is None else said, timeout=20)
            except grpc.RpcError:
                return None
        return pb.HelloResponse.FromString(answer).hello.identity

    async def open(self, *, reads: bool = True) -> None:
        """Both streams, after a Hello. Under another name, where somebody has said one of a later life as this.
        Without `reads` it takes nothing that the node says."""
        await self.close()
        if (node := await self.greet()) is None:
            self.me.node_id = self.me.name = f"{self._name}-{next(self._names)}"
            node = await self.greet()
        assert node is not None, f"{self.address} refuses an honest Hello"
        ends = Ends(self.me.node_id, 1, node.node_id, node.incarnation, next(self._numbers))
        streams = []
        for method in (CONTROL, EXCHANGE):
            self._channels.append(grpc.aio.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]))
            call = self._channels[-1].stream_stream(method)(metadata=ends.metadata())
            await call.initial_metadata()
            streams.append(call)
        self._streams = streams[0], streams[1]
        self.connections += 1
        if reads:
            self._readers = [asyncio.create_task(self._read(stream, k == 0)) for k, stream in enumerate(streams)]

    async def _read(self, stream: Any, control: bool) -> None:
        with contextlib.suppress(*BROKEN):
            while (frame := await stream.read()) is not grpc.aio.EOF:
                if control and len(self.heard) < 100:
                    self.heard.append(frame)

    @property
    def up(self) -> bool:
        """Whether both streams stand, as far as is known here."""
        return self._streams is not None and not any(stream.done() for stream in self._streams)

    async def write(self, frames: Iterable[bytes], *, control: bool = False) -> int:
        """On the Exchange or the Control stream; how many went before the node had enough."""
        if not self.up:
            await self.open()
        assert self._streams is not None
        written = 0
        with contextlib.suppress(*BROKEN):
            for frame in frames:
                await self._streams[0 if control else 1].write(frame)
                written += 1
        return written

    async def close(self) -> None:
        """Hangs up."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for channel in self._channels:
            await channel.close()
        self._streams, self._readers, self._channels = None, [], []


async def mangle(stranger: Stranger, mangler: Mangler, frames: int) -> int:
    """So many bad frames: two thirds on the Exchange stream, the rest control frames, and a Hello to each twenty."""
    sent = 0
    while sent < frames:
        choice = mangler.rng.random()
        if choice < 0.05:
            await stranger.greet(mangler.hello(stranger.hello))
            sent += 1
        elif choice < 0.35:
            sent += max(1, await stranger.write([mangler.control()], control=True))
        else:
            sent += max(1, await stranger.write(mangler.exchange()))
    return sent


async def a_corpus_of_controls(stranger: Stranger) -> list[bytes]:
    """What the node itself says on Control, and what it understands besides."""
    await stranger.open()
    while len(stranger.heard) < 3:
        await asyncio.sleep(0.05)
    me = stranger.me
    view = pb.View(id="0" * 16, number=9, issuer=me.node_id, issuer_incarnation=1, members=[me], samples=[1])
    more = [
        pb.Control(propose=pb.ViewProposal(view=view)),
        pb.Control(answer=pb.ViewAnswer(id="0" * 16, accepted=True)),
        pb.Control(install=view),
        pb.Control(leave=pb.Leave(reason="goes")),
    ]
    return stranger.heard[:20] + [pb.ControlRequest(control=control).SerializeToString() for control in more]


# --- what it costs --------------------------------------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


def descriptors(pid: int) -> int:
    """Open files, sockets and shared segments of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    """Of a process."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def segments(pid: int) -> int:
    """Mappings of shared memory that shoal has made."""
    return sum("memfd:shoal-" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def processes(node: NodeProcess) -> dict[str, int]:
    """Its daemon and its trainer."""
    (trainer,) = children(node.process.pid)
    return {"daemon": node.process.pid, "trainer": trainer}


def sizes(node: NodeProcess) -> dict[str, int]:
    """Resident bytes of both."""
    return {name: resident_bytes(pid) for name, pid in processes(node).items()}


def assert_sound(node: NodeProcess) -> None:
    """It runs, and has met nothing that it did not expect."""
    assert node.process.poll() is None, node.log_tail()
    assert "Traceback" not in log(node)
    assert "internal error" not in log(node)


def names(count: int, rng: random.Random) -> list[str]:
    """Ids below any node's of the tests, so that they dial."""
    return [f"a-{rng.randrange(16**6):06x}-{k}" for k in range(count)]
