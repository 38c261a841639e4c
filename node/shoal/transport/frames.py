"""The frames of the Exchange stream, written and read by hand as exactly the bytes that protobuf would write.

A message is a header frame and, when its header announces a vector, chunk frames and a trailer with the
checksum of all chunks. Each frame is one ExchangeRequest or ExchangeResponse (the same field numbers), so any
protobuf client can talk to a node; but a payload passes through no protobuf object: `frames` copies a chunk once
on its way out, `Assembler` once on its way into its buffer. No I/O here.

The checksum is a wrapping sum of 64-bit words, thirteen times as fast as zlib's crc32: TCP and HTTP/2 keep the order
and have checks of their own, and what is left to find are bits that fell over in memory on the way.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from shoal.errors import BadFrame
from shoal.link import LEAST_SLOT
from shoal.v1 import node_pb2 as pb
from shoal.words import LARGEST, PIECE_BYTES, words_of

CHUNK_BYTES = 1 << 21
"""Payload of one chunk, at most. Over gRPC twice as much, half and a quarter of it are all slower."""
HEADER_LIMIT = 16 << 10
"""Bytes of a header, at most: more than all that `shoal.wire` lets through at its longest."""
FRAME_LIMIT = CHUNK_BYTES + 16
"""Bytes of a frame, at most: a full chunk with its tag and length."""

# Field number and wire type 2 (length-delimited), as protobuf's encoding has it: number << 3 | 2.
_HEADER, CHUNK_TAG, _TRAILER = 0x0A, 0x12, 0x1A
_NAMES = {_HEADER: "header", CHUNK_TAG: "chunk", _TRAILER: "trailer"}
_FLOATS: dict[int, np.dtype[Any]] = {pb.DTYPE_F32: np.dtype("<f4"), pb.DTYPE_F64: np.dtype("<f8")}


def frames(header: bytes, payload: memoryview | None, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The frames of one message; `payload` is (n,) uint8 and is read while the iterator runs."""
    yield _frame(_HEADER, header)
    if payload is None:
        return
    sums = Sum()
    for start in range(0, len(payload), chunk_bytes):
        chunk = payload[start : start + chunk_bytes]
        sums.add(words_of(chunk))
        yield _frame(CHUNK_TAG, chunk)
    yield _frame(_TRAILER, pb.Trailer(sum=sums.total).SerializeToString())


class Sum:
    """Of the chunks of a vector, modulo 2^64: that of the k-th, from 0, times 2k + 1, so that their order counts. A
    chunk's is that of its little-endian 64-bit words, the last one filled up with zeros."""

    def __init__(self) -> None:
        self.total = 0
        self._weight = 1

    def add(self, words: int) -> None:
        """The next chunk, by `words_of` it."""
        self.total = (self.total + self._weight * words) & LARGEST
        self._weight += 2


class Whole(NamedTuple):
    """A message that has come whole."""

    header: bytes
    vector: memoryview | None  # (n,) uint8
    finite: bool = False  # and known to be


