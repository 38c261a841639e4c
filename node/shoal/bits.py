"""One bit a coordinate, at about the speed of memory: signs into bits, bits into +1 and -1, and counting votes. Pure.

Everything goes piece by piece, so that what lies between two steps stays in the cache. The first coordinate is the
highest bit of the first byte, and a bit of 1 is a minus.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Coins = Callable[[npt.NDArray[np.int64]], Bits]
"""What decides the signs at these coordinates."""

PIECE = 1 << 17
"""Coordinates: a multiple of 64."""
_WORD = np.uint64

_OF_A_BYTE: npt.NDArray[Any] = (1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)).astype(np.float32)).view(
    "V32"
)  # eight float32 each


def packed_signs(values: npt.NDArray[Any], coins: Coins) -> Bytes:
    """(ceil(m / 8),): whether each of values, (m,), is below zero; the coins decide where it is 0."""
    packed = np.empty(-(-len(values) // 8), np.uint8)
    below, zero = np.empty(min(PIECE, len(values)), bool), np.empty(min(PIECE, len(values)), bool)
    for start in range(0, len(values), PIECE):
        piece = values[start : start + PIECE]
        negative = np.less(piece, 0, out=below[: len(piece)])
        if np.equal(piece, 0, out=zero[: len(piece)]).any():
            (where,) = np.nonzero(zero[: len(piece)])
            negative[where] = coins(where + start)
        bits = np.packbits(negative)
        packed[start // 8 : start // 8 + len(bits)] = bits
    return packed


def ones(packed: Bytes, elements: int) -> npt.NDArray[np.float32]:
    """(elements,): -1 where the bit is set, else +1."""
    values = np.empty(8 * len(packed), np.float32)
    eights = values.view(_OF_A_BYTE.dtype)
    for start in range(0, len(packed), PIECE // 8):
        piece = packed[start : start + PIECE // 8]
        np.take(_OF_A_BYTE, piece, out=eights[start : start + len(piece)], mode="clip")
    return values[:elements]


def majority(votes: Sequence[Bytes]) -> tuple[Bytes, Bytes]:
    """(bits that more than half of the votes have, bits that exactly half have), as long as each vote.

    The counts of 64 coordinates are kept as bit planes: plane k holds bit k of all of them, and a vote is added by
    half-adders from the lowest plane up.
    """
    words = [_words(vote) for vote in votes]
    more, half = np.empty_like(words[0]), np.zeros_like(words[0])
    for start in range(0, len(more), PIECE // 64):
        piece = slice(start, start + PIECE // 64)
        planes = _counted([word[piece] for word in words])
        more[piece] = _at_least(planes, len(votes) // 2 + 1)
        if len(votes) % 2 == 0:
            half[piece] = _at_least(planes, len(votes) // 2) & ~more[piece]
    length = len(votes[0])
    return more.view(np.uint8)[:length], half.view(np.uint8)[:length]


def with_coins(packed: Bytes, undecided: Bytes, coins: Coins) -> Bytes:
    """`packed`, with the coins' signs at the bits that are undecided; in place."""
    if undecided.any():
        for start in range(0, len(packed), PIECE // 8):
            piece = slice(start, start + PIECE // 8)
            open_ones = np.unpackbits(undecided[piece])
            (where,) = np.nonzero(open_ones)
            if len(where):
                open_ones[where] = coins(where + 8 * start)
                packed[piece] |= np.packbits(open_ones)
    return packed


def _words(vote: Bytes) -> npt.NDArray[np.uint64]:
    return np.concatenate((vote, np.zeros(-len(vote) % 8, np.uint8))).view(_WORD)


def _counted(words: Sequence[npt.NDArray[np.uint64]]) -> list[npt.NDArray[np.uint64]]:
    planes: list[npt.NDArray[np.uint64]] = []
    for count, word in enumerate(words, start=1):
        carry = word
        for k, plane in enumerate(planes):
            planes[k], carry = plane ^ carry, plane & carry
        if len(planes) < count.bit_length():
            planes.append(carry)
    return planes


def _at_least(planes: Sequence[npt.NDArray[np.uint64]], least: int) -> npt.NDArray[np.uint64]:
    """Where the count is at least that: its bits compared from the lowest to the highest."""
    so_far = np.full_like(planes[0], np.iinfo(np.uint64).max)
    for k, plane in enumerate(planes):
        so_far = plane & so_far if least >> k & 1 else plane | so_far
    return so_far
