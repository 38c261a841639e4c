"""How a node looks for its coordinator: when it gives up, when it waits, and what it says meanwhile."""

import asyncio

import pytest

from shoal.discovery import Candidate
from shoal.errors import Mismatch
from shoal.greeter import Greeter
from shoal.roster import Member, Roster
from shoal.seeking import GIVE_UP_S, Seeking
from shoal.settings import Settings
from shoal.v1.node_pb2 import ROLE_COORDINATOR, Identity

HERE = "10.0.0.9:7450"


class Search:
    """A node's, with the addresses that it greets; each refuses with `words`."""

    def __init__(self, words: str = "no Hello", **settings: str) -> None:
        self.greeted: list[str] = []
        self.words = words
        self.roster = Roster(Identity(node_id="node-a"), suspect_after_s=5, heartbeat_s=0.5)
        self.greeter = Greeter(self._greet, self._is_known)
        self.seeking = Seeking(Settings(**{"algorithm": "a-psgd", **settings}), self.roster, self.greeter)

    async def _greet(self, address: str) -> None:
        self.greeted.append(address)
        raise Mismatch(self.words)

    def _is_known(self, candidate: Candidate) -> bool:
        return self.seeking.found is not None

    def meet(self, linked: bool = True, name: str = "coordinator-1") -> Member:
        member = Member(Identity(node_id=name, address=HERE, role=ROLE_COORDINATOR), samples=0, heard_at=0.0)
        member.linked = linked
        self.roster.members[name] = member
        return member


async def test_one_that_is_never_found_is_given_up_with_where_it_was_looked_for() -> None:
    search = Search("the node at 10.0.0.9:7450 refuses: it is of shoal 'other'", coordinator=HERE)
    assert search.seeking.step(100.0) == ""
    await asyncio.sleep(0.01)
    assert search.greeted == [HERE]
    assert search.seeking.step(100.0 + GIVE_UP_S - 0.1) == ""
    why = search.seeking.step(100.0 + GIVE_UP_S)
    assert why.startswith(
        "a-psgd needs a coordinator, and none was found in 30 s: looked at 10.0.0.9:7450 (the node at"
    )
    assert "it is of shoal 'other'" in why
    assert "discovery by mdns,static" in why
    assert why.endswith("start one with `shoal coordinator`, and name it with --coordinator HOST:PORT")
    await search.greeter.close()


async def test_what_is_waited_for_is_said() -> None:
    search = Search(coordinator=HERE)
    search.seeking.step(0.0)
    assert search.seeking.waiting.startswith("no coordinator is found; looked at 10.0.0.9:7450 (no answer yet)")
    member = search.meet()
    search.seeking.step(1.0)
    assert search.seeking.waiting == ""
    member.linked = False
    assert search.seeking.waiting.startswith("no coordinator is linked")
    await search.greeter.close()


async def test_one_that_was_met_is_waited_for_and_greeted_where_it_was() -> None:
    search = Search()
    member = search.meet()
    assert search.seeking.step(0.0) == ""
    member.linked = False
    assert search.seeking.step(1000.0) == ""
    await asyncio.sleep(0.01)
    assert search.greeted == [HERE]
    await search.greeter.close()


@pytest.mark.parametrize("settings", [{"algorithm": "ad-psgd"}, {"algorithm": "signum"}])
async def test_a_run_among_peers_needs_none(settings: dict[str, str]) -> None:
    search = Search(**settings)
    assert search.seeking.step(0.0) == search.seeking.step(1000.0) == search.seeking.waiting == ""
    assert search.seeking.conflict("coordinator-2") is None


def test_a_second_one_is_refused_while_the_first_is_there() -> None:
    search = Search()
    assert search.seeking.conflict("coordinator-2") is None
    member = search.meet()
    assert search.seeking.conflict("coordinator-1") is None
    conflict = search.seeking.conflict("coordinator-2")
    assert conflict == "the run has the coordinator coordinator-1 already; stop one of the two"
    member.linked = False
    assert search.seeking.conflict("coordinator-2") is None
