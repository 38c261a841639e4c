"""Whose run a coordinator serves: what it takes from the first Hello, and what it refuses."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from shoal import hello
from shoal.errors import Mismatch
from shoal.settings import Settings
from shoal.v1 import node_pb2 as pb
from shoal_coordinator import adopted
from shoal_coordinator.rounds import Terms

READY = {"task_document": {"name": "t"}, "elements": 100, "element_bytes": 4, "samples": 7, "histogram": [3, 4]}


def hello_of(ready: dict[str, Any] | None = None, **settings: Any) -> pb.Hello:
    """A node's."""
    given = Settings(**{"algorithm": "signum", "over": "coordinator", "shoal": "ours", **settings})
    return hello.own(given, pb.Identity(node_id="node-a", incarnation=1), {**READY, **(ready or {})})


def adopt(theirs: pb.Hello, **terms: Any) -> tuple[pb.Hello, Settings]:
    return adopted.adopt(theirs, Terms(**terms), shoal="ours")


def test_the_run_of_a_node_is_taken_as_it_is() -> None:
    theirs = hello_of(lr=0.25, rounds=7, topology="ring")
    ours, run = adopt(theirs)
    assert (run.algorithm, run.lr, run.total_rounds(3)) == ("signum", 0.25, 7)
    assert (ours.elements, ours.element_bytes, ours.samples) == (100, 4, 0)
    assert hello.compare(ours, theirs) is None
    assert hello.compare(theirs, ours) is None


def test_a_graph_in_a_file_of_the_nodes_is_no_matter() -> None:
    _, run = adopt(hello_of(topology="file:not-here.json", algorithm="ad-psgd", over="peers"))
    assert run.topology == "complete"


def test_what_was_adopted_comes_back_from_disk() -> None:
    ours, run = adopt(hello_of(lr=0.25))
    again, same = adopted.from_disk(json.loads(json.dumps(adopted.to_disk(ours))))
    assert same == run
    assert hello.compare(again, hello_of(lr=0.25)) == hello.compare(pb.Hello(), hello_of(lr=0.25))
    again.identity.CopyFrom(ours.identity)
    again.protocol, again.shoal = ours.protocol, ours.shoal
    assert again == ours


def other_fingerprint(theirs: pb.Hello) -> None:
    theirs.run_fingerprint = "0" * 16


def no_document(theirs: pb.Hello) -> None:
    theirs.task_document = "["


def huge(theirs: pb.Hello) -> None:
    theirs.elements = 1 << 40


def doubles(theirs: pb.Hello) -> None:
    theirs.element_bytes = 8


def another_shoal(theirs: pb.Hello) -> None:
    theirs.shoal = "other"


def older(theirs: pb.Hello) -> None:
    theirs.protocol = 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_fingerprint, "the run of node-a cannot be read, or has another fingerprint than it says"),
        (no_document, "the task of node-a cannot be read, or has another fingerprint than it says"),
        (huge, "node-a has vectors of 1099511627776 elements of 4 bytes, expected at most 4 bytes each and 8 GiB in"),
        (doubles, "node-a has vectors of 100 elements of 8 bytes"),
        (another_shoal, "node-a is of shoal 'other', the coordinator of 'ours'"),
        (older, "node-a speaks protocol 0, the coordinator speaks"),
    ],
)
def test_a_hello_that_cannot_be_is_refused_by_name(change: Callable[[pb.Hello], None], words: str) -> None:
    theirs = hello_of()
    change(theirs)
    with pytest.raises(Mismatch, match=words):
        adopt(theirs)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(Mismatch, match="the run's settings cannot be: unknown algorithm 'sgd'; known: "):
        adopted.settings_of({"algorithm": "sgd"})


def test_a_run_that_needs_everybody_is_refused_by_a_coordinator_with_a_quorum() -> None:
    theirs = hello_of({"element_bytes": 8}, algorithm="katyusha-x")
    assert adopt(theirs)[1].algorithm == "katyusha-x"
    with pytest.raises(Mismatch, match="start the coordinator without --quorum"):
        adopt(theirs, quorum=2)
