"""With which weights neighbours mix: the matrix W, and what its eigenvalues must satisfy. Pure.

W is symmetric and doubly stochastic, with eigenvalues 1 = lambda_1 > lambda_2 >= ... >= lambda_n > -1. A round of
mixing multiplies the disagreement of the nodes by at most max(|lambda_2|, |lambda_n|).
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shoal.errors import TopologyError
from shoal.topology import MAX_MIXED, TOLERANCE, Graph, Matrix

MARGIN = 0.05
"""How far above D2's bound lambda_n must lie. On the bound consensus is lost slowly (an even ring with weights 1/3),
and the negative curvature of networks moves the bound up."""


@dataclass(frozen=True, eq=False)
class Mixing:
    """A mixing matrix that has passed `check`."""

    graph: str  # the graph's spec
    weights: str  # metropolis, uniform:W or file
    W: Matrix  # (n, n), symmetric, doubly stochastic; read-only
    lazy: bool  # whether W is (I + W)/2 of what the weights gave
    second: float  # lambda_2; 0 for a single node
    smallest: float  # lambda_n; 0 for a single node

    @property
    def gap(self) -> float:
        """1 - max(|lambda_2|, |lambda_n|): the part of the disagreement that a round takes away, at least."""
        return 1 - max(abs(self.second), abs(self.smallest))

    def row(self, i: int) -> dict[int, float]:
        """What node i weighs each node with, itself included; zeros left out."""
        return {int(j): float(self.W[i, j]) for j in np.flatnonzero(self.W[i])}

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.graph}, {len(self.W)} nodes, {self.weights} weights{', lazy' if self.lazy else ''}: "
            f"lambda_2 = {self.second:z.4f}, lambda_n = {self.smallest:z.4f}, gap {self.gap:.3g}"
        )


def mixing(
    g: Graph, *, weights: str = "metropolis", lazy: str = "auto", algorithm: str = "d-psgd", growth: float = 1.0
) -> Mixing:
    """The mixing matrix of a run, checked. Raises TopologyError, saying what is wrong with W and what would help.

    weights: metropolis, uniform:W, or file. lazy: W becomes (I + W)/2 "always", "never", or by "auto" for d2 alone.

    d2 needs lambda_n > -1/(1 + 2 growth), where growth >= 1 is the largest factor by which the step size grows in one
    step: at 1 this is the -1/3 of 1803.07068 (its assumption on W, from memory; as a limit of stability derived anew).
    Nearer to it than MARGIN is refused. A lazy W has no eigenvalue below 0 and always passes.
    """
    return _mixing(g, weights, lazy, algorithm, growth)


@functools.lru_cache(maxsize=2)  # a simulation asks once for each of its nodes, and eigenvalues take a while
def _mixing(g: Graph, weights: str, lazy: str, algorithm: str, growth: float) -> Mixing:
    if g.n > MAX_MIXED:
        raise TopologyError(f"a mixing matrix of {g.n} nodes: expected at most {MAX_MIXED}; ad-psgd needs none")
    W = _weighted(g, weights)
    made_lazy = {"auto": algorithm == "d2", "always": True, "never": False}[lazy]
    if made_lazy:
        W = (np.eye(g.n) + W) / 2
    W.setflags(write=False)
    result = Mixing(g.spec, weights, W, made_lazy, *extremes(W))
    if reason := _fault_of_entries(W) or _fault_of_spectrum(result.second, result.smallest, bound=-1.0):
        raise TopologyError(f"{g.spec}, {g.n} nodes, {weights} weights: {reason}; take lazy = always, or another graph")
    bound = -1 / (1 + 2 * growth)
    if algorithm == "d2" and not made_lazy and result.smallest <= bound + MARGIN:
        raise TopologyError(
            f"{g.spec}, {g.n} nodes, {weights} weights: lambda_n = {result.smallest:.4f}, but d2 diverges unless it is "
            f"above {bound:.4f} = -1/(1 + 2 x {growth:g}), and wants {MARGIN} more; take lazy = auto"
        )
    return result


def _weighted(g: Graph, weights: str) -> Matrix:
    kind, _, argument = weights.partition(":")
    if weights == "metropolis":
        return metropolis(g)
    if weights == "file":
        if g.weights is None:
            raise TopologyError(f"mixing = file, but {g.spec} gives no weights; write lines I J WEIGHT to a file:PATH")
        return g.weights
    if kind == "uniform":
        try:
            return uniform(g, float(argument))
        except ValueError:
            raise TopologyError(f"mixing {weights!r}: expected uniform:W, such as uniform:0.25") from None
    raise TopologyError(f"unknown mixing {weights!r}; known: metropolis, uniform:W, file")


def metropolis(g: Graph) -> Matrix:
    """(n, n): w_ij = 1/(1 + max(deg_i, deg_j)) on every edge, the rest on the diagonal. Right for any graph."""
    W = np.zeros((g.n, g.n))
    for i, j in g.edges():
        W[i, j] = W[j, i] = 1 / (1 + max(len(g.neighbours[i]), len(g.neighbours[j])))
    return _with_rest_on_diagonal(W)


def uniform(g: Graph, w: float) -> Matrix:
    """(n, n): w on every edge, the rest on the diagonal. Raises TopologyError if a node would have less than 0 left."""
    most = max(map(len, g.neighbours))
    if not w > 0 or w * most > 1 + TOLERANCE:
        raise TopologyError(
            f"mixing uniform:{w:g} on {g.spec}: expected a weight above 0 and at most 1/{max(most, 1)}, "
            f"for a node here has {most} neighbours and weights sum to 1"
        )
    W = np.zeros((g.n, g.n))
    for i, j in g.edges():
        W[i, j] = W[j, i] = w
    return _with_rest_on_diagonal(W)


def _with_rest_on_diagonal(W: Matrix) -> Matrix:
    np.fill_diagonal(W, (1 - W.sum(axis=1)).clip(min=0))
    return W


def check(W: ArrayLike, *, bound: float | None) -> tuple[bool, str]:
    """Whether W can mix: square, finite, symmetric, doubly stochastic, connected, and lambda_n above `bound`.

    Returns (it can, why not, or what was found). None asks nothing of lambda_n.
    """
    matrix = np.asarray(W, dtype=np.float64)
    if reason := _fault_of_entries(matrix):
        return False, reason
    second, smallest = extremes(matrix)
    reason = _fault_of_spectrum(second, smallest, bound)
    return not reason, reason or f"lambda_2 = {second:z.4f}, lambda_n = {smallest:z.4f}"


def extremes(W: Matrix) -> tuple[float, float]:
    """(lambda_2, lambda_n) of a symmetric W; zeros for a single node, which has nobody to disagree with."""
    if len(W) == 1:
        return 0.0, 0.0
    values = np.linalg.eigvalsh(W)
    return float(values[-2]), float(values[0])


def _fault_of_entries(W: Matrix) -> str:
    """What keeps W from being symmetric and doubly stochastic; empty if nothing does."""
    if W.ndim != 2 or W.shape[0] != W.shape[1] or not len(W):
        return f"W has shape {W.shape}, expected (n, n)"
    if not np.isfinite(W).all():
        return "W holds NaN or Inf"
    i, j = divmod(int(np.abs(W - W.T).argmax()), len(W))
    if abs(W[i, j] - W[j, i]) > TOLERANCE:
        return f"W is not symmetric: W[{i}, {j}] = {W[i, j]:g}, W[{j}, {i}] = {W[j, i]:g}"
    sums = W.sum(axis=1)  # of the columns too, W being symmetric
    i = int(np.abs(sums - 1).argmax())
    if abs(sums[i] - 1) > TOLERANCE:
        return f"W is not doubly stochastic: row and column {i} sum to {sums[i]:g}, expected 1"
    i, j = divmod(int(W.argmin()), len(W))
    if W[i, j] < 0:
        return f"W is not doubly stochastic: W[{i}, {j}] = {W[i, j]:g}, expected no weight below 0"
    return ""


def _fault_of_spectrum(second: float, smallest: float, bound: float | None) -> str:
    if second > 1 - TOLERANCE:
        return "W is not connected: lambda_2 = 1, so some nodes never hear of the others"
    if bound is not None and smallest <= bound + TOLERANCE:
        return f"lambda_n = {smallest:.4f}, expected above {bound:.4f}"
    return ""
