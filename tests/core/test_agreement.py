"""Single steps of the agreement on a view, where the order of events matters. Whole runs: scenarios/test_views.py."""

import random

import pytest

from shoal.agreement import PROMISE_S, PROPOSAL_S
from shoal.errors import BadFrame
from shoal.membership import Membership
from shoal.roster import Action, Dropped, Installed, Introduced, Pause, Refused, Send
from shoal.v1.node_pb2 import (
    PHASE_AVERAGED,
    PHASE_FINISHED,
    PHASE_READY,
    PHASE_RUNNING,
    PURPOSE_FINISH,
    PURPOSE_TRAIN,
    Control,
    Heartbeat,
    Identity,
    Leave,
    View,
    ViewAnswer,
    ViewProposal,
)
from shoal.views import MEMBERS_LIMIT, NUMBERS, check, settle, view_id


def node(name: str, incarnation: int = 1) -> Identity:
    return Identity(node_id=name, incarnation=incarnation, address=f"{name}:1", name=name)


def joined(me: str, others: str, *, min_nodes: int = 2, synchronous: bool = False) -> Membership:
    """`me`, ready, linked both ways with `others`, who are ready too. Nothing is sent that would start a view yet."""
    members = Membership(
        node(me),
        heartbeat_s=0.5,
        suspect_after_s=60.0,
        min_nodes=min_nodes,
        synchronous=synchronous,
        rng=random.Random(0),
        settle_s=0.0,
    )
    for other in others:
        members.met(node(other), 1, 0.0)
        members.link_up(other, 0.0)
    for other in others:
        says(members, other, PHASE_READY, 0.0)
    members.mine(PHASE_READY, 0, 0, 0.0, 0, 0)
    return members


def says(members: Membership, peer: str, phase: int, now: float, answers: int | None = None) -> list[Action]:
    """A heartbeat of `peer`, which has heard everything that was sent to it so far."""
    newest = members.roster.number if answers is None else answers
    return members.heard(peer, Control(heartbeat=Heartbeat(phase=phase, answers=newest)), now)


def view(issuer: str, members: str, number: int = 1, purpose: int = PURPOSE_TRAIN, parent: str = "") -> View:
    made = View(
        number=number,
        issuer=issuer,
        issuer_incarnation=1,
        parent=parent,
        members=[node(name) for name in members],
        samples=[1] * len(members),
        purpose=purpose,  # type: ignore[arg-type]
    )
    made.id = view_id(made)
    return made


def propose(members: Membership, proposed: View, now: float) -> ViewAnswer:
    """The answer to a proposal of the view's issuer."""
    actions = members.heard(proposed.issuer, Control(propose=ViewProposal(view=proposed)), now)
    sent = [a.control.answer for a in actions if isinstance(a, Send) and a.control.HasField("answer")]
    (answer,) = [answer for answer in sent if answer.id == proposed.id]
    return answer


def accept(members: Membership, peer: str, now: float) -> list[Action]:
    """`peer` accepts what this node has proposed."""
    proposal = members.agreement._proposal
    assert proposal is not None
    return members.heard(peer, Control(answer=ViewAnswer(id=proposal.view.id, accepted=True)), now)


def installed(actions: list[Action]) -> list[str]:
    return ["".join(m.node_id for m in a.view.members) for a in actions if isinstance(a, Installed)]


# --- proposals and promises -------------------------------------------------------------------------------------


def test_a_view_holds_only_when_the_last_member_has_accepted() -> None:
    members = joined("a", "bc", min_nodes=3)
    members.tick(0.1)
    assert installed(accept(members, "b", 0.2)) == []
    assert installed(accept(members, "b", 0.3)) == [], "the same member twice"
    assert installed(accept(members, "c", 0.4)) == ["abc"]


def test_an_acceptance_that_comes_after_the_proposal_was_due_does_not_count() -> None:
    members = joined("a", "b")
    members.tick(0.1)
    proposed = members.agreement._proposal
    assert proposed is not None
    actions = accept(members, "b", 2.2)  # no tick in between: this node was asleep, and b is bound no longer
    assert installed(actions) == []
    assert actions[0] == Dropped("view 1: no answer from b in 2 s")


