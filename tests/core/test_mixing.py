"""Mixing matrices have the eigenvalues that theory gives them, and those that an algorithm may not use are refused."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from shoal.errors import TopologyError
from shoal.mixing import MARGIN, check, metropolis, mixing, uniform
from shoal.topology import BY_NAME, Graph, graph

SPECS = [*BY_NAME, "random:2", "random:3", "random:4"]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph of up to 24 nodes that the drawn size allows."""
    n = draw(st.integers(1, 24))
    possible = []
    for spec in SPECS:
        try:
            possible.append(graph(spec, n, seed=n))
        except TopologyError:  # test_topology.py says which these are
            continue
    return draw(st.sampled_from(possible))


def complete_bipartite(n: int, folder: Path) -> str:
    return edges_file(folder, [(i, j) for i in range(0, n, 2) for j in range(1, n, 2)])


def chain(n: int, folder: Path) -> str:
    return edges_file(folder, [(i, i + 1) for i in range(n - 1)])


def edges_file(folder: Path, edges: list[tuple[int, int]], weight: str = "") -> str:
    path = folder / "edges.txt"
    path.write_text("".join(f"{i} {j} {weight}\n" for i, j in edges))
    return f"file:{path}"


# --- eigenvalues --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "n", "smallest"),
    [
        ("ring", 4, -1 / 3),
        ("ring", 8, -1 / 3),
        ("ring", 10, -1 / 3),
        ("ring", 16, -1 / 3),
        ("ring", 5, 1 / 3 + 2 / 3 * math.cos(4 / 5 * math.pi)),  # -.206
        ("hypercube", 4, -1 / 3),
        ("hypercube", 8, -0.5),
        ("hypercube", 16, -0.6),
        ("torus", 16, -0.6),
        ("exponential", 8, -math.sqrt(2) / 6),  # -.236
        ("star", 5, 0.0),
        ("star", 16, 0.0),
        ("complete", 2, 0.0),
        ("complete", 7, 0.0),
    ],
)
def test_the_smallest_eigenvalue_is_the_exact_one(spec: str, n: int, smallest: float) -> None:
    assert mixing(graph(spec, n)).smallest == pytest.approx(smallest, abs=1e-12)


def test_the_smallest_eigenvalue_of_other_graphs_agrees_with_the_table(tmp_path: Path) -> None:
    assert mixing(graph("exponential", 16)).smallest == pytest.approx(-0.272, abs=5e-4)
    for n in (8, 16):  # -.283, -.321
        last = 1 / 3 + 2 / 3 * math.cos(math.pi * (n - 1) / n)
        assert mixing(graph(chain(n, tmp_path), n)).smallest == pytest.approx(last)
    for n, smallest in ((8, -0.6), (16, -7 / 9)):
        assert mixing(graph(complete_bipartite(n, tmp_path), n)).smallest == pytest.approx(smallest)


def test_the_gap_counts_the_eigenvalue_that_is_farther_from_zero() -> None:
    ring, bipartite = mixing(graph("ring", 8)), mixing(graph("ring", 4), weights="uniform:0.45")
    assert ring.gap == pytest.approx(1 - ring.second)
    assert bipartite.smallest == pytest.approx(-0.8)
    assert bipartite.gap == pytest.approx(0.2)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_complete_graph_agrees_in_one_round(n: int) -> None:
    complete = mixing(graph("complete", n))
    assert complete.gap == pytest.approx(1)
    np.testing.assert_allclose(complete.W, np.full((n, n), 1 / n))


@given(graphs())
def test_one_round_leaves_the_mean_and_shrinks_the_disagreement_by_the_gap(g: Graph) -> None:
    mixed = mixing(g)
    x = np.random.default_rng(g.n).standard_normal(g.n)
    y = mixed.W @ x
    assert y.mean() == pytest.approx(x.mean(), abs=1e-12)
    assert np.linalg.norm(y - y.mean()) <= (1 - mixed.gap) * np.linalg.norm(x - x.mean()) + 1e-12


# --- weights ------------------------------------------------------------------------------------------------------


@given(graphs())
def test_metropolis_weights_are_symmetric_doubly_stochastic_and_connected_on_any_graph(g: Graph) -> None:
    W = metropolis(g)
    assert (W == W.T).all()
    assert (W >= 0).all()
    np.testing.assert_allclose([W.sum(0), W.sum(1)], 1, atol=1e-12)
    assert {(i, j) for i, j in zip(*np.nonzero(W), strict=True) if i < j} == set(g.edges())
    assert check(W, bound=-1)[0]


