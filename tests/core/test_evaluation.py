"""Evaluations are what counting by hand gives; tasks and data that cannot be trained are refused by name."""

import dataclasses
import math

import pytest
import torch
from small_tasks import Dropping, Line, N, Normed, Small, learner, samples
from torch import Tensor, nn
from torch.nn import functional

import shoal.learner
from shoal.errors import DataError, TaskError
from shoal.learner import Counts, initial_state

# --- evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [True, False])
def test_an_evaluation_is_what_counting_by_hand_gives(held_out: bool) -> None:
    task, data = Small(), samples()
    model, x0 = initial_state(task, 0)
    counts = learner(task, data).evaluate(x0, held_out=held_out)
    x, y = (data.held_out_inputs, data.held_out_targets) if held_out else (data.inputs, data.targets)
    model.load(x0)
    output = model.module(x)
    assert counts.right == int((output.argmax(1) == y).sum())
    assert counts.total == len(y)
    assert counts.accuracy == counts.right / len(y)
    assert counts.loss == pytest.approx(functional.cross_entropy(output, y).item(), rel=1e-6)


def test_an_evaluation_drops_nothing_out_and_the_next_gradient_does_again() -> None:
    me, (model, x0) = learner(Dropping()), initial_state(Dropping(), 0)
    assert me.evaluate(x0) == me.evaluate(x0)
    me = learner(Dropping(), model=model)
    me.evaluate(x0)
    assert not model.module.training
    me.gradient(x0)
    assert model.module.training


def test_an_evaluation_uses_the_running_statistics_and_leaves_them() -> None:
    task = Normed()
    model, x0 = initial_state(task, 0)
    me = learner(task, model=model)
    moved = x0.clone()
    moved[model.layout.d :] += 1
    assert me.evaluate(x0).loss != me.evaluate(moved).loss
    assert torch.equal(model.carried(), moved[model.layout.d :])


def test_a_task_without_labels_has_a_loss_and_no_accuracy() -> None:
    data = samples()
    data = dataclasses.replace(data, targets=data.targets.float(), held_out_targets=data.held_out_targets.float())
    me, (_, x0) = learner(Line(), data), initial_state(Line(), 0)
    counts = me.evaluate(x0)
    assert (counts.right, counts.accuracy, me.histogram) == (None, None, [])
    assert counts.loss > 0


def test_a_node_without_held_out_samples_counts_nothing() -> None:
    me, (_, x0) = learner(Small(), samples(m=0)), initial_state(Small(), 0)
    assert me.evaluate(x0) == Counts.nothing()


def test_counts_add_up_over_nodes() -> None:
    total = Counts(3, 4, 2.0) + Counts(1, 6, 3.0) + Counts.nothing()
    assert total == Counts(4, 10, 5.0)
    assert (total.accuracy, total.loss) == (0.4, 0.5)
    assert (Counts(3, 4, 2.0) + Counts(None, 1, 1.0)).accuracy is None
    assert Counts.nothing().accuracy is None
    assert math.isnan(Counts.nothing().loss)


def test_a_learner_knows_its_samples_and_labels() -> None:
    data = samples()
    me = learner(Small(), data)
    assert me.samples == N
    assert me.histogram == [int((data.targets == k).sum()) for k in range(3)]


# --- bad tasks and data -------------------------------------------------------------------------------------------


def test_data_that_does_not_fit_the_task_is_refused_by_name() -> None:
    data = samples()
    with pytest.raises(DataError, match="task Small: no training sample on this node"):
        learner(Small(), samples(n=0))
    broken = data.inputs.clone()
    broken[[4, 7], 1] = math.nan
    with pytest.raises(DataError, match="task Small: 2 inputs hold NaN or infinity, the first in row 4"):
        learner(Small(), dataclasses.replace(data, inputs=broken))
    with pytest.raises(DataError, match=r"task Small: labels from 1 to 3, expected 0 to 2 \(3 classes\)"):
        learner(Small(), dataclasses.replace(data, targets=data.targets + 1))
    floats = dataclasses.replace(data, targets=data.targets.float(), held_out_targets=data.held_out_targets.float())
    with pytest.raises(DataError, match=r"targets are float32 \(600,\), expected int64 labels"):
        learner(Small(), floats)
    with pytest.raises(TaskError, match=r"task Small: data\(\) gave tuple object, expected shoal.Data"):
        learner(Small(), (data.inputs, data.targets))  # type: ignore[arg-type]


def test_a_loss_that_is_no_mean_is_refused() -> None:
    class Vectorial(Small):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            return functional.cross_entropy(output, target, reduction="none")

    class Detached(Small):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            return functional.cross_entropy(output.detach(), target)

    for task in (Vectorial(), Detached()):
        with pytest.raises(TaskError, match=rf"task {task.name}: loss\(\) gave .*, expected a scalar tensor"):
            learner(task).gradient(initial_state(task, 0)[1])


def test_what_the_users_code_raises_is_shown_with_its_line() -> None:
    class Broken(Small):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            return output[:, 17].mean()  # there are 3 columns

    me, (_, x0) = learner(Broken()), initial_state(Broken(), 0)
    for call in (me.gradient, me.full_gradient, me.evaluate):
        with pytest.raises(TaskError, match=r"task Broken: loss\(\) raised IndexError") as caught:
            call(x0)
        assert "output[:, 17].mean()" in str(caught.value)
        assert "test_evaluation.py, line" in str(caught.value)


def test_a_model_of_other_inputs_is_the_users_error() -> None:
    class Narrow(Small):
        def model(self) -> nn.Module:
            return nn.Linear(3, 3)

    with pytest.raises(TaskError, match=r"task Narrow: model's forward\(\) raised RuntimeError: .*shapes"):
        learner(Narrow()).gradient(initial_state(Narrow(), 0)[1])


def test_a_model_that_cannot_be_made_is_the_users_error() -> None:
    class Raising(Small):
        def model(self) -> nn.Module:
            raise RuntimeError("no weights today")

    class NoModel(Small):
        def model(self) -> nn.Module:
            return nn.Linear  # type: ignore[return-value]

    with pytest.raises(TaskError, match=r"task Raising: model\(\) raised RuntimeError: no weights today"):
        initial_state(Raising(), 0)
    with pytest.raises(TaskError, match=r"task NoModel: model\(\) gave type, expected a torch.nn.Module"):
        initial_state(NoModel(), 0)


def test_a_full_gradient_never_computes_more_than_a_chunk_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shoal.learner, "CHUNK", 50)
    seen: list[int] = []

    class Watching(Small):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            seen.append(len(target))
            return functional.cross_entropy(output, target)

    me, (_, x0) = learner(Watching(), samples(n=120, m=60)), initial_state(Watching(), 0)
    me.full_gradient(x0)
    me.evaluate(x0)
    assert seen == [50, 50, 20, 50, 10]
