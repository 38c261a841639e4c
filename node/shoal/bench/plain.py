"""A training loop as one writes it without shoal: SGD over the same task, in a process of its own.

python -m shoal.bench.plain TASK BATCH         told by its parent over stdin: `steps COUNT`, answers with the seconds
"""

import sys
import time
from pathlib import Path

import torch

from shoal.data.loading import load_task
from shoal.data.task import Place
from shoal.settings import Settings


def serve(spec: str, batch: int) -> None:
    """On one thread, as a trainer has by default. The step is written out: torch.optim brings a compiler of 80 MB with
    it, which a node does without, and which would be to its credit here."""
    torch.set_num_threads(1)
    task = load_task(spec)
    data = task.data(Place(0, 1, "iid", 0, Path(), download=False))
    model = task.model()
    parameters, lr = list(model.parameters()), Settings().lr
    print("ready", flush=True)
    while command := sys.stdin.readline().split():
        began = time.perf_counter()
        for _ in range(int(command[1])):
            rows = torch.randint(len(data.inputs), (batch,))
            model.zero_grad()
            loss = task.loss(model(data.inputs[rows]), data.targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for p in parameters:
                    assert p.grad is not None
                    p.add_(p.grad, alpha=-lr)
            loss.item()
        print(f"{time.perf_counter() - began:.6f}", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
