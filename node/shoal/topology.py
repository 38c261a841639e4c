"""Who talks to whom: the graphs that have a name, random ones, and those of a file. Pure.

Each member computes the graph for itself, from the run's settings and the number of members, so it must come out the
same on every machine and in every Python. `mixing.py` gives its edges weights.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.errors import TopologyError

Edge = tuple[int, int]
Matrix = NDArray[np.float64]

MAX_NODES = 100_000
MAX_EDGES = 1 << 20
"""A complete graph of 1,448 nodes; about 100 MB while it is drawn."""
MAX_MIXED = 4096
"""Nodes of a mixing matrix, which is dense: 134 MB, and a minute for its eigenvalues."""
MAX_FILE_BYTES = 32 << 20

TOLERANCE = 1e-9
"""Rounding that is forgiven in sums of weights and in eigenvalues."""


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected, simple, connected graph on the nodes 0 to n-1."""

    spec: str
    n: int
    neighbours: tuple[tuple[int, ...], ...]  # of each node; sorted, without itself
    weights: Matrix | None = None  # (n, n), self weights included; only from a file that gives them

    def edges(self) -> list[Edge]:
        """Every edge once, as (i, j) with i < j, sorted."""
        return [(i, j) for i, others in enumerate(self.neighbours) for j in others if i < j]


def graph(spec: str, n: int, seed: int = 0) -> Graph:
    """The graph that `spec` names on n nodes; the same on every machine and in every Python.

    A name of `BY_NAME`, random:DEGREE (drawn with `seed`), or file:PATH: lines `I J [WEIGHT]`, nodes counted from 0,
    `#` begins a comment. One node has no neighbours. Raises TopologyError.
    """
    if not 1 <= n <= MAX_NODES:
        raise TopologyError(f"a graph of {n} nodes: expected 1 to {MAX_NODES}")
    if spec.startswith("file:"):
        return _read(spec, n)
    return _drawn(spec, n, seed)


def what_is_left(spec: str, n: int, seed: int, cut: Collection[Edge]) -> Graph:
    """The graph of a view that follows another: on other nodes than the first, and without the edges in `cut`.

    Where `spec` names none on n nodes it is a ring; where the cuts tear it apart it is all that is left of the complete
    graph. Raises TopologyError if that is not connected either.
    """
    try:
        whole = graph(spec, n, seed)
    except TopologyError:
        whole = graph("ring", n)
    if not cut:
        return whole
    try:
        return _graph(whole.spec, n, [edge for edge in whole.edges() if edge not in cut])
    except TopologyError:
        left = [edge for edge in itertools.combinations(range(n), 2) if edge not in cut]
        return _graph("complete", n, left)


@functools.lru_cache(maxsize=8)  # a simulation asks once for each of its nodes
def _drawn(spec: str, n: int, seed: int) -> Graph:
    kind, _, argument = spec.partition(":")
    if kind == "random":
        return _graph(spec, n, _random_regular(n, _degree(spec, argument, n), seed))
    if spec not in BY_NAME:
        raise TopologyError(f"unknown topology {spec!r}; known: {', '.join(BY_NAME)}, random:DEGREE, file:PATH")
    return _graph(spec, n, BY_NAME[spec](n))


def _graph(spec: str, n: int, edges: Iterable[Edge], weights: Matrix | None = None) -> Graph:
    neighbours = tuple(tuple(sorted(others)) for others in _adjacency(n, edges))
    apart = sorted(set(range(n)) - _reached(neighbours))
    if apart:
        some = ", ".join(map(str, apart[:5])) + (", ..." if len(apart) > 5 else "")
        raise TopologyError(f"{spec} is not connected: no path leads from node 0 to {some}; add an edge between them")
    return Graph(spec, n, neighbours, weights)


def _adjacency(n: int, edges: Iterable[Edge]) -> list[set[int]]:
    """Neighbours of each node. Loops and repetitions, which small rings and tori have, fall away."""
    found: list[set[int]] = [set() for _ in range(n)]
    for count, (i, j) in enumerate(edges):
        if count == MAX_EDGES:
            raise TopologyError(f"a graph of {n} nodes with more than {MAX_EDGES} edges; take a sparser topology")
        if i != j:
            found[i].add(j)
            found[j].add(i)
    return found


def _reached(neighbours: tuple[tuple[int, ...], ...] | list[set[int]]) -> set[int]:
    reached, todo = {0}, [0]
    while todo:
        fresh = [j for j in neighbours[todo.pop()] if j not in reached]
        reached.update(fresh)
        todo += fresh
    return reached


# --- the graphs that have a name ----------------------------------------------------------------------------------


def _circulant(n: int, distances: Iterable[int]) -> Iterable[Edge]:
    return ((i, (i + distance) % n) for distance in distances for i in range(n))


def _torus(n: int) -> Iterable[Edge]:
    rows = max(a for a in range(1, math.isqrt(n) + 1) if n % a == 0)
    if rows == 1 and n > 3:
        raise TopologyError(f"a torus of {n} nodes, a prime: that is a ring; take ring, or {n - 1} or {n + 1} nodes")
    columns = n // rows
    for i in range(n):
        row, column = divmod(i, columns)
        yield i, row * columns + (column + 1) % columns
        yield i, (row + 1) % rows * columns + column


def _hypercube(n: int) -> Iterable[Edge]:
    if n.bit_count() != 1:
        below = 1 << n.bit_length() - 1
        raise TopologyError(f"a hypercube of {n} nodes: expected a power of two, such as {below} or {2 * below}")
    return ((i, i ^ 1 << bit) for bit in range(n.bit_length() - 1) for i in range(n))


