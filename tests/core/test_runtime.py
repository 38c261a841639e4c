"""What a worker does around its algorithm: when its model is final, how it leaves, and how long it is kept busy."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import torch
from small_tasks import Line, learner

from shoal.carrier import View
from shoal.errors import BadVector
from shoal.messages import Kind, Message
from shoal.pairing import FIRST_PATIENCE_S
from shoal.runtime import Runtime
from shoal.settings import Settings

T = TypeVar("T")


class Host:
    """`carrier.Host` whose clock the test turns. The run has its gradients already, so nothing is computed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[tuple[str, Kind]] = []
        self.counts = 0
        self.lends = True

    def send(self, peer: str, message: Message) -> None:
        self.sent.append((peer, message.kind))

    def room(self, elements: int, dtype: torch.dtype) -> torch.Tensor | None:
        return torch.empty(elements, dtype=dtype) if self.lends else None

    def is_read(self, memory: torch.Tensor) -> bool:
        return False

    def compute(self, work: Callable[[], T], cost: float = 1.0) -> Awaitable[T]:
        raise NotImplementedError

    def computes(self) -> bool:
        return False

    def clock(self) -> float:
        return self.now

    def total_gradients(self) -> int:
        return 1

    def gradients_of(self, member: str) -> int:
        return {"a": 10, "b": 30, "c": 20}.get(member, 0)

    def counted(self) -> None:
        self.counts += 1

    def record(self, event: str, **fields: Any) -> None:
        """Nobody reads it."""

    def warn(self, text: str) -> None:
        """Nobody reads it."""


class Worker:
    """Worker b, which is done with its part and serves a, c and d."""

    def __init__(self, *, state: torch.dtype = torch.float32, **options: Any) -> None:
        self.host = Host()
        made = learner(Line())
        self.d = made.model.layout.d
        settings = Settings(**{"algorithm": "ad-psgd", "rounds": 1, **options})
        self.runtime = Runtime("b", 1, made, torch.zeros(self.d, dtype=state), settings, self.host)
        for peer in "acd":
            self.runtime.up(peer)

    def hears(self, peer: str, kind: Kind, at_s: float = 0.0) -> list[tuple[str, Kind]]:
        """What it says to that."""
        self.host.now = at_s
        before = len(self.host.sent)
        vector = torch.ones(self.d) if kind is Kind.VALUES else None
        self.runtime.received(peer, Message(kind, seq=1, initiator=1, vector=vector))
        return self.host.sent[before:]


@pytest.fixture
async def b() -> Worker:
    worker = Worker()
    await worker.runtime.run()
    return worker


