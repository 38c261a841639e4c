"""A member that lives in the test: the node's own transport and membership, no trainer, hand-made messages."""

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from nodes_kit import Shoal
from transport_kit import Got, Recorder

from shoal import hello, wire
from shoal.data.loading import load_task, task_document
from shoal.demo.fleet import NodeProcess
from shoal.learner import initial_state
from shoal.membership import Membership
from shoal.messages import Kind, Message, Tag
from shoal.roster import Action, Joined, Send
from shoal.settings import Settings
from shoal.transport import Transport
from shoal.v1 import node_pb2 as pb


class Puppet(Recorder):
    """Agrees to views, beats, and says what the test wants."""

    def __init__(self, settings: Settings, elements: int, document: dict[str, Any], min_nodes: int) -> None:
        super().__init__(slots=4)
        self.settings, self.elements = settings, elements
        self.joined = asyncio.Event()
        shape = {"elements": elements, "element_bytes": 4}
        self._loaded = {"task_document": document, **shape, "samples": 1, "histogram": []}
        self.me = pb.Identity(node_id="puppet-000000", incarnation=1, name="puppet")
        self.membership = Membership(
            self.me,
            heartbeat_s=0.2,
            suspect_after_s=60,
            min_nodes=min_nodes,
            synchronous=settings.synchronous,
            rng=random.Random(0),
        )
        self.transport = Transport(
            identity=self.me, hello=self._hello, judge=self._judge, events=self, heartbeat_s=0.2, redial_s=(0.01, 0.1)
        )

    def _hello(self) -> pb.Hello:
        return hello.own(self.settings, self.me, self._loaded)

    def _judge(self, theirs: pb.Hello) -> str | None:
        self._do(self.membership.met(theirs.identity, theirs.samples, time.monotonic()))
        return None

    # --- transport.TransportEvents, where a Recorder does not do --------------------------------------------------

    def up(self, peer: pb.Identity, conn: int) -> None:
        super().up(peer, conn)
        self._do(self.membership.link_up(peer.node_id, time.monotonic()))

    def down(self, peer_id: str, conn: int, reason: str) -> None:
        super().down(peer_id, conn, reason)
        self._do(self.membership.link_down(peer_id, reason, time.monotonic()))

    def control(self, peer_id: str, conn: int, control: pb.Control) -> None:
        self._do(self.membership.heard(peer_id, control, time.monotonic()))

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.transport.send_control(action.peer_id, action.control)
            elif isinstance(action, Joined):
                self.joined.set()

    # --- what a test does with it ---------------------------------------------------------------------------------

    async def meet(self, address: str) -> None:
        """Hello, and a connection that stands both ways."""
        self.transport.connect((await self.transport.greet(address)).identity)
        await self.joined.wait()

    async def next(self, kind: Kind) -> Got:
        """The next message of that kind; the connection that it came over may be a new one."""
        while True:
            got = await self.messages.get()
            if got.header.kind == kind:
                return got

    def answer(
        self, to: Got, kind: Kind, vector: torch.Tensor, change: Callable[[pb.Header], None] = lambda header: None
    ) -> None:
        """A message of that kind about the same exchange or round, under a header that `change` may falsify."""
        payload = vector.numpy().tobytes()
        tag = to.header.tag
        message = Message(
            kind,
            seq=to.header.seq,
            initiator=to.header.initiator,
            tag=Tag(tag.view, tag.round, tag.purpose, tag.step) if to.header.HasField("tag") else None,
        )
        header = pb.Header.FromString(wire.encode(message, wire.Shape(vector.numel(), "f32")))
        change(header)
        self.transport.send(to.peer, to.conn, header.SerializeToString(), memoryview(payload), lambda: None)

    def leave(self) -> None:
        """As a node does that was stopped."""
        self._do(self.membership.leave("the test is over", finished=False, now=time.monotonic()))

    async def live(self) -> None:
        """Beats, and whatever else takes time; for ever."""
        while True:
            self.membership.mine(pb.PHASE_READY, 0, 0, float("nan"), 0, 0)
            self._do(self.membership.tick(time.monotonic()))
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def puppet(settings: Settings, min_nodes: int) -> AsyncIterator[Puppet]:
    """One that listens and lives, and has the task and run of `settings`."""
    task = load_task(settings.task)
    model, state = initial_state(task, settings.seed)
    it = Puppet(settings, state.numel(), task_document(task, model.layout), min_nodes)
    it.me.address = await it.transport.listen("127.0.0.1:0")
    living = asyncio.create_task(it.live())
    try:
        yield it
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
        await it.transport.close()


def settings_of(shoal: Shoal, **run: Any) -> Settings:
    """Of a member of that shoal."""
    names = {f.name for f in dataclasses.fields(Settings)}
    return Settings(**{k: v for k, v in {**shoal.common, **run}.items() if k in names and k != "data_dir"})


async def address_of(shoal: Shoal, node: NodeProcess) -> str:
    """Where it listens, once it can be greeted."""
    await asyncio.to_thread(shoal.until_logged, "training samples", node)
    facts = node.facts()
    assert facts is not None
    return str(facts["address"])
