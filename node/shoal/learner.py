"""A task's model and data as functions of a state vector: minibatch gradient, full gradient, evaluation."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.data import partition
from shoal.data.loading import source_file, user_fault
from shoal.data.task import Data, Task, check_data
from shoal.errors import TaskError, UserError
from shoal.vector import FlatModel

RANDOM = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
"""Modules that make a sample's loss depend on chance, or on the other samples of its batch."""
DTYPES = {"f32": torch.float32, "f64": torch.float64}
"""By the setting `precision`."""
CHUNK = 256
"""Samples that are computed at once where all are wanted: bounds the memory of full gradients and evaluations."""


@dataclasses.dataclass(frozen=True, slots=True)
class Gradient:
    """What one minibatch gives."""

    g: Tensor  # (d,) of the model's dtype; weight decay and the node's weight included
    loss: float  # mean over the minibatch, without weight decay and weight
    buffers: Tensor | None  # (b,): what the forward pass added to the float buffers; None if b = 0
    samples: int


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """An evaluation that can be added to those of other nodes."""

    right: int | None  # None: accuracy means nothing for this task
    total: int
    loss_sum: float  # over samples

    @classmethod
    def nothing(cls) -> "Counts":
        """No sample counted."""
        return cls(right=0, total=0, loss_sum=0.0)

    def __add__(self, other: "Counts") -> "Counts":
        right = None if self.right is None or other.right is None else self.right + other.right
        return Counts(right, self.total + other.total, self.loss_sum + other.loss_sum)

    @property
    def accuracy(self) -> float | None:
        """0 to 1; None where it means nothing or nothing was counted."""
        return None if self.right is None or self.total == 0 else self.right / self.total

    @property
    def loss(self) -> float:
        """Mean over samples; NaN where nothing was counted."""
        return self.loss_sum / self.total if self.total else math.nan


