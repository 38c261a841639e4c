"""Who gets which samples of a data set that all nodes have: index arrays from labels and a seed. Pure.

Every node computes all parts and keeps its own, so the draws must be the same on every machine and with every
version of numpy. That rules out `numpy.random.Generator`, whose streams may change between versions (NEP 19);
`RandomState` is frozen.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from shoal.errors import DataError

Indices = NDArray[np.int64]
Labels = NDArray[np.integer]

REDRAWS = 200
"""How often a random division is drawn again when it leaves a shard empty."""
BY_LABEL = ("labels", "dirichlet")
"""Partitions that need class labels."""


def partition(labels: Labels, shards: int, spec: str, seed: int) -> list[Indices]:
    """Divide the samples 0..N-1 among `shards`; every shard gets at least one, no two share any (but for `shared`).

    labels: (N,) class of each sample. spec: one of
        iid               all of it, shuffled, in equal parts
        shared            all of it for every shard, which draws from it with replacement: many shards, few samples
        labels:K          shard i holds K labels, the (iK)th to (iK+K-1)th of the C that occur, counted round; a label
                          of several shards is dealt out among them, one of no shard is left out (see `left_out`)
        dirichlet:ALPHA   each label is divided in proportions drawn from a symmetric Dirichlet(ALPHA) over the shards
                          (Yurochkin et al., arXiv 1905.12022, experiments); less ALPHA is more skew
        quantity:ALPHA    sizes drawn from Dirichlet(ALPHA), labels shuffled (Li et al., arXiv 2102.02079, where it
                          is called quantity skew)
    A Dirichlet draw that leaves a shard empty is drawn again, up to REDRAWS times, from the same seeded stream.

    Returns one sorted index array a shard. Raises DataError when the spec is unknown, or some shard would be empty.
    """
    kind, value = parse(spec)
    n = len(labels)
    if kind == "shared":
        return [np.arange(n, dtype=np.int64)] * shards
    if shards > n:
        raise DataError(f"partition {spec}: {n} samples cannot give each of {shards} shards at least one")
    rng = RandomState([seed & 0xFFFFFFFF, seed >> 32])
    if kind == "folder":
        raise DataError("partition folder divides nothing: every node reads the files that it has")
    if kind == "iid":
        parts = np.array_split(rng.permutation(n), shards)
    elif kind == "labels":
        parts = _labels_each(labels, shards, int(value), rng)
    else:
        draw = _dirichlet if kind == "dirichlet" else _quantity
        parts = _redrawn(lambda: draw(labels, shards, value, rng), spec, shards)
    return [np.sort(part).astype(np.int64) for part in parts]


def parse(spec: str) -> tuple[str, float]:
    """(kind, K or ALPHA; 0 where there is none). Raises DataError, naming the known ones."""
    if spec in ("iid", "shared", "folder"):
        return spec, 0.0
    whole = re.fullmatch(r"labels:(\d{1,6})", spec)
    real = re.fullmatch(r"(dirichlet|quantity):(\d*\.?\d+(?:e-?\d{1,3})?)", spec)
    if whole and int(whole[1]) >= 1:
        return "labels", float(whole[1])
    if real and 0 < float(real[2]) <= 1e6:
        return real[1], float(real[2])
    raise DataError(
        f"unknown partition {spec!r}; known: iid, shared, labels:K (K >= 1), dirichlet:ALPHA, quantity:ALPHA"
        " (0 < ALPHA <= 1e6), folder"
    )


def histogram(labels: Labels, classes: int) -> list[int]:
    """Samples of each class 0..classes-1."""
    return [int(count) for count in np.bincount(labels, minlength=classes)]


def left_out(labels: Labels, parts: Sequence[Indices]) -> list[int]:
    """Labels that occur, but in no part: nobody will learn them. Sorted."""
    held = np.unique(labels[np.concatenate(parts)])
    return [int(label) for label in np.setdiff1d(labels, held)]


def _labels_each(labels: Labels, shards: int, k: int, rng: RandomState) -> list[Indices]:
    occurring = np.unique(labels)
    c = len(occurring)
    if k > c:
        raise DataError(f"partition labels:{k}: the data has {c} labels, expected at least {k}")
    holders: dict[int, list[int]] = {}  # place of a label -> shards that hold it
    for shard in range(shards):
        for place in range(shard * k, shard * k + k):
            holders.setdefault(place % c, []).append(shard)
    shares: list[list[Indices]] = [[] for _ in range(shards)]
    for place in sorted(holders):
        samples = rng.permutation(np.flatnonzero(labels == occurring[place]))
        for shard, share in zip(holders[place], np.array_split(samples, len(holders[place])), strict=True):
            shares[shard].append(share)
    parts = [np.concatenate(share) for share in shares]
    if not all(len(part) for part in parts):
        empty = sum(not len(part) for part in parts)
        raise DataError(
            f"partition labels:{k}: too few samples a label, {empty} of {shards} shards would be empty;"
            f" take fewer shards or more labels a shard"
        )
    return parts


def _dirichlet(labels: Labels, shards: int, alpha: float, rng: RandomState) -> list[Indices]:
    shares: list[list[Indices]] = [[] for _ in range(shards)]
    for label in np.unique(labels):
        samples = rng.permutation(np.flatnonzero(labels == label))
        for share, piece in zip(shares, _cut(samples, _proportions(shards, alpha, rng)), strict=True):
            share.append(piece)
    return [np.concatenate(share) for share in shares]


def _quantity(labels: Labels, shards: int, alpha: float, rng: RandomState) -> list[Indices]:
    return _cut(rng.permutation(len(labels)), _proportions(shards, alpha, rng))


def _redrawn(draw: Callable[[], list[Indices]], spec: str, shards: int) -> list[Indices]:
    for _ in range(REDRAWS):
        parts = draw()
        if all(len(part) for part in parts):
            return parts
    raise DataError(
        f"partition {spec}: {REDRAWS} draws all left some of {shards} shards empty; take fewer shards or a larger ALPHA"
    )


def _proportions(n: int, alpha: float, rng: RandomState) -> NDArray[np.float64]:
    """(n,), a draw from a symmetric Dirichlet(alpha), in logarithms: below alpha = .01 plain gamma draws underflow to
    zero, all of them at times. Gamma(a) is Gamma(a+1) U^(1/a) (Marsaglia and Tsang 2000)."""
    logs = np.log(rng.gamma(alpha + 1.0, size=n)) + np.log(1.0 - rng.random_sample(n)) / alpha
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _cut(samples: Indices, proportions: NDArray[np.float64]) -> list[Indices]:
    ends = np.floor(np.cumsum(proportions)[:-1] * len(samples) + 0.5).astype(np.int64)
    return np.split(samples, ends)
