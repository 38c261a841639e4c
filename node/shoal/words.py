"""The checksum of what lies in memory, and whether it is finite, in one go. Pure."""

import math
from collections.abc import Callable

import numpy as np

PIECE_BYTES = 1 << 20
"""What is looked at in one go, while it lies in the cache: less of it, and the calls take longer than the work."""
LARGEST = 2**64 - 1


def words_of(data: memoryview) -> int:
    """The sum of the little-endian 64-bit words of (n,) uint8, the last one filled up with zeros; perhaps modulo 2^64.
    That of a whole is that of its parts, cut at words."""
    whole = len(data) & ~7
    words = int(np.add.reduce(np.frombuffer(data[:whole], "<u8")))
    return words + int.from_bytes(data[whole:], "little")


def words_and_finite(
    data: memoryview, dtype: str, beside: Callable[[int, int], None] = lambda start, stop: None
) -> tuple[int, bool]:
    """(its `words_of`, modulo 2^64; whether all its numbers, of that numpy dtype, are finite). `beside(start, stop)` is
    called with the numbers that have just been looked at, and lie in the cache."""
    words, squares, size = 0, 0.0, np.dtype(dtype).itemsize
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            numbers = np.frombuffer(piece, dtype)
            words += words_of(piece)
            squares += float(np.dot(numbers, numbers))
            beside(start // size, start // size + len(numbers))
    # Squares may overflow though every number is finite, and only then each is looked at.
    finite = math.isfinite(squares) or bool(np.isfinite(np.frombuffer(data, dtype)).all())
    return words & LARGEST, finite
