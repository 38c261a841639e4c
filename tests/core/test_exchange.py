"""The settlement of pairwise averages: every message, every refusal, and random histories that never break the sum."""

import dataclasses
import itertools
from collections import deque

import pytest
import torch
from codecs_kit import CODECS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from shoal.exchange import Settlement
from shoal.messages import Kind, Message
from shoal.pair_codec import PairCodecs
from shoal.serving import MAX_IN_DOUBT
from shoal.settling import CODECS_LIMIT, Outcome, Role, Tally


class Party:
    """A settlement with a vector; what it says waits in `out` until the test delivers it."""

    def __init__(self, name: str, x: Tensor, incarnation: int = 1, *, codec: str = "at once") -> None:
        self.name, self.x = name, x.clone()
        self.out: deque[tuple[str, Message]] = deque()
        self.ended: list[tuple[Role, str, Outcome]] = []
        self.s = Settlement(
            name,
            incarnation,
            snapshot=lambda: self.x.clone(),
            add=lambda delta: delta.add_to(self.x),
            send=lambda peer, message: self.out.append((peer, message)),
            ended=lambda role, peer, seq, outcome, reason: self.ended.append((role, peer, outcome)),
            codecs=PairCodecs(codec, CODECS),
        )

    def says(self) -> list[Kind]:
        return [message.kind for _, message in self.out]


def copied(message: Message) -> Message:
    """As it arrives: its vector is the receiver's own."""
    return message if message.vector is None else dataclasses.replace(message, vector=message.vector.clone())


def parties(*names: str, codec: str = "at once") -> list[Party]:
    return [Party(name, torch.full((3,), float(k)), codec=codec) for k, name in enumerate(names)]


def deliver(everyone: list[Party], until: Kind | None = None) -> None:
    """Hand over all messages, round and round, up to and without the first of kind `until`."""
    by_name = {p.name: p for p in everyone}
    while any(p.out for p in everyone):
        for party in everyone:
            if party.out:
                if party.out[0][1].kind is until:
                    return
                to, message = party.out.popleft()
                by_name[to].s.received(party.name, copied(message))


@pytest.mark.parametrize("codec", CODECS)
def test_an_average_leaves_both_with_the_mean_and_nothing_open(codec: str) -> None:
    a, b = parties("a", "b", codec=codec)
    a.s.offer("b")
    deliver([a, b])
    assert a.x.tolist() == b.x.tolist() == [0.5, 0.5, 0.5]
    assert a.ended == [(Role.ACTIVE, "b", Outcome.DONE)]
    assert b.ended == [(Role.PASSIVE, "a", Outcome.DONE)]
    assert a.s.idle
    assert b.s.idle


def test_both_models_are_on_their_way_at_once_where_the_codec_lets_them() -> None:
    a, b = parties("a", "b")
    a.s.offer("b")
    hand(a, b)
    assert b.says() == [Kind.GRANT, Kind.ACCEPT]
    hand(b, a)
    assert a.says() == [Kind.VALUES]  # though r has not come
    a, b = parties("a", "b", codec="in turn")
    a.s.offer("b")
    hand(a, b)
    assert b.says() == [Kind.ACCEPT]


# --- codecs: "in turn" is the one of fewer bytes ----------------------------------------------------------------------


@pytest.mark.parametrize(("mine", "theirs"), [("at once", "in turn"), ("in turn", "at once")])
def test_of_two_wishes_both_ends_take_the_same_and_it_is_the_smaller(mine: str, theirs: str) -> None:
    a, b = Party("a", torch.zeros(3), codec=mine), Party("b", torch.ones(3), codec=theirs)
    a.s.offer("b")
    hand(a, b)
    assert [(message.kind, message.codec) for _, message in b.out] == [(Kind.ACCEPT, "in turn")]
    deliver([a, b])
    assert a.x.tolist() == b.x.tolist() == [0.5, 0.5, 0.5]
    assert a.s.tally.codecs == {"b": "in turn"}
    assert b.s.tally.codecs == {"a": "in turn"}


def test_a_node_averages_with_each_neighbour_by_the_codec_of_their_edge() -> None:
    a, b, c = parties("a", "b", "c")
    c = Party("c", c.x, codec="in turn")
    for peer in ("b", "c", "b"):
        a.s.offer(peer)
        deliver([a, b, c])
    assert a.s.tally.codecs == {"c": "in turn", "b": "at once"}
    assert a.x[0] + b.x[0] + c.x[0] == 3