class Assembler:
    """Puts the messages of one Exchange stream together, frame by frame.

    After a frame that announces a vector, `wanted` is its size in bytes, and `fill` must bring a buffer of that
    size before the next frame. Every size is checked before that. Any problem is a BadFrame with the peer's
    name, after which the stream cannot go on.
    """

    def __init__(self, peer: str, vector_bytes: int) -> None:
        self._peer = peer
        self._expected = vector_bytes  # of every model's vector in this shoal
        self._header: bytes | None = None  # of the message whose vector is under way
        self._read = pb.Header()  # the same
        self._buffer: memoryview | None = None
        self._filled = 0
        self._sum = Sum()
        self._floats: np.dtype[Any] | None = None  # None where the bytes are no numbers, or cannot be
        self._looked_at = 0  # bytes that were numbers, and finite while:
        self._finite = True
        self.wanted: int | None = None

    def fill(self, buffer: memoryview) -> None:
        """Takes the buffer that was asked for: (wanted,) uint8, writable."""
        if len(buffer) != self.wanted:
            raise ValueError(f"buffer of {len(buffer)} bytes, wanted {self.wanted}")
        self._buffer, self.wanted = buffer, None

    def feed(self, frame: bytes) -> "Whole | None":
        """Takes the next frame. Returns a message when it is whole; the vector is its buffer."""
        tag, content = self._opened(memoryview(frame))
        if tag == _HEADER:
            return self._begin(content)
        if self._header is None:
            raise BadFrame(f"{_NAMES[tag]} from {self._peer}, expected a header")
        if self._buffer is None:
            raise ValueError("a frame came before the buffer that its vector needs")
        if tag == _TRAILER:
            return self._end(content, self._buffer)
        self._add(content, self._buffer)
        return None

    def _opened(self, frame: memoryview) -> tuple[int, memoryview]:
        """Tag and content of a frame, which is one field and nothing else."""
        if not frame or frame[0] not in _NAMES:
            found = f"field tag {frame[0]:#04x}" if frame else "nothing"
            raise BadFrame(f"frame from {self._peer} holds {found}, expected a header, a chunk or a trailer")
        name = _NAMES[frame[0]]
        length = 0
        for position, byte in enumerate(frame[1:6]):
            length |= (byte & 0x7F) << 7 * position
            if byte < 0x80:
                break
        else:
            raise BadFrame(f"{name} from {self._peer} has no length")
        content = frame[position + 2 :]
        if len(content) != length:
            raise BadFrame(f"{name} from {self._peer} has {len(content)} bytes, expected {length} by its length")
        return frame[0], content

    def _begin(self, content: memoryview) -> "Whole | None":
        if self._header is not None:
            raise BadFrame(
                f"header from {self._peer} after {self._filled} bytes of a vector that is not whole, "
                "expected a chunk or a trailer"
            )
        if len(content) > HEADER_LIMIT:
            raise BadFrame(f"header from {self._peer} has {len(content)} bytes, allowed are {HEADER_LIMIT}")
        header = bytes(content)
        try:
            read = pb.Header.FromString(header)
        except DecodeError as error:
            raise BadFrame(f"header from {self._peer} is not a Header: {error}") from None
        if not read.HasField("vector") or read.vector.slot:  # what lies in shared memory the worker looks at
            return Whole(header, None)
        size = read.vector.bytes
        # A post may be a piece of a vector (`ring.py`), and a packed vector is shorter; the worker knows how long.
        piece = read.kind == pb.MESSAGE_KIND_POST or read.vector.dtype == pb.DTYPE_U8
        most = max(self._expected, LEAST_SLOT) if piece else self._expected
        if size > most or (size < most and not piece):
            raise BadFrame(
                f"vector from {self._peer} has {size} bytes ({read.vector.elements} elements), "
                f"expected {'at most ' if piece else ''}{most} bytes"
            )
        self._header, self._read, self._filled, self._sum = header, read, 0, Sum()
        floats = _FLOATS.get(read.vector.dtype)
        self._floats = floats if floats is not None and size % floats.itemsize == 0 else None
        self._looked_at, self._finite = 0, True
        self.wanted = size
        return None

    def _add(self, chunk: memoryview, buffer: memoryview) -> None:
        end = self._filled + len(chunk)
        if not chunk or end > len(buffer):
            raise BadFrame(
                f"chunk of {len(chunk)} bytes from {self._peer} after {self._filled}, expected 1 to "
                f"{len(buffer) - self._filled}"
            )
        words = 0
        for start in range(0, len(chunk), PIECE_BYTES):
            piece = chunk[start : start + PIECE_BYTES]
            place = slice(self._filled, self._filled + len(piece))
            buffer[place] = piece
            words += words_of(buffer[place])  # in its place it is aligned
            self._filled = place.stop
            self._look(buffer)
        self._sum.add(words)

    def _look(self, buffer: memoryview) -> None:
        """Whether what has come is finite, while it lies in the cache."""
        if self._floats is not None:
            whole = slice(self._looked_at, self._filled & ~7)  # a chunk may end within a number
            self._finite = self._finite and bool(np.isfinite(np.frombuffer(buffer[whole], self._floats)).all())
            self._looked_at = whole.stop

    def _end(self, content: memoryview, buffer: memoryview) -> "Whole":
        assert self._header is not None
        if self._filled != len(buffer):
            raise BadFrame(f"trailer from {self._peer} after {self._filled} bytes, expected {len(buffer)} before")
        try:
            expected = pb.Trailer.FromString(bytes(content)).sum
        except DecodeError as error:
            raise BadFrame(f"trailer from {self._peer} is not a Trailer: {error}") from None
        if expected != self._sum.total:
            found = f"has checksum {self._sum.total:016x}, expected {expected:016x} by its trailer"
            raise BadFrame(f"vector from {self._peer} {found}")
        if self._floats is None:
            finite = False
        else:
            rest = np.frombuffer(buffer[self._looked_at :], self._floats)
            finite = self._finite and bool(np.isfinite(rest).all())
        whole = Whole(self._header, buffer, finite)
        self._header = self._buffer = None
        return whole


def _frame(tag: int, content: bytes | memoryview) -> bytes:
    """One field, number and wire type 2 in `tag`, as protobuf writes it."""
    head, rest = bytearray((tag,)), len(content)
    while rest >= 0x80:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    return b"".join((head, content))
