"""Every graph is simple, connected and the same everywhere; nonsense is refused in words that say what to do."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import TopologyError
from shoal.topology import BY_NAME, MAX_FILE_BYTES, Graph, graph, what_is_left


def fits(spec: str, n: int) -> bool:
    """Whether a graph of n nodes exists under a name without an argument."""
    if spec == "torus":
        return n <= 3 or any(n % a == 0 for a in range(2, n))
    return spec != "hypercube" or n.bit_count() == 1


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph of up to 24 nodes that has a name or is random."""
    n = draw(st.integers(1, 24))
    degrees = [d for d in range(1, n) if n * d % 2 == 0 and (d > 1 or n == 2)]
    specs = [spec for spec in BY_NAME if fits(spec, n)] + [f"random:{d}" for d in degrees]
    return graph(draw(st.sampled_from(specs)), n, draw(st.integers(0, 9)))


def reached_from_0(g: Graph) -> set[int]:
    reached = {0}
    for _ in range(g.n):
        reached |= {j for i in reached for j in g.neighbours[i]}
    return reached


# --- what holds for all -------------------------------------------------------------------------------------------


@given(graphs())
def test_a_graph_is_undirected_simple_sorted_and_connected(g: Graph) -> None:
    assert len(g.neighbours) == g.n
    for i, others in enumerate(g.neighbours):
        assert list(others) == sorted(set(others))
        assert i not in others
        assert all(i in g.neighbours[j] for j in others)
    assert reached_from_0(g) == set(range(g.n))


@given(graphs())
def test_edges_names_every_edge_once(g: Graph) -> None:
    edges = g.edges()
    assert edges == sorted(set(edges))
    assert all(i < j and j in g.neighbours[i] for i, j in edges)
    assert 2 * len(edges) == sum(map(len, g.neighbours))


@pytest.mark.parametrize("spec", [*BY_NAME, "random:1", "random:7"])
def test_a_single_node_has_no_neighbours(spec: str) -> None:
    assert graph(spec, 1).neighbours == ((),)


@pytest.mark.parametrize("spec", [*BY_NAME, "random:1"])
def test_two_nodes_share_one_edge(spec: str) -> None:
    assert graph(spec, 2).edges() == [(0, 1)]


# --- one by one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "n", "of_node_0"),
    [
        ("complete", 5, (1, 2, 3, 4)),
        ("ring", 5, (1, 4)),
        ("exponential", 5, (1, 2, 3, 4)),
        ("exponential", 8, (1, 2, 4, 6, 7)),
        ("exponential", 16, (1, 2, 4, 8, 12, 14, 15)),
        ("torus", 3, (1, 2)),
        ("torus", 4, (1, 2)),  # 2 x 2: both ways around lead to the same neighbour
        ("torus", 12, (1, 3, 4, 8)),  # 3 rows of 4, not 2 of 6
        ("torus", 16, (1, 3, 4, 12)),
        ("star", 5, (1, 2, 3, 4)),
        ("hypercube", 8, (1, 2, 4)),
    ],
)
def test_the_neighbours_of_node_0_are_those_of_the_definition(spec: str, n: int, of_node_0: tuple[int, ...]) -> None:
    assert graph(spec, n).neighbours[0] == of_node_0


def test_only_the_hub_of_a_star_has_more_than_one_neighbour() -> None:
    assert graph("star", 6).neighbours[1:] == ((0,),) * 5


@given(n=st.integers(3, 40), degree=st.integers(2, 39), seed=st.integers(0, 99))
def test_every_node_of_a_random_regular_graph_has_that_many_neighbours(n: int, degree: int, seed: int) -> None:
    degree = min(degree, n - 1)
    degree -= n * degree % 2
    g = graph(f"random:{max(degree, 2)}", n, seed)
    assert {len(others) for others in g.neighbours} == {max(degree, 2)}


@pytest.mark.parametrize("seed", range(20))
def test_a_random_graph_of_degree_two_is_one_cycle_through_all(seed: int) -> None:
    """The hard case: most 2-regular graphs of this size fall into several cycles."""
    assert len(reached_from_0(graph("random:2", 60, seed))) == 60


def test_a_random_graph_of_the_highest_degree_is_complete() -> None:
    assert graph("random:7", 8).neighbours == graph("complete", 8).neighbours


def test_another_seed_draws_another_random_graph() -> None:
    assert len({tuple(graph("random:3", 12, seed).edges()) for seed in range(20)}) == 20


def test_over_many_seeds_a_random_graph_prefers_no_pair() -> None:
    """Each of the 28 pairs of 8 nodes is an edge with probability 3/7; 4.5 standard deviations are .10 at 500 draws."""
    drawn = [graph("random:3", 8, seed).edges() for seed in range(500)]
    for pair in itertools.combinations(range(8), 2):
        assert abs(sum(pair in edges for edges in drawn) / 500 - 3 / 7) < 0.1


PINNED = "[(0, 4), (0, 5), (0, 7), (1, 4), (1, 5), (1, 6), (2, 3), (2, 6), (2, 7), (3, 5), (3, 6), (4, 7)]"
DRAW = "from shoal.topology import graph; print(graph('random:3', 8, 7).edges())"


def test_a_random_graph_is_the_same_in_every_process() -> None:
    """Members draw it each for itself; so it must also stay what it was in earlier versions."""
    edges = str(graph("random:3", 8, 7).edges())
    for hash_seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        drawn = subprocess.run(
            [sys.executable, "-c", DRAW], env=environment, check=True, capture_output=True, text=True
        )
        assert drawn.stdout.strip() == edges
    assert edges == PINNED


# --- files --------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> str:
    path = folder / "edges.txt"
    path.write_text(text)
    return f"file:{path}"


