"""A module as one flat tensor: what is in it, in which order, and that nothing is lost on the way."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from shoal.documents import differing_keys, fingerprint
from shoal.errors import TaskError
from shoal.vector import FlatModel


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4, bias=False)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.decode(torch.tanh(self.encode(x)))
        return output


class Forgetful(nn.Module):
    """Replaces its buffer by a new tensor in every forward pass, as running means are often written."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
        return (x - self.mean) * self.weight


# --- the layout ---------------------------------------------------------------------------------------------------


def test_parameters_come_in_the_modules_order() -> None:
    layout = FlatModel(mlp()).layout
    assert layout.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert layout.shapes == ((3, 4), (3,), (2, 3), (2,))
    assert (layout.d, layout.b) == (12 + 3 + 6 + 2, 0)


def test_float_buffers_come_last_and_integer_buffers_not_at_all() -> None:
    model = FlatModel(normed())
    layout = model.layout
    assert layout.names[-2:] == ("1.running_mean", "1.running_var")
    assert (layout.d, layout.b) == (12 + 3 + 3 + 3 + 6 + 2, 6)
    assert model.state()[layout.d :].tolist() == [0, 0, 0, 1, 1, 1]
    assert layout.integers == (("1.num_batches_tracked", "int64 scalar"),)


def test_a_tied_parameter_counts_once() -> None:
    layout = FlatModel(Tied()).layout
    assert layout.names == ("encode.weight", "decode.bias")
    assert layout.d == 16 + 4


def test_a_frozen_parameter_is_carried_and_not_trained() -> None:
    module = mlp()
    module[0].weight.requires_grad_(False)  # type: ignore[index]
    before = module.state_dict()["0.weight"].clone()
    model = FlatModel(module)
    assert model.layout.names == ("0.bias", "2.weight", "2.bias", "0.weight")
    assert (model.layout.d, model.layout.b) == (3 + 6 + 2, 12)
    assert torch.equal(model.carried(), before.reshape(-1))
    assert model.gradient(model.module(torch.ones(1, 4)).sum()).shape == (11,)


def test_a_buffer_outside_the_state_dict_stays_outside_the_vector() -> None:
    layout = FlatModel(Forgetful()).layout
    assert layout.names == ("weight", "mean")
    assert (layout.d, layout.b) == (2, 2)


def test_slices_cover_the_vector_without_gap_or_overlap() -> None:
    layout = FlatModel(normed()).layout
    covered = [i for _, place, _ in layout.slices() for i in range(place.start, place.stop)]
    assert covered == list(range(layout.d + layout.b))


def test_the_document_names_the_tensor_that_differs() -> None:
    ours = FlatModel(normed()).layout.document()
    theirs = FlatModel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 5))).layout.document()
    assert ours["parameter 0.weight"] == "float32 3x4 at 0"
    assert ours["integer buffer 1.num_batches_tracked"] == "int64 scalar"
    found = differing_keys(ours, theirs)
    assert 'parameter 2.weight: ours "float32 2x3 at 21", theirs "float32 5x3 at 21"' in found
    assert not any("parameter 0." in line for line in found)


def test_the_same_tensors_in_another_order_have_another_fingerprint() -> None:
    class Swapped(nn.Module):
        def __init__(self, first: str, second: str) -> None:
            super().__init__()
            self.register_parameter(first, nn.Parameter(torch.zeros(2)))
            self.register_parameter(second, nn.Parameter(torch.zeros(2)))

    one, other = (FlatModel(Swapped(*names)).layout.document() for names in (("a", "b"), ("b", "a")))
    assert one.keys() == other.keys()
    assert fingerprint(one) != fingerprint(other)


# --- what cannot be a vector --------------------------------------------------------------------------------------


def test_a_parameter_of_another_type_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"parameter 2\.weight of Sequential is float64, expected float32"):
        FlatModel(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2).double()))


def test_a_float_buffer_of_another_type_is_refused_by_name() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("scale", torch.ones(3, dtype=torch.float16))
    with pytest.raises(TaskError, match="buffer scale of Linear is float16, expected float32 or an integer type"):
        FlatModel(module)


def test_a_parameter_without_a_shape_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"parameter 0\.weight of Sequential has no shape yet"):
        FlatModel(nn.Sequential(nn.LazyLinear(2)))


def test_a_module_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(TaskError, match="ReLU has no trainable parameter"):
        FlatModel(nn.ReLU())
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(TaskError, match="Linear has no trainable parameter"):
        FlatModel(frozen)


def test_state_that_is_no_tensor_is_refused_by_name() -> None:
    class Noted(nn.Linear):
        def get_extra_state(self) -> str:
            return "notes"

        def set_extra_state(self, state: str) -> None:
            pass

    with pytest.raises(TaskError, match=r"_extra_state of Noted is str, expected a tensor"):
        FlatModel(Noted(2, 2))


def test_a_state_of_another_length_is_refused() -> None:
    model = FlatModel(mlp())
    for length in (1, 22, 24):  # a vector of one would otherwise be broadcast
        with pytest.raises(ValueError, match=rf"state of shape \({length},\), expected \(23,\)"):
            model.load(torch.zeros(length))


# --- there and back -----------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_the_module_computes_with() -> None:
    model, plain = FlatModel(normed()), normed()
    state = torch.randn(model.layout.d + model.layout.b).abs()
    model.load(state)
    plain.load_state_dict(model.state_dict(state))
    model.train(False)
    plain.eval()
    x = torch.randn(5, 4)
    assert torch.equal(model.module(x), plain(x))
    assert torch.equal(model.state(), state)


