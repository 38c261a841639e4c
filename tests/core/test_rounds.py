"""Posts arrive exactly once, whatever breaks; a ring adds up to the same bits everywhere."""

import asyncio

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.errors import BadFrame, BadVector
from shoal.messages import Kind, Message, Tag
from shoal.ring import piece_length, ring_sum
from shoal.rounds import Rounds


def tag(round: int, view: str = "v", purpose: str = "mix", step: int = 0) -> Tag:
    return Tag(view, round, purpose, step)


class Desk:
    """A `Rounds` whose messages wait for the test."""

    def __init__(self, *peers_up: str) -> None:
        self.out: list[tuple[str, Message]] = []
        self.arrived: list[tuple[Tag, str]] = []
        self.rounds = Rounds(
            send=lambda peer, message: self.out.append((peer, message)),
            arrived=lambda t, peer: self.arrived.append((t, peer)),
        )
        self.rounds.enter("v", 0)
        for peer in peers_up:
            self.rounds.up(peer)

    def kinds(self) -> list[Kind]:
        return [m.kind for _, m in self.out]


def post(round: int, value: float = 1.0, **more: object) -> Message:
    return Message(Kind.POST, tag=tag(round, **more), vector=torch.full((2,), value))  # type: ignore[arg-type]


def test_a_post_is_taken_once_and_confirmed() -> None:
    desk = Desk("b")
    desk.rounds.received("b", post(0))
    assert desk.arrived == [(tag(0), "b")]
    taken = desk.rounds.take("b", tag(0))
    assert taken is not None
    assert taken.tolist() == [1.0, 1.0]
    assert desk.rounds.take("b", tag(0)) is None
    assert desk.kinds() == [Kind.RECEIVED]


def test_a_repeated_post_is_confirmed_again_and_ignored() -> None:
    desk = Desk("b")
    for _ in range(2):
        desk.rounds.received("b", post(0))
    desk.rounds.take("b", tag(0))
    desk.rounds.received("b", post(0))
    assert desk.kinds() == [Kind.RECEIVED] * 3
    assert len(desk.arrived) == 1
    assert desk.rounds.take("b", tag(0)) is None


def test_what_was_not_confirmed_is_repeated_on_the_next_connection_in_order() -> None:
    desk = Desk("b")
    for t in range(2):
        desk.rounds.post("b", tag(t), torch.zeros(2))
    desk.rounds.received("b", Message(Kind.RECEIVED, tag=tag(0)))
    desk.rounds.down("b")
    desk.rounds.post("b", tag(2), torch.zeros(2))
    assert len(desk.out) == 2
    desk.rounds.up("b")
    assert [m.tag for _, m in desk.out[2:]] == [tag(1), tag(2)]
    assert desk.rounds.waits() == ["b"]


def test_a_neighbour_may_be_one_round_ahead_never_two() -> None:
    desk = Desk("b")
    desk.rounds.begin(3)
    desk.rounds.received("b", post(4))
    with pytest.raises(BadFrame, match="b is in round 5, expected at most 4"):
        desk.rounds.received("b", post(5))


def test_a_post_of_a_view_that_is_not_installed_yet_waits_for_it() -> None:
    desk = Desk("b")
    desk.rounds.received("b", post(0, view="next"))
    assert desk.out == []
    desk.rounds.enter("next", 0)
    assert desk.arrived == [(tag(0, view="next"), "b")]
    assert desk.kinds() == [Kind.RECEIVED]


def test_a_new_view_drops_the_posts_of_the_old_one() -> None:
    desk = Desk("b")
    desk.rounds.post("b", tag(0), torch.zeros(2))
    desk.rounds.received("b", post(0))
    desk.rounds.enter("next", 0)
    assert desk.rounds.unconfirmed == 0
    assert desk.rounds.take("b", tag(0)) is None


