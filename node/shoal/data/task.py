"""What a user writes: a model, this node's data, a loss. Everything else is shoal's."""

import abc
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.data.partition import BY_LABEL, Labels, left_out, partition
from shoal.errors import DataError, TaskError

log = logging.getLogger(__name__)

HELD_OUT_SEED = 20
"""Seeds every held-out split. Not the run's seed: a model of one run must be testable in another, on samples that it
has never seen."""


@dataclasses.dataclass(frozen=True)
class Data:
    """A node's samples. Row k of the targets belongs to row k of the inputs; what is held out is never trained on.

    Raises DataError when lengths or shapes do not fit together.
    """

    inputs: Tensor  # (N, ...)
    targets: Tensor  # (N, ...)
    held_out_inputs: Tensor  # (M, ...), M may be 0 where there are more nodes than held-out samples
    held_out_targets: Tensor  # (M, ...)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise DataError(f"{field.name} is {_describe(value)}, expected a tensor with one row a sample")
        for what, x, y in (
            ("training", self.inputs, self.targets),
            ("held-out", self.held_out_inputs, self.held_out_targets),
        ):
            if len(x) != len(y):
                raise DataError(f"{len(x)} {what} inputs but {len(y)} {what} targets")
        for what, train, test in (
            ("inputs", self.inputs, self.held_out_inputs),
            ("targets", self.targets, self.held_out_targets),
        ):
            if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
                raise DataError(f"training {what} are {_describe(train)}, held-out {what} {_describe(test)}")

    def with_inputs(self, inputs: Tensor, held_out_inputs: Tensor) -> "Data":
        """The same samples in another form, such as normalised."""
        return dataclasses.replace(self, inputs=inputs, held_out_inputs=held_out_inputs)


@dataclasses.dataclass(frozen=True)
class Place:
    """Which node's data is wanted: a task asks it for this node's part."""

    shard: int  # this node is number `shard` of `shards`, from 0
    shards: int
    partition: str  # iid, shared, labels:K, dirichlet:ALPHA, quantity:ALPHA, folder
    seed: int
    data_dir: Path
    download: bool

    def __post_init__(self) -> None:
        if not 0 <= self.shard < self.shards:
            raise DataError(f"shard {self.shard} of {self.shards}: expected a number from 0 to {self.shards - 1}")

    def split(self, inputs: Tensor, targets: Tensor, *, held_out: float = 0.2) -> Data:
        """This node's part of a data set that every node has whole.

        First a share `held_out` of the whole is held out, the same on every node and in every run; then the rest is
        partitioned. The held-out samples are dealt out too (rows shard::shards of them), so counts that are summed
        over the nodes are exact over all that was held out. Raises DataError when the data is too small for that.
        """
        train, test = _hold_out(inputs, targets, held_out)
        return self.divide(inputs[train], targets[train], inputs[test], targets[test])

    def divide(self, inputs: Tensor, targets: Tensor, test_inputs: Tensor, test_targets: Tensor) -> Data:
        """`split` for a data set that brings its own test samples."""
        if self.partition == "folder":
            raise DataError("partition folder: this task divides a data set that every node has; take iid or labels:K")
        dealt = slice(self.shard, None, self.shards)
        if self.partition == "shared":
            return Data(inputs, targets, test_inputs[dealt].clone(), test_targets[dealt].clone())
        labels = self._labels(targets)
        parts = partition(labels, self.shards, self.partition, self.seed)
        missing = left_out(labels, parts)
        if missing and self.shard == 0:
            held_by = f"partition {self.partition} over {self.shards} shards"
            log.warning("%s: no node holds label %s, so none learns it", held_by, ", ".join(map(str, missing)))
        mine = torch.from_numpy(parts[self.shard])
        return Data(inputs[mine], targets[mine], test_inputs[dealt].clone(), test_targets[dealt].clone())

    def own(self, inputs: Tensor, targets: Tensor, *, held_out: float = 0.2) -> Data:
        """Samples that only this node has: a share is held out, nothing is divided, whatever the partition."""
        train, test = _hold_out(inputs, targets, held_out)
        return Data(inputs[train], targets[train], inputs[test], targets[test])

    def _labels(self, targets: Tensor) -> Labels:
        if targets.ndim == 1 and not targets.is_floating_point():
            return np.asarray(targets.numpy())
        if self.partition.startswith(BY_LABEL):
            raise DataError(
                f"partition {self.partition} needs one class label a sample, but a target is {_describe(targets[0])};"
                " take iid or quantity:ALPHA"
            )
        return np.zeros(len(targets), dtype=np.int64)