def test_a_metropolis_weight_looks_at_the_end_with_more_neighbours() -> None:
    W = metropolis(graph("star", 4))
    assert W[0].tolist() == [0.25, 0.25, 0.25, 0.25]
    assert W[1].tolist() == [0.25, 0.75, 0, 0]


def test_uniform_weights_leave_the_rest_to_the_node_itself() -> None:
    assert uniform(graph("ring", 4), 0.25)[0].tolist() == [0.5, 0.25, 0, 0.25]
    assert uniform(graph("complete", 11), 0.1)[3, 3] == 0  # 1 - 10 x .1 is 0, whatever floats make of it


@pytest.mark.parametrize("w", [0.51, 0.0, -0.1, math.nan, math.inf])
def test_a_uniform_weight_that_leaves_less_than_nothing_is_refused(w: float) -> None:
    with pytest.raises(TopologyError, match=r"uniform:.* on ring: expected a weight above 0 and at most 1/2"):
        uniform(graph("ring", 5), w)


def test_the_weights_of_a_file_are_used_when_asked_for(tmp_path: Path) -> None:
    g = graph(edges_file(tmp_path, [(0, 1), (1, 2)], weight="0.3"), 3)
    assert mixing(g, weights="file").W[1].tolist() == pytest.approx([0.3, 0.4, 0.3])
    assert mixing(g).W[1].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ("optimal", "unknown mixing 'optimal'; known: metropolis, uniform:W, file"),
        ("uniform", "expected uniform:W, such as uniform:0.25"),
        ("uniform:x", "expected uniform:W, such as uniform:0.25"),
        ("file", "ring gives no weights; write lines I J WEIGHT"),
    ],
)
def test_weights_that_do_not_exist_are_refused(weights: str, complaint: str) -> None:
    with pytest.raises(TopologyError, match=complaint):
        mixing(graph("ring", 5), weights=weights)


# --- what a matrix must satisfy -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("W", "complaint"),
    [
        ([[0.5, 0.5]], r"shape \(1, 2\), expected \(n, n\)"),
        ([0.5, 0.5], r"shape \(2,\), expected \(n, n\)"),
        (np.zeros((0, 0)), r"shape \(0, 0\), expected \(n, n\)"),
        ([[math.nan, 0.5], [0.5, 0.5]], "NaN or Inf"),
        ([[0.5, 0.5], [0.25, 0.75]], r"not symmetric: W\[0, 1\] = 0.5, W\[1, 0\] = 0.25"),
        ([[0.5, 0.4], [0.4, 0.6]], "not doubly stochastic: row and column 0 sum to 0.9, expected 1"),
        ([[1.5, -0.5], [-0.5, 1.5]], r"not doubly stochastic: W\[0, 1\] = -0.5, expected no weight below 0"),
        ([[-0.1, 1.1], [1.1, -0.1]], r"not doubly stochastic: W\[0, 0\] = -0.1"),
        (np.eye(2), "not connected: lambda_2 = 1"),
        (np.kron(np.eye(2), np.full((3, 3), 1 / 3)), "not connected"),
        ([[0.2, 0.8], [0.8, 0.2]], r"lambda_n = -0.6000, expected above -0.3333"),
    ],
)
def test_a_matrix_that_breaks_a_condition_is_turned_down_with_the_reason(W: ArrayLike, complaint: str) -> None:
    ok, reason = check(W, bound=-1 / 3)
    assert not ok
    assert re.search(complaint, reason), reason


def test_the_bound_itself_is_not_allowed_and_without_one_any_eigenvalue_is() -> None:
    W = metropolis(graph("ring", 8))
    assert not check(W, bound=-1 / 3)[0]
    assert check(W, bound=-1 / 3 - 1e-6)[0]
    assert check([[0, 1], [1, 0]], bound=None) == (True, "lambda_2 = -1.0000, lambda_n = -1.0000")


# --- what an algorithm must not be given --------------------------------------------------------------------------


