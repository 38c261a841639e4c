"""How long a silence may last, by what was observed; whose turn it is to be told."""

import itertools
import random
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from views_net import Net, training

from shoal.bench.crowd import Observed
from shoal.cadence import AT_ONCE, LONGEST_TIMES, LOOKED_AT, Cadence, Turns, interval_s, look_s
from shoal.messages import PeerId
from shoal.roster import Member, State
from shoal.v1.node_pb2 import Control

LEAST_S, USUAL_S = 5.0, 0.5


def after(intervals: list[float]) -> Cadence:
    cadence = Cadence()
    for each in intervals:
        cadence.observe(each, USUAL_S)
    return cadence


def patience_s(*intervals: float, least_s: float = LEAST_S, usual_s: float = USUAL_S) -> float:
    return after(list(intervals)).patience_s(least_s, usual_s)


# --- how long ---------------------------------------------------------------------------------------------------


def test_a_member_that_speaks_as_it_should_has_the_time_that_is_set() -> None:
    rng = random.Random(1)
    assert patience_s(*(rng.uniform(0.45, 0.55) for _ in range(100))) == LEAST_S
    assert patience_s() == LEAST_S


def test_one_that_speaks_seldom_has_four_of_its_intervals() -> None:
    assert patience_s(*[2.0] * 200) == pytest.approx(8.0, rel=0.01)


def test_one_that_speaks_irregularly_has_more() -> None:
    rng = random.Random(1)
    regular, irregular = [2.0] * 200, [rng.choice([0.5, 3.5]) for _ in range(200)]
    assert patience_s(*irregular) > 1.3 * patience_s(*regular)


def test_a_pause_is_forgotten_within_seconds() -> None:
    assert patience_s(4.0) > 1.4 * LEAST_S
    assert patience_s(4.0, *[0.5] * 12) == LEAST_S


def test_in_a_large_shoal_intervals_are_long_and_silences_too() -> None:
    usual_s = interval_s(0.5, 64)
    assert usual_s == 2.0
    assert patience_s(usual_s=usual_s) == 8.0


@given(st.lists(st.floats(0, 1e6), max_size=50), st.floats(0.5, 3600), st.floats(0.1, 100))
def test_it_is_never_less_than_is_set_nor_without_end(intervals: list[float], least_s: float, usual_s: float) -> None:
    found = patience_s(*intervals, least_s=least_s, usual_s=usual_s)
    assert least_s <= found <= LONGEST_TIMES * max(least_s, usual_s)


# --- whose turn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, AT_ONCE])
def test_a_few_are_told_every_time(n: int) -> None:
    members = [f"{i:02}" for i in range(n)]
    turns = Turns()
    assert turns.take(members) == turns.take(members) == members


@given(st.integers(AT_ONCE + 1, 100), st.integers(1, 60))
def test_many_take_turns_and_all_have_the_same_number(n: int, intervals: int) -> None:
    members, turns = [f"{i:03}" for i in range(n)], Turns()
    told = Counter(itertools.chain.from_iterable(turns.take(members) for _ in range(intervals)))
    counts = [told[member] for member in members]
    assert sum(counts) == intervals * AT_ONCE
    assert max(counts) - min(counts) <= 1


@given(st.sets(st.integers(0, 60), min_size=AT_ONCE + 1), st.sets(st.integers(0, 60), min_size=AT_ONCE + 1))
def test_who_stays_is_not_passed_over_when_others_come_and_go(before: set[int], then: set[int]) -> None:
    turns, told = Turns(), set[PeerId]()
    turns.take([f"{i:02}" for i in sorted(before)])
    now = [f"{i:02}" for i in sorted(then)]
    for _ in range(-(-len(now) // AT_ONCE)):
        told.update(turns.take(now))
    assert told == set(now)


# --- a shoal of many --------------------------------------------------------------------------------------------

LETTERS = string.ascii_letters


def frames_each_second(n: int) -> float:
    """Control frames that a node of `n` sends, in virtual time."""
    net, sent = training(LETTERS[:n], synchronous=True), Counter[str]()

    def count(source: str, target: str, control: Control) -> bool:
        sent[source] += 1
        return False

    net.loses = count
    net.run(20)
    return sum(sent.values()) / n / 20


def test_what_a_node_sends_does_not_grow_with_the_shoal() -> None:
    few, many, more = map(frames_each_second, (8, 26, 52))
    assert few == pytest.approx(7 / 0.5, rel=0.15)
    assert many == pytest.approx(AT_ONCE / 0.5, rel=0.15)
    assert more == pytest.approx(many, rel=0.1)


def steps_on(net: Net, names: str) -> bool:
    return net.in_view(names) and not any(net.nodes[name].paused for name in names)


def test_nor_how_much_it_looks_at_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, judge = Counter[int](), Member.judge

    def counted(member: Member, now: float, patience_s: float) -> tuple[State, str]:
        looks[count] += 1
        return judge(member, now, patience_s)

    for count in (64, 160, 320):
        node = Observed(count)
        node.live(2 * node.others.every_s)  # until all have spoken
        monkeypatch.setattr(Member, "judge", counted)
        node.live(10.0)
        monkeypatch.undo()
    assert looks[64] == pytest.approx(63 * 100, rel=0.1)  # ten ticks a second
    assert max(looks.values()) < 1.3 * looks[64]


@given(st.integers(0, 5000))
def test_a_look_is_as_much_more_seldom_as_there_are_more_members(n: int) -> None:
    assert (look_s(0.5, n) == 0) == (n < LOOKED_AT)
    assert look_s(0.5, n) < interval_s(0.5, n)  # and so much less than what makes a silent one gone


def test_among_many_a_silent_one_is_missed_a_broken_link_is_at_once_and_nobody_else_is_lost() -> None:
    names = LETTERS[:40]
    net = training(names, synchronous=True)
    net.run(30)
    assert len(net.train_views("a")) == 1, "nobody was thought to be gone"
    net.kill("c")
    assert net.run(6, until=lambda: steps_on(net, names.replace("c", "")))
    net.freeze("d")
    assert net.run(20, until=lambda: steps_on(net, names.replace("c", "").replace("d", "")))