def test_a_post_that_is_not_finite_names_its_sender_and_is_not_confirmed() -> None:
    desk = Desk("b")
    with pytest.raises(BadVector, match="vector from b in round 0 holds NaN or Inf"):
        desk.rounds.received("b", post(0, value=float("nan")))
    assert desk.out == []


@pytest.mark.parametrize("message", [Message(Kind.POST, tag=tag(0)), Message(Kind.RECEIVED)])
def test_a_post_without_a_vector_or_a_tag_is_refused(message: Message) -> None:
    with pytest.raises(BadFrame, match="from b"):
        Desk("b").rounds.received("b", message)


@given(st.lists(st.sampled_from(["deliver a", "deliver b", "cut", "mend", "work a", "work b"]), max_size=120))
def test_no_edge_is_ever_one_sided(script: list[str]) -> None:
    """Two nodes swap a number a round over a link that breaks at any moment; both see every round, once."""
    desks = {"a": Desk("b"), "b": Desk("a")}
    sent = {"a": -1, "b": -1}
    seen: dict[str, list[float]] = {"a": [], "b": []}
    wires: dict[str, list[Message]] = {"a": [], "b": []}  # by receiver
    up = True
    other = {"a": "b", "b": "a"}

    def collect(name: str) -> None:
        out = desks[name].out
        if up:
            wires[other[name]] += [m for _, m in out]
        out.clear()

    def work(name: str) -> None:
        desk, t = desks[name].rounds, sent[name]
        if t >= 0:
            got = desk.take(other[name], tag(t))
            if got is None:
                return
            seen[name].append(got[0].item())
        sent[name] = t + 1
        desk.begin(t + 1)
        desk.post(other[name], tag(t + 1), torch.full((2,), float(t + 1)))
        collect(name)

    for order in [*script, "mend", *(["deliver a", "deliver b", "work a", "work b"] * 6)]:
        verb, _, name = order.partition(" ")
        if verb == "work":
            work(name)
        elif verb == "deliver" and wires[name]:
            desks[name].rounds.received(other[name], wires[name].pop(0))
            collect(name)
        elif verb == "cut" and up:
            up = False
            for x in "ab":
                desks[x].rounds.down(other[x])
                wires[x].clear()
        elif verb == "mend" and not up:
            up = True
            for x in "ab":
                desks[x].rounds.up(other[x])
                collect(x)
    assert all(seen[x] == [float(t) for t in range(len(seen[x]))] for x in "ab")
    assert abs(sent["a"] - sent["b"]) <= 1
    assert min(len(s) for s in seen.values()) >= 1


def run_ring(vectors: list[Tensor]) -> list[Tensor]:
    n = len(vectors)
    mail: dict[tuple[int, int], asyncio.Future[Tensor]] = {}

    async def everyone() -> list[Tensor]:
        loop = asyncio.get_running_loop()

        def box(rank: int, step: int) -> "asyncio.Future[Tensor]":
            return mail.setdefault((rank, step), loop.create_future())

        async def member(rank: int) -> Tensor:
            async def swap(step: int, piece: Tensor) -> Tensor:
                box((rank + 1) % n, step).set_result(piece)
                got = await box(rank, step)
                assert got.numel() == piece_length(vectors[0].numel(), n, rank, step)
                return got

            return await ring_sum(rank, n, vectors[rank], swap)

        return await asyncio.gather(*(member(r) for r in range(n)))

    return asyncio.run(everyone())


@given(n=st.integers(1, 9), d=st.integers(0, 23), seed=st.integers(0, 99))
def test_a_ring_gives_every_member_the_same_sum_whatever_n_and_d(n: int, d: int, seed: int) -> None:
    vectors = list(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))
    before = [v.clone() for v in vectors]
    sums = run_ring(vectors)
    assert all(torch.equal(s, sums[0]) for s in sums), "bit for bit"
    assert torch.allclose(sums[0], torch.stack(before).sum(0), atol=1e-5)
    assert all(torch.equal(v, b) for v, b in zip(vectors, before, strict=True)), "inputs are left alone"