def test_a_promise_binds_until_its_proposal_can_no_longer_succeed() -> None:
    members = joined("c", "abd")
    assert propose(members, view("a", "ac"), 0.1).accepted
    other = propose(members, view("b", "bc", number=2), 0.2)
    assert (other.accepted, other.reason) == (False, "busy with view 1 of a")
    members.heard("a", Control(leave=Leave()), 0.3)
    assert propose(members, view("b", "bc", number=3), 0.1 + PROMISE_S).accepted


def test_a_promise_outlives_its_proposal_by_more_than_a_clock_may_be_wrong() -> None:
    assert PROMISE_S >= 1.2 * PROPOSAL_S


def test_a_withdrawn_proposal_stays_withdrawn_though_everybody_accepts_it() -> None:
    members = joined("b", "c")
    members.tick(0.1)
    own = members.agreement._proposal
    assert own is not None
    members.met(node("a"), 0, 0.2)
    members.link_up("a", 0.2)
    says(members, "a", PHASE_READY, 0.2)
    assert propose(members, view("a", "abc", number=7), 0.3).accepted
    assert installed(members.heard("c", Control(answer=ViewAnswer(id=own.view.id, accepted=True)), 0.4)) == []
    assert members.view is None


def test_a_newer_proposal_of_the_same_issuer_replaces_the_one_it_has_dropped() -> None:
    members = joined("c", "ab")
    assert propose(members, view("a", "abc", number=1), 0.1).accepted
    assert propose(members, view("a", "ac", number=2), 0.2).accepted
    assert not propose(members, view("a", "abc", number=1), 0.3).accepted, "an old one that comes late"


def test_who_is_bound_proposes_nothing() -> None:
    members = joined("b", "ac")
    assert propose(members, view("a", "abc"), 0.1).accepted
    members.heard("a", Control(leave=Leave()), 0.2)  # b has the lowest id now, and a's view may hold all the same
    members.tick(0.1 + PROMISE_S - 0.1)
    assert members.agreement._proposal is None
    members.tick(0.1 + PROMISE_S)
    assert members.agreement._proposal is not None


def test_a_view_number_is_never_used_again() -> None:
    members = joined("b", "ac")
    propose(members, view("a", "abc", number=41), 0.1)
    members.heard("a", Control(leave=Leave()), 0.2)
    members.tick(4.0)
    proposal = members.agreement._proposal
    assert proposal is not None
    assert proposal.view.number == 42


@pytest.mark.parametrize(
    ("proposed", "reason"),
    [
        (view("b", "abc"), "not the lowest id here, a is"),
        (view("a", "abd"), "c/1 is not in it"),
        (view("a", "acx"), "not linked with x"),
        (view("a", "ac"), "it has 2 members, this node waits for 3"),
        (view("a", "abc", purpose=PURPOSE_FINISH), "still training"),
    ],
)
def test_a_proposal_is_refused_with_the_reason(proposed: View, reason: str) -> None:
    members = joined("c", "ab", min_nodes=3)
    if "x" in [m.node_id for m in proposed.members]:
        members.met(node("x"), 0, 0.0)
    answer = propose(members, proposed, 0.1)
    assert (answer.accepted, answer.reason, answer.number) == (False, reason, 1)


def test_a_node_that_is_still_loading_says_so() -> None:
    members = joined("c", "ab")
    members.mine(0, 0, 0, 0.0, 0, 0)
    assert propose(members, view("a", "abc"), 0.1).reason == "still loading"


def test_a_proposal_is_its_issuers_own() -> None:
    members = joined("c", "ab")
    actions = members.heard("b", Control(propose=ViewProposal(view=view("a", "abc"))), 0.1)
    (answer,) = [a for a in actions if isinstance(a, Send)]
    assert answer.control.answer.reason == "it is of a/1, and b sent it"


