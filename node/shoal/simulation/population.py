"""Who takes part in a simulated run: learners over the parts of a task's data, and what all of them have learnt."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shoal.data.loading import load_task, local_data
from shoal.data.task import Data, Place, Task
from shoal.learner import Learner, initial_state
from shoal.settings import Settings


def population(settings: Settings, workers: int) -> tuple[list[Learner], list[Tensor]]:
    """Learners over the task's parts, one a worker, and their equal first states. They share one module."""
    s = settings
    task = load_task(s.task)
    model, x0 = initial_state(task, s.seed, torch.device("cpu"), s.precision)
    learners = []
    for shard, data in enumerate(_parts(task, s, workers)):
        decay = s.decay_in_gradient
        learner = Learner(task, data, model, batch=s.batch, seed=s.seed, shard=shard, weight_decay=decay)
        learners.append(learner)
    return learners, [x0.clone() for _ in range(workers)]


def _parts(task: Task, settings: Settings, workers: int) -> Iterator[Data]:
    """Each worker's data. What all share is there once, however many they are."""
    s = settings
    shared = s.partition == "shared"
    shards = 1 if shared else workers
    places = (Place(k, shards, s.partition, s.seed, Path(s.data_dir), s.download) for k in range(shards))
    if not shared:
        yield from (local_data(task, place) for place in places)
        return
    whole = local_data(task, next(places))
    for k in range(workers):
        inputs, targets = whole.held_out_inputs[k::workers], whole.held_out_targets[k::workers]
        yield dataclasses.replace(whole, held_out_inputs=inputs, held_out_targets=targets)


def evaluator(learners: Sequence[Learner]) -> Callable[[Tensor], tuple[float, float | None]]:
    """Loss on all training data and accuracy on all held-out data, of the workers together."""
    everything = Learner.of_all(learners)

    def evaluate(state: Tensor) -> tuple[float, float | None]:
        return everything.evaluate(state, held_out=False).loss, everything.evaluate(state).accuracy

    return evaluate