@given(widths=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_a_state_survives_the_way_through_the_modules_own_names(widths: list[int], seed: int) -> None:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    model = FlatModel(nn.Sequential(*layers))
    state = torch.randn(model.layout.d, generator=torch.Generator().manual_seed(seed))
    other = FlatModel(nn.Sequential(*[nn.Linear(a, b) for a, b in itertools.pairwise(widths)]))
    other.module.load_state_dict(model.state_dict(state))
    assert torch.equal(other.state(), state)


def test_the_vector_and_the_module_are_copies_of_the_callers_tensors() -> None:
    model = FlatModel(mlp())
    first = model.state()
    kept = first.clone()
    model.load(torch.zeros_like(first))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("make", [mlp, normed, Tied, Forgetful])
def test_plain_torch_loads_a_state_dict_strictly_from_a_safetensors_file(make: type[nn.Module], tmp_path: Path) -> None:
    model, plain = FlatModel(make()), make()
    state = torch.rand(model.layout.d + model.layout.b)
    save_file(model.state_dict(state), tmp_path / "model.safetensors")
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    model.load(state)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.module.state_dict()[name]), name


def test_a_state_dict_leaves_the_module_as_it_is() -> None:
    model = FlatModel(normed())
    before = model.state()
    model.state_dict(torch.zeros_like(before))["0.weight"].fill_(7)
    assert torch.equal(model.state(), before)


# --- gradients and buffers ----------------------------------------------------------------------------------------


def test_a_gradient_is_that_of_autograd_in_the_layouts_order() -> None:
    model, plain = FlatModel(mlp()), mlp()
    x, y = torch.randn(6, 4), torch.randint(2, (6,))
    functional.cross_entropy(plain(x), y).backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([p.grad.reshape(-1) for p in plain.parameters() if p.grad is not None])
    assert torch.equal(model.gradient(functional.cross_entropy(model.module(x), y)), expected)


def test_a_gradient_is_a_new_tensor_each_time() -> None:
    model, x = FlatModel(mlp()), torch.randn(6, 4)
    first = model.gradient(model.module(x).sum())
    kept = first.clone()
    second = model.gradient(model.module(2 * x).square().sum())
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_a_tied_parameter_gets_the_sum_of_both_uses() -> None:
    model = FlatModel(Tied())
    x = torch.randn(3, 4)
    w = model.module.get_parameter("encode.weight").detach().clone().requires_grad_()
    bias = model.module.get_parameter("decode.bias").detach()
    (torch.tanh(x @ w.T) @ w.T + bias).sum().backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    g = model.gradient(model.module(x).sum())
    assert torch.allclose(g[:16], w.grad.reshape(-1), atol=1e-6)


def test_a_parameter_that_the_loss_does_not_use_has_gradient_zero() -> None:
    model = FlatModel(mlp())
    g = model.gradient(model.module.get_parameter("2.bias").sum())
    assert g.tolist() == [0.0] * 21 + [1.0, 1.0]


def test_parts_of_a_gradient_take_no_memory_once_they_are_taken() -> None:
    model = FlatModel(mlp())
    model.gradient(model.module(torch.randn(6, 4)).sum())
    assert all(p.grad is None for p in model.module.parameters())


def test_after_a_backward_pass_that_failed_the_next_gradient_is_right() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *g: Tensor) -> Tensor:
            raise RuntimeError("no way back")

    model, x = FlatModel(mlp()), torch.randn(6, 4)
    expected = model.gradient(model.module(x).sum())
    with pytest.raises(RuntimeError, match="no way back"):
        model.gradient(Fails.apply(model.module(x)).sum())  # type: ignore[no-untyped-call]
    assert torch.equal(model.gradient(model.module(x).sum()), expected)


def test_users_may_take_gradients_of_their_own_in_a_loss() -> None:
    model, x = FlatModel(mlp()), torch.randn(6, 4)
    expected = model.gradient(model.module(x).sum())
    model.module(x).square().sum().backward()
    for p in model.module.parameters():
        p.grad = None
    assert torch.equal(model.gradient(model.module(x).sum()), expected)


def test_batch_norm_moves_its_statistics_inside_the_vector() -> None:
    model, plain = FlatModel(normed()), normed()
    x = torch.randn(8, 4) + 3
    model.train(True)
    model.module(x)
    plain(x)
    expected = torch.cat([plain.get_buffer("1.running_mean"), plain.get_buffer("1.running_var")])
    assert torch.equal(model.carried(), expected)
    assert torch.equal(model.state()[model.layout.d :], expected)


def test_a_buffer_that_forward_replaces_is_taken_in_and_can_be_loaded_again() -> None:
    model = FlatModel(Forgetful())
    model.module(torch.full((3, 2), 8.0))
    assert model.carried().tolist() == [4.0, 4.0]
    model.module(torch.zeros(3, 2))  # and nobody asks what it left
    model.load(torch.tensor([1.0, 1.0, 2.0, 6.0]))
    model.module(torch.zeros(3, 2))
    assert model.carried().tolist() == [1.0, 3.0]


def test_a_buffer_that_changes_its_shape_is_refused_by_name() -> None:
    class Growing(Forgetful):
        def forward(self, x: Tensor) -> Tensor:
            self.mean = torch.zeros(len(self.mean) + 1)
            return x * self.weight

    model = FlatModel(Growing())
    model.module(torch.ones(1, 2))
    with pytest.raises(TaskError, match=r"buffer mean became 3 in forward\(\), expected 2"):
        model.carried()
