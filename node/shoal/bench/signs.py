"""Signs into bits, back, and a vote of nine, against copying the float32 vector."""

import numpy as np
import torch

from shoal import codecs
from shoal.bench.lab import Figure, Lab, median, ratio_of
from shoal.rules import Vote

ELEMENTS = 11_700_000
VOTERS = 9


def measure(lab: Lab) -> list[Figure]:
    """Each as seconds of the copy over seconds of the work, on one thread."""
    torch.set_num_threads(1)
    n = lab.size(ELEMENTS)
    draw = np.random.default_rng(0)
    vector, copy = draw.standard_normal(n, np.float32), np.zeros(n, np.float32)
    y, vote = torch.from_numpy(vector), Vote(n, 0, 0)
    with_zeros = torch.from_numpy(np.where(draw.random(n) < 0.01, np.float32(0), vector))
    packed = vote.pack(y, 0, "a")
    votes = {str(k): torch.from_numpy(draw.integers(0, 256, len(packed)).astype(np.uint8)) for k in range(VOTERS)}

    def copied() -> None:
        np.copyto(copy, vector)

    rows = [
        ("pack signs, no zeros", lambda: vote.pack(y, 0, "a"), 0.6),
        ("pack signs, one in a hundred is zero", lambda: vote.pack(with_zeros, 0, "a"), 0.6),
        ("unpack signs", lambda: codecs.unpack_signs(packed, n), 0.5),
        (f"vote of {VOTERS}", lambda: vote.count(votes, 0), 0.45),
    ]
    return [median(f"{name} / memcpy", ratio_of(copied, work, lab.pairs), "x", bar=bar) for name, work, bar in rows]
