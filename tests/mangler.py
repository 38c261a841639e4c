"""Frames as nodes really send them, and what may become of them: flipped, cut, repeated, out of order, enlarged.

The messages are those of whole runs in virtual time over links that break, in the transport's own encoding. What comes
out is a function of the seed. One kind of change is left out: a frame that is in order and tells another number of
gradients, another view or a leave is no bad frame. What a member says of itself is believed (see docs/reliability.md).
"""

import random
from collections.abc import Callable, Iterator

import torch

from shoal import wire
from shoal.messages import Kind, Message, PeerId
from shoal.settings import Settings
from shoal.simulation import Scenario, World, population
from shoal.transport.frames import FRAME_LIMIT, frames
from shoal.v1 import node_pb2 as pb
from shoal.virtual_time import run

DTYPES = {torch.float32: "f32", torch.float64: "f64", torch.uint8: "u8"}
HUGE = (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def recorded(task: str, seed: int = 0) -> list[list[bytes]]:
    """Messages of one `ad-psgd` and one `d2` run of that task, each as its frames; of each kind at most 40."""
    kept: dict[Kind, list[list[bytes]]] = {}
    rng = random.Random(seed)

    def overheard(source: PeerId, to: PeerId, message: Message) -> float | None:
        of_kind = kept.setdefault(message.kind, [])
        if len(of_kind) < 40:
            of_kind.append(encoded(message))
        return 0.01 if rng.random() < 0.05 else None

    for algorithm in ("ad-psgd", "d2"):
        settings = Settings(algorithm=algorithm, task=task, rounds=30, partition="iid", seed=seed)
        learners, states = population(settings, 3)

        async def go(world: World) -> None:
            await world.run()

        run(go(World(settings, Scenario(), learners, states, fault=overheard)))
    return [message for kind in sorted(kept) for message in kept[kind]]


def encoded(message: Message) -> list[bytes]:
    """Its frames."""
    if message.vector is None:
        return list(frames(wire.encode(message, None), None))
    vector = message.vector.contiguous()
    header = wire.encode(message, wire.Shape(vector.numel(), DTYPES[vector.dtype]))
    return list(frames(header, memoryview(vector.numpy()).cast("B")))


class Mangler:
    """Bad frames without end, from a seed."""

    def __init__(self, messages: list[list[bytes]], controls: list[bytes], seed: int) -> None:
        self.messages, self.controls, self.rng = messages, controls, random.Random(seed)
        self._bytewise: tuple[Callable[[bytes], bytes], ...] = (
            self._flipped,
            self._cut,
            self._lengthened,
            self._replaced,
            self._garbage,
        )

    def exchange(self) -> Iterator[bytes]:
        """The frames of one message, of which one or more are bad, or in no order."""
        chosen = list(self.rng.choice(self.messages))
        how = self.rng.randrange(8)
        if how == 0 and len(chosen) > 1:
            self.rng.shuffle(chosen)
        elif how == 1:
            chosen.insert(self.rng.randrange(len(chosen) + 1), self.rng.choice(self.rng.choice(self.messages)))
        elif how == 2:
            del chosen[self.rng.randrange(len(chosen))]
        elif how == 3:
            chosen[0] = self._header(chosen[0])
        else:
            k = self.rng.randrange(len(chosen))
            chosen[k] = self.rng.choice(self._bytewise)(chosen[k])
        return (frame for frame in chosen if not _counts(frame))

    def control(self) -> bytes:
        """One control frame."""
        while True:
            mangled = self.rng.choice(self._bytewise)(self.rng.choice(self.controls))
            if not _means_something(mangled):
                return mangled

    def hello(self, honest: bytes) -> bytes:
        """One HelloRequest."""
        if self.rng.random() < 0.5:
            return self.rng.choice(self._bytewise)(honest)
        hello = pb.HelloRequest.FromString(honest).hello
        field = self.rng.choice(["node_id", "incarnation", "name", "protocol", "shoal", "task", "elements", "memory"])
        match field:
            case "node_id" | "name":
                setattr(hello.identity, field, self._text())
            case "incarnation":
                hello.identity.incarnation = self.rng.choice(HUGE)
            case "task":
                hello.task_fingerprint, hello.task_document = self._text(), self._text()
            case "shoal":
                hello.shoal = self._text()
            case "memory":
                hello.memory.CopyFrom(pb.SharedMemory(machine=self._text(), pid=1, fd=self.rng.randrange(9)))
            case _:
                setattr(hello, field, self.rng.choice(HUGE[:4]))
        return pb.HelloRequest(hello=hello).SerializeToString()

    # --- what becomes of bytes ----------------------------------------------------------------------------------

    def _flipped(self, frame: bytes) -> bytes:
        flipped = bytearray(frame or b"\0")
        for _ in range(self.rng.randrange(1, 9)):
            flipped[self.rng.randrange(len(flipped))] ^= 1 << self.rng.randrange(8)
        return bytes(flipped)

    def _cut(self, frame: bytes) -> bytes:
        return frame[: self.rng.randrange(len(frame) + 1)]

    def _lengthened(self, frame: bytes) -> bytes:
        return frame + self.rng.randbytes(self.rng.choice((1, 10, 1000)))

    def _replaced(self, frame: bytes) -> bytes:
        start = self.rng.randrange(len(frame) + 1)
        return frame[:start] + self.rng.randbytes(self.rng.randrange(1, 20)) + frame[start + 10 :]

    def _garbage(self, frame: bytes) -> bytes:
        most = FRAME_LIMIT if self.rng.random() < 0.002 else 200
        return self.rng.randbytes(self.rng.randrange(most))

    def _header(self, frame: bytes) -> bytes:
        """One whose encoding is right, and a field not."""
        header = pb.ExchangeRequest.FromString(frame).header
        huge = self.rng.choice(HUGE)
        match self.rng.randrange(7):
            case 0:
                header.kind = self.rng.randrange(40)
            case 1:
                header.seq = huge
            case 2:
                header.initiator = huge
            case 3:
                header.vector.elements = huge
            case 4:
                header.vector.bytes = huge
            case 5:
                header.vector.slot, header.vector.ticket = min(huge, 2**32 - 1), huge
            case _:
                header.tag.view, header.tag.round, header.tag.purpose = self._text(), huge, self._text()
        return next(frames(header.SerializeToString(), None))

    def _text(self) -> str:
        return self.rng.choice(("", "x" * 5000, "../../etc", "a b", "\n", "ümlaut", "node-1", "%s{}", "unix:/tmp/x"))


def _counts(frame: bytes) -> bool:
    """Whether it is a header in order that tells of gradients."""
    try:
        header = pb.ExchangeRequest.FromString(frame).header
    except Exception:  # whatever protobuf thinks of it, it tells nothing
        return False
    return bool(header.gradients or header.heard)


def _means_something(frame: bytes) -> bool:
    """Whether it is a control frame in order other than a heartbeat without counts."""
    try:
        control = pb.ControlRequest.FromString(frame).control
    except Exception:
        return False
    which = control.WhichOneof("control")
    beat = control.heartbeat
    return which is not None and (which != "heartbeat" or bool(beat.gradients or beat.phase > pb.PHASE_RUNNING))
