"""A random rotation of blocks of 256 coordinates: after it every block looks like normal noise, whatever it was. Pure.

R z = H (signs * z), with random signs and the Walsh-Hadamard matrix H, so that one large coordinate is spread over all
of its block and a single bit a coordinate tells much of it (DRIVE, 2105.08339; EDEN, 2108.08842: from memory,
unverified). The signs are the 256 bits of SHA-256 of `signs SEED`: whoever knows the seed can turn back.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 256
SIDE = 16
"""H of 256 is the Kronecker product of twice the H of 16: two products of small matrices for each block."""


def blocks(elements: int) -> int:
    """In so many coordinates, the last block filled up with zeros."""
    return -(-elements // BLOCK)


def rotate(z: Tensor, seed: int) -> Tensor:
    """(blocks, 256): z, (n,), rotated; as long as z but for rounding."""
    rows = torch.nn.functional.pad(z, (0, -len(z) % BLOCK)).view(-1, BLOCK)
    return _hadamard(rows * _signs(seed).to(z))


def rotate_back(y: Tensor, seed: int, elements: int) -> Tensor:
    """(n,): the z whose rotation is y, (blocks, 256)."""
    return _hadamard(y).mul_(_signs(seed).to(y)).view(-1)[:elements]


def draw_seed(draw: torch.Generator) -> int:
    """Below 2^31; a new one for each message keeps the errors of packing without bias."""
    return int(torch.randint(0, 2**31, (1,), generator=draw))


def _hadamard(rows: Tensor) -> Tensor:
    """Its own inverse, and new."""
    h = _H.to(rows)
    squares = rows.reshape(-1, SIDE) @ h
    turned: Tensor = torch.matmul(h, squares.view(-1, SIDE, SIDE))
    return turned.view(-1, BLOCK)


def _signs(seed: int) -> Tensor:
    """(256,) of +1 and -1."""
    digest = hashlib.sha256(b"signs %d" % seed).digest()
    signs: Tensor = torch.from_numpy(1.0 - 2.0 * np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float32))
    return signs


def _orthonormal() -> Tensor:
    h = torch.ones(1, 1)
    while len(h) < SIDE:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h / math.sqrt(SIDE)


_H = _orthonormal()
