"""How far models are apart: what is measured, how often, and that no copy is needed for it."""

import math

import pytest
import torch

from shoal.apart import MEASURE_EVERY, Apart
from shoal.delta import PIECE, Between, Made, distance
from shoal.element_codecs import pair_codecs
from shoal.exchange import Settlement
from shoal.messages import Message
from shoal.pair_codec import Duplex


@pytest.mark.parametrize("n", [0, 1, 1000, PIECE, PIECE + 1, 3 * PIECE - 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distance_is_euclids(n: int, dtype: torch.dtype) -> None:
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    assert distance(a, b) == pytest.approx(float(torch.linalg.vector_norm(a.double() - b.double())), rel=1e-6)
    assert 2 * Between(a, b).length() == pytest.approx(distance(a, b))
    assert Made(a - b, -0.5).length() == pytest.approx(distance(a, b) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_models_as_they_were_sent_are_measured_without_being_read_whole(name: str) -> None:
    a, b = torch.randn(2, PIECE + 7, generator=torch.Generator().manual_seed(1))
    codec = pair_codecs(name, a.numel(), torch.Generator())[name]
    assert isinstance(codec, Duplex)
    delta = codec.delta(codec.own(a), codec.own(b), "b")
    assert delta.length() == pytest.approx(float(torch.linalg.vector_norm(delta.tensor().double())), rel=1e-5)
    assert 2 * delta.length() == pytest.approx(distance(a, b), rel=1e-2)


def test_it_is_measured_at_the_first_chance_and_at_each_sixteenth() -> None:
    apart, measured = Apart(), []
    assert (apart.distance, apart.norm) == (None, None)
    for chance in range(2 * MEASURE_EVERY + 1):
        apart.look(lambda chance=chance: measured.append(chance) or float(chance), lambda: 1.0)
    assert measured == [0, MEASURE_EVERY, 2 * MEASURE_EVERY]
    assert (apart.distance, apart.norm) == (2 * MEASURE_EVERY, 1.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_length_that_is_no_number_is_unknown(wrong: float) -> None:
    apart = Apart()
    apart.look(lambda: wrong, lambda: 2.0)
    assert (apart.distance, apart.norm) == (None, 2.0)


def test_both_ends_of_an_average_measure_the_same_distance_before_it() -> None:
    models = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 4.0])}
    posted: list[tuple[str, str, Message]] = []
    ends = {
        me: Settlement(
            me,
            1,
            snapshot=models[me].clone,
            add=lambda delta, me=me: delta.add_to(models[me]),
            send=lambda peer, message, me=me: posted.append((me, peer, message)),
            ended=lambda *_: None,
        )
        for me in models
    }
    ends["a"].offer("b")
    while posted:
        sender, receiver, message = posted.pop(0)
        ends[receiver].received(sender, message)
    assert [ends[me].apart.distance for me in "ab"] == [5.0, 5.0]
    assert [ends[me].apart.norm for me in "ab"] == [3.0, 4.0]
    assert torch.equal(models["a"], models["b"])