class Learner:
    """One node's share of the objective. Not for two threads at once; the model may be shared with other learners.

    weight: what this node's objective counts for against the mean of all, n * p_i for samples instead of nodes.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        model: FlatModel,
        *,
        batch: int,
        seed: int,
        shard: int,
        weight_decay: float = 0.0,
        weight: float = 1.0,
        factor: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        """Puts the data on `device`, the model's by default. Raises DataError or TaskError if it does not fit."""
        check_data(task, data)
        self.task, self.model = task, model
        self.device = model.device if device is None else torch.device(device)
        self.batch, self.weight_decay, self.weight = batch, weight_decay, weight
        self.factor = factor  # emulated attack: on every gradient, after all else
        self.samples = len(data.inputs)
        self.histogram = partition.histogram(data.targets.numpy(), len(task.classes)) if task.classes else []
        self._train = (self._fitted(data.inputs), self._fitted(data.targets))
        self._held_out = (self._fitted(data.held_out_inputs), self._fitted(data.held_out_targets))
        # On the CPU whatever the device: the same seed draws the same samples everywhere.
        self._draws = torch.Generator().manual_seed(_stable_seed(seed, shard))
        self._drawn: str | None = None
        self._source = source_file(task)

    def _fitted(self, tensor: Tensor) -> Tensor:
        """On the device; floats in the precision of the model."""
        return tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else tensor.dtype)

    @classmethod
    def of_all(cls, learners: Sequence["Learner"]) -> "Learner":
        """One that evaluates on the samples of all; training data that they share counts once."""
        first = learners[0]
        train = {le._train[0].data_ptr(): le._train for le in learners}.values()
        held_out = [le._held_out for le in learners]
        data = Data(*(torch.cat(column) for pairs in (train, held_out) for column in zip(*pairs, strict=True)))
        return cls(first.task, data, first.model, batch=1, seed=0, shard=0, device=first.device)

    def pull(self, state: Tensor) -> None:
        """Take `state`, (d+b,), into the model, for `gradient` to begin with. Not while the model is used elsewhere."""
        self.model.load(state)

    def gradient(self, state: Tensor | None, out: Tensor | None = None) -> Gradient:
        """At `state`, (d+b,), on the next minibatch: `batch` samples, uniform with replacement. Training mode. Without
        a state at what was pulled last. The gradient is made in `out`, (d,), if that is given."""
        rows = torch.randint(self.samples, (self.batch,), generator=self._draws)
        self._drawn = hashlib.blake2s(rows.numpy().tobytes(), digest_size=8).hexdigest()
        rows = rows.to(self.device)
        inputs, targets = self._train
        if state is not None:
            self.model.load(state)
        before = self.model.carried().clone()
        self.model.train(True)
        loss = self._loss(inputs.index_select(0, rows), targets.index_select(0, rows))
        g = self._objective_gradient(self._derivative(loss, out), self.model.parameters)
        buffers = self.model.carried() - before if len(before) else None
        return Gradient(g, loss.item(), buffers, self.batch)

    def take_drawn(self) -> str | None:
        """16 hex digits of the samples that the last minibatch was made of, once: the same whenever these are drawn."""
        drawn, self._drawn = self._drawn, None
        return drawn

    def full_gradient(self, state: Tensor) -> Tensor:
        """(d,): over all local training data, weight decay and weight included."""
        return self.full(state).g

    def full(self, state: Tensor) -> Gradient:
        """Over all local training data.

        Training mode, as for minibatches; what the forward passes do to buffers is dropped. With BatchNorm it depends
        on CHUNK, with dropout on chance.
        """
        self.model.train(True)
        total, loss_sum = torch.zeros(self.model.layout.d, dtype=self.model.dtype, device=self.device), 0.0
        for inputs, targets in _chunks(*self._train):
            self.model.load(state)
            loss = self._loss(inputs, targets)
            total.add_(self._derivative(loss), alpha=len(inputs) / self.samples)
            loss_sum += loss.item() * len(inputs)
        return Gradient(self._objective_gradient(total, state), loss_sum / self.samples, None, self.samples)

    def change(self, state: Tensor, snapshot: Tensor, rows: Tensor) -> Tensor:
        """(d,): the sum over `rows`, (k,) int64, of the gradient of each at `state` less that at `snapshot`, weight
        decay included. A row that stands there twice counts twice. For finite sums: see `check_finite_sum`."""
        inputs, targets = (column.index_select(0, rows.to(self.device)) for column in self._train)
        sums = []
        for x in (state, snapshot):
            self.model.load(x)
            self.model.train(True)
            sums.append(self._objective_gradient(self._derivative(self._loss(inputs, targets)), x))
        return sums[0].sub_(sums[1]).mul_(len(rows))

    def check_finite_sum(self, state: Tensor) -> None:
        """Raises TaskError unless the loss is a mean of one function a sample that chance does not change.

        Variance reduction subtracts two gradients of the same samples; with dropout, BatchNorm or a loss over pairs
        of samples they are not of the same function, and it would do harm in silence.
        """
        for name, module in self.model.module.named_modules():
            if isinstance(module, RANDOM) and getattr(module, "p", 1.0) > 0:
                what = f"its module {name or '(the model)'} is {type(module).__name__}"
                raise TaskError(f"task {self.task.name} is no finite sum: {what}; take another algorithm or model")
        rows = torch.arange(min(3, self.samples))
        # Not from `state` itself: a model that starts at 0 would be compared with itself, and anything would pass.
        other = state + torch.linspace(0.1, 1.0, len(state), dtype=state.dtype, device=state.device)

        def at(chosen: Tensor) -> Tensor:
            return self.change(other, state, chosen)

        whole, again, one_by_one = at(rows), at(rows), sum(at(row[None]) for row in rows)
        assert isinstance(one_by_one, Tensor)
        if not torch.equal(whole, again):
            raise TaskError(f"task {self.task.name} is no finite sum: its gradient of the same samples changes")
        close = 1e-3 if self.model.dtype == torch.float32 else 1e-8
        if not torch.allclose(whole, one_by_one, rtol=close, atol=close * float(whole.abs().max())):
            raise TaskError(f"task {self.task.name} is no finite sum: its loss is no mean over samples")

    def evaluate(self, state: Tensor, *, held_out: bool = True) -> Counts:
        """Evaluation mode, on this node's held-out samples, or on all its training samples."""
        self.model.load(state)
        self.model.train(False)
        counts = Counts.nothing()
        with torch.no_grad():
            for inputs, targets in _chunks(*(self._held_out if held_out else self._train)):
                output = self._users("model's forward()", self.model.module, inputs)
                loss = self._users("loss()", self.task.loss, output, targets)
                right = self._users("right()", self.task.right, output, targets)
                counts += Counts(right, len(inputs), float(loss) * len(inputs))
        return counts

    def rng_state(self) -> Tensor:
        """uint8: where the drawing of samples stands."""
        return self._draws.get_state()

    def restore_rng(self, state: Tensor) -> None:
        """Go on drawing from `rng_state`."""
        self._draws.set_state(state)

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        output = self._users("model's forward()", self.model.module, inputs)
        loss = self._users("loss()", self.task.loss, output, targets)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            got = tuple(loss.shape) if isinstance(loss, Tensor) and loss.ndim else type(loss).__name__
            raise TaskError(
                f"task {self.task.name}: loss() gave {got}, expected a scalar tensor that depends on the model's"
                " output: the mean over the samples"
            )
        return loss

    def _derivative(self, loss: Tensor, out: Tensor | None = None) -> Tensor:
        derivative: Tensor = self._users("the backward pass", self.model.gradient, loss, out)
        return derivative

    def _users(self, what: str, call: Callable[..., Any], *args: Any) -> Any:
        """What the user's code gives; what it raises becomes a TaskError with the user's line."""
        try:
            return call(*args)
        except UserError:
            raise
        except Exception as error:
            raise user_fault(f"task {self.task.name}", what, error, self._source) from error

    def _objective_gradient(self, g: Tensor, state: Tensor) -> Tensor:
        """weight * (g + weight_decay * x), in place, x the first d of `state`: summed over nodes, decay stays that
        of the mean objective."""
        if self.weight_decay:
            g.add_(state[: self.model.layout.d], alpha=self.weight_decay)
        if self.weight * self.factor != 1.0:
            g.mul_(self.weight * self.factor)
        return g


def initial_state(
    task: Task, seed: int, device: torch.device | str = "cpu", precision: str = "f32"
) -> tuple[FlatModel, Tensor]:
    """(model, x0): (d+b,) on `device`, the same for a seed on every machine; `precision` is a key of DTYPES.

    The caller's generators stay as they were. Raises TaskError when the task gives no model that can be trained.
    """
    # Not torch.manual_seed, which would seed CUDA's generators as well and wake CUDA up.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            module = task.model()
        except UserError:
            raise
        except Exception as error:
            raise user_fault(f"task {task.name}", "model()", error, source_file(task)) from error
    if not isinstance(module, torch.nn.Module):
        raise TaskError(f"task {task.name}: model() gave {type(module).__name__}, expected a torch.nn.Module")
    model = FlatModel(module, device, DTYPES[precision])
    return model, model.state()


def _stable_seed(seed: int, shard: int) -> int:
    """63 bits that differ for every (seed, shard), the same in every process."""
    digest = hashlib.sha256(f"batches {seed}/{shard}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _chunks(inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(inputs), CHUNK):
        yield inputs[start : start + CHUNK], targets[start : start + CHUNK]
