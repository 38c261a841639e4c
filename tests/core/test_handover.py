"""Who may give a model, and to whom a latecomer turns when a connection breaks. The runs: live/test_nodes.py."""

import asyncio

import pytest
import torch
from torch import Tensor

from shoal.errors import BadVector
from shoal.handover import Handover, Model
from shoal.messages import Kind, Message, Tag


class Node:
    """A handover with what it has sent, as (to, kind), and the model that it would give."""

    def __init__(self) -> None:
        self.round, self.state = 0, torch.tensor([1.0, 2.0])
        self.kept: list[Tensor] = []  # by the algorithm
        self.sent: list[tuple[str, Message]] = []
        self.handover = Handover(snapshot=self.snapshot, send=lambda peer, m: self.sent.append((peer, m)))

    def snapshot(self) -> Model:
        return Model(self.round, [self.state.clone(), *(kept.clone() for kept in self.kept)])

    def kinds(self) -> list[tuple[str, Kind]]:
        return [(to, message.kind) for to, message in self.sent]


@pytest.fixture
def node() -> Node:
    return Node()


async def fetching(node: Node, peer: str) -> "asyncio.Task[Model]":
    """The fetch, after its first question."""
    task = asyncio.get_running_loop().create_task(node.handover.fetch(peer))
    await asyncio.sleep(0)
    return task


def model(value: float, round: int = 0, more: int = 0) -> Message:
    return Message(Kind.MODEL, tag=Tag("", round, "model", more), vector=torch.tensor([value, value]))


# --- giving ---------------------------------------------------------------------------------------------------------


def test_who_trains_gives_a_copy_of_its_model(node: Node) -> None:
    node.handover.begin()
    node.handover.received("b", Message(Kind.PULL))
    ((to, given),) = node.sent
    assert (to, given.kind) == ("b", Kind.MODEL)
    assert given.vector is not None
    assert torch.equal(given.vector, node.state)
    assert given.vector.data_ptr() != node.state.data_ptr()


def test_who_has_not_begun_gives_its_model_once_it_has(node: Node) -> None:
    for peer in "bc":
        node.handover.up(peer)
        node.handover.received(peer, Message(Kind.PULL))
    assert node.sent == []
    node.handover.down("b")  # it asks again, if it still wants it
    node.handover.begin()
    assert node.kinds() == [("c", Kind.MODEL)]


def test_who_has_not_begun_or_is_about_to_leave_answers_offers_with_busy(node: Node) -> None:
    """An average would mix untrained values into the other's model, and be lost when the first model comes."""
    offer = Message(Kind.OFFER, seq=7, initiator=1)
    assert node.handover.serves(Kind.OFFER)
    node.handover.received("b", offer)
    ((to, answer),) = node.sent
    assert (to, answer.kind, answer.seq) == ("b", Kind.BUSY, 7)
    node.handover.begin()
    assert not node.handover.serves(Kind.OFFER)
    node.handover.end()
    assert node.handover.serves(Kind.OFFER)


@pytest.mark.parametrize("kind", [Kind.QUERY, Kind.VERDICT, Kind.COMMIT, Kind.CONFIRM, Kind.POST])
def test_what_earlier_lives_have_left_open_is_the_settlements_from_the_start(node: Node, kind: Kind) -> None:
    assert not node.handover.serves(kind)


def test_what_the_algorithm_keeps_follows_the_model_of_the_same_round(node: Node) -> None:
    node.round, node.kept = 12, [torch.tensor([3.0, 4.0])]
    node.handover.begin()
    node.handover.received("b", Message(Kind.PULL))
    tags = [message.tag for _, message in node.sent]
    assert tags == [Tag("", 12, "model", 1), Tag("", 12, "model", 0)]
    vectors = [message.vector for _, message in node.sent if message.vector is not None]
    assert [v.tolist() for v in vectors] == [[1.0, 2.0], [3.0, 4.0]]


# --- fetching -------------------------------------------------------------------------------------------------------


async def test_a_model_is_asked_of_the_member_that_is_named(node: Node) -> None:
    for peer in "bcd":
        node.handover.up(peer)
    fetch = await fetching(node, "c")
    assert node.kinds() == [("c", Kind.PULL)]
    node.handover.received("c", model(5.0))
    assert torch.equal((await fetch).parts[0], torch.tensor([5.0, 5.0]))


async def test_when_its_connection_breaks_another_is_asked(node: Node) -> None:
    for peer in "bcd":
        node.handover.up(peer)
    fetch = await fetching(node, "c")
    node.handover.down("b")
    node.handover.down("c")
    assert node.kinds() == [("c", Kind.PULL), ("d", Kind.PULL)]
    node.handover.received("d", model(6.0))
    assert torch.equal((await fetch).parts[0], torch.tensor([6.0, 6.0]))


async def test_a_model_is_whole_when_its_last_part_has_come_and_all_parts_are_of_one_member(node: Node) -> None:
    for peer in "bc":
        node.handover.up(peer)
    fetch = await fetching(node, "b")
    node.handover.received("b", model(1.0, round=7, more=1))
    node.handover.down("b")
    node.handover.received("c", model(2.0, round=8, more=1))
    assert not fetch.done()
    node.handover.received("c", model(3.0, round=8, more=0))
    assert (await fetch).round == 8
    assert [part.tolist() for part in (await fetch).parts] == [[2.0, 2.0], [3.0, 3.0]]


async def test_with_nobody_in_reach_the_next_that_comes_up_is_asked(node: Node) -> None:
    node.handover.up("c")
    fetch = await fetching(node, "c")
    node.handover.down("c")
    assert not fetch.done()
    node.handover.up("b")
    node.handover.up("c")
    assert node.kinds() == [("c", Kind.PULL), ("b", Kind.PULL)]
    node.handover.received("b", model(7.0))
    assert torch.equal((await fetch).parts[0], torch.tensor([7.0, 7.0]))


async def test_a_member_that_is_named_before_its_connection_stands_is_asked_then(node: Node) -> None:
    await fetching(node, "c")
    assert node.sent == []
    node.handover.up("c")
    assert node.kinds() == [("c", Kind.PULL)]


async def test_a_model_that_is_not_finite_is_refused_and_waited_for_still(node: Node) -> None:
    node.handover.up("c")
    fetch = await fetching(node, "c")
    with pytest.raises(BadVector, match="model of c holds NaN or Inf"):
        node.handover.received("c", model(float("nan")))
    assert not fetch.done()


async def test_a_model_that_nobody_waits_for_changes_nothing(node: Node) -> None:
    node.handover.received("b", model(1.0))
    node.handover.up("c")
    fetch = await fetching(node, "c")
    node.handover.received("c", model(5.0))
    node.handover.received("c", model(6.0))
    assert torch.equal((await fetch).parts[0], torch.tensor([5.0, 5.0]))
    node.handover.down("c")
    assert node.kinds() == [("c", Kind.PULL)]
