"""A model that is far away pulls no harder than one at the distance allowed, and the sum of the models is kept."""

from typing import Any

import pytest
import torch
from codecs_kit import CODECS
from hypothesis import given
from hypothesis import strategies as st
from pair_kit import Pair

from shoal.delta import PIECE, Between, Delta
from shoal.element_codecs import pair_codecs
from shoal.errors import SettingsError
from shoal.exchange import Settlement
from shoal.messages import Kind
from shoal.pair_codec import Duplex
from shoal.settings import Settings
from shoal.settling import CLIPPED_AT_MOST, Desk, Outcome
from shoal.simulation import Result, Scenario, evaluator, population, simulate
from shoal.state import State
from shoal.traits import DIFFERENCES

TWO: dict[str, Any] = {"clip_distance": 2.0}


def desk(clip_distance: float) -> Desk:
    settled = Settlement(
        "a",
        1,
        snapshot=lambda: torch.zeros(1),
        add=lambda delta: None,
        send=lambda peer, message: None,
        ended=lambda *how: None,
        clip_distance=clip_distance,
    )
    return settled._desk


@pytest.mark.parametrize("codec", CODECS)
def test_each_end_of_an_average_moves_by_half_of_the_distance_allowed(codec: str) -> None:
    pair = Pair(codec, TWO, TWO)
    torch.testing.assert_close(pair.x["a"], torch.tensor([0.6, 0.0, 0.8, 0.0]))
    torch.testing.assert_close(pair.x["b"], torch.tensor([2.4, 0.0, 3.2, 0.0]))
    assert [pair.settled[name].tally.clipped for name in "ab"] == [1, 1]
    assert ("a", Outcome.DONE) in pair.ended


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("allowed", [5.0, 6.0])
def test_models_as_near_as_is_allowed_are_averaged_as_without_it(codec: str, allowed: float) -> None:
    pair = Pair(codec, {"clip_distance": allowed}, {"clip_distance": allowed})
    assert pair.x["a"].tolist() == pair.x["b"].tolist() == [1.5, 0, 2, 0]
    assert [pair.settled[name].tally.clipped for name in "ab"] == [0, 0]


