"""What follows a view of a synchronous run, in virtual time: losses, returns, partitions, cut links, replicas."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from view_histories import all_step_in_one_view_at_last, replicas_stay_equal
from views_net import Net, Weather, training, weather

from shoal.roster import Installed, Pause, Refused
from shoal.v1.node_pb2 import PHASE_FINISHED, PHASE_READY, PURPOSE_FINISH, View

deaths = st.lists(st.tuples(st.floats(1, 12), st.integers(0, 3)), max_size=3)  # when, and who
kinds = pytest.mark.parametrize("replicas", [False, True], ids=["mixing", "replicas"])


def view_of(net: Net, name: str) -> View:
    view = net.nodes[name].view
    assert view is not None
    return view


def cuts(net: Net, name: str) -> list[str]:
    """Cut links in the view that holds there, as pairs of letters."""
    return [edge.a + edge.b for edge in view_of(net, name).cut]


# --- losses -----------------------------------------------------------------------------------------------------


@kinds
def test_the_others_go_on_within_five_seconds_of_a_death_where_the_furthest_stood(replicas: bool) -> None:
    net = training("abcde", synchronous=True, replicas=replicas)
    died_at = net.now
    stood = max(node.round for node in net.nodes.values())
    net.kill("c")
    assert net.run(5, until=lambda: net.in_view("abde"))
    view = view_of(net, "a")
    assert view.round in (stood, stood + 1), "nobody rolls back, and nobody jumps ahead"
    assert not view.same_round, "all corrections begin anew"
    assert view.parent
    assert net.now - died_at < 5
    before = net.nodes["a"].round
    net.run(1)
    assert net.nodes["a"].round > before


def test_the_lowest_id_may_be_the_one_that_dies() -> None:
    net = training("abc", synchronous=True)
    net.kill("a")
    assert net.run(5, until=lambda: net.in_view("bc"))
    assert view_of(net, "c").issuer == "b"


def test_a_member_that_leaves_is_left_out_unless_all_leave() -> None:
    net = training("abc", synchronous=True)
    net.act("b", net.nodes["b"].members.leave("stopped by a signal", finished=False, now=net.now))
    net.run(net.latency_s)
    net.kill("b")
    net.run(1)
    assert not net.nodes["a"].all(Pause), "the others may have been told to stop, too"
    assert net.run(2, until=lambda: net.in_view("ac"))


def test_of_two_the_one_that_is_left_goes_on_alone() -> None:
    net = training("ab", synchronous=True)
    net.kill("a")
    assert net.run(5, until=lambda: net.nodes["b"].ids == "b")


def test_one_short_break_of_a_link_changes_no_view() -> None:
    net = training("abc", synchronous=True)
    view = view_of(net, "a").id
    net.cut("a", "b")
    net.run(1.0)
    net.link("ab")
    net.run(10)
    assert view_of(net, "a").id == view
    assert not any(node.all(Pause) for node in net.nodes.values())


def test_a_stopped_member_counts_as_gone_and_returns() -> None:
    """It hears of the view that was made without it once it runs again, and is taken into the next."""
    net = training("abcd", synchronous=True)
    net.freeze("c")
    assert net.run(6, until=lambda: net.in_view("abd"))
    net.run(3)
    net.thaw("c")
    assert net.run(10, until=lambda: net.in_view("abcd"))


# --- who comes ---------------------------------------------------------------------------------------------------


@kinds
def test_a_node_that_starts_again_is_taken_in_with_the_model_of_a_member(replicas: bool) -> None:
    net = training("abc", synchronous=True, replicas=replicas)
    net.kill("b")
    net.run(1)
    net.add("b", incarnation=2)
    net.link("b", "ac")
    back_at = net.now
    assert net.run(10, until=lambda: net.in_view("abc"))
    assert net.now - back_at < 5
    view = view_of(net, "b")
    assert "b" in view.behind, "and of the others who was a round behind, where replicas have to be equal"
    assert view.source in ("a", "c")
    assert view.source not in view.behind
    (installed,) = net.nodes["b"].all(Installed)
    assert installed == Installed(view, view.source)


def test_a_newcomer_that_not_all_can_reach_waits_and_keeps_nothing_else_from_happening() -> None:
    net = training("abcd", synchronous=True)
    net.add("e")
    net.link("e", "abc")
    net.run(4)
    assert net.nodes["e"].view is None
    assert not net.nodes["e"].all(Refused)
    net.kill("d")
    assert net.run(12, until=lambda: net.in_view("abce"))


def test_a_node_that_was_still_loading_when_the_run_began_is_taken_in_when_it_is_ready() -> None:
    net = Net(2, synchronous=True)
    net.add("ab")
    net.add("c", ready=False)
    net.link("abc")
    net.run(3)
    assert net.in_view("ab")
    net.phase("c", PHASE_READY)
    assert net.run(5, until=lambda: net.in_view("abc"))


# --- partitions ---------------------------------------------------------------------------------------------------


@kinds
def test_two_sides_of_a_split_go_on_apart_and_merge_when_they_meet(replicas: bool) -> None:
    net = training("abcde", synchronous=True, replicas=replicas)
    net.cut("ab", "cde")
    assert net.run(10, until=lambda: net.in_view("ab") and net.in_view("cde"))
    net.run(3)
    larger = net.nodes["d"].model
    net.link("ab", "cde")
    healed_at = net.now
    assert net.run(10, until=lambda: net.in_view("abcde"))
    assert net.now - healed_at < 8
    if replicas:
        assert {"a", "b"} <= set(view_of(net, "a").behind), "the larger side's model counts"
        assert larger != "x0"
    else:
        assert not view_of(net, "a").behind, "all keep what they have learnt"
    net.run(2)
    assert len({node.view.id for node in net.nodes.values() if node.view is not None}) == 1


def test_the_smaller_side_may_be_told_to_pause_and_says_why() -> None:
    net = training("abcde", synchronous=True, on_partition="pause")
    net.cut("ab", "cde")
    assert net.run(10, until=lambda: net.in_view("cde"))
    net.run(5)
    assert net.nodes["a"].ids == "abcde"
    assert net.nodes["a"].members.held_up.startswith("2 of 5 members are on this side of a split")
    net.link("ab", "cde")
    assert net.run(10, until=lambda: net.in_view("abcde"))


def test_of_two_equal_sides_the_one_with_the_lowest_id_is_the_larger() -> None:
    net = training("abcd", synchronous=True, on_partition="pause")
    net.cut("ad", "bc")
    assert net.run(10, until=lambda: net.in_view("ad"))
    net.run(3)
    assert net.nodes["b"].ids == "abcd"


def test_who_took_leave_is_on_no_side() -> None:
    net = training("abcd", synchronous=True, on_partition="pause")
    for name in "abc":
        net.act(name, net.nodes[name].members.leave("stopped", finished=False, now=net.now))
        net.run(net.latency_s)
        net.kill(name)
    assert net.run(6, until=lambda: net.nodes["d"].ids == "d")


# --- cut links ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_way", [False, True], ids=["both ways", "one way"])
def test_a_cut_link_between_two_live_members_takes_neither_out(one_way: bool) -> None:
    net = training("abcd", synchronous=True)
    if one_way:
        net.loses = lambda source, target, control: (source, target) == ("a", "c")
    else:
        net.cut("a", "c")
    assert net.run(12, until=lambda: cuts(net, "a") == ["ac"])
    net.run(5)
    assert net.in_view("abcd")
    assert cuts(net, "d") == ["ac"]
    rounds = net.nodes["a"].round
    net.run(1)
    assert net.nodes["a"].round > rounds


def test_a_cut_link_is_used_again_once_it_has_been_whole_for_a_while() -> None:
    net = training("abc", synchronous=True)
    net.cut("a", "c")
    assert net.run(12, until=lambda: cuts(net, "a") == ["ac"])
    net.link("ac")
    healed_at = net.now
    assert net.run(20, until=lambda: cuts(net, "a") == [])
    assert net.now - healed_at > 9
    net.run(1)
    assert net.in_view("abc")


def test_no_member_need_reach_all_others_for_a_view_to_be_agreed_on() -> None:
    net = training("abcd", synchronous=True)
    net.cut("a", "b")
    net.cut("c", "d")
    assert net.run(20, until=lambda: cuts(net, "b") == ["ab", "cd"])
    net.run(5)
    assert net.in_view("abcd")


def test_who_can_reach_nobody_any_more_goes_on_alone() -> None:
    net = training("abc", synchronous=True)
    net.cut("b", "ac")
    assert net.run(10, until=lambda: net.in_view("ac") and net.in_view("b"))


# --- the end ------------------------------------------------------------------------------------------------------


def test_the_mean_is_formed_over_a_cut_link_too() -> None:
    net = training("abc", synchronous=True)
    net.cut("a", "c")
    assert net.run(12, until=lambda: cuts(net, "a") == ["ac"])
    net.run(1)
    for name in "abc":
        net.phase(name, PHASE_FINISHED)
    assert net.run(5, until=lambda: net.in_view("abc", purpose=PURPOSE_FINISH))
    assert cuts(net, "b") == ["ac"]


def test_a_member_lost_after_its_last_round_does_not_keep_the_others_from_the_end() -> None:
    net = training("abc", synchronous=True)
    for name in "ab":
        net.phase(name, PHASE_FINISHED)
    net.kill("c")
    assert net.run(6, until=lambda: net.in_view("ab"))
    for name in "ab":
        net.phase(name, PHASE_FINISHED)
    assert net.run(3, until=lambda: net.in_view("ab", purpose=PURPOSE_FINISH))


# --- any history --------------------------------------------------------------------------------------------------


@kinds
@settings(max_examples=60, deadline=None)
@given(sky=weather, min_nodes=st.integers(1, 4))
def test_after_any_weather_all_are_in_one_view_and_step(replicas: bool, sky: Weather, min_nodes: int) -> None:
    assert all_step_in_one_view_at_last(sky, min_nodes, replicas=replicas)


WAITED_FOR_ONE_WHO_DIED = Weather(
    seed=0, loss=0.0, delay_s=1.0, flaps=((2.5, 2, 3, 2.0), (3.0, 0, 2, 1.0), (0.5, 2, 1, 1.5))
)


@settings(max_examples=60, deadline=None)
@given(sky=weather, min_nodes=st.integers(1, 4), deaths=deaths)
@example(sky=WAITED_FOR_ONE_WHO_DIED, min_nodes=1, deaths=[(2.875, 1), (6.25, 2)])
def test_members_of_one_view_are_never_two_rounds_apart_and_replicas_are_equal(
    sky: Weather, min_nodes: int, deaths: list[tuple[float, int]]
) -> None:
    assert replicas_stay_equal(sky, min_nodes, deaths)
