"""Models that are further apart than a node allows are refused by it, at either end, and the sum stays as it was."""

import pytest
import torch
from codecs_kit import CODECS
from pair_kit import Pair

from shoal.errors import SettingsError
from shoal.messages import Kind
from shoal.settings import Settings
from shoal.settling import Outcome
from shoal.simulation import Scenario, population, simulate


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("who", "ab")
def test_models_too_far_apart_are_not_averaged_whoever_minds(codec: str, who: str) -> None:
    pair = Pair(codec, **{who: {"max_distance": 4.9}})
    assert pair.x["a"].tolist() == [0, 0, 0, 0]
    assert pair.x["b"].tolist() == [3, 0, 4, 0]
    assert [pair.settled[name].tally.refused for name in "ab"] == [int(name == who) for name in "ab"]
    reasons = [reason for source, kind, reason in pair.said if source == who and kind in (Kind.ABORT, Kind.REFUSE)]
    assert "our models are 5 apart, at most 4.9 here" in reasons
    assert ("a", Outcome.REFUSED) in pair.ended
    assert all(settled.in_doubt == settled.unconfirmed == 0 for settled in pair.settled.values())


@pytest.mark.parametrize("codec", CODECS)
def test_at_the_bound_they_are(codec: str) -> None:
    pair = Pair(codec, a={"max_distance": 5.0}, b={"max_distance": 5.0})
    assert pair.x["a"].tolist() == pair.x["b"].tolist() == [1.5, 0, 2, 0]
    assert ("a", Outcome.DONE) in pair.ended


def test_one_that_is_far_off_keeps_to_itself_and_the_others_go_on() -> None:
    settings = Settings(task="quadratic", partition="iid", rounds=60, lr=0.01, topology="complete", max_distance=100.0)
    learners, states = population(settings, 4)
    states[3] += 1e4
    result = simulate(settings, Scenario(jitter=0.1), learners, states)
    assert all(runtime.settlement.tally.refused for runtime in result.runtimes)
    assert max(float(state.abs().max()) for state in result.states[:3]) < 100
    together = torch.stack(result.states[:3])
    assert float((together - together.mean(0)).norm()) < 10, "they average with each other"


def test_it_is_for_averages_of_pairs() -> None:
    with pytest.raises(SettingsError, match="max_distance = 3 is for averages of pairs; d2 has none"):
        Settings(algorithm="d2", max_distance=3.0)