@given(graphs())
def test_d2_gets_a_lazy_matrix_by_default_and_it_has_no_negative_eigenvalue(g: Graph) -> None:
    plain, lazy = mixing(g), mixing(g, algorithm="d2", growth=50)
    assert not plain.lazy
    assert lazy.lazy
    assert lazy.smallest >= -1e-12
    np.testing.assert_allclose(lazy.W, (np.eye(g.n) + plain.W) / 2)
    if g.n > 1:
        assert lazy.second == pytest.approx((1 + plain.second) / 2)


@pytest.mark.parametrize(("spec", "n"), [("ring", 8), ("hypercube", 8), ("torus", 16)])
def test_d2_without_laziness_is_refused_on_a_graph_that_violates_its_bound(spec: str, n: int) -> None:
    with pytest.raises(TopologyError, match=r"lambda_n = -0\.\d{4}, .*above -0\.3333 = .*take lazy = auto"):
        mixing(graph(spec, n), algorithm="d2", lazy="never")


@pytest.mark.parametrize(("spec", "n"), [("ring", 5), ("exponential", 16), ("star", 8), ("complete", 8)])
def test_d2_without_laziness_is_allowed_on_a_graph_within_its_bound(spec: str, n: int) -> None:
    assert not mixing(graph(spec, n), algorithm="d2", lazy="never").lazy


def test_d2_without_laziness_keeps_a_margin_from_its_bound() -> None:
    """Two nodes with weight w have the one other eigenvalue 1 - 2 w."""
    inside, outside = ((1 - (-1 / 3 + distance)) / 2 for distance in (MARGIN + 1e-4, MARGIN - 1e-4))
    pair = graph("ring", 2)
    assert mixing(pair, weights=f"uniform:{inside!r}", algorithm="d2", lazy="never")
    with pytest.raises(TopologyError, match=r"wants 0\.05 more"):
        mixing(pair, weights=f"uniform:{outside!r}", algorithm="d2", lazy="never")


def test_a_step_size_that_grows_faster_asks_for_more_of_the_matrix() -> None:
    ring = graph("ring", 5)  # lambda_n = -.206; the bounds are -.333 and -.2
    assert mixing(ring, algorithm="d2", lazy="never", growth=1)
    with pytest.raises(TopologyError, match=r"above -0\.2000 = -1/\(1 \+ 2 x 2\)"):
        mixing(ring, algorithm="d2", lazy="never", growth=2)


def test_d_psgd_takes_what_d2_cannot_and_is_lazy_only_when_asked() -> None:
    cube = graph("hypercube", 8)
    assert not mixing(cube).lazy
    assert mixing(cube, lazy="always").smallest == pytest.approx(0.25)


def test_d_psgd_is_refused_a_matrix_that_swaps_for_ever() -> None:
    """An even ring without self weights: the two halves trade places and never agree."""
    with pytest.raises(TopologyError, match=r"lambda_n = -1\.0000.*take lazy = always"):
        mixing(graph("ring", 8), weights="uniform:0.5")
    assert mixing(graph("ring", 8), weights="uniform:0.5", lazy="always").smallest == pytest.approx(0)


def test_a_matrix_too_large_to_hold_is_refused_before_it_is_made() -> None:
    with pytest.raises(TopologyError, match="a mixing matrix of 50000 nodes: expected at most 4096"):
        mixing(graph("ring", 50_000))


# --- what others read ---------------------------------------------------------------------------------------------


@given(graphs())
def test_a_row_holds_the_node_and_its_neighbours_and_sums_to_one(g: Graph) -> None:
    mixed = mixing(g, algorithm="d2")
    for i in range(g.n):
        row = mixed.row(i)
        assert sorted(row) == sorted((i, *g.neighbours[i]))
        assert sum(row.values()) == pytest.approx(1)
        assert all(mixed.row(j)[i] == w for j, w in row.items())


def test_a_matrix_describes_itself_in_one_line() -> None:
    assert mixing(graph("ring", 4), algorithm="d2").describe() == (
        "ring, 4 nodes, metropolis weights, lazy: lambda_2 = 0.6667, lambda_n = 0.3333, gap 0.333"
    )
    assert mixing(graph("complete", 4)).describe().startswith("complete, 4 nodes, metropolis weights: lambda_2 = 0.0")


def test_all_nodes_of_a_process_share_one_matrix_that_none_can_change() -> None:
    first, second = (mixing(graph("ring", 6), algorithm="d2") for _ in range(2))
    assert first is second
    with pytest.raises(ValueError, match="read-only"):
        first.W[0, 0] = 1