def test_crossing_offers_of_unlike_wishes_become_one_average_by_the_smaller() -> None:
    a, b = Party("a", torch.zeros(3)), Party("b", torch.ones(3), codec="in turn")
    a.s.offer("b")
    b.s.offer("a")
    deliver([a, b])
    assert a.x.tolist() == b.x.tolist() == [0.5, 0.5, 0.5]
    assert a.s.tally.codecs == {"b": "in turn"}
    assert (Role.ACTIVE, "a", Outcome.DONE) in b.ended


def test_an_offer_in_an_unknown_codec_is_refused_with_the_known_ones_and_holds_nobody_up() -> None:
    b, c = parties("b", "c")
    b.s.received("a", Message(Kind.OFFER, seq=1, initiator=1, codec="zstd"))
    ((_, answer),) = b.out
    assert answer.kind is Kind.REFUSE
    assert answer.reason == "codec 'zstd' is unknown here; known: at once, in turn"
    b.out.clear()
    assert b.s.idle
    c.s.offer("b")
    deliver([b, c])
    assert b.ended == [(Role.PASSIVE, "c", Outcome.DONE)]


def test_an_offer_in_an_unknown_codec_that_crosses_an_own_one_ends_that_too() -> None:
    (b,) = parties("b")
    b.s.offer("a")
    b.out.clear()
    b.s.received("a", Message(Kind.OFFER, seq=1, initiator=1, codec="zstd"))
    assert b.says() == [Kind.REFUSE]
    assert b.ended == [(Role.ACTIVE, "a", Outcome.GONE)]
    assert b.s.idle


@pytest.mark.parametrize(
    ("kind", "codec", "reason"),
    [
        (Kind.GRANT, "at once", "codec at once has more bytes than in turn, which was asked for"),
        (Kind.GRANT, "zstd", "codec 'zstd' is unknown here; known: at once, in turn"),
        (Kind.GRANT, "in turn", "in turn goes in turn, and has no GRANT"),
        (Kind.ACCEPT, "", "codec at once has more bytes than in turn, which was asked for"),
    ],
)
def test_an_answer_in_a_codec_that_must_not_be_ends_the_average(kind: Kind, codec: str, reason: str) -> None:
    a = Party("a", torch.zeros(3), codec="in turn")
    a.s.offer("b")
    a.out.clear()
    a.s.received("b", Message(kind, seq=1, codec=codec, vector=torch.ones(3) if kind is Kind.ACCEPT else None))
    ((_, answer),) = a.out
    assert (answer.kind, answer.reason) == (Kind.ABORT, reason)
    assert a.ended == [(Role.ACTIVE, "b", Outcome.REFUSED)]
    assert a.s.idle
    assert a.x.tolist() == [0.0] * 3


def test_a_node_remembers_the_codecs_of_so_many_neighbours() -> None:
    tally = Tally()
    for k in range(CODECS_LIMIT + 5):
        tally.goes(f"n{k}", "f32")
    tally.goes("n7", "sign")
    assert len(tally.codecs) == CODECS_LIMIT
    assert list(tally.codecs.items())[-1] == ("n7", "sign")
    assert "n4" not in tally.codecs


def test_a_vector_that_comes_without_its_grant_ends_the_average_on_both_sides() -> None:
    a, b = parties("a", "b")
    a.s.offer("b")
    hand(a, b)
    b.out.popleft()
    deliver([a, b])
    assert a.ended == [(Role.ACTIVE, "b", Outcome.REFUSED)]
    assert a.s.idle
    assert b.s.idle


def test_gradients_that_land_meanwhile_are_kept() -> None:
    a, b = parties("a", "b")
    a.s.offer("b")
    deliver([a, b], until=Kind.READY)
    a.x.add_(10.0)
    b.x.add_(100.0)
    deliver([a, b])
    assert a.x.tolist() == [10.5] * 3
    assert b.x.tolist() == [100.5] * 3


def hand(source: Party, to: Party) -> None:
    """The first message that waits at `source`, which is for `to`."""
    name, message = source.out.popleft()
    assert name == to.name
    to.s.received(source.name, copied(message))


def test_who_serves_another_holds_one_more_offer_and_answers_the_next_busy() -> None:
    a, b, c, d = parties("a", "b", "c", "d")
    a.s.offer("b")
    deliver([a, b], until=Kind.GRANT)
    c.s.offer("b")
    hand(c, b)
    assert b.says() == [Kind.GRANT, Kind.ACCEPT]
    d.s.offer("b")
    hand(d, b)
    assert b.says() == [Kind.GRANT, Kind.ACCEPT, Kind.BUSY]
    deliver([a, b, c, d])
    assert d.ended == [(Role.ACTIVE, "b", Outcome.BUSY)]
    assert c.ended == [(Role.ACTIVE, "b", Outcome.DONE)]
    assert sum(p.x[0].item() for p in (a, b, c)) == pytest.approx(3.0)