def test_a_node_in_a_view_accepts_no_other_start() -> None:
    members = joined("b", "a")
    held = view("a", "ab")
    members.heard("a", Control(install=held), 0.1)
    assert propose(members, view("a", "ab", number=2), 0.2).reason == f"already in view {held.id}"


# --- views that hold --------------------------------------------------------------------------------------------


def test_of_two_views_the_newer_holds_and_the_sender_of_the_older_is_told() -> None:
    members = joined("b", "ac")
    newer, older = view("a", "abc", number=3), view("a", "ab", number=2)
    assert installed(members.heard("a", Control(install=newer), 0.1)) == ["abc"]
    assert members.heard("a", Control(install=older), 0.2) == [Send("a", Control(install=newer))]
    assert members.view == newer


def test_a_finish_view_outranks_a_train_view_of_any_number() -> None:
    members = joined("b", "ac")
    finish = view("a", "abc", number=2, purpose=PURPOSE_FINISH)
    members.heard("a", Control(install=finish), 0.1)
    members.heard("a", Control(install=view("a", "abc", number=9)), 0.2)
    assert members.view == finish


def test_who_has_accepted_a_view_is_not_left_out_by_another_that_holds_elsewhere() -> None:
    members = joined("b", "acd", synchronous=True)
    assert propose(members, view("a", "ab"), 0.1).accepted
    ended = Control(install=view("c", "cd", number=2, purpose=PURPOSE_FINISH))
    assert members.heard("c", ended, 0.2) == []
    says(members, "c", PHASE_RUNNING, 0.3)
    members.tick(0.1 + PROMISE_S)
    (refused,) = members.heard("c", ended, 0.2 + PROMISE_S)
    assert refused == Refused("the run ended without this node; its members are c, d")


# --- successors of a view of a synchronous run --------------------------------------------------------------------


def running(me: str, others: str) -> Membership:
    """`me`, in a view with all of them."""
    members = joined(me, others, synchronous=True)
    members.heard(others[0], Control(install=view(min(me + others), "".join(sorted(me + others)))), 0.1)
    for other in others:
        says(members, other, PHASE_RUNNING, 0.1)
    return members


def successor(members: Membership, issuer: str, names: str, number: int = 2) -> View:
    assert members.view is not None
    return view(issuer, names, number=number, parent=members.view.id)


def proposed(members: Membership, following: View, now: float) -> list[Action]:
    return members.heard(following.issuer, Control(propose=ViewProposal(view=following)), now)


def answers(actions: list[Action]) -> list[ViewAnswer]:
    return [a.control.answer for a in actions if isinstance(a, Send) and a.control.HasField("answer")]


def test_who_accepts_a_successor_stops_first_and_answers_with_its_round() -> None:
    members = running("b", "acd")
    held = members.view
    assert held is not None
    members.heard("d", Control(leave=Leave(reason="stopped")), 0.2)
    actions = proposed(members, following := successor(members, "a", "abc"), 0.3)
    assert Pause() in actions
    assert not answers(actions), "not before the trainer has stopped"
    (answer,) = answers(members.paused(17, 0.4))
    assert (answer.id, answer.accepted, answer.round) == (following.id, True, 17)
    assert (answer.held, answer.size) == (held.id, 4)


def test_who_still_waits_for_a_model_has_none_to_stand_by() -> None:
    members = running("b", "ac")
    proposed(members, successor(members, "a", "abc"), 0.3)
    (answer,) = answers(members.paused(17, 0.4, lacks_model=True))
    assert (answer.accepted, answer.held) == (True, "")


def test_replicas_of_whom_nobody_has_a_model_that_counts_take_that_of_the_furthest() -> None:
    """All were to take that of one who has died."""
    stands = {"a": 0, "b": 24, "c": 24, "d": 3}
    answers = {name: ViewAnswer(accepted=True, round=round) for name, round in stands.items()}
    next_view = view("a", "abcd")
    settle(next_view, answers, replicas=True)
    assert (next_view.round, next_view.source, list(next_view.behind)) == (24, "b", ["a", "c", "d"])
    settle(next_view, answers, replicas=False)
    assert (next_view.round, list(next_view.behind)) == (24, [])


