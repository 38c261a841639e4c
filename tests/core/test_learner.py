"""Gradients are those of plain autograd, on samples that the seed alone decides."""

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_tasks import N, Normed, Small, learner, samples
from torch import Tensor

from shoal.data.task import Task
from shoal.learner import Learner, initial_state
from shoal.vector import FlatModel


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A second thread that waits for a busy core makes a gradient of this size thirty times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_hand(task: Task, state: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """(d,) gradient and loss of a plain module, by backward()."""
    module = task.model()
    module.load_state_dict(FlatModel(task.model()).state_dict(state))
    loss = task.loss(module(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None]), loss.item()


def drawn(a_learner: Learner) -> Tensor:
    """Rows that the next gradient will draw."""
    generator = torch.Generator()
    generator.set_state(a_learner.rng_state())
    return torch.randint(a_learner.samples, (a_learner.batch,), generator=generator)


# --- minibatch gradients ------------------------------------------------------------------------------------------


def test_a_gradient_is_that_of_autograd_on_the_samples_drawn() -> None:
    task, data = Small(), samples()
    me, (_, x0) = learner(task, data), initial_state(task, 5)
    for _ in range(3):
        rows = drawn(me)
        expected, loss = by_hand(task, x0, data.inputs[rows], data.targets[rows])
        result = me.gradient(x0)
        assert torch.allclose(result.g, expected, atol=1e-7)
        assert result.loss == pytest.approx(loss, rel=1e-6)
        assert (result.samples, result.buffers) == (16, None)


def test_the_state_given_stays_as_it_is_and_the_gradient_is_new_each_time() -> None:
    me, (_, x0) = learner(Small()), initial_state(Small(), 0)
    before = x0.clone()
    first = me.gradient(x0).g
    kept = first.clone()
    second = me.gradient(x0).g
    assert torch.equal(x0, before)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_weight_decay_adds_its_part_of_x_and_nothing_to_the_loss() -> None:
    _, x0 = initial_state(Small(), 0)
    plain, decayed = learner(Small()).gradient(x0), learner(Small(), weight_decay=0.25).gradient(x0)
    assert torch.equal(decayed.g, plain.g + 0.25 * x0)
    assert decayed.loss == plain.loss


def test_a_weight_scales_the_gradient_and_its_decay() -> None:
    _, x0 = initial_state(Small(), 0)
    plain = learner(Small(), weight_decay=0.25).gradient(x0)
    weighted = learner(Small(), weight_decay=0.25, weight=1.5).gradient(x0)
    assert torch.equal(weighted.g, 1.5 * plain.g)
    assert weighted.loss == plain.loss


def test_weights_n_times_p_make_the_mean_over_nodes_that_over_samples() -> None:
    """sum_i p_i f_i, p_i the node's share of all samples, is the loss over all of them; so is its gradient."""
    task, whole = Small(), samples(n=100)
    sizes = (70, 20, 10)
    _, x0 = initial_state(task, 3)
    total, start = torch.zeros_like(x0), 0
    for size in sizes:
        part = dataclasses.replace(
            whole, inputs=whole.inputs[start : start + size], targets=whole.targets[start : start + size]
        )
        node = learner(task, part, weight_decay=0.1)
        node.weight = len(sizes) * size / 100
        total += node.full_gradient(x0) / len(sizes)
        start += size
    assert torch.allclose(total, learner(task, whole, weight_decay=0.1).full_gradient(x0), atol=1e-7)


def test_weight_decay_leaves_carried_values_alone() -> None:
    task = Normed()
    me, (model, x0) = learner(task, weight_decay=1.0), initial_state(task, 0)
    assert me.gradient(x0).g.shape == (model.layout.d,)
    assert x0.shape == (model.layout.d + model.layout.b,)


# --- buffers ------------------------------------------------------------------------------------------------------


def test_the_change_of_batch_norms_statistics_is_reported_and_not_applied() -> None:
    task, data = Normed(), samples()
    me, (model, x0) = learner(task, data), initial_state(task, 0)
    d = model.layout.d
    x0[d:] = torch.rand(model.layout.b)
    before, rows = x0.clone(), drawn(me)
    result = me.gradient(x0)
    plain = task.model()
    plain.load_state_dict(model.state_dict(x0))
    plain(data.inputs[rows])
    after = torch.cat([plain.get_buffer("1.running_mean"), plain.get_buffer("1.running_var")])
    assert torch.equal(x0, before)
    assert result.buffers is not None
    assert torch.allclose(x0[d:] + result.buffers, after, atol=1e-6)
    assert result.buffers.abs().max() > 1e-3


def test_a_reported_change_is_no_view_of_the_model() -> None:
    me, (_, x0) = learner(Normed()), initial_state(Normed(), 0)
    first = me.gradient(x0).buffers
    assert first is not None
    kept = first.clone()
    me.gradient(x0)
    assert torch.equal(first, kept)


def test_integer_buffers_are_in_no_vector_but_count_on_in_the_module() -> None:
    task = Normed()
    model, x0 = initial_state(task, 0)
    me = learner(task, model=model)
    for _ in range(3):
        me.gradient(x0)
    assert "1.num_batches_tracked" not in model.layout.names
    assert int(model.state_dict(x0)["1.num_batches_tracked"]) == 3


def test_learners_that_share_a_model_do_not_notice() -> None:
    task = Normed()
    shared, x0 = initial_state(task, 0)
    other_state = torch.rand_like(x0)
    together = [learner(task, model=shared, shard=i) for i in range(2)]
    alone = [learner(task, shard=i) for i in range(2)]
    for _ in range(2):
        for i, state in enumerate((x0, other_state)):
            mine, expected = together[i].gradient(state), alone[i].gradient(state)
            assert torch.equal(mine.g, expected.g)
            assert mine.buffers is not None
            assert expected.buffers is not None
            assert torch.equal(mine.buffers, expected.buffers)


def test_a_gradient_can_be_computed_in_another_thread() -> None:
    _, x0 = initial_state(Normed(), 0)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(learner(Normed()).gradient, x0).result()
    assert torch.equal(there.g, learner(Normed()).gradient(x0).g)


# --- the full gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 255, 256, 257, N])
def test_the_full_gradient_is_that_of_autograd_over_all_samples(n: int) -> None:
    task, data = Small(), samples(n=n)
    _, x0 = initial_state(task, 7)
    expected, _ = by_hand(task, x0, data.inputs, data.targets)
    me = learner(task, data, weight_decay=0.5, weight=2.0)
    assert torch.allclose(me.full_gradient(x0), 2.0 * (expected + 0.5 * x0), atol=1e-6)


def test_minibatch_gradients_are_the_full_gradient_on_average() -> None:
    """Over so many draws the mean must lie within 5 of its standard deviations, in every coordinate."""
    task = Small()
    me, (_, x0) = learner(task), initial_state(task, 0)
    drawn_gradients = torch.stack([me.gradient(x0).g for _ in range(2000)])
    deviation = drawn_gradients.std(0) / math.sqrt(2000)
    assert bool(((drawn_gradients.mean(0) - me.full_gradient(x0)).abs() < 5 * deviation + 1e-7).all())


def test_the_full_gradient_draws_nothing_and_moves_no_statistics() -> None:
    task = Normed()
    me, (_, x0) = learner(task), initial_state(task, 0)
    before, state = me.rng_state(), x0.clone()
    first = me.full_gradient(x0)
    assert torch.equal(first, me.full_gradient(x0))
    assert torch.equal(me.rng_state(), before)
    assert torch.equal(x0, state)


# --- seeds --------------------------------------------------------------------------------------------------------


def test_every_seed_and_every_shard_draws_samples_of_its_own() -> None:
    draws = {
        (seed, shard): tuple(drawn(learner(Small(), seed=seed, shard=shard)).tolist())
        for seed in (0, 1, 11)
        for shard in (0, 1, 11)
    }
    assert len(set(draws.values())) == len(draws)
    assert tuple(drawn(learner(Small(), seed=1, shard=11)).tolist()) == draws[1, 11]


def test_samples_are_drawn_with_replacement() -> None:
    me = learner(Small(), samples(n=3), batch=64)
    rows = drawn(me)
    assert set(rows.tolist()) == {0, 1, 2}
    assert me.gradient(initial_state(Small(), 0)[1]).samples == 64


def test_after_a_checkpoint_the_draws_go_on_where_they_stood() -> None:
    _, x0 = initial_state(Small(), 0)
    me, resumed = learner(Small()), learner(Small())
    me.gradient(x0)
    saved = me.rng_state().clone()
    assert saved.dtype == torch.uint8
    expected = [me.gradient(x0).g for _ in range(2)]
    resumed.restore_rng(saved)
    assert all(torch.equal(resumed.gradient(x0).g, g) for g in expected)


def test_the_first_model_comes_from_the_seed_alone() -> None:
    _, first = initial_state(Small(), 3)
    torch.rand(5)
    _, again = initial_state(Small(), 3)
    _, other = initial_state(Small(), 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_making_the_first_model_leaves_the_callers_generator_as_it_was() -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    initial_state(Small(), 0)
    assert torch.equal(torch.rand(3), expected)


DIGEST = """
import hashlib, sys
from pathlib import Path
from shoal.data.loading import load_task
from shoal.data.task import Place
from shoal.learner import Learner, initial_state
task = load_task("digits")
data = task.data(Place(2, 5, "dirichlet:0.5", 42, Path("."), False))
model, x0 = initial_state(task, 42)
g = Learner(task, data, model, batch=16, seed=42, shard=2)._draws.get_state()
digest = hashlib.sha256()
for tensor in (x0, data.inputs, data.held_out_inputs, g):
    digest.update(tensor.contiguous().numpy().tobytes())
print(digest.hexdigest(), "sklearn" in sys.modules)
"""


def test_another_process_gets_the_same_model_data_and_draws_and_needs_no_scikit_learn() -> None:
    def run(hash_seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", DIGEST]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, ("1", "2"))
    assert one == other
    assert len(one[0]) == 64
    assert one[1] == "False"


def test_a_minibatch_is_known_again_when_it_is_drawn_again() -> None:
    one = learner(Small())
    x = one.model.state()
    before = one.rng_state()
    names = []
    for _ in range(3):
        one.gradient(x)
        names.append(one.take_drawn())
        assert one.take_drawn() is None, "it is told once"
    assert len(set(names)) == 3
    one.restore_rng(before)
    one.gradient(x)
    assert one.take_drawn() == names[0]
    one.full_gradient(x)
    assert one.take_drawn() is None