@pytest.mark.parametrize("codec", CODECS)
def test_an_average_in_doubt_is_as_short_when_it_is_settled(codec: str) -> None:
    pair = Pair(codec, TWO, TWO, lost=Kind.COMMIT)
    assert pair.settled["b"].in_doubt == 1
    assert pair.x["b"].tolist() == [3, 0, 4, 0]
    pair.meet_again()
    torch.testing.assert_close(pair.x["b"], torch.tensor([2.4, 0.0, 3.2, 0.0]))
    torch.testing.assert_close(pair.x["a"] + pair.x["b"], torch.tensor([3.0, 0.0, 4.0, 0.0]))


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("n", [1, 300, 2 * PIECE + 7])
@given(seed=st.integers(0, 20), size=st.sampled_from([1.0, 1e6, 1e15]))
def test_the_deltas_of_both_ends_cancel_to_the_last_bit(codec: str, n: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    known, far = (pair_codecs(codec, n, generator, lattices=False)[codec] for _ in range(2))
    assert isinstance(known, Duplex)
    assert isinstance(far, Duplex)
    s, r = known.own(torch.randn(n, generator=generator)), far.own(size * torch.randn(n, generator=generator))
    mine, theirs = desk(0.01), desk(0.01)
    (own, no), (other, neither) = mine.bounded(known.delta(s, r, "b")), theirs.bounded(far.delta(r, s, "a"))
    assert no == neither == ""
    assert torch.equal(own.tensor(), -other.tensor())
    assert float(own.tensor().double().norm()) <= 0.005 * (1 + 1e-6)
    assert mine.tally.clipped == theirs.tally.clipped == 1


def test_without_it_a_delta_is_left_as_it_is_and_not_measured() -> None:
    class Measured(Between):
        def length(self, dtype: torch.dtype | None = None) -> float:
            raise AssertionError("one pass more over both models")

    off = desk(float("inf"))
    off.apart.chances = 1  # the first of sixteen is measured anyway
    delta: Delta = Measured(torch.zeros(3), torch.ones(3))
    assert off.bounded(delta) == (delta, "")


@pytest.mark.parametrize("far", [1e21, 3e38])
def test_one_so_far_away_that_its_length_cannot_be_told_is_refused(far: float) -> None:
    x = (torch.full((4,), -far), torch.full((4,), far))
    pair = Pair("at once", TWO, TWO, x=(x[0].clone(), x[1].clone()))
    assert torch.equal(pair.x["a"], x[0])
    assert torch.equal(pair.x["b"], x[1])
    assert any(f"at most {CLIPPED_AT_MOST:g} here" in reason for _, _, reason in pair.said)
    assert ("a", Outcome.REFUSED) in pair.ended


def test_one_that_is_too_far_for_an_average_is_refused_and_not_clipped() -> None:
    pair = Pair("at once", {"max_distance": 4.0, **TWO}, TWO)
    assert pair.x["a"].tolist() == [0, 0, 0, 0]
    assert pair.settled["a"].tally.refused == 1
    assert pair.settled["a"].tally.clipped == 0


# --- in a run -------------------------------------------------------------------------------------------------------

ATTACKED = Scenario(jitter=0.1, attackers=((3, -100.0),))


def attacked(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[list[float], Result]:
    """(how far each average moved an honest model, the result) of four workers, of which the last runs away: it
    multiplies each of its gradients by -100, and its model is twice as far off after each."""
    moves: list[float] = []
    genuine, hostile = State.add, list[State]()

    def measured(self: State, delta: Delta) -> None:
        before = self.now.double().clone()
        genuine(self, delta)
        if self not in hostile:
            moves.append(float((self.now.double() - before).norm()))

    run = Settings(task="quadratic", partition="iid", rounds=40, lr=0.01, topology="complete", **settings)
    learners, states = population(run, 4)
    monkeypatch.setattr(State, "add", measured)
    first = State.__init__

    def known(self: State, x: torch.Tensor, **how: Any) -> None:
        first(self, x, **how)
        if x is states[3]:
            hostile.append(self)

    monkeypatch.setattr(State, "__init__", known)
    result = simulate(run, ATTACKED, learners, states)
    assert len(hostile) == 1
    return moves, result


def test_an_attacker_moves_an_honest_model_by_half_of_the_distance_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    moves, result = attacked(monkeypatch, clip_distance=0.5)
    assert max(moves) <= 0.25 * (1 + 1e-5)
    assert sum(move > 0.24 for move in moves) > 20, "the attacker was met"
    assert all(runtime.settlement.tally.clipped for runtime in result.runtimes[:3])


def test_without_it_an_attacker_moves_it_as_far_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    moves, _ = attacked(monkeypatch)
    assert max(moves) > 1000


@pytest.mark.parametrize(("clip_distance", "learns"), [(0.0, False), (0.3, True), (1.0, True)])
def test_seven_learn_beside_one_that_goes_up_its_gradients(clip_distance: float, learns: bool) -> None:
    run = Settings(rounds=100, lr=0.1, partition="iid", clip_distance=clip_distance)
    learners, states = population(run, 8)
    result = simulate(run, Scenario(jitter=0.1, attackers=((0, -2.0),)), learners, states)
    loss, accuracy = evaluator(learners)(torch.stack(result.states[1:]).mean(0))
    print(f"honest mean: loss {loss:.4g}, accuracy {accuracy:.2f}")
    assert (loss < 2) is learns


# --- what it does not go with ---------------------------------------------------------------------------------------


def test_all_members_must_agree_on_it() -> None:
    assert Settings(clip_distance=3.0).run_document()["clip_distance"] == 3.0


def test_it_is_for_averages_of_pairs() -> None:
    with pytest.raises(SettingsError, match="clip_distance = 3 is for averages of pairs; d2 has none"):
        Settings(algorithm="d2", clip_distance=3.0)


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_codecs_whose_lattice_one_far_model_would_coarsen_are_refused(codec: str) -> None:
    with pytest.raises(SettingsError, match=f"clip_distance = 3 does not go with codec {codec}: .*; f32, f16, bf16 do"):
        Settings(codec=codec, clip_distance=3.0)


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_a_peer_that_wishes_for_such_a_codec_does_not_get_it(codec: str) -> None:
    known = pair_codecs("f32", 8, torch.Generator(), lattices=False)
    assert known.agreed(codec) == ("", f"codec '{codec}' is unknown here; known: f32, f16, bf16")
