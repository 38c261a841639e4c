"""What may travel of a model while a pair is averaged, by name: `f32`, `f16`, `bf16`, `q8`, `q4`, `sign`. Pure.

`f16` and `bf16` go both ways at once: each end sends its own model, rounded, and reckons with the rounded one itself,
delta_i = (r^ - s^)/2, so the two deltas cancel to the last bit. A delta is off by at most half the sum of the two
roundings (`rounding.py`): with bf16 2^-8 of the larger of the two numbers. Two numbers that round to the same are not
moved at all, so models come no nearer to each other than that; each end keeps what it has learnt in float32, and the
mean of the two is untouched.

`q8` and `q4` go one after the other, on the lattice of `pair_codec.py`: with 8 and with 4 bits both ways.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from shoal import rounding
from shoal.delta import PIECE, Delta
from shoal.messages import PeerId
from shoal.pair_codec import Duplex, Full, Lattice, Packed, PairCodec, PairCodecs

Room = Callable[[int, torch.dtype], Tensor | None]


@dataclasses.dataclass(frozen=True, slots=True)
class BetweenRounded(Delta):
    """`part` of the way from one model to another as both were sent, not made before it is added."""

    mine: rounding.Halved
    theirs: rounding.Halved
    part: float = 0.5

    def add_to(self, x: Tensor) -> None:
        """Piece by piece."""
        for piece, difference in self._differences(x.numel(), x.device):
            x[piece].add_(difference, alpha=self.part)

    def length(self, dtype: torch.dtype | None = None) -> float:
        """Piece by piece."""
        parts = self._differences(self.theirs.elements, self.theirs.device)
        # A sum of squares in float32 loses digits where it is longer.
        shorter = (some for _, part in parts for some in torch.split(part, PIECE))
        squares = (float(torch.linalg.vector_norm(some, dtype=dtype)) ** 2 for some in shorter)
        return self.part * math.sqrt(sum(squares))

    def shortened(self, by: float) -> "BetweenRounded":
        """Less of the way."""
        return dataclasses.replace(self, part=self.part * by)

    def _differences(self, elements: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Theirs less mine of the first so many coordinates, each piece in the room of the last one."""
        room = torch.empty(2, min(rounding.PIECE, elements), device=device)
        for piece in rounding.pieces(elements):
            theirs, mine = room[:, : piece.stop - piece.start]
            self.theirs.read(piece, theirs)
            self.mine.read(piece, mine)
            yield piece, theirs.sub_(mine)

    def tensor(self) -> Tensor:
        """(n,) float32."""
        x = torch.zeros(self.theirs.elements, device=self.theirs.device)
        self.add_to(x)
        return x


class Half(Duplex):
    """Two bytes a coordinate."""

    def __init__(self, name: str, elements: int, room: Room) -> None:
        self.name, self.elements, self._room = name, elements, room

    def own(self, x: Tensor) -> Tensor:
        """x rounded, as bytes; where others can read them, if there is room."""
        nbytes = rounding.half_bytes(self.elements, self.name)
        return rounding.halved(x, self.name, self._room(nbytes, torch.uint8) if x.device.type == "cpu" else None)

    def delta(self, mine: Tensor, theirs: Tensor, peer: PeerId) -> Delta:
        """Half the difference of what was sent: off by at most 2^-9 (|r| + |s|) in a coordinate with bf16, and by 2^-12
        (|r| + |s|) with f16, but for what is tiny beside the largest."""
        read = rounding.Halved(theirs, self.name, self.elements, peer)
        read.check()
        return BetweenRounded(rounding.Halved(mine, self.name, self.elements, "this node"), read)


class Levels(Lattice):
    """The same number of bits both ways. What i says of the difference is off by at most half a step of its scale in a
    rotated coordinate; before that, r as i reads it by at most half a step of the lattice, while the two models lie
    within its span."""

    def __init__(self, name: str, elements: int, draw: torch.Generator) -> None:
        super().__init__(elements, draw)
        self.bits = rounding.BITS[name]

    def _tell(self, seed: int, steps: Tensor, residues: Tensor) -> Tensor:
        return rounding.assembled(seed, steps, residues, self.bits)

    def _told(self, first: Tensor, peer: PeerId) -> tuple[int, Tensor, Tensor]:
        return rounding.taken_apart(first, self.bits, self.elements, peer)

    def _pack(self, difference: Tensor, seed: int) -> Tensor:
        return rounding.pack_rotated(difference, self.bits, seed)

    def _read(self, second: Tensor, peer: PeerId) -> tuple[Tensor, Tensor]:
        return rounding.unpack(second, self.bits, self.elements, peer)


def pair_codecs(
    wish: str,
    elements: int,
    draw: torch.Generator,
    room: Room = lambda elements, dtype: None,
    *,
    lattices: bool = True,
) -> PairCodecs:
    """All of them, or those without a lattice; each is one for all neighbours of a node. `room` is
    `carrier.Host.room`."""
    known: dict[str, PairCodec] = {
        "f32": Full(),
        "f16": Half("f16", elements, room),
        "bf16": Half("bf16", elements, room),
    }
    if lattices:
        known |= {
            "q8": Levels("q8", elements, draw),
            "q4": Levels("q4", elements, draw),
            "sign": Packed(elements, draw),
        }
    return PairCodecs(wish, known)
