"""Packed exchanges: LEAD for D2 (2007.00232), CHOCO-SGD for D-PSGD (1902.00340), decoding against the receiver's own
model for AD-PSGD (2002.11787, 1910.12308). That they converge at the rates of full precision is theirs, and unverified
here; the figures are ours."""

import pytest
import torch

from paper.runs import final_accuracy, final_loss, quadratic, train
from shoal.errors import SettingsError
from shoal.mixer import Mixer
from shoal.settings import Settings
from shoal.simulation import Cut, Scenario

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
    lead = quadratic(5, codec="packed", **common)
    torch.testing.assert_close(torch.stack(lead.states), torch.stack(plain.states), rtol=0, atol=1e-4)


def test_without_packing_choco_mixes_the_model_after_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """x = W (x - lr g): the mean of the models goes where D-PSGD's goes, and the models lie closer together."""
    common = {"algorithm": "d-psgd", "topology": "ring", "lr": 0.1, "rounds": 60, "partition": "labels:2"}
    plain = torch.stack(quadratic(5, **common).states)
    monkeypatch.setattr(Mixer, "packed", unpacked)
    choco = torch.stack(quadratic(5, codec="packed", **common).states)
    torch.testing.assert_close(choco.mean(0), plain.mean(0), rtol=0, atol=1e-4)
    assert choco.std(0).norm() < plain.std(0).norm()


@pytest.mark.parametrize(("algorithm", "fewer"), [("d2", 27.0), ("d-psgd", 14.5), ("ad-psgd", 12.0)])
def test_on_skewed_labels_a_packed_run_ends_where_the_full_one_does(algorithm: str, fewer: float) -> None:
    scenario = Scenario(jitter=0.2, vector_s=0.001)
    full, packed = (train(5, scenario, algorithm=algorithm, codec=codec, **SKEWED) for codec in ("full", "packed"))
    assert final_loss(packed) <= 1.1 * final_loss(full)
    assert final_accuracy(packed) >= final_accuracy(full) - 0.01
    assert sum(full.sent_bytes.values()) >= fewer * sum(packed.sent_bytes.values())


def test_a_decaying_step_size_is_no_harm_to_a_packed_d2() -> None:
    common = {**SKEWED, "algorithm": "d2", "schedule": "linear", "warmup": 0.1}
    full, packed = (train(5, codec=codec, **common) for codec in ("full", "packed"))
    assert final_loss(packed) <= 1.1 * final_loss(full)


def test_the_sum_of_the_models_is_kept_though_links_break() -> None:
    """Steps of no length: what averages move must cancel."""
    cuts = tuple(Cut(at_s=0.03 * k, a=k % 4, b=(k + 1) % 4, for_s=0.01) for k in range(1, 20))
    scenario = Scenario(jitter=0.3, vector_s=0.004, cuts=cuts)
    common = {"algorithm": "ad-psgd", "lr": 0.05, "rounds": 100, "codec": "packed", "correction": "pairwise"}
    result = quadratic(4, scenario, **common)
    moved = torch.stack([runtime.moved for runtime in result.runtimes])
    assert moved.abs().max() > 0.1
    assert moved.sum(0).abs().max() < 1e-5


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "signum", "katyusha-x"])
def test_an_algorithm_that_cannot_pack_says_which_can(algorithm: str) -> None:
    with pytest.raises(SettingsError, match=f"codec = packed is for ad-psgd, d-psgd, d2; {algorithm} has no sound way"):
        Settings(algorithm=algorithm, codec="packed")