# --- the mean -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["its commit comes", "its connection breaks, and the answer comes"])
async def test_a_model_is_not_final_while_an_average_is_promised(b: Worker, how: str) -> None:
    b.hears("a", Kind.OFFER)
    assert b.hears("a", Kind.VALUES) == [("a", Kind.READY)]
    mean = asyncio.get_running_loop().create_task(b.runtime.form_mean(View("v", ("a", "b", "c"), (1, 1, 1))))
    await asyncio.sleep(0)
    assert Kind.POST not in dict(b.host.sent).values()
    if how == "its commit comes":
        b.hears("a", Kind.COMMIT)
    else:
        b.runtime.down("a")
        b.runtime.up("a")
        b.runtime.received("a", Message(Kind.VERDICT, seq=1, initiator=1, committed=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ("c", Kind.POST) in b.host.sent
    assert torch.equal(b.runtime.state, torch.full((b.d,), 0.5))
    mean.cancel()


async def test_who_is_not_in_the_mean_is_not_waited_for(b: Worker) -> None:
    b.hears("d", Kind.OFFER)
    b.hears("d", Kind.VALUES)
    b.runtime.down("d")
    assert b.runtime.settlement.in_doubt == 1
    mean = asyncio.get_running_loop().create_task(b.runtime.form_mean(View("v", ("a", "b", "c"), (1, 1, 1))))
    await asyncio.sleep(0)
    assert ("c", Kind.POST) in b.host.sent
    mean.cancel()


async def test_a_gradient_that_begins_while_the_model_is_out_leaves_it_where_it_lies(b: Worker) -> None:
    async def at_once(work: Callable[[], T], cost: float = 1.0) -> T:
        return work()

    b.host.compute = at_once  # type: ignore[method-assign]
    b.hears("a", Kind.OFFER)
    place = b.runtime.state.data_ptr()
    await b.runtime.gradient()
    assert b.runtime.state.data_ptr() == place
    assert b.runtime.x.data_ptr() != place, "it is out, so whoever changes it has it elsewhere"


# --- the pairwise correction ----------------------------------------------------------------------------------------


def test_an_average_that_is_settled_after_a_resume_counts_though_the_algorithm_has_not_begun() -> None:
    b = Worker(correction="pairwise")
    b.runtime.memory["moved"] = torch.full((b.d,), 2.0)
    document = {"doubts": [["a", 1, 1]], "promised": [["a", 1, 1]]}
    b.runtime.settlement.restore(document, {"doubt.0": torch.full((b.d,), 0.5)})
    b.runtime.received("a", Message(Kind.VERDICT, seq=1, initiator=1, committed=True))
    assert torch.equal(b.runtime.state, torch.full((b.d,), 0.5))
    assert torch.equal(b.runtime.moved, torch.full((b.d,), 2.5))


@pytest.mark.parametrize("lends", [True, False])
async def test_what_an_average_moves_is_remembered_wherever_the_model_lies(lends: bool) -> None:
    b = Worker(correction="pairwise")
    b.host.lends = lends
    await b.runtime.run()
    for kind in (Kind.OFFER, Kind.VALUES, Kind.COMMIT):
        b.hears("a", kind)
    assert torch.equal(b.runtime.state, torch.full((b.d,), 0.5))
    assert torch.equal(b.runtime.moved, torch.full((b.d,), 0.5))


@pytest.mark.parametrize(("members", "evenness"), [("abc", 1 / 2), ("bc", 4 / 5), ("abz", 0), ("b", 1)])
def test_evenness_is_the_slowest_members_gradients_over_the_mean_of_all(members: str, evenness: float) -> None:
    """a has 10 gradients, b 30, c 20, and of z nothing is known."""
    runtime = Worker().runtime
    runtime.install(View("v", tuple(members), (1,) * len(members)))
    assert runtime.evenness == pytest.approx(evenness)


# --- leaving --------------------------------------------------------------------------------------------------------


async def test_who_is_about_to_leave_settles_what_it_serves_and_begins_nothing(b: Worker) -> None:
    asked = b.runtime.begin(b.runtime.average("c"))
    await asyncio.sleep(0)
    b.hears("a", Kind.OFFER)
    b.runtime.retire()
    assert b.host.sent[-1] == ("c", Kind.ABORT)
    assert b.hears("d", Kind.OFFER) == [("d", Kind.BUSY)]
    assert b.hears("a", Kind.VALUES) == [("a", Kind.READY)]
    assert b.hears("a", Kind.COMMIT) == [("a", Kind.CONFIRM)]
    assert b.runtime.settlement.idle
    with pytest.raises(asyncio.CancelledError):
        await asked


# --- codecs ---------------------------------------------------------------------------------------------------------


async def test_packed_bytes_on_an_edge_that_packs_nothing_are_refused_by_name(b: Worker) -> None:
    assert b.hears("a", Kind.OFFER) == [("a", Kind.GRANT), ("a", Kind.ACCEPT)]
    packed = torch.zeros(4 * b.d, dtype=torch.uint8)
    with pytest.raises(BadVector, match=f"from a has {4 * b.d}"):
        b.runtime.received("a", Message(Kind.VALUES, seq=1, initiator=1, vector=packed))


async def test_a_double_precision_run_knows_one_codec() -> None:
    worker = Worker(precision="f64", state=torch.float64)
    await worker.runtime.run()
    worker.runtime.received("a", Message(Kind.OFFER, seq=1, initiator=1, codec="q8"))
    assert worker.host.sent == [("a", Kind.REFUSE)]
    worker.runtime.received("a", Message(Kind.OFFER, seq=2, initiator=1))
    assert worker.host.sent[1:] == [("a", Kind.GRANT), ("a", Kind.ACCEPT)]


# --- patience -------------------------------------------------------------------------------------------------------


async def test_an_initiator_that_says_nothing_more_gives_way_to_another(b: Worker) -> None:
    assert b.hears("a", Kind.OFFER) == [("a", Kind.GRANT), ("a", Kind.ACCEPT)]
    assert b.hears("c", Kind.OFFER, at_s=FIRST_PATIENCE_S + 1) == [
        ("a", Kind.REFUSE),
        ("c", Kind.GRANT),
        ("c", Kind.ACCEPT),
    ]


@pytest.mark.parametrize(("times", "gives_up"), [(9, False), (11, True)])
async def test_who_is_held_to_a_rate_gives_a_first_average_ten_times_longer_than_its_vector_takes(
    times: int, gives_up: bool
) -> None:
    worker = Worker(max_rate="64kbit")
    await worker.runtime.run()
    worker.hears("a", Kind.OFFER)
    heard = worker.hears("c", Kind.OFFER, at_s=FIRST_PATIENCE_S + times * 4 * worker.d / 8000)
    assert (("a", Kind.REFUSE) in heard) is gives_up


async def test_the_time_of_an_offer_that_was_held_counts_from_its_turn(b: Worker) -> None:
    assert b.hears("a", Kind.OFFER) == [("a", Kind.GRANT), ("a", Kind.ACCEPT)]
    assert b.hears("c", Kind.OFFER, at_s=1) == []
    assert b.hears("a", Kind.ABORT, at_s=FIRST_PATIENCE_S - 1) == [("c", Kind.GRANT), ("c", Kind.ACCEPT)]
    assert b.hears("d", Kind.OFFER, at_s=FIRST_PATIENCE_S + 1) == []
    assert b.runtime.settlement.serving == ("c", 1)
    b.hears("d", Kind.ABORT)
    assert ("c", Kind.REFUSE) in b.hears("d", Kind.OFFER, at_s=2 * FIRST_PATIENCE_S + 1)


def test_a_step_before_any_gradient_of_this_process_has_no_loss_to_be_judged_by() -> None:
    """One that was killed comes back, and the first thing that it does is to take the answer of a round it missed."""
    worker = Worker()
    worker.runtime.took_over = True
    worker.runtime.count()
    assert worker.host.counts == 1
    assert worker.runtime.computed.last_loss is None
    assert (worker.runtime.steps, worker.runtime.gradients) == (1, 0)


async def test_a_side_of_a_split_run_wants_the_gradients_of_the_whole() -> None:
    b = Worker()
    b.runtime.install(View("v", ("a", "b", "c", "d"), (1, 1, 1, 1)))
    assert b.runtime.progress == 1 / 4
    b.runtime.install(View("w", ("a", "b"), (1, 1), parent="v", most=4))
    assert b.runtime.progress == 1 / 4
    b.runtime.install(View("x", ("a", "b", "c", "d", "e"), (1, 1, 1, 1, 1), parent="w", most=5))
    assert b.runtime.progress == 1 / 5


async def test_who_waits_for_a_model_stands_where_its_own_does() -> None:
    d2 = Worker(algorithm="d2")
    d2.runtime.install(View("v", ("a", "b"), (1, 1), round=3))
    assert d2.runtime.pause() == 3
    d2.runtime.install(View("w", ("a", "b", "c"), (1, 1, 1), round=7, parent="v"))
    d2.runtime.lacks_model = True
    assert d2.runtime.pause() == 3
    d2.runtime.install(View("x", ("a", "b"), (1, 1), round=9, parent="w"))
    d2.runtime.lacks_model = True
    assert d2.runtime.pause() == 3, "nor has it come meanwhile"
    d2.runtime.install(View("y", ("a", "b"), (1, 1), round=5, parent="x"))
    assert d2.runtime.pause() == 5
