"""Messages between workers as protobuf headers and back; the vectors themselves travel beside them.

The trainer encodes and decodes headers. The daemon reads nothing of one but the size of its vector
(`transport/frames.py`), and moves the bytes.
"""

from typing import NamedTuple

from google.protobuf.message import DecodeError

from shoal.errors import BadFrame
from shoal.messages import CARRIES_VECTOR, Kind, Message, Tag
from shoal.v1 import node_pb2 as pb

ELEMENT_BYTES = {"f32": 4, "f64": 8, "u8": 1}
"""Bytes of one element by its dtype; u8 holds packed vectors (`codecs.py`)."""
DTYPES = {"f32": pb.DTYPE_F32, "f64": pb.DTYPE_F64, "u8": pb.DTYPE_U8}
REASON_LIMIT = 500
"""Characters of a reason, which ends in a log. Our own is cut to it; a longer one that comes is refused."""
VIEW_LIMIT = 64
PURPOSE_LIMIT = 32
CODEC_LIMIT = 16
HEARD_LIMIT = 64
"""Nodes whose counts a message passes on."""
NODE_ID_LIMIT = 128
CARRIES_TAG = frozenset({Kind.POST, Kind.RECEIVED})
MAY_CARRY_TAG = CARRIES_TAG | {Kind.MODEL}


class Shape(NamedTuple):
    """Of a vector that travels beside its header."""

    elements: int
    dtype: str  # a key of ELEMENT_BYTES
    slot: int | None = None  # of the sender's shared memory, where it lies; None where it travels
    ticket: int = 0  # by which the receiver says that it is done with that slot
    sum: int = 0  # of its words there (`words.py`)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.elements * ELEMENT_BYTES[self.dtype]


def encode(message: Message, shape: Shape | None) -> bytes:
    """The header of `message`, whose vector has that shape; None where its kind carries none.

    Raises ValueError when vector or tag do not go with the kind: our own fault, never a peer's.
    """
    problem = _unfit(message.kind, shape is not None, message.tag)
    if problem:
        raise ValueError(problem)
    header = pb.Header(
        kind=pb.MessageKind.ValueType(message.kind),
        seq=message.seq,
        initiator=message.initiator,
        committed=message.committed,
        reason=message.reason[:REASON_LIMIT],
        gradients=message.gradients,
        heard=dict(message.heard),
        codec=message.codec,
    )
    if message.tag is not None:
        tag = message.tag
        header.tag.CopyFrom(pb.Tag(view=tag.view, round=tag.round, purpose=tag.purpose, step=tag.step))
    if shape is not None:
        vector = pb.Vector(elements=shape.elements, dtype=DTYPES[shape.dtype], bytes=shape.nbytes)
        if shape.slot is not None:
            vector.slot, vector.ticket, vector.sum = shape.slot + 1, shape.ticket, shape.sum
        header.vector.CopyFrom(vector)
    return header.SerializeToString()


def decode(header: bytes) -> tuple[Message, Shape | None]:
    """A peer's message without its vector, and the shape announced; None where it carries none.

    Raises BadFrame when the header is no header or of an unknown kind, a vector or a tag is there where the kind
    has none or missing where it has one, sizes contradict, or a string is too long. The caller adds from whom.
    """
    try:
        read = pb.Header.FromString(header)
    except DecodeError as error:
        raise BadFrame(f"header of {len(header)} bytes is not a Header: {error}") from None
    try:
        kind = Kind(read.kind)
    except ValueError:
        raise BadFrame(f"unknown kind of message {read.kind}; known: {min(Kind)} to {max(Kind)}") from None
    tag = _tag(read.tag) if read.HasField("tag") else None
    problem = _unfit(kind, read.HasField("vector"), tag)
    if problem:
        raise BadFrame(problem)
    _bounded("reason", read.reason, REASON_LIMIT)
    _bounded("codec", read.codec, CODEC_LIMIT)
    message = Message(
        kind=kind,
        seq=read.seq,
        initiator=read.initiator,
        committed=read.committed,
        reason=read.reason,
        codec=read.codec,
        tag=tag,
        gradients=read.gradients,
        heard=_heard(read) if read.heard else (),
    )
    return message, _shape(kind, read.vector) if read.HasField("vector") else None


def _unfit(kind: Kind, vector: bool, tag: Tag | None) -> str | None:
    """What is wrong with the parts of a message of that kind; None when they fit."""
    if vector != (kind in CARRIES_VECTOR):
        return f"{kind.name} with a vector, which it never carries" if vector else f"{kind.name} without its vector"
    if tag is None and kind in CARRIES_TAG:
        return f"{kind.name} without its tag"
    if tag is not None and kind not in MAY_CARRY_TAG:
        return f"{kind.name} with a tag, which it never carries"
    if tag is not None and not tag.purpose:
        return f"{kind.name} with a tag that has no purpose"
    return None


def _heard(read: pb.Header) -> tuple[tuple[str, int], ...]:
    if len(read.heard) > HEARD_LIMIT:
        raise BadFrame(f"counts of {len(read.heard)} nodes, allowed are {HEARD_LIMIT}")
    for key in read.heard:
        _bounded("node id of a count", key, NODE_ID_LIMIT)
    return tuple(sorted(read.heard.items()))


def _tag(read: pb.Tag) -> Tag:
    _bounded("view of the tag", read.view, VIEW_LIMIT)
    _bounded("purpose of the tag", read.purpose, PURPOSE_LIMIT)
    return Tag(view=read.view, round=read.round, purpose=read.purpose, step=read.step)


def _shape(kind: Kind, vector: pb.Vector) -> Shape:
    dtype = next((name for name, number in DTYPES.items() if number == vector.dtype), None)
    if dtype is None:
        raise BadFrame(f"{kind.name} with a vector of unknown dtype {vector.dtype}; known: {', '.join(DTYPES)}")
    shape = Shape(vector.elements, dtype)
    if vector.slot:
        shape = Shape(vector.elements, dtype, vector.slot - 1, vector.ticket, vector.sum)
    if vector.bytes != shape.nbytes:
        raise BadFrame(
            f"{kind.name} with {vector.elements} {dtype} elements in {vector.bytes} bytes, not {shape.nbytes}"
        )
    return shape


def _bounded(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise BadFrame(f"{what} has {len(text)} characters, allowed are {limit}")
