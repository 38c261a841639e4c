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

    async def _greet(self, address: str) -> None:
        self.greeted.append(address)
        await self.answer.wait()


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

    async def silent(address: str) -> None:
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

    async def greet(address: str) -> None:
        raise errors.pop()

    it = Greeter(greet, lambda candidate: False, told.append)
    hint = Candidate("192.0.2.1:1", "member x", "z", "x")
    it.consider(hint)
    async with asyncio.timeout(30):
        while it._tasks:
            await asyncio.sleep(0.001)
    assert told == [hint, hint]


@pytest.mark.parametrize("document", ["[" * 100_000, '{"a":' * 100_000, "", "[]", "\x00"])
def test_a_document_that_cannot_be_read_is_a_difference_and_no_crash(document: str) -> None:
    ours = pb.Hello(protocol=1, shoal="x", task_fingerprint="a", task_document="{}")
    theirs = pb.Hello(protocol=1, shoal="x", task_fingerprint="b", task_document=document)
    ours.identity.node_id, theirs.identity.node_id = "a-000001", "b-000002"
    assert hello.compare(ours, theirs) == "b-000002 has another task than a-000001: its document cannot be read"
