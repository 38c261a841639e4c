"""Words about views for a member whose link is cut: wrapped for one that both hear, and unwrapped by it."""

import random

import pytest

from shoal.errors import BadFrame
from shoal.membership import Membership
from shoal.roster import Action, Introduced, Send
from shoal.v1.node_pb2 import (
    PHASE_READY,
    PHASE_RUNNING,
    PURPOSE_TRAIN,
    ROLE_COORDINATOR,
    Control,
    Heartbeat,
    Identity,
    Relayed,
    View,
    ViewAnswer,
)
from shoal.views import view_id

ANSWER = Control(answer=ViewAnswer(id="of a view"))


def identity(name: str) -> Identity:
    return Identity(node_id=name, incarnation=1, address=f"{name}:1", name=name)


def running(me: str, others: str) -> Membership:
    """`me`, linked with all others, in a view with them."""
    members = Membership(
        identity(me), heartbeat_s=0.5, suspect_after_s=4.0, min_nodes=2, synchronous=True, rng=random.Random(0)
    )
    for other in others:
        members.met(identity(other), 1, 0.0)
        members.link_up(other, 0.0)
    members.mine(PHASE_READY, 0, 0, 0.0, 0, 0)
    names = sorted(me + others)
    view = View(
        number=1,
        issuer=names[0],
        issuer_incarnation=1,
        members=[identity(name) for name in names],
        samples=[1] * len(names),
        purpose=PURPOSE_TRAIN,
    )
    view.id = view_id(view)
    members.heard(others[0], Control(install=view), 0.1)
    return members


def beat(members: Membership, peer: str, *unheard: str, now: float = 0.2) -> None:
    held = members.view
    assert held is not None
    heartbeat = Heartbeat(phase=PHASE_RUNNING, answers=members.roster.number, view=held.id, unheard=unheard)
    members.heard(peer, Control(heartbeat=heartbeat), now)


def routed(members: Membership, send: Send) -> Send:
    (result,) = members.relays.routed([send])
    assert isinstance(result, Send)
    return result


def relayed(origin: str, target: str, control: Control = ANSWER) -> Control:
    return Control(relayed=Relayed(origin=origin, target=target, control=control))


def sends(actions: list[Action]) -> list[Send]:
    return [a for a in actions if isinstance(a, Send) and not a.control.HasField("heartbeat")]


def test_what_can_go_straight_goes_straight() -> None:
    members = running("a", "bc")
    beat(members, "b")
    beat(members, "c")
    assert routed(members, Send("c", ANSWER)) == Send("c", ANSWER)


def test_over_a_cut_link_it_goes_by_way_of_one_that_hears_both() -> None:
    members = running("a", "bcd")
    beat(members, "b", "d")  # b does not hear d
    beat(members, "c")
    members.link_down("d", "connection reset", 0.3)
    assert routed(members, Send("d", ANSWER)) == Send("c", relayed("a", "d"))


def test_a_link_that_carries_only_one_way_is_no_way() -> None:
    members = running("a", "bc")
    beat(members, "b")
    beat(members, "c", "a")  # it is heard here, and hears nothing
    assert routed(members, Send("c", ANSWER)) == Send("b", relayed("a", "c"))


def test_heartbeats_take_no_detours() -> None:
    members = running("a", "bc")
    beat(members, "b")
    members.link_down("c", "connection reset", 0.3)
    send = Send("c", Control(heartbeat=Heartbeat()))
    assert routed(members, send) == send


def test_a_member_hands_on_what_is_for_another() -> None:
    members = running("b", "ac")
    assert sends(members.heard("a", relayed("a", "c"), 0.3)) == [Send("c", relayed("a", "c"))]


def introduction(of: str) -> Control:
    return Control(introduce=identity(of))


def test_a_node_that_reaches_nobody_at_an_address_has_itself_introduced_by_who_told_of_it() -> None:
    asks = sends(running("a", "bc").introduce("b", "z"))
    assert asks == [Send("b", relayed("a", "z", introduction("a")))]
    via = running("b", "az")
    assert sends(via.heard("a", asks[0].control, 0.3)) == [Send("z", asks[0].control)]
    end = running("z", "bc")
    assert Introduced(identity("a"), "b") in end.heard("b", asks[0].control, 0.3)


def test_who_is_not_linked_introduces_nobody() -> None:
    members = running("a", "bc")
    members.link_down("b", "connection reset", 0.3)
    assert members.introduce("b", "z") == members.introduce("y", "z") == []


def test_a_coordinator_introduces_too() -> None:
    told = identity("k")
    told.role = ROLE_COORDINATOR
    members = Membership(
        told, heartbeat_s=0.5, suspect_after_s=4.0, min_nodes=1, synchronous=False, rng=random.Random(0)
    )
    for node in "az":
        members.met(identity(node), 1, 0.0)
        members.link_up(node, 0.0)
    asks = relayed("a", "z", introduction("a"))
    assert sends(members.heard("a", asks, 0.1)) == [Send("z", asks)]
    with pytest.raises(BadFrame, match="relayed from a about a view, of which a coordinator is no member"):
        members.heard("a", relayed("a", "z"), 0.1)


def test_and_drops_what_is_for_one_it_cannot_reach() -> None:
    members = running("b", "ac")
    members.link_down("c", "connection reset", 0.3)
    assert sends(members.heard("a", relayed("a", "c"), 0.4)) == []


@pytest.mark.parametrize(
    ("control", "match"),
    [
        (relayed("c", "d"), "a has answer of 'c' passed on, expected its own"),
        (relayed("a", "d", Control(heartbeat=Heartbeat())), "a has heartbeat of 'a' passed on, expected its own"),
        (relayed("a", "d", relayed("a", "c")), "a has relayed of 'a' passed on, expected its own"),
        (relayed("a", "d", introduction("c")), "a has introduce of 'a' passed on, expected its own"),
        (introduction("a"), "introduce from a where a proposal, an answer or a view was expected"),
        (relayed("a", "b", relayed("a", "c")), "relayed from a where a proposal, an answer or a view was expected"),
    ],
)
def test_nobody_speaks_for_another_nor_sends_anything_else_on_a_detour(control: Control, match: str) -> None:
    members = running("b", "acd")
    with pytest.raises(BadFrame, match=match):
        members.heard("a", control, 0.3)
