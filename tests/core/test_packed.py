"""By which codec a vector travelled, from the headers of real messages."""

import pytest

from shoal import wire
from shoal.messages import Kind, Message, Tag
from shoal.packed import Packed
from shoal.v1 import node_pb2 as pb


def header(kind: Kind, *, codec: str = "", dtype: str = "", purpose: str = "") -> pb.Header:
    shape = wire.Shape(3, dtype) if dtype else None
    tag = Tag("view", 1, purpose) if purpose else None
    return pb.Header.FromString(wire.encode(Message(kind, seq=1, initiator=1, codec=codec, tag=tag), shape))


@pytest.mark.parametrize(
    ("kind", "dtype", "purpose", "expected"),
    [
        (Kind.VALUES, "f32", "", "f32"),
        (Kind.POST, "f64", "mean", "f64"),
        (Kind.POST, "f32", "mix", "f32"),
        (Kind.POST, "u8", "packed", "q8"),
        (Kind.POST, "u8", "rounded", "q8"),
        (Kind.POST, "u8", "vote", "sign"),
        (Kind.POST, "u8", "ef-mean", "sign"),
        (Kind.POST, "u8", "hash", "other"),
        (Kind.VALUES, "u8", "", "other"),  # nobody has chosen a codec
    ],
)
def test_a_header_tells_how_its_vector_is_packed(kind: Kind, dtype: str, purpose: str, expected: str) -> None:
    assert Packed("q8").seen("b", header(kind, dtype=dtype, purpose=purpose)) == expected


@pytest.mark.parametrize("said_by", [header(Kind.GRANT, codec="bf16"), header(Kind.ACCEPT, codec="bf16", dtype="u8")])
def test_one_message_of_an_average_names_the_codec_for_all(said_by: pb.Header) -> None:
    it = Packed("f32")
    it.seen("b", said_by)
    assert it.seen("b", header(Kind.VALUES, dtype="u8")) == "bf16"
    assert it.seen("c", header(Kind.VALUES, dtype="u8")) == "other", "of another edge"
    it.forget("b")
    assert it.seen("b", header(Kind.VALUES, dtype="u8")) == "other"