def test_what_a_trainer_says_of_a_view_that_is_over_counts_for_no_other() -> None:
    members = running("b", "ac")
    proposed(members, following := successor(members, "a", "abc"), 0.3)
    members.heard("a", Control(install=following), 0.4)
    assert not answers(members.paused(17, 0.5))


def test_a_fallen_view_is_told_of_by_its_absence_and_does_not_rise_again() -> None:
    members = running("b", "ac")
    proposed(members, successor(members, "a", "abc"), 0.3)
    members.paused(17, 0.4)
    beats = [a.control.heartbeat for a in members.tick(1.0) if isinstance(a, Send) and a.control.HasField("heartbeat")]
    assert beats
    assert {beat.view for beat in beats} == {""}
    assert members.view is not None
    old = members.view
    members.heard("a", Control(install=old), 1.1)
    assert members.views.succession.fallen


@pytest.mark.parametrize(
    ("issuer", "names", "number", "reason", "unreached"),
    [
        ("a", "abd", 1, "view 1 holds here already", []),
        ("a", "ab", 2, "c is alive and not in it", []),
        ("a", "abcx", 2, "not linked with x", ["x"]),
    ],
)
def test_a_successor_is_refused_with_the_reason(
    issuer: str, names: str, number: int, reason: str, unreached: list[str]
) -> None:
    members = running("b", "acd")
    members.heard("d", Control(leave=Leave(reason="stopped")), 0.2)
    actions = proposed(members, successor(members, issuer, names, number), 0.3)
    (answer,) = answers(actions)
    assert (answer.accepted, answer.reason, list(answer.unreached)) == (False, reason, unreached)
    assert Pause() not in actions
    assert not members.views.succession.fallen


def test_a_start_is_no_successor() -> None:
    members = running("b", "ac")
    (answer,) = answers(proposed(members, view("a", "abc", number=9), 0.3))
    assert answer.reason == "in view 1 already"


def test_an_install_that_a_later_promise_has_overtaken_is_left_alone() -> None:
    """Whoever has said where it stands for view 3 may not go on in view 2: it would be past the round it has named."""
    members = running("b", "ac")
    second, third = successor(members, "a", "abc", 2), successor(members, "a", "abc", 3)
    proposed(members, third, 0.3)
    members.paused(17, 0.4)
    assert installed(members.heard("a", Control(install=second), 0.5)) == []
    assert installed(members.heard("a", Control(install=third), 0.6)) == ["abc"]


def test_a_proposal_that_its_issuer_withdraws_binds_nobody_any_more() -> None:
    members = running("c", "ab")
    proposed(members, first := successor(members, "b", "abc", 2), 0.3)
    withdrawn = Control(answer=ViewAnswer(id=first.id, reason="withdrawn"))
    members.heard("b", withdrawn, 0.4)
    assert Pause() in proposed(members, successor(members, "a", "abc", 3), 0.5)


def test_a_member_that_does_not_reach_a_newcomer_bars_it_from_the_next_proposal() -> None:
    members = running("a", "bc")
    members.met(node("x"), 1, 0.2)
    members.link_up("x", 0.2)
    says(members, "x", PHASE_READY, 0.2)
    members.tick(1.3)
    proposal = members.agreement._proposal
    assert proposal is not None
    assert [m.node_id for m in proposal.view.members] == ["a", "b", "c", "x"]
    refusal = ViewAnswer(id=proposal.view.id, reason="not linked with x", unreached=["x"], number=7)
    members.heard("b", Control(answer=refusal), 1.4)
    members.tick(3.0)
    again = members.agreement._proposal
    assert again is not None, "the view has fallen here, so another is due"
    assert [m.node_id for m in again.view.members] == ["a", "b", "c"]
    assert again.view.number == 8


def test_a_peer_whose_link_comes_up_is_shown_the_view_at_once() -> None:
    members = joined("b", "ac")
    held = view("a", "abc")
    members.heard("a", Control(install=held), 0.1)
    members.link_down("c", "connection reset", 0.2)
    assert Send("c", Control(install=held)) in members.link_up("c", 0.3)


