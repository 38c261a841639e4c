"""Headers: what goes in comes out, and what a peer must not send is refused with what was wrong."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadFrame
from shoal.messages import CARRIES_VECTOR, Kind, Message, Tag
from shoal.transport.frames import HEADER_LIMIT
from shoal.v1 import node_pb2 as pb
from shoal.wire import (
    CARRIES_TAG,
    CODEC_LIMIT,
    ELEMENT_BYTES,
    HEARD_LIMIT,
    NODE_ID_LIMIT,
    PURPOSE_LIMIT,
    REASON_LIMIT,
    VIEW_LIMIT,
    Shape,
    decode,
    encode,
)

uint64 = st.integers(0, 2**64 - 1)


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, Shape | None]:
    kind = draw(st.sampled_from(Kind))
    tag = None
    if kind in CARRIES_TAG:
        tag = Tag(
            view=draw(st.text(max_size=VIEW_LIMIT)),
            round=draw(uint64),
            purpose=draw(st.text(min_size=1, max_size=PURPOSE_LIMIT)),
            step=draw(st.integers(0, 2**32 - 1)),
        )
    message = Message(
        kind=kind,
        seq=draw(uint64),
        initiator=draw(uint64),
        committed=draw(st.booleans()),
        reason=draw(st.text(max_size=50)),
        tag=tag,
        gradients=draw(uint64),
        heard=tuple(sorted(draw(st.dictionaries(st.text(max_size=NODE_ID_LIMIT), uint64, max_size=5)).items())),
        codec=draw(st.text(max_size=CODEC_LIMIT)),
    )
    shape = Shape(draw(st.integers(0, 2**40)), draw(st.sampled_from(sorted(ELEMENT_BYTES))))
    return message, shape if kind in CARRIES_VECTOR else None


@given(messages())
def test_every_message_comes_back_as_it_was(case: tuple[Message, Shape | None]) -> None:
    assert decode(encode(*case)) == case


def test_kinds_have_the_numbers_of_the_schema() -> None:
    schema = {name.removeprefix("MESSAGE_KIND_"): number for name, number in pb.MessageKind.items() if number}
    assert schema == {kind.name: kind.value for kind in Kind}


def test_a_header_is_the_schemas_message_with_the_size_of_its_vector() -> None:
    header = pb.Header.FromString(encode(Message(Kind.ACCEPT, seq=7, gradients=3), Shape(10, "f32")))
    assert header == pb.Header(
        kind=pb.MESSAGE_KIND_ACCEPT, seq=7, gradients=3, vector=pb.Vector(elements=10, dtype=pb.DTYPE_F32, bytes=40)
    )


def test_a_vector_of_no_elements_is_still_a_vector() -> None:
    nothing = Shape(0, "f32")
    assert decode(encode(Message(Kind.MODEL), nothing)) == (Message(Kind.MODEL), nothing)


def test_a_header_stays_small() -> None:
    tag = Tag(view="f" * VIEW_LIMIT, round=2**63, purpose="mean", step=5)
    assert len(encode(Message(Kind.POST, tag=tag, gradients=2**40), Shape(2**30, "f32"))) < 150


def test_an_own_reason_is_cut_to_what_the_other_end_takes() -> None:
    message, _ = decode(encode(Message(Kind.ABORT, reason="é" * 2000), None))
    assert message.reason == "é" * REASON_LIMIT


def test_the_longest_message_fits_into_a_frame() -> None:
    counts = tuple((f"{n:0{NODE_ID_LIMIT}}", 2**64 - 1) for n in range(HEARD_LIMIT))
    tag = Tag(view="€" * VIEW_LIMIT, round=2**64 - 1, purpose="€" * PURPOSE_LIMIT, step=2**32 - 1)
    codec = "€" * CODEC_LIMIT
    message = Message(Kind.POST, 2**64 - 1, 2**64 - 1, True, "€" * REASON_LIMIT, tag, 2**64 - 1, counts, codec=codec)
    assert len(encode(message, Shape(2**60, "f32"))) <= HEADER_LIMIT


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        (Message(Kind.ACCEPT), None),
        (Message(Kind.OFFER), Shape(4, "f32")),
        (Message(Kind.RECEIVED), None),
        (Message(Kind.COMMIT, tag=Tag("v", 1, "mix")), None),
    ],
    ids=["vector missing", "vector too much", "tag missing", "tag too much"],
)
def test_encoding_what_does_not_fit_the_kind_is_our_own_fault(message: Message, shape: Shape | None) -> None:
    with pytest.raises(ValueError, match=message.kind.name):
        encode(message, shape)


TAG = pb.Tag(view="v", round=1, purpose="mix")
VECTOR = pb.Vector(elements=2, dtype=pb.DTYPE_F32, bytes=8)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (pb.Header(), "unknown kind of message 0; known: 1 to "),
        (pb.Header(kind=77), "unknown kind of message 77"),  # type: ignore[arg-type]
        (pb.Header(kind=pb.MESSAGE_KIND_BUSY, vector=VECTOR), "BUSY with a vector"),
        (pb.Header(kind=pb.MESSAGE_KIND_VALUES), "VALUES without its vector"),
        (pb.Header(kind=pb.MESSAGE_KIND_POST, vector=VECTOR), "POST without its tag"),
        (pb.Header(kind=pb.MESSAGE_KIND_POST, tag=TAG), "POST without its vector"),
        (pb.Header(kind=pb.MESSAGE_KIND_OFFER, tag=TAG), "OFFER with a tag"),
        (pb.Header(kind=pb.MESSAGE_KIND_RECEIVED, tag=pb.Tag(view="v")), "no purpose"),
        (pb.Header(kind=pb.MESSAGE_KIND_ABORT, reason="x" * 501), "reason has 501 characters, allowed are 500"),
        (pb.Header(kind=pb.MESSAGE_KIND_RECEIVED, tag=pb.Tag(view="v" * 65, purpose="mix")), "view .* 65 characters"),
        (pb.Header(kind=pb.MESSAGE_KIND_RECEIVED, tag=pb.Tag(purpose="p" * 33)), "purpose .* 33 characters"),
        (pb.Header(kind=pb.MESSAGE_KIND_OFFER, heard={f"{n}": n for n in range(65)}), "counts of 65 nodes, .* 64"),
        (pb.Header(kind=pb.MESSAGE_KIND_OFFER, heard={"x" * 129: 1}), "node id of a count has 129 characters"),
        (pb.Header(kind=pb.MESSAGE_KIND_MODEL, vector=pb.Vector(elements=2, bytes=8)), "dtype 0; known: f32, f64, u8"),
        (
            pb.Header(kind=pb.MESSAGE_KIND_MODEL, vector=pb.Vector(elements=2, dtype=pb.DTYPE_F32, bytes=9)),
            "MODEL with 2 f32 elements in 9 bytes, not 8",
        ),
    ],
)
def test_a_header_that_breaks_the_protocol_is_a_bad_frame(header: pb.Header, complaint: str) -> None:
    with pytest.raises(BadFrame, match=complaint):
        decode(header.SerializeToString())


@given(st.binary(max_size=200))
def test_noise_is_a_message_or_a_bad_frame_and_nothing_else(noise: bytes) -> None:
    try:
        message, shape = decode(noise)
    except BadFrame:
        return
    assert (shape is not None) == (message.kind in CARRIES_VECTOR)


@given(messages(), st.data())
def test_a_header_with_one_byte_changed_never_breaks_the_decoder(
    case: tuple[Message, Shape | None], data: st.DataObject
) -> None:
    header = bytearray(encode(*case))
    header[data.draw(st.integers(0, len(header) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        message, _ = decode(bytes(header))
    except BadFrame:
        return
    assert dataclasses.is_dataclass(message)


def test_reading_headers_needs_no_torch() -> None:
    code = "import sys, shoal.wire, shoal.link, shoal.transport; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
