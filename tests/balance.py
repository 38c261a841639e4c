"""The balance of a run whose nodes drift apart (`drift_task.py`): where each begins, what their models must add up to,
and which averages both ends have done."""

import collections
import dataclasses
import random
from collections.abc import Sequence

import torch
from drift_task import Drift, direction
from nodes_kit import mean_model
from torch import Tensor

from shoal.checkpoint import Checkpoint, read
from shoal.data.loading import task_document
from shoal.demo.fleet import NodeProcess
from shoal.settings import Settings
from shoal.vector import FlatModel

LR = 2.0**-7  # with drifts in 64ths, each step is exact in float32
CHECKPOINT = "checkpoint.safetensors"

Average = tuple[str, str, int]
"""(initiator, its peer, number)."""


def begun(name: str, settings: Settings, state: Tensor) -> Checkpoint:
    """Of a node that has done nothing yet, and stands at `state`."""
    version, internal, gauss = random.Random(name).getstate()
    return Checkpoint(
        task_document=task_document(Drift(), FlatModel(Drift().model()).layout),
        run_document=settings.run_document(),
        node_id=name,
        incarnation=0,
        step=0,
        gradients=0,
        round=0,
        state=state,
        memory={"batches": torch.Generator().get_state()},
        rng={"algorithm": [version, list(internal), gauss]},
        settlement={},
    )


@dataclasses.dataclass
class Account:
    """Both sides of the balance, and the averages by the histories of those who decided and of those who served."""

    ends: list[Checkpoint]
    miss: float  # max |sum x - (sum x0 + sum of drifts)|
    bound: float  # 1e-5 n max|x|
    committed: "collections.Counter[Average]"
    served: "collections.Counter[Average]"


def account(x0: Tensor, nodes: Sequence[NodeProcess]) -> Account:
    ends = [read(node.folder / CHECKPOINT) for node in nodes]
    states = torch.stack([end.state for end in ends]).double()
    expected = x0.double().sum(0)
    committed, served = collections.Counter[Average](), collections.Counter[Average]()
    for shard, (node, end) in enumerate(zip(nodes, ends, strict=True)):
        history = node.history()
        steps = [line["step"] for line in history if line["kind"] == "step"]
        assert steps == list(range(1, end.step + 1)), "a gradient was not applied, or twice"
        expected += len(steps) * LR * direction(shard).double()
        for line in history:
            if line["kind"] == "exchange" and line["outcome"] == "done":
                if line["role"] == "passive":
                    served[line["peer"], end.node_id, line["seq"]] += 1
                elif "crossing" not in line["reason"]:  # the peer's offer became the average, and is its to count
                    committed[end.node_id, line["peer"], line["seq"]] += 1
    miss = float((states.sum(0) - expected).abs().max())
    return Account(ends, miss, 1e-5 * len(nodes) * float(states.abs().max()), committed, served)


def check(books: Account, nodes: Sequence[NodeProcess]) -> None:
    """The sum is kept, each average has two halves, nothing is left open, and the mean model is that of the ends."""
    assert books.miss <= books.bound
    assert books.committed == books.served, "an average that one end alone has done"
    mean = torch.stack([end.state for end in books.ends]).double().mean(0)
    for node, end in zip(nodes, books.ends, strict=True):
        assert end.settlement["records"] == []
        assert end.settlement["doubts"] == []
        torch.testing.assert_close(mean_model(node)["x"].double(), mean, rtol=0, atol=books.bound)
