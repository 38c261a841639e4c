"""What variance reduction asks of a learner: differences of gradients of the same samples, in float64."""

from collections.abc import Callable

import pytest
import torch
from small_tasks import Dropping, Line, Normed, Small, samples
from torch import Tensor, nn

from shoal.data.task import Data, Task
from shoal.errors import SettingsError, TaskError
from shoal.learner import Learner, initial_state
from shoal.settings import Settings
from shoal.vector import FlatModel


def learner(task: Task, data: Data | None = None, precision: str = "f64", **options: float) -> tuple[Learner, Tensor]:
    model, x0 = initial_state(task, 0, precision=precision)
    return Learner(task, data or samples(), model, batch=4, seed=0, shard=0, **options), x0  # type: ignore[arg-type]


# --- the change of a gradient ---------------------------------------------------------------------------------------


def test_over_all_rows_it_is_the_change_of_the_full_gradient() -> None:
    me, x0 = learner(Small(), weight_decay=0.3)
    w = x0 + 0.1
    change = me.change(w, x0, torch.arange(me.samples)) / me.samples
    torch.testing.assert_close(change, me.full_gradient(w) - me.full_gradient(x0), rtol=1e-9, atol=1e-12)


def test_a_row_that_is_drawn_twice_counts_twice() -> None:
    me, x0 = learner(Line(), weight_decay=0.3)
    w = x0 - 0.2
    once, twice = me.change(w, x0, torch.tensor([5])), me.change(w, x0, torch.tensor([5, 5]))
    torch.testing.assert_close(twice, 2 * once)


def test_at_the_snapshot_itself_it_is_zero() -> None:
    me, x0 = learner(Small())
    assert not me.change(x0, x0, torch.tensor([1, 2, 3])).any()


def test_the_full_gradient_tells_the_loss_over_all_samples() -> None:
    me, x0 = learner(Small())
    assert me.full(x0).loss == pytest.approx(me.evaluate(x0, held_out=False).loss)


# --- what is no finite sum ------------------------------------------------------------------------------------------


class Pairs(Small):
    """A loss over pairs of samples: no mean over samples."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output[:, None] - output[None]).square().mean()


class Shaken(Small):
    """Noise that no module's name tells of."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output * torch.randn_like(output)).mean()


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (Dropping, "is no finite sum: its module 1 is Dropout"),
        (Normed, "is no finite sum: its module 1 is BatchNorm1d"),
        (Pairs, "is no finite sum: its loss is no mean over samples"),
        (Shaken, "is no finite sum: its gradient of the same samples changes"),
    ],
)
def test_a_task_that_is_no_finite_sum_is_refused_with_what_is_wrong(task: Callable[[], Task], complaint: str) -> None:
    me, x0 = learner(task())
    with pytest.raises(TaskError, match=complaint):
        me.check_finite_sum(x0)


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("task", [Small, Line])
def test_a_mean_over_samples_passes(task: Callable[[], Task], precision: str) -> None:
    me, x0 = learner(task(), precision=precision)
    me.check_finite_sum(x0)


# --- float64 --------------------------------------------------------------------------------------------------------


def test_a_model_in_float64_computes_in_float64_whatever_its_data_are() -> None:
    me, x0 = learner(Small())
    assert x0.dtype == me.gradient(x0).g.dtype == me.full_gradient(x0).dtype == torch.float64
    assert me.evaluate(x0).total > 0


def test_both_precisions_begin_at_the_same_model() -> None:
    assert torch.equal(initial_state(Small(), 3, precision="f64")[1].float(), initial_state(Small(), 3)[1])


def test_members_of_unlike_precision_are_told_which_tensor_differs() -> None:
    single, double = (FlatModel(nn.Linear(2, 1), dtype=dtype).layout for dtype in (torch.float32, torch.float64))
    assert single.document()["parameter weight"] == "float32 1x2 at 0"
    assert double.document()["parameter weight"] == "float64 1x2 at 0"


# --- settings -------------------------------------------------------------------------------------------------------


def test_svrg_is_katyusha_x_with_a_coupling_of_one_half_in_float64() -> None:
    assert (Settings(algorithm="svrg").tau, Settings(algorithm="svrg").precision) == (0.5, "f64")
    assert (Settings(algorithm="katyusha-x").tau, Settings(algorithm="katyusha-x").precision) == (None, "f64")
    assert Settings(algorithm="katyusha-x", precision="f32").precision == "f32"
    assert Settings(algorithm="d2").precision == "f32"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"algorithm": "d2", "tau": 0.1}, "tau = 0.1 is for katyusha-x and svrg, not for d2"),
        ({"algorithm": "d2", "prox": "l1:0.1"}, "prox = l1:0.1 is for katyusha-x and svrg, not for d2"),
        ({"algorithm": "svrg", "tau": 0.1}, "tau = 0.1 makes katyusha-x of svrg"),
        ({"algorithm": "katyusha-x", "tau": 0.6}, "tau = 0.6 must be at most 0.5"),
        ({"algorithm": "katyusha-x", "prox": "l3:1"}, "prox = 'l3:1' must be none, l1:STRENGTH or l2:STRENGTH"),
        ({"algorithm": "katyusha-x", "momentum": 0.9}, "momentum = 0.9 has no place in katyusha-x"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        Settings(**values)  # type: ignore[arg-type]