BY_NAME: dict[str, Callable[[int], Iterable[Edge]]] = {
    "complete": lambda n: itertools.combinations(range(n), 2),
    "ring": lambda n: _circulant(n, [1]),
    "exponential": lambda n: _circulant(n, (1 << k for k in range((n - 1).bit_length()))),  # 2^k < n, both ways
    "torus": _torus,  # the most square one
    "star": lambda n: ((0, i) for i in range(1, n)),  # 0 is the hub
    "hypercube": _hypercube,
}


def _degree(spec: str, argument: str, n: int) -> int:
    if not _is_index(argument) or int(argument) == 0:
        raise TopologyError(f"topology {spec!r}: expected random:DEGREE, such as random:3")
    degree = int(argument)
    if n > 1 and degree >= n:
        raise TopologyError(f"{spec} on {n} nodes: a node has only {n - 1} others; take at most random:{n - 1}")
    if n > 1 and n * degree % 2:
        raise TopologyError(f"{spec} on {n} nodes: {n} x {degree} is odd, and every edge has two ends; change one")
    if n * degree > 2 * MAX_EDGES:
        raise TopologyError(f"{spec} on {n} nodes has {n * degree // 2} edges: expected at most {MAX_EDGES}")
    if n > 2 and degree == 1:
        raise TopologyError(f"{spec} on {n} nodes would be pairs without a connection; take at least random:2")
    return degree


def _random_regular(n: int, degree: int, seed: int) -> list[Edge]:
    """A connected graph in which every node has `degree` neighbours.

    The edges of a regular lattice swap ends at random, which keeps every degree; then they swap between parts until
    there is one. Only `random()` is drawn: Python keeps its sequence from version to version, that of `shuffle` not.
    """
    if n == 1:
        return []
    rng = random.Random(f"{seed}/topology")
    edges = list(_circulant(n, range(1, degree // 2 + 1)))
    edges += [(i, i + n // 2) for i in range(n // 2)] if degree % 2 else []
    edges = [(min(e), max(e)) for e in edges]
    present = set(edges)

    def pick(among: list[int] | range) -> int:
        return among[int(rng.random() * len(among))]

    def swap_ends(p: int, q: int) -> None:
        (a, b), (c, d) = edges[p], edges[q] if rng.random() < 0.5 else edges[q][::-1]
        fresh = [(min(a, c), max(a, c)), (min(b, d), max(b, d))]
        if len({a, b, c, d}) == 4 and present.isdisjoint(fresh):
            present.difference_update((edges[p], edges[q]))
            present.update(fresh)
            edges[p], edges[q] = fresh

    for _ in range(10 * len(edges)):
        swap_ends(pick(range(len(edges))), pick(range(len(edges))))
    while len(reached := _reached(_adjacency(n, edges))) < n:
        inside = [p for p, (i, _) in enumerate(edges) if i in reached]
        outside = [p for p, (i, _) in enumerate(edges) if i not in reached]
        swap_ends(pick(inside), pick(outside))
    return edges


# --- the graph of a file ------------------------------------------------------------------------------------------


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _read(spec: str, n: int) -> Graph:
    found: dict[Edge, float | None] = {}
    path = Path(spec.removeprefix("file:"))
    for number, line in enumerate(_lines(path), 1):
        if words := line.partition("#")[0].split():
            try:
                _add_edge(found, words, n)
            except ValueError as error:
                raise TopologyError(f"topology file:{path}, line {number}: {error}") from None
    weights = {edge: weight for edge, weight in found.items() if weight is not None}
    return _graph(spec, n, found, _with_self_weights(path, n, weights) if weights else None)


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file():  # a device or a pipe might never end
            raise TopologyError(f"topology file:{path}: there is no such file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TopologyError(f"topology file:{path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise TopologyError(f"topology file:{path}: longer than {MAX_FILE_BYTES} bytes")
    return content.decode("utf-8-sig", errors="replace").split("\n")


def _add_edge(found: dict[Edge, float | None], words: list[str], n: int) -> None:
    """Add the edge of one line to those found so far. Raises ValueError, saying what was expected."""
    if len(words) not in (2, 3) or not all(map(_is_index, words[:2])):
        raise ValueError(f"expected I J [WEIGHT], nodes as numbers from 0; got {' '.join(words)[:60]!r}")
    i, j = sorted(map(int, words[:2]))
    if j >= n:
        raise ValueError(f"node {j}; this graph has {n}, numbered 0 to {n - 1}")
    if i == j:
        raise ValueError(f"an edge from node {i} to itself; self weights are what the edges leave over")
    if (i, j) in found:
        raise ValueError(f"edge {i} {j} again; one line stands for both directions")
    weight = _weight(words[2]) if len(words) == 3 else None
    if found and (weight is None) != (next(iter(found.values())) is None):
        raise ValueError("expected a weight on every edge or on none; the first edge differs from this one")
    found[i, j] = weight


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= 1:
        raise ValueError(f"weight {text[:60]!r}: expected a number above 0 and at most 1")
    return weight


def _with_self_weights(path: Path, n: int, weights: dict[Edge, float]) -> Matrix:
    """(n, n), symmetric, rows sum to 1: a node keeps for itself what its edges leave over."""
    if n > MAX_MIXED:
        raise TopologyError(f"topology file:{path}: weights for {n} nodes; expected at most {MAX_MIXED}")
    W = np.zeros((n, n))
    for (i, j), weight in weights.items():
        W[i, j] = W[j, i] = weight
    left = 1 - W.sum(axis=1)
    worst = int(left.argmin())
    if left[worst] < -TOLERANCE:
        raise TopologyError(
            f"topology file:{path}: the edges of node {worst} weigh {1 - left[worst]:.4g} in all; expected at most 1"
        )
    np.fill_diagonal(W, left.clip(min=0))
    W.setflags(write=False)
    return W
