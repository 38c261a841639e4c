"""Frames by hand are protobuf's frames, and a stream that breaks the protocol is refused before it costs memory."""

import random

import numpy as np
import pytest
from checksum import checksum
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadFrame
from shoal.link import LEAST_SLOT
from shoal.transport.frames import CHUNK_BYTES, FRAME_LIMIT, HEADER_LIMIT, Assembler, Sum, Whole, frames
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
        starts = range(0, len(payload), chunk_bytes)
        whole += [frame_type(chunk=payload[start : start + chunk_bytes]) for start in starts]
        whole.append(frame_type(trailer=pb.Trailer(sum=checksum(payload, chunk_bytes))))
    return [frame.SerializeToString() for frame in whole]


def assembled(assembler: Assembler, stream: list[bytes]) -> list[tuple[bytes, bytes | None]]:
    """Feeds a stream, gives buffers as they are asked for, and copies out what comes."""
    found = []
    for frame in stream:
        whole = assembler.feed(frame)
        if assembler.wanted is not None:
            assembler.fill(memoryview(bytearray(assembler.wanted)))
        if whole is not None:
            header, vector, _ = whole
            found.append((header, None if vector is None else bytes(vector)))
    return found


@BOTH
@given(st.binary(max_size=1000), st.integers(1, 300))
def test_hand_written_frames_are_the_bytes_of_protobuf(frame_type: Frame, payload: bytes, chunk_bytes: int) -> None:
    header = header_of(len(payload))
    by_hand = list(frames(header, memoryview(payload), chunk_bytes))
    assert by_hand == by_protobuf(frame_type, header, payload, chunk_bytes)


@BOTH
@given(st.binary(max_size=1000), st.integers(1, 300))
def test_protobufs_frames_are_read_by_hand(frame_type: Frame, payload: bytes, chunk_bytes: int) -> None:
    header = header_of(len(payload))
    stream = by_protobuf(frame_type, header, payload, chunk_bytes)
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
        ([HEADER, b"\x12\x00"], "chunk of 0 bytes from node-b after 0, expected 1 to 8"),
        ([HEADER, SECOND, FIRST, TRAILER], "vector from node-b has checksum [0-9a-f]{16}, expected [0-9a-f]{16}"),
        ([HEADER, FIRST, SECOND, WRONG_CRC], "expected 0000000000000001 by its trailer"),
        ([*frames(header_of(12), None)], r"vector from node-b has 12 bytes \(3 elements\), expected 8 bytes"),
        ([*frames(header_of(2**62), None)], r"vector from node-b has 4611686018427387904 bytes"),
        ([*frames(LARGE.SerializeToString(), None)], r"header from node-b has \d+ bytes, allowed are 16384"),
        ([b""], "frame from node-b holds nothing, expected a header, a chunk or a trailer"),
        ([b"\x22\x01x"], "frame from node-b holds field tag 0x22"),
        ([b"\x0a"], "header from node-b has no length"),
        ([b"\x12" + b"\xff" * 9], "chunk from node-b has no length"),
        ([b"\x0a\x05abc"], "header from node-b has 3 bytes, expected 5 by its length"),
        ([HEADER + FIRST], "header from node-b has 19 bytes, expected 13 by its length"),
        ([b"\x0a\x02\xff\xff"], "header from node-b is not a Header"),
        ([HEADER, FIRST, SECOND, b"\x1a\x02\xff\xff"], "trailer from node-b is not a Trailer"),
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
    chunk[data.draw(st.integers(3, len(chunk) - 1)) if len(chunk) > 3 else -1] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BadFrame, match="checksum"):
        assembled(Assembler("b", len(payload)), [bytes(frame) for frame in stream])


# --- whether it is finite -------------------------------------------------------------------------------------------


def sent(theirs: np.ndarray, dtype: pb.Dtype.ValueType, chunk_bytes: int) -> Whole:
    """As it is once it has come."""
    vector = pb.Vector(elements=theirs.size, dtype=dtype, bytes=theirs.nbytes)
    header = pb.Header(kind=pb.MESSAGE_KIND_ACCEPT, vector=vector).SerializeToString()
    assembler, buffer = Assembler("b", theirs.nbytes), memoryview(bytearray(theirs.nbytes))
    for frame in frames(header, memoryview(theirs).cast("B"), chunk_bytes):
        whole = assembler.feed(frame)
        if assembler.wanted is not None:
            assembler.fill(buffer)
    assert whole is not None
    assert buffer == theirs.tobytes()
    return whole


FLOATS = pytest.mark.parametrize(("name", "dtype"), [("<f4", pb.DTYPE_F32), ("<f8", pb.DTYPE_F64)])


@FLOATS
@given(elements=st.integers(1, 400), chunk_bytes=st.integers(1, 700), seed=st.integers(0, 1000))
def test_numbers_that_are_finite_are_known_to_be_in_chunks_of_any_size(
    name: str, dtype: pb.Dtype.ValueType, elements: int, chunk_bytes: int, seed: int
) -> None:
    theirs = (1e37 * np.random.default_rng(seed).standard_normal(elements)).astype(name)
    assert sent(theirs, dtype, chunk_bytes).finite


@FLOATS
@given(
    elements=st.integers(1, 400),
    chunk_bytes=st.integers(1, 700),
    at=st.integers(0, 399),
    wrong=st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_one_that_is_not_finite_is_found_wherever_it_is(
    name: str, dtype: pb.Dtype.ValueType, elements: int, chunk_bytes: int, at: int, wrong: float
) -> None:
    theirs = np.ones(elements, name)
    theirs[at % elements] = wrong
    assert not sent(theirs, dtype, chunk_bytes).finite


def test_of_packed_bytes_nothing_is_known() -> None:
    assert not sent(np.zeros(8, np.uint8), pb.DTYPE_U8, 3).finite


def test_one_vector_says_nothing_of_the_next() -> None:
    assembler = Assembler("b", 4)
    found = []
    for number in (np.nan, 1.0, np.inf, 2.0):
        payload = np.array([number], np.float32).tobytes()
        for frame in frames(header_of(4), memoryview(payload)):
            whole = assembler.feed(frame)
            if assembler.wanted is not None:
                assembler.fill(memoryview(bytearray(4)))
        assert whole is not None
        found.append(whole.finite)
    assert found == [False, True, False, True]


def test_of_a_vector_in_shared_memory_only_the_header_comes() -> None:
    """And its size is the worker's to check, who knows what may lie there."""
    vector = pb.Vector(elements=2**40, dtype=pb.DTYPE_F32, bytes=2**42, slot=1, ticket=1)
    header = pb.Header(kind=pb.MESSAGE_KIND_ACCEPT, vector=vector).SerializeToString()
    plain = pb.Header(kind=pb.MESSAGE_KIND_READY, seq=1).SerializeToString()
    stream = [next(frames(header, None)), next(frames(plain, None))]
    assert assembled(Assembler("b", 8), stream) == [(header, None), (plain, None)]


@given(st.binary(max_size=3000), st.integers(1, 1000))
def test_the_checksum_is_that_of_its_definition(payload: bytes, chunk_bytes: int) -> None:
    total = Sum()
    for start in range(0, len(payload), chunk_bytes):
        total.add(words_of(memoryview(payload)[start : start + chunk_bytes]))
    assert total.total == checksum(payload, chunk_bytes)
