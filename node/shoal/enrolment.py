"""What a worker and a coordinator must both know: how posts between them are named, what a worker says of itself when
it enrols, and how many answers are kept for those who come late. Pure."""

import dataclasses
import json
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from shoal.errors import BadFrame
from shoal.messages import Kind, Message, PeerId, Tag

VIEW = "coordinator"
"""Stands for the view in the tags of all posts between a worker and a coordinator: they outlive any view."""
ENROL, BEHIND = "enrol", "behind"
"""Purposes of posts that carry JSON: where a worker stands; whose model it must take, for its answers are gone."""
HASH = "hash"
"""Purpose of the comparison of replicas. Its answer is JSON: right (whose model counts), hash (its), wrong (others)."""
START, GRADIENT, FRESH, FINAL = "start", "gradient", "fresh", "final"
"""Purposes of a parameter server's posts: a first model, a gradient, the model, the model that nothing changes."""
KEPT_ANSWERS = 64
KEPT_BYTES = 256 << 20
SEGMENTS_LIMIT = 100_000


class Position(NamedTuple):
    """Which answer of a run: round, and step in it. Step 0 is the comparison of replicas, k+1 what is the k-th mean or
    vote of the round. Between a worker and a parameter server: (number of the post, 0)."""

    round: int
    step: int

    @classmethod
    def of(cls, tag: Tag) -> Self:
        """That of a post."""
        return cls(tag.round, tag.step)

    def tag(self, purpose: str) -> Tag:
        """Of a post with that purpose."""
        return Tag(VIEW, self.round, purpose, self.step)


def kept_answers(nbytes: int) -> int:
    """How many answers of that size are kept, on both sides: up to 64, in at most 256 MiB, and at least 2."""
    return max(2, min(KEPT_ANSWERS, KEPT_BYTES // max(1, nbytes)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Enrolment:
    """Where a worker stands, and what it takes part with."""

    position: Position  # of the answer that it needs next
    start: str  # id of the view that began the run; "" for one who joined it later
    first: int  # round at which that view began
    members: tuple[PeerId, ...]  # of that view
    segments: tuple[int, ...]  # sizes of the model's trained tensors, in order
    carried: int  # floats that are averaged beside them

    def post(self) -> Message:
        """As it travels."""
        return Message(Kind.POST, tag=self.position.tag(ENROL), vector=packed_json(dataclasses.asdict(self)))

    @classmethod
    def of(cls, message: Message, peer: PeerId) -> Self:
        """What `post` made. Raises BadFrame, naming the peer, for anything else."""
        said = unpacked_json(message, peer)
        try:
            enrolment = cls(
                position=Position(*map(int, said["position"])),
                start=str(said["start"]),
                first=int(said["first"]),
                members=tuple(map(str, said["members"])),
                segments=tuple(map(int, said["segments"])),
                carried=int(said["carried"]),
            )
        except (LookupError, TypeError, ValueError):
            raise BadFrame(f"enrolment from {peer} lacks a field, or has one of a wrong type: {said!s:.200}") from None
        numbers = (*enrolment.position, enrolment.first, enrolment.carried, *enrolment.segments)
        if min(numbers) < 0 or not 0 < len(enrolment.segments) <= SEGMENTS_LIMIT:
            raise BadFrame(f"enrolment from {peer} has numbers that cannot be: {said!s:.200}")
        return enrolment


def packed_json(value: Any) -> Tensor:
    """(n,) uint8."""
    return torch.frombuffer(bytearray(json.dumps(value, separators=(",", ":")).encode()), dtype=torch.uint8)


def unpacked_json(message: Message, peer: PeerId) -> dict[str, Any]:
    """The object that a post carries. Raises BadFrame, naming the peer."""
    try:
        assert message.vector is not None
        said = json.loads(bytes(message.vector.cpu().numpy()))
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        purpose = message.tag.purpose if message.tag else "nothing"
        raise BadFrame(f"post from {peer} about {purpose!r} is no JSON object")
    return said
