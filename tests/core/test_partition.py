"""Partitioners: disjoint, complete, seeded, and as skewed as asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.partition import histogram, left_out, parse, partition
from shoal.errors import DataError

LABELS = np.random.RandomState(0).randint(0, 10, size=1000)
SPECS = ["iid", "labels:2", "labels:3", "labels:10", "dirichlet:0.1", "dirichlet:100", "quantity:0.5"]
PINNED = {
    "iid": [[0, 1, 5, 11], [3, 4, 7, 10], [2, 6, 8, 9]],
    "labels:2": [[3, 4, 9, 10], [0, 5, 6, 11], [1, 2, 7, 8]],
    "dirichlet:1": [[4, 5, 9, 11], [1, 8, 10], [0, 2, 3, 6, 7]],
    "quantity:1": [[0, 1, 3, 4, 5, 6, 7, 9, 10, 11], [2], [8]],
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shards", [1, 2, 5, 7])
def test_no_sample_is_given_twice_and_no_shard_is_empty(spec: str, shards: int) -> None:
    parts = partition(LABELS, shards, spec, seed=3)
    together = np.concatenate(parts)
    assert len(parts) == shards
    assert all(len(part) > 0 for part in parts)
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < len(LABELS)


@pytest.mark.parametrize("spec", [s for s in SPECS if s not in ("labels:2", "labels:3")])
def test_every_sample_is_given_to_somebody(spec: str) -> None:
    assert sum(map(len, partition(LABELS, 4, spec, seed=0))) == len(LABELS)


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_seed_gives_the_same_parts_and_another_seed_gives_others(spec: str) -> None:
    first, again, other = (partition(LABELS, 5, spec, seed) for seed in (2**40 + 1, 2**40 + 1, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    if spec != "labels:2":  # five shards of two labels: each label has one holder, nothing is drawn
        assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_draws_of_a_seed_are_the_same_on_every_machine() -> None:
    """Written down, so that a change of numpy or of this file that would divide a running shoal's data anew is seen."""
    for spec, parts in PINNED.items():
        assert [part.tolist() for part in partition(np.arange(12) % 3, 3, spec, seed=7)] == parts


@given(n=st.integers(1, 60), shards=st.integers(1, 20), seed=st.integers(0, 2**63 - 1))
def test_iid_parts_differ_by_one_sample_at_most(n: int, shards: int, seed: int) -> None:
    labels = np.zeros(n, dtype=np.int64)
    if shards > n:
        with pytest.raises(DataError, match=f"{n} samples cannot give each of {shards} shards"):
            partition(labels, shards, "iid", seed)
        return
    sizes = [len(part) for part in partition(labels, shards, "iid", seed)]
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1


def test_iid_shuffles_a_sorted_data_set() -> None:
    for part in partition(np.sort(LABELS), 2, "iid", seed=0):
        assert all(count > 20 for count in histogram(np.sort(LABELS)[part], 10))


@pytest.mark.parametrize(("shards", "k"), [(5, 2), (3, 4), (10, 1), (4, 10)])
def test_shard_i_holds_k_labels_from_the_ik_th_on(shards: int, k: int) -> None:
    for i, part in enumerate(partition(LABELS, shards, f"labels:{k}", seed=1)):
        assert set(LABELS[part]) == {(i * k + j) % 10 for j in range(k)}


def test_a_label_of_several_shards_is_dealt_out_among_them() -> None:
    parts = partition(LABELS, 10, "labels:2", seed=0)  # every label has two holders
    for label in range(10):
        shares = [int((LABELS[part] == label).sum()) for part in parts]
        held = [share for share in shares if share]
        assert sum(held) == histogram(LABELS, 10)[label]
        assert len(held) == 2
        assert abs(held[0] - held[1]) <= 1


def test_labels_are_counted_among_those_that_occur() -> None:
    labels = np.array([3, 3, 8, 8, 5, 5])
    assert [set(labels[part]) for part in partition(labels, 3, "labels:1", seed=0)] == [{3}, {5}, {8}]


