"""What a node makes of what members say of others, and whom it asks to be introduced."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from shoal.discovery import Candidate
from shoal.errors import Unreached
from shoal.greeter import Greeter
from shoal.hello import ADDRESS_LIMIT
from shoal.membership import Membership
from shoal.reception import Reception
from shoal.roster import Action, Send
from shoal.seeking import Seeking
from shoal.settings import Settings
from shoal.v1.node_pb2 import Control, Hello, Identity, Leave, Relayed

ME = Identity(node_id="a", incarnation=1, address="192.0.2.1:1", name="a")
FAR = Identity(node_id="z", incarnation=1, address="192.0.2.26:1", name="z")


class Desk:
    """The reception of a node that nobody answers, linked with member `b`."""

    def __init__(self) -> None:
        self.greeted: list[str] = []
        self.actions: list[Action] = []
        self.members = members = Membership(
            ME, heartbeat_s=0.5, suspect_after_s=4.0, min_nodes=2, synchronous=False, rng=random.Random(0)
        )
        members.met(Identity(node_id="b", incarnation=1, address="192.0.2.2:1", name="b"), 1, 0.0)
        members.link_up("b", 0.0)
        self.greeter = Greeter(self._greet, lambda c: self.reception.is_known(c), lambda c: self.reception.unreached(c))
        self.reception = Reception(
            Settings(),
            members,
            self.greeter,
            Seeking(Settings(), members.roster, self.greeter),
            ready=lambda: None,
            do=self.actions.extend,
            connect=lambda identity: None,
        )

    async def _greet(self, address: str) -> Hello:
        self.greeted.append(address)
        raise Unreached(f"no Hello from {address}: Deadline Exceeded")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    it = Desk()
    yield it
    await it.greeter.close()


async def test_who_is_told_of_is_greeted_and_where_nobody_answers_who_told_is_asked_to_introduce(desk: Desk) -> None:
    desk.reception.told(FAR, "b")
    await asyncio.sleep(0)
    assert desk.greeted == [FAR.address]
    relayed = Relayed(origin="a", target="z", control=Control(introduce=ME))
    assert desk.actions == [Send("b", Control(relayed=relayed))]


async def test_an_address_that_the_user_gave_was_told_by_nobody(desk: Desk) -> None:
    desk.greeter.consider(Candidate(FAR.address, "static"))
    await asyncio.sleep(0)
    assert (desk.greeted, desk.actions) == ([FAR.address], [])


async def test_an_address_of_any_length_is_not_taken(desk: Desk) -> None:
    desk.reception.told(Identity(node_id="z", address=f"{'z' * (ADDRESS_LIMIT - 2)}:1"), "b")
    desk.reception.told(Identity(node_id="y", address=f"{'y' * (ADDRESS_LIMIT - 1)}:1"), "b")
    await asyncio.sleep(0)
    assert [len(address) for address in desk.greeted] == [ADDRESS_LIMIT]


async def test_neither_itself_nor_a_member_that_is_here_is_greeted(desk: Desk) -> None:
    desk.reception.told(Identity(node_id="a", address="192.0.2.9:1"), "b")
    desk.reception.told(Identity(node_id="b", address="192.0.2.9:1"), "b")
    desk.greeter.consider(Candidate("192.0.2.2:1", "mdns"))
    await asyncio.sleep(0)
    assert desk.greeted == []


async def test_two_nodes_of_different_networks_may_tell_the_same_address(desk: Desk) -> None:
    for node_id in ("y", "z"):
        desk.reception.told(Identity(node_id=node_id, address=FAR.address), "b")
    await asyncio.sleep(0)
    targets = [action.control.relayed.target for action in desk.actions if isinstance(action, Send)]
    assert (desk.greeted, targets) == ([FAR.address] * 2, ["y", "z"])


async def test_one_with_the_own_address_is_in_another_network_and_has_to_come_here(desk: Desk) -> None:
    desk.reception.told(Identity(node_id="z", address=ME.address), "b")
    relayed = Relayed(origin="a", target="z", control=Control(introduce=ME))
    assert (desk.greeted, desk.actions) == ([], [Send("b", Control(relayed=relayed))])


async def test_one_that_has_ended_in_order_is_not_looked_for(desk: Desk) -> None:
    desk.members.heard("b", Control(leave=Leave(reason="finished", finished=True)), 0.1)
    candidate = Candidate("192.0.2.2:1", "static")
    assert desk.reception.is_known(candidate)
    desk.members.met(Identity(node_id="b", incarnation=2, address="192.0.2.2:1", name="b"), 1, 0.2)
    desk.members.heard("b", Control(leave=Leave(reason="the trainer died")), 0.3)
    desk.members.tick(0.4)
    assert not desk.reception.is_known(candidate), "it comes back"