def test_a_view_is_repeated_to_members_that_act_as_if_they_did_not_know_it() -> None:
    members = joined("b", "ac")
    held = view("a", "abc")
    members.heard("a", Control(install=held), 0.1)
    says(members, "a", PHASE_RUNNING, 0.2)
    told = [a.peer_id for a in members.tick(1.0) if isinstance(a, Send) and a.control.HasField("install")]
    assert told == ["c"]


# --- the end ----------------------------------------------------------------------------------------------------


def test_averaged_counts_only_after_an_answer_to_what_was_sent_in_this_view() -> None:
    members = joined("b", "a")
    members.mine(PHASE_FINISHED, 0, 0, 0.0, 0, 0)
    before = members.roster.number
    finish = view("a", "ab", number=5, purpose=PURPOSE_FINISH)
    members.heard("a", Control(install=finish), 0.1)
    members.mine(PHASE_AVERAGED, 0, 0, 0.0, 0, 0, view=finish.id)
    says(members, "a", PHASE_AVERAGED, 0.2, answers=before)  # sent before a knew of this view
    assert not members.done(0.2)
    members.tick(0.3)
    says(members, "a", PHASE_AVERAGED, 0.4)
    assert members.done(0.4)


def test_the_mean_of_another_view_does_not_make_this_node_averaged() -> None:
    members = joined("b", "a")
    finish = view("a", "ab", purpose=PURPOSE_FINISH)
    members.heard("a", Control(install=finish), 0.1)
    members.mine(PHASE_AVERAGED, 0, 0, 0.0, 0, 0, view="0123456789abcdef")
    assert members.snapshot(0.2)[0]["phase"] == "finished"
    members.mine(PHASE_AVERAGED, 0, 0, 0.0, 0, 0, view=finish.id)
    assert members.snapshot(0.2)[0]["phase"] == "averaged"


def test_who_accepts_a_new_finish_view_holds_no_mean_from_then_on() -> None:
    members = joined("b", "ac")
    finish = view("a", "abc", purpose=PURPOSE_FINISH)
    members.heard("a", Control(install=finish), 0.1)
    members.mine(PHASE_AVERAGED, 0, 0, 0.0, 0, 0, view=finish.id)
    for peer in "ac":
        says(members, peer, PHASE_FINISHED, 0.2)
    members.heard("c", Control(leave=Leave(reason="stopped by a signal")), 0.3)
    assert propose(members, view("a", "ab", number=2, purpose=PURPOSE_FINISH, parent=finish.id), 0.4).accepted
    assert members.snapshot(0.4)[0]["phase"] == "finished"


def test_no_new_finish_view_is_made_for_a_member_that_left_in_order() -> None:
    members = joined("a", "bc")
    finish = view("a", "abc", purpose=PURPOSE_FINISH)
    members.heard("b", Control(install=finish), 0.1)
    members.mine(PHASE_AVERAGED, 0, 0, 0.0, 0, 0, view=finish.id)
    for peer in "bc":
        says(members, peer, PHASE_FINISHED, 0.2)
    members.heard("c", Control(leave=Leave(finished=True)), 0.3)
    members.tick(1.0)
    assert members.agreement._proposal is None
    members.heard("b", Control(leave=Leave(finished=True)), 1.1)
    assert members.done(1.1)


def test_a_finish_view_without_a_live_member_is_refused() -> None:
    members = joined("b", "ac")
    members.heard("a", Control(install=view("a", "abc")), 0.1)
    members.mine(PHASE_FINISHED, 0, 0, 0.0, 0, 0)
    short = view("a", "ab", number=2, purpose=PURPOSE_FINISH)
    assert propose(members, short, 0.2).reason == "c is alive and not in it"


# --- the view itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        view("a", "abc", number=2),
        view("b", "abc"),
        view("a", "ab"),
        view("a", "abc", parent="1"),
        view("a", "abc", purpose=PURPOSE_FINISH),
    ],
)
def test_the_id_is_that_of_number_issuer_members_parent_and_purpose(other: View) -> None:
    assert view_id(other) != view_id(view("a", "abc"))