class Task(abc.ABC):
    """What the nodes learn. A subclass needs `model` and `data`; the rest fits a classifier.

    All nodes of a shoal must have the same task: they compare `name`, `version`, `classes` and the shapes of the
    model when they meet.
    """

    name: ClassVar[str] = ""
    """For messages and the fingerprint; the class's name if nothing else is given."""
    version: ClassVar[str] = "1"
    """Raise it when preprocessing changes: nodes of different versions refuse each other."""
    classes: ClassVar[tuple[str, ...]] = ()
    """Names of the classes, in the order of the labels 0, 1, ...; empty for a task without labels."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    @abc.abstractmethod
    def model(self) -> nn.Module:
        """A new model, float32, on the CPU. Torch's generator is seeded before the call, so that all nodes get the same
        first model: draw from no other one."""

    @abc.abstractmethod
    def data(self, place: Place) -> Data:
        """This node's samples: `place.split(...)`, `place.divide(...)`, `place.own(...)` or a `Data` of your own."""

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """A scalar, the mean over the samples of a batch. Here: cross entropy."""
        return functional.cross_entropy(output, target)

    def right(self, output: Any, target: Tensor) -> int | None:
        """Samples that are predicted right, or None where that means nothing. Here: where the largest output is."""
        if not isinstance(output, Tensor) or output.ndim != 2 or target.ndim != 1 or target.is_floating_point():
            return None
        return int((output.argmax(1) == target).sum())


def check_data(task: Task, data: Data) -> None:
    """Whether `task` can be trained on `data`. Raises DataError or TaskError, naming the task."""
    if not isinstance(data, Data):
        raise TaskError(f"task {task.name}: data() gave {_describe(data)}, expected shoal.Data")
    if len(data.inputs) == 0:
        raise DataError(f"task {task.name}: no training sample on this node")
    for x in (data.inputs, data.held_out_inputs):
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            rows = torch.isfinite(x).reshape(len(x), -1).all(1).logical_not().nonzero()
            raise DataError(
                f"task {task.name}: {len(rows)} inputs hold NaN or infinity, the first in row {int(rows[0])}"
            )
    if task.classes:
        for y in (data.targets, data.held_out_targets):
            _check_labels(task, y)


def _check_labels(task: Task, targets: Tensor) -> None:
    c = len(task.classes)
    if targets.ndim != 1 or targets.dtype != torch.int64:
        raise DataError(f"task {task.name}: targets are {_describe(targets)}, expected int64 labels, one a sample")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < c:
        low, high = int(targets.min()), int(targets.max())
        raise DataError(f"task {task.name}: labels from {low} to {high}, expected 0 to {c - 1} ({c} classes)")


def _hold_out(inputs: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(rows to train on, rows held out), the same for the same number of rows on every machine."""
    n = len(inputs)
    if n != len(targets):
        raise DataError(f"{n} inputs but {len(targets)} targets")
    if not 0 < share < 1:
        raise DataError(f"held_out = {share} must be above 0 and below 1")
    test = math.ceil(share * n)
    if n - test < 1:
        raise DataError(f"{n} samples are too few to hold out {test} and train on the others")
    order = torch.from_numpy(np.random.RandomState(HELD_OUT_SEED).permutation(n))
    return order[test:], order[:test]


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{type(value).__name__} object"
