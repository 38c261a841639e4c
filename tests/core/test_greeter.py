"""What a peer may make a node do by passing on addresses and by being refused: a bounded amount."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from shoal import greeter, hello
from shoal.discovery import Candidate
from shoal.errors import Mismatch, PeerError, Unreached
from shoal.greeter import AT_ONCE, SAID_LIMIT, Greeter
from shoal.v1 import node_pb2 as pb


class Network:
    """Where nobody answers until that is let happen."""

    def __init__(self) -> None:
        self.greeted: list[str] = []
        self.answer = asyncio.Event()
        self.greeter = Greeter(self._greet, lambda candidate: False)

    async def _greet(self, address: str) -> pb.Hello:
        self.greeted.append(address)
        await self.answer.wait()
        return pb.Hello()


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    it = Network()
    yield it
    await it.greeter.close()


async def turn() -> None:
    """Lets all that can run do so."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_passed_on_addresses_are_followed_a_bounded_number_at_a_time(network: Network) -> None:
    for k in range(3 * AT_ONCE):
        network.greeter.consider(Candidate(f"192.0.2.1:{k}", "member x", ""))
    await turn()
    assert len(network.greeted) == AT_ONCE
    network.answer.set()
    await turn()
    network.greeter.consider(Candidate("192.0.2.1:9999", "member x", ""))
    await turn()
    assert network.greeted[-1] == "192.0.2.1:9999", "there is room again"


async def test_an_address_that_the_user_has_given_is_never_crowded_out(network: Network) -> None:
    for k in range(AT_ONCE):
        network.greeter.consider(Candidate(f"192.0.2.1:{k}", "member x", ""))
    network.greeter.consider(Candidate("192.0.2.2:1", "static", ""))
    await turn()
    assert "192.0.2.2:1" in network.greeted


async def test_an_address_is_greeted_once_at_a_time(network: Network) -> None:
    for _ in range(5):
        network.greeter.consider(Candidate("192.0.2.1:1", "member x", ""))
    await turn()
    assert network.greeted == ["192.0.2.1:1"]


async def test_complaints_are_told_once_and_forgotten_in_the_end(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "shoal")
    network.greeter.complain("x", "refused")
    network.greeter.complain("x", "refused")
    assert len(caplog.records) == 1
    for k in range(SAID_LIMIT):
        network.greeter.complain(f"peer {k}", "refused")
    assert network.greeter.last_words("x") == ""
    assert len(network.greeter._said) == SAID_LIMIT


async def test_a_hint_that_does_not_answer_is_given_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeter, "AGAIN_S", (0.001, 0.004))
    tried: list[str] = []

    async def silent(address: str) -> pb.Hello:
        tried.append(address)
        raise PeerError(f"no Hello from {address}")

    it = Greeter(silent, lambda candidate: False)
    it.consider(Candidate("192.0.2.1:1", "member x", ""))
    async with asyncio.timeout(30):
        while it._tasks:
            await asyncio.sleep(0.001)
    assert tried == ["192.0.2.1:1"] * 3


async def test_each_attempt_that_nobody_answers_is_told_and_no_refusal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeter, "AGAIN_S", (0.001, 0.004))
    told: list[Candidate] = []
    errors = [Unreached("no Hello from 192.0.2.1:1"), Mismatch("of another shoal"), Unreached("no Hello from it")]

    async def greet(address: str) -> pb.Hello:
        raise errors.pop()

    it = Greeter(greet, lambda candidate: False, told.append)
    hint = Candidate("192.0.2.1:1", "member x", "z", "x")
    it.consider(hint)
    async with asyncio.timeout(30):
        while it._tasks:
            await asyncio.sleep(0.001)
    assert told == [hint, hint]


async def test_who_was_named_by_the_user_is_greeted_again_when_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeter, "AGAIN_S", (0.001, 0.001))
    here: set[str] = set()
    greeted = asyncio.Event()

    async def greet(address: str) -> pb.Hello:
        here.add("z")
        greeted.set()
        return pb.Hello(identity=pb.Identity(node_id="z", address="elsewhere:1"))

    it = Greeter(greet, lambda candidate: candidate.node_id in here)
    it.consider(Candidate("192.0.2.1:1", "static"))
    async with asyncio.timeout(30):
        for _ in range(3):
            await greeted.wait()
            await turn()
            assert it._tasks
            here.clear()
            greeted.clear()
    await it.close()


async def test_another_node_at_that_address_is_told_like_no_answer() -> None:
    told: list[Candidate] = []

    async def greet(address: str) -> pb.Hello:
        return pb.Hello(identity=pb.Identity(node_id="y"))

    it = Greeter(greet, lambda candidate: False, told.append)
    hint = Candidate("192.0.2.1:1", "member x", "z", "x")
    it.consider(hint)
    await turn()
    assert (told, it._tasks) == ([hint], {})


async def test_a_hint_that_loads_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeter, "AGAIN_S", (0.001, 0.002))
    monkeypatch.setattr(greeter, "LOADING_S", 0.01)

    async def greet(address: str) -> pb.Hello:
        raise Mismatch(f"z is {greeter.LOADING}; ask again")

    it = Greeter(greet, lambda candidate: False)
    it.consider(Candidate("192.0.2.1:1", "member x", "z", "x"))
    async with asyncio.timeout(30):
        while it._tasks:
            await asyncio.sleep(0.001)


def test_of_many_members_coordinators_and_a_random_part_are_passed_on() -> None:
    nodes = [pb.Identity(node_id=f"n-{k:03}") for k in range(3 * hello.KNOWN_LIMIT)]
    known = [*nodes, pb.Identity(node_id="z", role=pb.ROLE_COORDINATOR)]
    told = [hello.of_coordinator("x", nodes[0], None, known).known for _ in range(100)]
    assert {len(one) for one in told} == {hello.KNOWN_LIMIT}
    assert all("z" in {m.node_id for m in one} for one in told)
    assert {m.node_id for one in told for m in one} == {m.node_id for m in known}


@pytest.mark.parametrize("document", ["[" * 100_000, '{"a":' * 100_000, "", "[]", "\x00"])
def test_a_document_that_cannot_be_read_is_a_difference_and_no_crash(document: str) -> None:
    ours = pb.Hello(protocol=1, shoal="x", task_fingerprint="a", task_document="{}")
    theirs = pb.Hello(protocol=1, shoal="x", task_fingerprint="b", task_document=document)
    ours.identity.node_id, theirs.identity.node_id = "a-000001", "b-000002"
    assert hello.compare(ours, theirs) == "b-000002 has another task than a-000001: its document cannot be read"