def test_an_offer_that_is_held_ends_with_its_connection_or_its_initiators_word() -> None:
    for word in ("break", "withdraw"):
        a, b, c = parties("a", "b", "c")
        a.s.offer("b")
        deliver([a, b], until=Kind.GRANT)
        c.s.offer("b")
        hand(c, b)
        if word == "break":
            b.s.down("c")
            c.s.down("b")
        else:
            c.s.withdraw()
        deliver([a, b, c])
        assert all(p.s.idle for p in (a, b, c))
        assert c.x.tolist() == [2.0] * 3


@pytest.mark.parametrize("order", ["lower holds", "higher holds"])
def test_an_own_offer_to_a_peer_whose_offer_is_held_becomes_one_exchange_with_it(order: str) -> None:
    a, b, c = parties("a", "b", "c")
    holder, other = (a, b) if order == "lower holds" else (b, a)
    c.s.offer(holder.name)
    deliver([c, holder], until=Kind.GRANT)
    other.s.offer(holder.name)
    hand(other, holder)  # held
    holder.s.offer(other.name)
    deliver([a, b, c])
    assert all(p.s.idle for p in (a, b, c))
    assert (Role.ACTIVE, holder.name, Outcome.DONE) in other.ended
    assert (Role.ACTIVE, other.name, Outcome.DONE) in holder.ended
    assert a.s.tally.active + b.s.tally.active == 1
    assert sum(p.x[0].item() for p in (a, b, c)) == pytest.approx(3.0)


def test_crossing_offers_of_one_pair_become_one_exchange() -> None:
    a, b = parties("a", "b")
    a.s.offer("b")
    b.s.offer("a")
    deliver([a, b])
    assert a.x.tolist() == b.x.tolist() == [0.5] * 3
    assert (a.s.tally.active, b.s.tally.passive) == (1, 1)
    assert (Role.ACTIVE, "a", Outcome.DONE) in b.ended  # the higher id's own offer is done, too
    assert a.s.idle
    assert b.s.idle


def test_offers_in_a_cycle_do_not_deadlock() -> None:
    """A -> B -> C -> A, the case that locks cannot survive (1710.06952 needs a bipartite graph for it)."""
    everyone = parties("a", "b", "c")
    for party, peer in zip(everyone, "bca", strict=True):
        party.s.offer(peer)
    deliver(everyone)
    assert all(p.s.idle for p in everyone)
    assert sum(p.s.tally.active for p in everyone) >= 1
    assert sum(p.x[0].item() for p in everyone) == pytest.approx(3.0)


def test_while_an_own_snapshot_is_out_an_offer_waits() -> None:
    """Two averages on one stale snapshot would leave no weight on the old self."""
    a, b, c = parties("a", "b", "c")
    a.s.offer("b")
    deliver([a, b], until=Kind.VALUES)
    held = a.out.popleft()
    c.s.offer("a")
    hand(c, a)
    assert a.says() == []
    a.out.append(held)
    deliver([a, b, c])
    assert c.ended == [(Role.ACTIVE, "a", Outcome.DONE)]
    assert a.x.tolist() == c.x.tolist() == [1.25] * 3


