"""What a teller counts beside the votes: rounds, what became of each vector, how far the workers agree. Pure."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from shoal.messages import PeerId

ONES = np.array([int(k).bit_count() for k in range(256)], dtype=np.int64)
"""Bits of each byte."""


@dataclasses.dataclass
class Tally:
    """Totals since the start of the process."""

    rounds: dict[str, int] = dataclasses.field(default_factory=lambda: {"all": 0, "quorum": 0})
    votes: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"counted": 0, "missing": 0, "late": 0, "double": 0, "refused": 0}
    )
    agreement: float = math.nan  # part of the signs of the last vote that were the majority's


def agreement(ballots: Mapping[PeerId, Tensor], answer: Tensor, elements: int) -> float:
    """Part of all signs that are the majority's, 0.5 to 1: near 0.5 the workers do not agree on anything."""
    against = sum(int(ONES[np.bitwise_xor(b.numpy(), answer.numpy())].sum()) for b in ballots.values())
    return 1 - against / max(1, elements * len(ballots))