def test_the_id_tells_incarnations_apart() -> None:
    one, other = view("a", "ab"), view("a", "ab")
    other.members[1].incarnation = 2
    assert view_id(one) != view_id(other)
    other.members[1].incarnation, other.issuer_incarnation = 1, 2
    assert view_id(one) != view_id(other)


def broken(**changes: object) -> View:
    """A view with a part that does not fit, and the id that belongs to it."""
    made = view("a", "ab")
    for name, value in changes.items():
        if isinstance(value, list):
            made.ClearField(name)  # type: ignore[arg-type]
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    if "id" not in changes:
        made.id = view_id(made)
    return made


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (broken(id="0" * 16), "has the id '0000000000000000', expected [0-9a-f]{16}$"),
        (broken(members=[node("b"), node("a")]), "has members that are not sorted, or twice the same"),
        (broken(members=[node("a"), node("a")]), "has members that are not sorted, or twice the same"),
        (broken(samples=[1]), "has 1 counts of samples for 2 members"),
        (broken(purpose=0), "has the unknown purpose 0"),
        (broken(issuer="x"), "is of 'x', who is no member"),
        (broken(members=[], samples=[]), "is of 'a', who is no member"),
    ],
)
def test_a_view_whose_parts_do_not_fit_is_a_bad_frame(bad: View, words: str) -> None:
    with pytest.raises(BadFrame, match=f"view 1 from node-z {words}"):
        check(bad, "node-z")
    members = joined("b", "a")
    for control in (Control(install=bad), Control(propose=ViewProposal(view=bad))):
        with pytest.raises(BadFrame):
            members.heard("a", control, 0.1)
    assert members.view is None


# --- what a view tells besides its members --------------------------------------------------------------------------


def test_members_whom_a_node_has_never_met_are_introduced_by_a_view() -> None:
    members = joined("b", "a")
    strangers = {"z", "c"}
    actions = members.heard("a", Control(install=view("a", "abcz")), 0.1)
    assert {a.identity.node_id for a in actions if isinstance(a, Introduced)} == strangers
    actions = members.heard("a", Control(propose=ViewProposal(view=view("a", "abcz", number=2))), 0.2)
    assert {a.identity.node_id for a in actions if isinstance(a, Introduced)} == strangers
    actions = members.heard("a", Control(install=view("a", "ab", number=3)), 0.3)
    assert [a for a in actions if isinstance(a, Introduced)] == []


def test_the_size_of_the_largest_view_is_passed_on_by_who_was_in_none() -> None:
    """`b` has started again on one side of a split run, and takes part in the view that takes it in."""
    members = joined("b", "c")
    large = view("a", "aceg")
    members.heard("c", Control(install=large), 0.1)
    assert members.view is None
    says(members, "c", PHASE_RUNNING, 0.2)
    small = view("c", "bc", number=2, parent=large.id)
    members.heard("c", Control(install=small), 0.3)
    members.met(node("d"), 1, 0.4)
    members.link_up("d", 0.4)
    actions = says(members, "d", PHASE_READY, 0.5)
    (taken_in,) = [a.view for a in actions if isinstance(a, Installed)]
    assert ("".join(m.node_id for m in taken_in.members), taken_in.most) == ("bcd", 4)


@pytest.mark.parametrize("number", [NUMBERS, 2**64 - 1])
def test_a_number_after_which_none_can_come_is_refused(number: int) -> None:
    members = joined("a", "b")
    for control in (
        Control(answer=ViewAnswer(number=number)),
        Control(install=view("b", "ab", number=number)),
        Control(propose=ViewProposal(view=view("b", "ab", number=number))),
    ):
        with pytest.raises(BadFrame, match=f"{number}, expected less than"):
            members.heard("b", control, 0.1)
    assert members.agreement.number == 0


def test_no_view_says_that_there_were_more_members_than_can_be() -> None:
    large = view("b", "ab")
    large.most = MEMBERS_LIMIT + 1
    with pytest.raises(BadFrame, match="10001 members are the most"):
        check(large, "b")
