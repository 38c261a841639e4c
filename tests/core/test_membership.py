"""Who is alive, suspect or gone; heartbeats; the sums over members. One node at a time, times given by hand."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadFrame, Mismatch
from shoal.membership import MEMBERS_LIMIT, Membership
from shoal.roster import Action, Gone, Joined, Send
from shoal.v1.node_pb2 import (
    PHASE_READY,
    PHASE_RUNNING,
    ROLE_COORDINATOR,
    Control,
    Heartbeat,
    Identity,
    Leave,
    View,
    ViewProposal,
)

ME = Identity(node_id="node-b", incarnation=5, address="10.0.0.2:1", name="b")
PEER = Identity(node_id="node-a", incarnation=3, address="10.0.0.1:1", name="a")


def membership(**options: float) -> Membership:
    arguments = {"heartbeat_s": 0.5, "suspect_after_s": 4.0} | options
    return Membership(ME, min_nodes=9, synchronous=False, rng=random.Random(0), **arguments)  # type: ignore[arg-type]


def linked(now: float = 0.0) -> Membership:
    """One that has met PEER and is linked with it."""
    members = membership()
    members.met(PEER, 7, now)
    members.link_up("node-a", now)
    return members


def beat(number: int = 0, answers: int = 0, **fields: float) -> Control:
    return Control(heartbeat=Heartbeat(number=number, answers=answers, **fields))  # type: ignore[arg-type]


def beats(actions: list[Action]) -> list[Heartbeat]:
    return [a.control.heartbeat for a in actions if isinstance(a, Send) and a.control.HasField("heartbeat")]


def changes(actions: list[Action]) -> list[Action]:
    return [a for a in actions if isinstance(a, (Joined, Gone))]


def state(members: Membership, now: float) -> tuple[str, str]:
    row = members.snapshot(now)[1]
    return row["state"], row["reason"]


# --- alive, suspect, gone ---------------------------------------------------------------------------------------


def test_a_member_joins_when_its_link_stands_and_not_by_its_hello_alone() -> None:
    members = membership()
    assert changes(members.met(PEER, 0, 0.0)) == []
    assert state(members, 0.0) == ("suspect", "no link yet")
    assert changes(members.link_up("node-a", 0.1)) == [Joined("node-a", 3)]
    assert state(members, 0.1) == ("alive", "")


@pytest.mark.parametrize(
    ("silent_s", "expected"),
    [
        (1.9, ("alive", "")),
        (2.0, ("suspect", "silent for 2.0 s")),
        (3.9, ("suspect", "silent for 3.9 s")),
        (4.0, ("gone", "silent for 4.0 s")),
    ],
)
def test_silence_makes_a_member_suspect_and_then_gone(silent_s: float, expected: tuple[str, str]) -> None:
    members = linked()
    for tenth in range(1, round(silent_s * 10) + 1):
        members.tick(tenth / 10)
    assert state(members, silent_s) == expected


def test_a_broken_link_makes_a_member_suspect_at_once_and_gone_when_it_stays_silent() -> None:
    members = linked()
    assert changes(members.link_down("node-a", "connection reset", 1.0)) == []
    assert state(members, 1.0) == ("suspect", "connection reset")
    members.link_down("node-a", "connection refused", 2.0)
    actions = [a for tenth in range(10, 41) for a in members.tick(tenth / 10)]
    assert changes(actions) == [Gone("node-a", 3, "silent for 4.0 s, connection refused")]


def test_a_link_that_comes_back_in_time_is_no_event() -> None:
    members = linked()
    members.link_down("node-a", "connection reset", 1.0)
    assert changes(members.link_up("node-a", 2.0)) == []
    assert state(members, 2.0) == ("alive", "")


def test_gone_is_told_once_with_its_first_reason() -> None:
    members = linked()
    members.heard("node-a", Control(leave=Leave(reason="stopped by a signal")), 1.0)
    later = [a for tenth in range(10, 100) for a in members.tick(tenth / 10)]
    assert changes(later) == []
    assert state(members, 9.9) == ("gone", "left: stopped by a signal")


@pytest.mark.parametrize(
    ("leave", "reason", "finished"),
    [
        (Leave(finished=True), "left: finished", True),
        (Leave(reason="lost node-c: silent for 5.0 s"), "left: lost node-c: silent for 5.0 s", False),
        (Leave(), "left: no reason given", False),
        (Leave(reason="x" * 5000), "left: " + "x" * 200, False),
    ],
)
def test_a_leave_makes_a_member_gone_at_once_with_its_words(leave: Leave, reason: str, finished: bool) -> None:
    assert changes(linked().heard("node-a", Control(leave=leave), 1.0)) == [Gone("node-a", 3, reason, finished)]


def test_a_gone_member_that_is_heard_again_joins_again() -> None:
    members = linked()
    for tenth in range(50):
        members.tick(tenth / 10)
    assert state(members, 4.9)[0] == "gone"
    assert changes(members.heard("node-a", beat(number=9), 5.0)) == [Joined("node-a", 3)]


def test_a_node_that_slept_does_not_blame_the_others_for_its_own_silence() -> None:
    members = linked()
    members.tick(0.4)
    assert changes(members.tick(100.0)) == []
    assert state(members, 100.0)[0] == "alive"
    later = [a for tenth in range(1001, 1050) for a in members.tick(tenth / 10)]
    assert changes(later) == [Gone("node-a", 3, "silent for 4.0 s")], "after that it waits as long as ever"


# --- incarnations -----------------------------------------------------------------------------------------------


def again(incarnation: int, address: str = "10.0.0.1:2", node_id: str = "node-a") -> Identity:
    return Identity(node_id=node_id, incarnation=incarnation, address=address, name="a")


def test_a_higher_incarnation_replaces_the_older_one() -> None:
    members = linked()
    assert changes(members.met(again(4), 0, 1.0)) == [Gone("node-a", 3, "it started again")]
    assert changes(members.link_up("node-a", 1.1)) == [Joined("node-a", 4)]
    assert len(members.snapshot(1.1)) == 2


def test_what_the_old_link_of_a_replaced_incarnation_still_says_is_ignored() -> None:
    members = linked()
    members.met(again(4), 0, 1.0)
    members.link_up("node-a", 1.1, incarnation=4)
    assert members.link_down("node-a", "it has started again", 1.2, incarnation=3) == []
    assert members.heard("node-a", Control(leave=Leave()), 1.2, incarnation=3) == []
    assert state(members, 1.2) == ("alive", "")


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (again(2), "node-a/2 at 10.0.0.1:2 came, but node-a/3 at 10.0.0.1:1 was met before"),
        (again(3), "node-a/3 at 10.0.0.1:2 came, but node-a/3 at 10.0.0.1:1 was met before"),
        (again(9, node_id="node-b"), "one runs on a copy of the other's state folder"),
    ],
)
def test_an_incarnation_that_cannot_be_is_refused_and_nothing_changes(identity: Identity, words: str) -> None:
    members = linked()
    with pytest.raises(Mismatch, match=words):
        members.met(identity, 0, 1.0)
    assert state(members, 1.0) == ("alive", "")


def test_a_node_may_hear_itself() -> None:
    members = membership()
    assert members.met(ME, 0, 0.0) == []
    assert len(members.snapshot(0.0)) == 1


def test_the_table_of_members_is_bounded() -> None:
    members = linked()
    members.roster.members |= dict.fromkeys(map(str, range(MEMBERS_LIMIT - 1)), members.roster.members["node-a"])
    with pytest.raises(Mismatch, match="10000 members are the most"):
        members.met(again(1, node_id="one-too-many"), 0, 1.0)
    members.met(again(4), 0, 1.0)  # who is in already may start again


def test_control_of_an_unknown_peer_has_no_effect() -> None:
    members = membership()
    assert members.heard("node-x", beat(number=1), 0.0) == []
    assert members.link_up("node-x", 0.0) == []
    assert members.link_down("node-x", "reset", 0.0) == []


# --- heartbeats -------------------------------------------------------------------------------------------------


@given(seed=st.integers(), heartbeat_s=st.floats(0.05, 10))
def test_heartbeats_keep_their_interval_within_a_tenth(seed: int, heartbeat_s: float) -> None:
    members = membership(heartbeat_s=heartbeat_s, suspect_after_s=1e9)
    members.rng.seed(seed)
    members.met(PEER, 0, 0.0)
    members.link_up("node-a", 0.0)
    grain = heartbeat_s / 50
    times = [k * grain for k in range(500) if beats(members.tick(k * grain))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 9 <= len(gaps) <= 12
    assert all(0.9 * heartbeat_s - grain <= gap <= 1.1 * heartbeat_s + grain for gap in gaps)
    assert len({round(gap / grain) for gap in gaps}) > 1, "the intervals vary"


def test_a_heartbeat_says_how_far_this_node_is() -> None:
    members = linked()
    members.mine(PHASE_READY, 11, 12, 0.5, 3, 4)
    (sent,) = beats(members.tick(1.0))
    assert (sent.phase, sent.gradients, sent.step, sent.loss) == (PHASE_READY, 11, 12, 0.5)
    assert (sent.held_out_right, sent.held_out_total) == (3, 4)


def test_a_new_phase_is_told_at_the_next_tick_and_a_new_step_with_the_next_heartbeat() -> None:
    members = linked()
    members.tick(0.0)
    members.mine(PHASE_READY, 0, 1, 0.5, 0, 0)
    assert len(beats(members.tick(0.1))) == 1
    members.mine(PHASE_READY, 1, 2, 0.4, 0, 0)
    assert beats(members.tick(0.2)) == []


def test_the_first_heartbeat_on_a_link_is_answered_at_once_and_later_ones_by_the_next() -> None:
    members = linked()
    (answer,) = beats(members.heard("node-a", beat(number=17), 1.0))
    assert (answer.number, answer.answers, answer.held_s) == (0, 17, 0)
    assert beats(members.heard("node-a", beat(number=0, answers=1), 1.0)) == []
    assert beats(members.heard("node-a", beat(number=18), 1.5)) == []
    (sent,) = beats(members.tick(1.75))
    assert (sent.answers, sent.held_s) == (18, 0.25)


def test_on_a_new_link_the_first_is_answered_at_once_again() -> None:
    members = linked()
    members.heard("node-a", beat(number=17), 1.0)
    members.link_down("node-a", "cut", 1.1)
    (sent,) = beats(members.link_up("node-a", 1.2))
    assert (sent.answers, sent.held_s) == (0, 0)
    assert [answer.answers for answer in beats(members.heard("node-a", beat(number=18), 1.3))] == [18]


def test_round_trip_times_come_from_answers_and_are_smoothed() -> None:
    members = membership()
    members.met(PEER, 0, 0.0)
    (first,) = beats(members.link_up("node-a", 0.0))
    members.heard("node-a", beat(answers=first.number), 0.008)
    assert members.snapshot(1.0)[1]["rtt_s"] == pytest.approx(0.008)
    (second,) = beats(members.tick(1.0))
    members.heard("node-a", beat(answers=second.number), 1.016)
    assert members.snapshot(1.0)[1]["rtt_s"] == pytest.approx(0.009)


def test_how_long_an_answer_was_held_is_no_part_of_the_round_trip() -> None:
    members = membership()
    members.met(PEER, 0, 0.0)
    (first,) = beats(members.link_up("node-a", 0.0))
    members.heard("node-a", beat(number=4, answers=first.number, held_s=0.39), 0.4)
    assert members.snapshot(1.0)[1]["rtt_s"] == pytest.approx(0.01)
    members.heard("node-a", beat(number=5, answers=first.number, held_s=1.39), 1.4)  # the same again tells nothing
    assert members.snapshot(1.5)[1]["rtt_s"] == pytest.approx(0.01)


def test_a_clock_that_runs_fast_elsewhere_gives_no_negative_times() -> None:
    members = membership()
    members.met(PEER, 0, 0.0)
    (first,) = beats(members.link_up("node-a", 0.0))
    members.heard("node-a", beat(answers=first.number, held_s=0.5), 0.4)
    assert members.snapshot(1.0)[1]["rtt_s"] == 0


@pytest.mark.parametrize("held_s", [-1.0, float("nan"), float("inf")])
def test_an_answer_cannot_have_been_held_for_that_long(held_s: float) -> None:
    members = linked()
    with pytest.raises(BadFrame, match=r"heartbeat from node-a was held for .* s, expected 0 or more"):
        members.heard("node-a", beat(number=1, held_s=held_s), 1.0)


def test_a_link_works_both_ways_only_once_the_member_has_answered() -> None:
    members = membership()
    members.met(PEER, 0, 0.0)
    (first,) = beats(members.link_up("node-a", 0.0))
    members.heard("node-a", beat(number=1), 0.1)
    assert members.roster.connected(0.1) == []
    members.heard("node-a", beat(answers=first.number + 40), 0.2)  # an answer to what was never sent
    assert members.roster.connected(0.2) == []
    members.heard("node-a", beat(answers=first.number), 0.3)
    assert [m.id for m in members.roster.connected(0.3)] == ["node-a"]
    for half in range(1, 9):  # it hears nothing new
        members.heard("node-a", beat(number=1 + half, answers=first.number), 0.1 + half / 2)
    assert members.roster.connected(4.1) == []


def test_a_new_link_must_be_answered_anew() -> None:
    members = linked()
    members.heard("node-a", beat(answers=members.roster.number), 0.1)
    members.link_down("node-a", "connection reset", 0.2)
    (first,) = beats(members.link_up("node-a", 0.3))
    assert members.roster.connected(0.3) == []
    members.heard("node-a", beat(answers=first.number), 0.4)
    assert [m.id for m in members.roster.connected(0.4)] == ["node-a"]


def test_a_phase_that_this_version_does_not_know_is_a_bad_frame_and_changes_nothing() -> None:
    members = linked()
    with pytest.raises(BadFrame, match="heartbeat from node-a has the phase 77, known: 0 to 4"):
        members.heard("node-a", beat(number=1, phase=77, gradients=5), 1.0)
    assert members.total_gradients() == 0


# --- sums and rows ----------------------------------------------------------------------------------------------


def test_the_gradients_of_a_node_go_through_its_lives_and_those_of_the_gone_count() -> None:
    members = linked()
    members.mine(PHASE_RUNNING, 10, 10, 0.1, 0, 0)
    members.heard("node-a", beat(number=1, gradients=100), 0.1)
    members.heard("node-a", beat(number=2, gradients=90), 0.2)  # an old number never takes any away
    members.learn_gradients("node-a", 105)
    assert members.total_gradients() == 115
    members.met(again(4), 0, 1.0)
    members.link_up("node-a", 1.0)
    members.heard("node-a", beat(number=1, gradients=80), 1.1)  # from its checkpoint: it repeats the last 25
    assert members.total_gradients() == 115
    members.heard("node-a", beat(number=2, gradients=112), 1.2)
    members.heard("node-a", Control(leave=Leave()), 1.3)
    assert members.total_gradients() == 122
    assert members.roster.gradients() == {"node-a": 112, "node-b": 10}


def test_held_out_counts_are_summed_over_the_live() -> None:
    members = linked()
    members.mine(PHASE_RUNNING, 0, 0, 0.1, 30, 40)
    members.heard("node-a", beat(number=1, held_out_right=50, held_out_total=60), 0.1)
    assert members.held_out() == (80, 100)
    members.heard("node-a", Control(leave=Leave()), 0.2)
    assert members.held_out() == (30, 40)


def test_a_row_of_the_snapshot_says_what_is_known_and_none_for_the_rest() -> None:
    members = linked()
    fresh = members.snapshot(0.5)[1]
    assert fresh == {
        "id": "node-a",
        "name": "a",
        "address": "10.0.0.1:1",
        "role": "node",
        "state": "alive",
        "reason": "",
        "phase": "loading",
        "gradients": 0,
        "step": 0,
        "loss": None,
        "accuracy": None,
        "rtt_s": None,
        "heard_s_ago": 0.5,
    }
    told = beat(number=1, phase=PHASE_RUNNING, step=4, loss=0.25, held_out_right=9, held_out_total=10)
    members.heard("node-a", told, 1.0)
    row = members.snapshot(1.25)[1]
    assert (row["phase"], row["step"], row["loss"], row["accuracy"]) == ("running", 4, 0.25, 0.9)
    members.heard("node-a", beat(number=2, loss=math.inf), 2.0)
    assert members.snapshot(2.0)[1]["loss"] is None


def test_the_first_row_of_the_snapshot_is_this_node() -> None:
    members = linked()
    members.mine(PHASE_READY, 1, 2, 0.5, 1, 4)
    row = members.snapshot(0.0)[0]
    assert (row["id"], row["state"], row["phase"], row["accuracy"]) == ("node-b", "self", "ready", 0.25)


def test_leaving_tells_every_linked_member_once() -> None:
    members = linked()
    members.mine(PHASE_RUNNING, 77, 77, 0.5, 0, 0)
    last, leave = members.leave("stopped by a signal", finished=False, now=1.0)
    assert isinstance(last, Send)
    assert last.control.heartbeat.gradients == 77, "work that nobody had heard of counts too"
    assert leave == Send("node-a", Control(leave=Leave(reason="stopped by a signal")))
    again = members.leave("again", finished=False, now=1.0)
    assert not any(isinstance(a, Send) and a.control.HasField("leave") for a in again)


# --- coordinators -----------------------------------------------------------------------------------------------


COORDINATOR = Identity(node_id="coordinator-1", incarnation=1, address="10.0.0.9:1", role=ROLE_COORDINATOR)


def coordinated() -> Membership:
    """A node that waits for nobody, with a coordinator beside it."""
    members = Membership(
        ME, heartbeat_s=0.5, suspect_after_s=4.0, min_nodes=1, synchronous=False, rng=random.Random(0), settle_s=0.0
    )
    members.met(COORDINATOR, 0, 0.0)
    members.link_up("coordinator-1", 0.0)
    return members


def test_a_coordinator_is_alive_by_its_heartbeats_and_counts_for_nothing_else() -> None:
    members = coordinated()
    members.mine(PHASE_READY, 5, 0, 0.5, 9, 10)
    members.heard("coordinator-1", beat(number=1, answers=1, phase=PHASE_RUNNING, held_out_total=7), 0.1)
    actions = [*members.tick(0.2), *members.tick(0.3)]
    assert state(members, 0.3) == ("alive", "")
    assert members.snapshot(0.3)[1]["role"] == "coordinator"
    assert members.held_out() == (9, 10)
    assert members.view is not None
    assert [m.node_id for m in members.view.members] == ["node-b"], "in no view, and nobody waits for it"
    members.link_down("coordinator-1", "lost", 0.4)
    actions += members.link_up("coordinator-1", 0.5)
    told = [a.control.WhichOneof("control") for a in actions if isinstance(a, Send) and a.peer_id == "coordinator-1"]
    assert set(told) <= {"heartbeat"}, "and is told of none"


def test_a_coordinator_hears_that_a_node_leaves() -> None:
    actions = coordinated().leave("finished", finished=True, now=1.0)
    assert [a.peer_id for a in actions if isinstance(a, Send) and a.control.HasField("leave")] == ["coordinator-1"]


def test_neither_a_coordinator_nor_to_one_anybody_speaks_of_views() -> None:
    members = coordinated()
    with pytest.raises(BadFrame, match="install from coordinator-1 about a view, of which a coordinator is no member"):
        members.heard("coordinator-1", Control(install=View()), 0.1)
    of_coordinator = Membership(
        COORDINATOR, heartbeat_s=0.5, suspect_after_s=4.0, min_nodes=1, synchronous=False, rng=random.Random(0)
    )
    of_coordinator.met(PEER, 0, 0.0)
    of_coordinator.link_up("node-a", 0.0)
    with pytest.raises(BadFrame, match="propose from node-a about a view"):
        of_coordinator.heard("node-a", Control(propose=ViewProposal()), 0.1)
