"""The checksum of what lies in memory, and whether it is finite, in one go. Pure."""

import math

import numpy as np

PIECE_BYTES = 1 << 18
"""What is looked at in one go, while it lies in the cache."""
LARGEST = 2**64 - 1


def words_of(data: memoryview) -> int:
    """The sum of the little-endian 64-bit words of (n,) uint8, the last one filled up with zeros; perhaps modulo 2^64.
    That of a whole is that of its parts, cut at words."""
    whole = len(data) & ~7
    words = int(np.add.reduce(np.frombuffer(data[:whole], "<u8")))
    return words + int.from_bytes(data[whole:], "little")


def copied(source: memoryview, target: memoryview) -> int:
    """Copies (n,) uint8 into another; returns its `words_of`, modulo 2^64."""
    words = 0
    for start in range(0, len(source), PIECE_BYTES):
        piece = target[start : start + PIECE_BYTES]
        piece[:] = source[start : start + PIECE_BYTES]
        words += words_of(piece)
    return words & LARGEST


def words_and_finite(data: memoryview, dtype: str) -> tuple[int, bool]:
    """(its `words_of`, modulo 2^64; whether all its numbers, of that numpy dtype, are finite)."""
    words, squares = 0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            numbers = np.frombuffer(piece, dtype)
            words += words_of(piece)
            squares += float(np.dot(numbers, numbers))
    # Squares may overflow though every number is finite, and only then each is looked at.
    finite = math.isfinite(squares) or bool(np.isfinite(np.frombuffer(data, dtype)).all())
    return words & LARGEST, finite
