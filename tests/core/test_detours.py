"""Messages by way of a third member: who is reached how, what a relay hands on, what is told when something is lost."""

from typing import Any

import pytest

from shoal.detours import Detours
from shoal.errors import BadFrame
from shoal.v1.node_pb2 import Control, Header


class Node:
    """`me`, linked with some; what it tells its trainer and other nodes is kept."""

    def __init__(self, me: str = "a", linked: str = "bc") -> None:
        self.linked = set(linked)
        self.told: list[tuple[Any, ...]] = []
        self.detours = Detours(
            me,
            tell_up=lambda peer, conn: self.told.append(("up", peer, conn)),
            tell_down=lambda peer, conn, reason: self.told.append(("down", peer, conn, reason)),
            notify=lambda peer, control: self.told.append(("notify", peer, control)),
            is_linked=lambda peer: peer in self.linked,
        )

    def plan(self, cut: str, **ways: str) -> list[tuple[Any, ...]]:
        self.told.clear()
        self.detours.plan(cut, lambda peer: ways.get(peer, peer))
        return self.told


def lost(target: str) -> Control:
    return Control(lost={"target": target})


def test_a_member_behind_a_cut_link_is_up_for_the_trainer_while_there_is_a_way() -> None:
    node = Node()
    assert node.plan("d", d="b") == [("up", "d", -1)]
    assert node.plan("d", d="b") == [], "nothing has changed"
    assert node.detours.relay_of("d", -1) == "b"
    assert node.plan("") == [("down", "d", -1, "there is another way, or none")]
    assert node.detours.relay_of("d", -1) is None


def test_another_way_is_another_connection() -> None:
    node = Node()
    node.plan("d", d="b")
    assert node.plan("d", d="c") == [("down", "d", -1, "there is another way, or none"), ("up", "d", -2)]
    assert node.detours.relay_of("d", -1) is None, "what was meant for the old one is lost with it"
    assert node.detours.relay_of("d", -2) == "c"


def test_nobody_is_reached_by_way_of_one_who_is_not_linked() -> None:
    assert Node(linked="b").plan("d", d="c") == []


def test_nobody_is_reached_by_a_detour_whose_own_link_stands() -> None:
    assert Node(linked="bd").plan("d", d="b") == []


def test_a_header_says_whom_it_is_from_and_for_and_keeps_the_rest() -> None:
    header = Header(seq=7, reason="as it was")
    sent = Header.FromString(Node().detours.addressed(header.SerializeToString(), "d"))
    assert (sent.origin, sent.target, sent.seq, sent.reason) == ("a", "d", 7, "as it was")


def test_who_hears_by_a_detour_first_answers_by_it() -> None:
    """The other end may have learnt of the cut before this one."""
    node = Node()
    detour = node.detours.arrived("c", Header(origin="d", target="a"))
    assert detour is not None
    assert (detour.relay, node.told) == ("c", [("up", "d", detour.conn)])
    assert node.detours.arrived("c", Header(origin="d", target="a")) == detour


def test_what_comes_late_by_a_detour_does_not_take_the_place_of_the_own_link() -> None:
    """The link is whole again, and the view in which it was cut holds still: a detour would begin, and end at the next
    `plan`, and to the trainer the peer would be gone for good."""
    node = Node(linked="bcd")
    assert node.detours.arrived("c", Header(origin="d", target="a")) is None
    assert node.told == []
    assert node.plan("d", d="d") == []


def test_a_relay_hands_on_to_whom_it_is_linked_with_and_tells_of_the_rest() -> None:
    node = Node("b", linked="a")
    assert not node.detours.passes("a", Header(origin="a", target="d"))
    assert node.told == [("notify", "a", lost("d"))]
    node.linked.add("d")
    assert node.detours.passes("a", Header(origin="a", target="d"))


def test_a_relay_takes_nothing_that_is_not_its_senders_own() -> None:
    with pytest.raises(BadFrame, match="a has a message of 'c' passed on, expected one of its own"):
        Node("b").detours.passes("a", Header(origin="c", target="d"))


def test_a_relay_whose_link_breaks_tells_everybody_whose_messages_it_had() -> None:
    node = Node("b", linked="acd")
    for origin in "ac":
        node.detours.passes(origin, Header(origin=origin, target="d"))
    node.told.clear()
    node.detours.down("d")
    assert node.told == [("notify", "a", lost("d")), ("notify", "c", lost("d"))]
    node.told.clear()
    node.detours.down("d")
    assert node.told == [], "once"


def test_what_a_relay_has_lost_breaks_the_connection_that_the_trainer_knows() -> None:
    node = Node()
    node.plan("d", d="b")
    node.told.clear()
    node.detours.lost("c", "d")
    assert node.told == [], "c was not on the way"
    node.detours.lost("b", "d")
    assert node.told == [("down", "d", -1, "b lost what it was to pass on")]
    assert node.plan("d", d="b") == [("up", "d", -2)]


def test_a_relay_that_is_gone_takes_its_detours_along() -> None:
    node = Node()
    node.plan("de", d="b", e="c")
    node.told.clear()
    node.detours.down("b")
    assert node.told == [("down", "d", -1, "the way by b is broken")]