def test_labels_that_nobody_holds_are_named() -> None:
    assert left_out(LABELS, partition(LABELS, 3, "labels:2", seed=0)) == [6, 7, 8, 9]
    assert left_out(LABELS, partition(LABELS, 5, "labels:2", seed=0)) == []


def test_more_labels_a_shard_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match="labels:11: the data has 10 labels, expected at least 11"):
        partition(LABELS, 2, "labels:11", seed=0)


def test_shards_that_would_get_nothing_of_their_labels_are_refused() -> None:
    labels = np.array([0] * 30 + [1])
    with pytest.raises(DataError, match="1 of 4 shards would be empty"):
        partition(labels, 4, "labels:1", seed=0)  # two shards share the one sample of label 1


def _label_skew(spec: str) -> float:
    """Mean over shards of the largest label's part: .1 is even, 1 is one label."""
    parts = partition(LABELS, 5, spec, seed=0)
    return float(np.mean([max(histogram(LABELS[part], 10)) / len(part) for part in parts]))


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    assert _label_skew("dirichlet:0.05") > 0.4
    assert _label_skew("dirichlet:10000") < 0.2
    assert _label_skew("dirichlet:0.05") > _label_skew("dirichlet:1") > _label_skew("dirichlet:10000")


def test_a_tiny_alpha_gives_whole_labels_to_single_shards() -> None:
    parts = partition(LABELS, 2, "dirichlet:1e-4", seed=0)
    for label in range(10):
        shares = [int((LABELS[part] == label).sum()) for part in parts]
        assert 0 in shares


def test_quantity_skews_sizes_and_keeps_labels_even() -> None:
    labels = np.arange(20_000) % 10
    parts = partition(labels, 5, "quantity:0.5", seed=1)
    sizes = [len(part) for part in parts]
    assert max(sizes) > 3 * min(sizes)
    largest = max(parts, key=len)
    assert max(histogram(labels[largest], 10)) / len(largest) < 0.15
    even = [len(part) for part in partition(labels, 5, "quantity:100000", seed=1)]
    assert max(even) < 1.1 * min(even)


def test_the_proportions_follow_the_dirichlet_law() -> None:
    """A symmetric Dirichlet(a) over n has mean 1/n and variance (n-1) / (n^2 (n a + 1))."""
    alpha, n = 0.5, 4
    labels = np.zeros(100_000, dtype=np.int64)
    first = np.array([len(partition(labels, n, f"quantity:{alpha}", seed)[0]) for seed in range(400)]) / len(labels)
    variance = (n - 1) / (n**2 * (n * alpha + 1))
    assert abs(first.mean() - 1 / n) < 4 * np.sqrt(variance / 400)
    assert abs(first.var() / variance - 1) < 0.3


@pytest.mark.parametrize("spec", ["dirichlet:0.001", "quantity:0.001"])
def test_a_division_that_cannot_fill_every_shard_says_what_to_change(spec: str) -> None:
    with pytest.raises(DataError, match=r"some of 30 shards empty; take fewer shards or a larger ALPHA"):
        partition(LABELS[:60], 30, spec, seed=0)


@pytest.mark.parametrize(
    "spec", ["", "iid:2", "labels", "labels:0", "labels:-1", "labels:2.5", "dirichlet:0", "dirichlet:x", "quantity:1e9"]
)
def test_an_unknown_partition_is_refused_and_the_known_ones_are_named(spec: str) -> None:
    with pytest.raises(DataError, match=r"known: iid, shared, labels:K .*, dirichlet:ALPHA, quantity:ALPHA .*, folder"):
        partition(LABELS, 2, spec, seed=0)


def test_a_folder_is_not_divided() -> None:
    assert parse("folder") == ("folder", 0.0)
    with pytest.raises(DataError, match="every node reads the files that it has"):
        partition(LABELS, 2, "folder", seed=0)


def test_a_histogram_counts_classes_that_do_not_occur_as_zero() -> None:
    assert histogram(np.array([0, 2, 2]), 4) == [1, 0, 2, 0]
    assert histogram(np.array([], dtype=np.int64), 2) == [0, 0]
