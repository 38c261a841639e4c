"""What a coordinator process refuses, with workers made by hand: other shoals and runs, votes that cannot be."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator

import pytest
import torch
from nodes_kit import Shoal, shoal_in
from puppet import Puppet, puppet, settings_of
from torch import Tensor

from shoal import wire
from shoal.codecs import pack_signs
from shoal.enrolment import VIEW, Enrolment, Position
from shoal.errors import Mismatch
from shoal.messages import Kind, Message, Tag
from shoal.settings import Settings
from shoal.trainer.outbox import shape_of
from shoal.v1 import node_pb2 as pb

pytestmark = pytest.mark.live

D = 20
RUN = {"algorithm": "signum", "over": "coordinator", "rounds": 5}


@pytest.fixture(scope="module")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shoal]:
    """With a coordinator that listens. It is free for another run after each test, for all workers leave in order."""
    with shoal_in(tmp_path_factory.mktemp("coordinating")) as it:
        it.coordinate()
        yield it


@contextlib.asynccontextmanager
async def worker(shoal: Shoal, name: str, **run: object) -> AsyncIterator[Puppet]:
    """One of that name that has met nobody yet."""
    async with puppet(settings_of(shoal, **{**RUN, **run}), min_nodes=9) as it:
        it.me.node_id, it.me.name = f"{name}-000000", name
        yield it
        if it.current:
            it._do(it.membership.leave("finished", finished=True, now=0.0))
            await said(shoal, f"{name}-000000 is gone: left: finished")


async def address(shoal: Shoal) -> str:
    """The coordinator's."""
    assert shoal.coordinator is not None
    facts = await asyncio.to_thread(shoal.until, shoal.coordinator.facts, "the coordinator listens")
    return str(facts["address"])


async def said(shoal: Shoal, words: str) -> None:
    """Until the coordinator has written that."""
    assert shoal.coordinator is not None
    await asyncio.to_thread(shoal.until_logged, words, shoal.coordinator)


def send(it: Puppet, message: Message) -> None:
    """To the coordinator."""
    (peer,) = it.membership.roster.members
    assert message.vector is not None
    header = wire.encode(message, shape_of(message.vector))
    payload = memoryview(message.vector.numpy()).cast("B")
    it.transport.send(peer, it.current[peer], header, payload, lambda: None)


def enrol(it: Puppet) -> None:
    members = (it.me.node_id,)
    said = Enrolment(position=Position(0, 0), start="view", first=0, members=members, segments=(D,), carried=0)
    send(it, said.post())


def vote(it: Puppet, round: int = 0, elements: int = D) -> None:
    send(it, Message(Kind.POST, tag=Tag(VIEW, round, "vote", 1), vector=signs(elements)))


def signs(elements: int) -> Tensor:
    return pack_signs((torch.ones(elements) < 0).numpy())


async def test_votes_that_cannot_be_are_refused_by_name_and_the_round_goes_on(shoal: Shoal) -> None:
    async with worker(shoal, "worker") as it:
        await it.meet(await address(shoal))
        vote(it)
        assert "worker-000000 votes in round 0 and has not enrolled" in (await it.next(Kind.REFUSE)).header.reason
        enrol(it)
        vote(it, elements=9)
        assert "vote from worker-000000 has 2 of uint8, expected 3" in (await it.next(Kind.REFUSE)).header.reason
        vote(it, round=3)
        assert "worker-000000 votes in round 3, expected round 0" in (await it.next(Kind.REFUSE)).header.reason
        vote(it)
        answer = await it.next(Kind.POST)
        assert (answer.header.tag.round, answer.header.tag.purpose, answer.header.committed) == (0, "vote", True)
        await said(shoal, "refused worker-000000: worker-000000 votes in round 3, expected round 0")
        assert shoal.coordinator is not None
        status = await asyncio.to_thread(shoal.until, lambda: after_a_round(shoal), "it shows what it did")
        assert status["votes"] == {"counted": 1, "missing": 0, "late": 0, "double": 0, "refused": 3}


def after_a_round(shoal: Shoal) -> dict[str, dict[str, int]] | None:
    assert shoal.coordinator is not None
    serves = (shoal.coordinator.status() or {}).get("coordinator", {})
    return serves if serves.get("round") == 1 else None


async def test_another_run_shoal_or_coordinator_is_refused_both_ways_and_the_keys_are_named(shoal: Shoal) -> None:
    where = await address(shoal)
    async with worker(shoal, "one") as it, worker(shoal, "other", lr=0.5) as other, worker(shoal, "far") as far:
        await it.meet(where)
        with pytest.raises(Mismatch, match=r"other-000000 has another run than coordinator-.*lr: .* 0.003, .* has 0.5"):
            await other.meet(where)
        with pytest.raises(Mismatch, match="to coordinate another run, start the coordinator with another --state-dir"):
            await other.meet(where)
        far.settings = Settings(**{**RUN, "shoal": "far-away", "task": "quadratic", "partition": "iid"})
        with pytest.raises(Mismatch, match="far-000000 is of shoal 'far-away', coordinator-"):
            await far.meet(where)
        far.settings, far.me.role = it.settings, pb.ROLE_COORDINATOR
        with pytest.raises(Mismatch, match="is a coordinator itself"):
            await far.meet(where)
        assert list(it.membership.roster.members) == [json_of(shoal)["id"]]


async def test_a_coordinator_tells_each_where_the_others_are(shoal: Shoal) -> None:
    where = await address(shoal)
    async with worker(shoal, "first") as first, worker(shoal, "second") as second:
        await first.meet(where)
        await second.meet(where)
        heard = await second.transport.greet(where)
        assert {m.node_id: m.address for m in heard.known} == {
            "first-000000": first.me.address,
            "second-000000": second.me.address,
        }
        assert heard.identity.role == pb.ROLE_COORDINATOR


async def test_a_run_that_ended_in_order_leaves_the_coordinator_free_for_another(shoal: Shoal) -> None:
    where = await address(shoal)
    async with worker(shoal, "early") as early:
        await early.meet(where)
    async with worker(shoal, "late", lr=0.5) as late:
        await late.meet(where)


def json_of(shoal: Shoal) -> dict[str, str]:
    assert shoal.coordinator is not None
    facts: dict[str, str] = json.loads((shoal.coordinator.folder / "node.json").read_text())
    return facts
