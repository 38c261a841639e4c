"""Exchanges that are left out: periodic averaging (Cooperative SGD, 1808.07576, section 3), among peers."""

import pytest
import torch

from paper.runs import final_loss, quadratic, train
from shoal.settings import Settings
from shoal.simulation import Cut, Result, Scenario, population

COMMON = {"lr": 0.2, "rounds": 200, "partition": "iid"}


def sent(result: Result) -> int:
    return sum(result.sent_bytes.values())


@pytest.mark.parametrize("algorithm", ["ad-psgd", "d-psgd"])
@pytest.mark.parametrize("every", [2, 5])
def test_they_send_nothing_and_models_whose_data_are_alike_learn_all_the_same(algorithm: str, every: int) -> None:
    always, sometimes = (train(5, algorithm=algorithm, exchange_every=k, **COMMON) for k in (1, every))
    assert sent(sometimes) == pytest.approx(sent(always) / every, rel=0.1)
    assert final_loss(sometimes) < 1.5 * final_loss(always)


@pytest.mark.parametrize("every", [2, 3])
def test_d_psgd_is_local_sgd_between_its_mixes(every: int) -> None:
    """Round t, from 0: x <- W x - lr g where k divides t, else x <- x - lr g, the gradient at the old x."""
    settings = {"algorithm": "d-psgd", "topology": "ring", "lr": 0.2, "seed": 3, "exchange_every": every}
    ours = quadratic(5, rounds=8, **settings)
    assert ours.runtimes[0].mixing is not None
    W = torch.tensor(ours.runtimes[0].mixing.W)
    chosen = Settings(task="quadratic", partition="iid", batch=4, **settings)  # type: ignore[arg-type]
    learners, x0 = population(chosen, 5)
    x = torch.stack(x0).double()
    for t in range(8):
        g = torch.stack([le.gradient(row.float()).g for le, row in zip(learners, x, strict=True)]).double()
        x = (W @ x if t % every == 0 else x) - 0.2 * g
    torch.testing.assert_close(torch.stack(ours.states).double(), x, rtol=0, atol=1e-5)


UNEVEN = {
    "one is four times slower": Scenario(slow=((0, 4.0),), vector_s=0.001),
    "one is fifty times slower": Scenario(slow=((2, 50.0),), vector_s=0.001),
    "links are slow": Scenario(vector_s=0.035),
    "a link breaks": Scenario(slow=((1, 3.0),), cuts=(Cut(0.05, 0, 1, 0.3), Cut(0.5, 1, 2, 0.1))),
}


@pytest.mark.parametrize("how", UNEVEN)
@pytest.mark.parametrize(("topology", "codec"), [("complete", "f32"), ("ring", "f32"), ("ring", "bf16")])
@pytest.mark.parametrize("every", [2, 5])
def test_d_psgd_gives_the_same_models_though_some_run_ahead_between_mixes(
    every: int, topology: str, codec: str, how: str
) -> None:
    """Who is fast takes its local steps and then waits; what is mixed does not depend on who comes first."""
    settings = {"algorithm": "d-psgd", "lr": 0.2, "rounds": 23, "exchange_every": every, "codec": codec}
    even, uneven = (quadratic(4, scenario, topology=topology, **settings) for scenario in (None, UNEVEN[how]))
    assert uneven.seconds > even.seconds
    assert all(torch.equal(one, other) for one, other in zip(uneven.states, even.states, strict=True))


@pytest.mark.parametrize("algorithm", ["ad-psgd", "d-psgd"])
def test_on_unlike_data_models_drift_further_apart(algorithm: str) -> None:
    """The price, which grows with k and with how unlike the data are."""
    always, sometimes = (
        train(5, algorithm=algorithm, exchange_every=k, **{**COMMON, "partition": "labels:2"}) for k in (1, 5)
    )
    assert sometimes.curve[-1].spread > 1.5 * always.curve[-1].spread
