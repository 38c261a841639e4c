"""Frames by hand are protobuf's frames, and a stream that breaks the protocol is refused before it costs memory."""

import random

import numpy as np
import pytest
from checksum import checksum
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadFrame
from shoal.link import LEAST_SLOT
from shoal.transport.frames import CHUNK_BYTES, FRAME_LIMIT, HEADER_LIMIT, Assembler, Sum, frames
from shoal.v1 import node_pb2 as pb
from shoal.words import words_of

Frame = type[pb.ExchangeRequest] | type[pb.ExchangeResponse]
BOTH = pytest.mark.parametrize("frame_type", [pb.ExchangeRequest, pb.ExchangeResponse])


def header_of(nbytes: int, kind: pb.MessageKind.ValueType = pb.MESSAGE_KIND_ACCEPT) -> bytes:
    vector = pb.Vector(elements=nbytes // 4, dtype=pb.DTYPE_F32, bytes=nbytes)
    return pb.Header(kind=kind, seq=300, vector=vector).SerializeToString()


def by_protobuf(frame_type: Frame, header: bytes, payload: bytes | None, chunk_bytes: int) -> list[bytes]:
    """The same message as any protobuf client would send it."""
    whole = [frame_type(header=pb.Header.FromString(header))]
    if payload is not None:
        chunks = [payload[start : start + chunk_bytes] for start in range(0, len(payload), chunk_bytes)]
        whole += [frame_type(align=padding(len(chunk)), chunk=chunk) for chunk in chunks]
        whole.append(frame_type(trailer=pb.Trailer(sum=checksum(payload, chunk_bytes))))
    return [frame.SerializeToString() for frame in whole]


def padding(chunk_bytes: int) -> bytes:
    """What makes the chunk begin at the eighth byte: its own tag, and a length of 7 bits a byte, end there."""
    return bytes(5 - max(1, -(-chunk_bytes.bit_length() // 7)))


def assembled(assembler: Assembler, stream: list[bytes]) -> list[tuple[bytes, bytes | None]]:
    """Feeds a stream, gives buffers as they are asked for, and copies out what comes."""
    found = []
    for frame in stream:
        whole = assembler.feed(frame)
        if assembler.wanted is not None:
            assembler.fill(memoryview(bytearray(assembler.wanted)))
        if whole is not None:
            header, vector, *_ = whole
            found.append((header, None if vector is None else bytes(vector)))
    return found


@BOTH
@given(st.binary(max_size=1000), st.integers(1, 300))
def test_hand_written_frames_are_the_bytes_of_protobuf(frame_type: Frame, payload: bytes, chunk_bytes: int) -> None:
    header = header_of(len(payload))
    by_hand = list(frames(header, memoryview(payload), chunk_bytes))
    assert by_hand == by_protobuf(frame_type, header, payload, chunk_bytes)


@BOTH
@given(st.binary(max_size=1000), st.integers(1, 300), st.binary(max_size=7))
def test_protobufs_frames_are_read_by_hand(
    frame_type: Frame, payload: bytes, chunk_bytes: int, alignment: bytes
) -> None:
    """Also where chunks are not aligned, or by bytes that are not zero."""
    header = header_of(len(payload))
    stream = [frame_type.FromString(frame) for frame in by_protobuf(frame_type, header, payload, chunk_bytes)]
    for frame in stream:
        if frame.HasField("chunk"):
            frame.align = alignment
    stream = [frame.SerializeToString() for frame in stream]
    assert assembled(Assembler("b", len(payload)), stream) == [(header, payload)]


@pytest.mark.parametrize("nbytes", [0, 1, 127, 128, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5])
def test_a_vector_of_any_size_arrives_bit_for_bit_in_frames_that_grpc_lets_pass(nbytes: int) -> None:
    payload = random.Random(nbytes).randbytes(nbytes)
    header = header_of(nbytes)
    stream = list(frames(header, memoryview(payload)))
    assert stream == by_protobuf(pb.ExchangeRequest, header, payload, CHUNK_BYTES)
    assert max(map(len, stream)) <= FRAME_LIMIT
    assert assembled(Assembler("b", nbytes), stream) == [(header, payload)]


def test_messages_with_and_without_vectors_follow_each_other() -> None:
    plain = pb.Header(kind=pb.MESSAGE_KIND_OFFER, seq=1).SerializeToString()
    stream = [*frames(plain, None), *frames(header_of(8), memoryview(b"abcdefgh"), 3), *frames(plain, None)]
    assert assembled(Assembler("b", 8), stream) == [(plain, None), (header_of(8), b"abcdefgh"), (plain, None)]


def test_a_vector_is_written_into_the_buffer_that_was_given() -> None:
    assembler, buffer = Assembler("b", 4), bytearray(4)
    header, chunk, trailer = frames(header_of(4), memoryview(b"data"))
    assembler.feed(header)
    assembler.fill(memoryview(buffer))
    assembler.feed(chunk)
    assembler.feed(trailer)
    assert buffer == b"data"


@pytest.mark.parametrize(("expected", "piece"), [(40, 0), (40, 12), (40, 40), (4, 16)])
def test_a_post_may_carry_a_piece_of_a_vector_or_the_few_counts_of_an_evaluation(expected: int, piece: int) -> None:
    header = header_of(piece, pb.MESSAGE_KIND_POST)
    stream = list(frames(header, memoryview(bytes(piece))))
    assert assembled(Assembler("b", expected), stream) == [(header, bytes(piece))]


@pytest.mark.parametrize(("expected", "piece", "most"), [(8000, 8004, 8000), (4, LEAST_SLOT + 4, LEAST_SLOT)])
def test_a_post_that_fits_no_slot_is_refused(expected: int, piece: int, most: int) -> None:
    with pytest.raises(BadFrame, match=f"vector from b has {piece} bytes .* expected at most {most} bytes"):
        Assembler("b", expected).feed(next(frames(header_of(piece, pb.MESSAGE_KIND_POST), None)))


HEADER, FIRST, SECOND, TRAILER = frames(header_of(8), memoryview(b"abcdefgh"), 4)
WRONG_CRC = pb.ExchangeRequest(trailer=pb.Trailer(sum=1)).SerializeToString()
LARGE = pb.Header(kind=pb.MESSAGE_KIND_ABORT, reason="x" * HEADER_LIMIT)


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        ([FIRST], "chunk from node-b, expected a header"),
        ([TRAILER], "trailer from node-b, expected a header"),
        (
            [HEADER, HEADER],
            "header from node-b after 0 bytes of a vector that is not whole, expected a chunk or a trailer",
        ),
        ([HEADER, FIRST, HEADER], "header from node-b after 4 bytes of a vector"),
        ([HEADER, FIRST, TRAILER], "trailer from node-b after 4 bytes, expected 8 before"),
        ([HEADER, FIRST, SECOND, SECOND], "chunk of 4 bytes from node-b after 8, expected 1 to 0"),
        ([HEADER, b"\x1a\x00"], "chunk of 0 bytes from node-b after 0, expected 1 to 8"),
        ([HEADER, SECOND, FIRST, TRAILER], "vector from node-b has checksum [0-9a-f]{16}, expected [0-9a-f]{16}"),
        ([HEADER, FIRST, SECOND, WRONG_CRC], "expected 0000000000000001 by its trailer"),
        ([*frames(header_of(12), None)], r"vector from node-b has 12 bytes \(3 elements\), expected 8 bytes"),
        ([*frames(header_of(2**62), None)], r"vector from node-b has 4611686018427387904 bytes"),
        ([*frames(LARGE.SerializeToString(), None)], r"header from node-b has \d+ bytes, allowed are 16384"),
        ([b""], "frame from node-b holds nothing, expected a header, a chunk or a trailer"),
        ([b"\x2a\x01x"], "frame from node-b holds field tag 0x2a"),
        ([b"\x0a"], "header from node-b has no length"),
        ([b"\x1a" + b"\xff" * 9], "chunk from node-b has no length"),
        ([b"\x0a\x05abc"], "header from node-b has 3 bytes, expected 5 by its length"),
        ([HEADER + FIRST], "header from node-b has 25 bytes, expected 13 by its length"),
        ([b"\x0a\x02\xff\xff"], "header from node-b is not a Header"),
        ([b"\x12\x08" + bytes(8) + b"\x1a\x01x"], "alignment from node-b has 8 bytes, allowed are 7, before a chunk"),
        ([b"\x12\x03\0\0"], "alignment from node-b has 3 bytes"),
        ([b"\x12\x01\0"], "frame from node-b holds nothing"),
        ([b"\x12\x01\0\x0a\x00"], "header from node-b after an alignment, expected a chunk"),
        ([b"\x12\x00\x12\x00"], "alignment from node-b after an alignment, expected a chunk"),
        ([HEADER, FIRST, SECOND, b"\x22\x02\xff\xff"], "trailer from node-b is not a Trailer"),
    ],
)
def test_a_stream_that_breaks_the_protocol_is_refused_with_what_was_expected(
    stream: list[bytes], complaint: str
) -> None:
    with pytest.raises(BadFrame, match=complaint):
        assembled(Assembler("node-b", 8), stream)


def test_no_buffer_is_asked_for_before_the_size_is_known_to_be_right() -> None:
    assembler = Assembler("node-b", 8)
    with pytest.raises(BadFrame):
        assembler.feed(next(frames(header_of(16), None)))
    assert assembler.wanted is None


def test_a_buffer_of_another_size_is_our_own_fault() -> None:
    assembler = Assembler("node-b", 8)
    assembler.feed(HEADER)
    with pytest.raises(ValueError, match="buffer of 4 bytes, wanted 8"):
        assembler.fill(memoryview(bytearray(4)))


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([HEADER, FIRST, SECOND, TRAILER])), max_size=12))
def test_any_stream_gives_whole_vectors_or_a_bad_frame(stream: list[bytes]) -> None:
    try:
        found = assembled(Assembler("b", 8), stream)
    except BadFrame:
        return
    for header, vector in found:
        announced = pb.Header.FromString(header).HasField("vector")
        assert (vector == b"abcdefgh") if announced else vector is None