def test_a_file_gives_edges_in_either_order_with_comments_and_blank_lines(tmp_path: Path) -> None:
    g = graph(write(tmp_path, "# the two labs\n1 0\n\n  1 2  # across the street\r\n2 3"), 4)
    assert g.neighbours == ((1,), (0, 2), (1, 3), (2,))
    assert g.weights is None


def test_a_file_gives_weights_and_each_node_keeps_the_rest(tmp_path: Path) -> None:
    W = graph(write(tmp_path, "0 1 .25\n1 2 0.75\n"), 3).weights
    assert W is not None
    assert W.tolist() == [[0.75, 0.25, 0.0], [0.25, 0.0, 0.75], [0.0, 0.75, 0.25]]


def test_an_empty_file_is_the_graph_of_a_single_node(tmp_path: Path) -> None:
    assert graph(write(tmp_path, ""), 1).neighbours == ((),)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    before = graph(write(tmp_path, "0 1\n1 2\n"), 3).edges()
    assert graph(write(tmp_path, "0 1\n0 2\n"), 3).edges() != before


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("2 2", "an edge from node 2 to itself"),
        ("0", r"expected I J \[WEIGHT\], nodes as numbers from 0; got '0'"),
        ("0 2 .3 .4", r"expected I J \[WEIGHT\]"),
        ("berlin jena", "nodes as numbers from 0; got 'berlin jena'"),
        ("0 -1", "got '0 -1'"),
        ("0 2_0", "got '0 2_0'"),
        ("0 ٣", "got '0 ٣'"),
        ("0 3", "node 3; this graph has 3, numbered 0 to 2"),
        ("1 0 .3", "edge 0 1 again"),
        ("1 2", "expected a weight on every edge or on none"),
        ("1 2 -0.1", "weight '-0.1': expected a number above 0 and at most 1"),
        ("1 2 0", "weight '0': expected a number above 0"),
        ("1 2 1.5", "at most 1"),
        ("1 2 nan", "weight 'nan'"),
        ("1 2 half", "weight 'half'"),
    ],
)
def test_nonsense_in_a_file_is_refused_with_its_line(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(TopologyError, match=rf"edges\.txt, line 3: .*{complaint}"):
        graph(write(tmp_path, f"# I J WEIGHT\n0 1 .3\n{line}\n1 2 .3\n"), 3)


def test_weights_that_sum_to_more_than_one_are_refused_with_the_node(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"the edges of node 1 weigh 1\.2 in all; expected at most 1"):
        graph(write(tmp_path, "0 1 .6\n1 2 .6\n"), 3)


def test_a_file_whose_graph_falls_apart_is_refused_with_the_nodes_left_out(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="not connected: no path leads from node 0 to 2, 3"):
        graph(write(tmp_path, "0 1\n2 3\n"), 4)


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(TopologyError, match="there is no such file"):
            graph(f"file:{path}", 3)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(128, 256)))
    with pytest.raises(TopologyError, match=r"noise, line 1: expected I J"):
        graph(f"file:{tmp_path / 'noise'}", 3)


def test_no_more_of_a_file_is_read_than_a_list_of_edges_can_need(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a hole: it takes no room on disk
    with pytest.raises(TopologyError, match="longer than"):
        graph(f"file:{tmp_path / 'huge'}", 3)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "n", "complaint"),
    [
        ("mesh", 5, "unknown topology 'mesh'; known: complete, ring, .*random:DEGREE, file:PATH"),
        ("", 5, "unknown topology ''"),
        ("ring:3", 5, "unknown topology 'ring:3'"),
        ("torus", 7, "a torus of 7 nodes, a prime: .*take ring, or 6 or 8 nodes"),
        ("hypercube", 6, "expected a power of two, such as 4 or 8"),
        ("random", 5, "expected random:DEGREE"),
        ("random:x", 5, "expected random:DEGREE"),
        ("random:-2", 5, "expected random:DEGREE"),
        ("random:0", 5, "expected random:DEGREE"),
        ("random:5", 5, "a node has only 4 others; take at most random:4"),
        ("random:3", 5, "5 x 3 is odd"),
        ("random:1", 4, "pairs without a connection"),
        ("ring", 0, "a graph of 0 nodes: expected 1 to 100000"),
        ("ring", 10**9, "expected 1 to 100000"),
        ("complete", 50_000, "more than 1048576 edges"),
        ("random:999", 50_000, "24975000 edges: expected at most 1048576"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_the_way_out_is_named(spec: str, n: int, complaint: str) -> None:
    with pytest.raises(TopologyError, match=complaint):
        graph(spec, n)


# --- what is left of a graph ----------------------------------------------------------------------------------------


def test_a_graph_without_its_cut_edges() -> None:
    left = what_is_left("ring", 5, 0, [(0, 1)])
    assert left.spec == "ring"
    assert left.edges() == [(0, 4), (1, 2), (2, 3), (3, 4)]


def test_edges_that_the_graph_does_not_have_can_be_cut_without_effect() -> None:
    assert what_is_left("ring", 5, 0, [(0, 2)]).edges() == graph("ring", 5).edges()


def test_where_the_cuts_tear_a_graph_apart_the_complete_one_is_taken_without_them() -> None:
    left = what_is_left("ring", 4, 0, [(0, 1), (2, 3)])
    assert left.spec == "complete"
    assert left.edges() == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_who_has_no_edge_left_at_all_is_an_error() -> None:
    with pytest.raises(TopologyError, match="not connected"):
        what_is_left("complete", 3, 0, [(0, 1), (0, 2)])


@pytest.mark.parametrize("spec", ["hypercube", "torus", "random:5"])
def test_a_graph_that_cannot_be_drawn_on_so_many_is_a_ring(spec: str) -> None:
    assert what_is_left(spec, 5, 0, []).spec == "ring"
