"""Packed exchanges: LEAD for D2 (2007.00232), CHOCO-SGD for D-PSGD (1902.00340), decoding against the receiver's own
model for AD-PSGD (2002.11787, 1910.12308). That they converge at the rates of full precision is theirs, and unverified
here; the figures are ours."""

import functools
from statistics import mean

import pytest
import torch

from paper.runs import final_accuracy, final_loss, quadratic, train
from shoal.errors import SettingsError
from shoal.mixer import Mixer
from shoal.settings import Settings
from shoal.simulation import Cut, Result, Scenario, population, simulate

SKEWED = {"partition": "labels:2", "lr": 0.5, "rounds": 400}


async def unpacked(
    self: Mixer, t: int, z: torch.Tensor, bits: int, buffers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of `Mixer.packed`: C is the identity."""
    return await self.full(t, torch.cat((z, buffers))), z


def test_without_packing_lead_is_d2(monkeypatch: pytest.MonkeyPatch) -> None:
    """With C the identity, the recursion is D2's, to rounding: H and HW cancel."""
    common = {"algorithm": "d2", "topology": "ring", "lr": 0.1, "rounds": 60, "partition": "labels:2"}
    plain = quadratic(5, **common)
    monkeypatch.setattr(Mixer, "packed", unpacked)
    lead = quadratic(5, codec="sign", **common)
    torch.testing.assert_close(torch.stack(lead.states), torch.stack(plain.states), rtol=0, atol=1e-4)


def test_without_packing_choco_mixes_the_model_after_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """x = W (x - lr g): the mean of the models goes where D-PSGD's goes, and the models lie closer together."""
    common = {"algorithm": "d-psgd", "topology": "ring", "lr": 0.1, "rounds": 60, "partition": "labels:2"}
    plain = torch.stack(quadratic(5, **common).states)
    monkeypatch.setattr(Mixer, "packed", unpacked)
    choco = torch.stack(quadratic(5, codec="sign", **common).states)
    torch.testing.assert_close(choco.mean(0), plain.mean(0), rtol=0, atol=1e-4)
    assert choco.std(0).norm() < plain.std(0).norm()


FEWER = {"bf16": 1.99, "f16": 1.98, "q8": 3.85, "q4": 7.6}
SIGN = {"d2": 27.0, "d-psgd": 14.5, "ad-psgd": 12.0}


SEEDS = (0, 1, 2)  # of one, the last iterate alone makes a tenth of the loss


@functools.cache
def skewed(algorithm: str, codec: str) -> list[Result]:
    surroundings = Scenario(jitter=0.2, vector_s=0.001)
    return [train(5, surroundings, algorithm=algorithm, codec=codec, seed=seed, **SKEWED) for seed in SEEDS]


@pytest.mark.parametrize("codec", [*FEWER, "sign"])
@pytest.mark.parametrize("algorithm", SIGN)
def test_on_skewed_labels_every_codec_ends_where_float32_does_for_fewer_bytes(algorithm: str, codec: str) -> None:
    full, packed = skewed(algorithm, "f32"), skewed(algorithm, codec)
    assert mean(map(final_loss, packed)) <= 1.1 * mean(map(final_loss, full))
    assert mean(map(final_accuracy, packed)) >= mean(map(final_accuracy, full)) - 0.01
    fewer = {**FEWER, "sign": SIGN[algorithm]}[codec]
    for plain, less in zip(full, packed, strict=True):
        assert sum(plain.sent_bytes.values()) >= fewer * sum(less.sent_bytes.values())


@pytest.mark.parametrize("codec", ["bf16", "f16"])
@pytest.mark.parametrize("algorithm", ["d2", "d-psgd"])
def test_rounded_rounds_keep_the_sum_of_the_models(algorithm: str, codec: str) -> None:
    """With steps of no length the mean stays where it is, but for float32's rounding of D2's corrections, though every
    model except a worker's own comes in 16 bits."""
    settings = Settings(task="quadratic", algorithm=algorithm, topology="ring", lr=1e-12, rounds=40, codec=codec)
    learners, states = population(settings, 5)
    start = torch.stack([state + torch.randn(len(state)) for state in states])
    end = torch.stack(simulate(settings, Scenario(), learners, list(start.clone())).states)
    torch.testing.assert_close(end.mean(0), start.mean(0), rtol=0, atol=3e-4)
    assert end.std(0).max() < 0.02 < start.std(0).min()


@pytest.mark.parametrize("algorithm", ["ad-psgd", "d2"])
def test_models_in_16_bits_lie_no_further_apart_at_the_end_than_a_rounding_of_them(algorithm: str) -> None:
    """As the step size falls to nothing models meet, but for what bfloat16 cannot tell apart."""
    result = train(5, algorithm=algorithm, codec="bf16", schedule="linear", **SKEWED)
    states = torch.stack(result.states)
    apart = (states - states.mean(0)).square().mean().sqrt()
    assert 1e-6 < float(apart) < 2.0**-8 * float(states.square().mean().sqrt())


def test_a_decaying_step_size_is_no_harm_to_a_packed_d2() -> None:
    common = {**SKEWED, "algorithm": "d2", "schedule": "linear", "warmup": 0.1}
    full, packed = (train(5, codec=codec, **common) for codec in ("f32", "sign"))
    assert final_loss(packed) <= 1.1 * final_loss(full)


def test_the_sum_of_the_models_is_kept_though_links_break() -> None:
    """Steps of no length: what averages move must cancel."""
    cuts = tuple(Cut(at_s=0.03 * k, a=k % 4, b=(k + 1) % 4, for_s=0.01) for k in range(1, 20))
    scenario = Scenario(jitter=0.3, vector_s=0.004, cuts=cuts)
    common = {"algorithm": "ad-psgd", "lr": 0.05, "rounds": 100, "codec": "sign", "correction": "pairwise"}
    result = quadratic(4, scenario, **common)
    moved = torch.stack([runtime.moved for runtime in result.runtimes])
    assert moved.abs().max() > 0.1
    assert moved.sum(0).abs().max() < 1e-5


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "signum", "katyusha-x"])
def test_an_algorithm_that_cannot_pack_says_which_can(algorithm: str) -> None:
    with pytest.raises(SettingsError, match=f"codec = sign is for ad-psgd, d-psgd, d2; {algorithm} has no sound way"):
        Settings(algorithm=algorithm, codec="sign")