@given(st.integers(0, 10_000), st.data())
def test_one_changed_bit_of_a_payload_never_arrives(nbytes: int, data: st.DataObject) -> None:
    payload = bytes(nbytes + 1)
    stream = [bytearray(frame) for frame in frames(header_of(len(payload)), memoryview(payload), 777)]
    chunk = stream[data.draw(st.integers(1, len(stream) - 2))]
    chunk[data.draw(st.integers(8, len(chunk) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadFrame, match="checksum"):
        assembled(Assembler("b", len(payload)), [bytes(frame) for frame in stream])


# --- folding --------------------------------------------------------------------------------------------------------


@given(
    elements=st.integers(1, 400),
    chunk_bytes=st.integers(1, 700),
    after=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_a_vector_is_folded_to_its_difference_whenever_that_is_asked_for(
    elements: int, chunk_bytes: int, after: int, seed: int
) -> None:
    """Before the first chunk, between two of whatever size, or not until the last."""
    draw = np.random.default_rng(seed)
    theirs, mine = (draw.standard_normal(elements, np.float32) for _ in range(2))
    stream = list(frames(header_of(theirs.nbytes), memoryview(theirs).cast("B"), chunk_bytes))
    assembler, buffer = Assembler("b", theirs.nbytes), np.zeros(elements, np.float32)
    for number, frame in enumerate(stream):
        if number == min(1 + after, len(stream) - 1):
            assert assembler.under_way is not None
            assert assembler.under_way.seq == 300
            assembler.fold(memoryview(mine).cast("B"))
        whole = assembler.feed(frame)
        if assembler.wanted is not None:
            assembler.fill(memoryview(buffer).cast("B"))
    assert whole is not None
    assert whole.folded
    assert whole.finite
    assert np.array_equal(buffer, theirs - mine)
    assert assembler.under_way is None


def test_a_vector_that_is_folded_is_checked_as_it_came() -> None:
    mine = memoryview(bytes(8))
    stream = [bytearray(frame) for frame in frames(header_of(8), memoryview(b"abcdefgh"), 4)]
    stream[2][-1] ^= 1
    assembler = Assembler("b", 8)
    assembler.feed(bytes(stream[0]))
    assembler.fill(memoryview(bytearray(8)))
    assembler.fold(mine)
    for frame in stream[1:-1]:
        assembler.feed(bytes(frame))
    with pytest.raises(BadFrame, match="checksum"):
        assembler.feed(bytes(stream[-1]))


def test_only_the_vector_that_is_under_way_is_folded() -> None:
    assembler, buffers = Assembler("b", 4), [bytearray(4), bytearray(4)]
    for buffer in buffers:
        for frame in frames(header_of(4), memoryview(b"\0\0\x80?")):  # 1.0
            whole = assembler.feed(frame)
            if assembler.wanted is not None:
                assembler.fill(memoryview(buffer))
                if buffer is buffers[0]:
                    assembler.fold(memoryview(b"\0\0\0@"))  # 2.0
        assert whole is not None
        assert whole.folded == (buffer is buffers[0])
    assert [np.frombuffer(buffer, "<f4")[0] for buffer in buffers] == [-1.0, 1.0]


@given(st.binary(max_size=3000), st.integers(1, 1000))
def test_the_checksum_is_that_of_its_definition(payload: bytes, chunk_bytes: int) -> None:
    total = Sum()
    for start in range(0, len(payload), chunk_bytes):
        total.add(words_of(memoryview(payload)[start : start + chunk_bytes]))
    assert total.total == checksum(payload, chunk_bytes)


@pytest.mark.parametrize("alignment", [None, 0, 3], ids=["as we send", "none", "of another"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, np.float32(3e38)])
def test_a_difference_that_is_not_finite_is_not_said_to_be(wrong: float, alignment: int | None) -> None:
    """3e38 less -3e38 is none either."""
    theirs, mine = np.ones(700, np.float32), np.full(700, -3e38, np.float32)
    theirs[600] = wrong
    assembler, buffer = Assembler("b", theirs.nbytes), bytearray(theirs.nbytes)
    for frame in frames(header_of(theirs.nbytes), memoryview(theirs).cast("B"), 1000):
        sent = pb.ExchangeRequest.FromString(frame)
        if alignment is not None and sent.HasField("chunk"):
            sent.align = bytes(alignment)
        whole = assembler.feed(sent.SerializeToString())
        if assembler.wanted is not None:
            assembler.fill(memoryview(buffer))
            assembler.fold(memoryview(mine).cast("B"))
    assert whole is not None
    assert whole.folded
    assert not whole.finite


def test_of_a_vector_that_is_not_folded_nothing_is_known() -> None:
    assembler = Assembler("b", 8)
    for frame in frames(header_of(8), memoryview(bytes(8))):
        whole = assembler.feed(frame)
        if assembler.wanted is not None:
            assembler.fill(memoryview(bytearray(8)))
    assert whole is not None
    assert not whole.folded
    assert not whole.finite


@pytest.mark.parametrize("nbytes", [8, 127 * 8, 128 * 8, CHUNK_BYTES])
def test_a_chunk_begins_at_a_multiple_of_eight(nbytes: int) -> None:
    _, chunk, _ = frames(header_of(nbytes), memoryview(bytes(nbytes)))
    assert len(chunk) - nbytes == 8
