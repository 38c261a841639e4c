"""The balance of drifting nodes on hosts of their own, through faults that kill nobody."""

from pathlib import Path

import drift_task
import torch
from balance import CHECKPOINT, LR, account, begun, check
from drift_task import D
from hosted import hosted
from storm import SPARING, SUSPECT_AFTER_S, Storm
from storm_run import COMPUTE_S, quiet, rounds_for, until_steps

from shoal.checkpoint import write
from shoal.settings import Settings


def balanced(folder: Path, *, nodes: int, storm_s: float, quiet_s: float, seed: int, averages: int) -> None:
    """Partitions, one-way cuts, stops of daemon, trainer or both for up to three times the silence after which a
    member is gone, loss and thin links. Raises AssertionError unless the sum of the models is kept over so many
    averages at least, each with both its halves, and nothing is in doubt at the end."""
    rounds = rounds_for(storm_s + quiet_s)
    settings = Settings(algorithm="ad-psgd", lr=LR, batch=1, rounds=rounds, seed=seed)
    run = {key: value for key, value in settings.run_document().items() if value is not None}
    own = {
        "task": f"{drift_task.__file__}:Drift",
        "emulate_compute_s": COMPUTE_S,
        "suspect_after_s": SUSPECT_AFTER_S,
        "checkpoint_every": 0,
        "eval_every": 0,
    }
    x0 = torch.randn(nodes, D, generator=torch.Generator().manual_seed(seed)) * 3
    with hosted(folder, nodes, **own, **run) as shoal:
        for k in range(nodes):
            write(folder / f"node-{k + 1}" / CHECKPOINT, begun(f"node-{k + 1}", settings, x0[k]))
        shoal.start_all(resume=True)
        until_steps(shoal, 5)
        storm = Storm(shoal, seed, SPARING)
        try:
            storm.blow(storm_s)
        finally:
            print(storm.told(), flush=True)
        quiet(shoal, quiet_s)
        shoal.until_end(longest_s=60 + 3 * rounds * COMPUTE_S)
        books = account(x0, shoal.nodes)
        print(f"{len(books.committed)} averages, miss {books.miss:.1e}, bound {books.bound:.1e}", flush=True)
        assert len(books.committed) >= averages
        assert set(books.committed.values()) == {1}
        check(books, shoal.nodes)