def test_an_own_offer_accepted_while_another_is_served_goes_on_and_a_second_one_does_not() -> None:
    a, b, c, d = parties("a", "b", "c", "d")
    a.s.offer("b")
    b.s.offer("c")
    hand(a, b)  # b serves a
    for_a = [(to, message) for to, message in b.out if to == "a"]
    b.out = deque((to, message) for to, message in b.out if to != "a")
    deliver([b, c])  # and finishes its own with c meanwhile
    assert (Role.ACTIVE, "c", Outcome.DONE) in b.ended
    b.s.offer("d")
    deliver([b, d])
    assert (Role.ACTIVE, "d", Outcome.BUSY) in b.ended  # a third on the snapshot that a has
    assert [message.kind for _, message in for_a] == [Kind.GRANT, Kind.ACCEPT]
    b.out.extend(for_a)
    deliver([a, b, c, d])
    assert all(p.s.idle for p in (a, b, c, d))
    assert sum(p.x[0].item() for p in (a, b, c, d)) == pytest.approx(6.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_changes_nothing_on_either_side(bad: float) -> None:
    a, b = parties("a", "b")
    b.x[1] = bad
    a.s.offer("b")
    deliver([a, b])
    assert a.x.tolist() == [0.0] * 3
    assert a.s.tally.refused == 1
    c, d = parties("c", "d")
    c.x[1] = bad
    c.s.offer("d")
    deliver([c, d])
    assert d.x.tolist() == [1.0] * 3
    assert d.s.tally.refused == 1
    assert c.s.idle
    assert d.s.idle


IN_TURN = [Kind.OFFER, Kind.ACCEPT, Kind.VALUES, Kind.READY, Kind.COMMIT, Kind.CONFIRM]


@pytest.mark.parametrize(
    ("codec", "lost"),
    [*(("in turn", kind) for kind in IN_TURN), *(("at once", kind) for kind in (Kind.GRANT, *IN_TURN))],
)
def test_a_break_before_any_message_is_settled_on_both_ends_or_on_neither(codec: str, lost: Kind) -> None:
    a, b = parties("a", "b", codec=codec)
    a.s.offer("b")
    deliver([a, b], until=lost)
    a.out.clear()
    b.out.clear()
    for party, peer in ((a, "b"), (b, "a")):
        party.s.down(peer)
    assert a.x[0].item() + b.x[0].item() in (1.0, 1.5)  # 1.5: a has applied its half, b is in doubt
    for party, peer in ((a, "b"), (b, "a")):
        party.s.up(peer)
    deliver([a, b])
    assert a.x[0].item() + b.x[0].item() == 1.0
    assert (a.x[0].item() == 0.5) == (lost in (Kind.COMMIT, Kind.CONFIRM))
    assert a.s.idle
    assert b.s.idle
    assert a.s.tally.lost == 0


def test_a_peer_that_died_after_its_promise_and_forgot_it_is_counted_as_lost() -> None:
    a, b = parties("a", "b")
    a.s.offer("b")
    deliver([a, b], until=Kind.COMMIT)
    a.out.clear()
    a.s.down("b")
    again = Party("b", torch.ones(3), incarnation=2)  # from a checkpoint before the exchange
    a.s.up("b")
    deliver([a, again])
    assert a.s.tally.lost == 1
    assert again.x.tolist() == [1.0] * 3
    assert a.s.idle


def test_a_question_before_the_decision_decides_no() -> None:
    a, b = parties("a", "b")
    seq = a.s.offer("b")
    a.s.received("b", Message(Kind.QUERY, seq=seq, initiator=1))
    assert a.ended == [(Role.ACTIVE, "b", Outcome.GONE)]
    assert a.out[-1][1].kind is Kind.VERDICT
    assert a.out[-1][1].committed is False
    deliver([a, b])
    assert b.s.idle  # the ACCEPT that was on its way is aborted


def test_the_initiator_may_withdraw_until_it_commits() -> None:
    for until in (Kind.OFFER, Kind.GRANT, Kind.ACCEPT, Kind.VALUES, Kind.READY):
        a, b = parties("a", "b")
        a.s.offer("b")
        deliver([a, b], until=until)
        a.s.withdraw()
        deliver([a, b])
        assert a.ended == [(Role.ACTIVE, "b", Outcome.BUSY)]
        assert (a.x[0].item(), b.x[0].item()) == (0.0, 1.0)
        assert a.s.idle
        assert b.s.idle


def test_who_serves_a_silent_initiator_frees_itself_and_keeps_what_it_promised() -> None:
    a, b = parties("a", "b")
    a.s.offer("b")
    deliver([a, b], until=Kind.COMMIT)
    b.s.stop_waiting()
    assert b.s.serving is None
    assert b.s.in_doubt == 1
    deliver([a, b])  # the commit comes late, and counts
    assert b.x.tolist() == [0.5] * 3
    assert b.s.in_doubt == 0


def test_too_many_deltas_in_doubt_make_a_node_busy() -> None:
    b = Party("b", torch.zeros(3))
    for k in range(MAX_IN_DOUBT):
        a = Party(f"a{k}", torch.ones(3))
        a.s.offer("b")
        deliver([a, b], until=Kind.COMMIT)
        b.s.down(a.name)
    assert b.s.in_doubt == MAX_IN_DOUBT
    b.s.received("z", Message(Kind.OFFER, seq=1, initiator=1))
    assert b.says() == [Kind.BUSY]


def test_a_new_incarnation_without_the_record_says_no_and_with_it_yes() -> None:
    for with_record in (False, True):
        a, b = parties("a", "b")
        a.s.offer("b")
        deliver([a, b], until=Kind.COMMIT)
        document, tensors = a.s.export()
        again = Party("a", a.x if with_record else torch.zeros(3), incarnation=2)
        if with_record:
            again.s.restore(document, tensors)
        b.s.down("a")
        b.s.up("a")
        deliver([again, b])
        assert again.x[0].item() + b.x[0].item() == 1.0
        assert b.s.in_doubt == 0


def test_a_promise_goes_into_the_checkpoint_and_is_asked_about_after_it() -> None:
    a, b = parties("a", "b")
    a.s.offer("b")
    deliver([a, b], until=Kind.COMMIT)
    document, tensors = b.s.export()
    again = Party("b", b.x, incarnation=2)
    again.s.restore(document, tensors)
    a.out.clear()
    a.s.down("b")
    again.s.up("a")
    deliver([a, again])
    assert again.x.tolist() == [0.5] * 3


def test_two_own_exchanges_at_once_are_our_own_mistake() -> None:
    a, _ = parties("a", "b")
    a.s.offer("b")
    with pytest.raises(RuntimeError, match="a offers c an average while one with b is open"):
        a.s.offer("c")


@settings(max_examples=150, stateful_step_count=80, deadline=None)
class RandomHistories(RuleBasedStateMachine):
    """Four nodes, any order of offers, deliveries, gradients, breaks, withdrawals and lost patience."""

    codec = "at once"

    @initialize()
    def begin(self) -> None:
        self.nodes = {
            name: Party(name, torch.tensor([float(3**k)], dtype=torch.float64), codec=self.codec)
            for k, name in enumerate("abcd")
        }
        self.links = {frozenset(p): True for p in itertools.combinations("abcd", 2)}
        self.drift = 0.0
        self.start = sum(p.x.item() for p in self.nodes.values())

    def _flush(self, one: str, other: str) -> None:
        for name, peer in ((one, other), (other, one)):
            node = self.nodes[name]
            node.out = deque((to, m) for to, m in node.out if to != peer)

    @rule(name=st.sampled_from("abcd"), peer=st.sampled_from("abcd"))
    def offer(self, name: str, peer: str) -> None:
        if name != peer and self.nodes[name].s.active_with is None and self.links[frozenset((name, peer))]:
            self.nodes[name].s.offer(peer)

    @rule(name=st.sampled_from("abcd"), peer=st.sampled_from("abcd"))
    def hand_over(self, name: str, peer: str) -> None:
        """The first message on its way from `name` to `peer`: a link keeps its order and waits for no other."""
        node = self.nodes[name]
        for index, (to, message) in enumerate(node.out):
            if to == peer:
                del node.out[index]
                self.nodes[to].s.received(name, copied(message))
                return

    @rule(name=st.sampled_from("abcd"), by=st.integers(-5, 5))
    def gradient(self, name: str, by: int) -> None:
        self.nodes[name].x.add_(float(by))
        self.drift += by

    @rule(name=st.sampled_from("abcd"), peer=st.sampled_from("abcd"))
    def cut(self, name: str, peer: str) -> None:
        link = frozenset((name, peer))
        if self.links.get(link):
            self.links[link] = False
            self._flush(name, peer)
            self.nodes[name].s.down(peer)
            self.nodes[peer].s.down(name)
            self._flush(name, peer)

    @rule(name=st.sampled_from("abcd"), peer=st.sampled_from("abcd"))
    def mend(self, name: str, peer: str) -> None:
        link = frozenset((name, peer))
        if self.links.get(link) is False:
            self.links[link] = True
            self.nodes[name].s.up(peer)
            self.nodes[peer].s.up(name)

    @rule(name=st.sampled_from("abcd"))
    def withdraw(self, name: str) -> None:
        self.nodes[name].s.withdraw()

    @precondition(lambda self: any(n.s.serving for n in self.nodes.values()))
    @rule(name=st.sampled_from("abcd"))
    def lose_patience(self, name: str) -> None:
        self.nodes[name].s.stop_waiting()

    @invariant()
    def at_most_one_half_of_each_open_exchange_is_missing(self) -> None:
        for node in self.nodes.values():
            assert node.s.in_doubt <= MAX_IN_DOUBT

    def teardown(self) -> None:
        if not hasattr(self, "nodes"):
            return
        for link, up in list(self.links.items()):
            one, other = sorted(link)
            if not up:
                self.mend(one, other)
        deliver(list(self.nodes.values()))
        total = sum(p.x.item() for p in self.nodes.values())
        assert total == pytest.approx(self.start + self.drift, abs=1e-9)
        assert all(p.s.in_doubt == p.s.unconfirmed == p.s.tally.lost == 0 for p in self.nodes.values())


class RandomHistoriesInTurn(RandomHistories):
    """The same with a codec whose messages depend on each other."""

    codec = "in turn"


TestRandomHistories = RandomHistories.TestCase
TestRandomHistoriesInTurn = RandomHistoriesInTurn.TestCase
