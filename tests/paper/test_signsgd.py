"""signSGD and Signum with majority vote (1802.04434, 1810.05291); the error feedback that repairs them (1901.09847).

The theorems' constants are unverified; what is tested are the claims of the abstracts, and findings of our own, which
say so. Attackers are emulated: they multiply their gradients by a factor.
"""

import itertools

import pytest
import torch
from small_tasks import learner
from torch import Tensor, nn

from paper.runs import final_accuracy, final_loss, train
from shoal.data.task import Data, Place, Task
from shoal.errors import Diverged
from shoal.learner import initial_state
from shoal.settings import Settings
from shoal.simulation import Result, Scenario, simulate

SEVEN = {"partition": "iid", "rounds": 250, "schedule": "linear"}


def signum(workers: int = 7, attackers: int = 0, factor: float = -1.0, **settings: object) -> Result:
    scenario = Scenario(attackers=tuple((k, factor) for k in range(attackers)))
    return train(workers, scenario, **{"algorithm": "signum", **SEVEN, **settings})


class Pull(Task):
    """f_i(x) = (x - a_i)^2 / 2 in each coordinate, a_i the node's only sample: every gradient is exact."""

    def model(self) -> nn.Module:
        return Point()

    def data(self, place: Place) -> Data:
        raise NotImplementedError

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum(1).mean() / 2

    def right(self, output: Tensor, target: Tensor) -> None:
        return None


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.x.expand(len(inputs), -1)


def pulled_to(points: list[list[float]], **settings: object) -> Result:
    """Workers that each pull x to a point of their own."""
    data = [Data(*(torch.tensor([a]),) * 4) for a in points]
    model, x0 = initial_state(Pull(), 0)
    chosen = Settings(**{"partition": "iid", "batch": 1, "schedule": "linear", **settings})  # type: ignore[arg-type]
    learners = [learner(Pull(), one, model, batch=1, weight_decay=chosen.decay_in_gradient) for one in data]
    return simulate(chosen, Scenario(), learners, [x0.clone() for _ in points])


# --- limits ---------------------------------------------------------------------------------------------------------


def test_one_worker_is_signsgd_on_one_machine() -> None:
    """Algorithm 1 of 1802.04434 is the vote of one: every coordinate moves by lr towards the optimum."""
    run = pulled_to([[1.0, -1.0, 2.0]], algorithm="signsgd", rounds=10, lr=0.01, schedule="constant")
    torch.testing.assert_close(run.mean, torch.tensor([0.1, -0.1, 0.1]))


def test_the_momentum_decides_and_not_the_last_gradient() -> None:
    """Signum (algorithm 2): m <- b m + (1 - b) g. With x past the optimum the gradient turns at once, m only later."""
    common = {"rounds": 9, "lr": 0.1, "schedule": "constant"}
    without = pulled_to([[0.5, 0.5, 0.5]], algorithm="signsgd", **common)
    with_momentum = pulled_to([[0.5, 0.5, 0.5]], algorithm="signum", momentum=0.9, **common)
    assert (without.mean - 0.5).abs().max() < 0.11
    assert (with_momentum.mean > 0.8).all()


def test_weight_decay_acts_after_the_vote_and_keeps_its_size() -> None:
    """1810.05291, algorithm 1: x <- x - lr (sign + wd x). Where sign and decay balance, |x| = 1 / wd, whatever g is."""
    run = pulled_to([[1e3, -1e3, 1e3]], algorithm="signsgd", rounds=4000, lr=0.05, weight_decay=0.5)
    torch.testing.assert_close(run.mean, torch.tensor([2.0, -2.0, 2.0]), atol=0.01, rtol=0)


def test_a_coordinate_without_a_gradient_stays_where_it_is() -> None:
    """Our own finding: with sign(0) = +1 it would walk lr a round, here it oscillates."""
    for workers in (1, 2, 5):
        run = pulled_to([[0.0, 0.0, 5.0]] * workers, algorithm="signsgd", rounds=200, lr=0.01, schedule="constant")
        assert run.mean[:2].abs().max() < 0.011
        assert run.mean[2] > 1.9


# --- the vote -------------------------------------------------------------------------------------------------------


def test_the_vote_ends_at_the_median_where_workers_differ_and_error_feedback_at_the_mean() -> None:
    """The limit of the method, in no theorem: with optima 1, 2 and 10 the vote stops at 2, the mean's optimum is
    13/3."""
    points = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [10.0, 3.0, -10.0]]
    vote = pulled_to(points, algorithm="signsgd", rounds=3000, lr=0.01)
    repaired = pulled_to(points, algorithm="ef-signsgd", rounds=3000, lr=0.05)
    torch.testing.assert_close(vote.mean, torch.tensor([2.0, 0.0, -2.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(repaired.mean, torch.tensor(points).mean(0), atol=0.02, rtol=0)


def test_more_workers_vote_with_less_noise() -> None:
    """Theorem 2 of 1802.04434 (unverified): the vote divides the noise by sqrt(M). Loss falls with every M."""
    losses = [
        final_loss(signum(m, algorithm="signsgd", batch=4, rounds=200, partition="shared")) for m in (1, 3, 7, 15)
    ]
    assert all(less > more for less, more in itertools.pairwise(losses)), losses


def test_on_iid_data_the_vote_is_as_good_as_full_precision_with_a_thirtieth_of_the_bytes() -> None:
    """Abstract of 1802.04434. The full claim, with a grid of step sizes, is `shoal reproduce signsgd`."""
    full = train(7, algorithm="allreduce-sgd", **{**SEVEN, "momentum": 0.9, "lr": 0.1})
    vote = signum()
    assert final_accuracy(vote) >= final_accuracy(full) - 0.01
    assert 30 * sum(vote.sent_bytes.values()) <= sum(full.sent_bytes.values())


@pytest.mark.parametrize(("flippers", "survives"), [(3, True), (4, False)])
def test_a_minority_of_flippers_is_outvoted_and_a_majority_is_not(flippers: int, survives: bool) -> None:
    """Theorem 2 of 1810.05291: any share below a half of blind adversaries, flipped signs among them."""
    run = signum(attackers=flippers, rounds=400)
    assert (final_accuracy(run) > 0.9) is survives


def test_one_that_shouts_ruins_a_mean_and_is_one_voice_in_a_vote() -> None:
    """Our own finding: flipped signs alone do not tell the two apart, size does."""
    with pytest.raises(Diverged):
        train(7, Scenario(attackers=((0, -10.0),)), algorithm="allreduce-sgd", lr=0.1, momentum=0.9, **SEVEN)
    assert final_accuracy(signum(attackers=1, factor=-10.0)) > 0.94


def test_skewed_labels_break_the_vote_and_error_feedback_repairs_it() -> None:
    """No theorem covers workers that differ; ours is the measurement."""
    skewed = {"partition": "labels:2", "rounds": 300, "schedule": "linear"}
    mean = train(5, algorithm="allreduce-sgd", lr=0.5, **skewed)
    repaired = train(5, algorithm="ef-signsgd", lr=0.5, **skewed)
    assert final_accuracy(signum(5, **skewed)) < 0.8
    assert final_accuracy(repaired) >= final_accuracy(mean) - 0.01
    assert final_loss(repaired) <= 1.1 * final_loss(mean)


# --- replicas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["signsgd", "signum", "ef-signsgd", "allreduce-sgd"])
def test_all_replicas_are_equal_to_the_last_bit(algorithm: str) -> None:
    run = train(4, algorithm=algorithm, rounds=20)
    assert all(torch.equal(state, run.states[0]) for state in run.states)
