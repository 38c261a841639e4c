"""What the rest of the house needs to know of each algorithm, and of each codec. A table."""

import dataclasses
from collections.abc import Mapping
from typing import Any

CODECS = ("f32", "f16", "bf16", "q8", "q4", "sign")
"""How models travel, those of more bytes first; of the two with two bytes a coordinate, bf16 counts as the smaller."""
DIFFERENCES = ("q8", "q4", "sign")
"""What these leave out is too much for a model as it is: rounds send the difference to what was sent before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traits:
    """What the rest of the house needs to know of an algorithm."""

    rounds: bool  # proceeds in rounds, which all members share; otherwise each at its own pace
    over: tuple[str, ...] = ("peers",)  # what may carry it, the default first: peers, coordinator
    mixes: bool = False  # by a matrix W over the graph
    pairs: bool = False  # averages in pairs
    packs: bool = False  # knows other codecs than f32
    replicas: bool = False  # all members hold the same x, and compare it now and then
    shared: tuple[str, ...] = ()  # what `keep` holds that belongs to x: whoever takes a model takes it, too
    votes: bool = False  # counts signs: no size of anything matters, and weight decay is decoupled
    finite_sum: bool = False  # needs gradients of single samples that chance does not change
    usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # defaults of settings that are not given


BOTH = ("peers", "coordinator")
FINITE_SUM: Any = {"rounds": True, "replicas": True, "finite_sum": True, "shared": ("x", "y before"), "over": BOTH}
DOUBLE = {"precision": "f64", "hash_every": 10}  # a round is an epoch

ALGORITHMS: dict[str, Traits] = {
    "ad-psgd": Traits(rounds=False, pairs=True, packs=True),
    "d-psgd": Traits(rounds=True, mixes=True, packs=True),
    "d2": Traits(rounds=True, mixes=True, packs=True),
    "allreduce-sgd": Traits(rounds=True, replicas=True, shared=("momentum",), over=BOTH),
    "a-psgd": Traits(rounds=False, over=("coordinator",)),
    "signsgd": Traits(rounds=True, replicas=True, votes=True, over=BOTH, usual={"lr": 0.003}),
    "signum": Traits(rounds=True, replicas=True, votes=True, over=BOTH, usual={"lr": 0.003, "momentum": 0.9}),
    "ef-signsgd": Traits(rounds=True, replicas=True, over=BOTH),
    "katyusha-x": Traits(**FINITE_SUM, usual=DOUBLE),
    "svrg": Traits(rounds=True, replicas=True, finite_sum=True, over=BOTH, usual={**DOUBLE, "tau": 0.5}),
}
"""Each is one file in `algorithms/`."""
SPARE = ("ad-psgd", "d-psgd")
"""Those that remain themselves where exchanges are left out."""
