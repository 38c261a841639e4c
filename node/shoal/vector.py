"""A module's parameters as one flat tensor, and back.

The state of a model is a vector of d + b floats (float32, unless the run asks for float64): its d trainable parameters,
then b *carried* values: float buffers (BatchNorm's running statistics) and frozen parameters. Algorithms act on the
first d. The carried ones are averaged beside them and never corrected or decayed. Integer buffers stay with the module
and are never averaged.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shoal.errors import TaskError


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each tensor of a module lies in its vector. Two members can average only if their layouts are equal."""

    names: tuple[str, ...]  # parameters in the module's order, then what is carried
    shapes: tuple[tuple[int, ...], ...]  # name for name
    d: int  # elements of all trainable parameters
    b: int  # elements that are carried: float buffers and frozen parameters
    integers: tuple[tuple[str, str], ...] = ()  # (name, "int64 3x2") of the buffers that stay with the module
    dtype: str = "float32"  # of all elements

    def slices(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """(name, its place in the vector, its shape), in order."""
        sizes = [math.prod(shape) for shape in self.shapes]
        ends = itertools.accumulate(sizes)
        for name, shape, size, end in zip(self.names, self.shapes, sizes, ends, strict=True):
            yield name, slice(end - size, end), shape

    def document(self) -> dict[str, str]:
        """One key a tensor, so that members of different models are told which tensor differs."""
        document = {f"integer buffer {name}": what for name, what in self.integers}
        for name, place, shape in self.slices():
            kind = "parameter" if place.stop <= self.d else "carried"
            document[f"{kind} {name}"] = f"{self.dtype} {_by(shape)} at {place.start}"
        return document


class FlatModel:
    """A module whose tensors are views into one flat vector: loading a state is a single copy.

    Many learners may share one, in turn: it keeps nothing between calls but integer buffers.
    """

    def __init__(
        self, module: nn.Module, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Takes the module over, moves it to `device` and makes its floats `dtype`.

        Raises TaskError, naming the tensor, for a parameter or float buffer that is not float32, for a parameter
        without a shape, and for a module that has nothing to train. A tied parameter counts once.
        """
        _check(module)
        self.module = module.to(device, dtype)
        self.device, self.dtype = torch.device(device), dtype
        named = dict(module.named_parameters())
        parameters = {name: p for name, p in named.items() if p.requires_grad}
        frozen = {name: p for name, p in named.items() if not p.requires_grad}
        persistent = _persistent_buffers(module)
        floats = {name: b for name, b in persistent.items() if b.is_floating_point()}
        integers = {name: b for name, b in persistent.items() if not b.is_floating_point()}
        tensors: dict[str, Tensor] = {**parameters, **frozen, **floats}
        self.layout = Layout(
            names=tuple(tensors),
            shapes=tuple(tuple(t.shape) for t in tensors.values()),
            d=sum(t.numel() for t in parameters.values()),
            b=sum(t.numel() for t in (*frozen.values(), *floats.values())),
            integers=tuple((name, f"{_dtype(b)} {_by(b.shape)}") for name, b in integers.items()),
            dtype=str(dtype).removeprefix("torch."),
        )
        if self.layout.d == 0:
            raise TaskError(f"{type(module).__name__} has no trainable parameter: there is nothing to train")
        self._parameters = tuple(parameters.values())
        self._flat = _flattened(tensors.values())
        self._keys = _keys(module, tensors)
        views = {name: self._flat[place].view(shape) for name, place, shape in self.layout.slices()}
        for name, p in (*parameters.items(), *frozen.items()):
            p.data = views[name]
        self._buffers = [(*_owner(module, key), views[n]) for key, n in self._keys.items() if n in floats]
        self._put_views_back()

    def load(self, state: Tensor) -> None:
        """Copy `state`, (d+b,), into the module."""
        if state.shape != self._flat.shape:
            raise ValueError(f"a state of shape {tuple(state.shape)}, expected ({self._flat.numel()},)")
        self._put_views_back()
        copy(state, self._flat)

    def state(self) -> Tensor:
        """(d+b,): a copy of what the module holds now."""
        self._gather_buffers()
        return self._flat.clone()

    @property
    def parameters(self) -> Tensor:
        """(d,): a view of the trainable parameters as they were loaded."""
        return self._flat[: self.layout.d]

    def carried(self) -> Tensor:
        """(b,): a view of the carried values as the last forward pass left them."""
        self._gather_buffers()
        return self._flat[self.layout.d :]

    def gradient(self, loss: Tensor, out: Tensor | None = None) -> Tensor:
        """(d,): the gradient of a scalar loss of this module, in a new tensor or in `out`; 0 for what the loss does not
        use. (Memory that is taken anew costs three times what writing to it does.)"""
        # Into .grad views of one flat tensor it would have to be zeroed, added to and cloned: the same time on small
        # models and one more pass over large ones.
        parts = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts], out=out)

    def train(self, mode: bool) -> None:
        """Training or evaluation mode of the whole module."""
        if self.module.training is not mode:
            self.module.train(mode)

    def state_dict(self, state: Tensor) -> dict[str, Tensor]:
        """`state` under the names of the module's own state_dict, for `load_state_dict(..., strict=True)`.

        Every tensor owns its memory, as safetensors wants it. The module itself is not touched, so another thread
        may be computing with it meanwhile; integer buffers are the module's, as they are now.
        """
        named = {name: state[place].view(shape) for name, place, shape in self.layout.slices()}
        own = self.module.state_dict()
        return {key: (named[name] if name else own[key]).detach().clone() for key, name in self._keys.items()}

    def _put_views_back(self) -> None:
        for owner, name, view in self._buffers:
            owner._buffers[name] = view

    def _gather_buffers(self) -> None:
        """A module may replace a buffer by a new tensor (`self.mean = 0.9 * self.mean + ...`): take it in."""
        for owner, name, view in self._buffers:
            now = owner._buffers[name]
            if now is not view:
                if now is None or now.shape != view.shape:
                    what = "None" if now is None else _by(now.shape)
                    raise TaskError(f"buffer {name} became {what} in forward(), expected {_by(view.shape)}")
                view.copy_(now.detach())
        self._put_views_back()


def _check(module: nn.Module) -> None:
    model = type(module).__name__
    for name, p in module.named_parameters():
        if is_lazy(p):
            raise TaskError(f"parameter {name} of {model} has no shape yet: give lazy modules their sizes")
        if p.dtype != torch.float32:
            raise TaskError(f"parameter {name} of {model} is {_dtype(p)}, expected float32")
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise TaskError(f"{name} of {model} is {type(value).__name__}, expected a tensor: a vector cannot carry it")
        if (value.is_floating_point() or value.is_complex()) and value.dtype != torch.float32:
            raise TaskError(f"buffer {name} of {model} is {_dtype(value)}, expected float32 or an integer type")


def _persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to the state_dict: the others are constants or scratch, and every node makes its own."""
    kept = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def _flattened(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _keys(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Key of the state_dict -> name in the layout ('' for integer buffers). Tied tensors have several keys."""
    name_of = {id(tensor): name for name, tensor in tensors.items()}
    return {key: name_of.get(id(value), "") for key, value in module.state_dict(keep_vars=True).items()}


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return module.get_submodule(path), last


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _by(shape: Sequence[int]) -> str:
    """128x64; a scalar is `scalar`."""
    return "x".join(map(str, shape)) or "scalar"


def copy(source: Tensor, target: Tensor) -> None:
    """One flat vector into another of the same length and dtype. Between vectors on the CPU by numpy, whose copy is
    two thirds faster on one thread where they are large."""
    if source.device.type == target.device.type == "cpu" and source.dtype == target.dtype:
        np.copyto(target.numpy(), source.numpy())
    else:
        target.copy_(source)


def is_finite(vector: Tensor) -> bool:
    """Whether no element of (n,) is NaN or infinite."""
    if not vector.is_floating_point():
        return True
    # One cheap pass; a sum of squares may overflow though every element is finite, and only then each is looked at.
    return math.isfinite(torch.dot(vector, vector).item()) or bool(torch.isfinite(vector).all())
