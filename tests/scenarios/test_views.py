"""Views agreed on by several nodes in virtual time: starts, newcomers, losses, the end, and links that misbehave."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views_net import Net, Weather, shoal, storm, training, weather

from shoal.roster import Dropped, Gone, Installed, Joined, Refused
from shoal.v1.node_pb2 import (
    PHASE_AVERAGED,
    PHASE_FINISHED,
    PHASE_READY,
    PURPOSE_FINISH,
)

both_kinds = pytest.mark.parametrize("synchronous", [False, True], ids=["async", "sync"])


# --- the start --------------------------------------------------------------------------------------------------


@both_kinds
def test_five_nodes_start_in_one_view_of_the_lowest_id(synchronous: bool) -> None:
    net = shoal("cbade", synchronous=synchronous)
    assert net.run(2, until=lambda: net.in_view("abcde"))
    view = net.nodes["e"].view
    assert view is not None
    assert (view.issuer, view.issuer_incarnation, view.number, view.parent) == ("a", 1, 1, "")
    assert list(view.samples) == [100 + ord(name) for name in "abcde"]
    assert all(len(node.all(Installed)) == 1 for node in net.nodes.values())


def test_a_node_alone_looks_around_and_is_a_view_of_one() -> None:
    net = shoal("a")
    net.run(0.5)
    assert net.nodes["a"].view is None
    assert net.nodes["a"].members.waiting == "nobody else is known yet"
    net.run(1)
    assert net.nodes["a"].ids == "a"


def test_a_node_that_may_start_alone_joins_the_run_that_it_finds_in_time() -> None:
    net = training("a", min_nodes=1)
    net.add("b")
    net.run(0.5)
    net.link("ab")
    assert net.run(5, until=lambda: net.in_view("ab"))
    (installed,) = net.nodes["b"].all(Installed)
    assert isinstance(installed, Installed)
    assert installed.model_from == "a"


def test_nothing_starts_below_min_nodes_and_the_reason_says_how_many_there_are() -> None:
    net = shoal("abc", min_nodes=4)
    net.run(20)
    assert all(node.view is None for node in net.nodes.values())
    assert net.nodes["a"].members.waiting == "3 of 4 nodes are ready and linked"


def test_a_late_loader_gets_in_within_the_settling_time() -> None:
    net = Net(2)
    net.add("ab")
    net.add("c", ready=False)
    net.link("abc")
    net.run(0.5)
    assert net.nodes["a"].view is None
    assert net.nodes["a"].members.waiting == "c is known and not ready yet"
    net.phase("c", PHASE_READY)
    assert net.run(0.5, until=lambda: net.in_view("abc"))


def test_a_loader_that_takes_too_long_is_not_waited_for_even_if_it_has_the_lowest_id() -> None:
    net = Net(2, synchronous=True)
    net.add("a", ready=False)
    net.add("bc")
    net.link("abc")
    net.run(1.5)
    assert net.in_view("bc")
    view = net.nodes["b"].view
    assert view is not None
    assert view.issuer == "b"


@pytest.mark.parametrize(
    ("steps", "start", "same"), [((7, 7, 7), 7, True), ((7, 9, 8), 9, False), ((0, 0, 0), 0, True)]
)
def test_a_resumed_run_starts_where_its_furthest_member_stands(steps: tuple[int, ...], start: int, same: bool) -> None:
    net = Net(3)
    net.add("abc")
    for name, step in zip("abc", steps, strict=True):
        net.phase(name, PHASE_READY, step=step)
    net.link("abc")
    assert net.run(2, until=lambda: net.in_view("abc"))
    view = net.nodes["b"].view
    assert view is not None
    assert (view.round, view.same_round) == (start, same)


def test_a_member_that_is_not_linked_with_another_refuses_until_it_is() -> None:
    net = Net(3)
    net.add("abc")
    net.link("a", "bc")
    net.run(3)
    dropped = [a.reason for a in net.nodes["a"].all(Dropped) if isinstance(a, Dropped)]
    assert dropped
    assert "refuses, not linked with" in dropped[0]
    assert all(node.view is None for node in net.nodes.values())
    net.link("bc")
    assert net.run(4, until=lambda: net.in_view("abc"))
    view = net.nodes["a"].view
    assert view is not None
    assert view.number == len(dropped) + 1


def test_a_proposal_that_is_lost_is_dropped_after_two_seconds_and_made_again() -> None:
    net = shoal("abc")
    net.loses = lambda source, target, control: net.now < 1 and control.HasField("propose") and target == "c"
    assert net.run(6, until=lambda: net.in_view("abc"))
    assert 2 < net.now < 4
    (dropped,) = net.nodes["a"].all(Dropped)
    assert dropped == Dropped("view 1: no answer from c in 2 s")


def test_who_knows_a_lower_id_that_is_ready_names_it() -> None:
    net = Net(2)
    net.add("abc")
    net.loses = lambda source, target, control: control.HasField("propose") and source == "a"
    net.link("c", "ab")  # a and b do not know each other, so each takes itself for the lowest
    net.run(1.5)
    assert net.nodes["b"].all(Dropped)[0] == Dropped("view 1: c refuses, not the lowest id here, a is")


def test_who_proposes_withdraws_when_a_lower_id_does() -> None:
    net = Net(2)
    net.add("bc")
    net.loses = lambda source, target, control: control.HasField("answer") and source == "c"
    net.link("bc")
    net.run(0.5)
    net.add("a")
    net.link("a", "bc")
    net.run(0.5)
    assert net.nodes["b"].all(Dropped) == [Dropped("withdrawn: a proposes, and has the lower id")]
    net.loses = lambda source, target, control: False
    assert net.run(6, until=lambda: net.in_view("abc"))


@both_kinds
def test_a_member_that_dies_before_it_answers_is_left_out_of_the_next_try(synchronous: bool) -> None:
    net = shoal("abc", min_nodes=2, synchronous=synchronous)
    net.loses = lambda source, target, control: control.HasField("answer") and source == "c"
    net.run(1.0)
    net.kill("c")
    assert net.run(12, until=lambda: net.in_view("ab"))


def test_a_view_whose_issuer_dies_over_telling_reaches_the_others_all_the_same() -> None:
    net = shoal("abc")
    net.loses = lambda source, target, control: control.HasField("install") and (source, target) == ("a", "c")
    net.run(5, until=lambda: net.nodes["b"].view is not None)
    net.kill("a")
    assert net.run(1, until=lambda: net.in_view("bc", "abc"))


# --- newcomers --------------------------------------------------------------------------------------------------


def test_a_latecomer_of_an_asynchronous_run_is_taken_in_and_told_whom_to_ask_for_the_model() -> None:
    net = training("bcd")
    net.add("a")
    net.link("a", "bcd")
    assert net.run(1, until=lambda: net.in_view("abcd"))
    (installed,) = net.nodes["a"].all(Installed)
    assert isinstance(installed, Installed)
    assert installed.model_from == "b"
    assert all(a.model_from == "" for a in net.nodes["c"].all(Installed) if isinstance(a, Installed))


def test_a_latecomer_that_the_lowest_does_not_hear_is_taken_in_by_another() -> None:
    net = training("abc")
    net.add("d")
    net.link("d", "c")
    net.run(2.5)
    assert net.nodes["d"].view is None
    assert net.run(2, until=lambda: net.in_view("abcd"))


def test_latecomers_that_know_of_a_run_do_not_start_one_of_their_own() -> None:
    net = training("ab")
    net.add("cd")
    net.link("cd", "b")
    net.link("cd")
    assert net.run(5, until=lambda: net.in_view("abcd"))
    assert {v.issuer for name in "cd" for v in net.train_views(name)} == {"b"}
    assert not net.nodes["c"].all(Dropped), "it did not even try"


@pytest.mark.parametrize("later", ["ab", "cd"], ids=["higher number joins lower", "lower number joins higher"])
def test_two_groups_that_started_apart_merge_when_they_meet(later: str) -> None:
    net = Net(2)
    net.add("abcd")
    first = "cd" if later == "ab" else "ab"
    net.loses = lambda source, target, control: control.HasField("propose") and target in later and net.now < 1
    net.link(first)
    net.link(later)  # its first proposal is lost, so its view gets a higher number
    assert net.run(6, until=lambda: net.in_view("ab") and net.in_view("cd"))
    net.link("ab", "cd")
    assert net.run(6, until=lambda: net.in_view("abcd"))
    net.run(10)
    assert net.in_view("abcd")


# --- losses -----------------------------------------------------------------------------------------------------


def test_an_asynchronous_run_goes_on_without_a_lost_member() -> None:
    net = training("abc")
    net.kill("c")
    net.run(7)
    (gone,) = net.nodes["a"].all(Gone)
    assert isinstance(gone, Gone)
    assert gone.peer_id == "c"
    assert gone.reason.startswith("silent for 5.")
    assert gone.reason.endswith(" s, connection refused")


@both_kinds
def test_a_member_that_starts_again_is_gone_and_back_with_its_new_incarnation(synchronous: bool) -> None:
    net = training("abc", synchronous=synchronous)
    net.kill("b")
    net.run(0.5)
    net.add("b", incarnation=2)
    net.link("b", "ac")
    net.run(4)
    changes = [a for a in net.nodes["a"].all(Gone) + net.nodes["a"].all(Joined) if getattr(a, "peer_id", "") == "b"]
    assert Gone("b", 1, "it started again") in changes
    assert Joined("b", 2) in changes
    assert net.in_view("abc")
    assert [m.incarnation for m in net.nodes["c"].view.members] == [1, 2, 1]  # type: ignore[union-attr]


def test_a_member_behind_a_healed_partition_comes_back_in_an_asynchronous_run() -> None:
    net = training("abc")
    net.cut("ab", "c")
    net.run(8)
    assert [a.peer_id for a in net.nodes["a"].all(Gone) if isinstance(a, Gone)] == ["c"]
    net.link("ab", "c")
    net.run(1)
    assert net.nodes["a"].all(Joined).count(Joined("c", 1)) == 2
    assert net.in_view("abc")


def test_two_nodes_that_took_each_other_for_gone_over_a_standing_link_find_back() -> None:
    net = training("ab")
    start = net.now
    net.loses = lambda source, target, control: net.now < start + 8
    net.run(7.5)
    assert net.nodes["a"].all(Gone)
    assert net.nodes["b"].all(Gone)
    net.run(2)
    assert net.nodes["a"].all(Joined) == 2 * [Joined("b", 1)]
    assert net.nodes["b"].all(Joined) == 2 * [Joined("a", 1)]


def test_a_sleeping_member_comes_back_by_its_first_heartbeat() -> None:
    net = training("abc")
    sleeping = net.nodes["c"]
    sleeping.running = False  # as SIGSTOP does: links stay up, nothing is read or written
    net.run(8)
    assert [a.peer_id for a in net.nodes["a"].all(Gone) if isinstance(a, Gone)] == ["c"]
    sleeping.running = True
    net._tick("c", sleeping)
    net.run(1)
    assert net.nodes["a"].all(Joined).count(Joined("c", 1)) == 2
    assert not sleeping.all(Gone), "the silence was its own"


# --- the end ----------------------------------------------------------------------------------------------------


@both_kinds
def test_when_all_have_finished_they_form_the_mean_and_then_each_may_leave(synchronous: bool) -> None:
    net = training("abc", synchronous=synchronous)
    for name in "ab":
        net.phase(name, PHASE_FINISHED)
    net.run(3)
    assert not net.nodes["a"].members.views.finishing
    assert net.nodes["a"].members.waiting == "c is still training"
    net.phase("c", PHASE_FINISHED)
    assert net.run(2, until=lambda: net.in_view("abc", purpose=PURPOSE_FINISH))
    assert not any(node.members.done(net.now) for node in net.nodes.values())
    assert net.run(2, until=lambda: all(node.members.done(net.now) for node in net.nodes.values()))


@both_kinds
def test_nodes_that_leave_in_order_let_the_others_end_well(synchronous: bool) -> None:
    net = shoal("abcd", synchronous=synchronous)
    net.training_s = 2.0
    left: set[str] = set()

    def leave_when_done() -> bool:
        for name, node in net.nodes.items():
            if name not in left and node.members.done(net.now):
                left.add(name)
                net.act(name, node.members.leave("", finished=True, now=net.now))
                net.run(net.latency_s)
                net.kill(name)
        return len(left) == 4

    assert net.run(10, until=leave_when_done)
    for node in net.nodes.values():
        assert all(isinstance(a, Gone) and a.finished and a.reason == "left: finished" for a in node.all(Gone))


@both_kinds
def test_a_member_lost_while_the_mean_is_formed_is_left_out_of_a_new_finish_view(synchronous: bool) -> None:
    net = shoal("abc", synchronous=synchronous)
    net.training_s, net.averaging_s = 1.0, 60.0  # nobody is through before c dies
    assert net.run(6, until=lambda: net.in_view("abc", purpose=PURPOSE_FINISH))
    net.kill("c")
    net.averaging_s = 0.2
    assert net.run(8, until=lambda: net.in_view("ab", purpose=PURPOSE_FINISH))
    assert net.run(2, until=lambda: all(net.nodes[name].members.done(net.now) for name in "ab"))


def test_a_mean_of_an_earlier_finish_view_does_not_count_for_the_next() -> None:
    net = shoal("abc")
    net.training_s, net.averaging_s = 1.0, 60.0
    assert net.run(6, until=lambda: net.in_view("abc", purpose=PURPOSE_FINISH))
    net.phase("a", PHASE_AVERAGED)  # a was through when c died, b was not
    net.run(0.5)
    net.kill("c")
    assert net.run(8, until=lambda: net.in_view("ab", purpose=PURPOSE_FINISH))
    net.phase("b", PHASE_AVERAGED)
    net.run(1)
    assert not net.nodes["b"].members.done(net.now), "a holds the mean of an earlier view"
    net.phase("a", PHASE_AVERAGED)
    assert net.run(1, until=lambda: net.nodes["a"].members.done(net.now) and net.nodes["b"].members.done(net.now))


def test_a_member_lost_after_everybody_holds_the_mean_changes_nothing() -> None:
    net = shoal("abc")
    net.training_s = 1.0
    assert net.run(6, until=lambda: all(node.members.done(net.now) for node in net.nodes.values()))
    net.kill("c")
    net.run(8)
    assert net.nodes["a"].ids == "abc"
    assert net.nodes["a"].members.done(net.now)
    assert net.nodes["b"].members.done(net.now)


def test_a_newcomer_delays_the_end_of_an_asynchronous_run_until_it_has_finished_too() -> None:
    net = training("abc")
    net.add("d")
    net.link("d", "abc")
    assert net.run(1, until=lambda: net.in_view("abcd"))
    for name in "abc":
        net.phase(name, PHASE_FINISHED)
    net.run(3)
    assert not net.nodes["a"].members.views.finishing
    net.phase("d", PHASE_FINISHED)
    assert net.run(2, until=lambda: net.in_view("abcd", purpose=PURPOSE_FINISH))


def test_nobody_leaves_while_a_member_that_came_back_is_still_training() -> None:
    net = training("abc")
    net.cut("ab", "c")
    net.run(7)
    net.averaging_s = 60.0
    for name in "ab":
        net.phase(name, PHASE_FINISHED)
    assert net.run(2, until=lambda: net.in_view("ab", purpose=PURPOSE_FINISH))
    net.link("ab", "c")
    net.run(1)
    for name in "ab":
        net.phase(name, PHASE_AVERAGED)
    net.run(2)
    assert not net.nodes["a"].members.done(net.now)
    net.averaging_s = 0.2
    net.phase("c", PHASE_FINISHED)
    assert net.run(5, until=lambda: net.in_view("abc", purpose=PURPOSE_FINISH))
    assert net.run(2, until=lambda: all(node.members.done(net.now) for node in net.nodes.values()))


def test_who_comes_after_the_end_is_told_so() -> None:
    net = shoal("ab")
    net.training_s = 0.5
    assert net.run(6, until=lambda: net.in_view("ab", purpose=PURPOSE_FINISH))
    net.add("c")
    net.link("c", "ab")
    net.run(1)
    assert net.nodes["c"].all(Refused) == [Refused("the run ended without this node; its members are a, b")]
    assert net.run(1, until=lambda: net.nodes["a"].members.done(net.now) and net.nodes["b"].members.done(net.now))


# --- links that misbehave ---------------------------------------------------------------------------------------


@both_kinds
@settings(max_examples=60, deadline=None)
@given(sky=weather, size=st.integers(2, 5))
def test_loss_and_delay_never_make_two_first_views_when_all_must_take_part(
    synchronous: bool, sky: Weather, size: int
) -> None:
    names = "abcde"[:size]
    net = Net(size, synchronous=synchronous, seed=sky.seed)
    net.loses = lambda source, target, control: net.rng.random() < sky.loss
    net.delay_s = lambda: net.rng.uniform(0.001, sky.delay_s)
    net.add(names)
    net.link(names)
    for when, i, j, length_s in sky.flaps:
        a, b = names[i % size], names[j % size]
        net.at(when, lambda a=a, b=b: net.cut(a, b))
        net.at(when + length_s, lambda a=a, b=b: net.link(a, b))
    net.run(15)
    made = [v for name in names for v in net.train_views(name)]
    assert len({v.id for v in made if not v.parent}) <= 1
    assert synchronous or not any(v.parent for v in made), "with everybody in it, there is no other view to make"


@both_kinds
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 5), delay_s=st.floats(0.001, 0.2))
def test_after_any_trouble_the_run_starts_once_the_links_are_good(
    synchronous: bool, seed: int, size: int, delay_s: float
) -> None:
    names = "abcde"[:size]
    net = Net(size, synchronous=synchronous, seed=seed)
    net.delay_s = lambda: net.rng.uniform(0.001, delay_s)
    net.loses = lambda source, target, control: net.now < 5 and net.rng.random() < 0.5
    net.add(names)
    net.link(names)
    assert net.run(30, until=lambda: net.in_view(names) and net.now > 5)
    assert not any(node.all(Refused) for node in net.nodes.values())


@settings(max_examples=40, deadline=None)
@given(sky=weather, min_nodes=st.integers(1, 4))
def test_an_asynchronous_shoal_ends_together_whatever_happened_on_the_way(sky: Weather, min_nodes: int) -> None:
    names = "abcd"
    net = storm(names, min_nodes, sky)
    # Which of two equal lists a node holds does not matter, and may differ where a message was lost on a good link.
    assert net.run(40, until=lambda: net.now > 14 and all(node.ids == names for node in net.nodes.values()))
    net.run(5)
    for name in names:
        net.phase(name, PHASE_FINISHED)
    assert net.run(10, until=lambda: all(net.nodes[name].members.done(net.now) for name in names))
    assert net.in_view(names, purpose=PURPOSE_FINISH)
