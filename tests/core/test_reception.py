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
from shoal.v1.node_pb2 import Control, Identity, Relayed

ME = Identity(node_id="a", incarnation=1, address="192.0.2.1:1", name="a")
FAR = Identity(node_id="z", incarnation=1, address="192.0.2.26:1", name="z")


class Desk:
    """The reception of a node that nobody answers, linked with member `b`."""

    def __init__(self) -> None:
        self.greeted: list[str] = []
        self.actions: list[Action] = []
        members = Membership(
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

    async def _greet(self, address: str) -> None:
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
    desk.reception.told(Identity(node_id="c", address="192.0.2.2:1"), "b")
    await asyncio.sleep(0)
    assert desk.greeted == []
