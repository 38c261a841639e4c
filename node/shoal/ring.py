"""Sum over all members on a ring: reduce-scatter, then all-gather. Bandwidth-optimal. Pure.

Each member sends 2 (n-1)/n of the vector, whatever n is. Every piece is added up in the order of the ring from its own
start and then copied, so all members hold the same bits.
"""

from collections.abc import Awaitable, Callable

import torch
from torch import Tensor

Swap = Callable[[int, Tensor], Awaitable[Tensor]]
"""(step, piece) -> the piece that came from the left, after ours went to the right."""


def piece_length(elements: int, n: int, rank: int, step: int) -> int:
    """Elements of the piece that `rank` receives at `step` (0 .. 2n-3)."""
    index = (rank - step - 1) % n if step < n - 1 else (rank - (step - (n - 1))) % n
    return elements // n + (1 if index < elements % n else 0)


async def ring_sum(rank: int, n: int, vector: Tensor, swap: Swap) -> Tensor:
    """The sum of the n members' vectors, (m,); `vector` itself is left alone. m need not be divisible by n."""
    total = vector.clone()
    if n == 1:
        return total
    pieces = torch.tensor_split(total, n)
    for step in range(n - 1):
        got = await swap(step, pieces[(rank - step) % n].clone())
        pieces[(rank - step - 1) % n].add_(got)
    for step in range(n - 1):
        got = await swap(n - 1 + step, pieces[(rank + 1 - step) % n].clone())
        pieces[(rank - step) % n].copy_(got)
    return total
