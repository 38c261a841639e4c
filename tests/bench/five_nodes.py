"""Five real nodes with two labels each against SGD on all the data: paired seeds, accuracy, train loss, seconds.

    python tests/bench/five_nodes.py [SEEDS] [--json FILE]

Each seed runs `d2` (540 rounds, ring) and `ad-psgd` (2,700 gradients in all, complete graph) over zeroconf and gRPC on
loopback, and in this process SGD with batch 80 and 540 steps, and each node alone. Same model, same split, same seed.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shoal.demo.baselines import each_alone, pooled_sgd
from shoal.demo.fleet import Fleet, loopback_nodes
from shoal.settings import Settings
from shoal.simulation import evaluator, population

NODES, ROUNDS = 5, 540


def one_run(algorithm: str, topology: str, seed: int, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The mean model's file, and figures of a run of real processes."""
    specs = loopback_nodes(
        NODES,
        algorithm=algorithm,
        topology=topology,
        shoal=f"bench-{folder.name}-{algorithm}-{seed}",
        seed=seed,
        rounds=ROUNDS,
        lr=0.5,
        batch=16,
        eval_every=0,
        checkpoint_every=0,
    )
    began = time.monotonic()
    with Fleet(folder / f"{algorithm}-{seed}", specs) as fleet:
        codes = fleet.wait(120)
        seconds = time.monotonic() - began
        results = [node.result() or {} for node in fleet.nodes]
    if codes != [0] * NODES:
        raise SystemExit(f"{algorithm}, seed {seed}: exit codes {codes}; logs in {folder}")
    own = [r["own"] for r in results]
    figures = {
        "accuracy": results[0]["accuracy"],
        "seconds": seconds,
        "gradients": sum(o["gradients"] for o in own),
        "megabytes_a_node": statistics.mean(o["bytes_sent"] for o in own) / 1e6,
        "averages_a_gradient": min(o["averages_per_gradient"] for o in own),
    }
    return Path(results[0]["path"]), figures


def train_loss(path: Path, seed: int) -> float:
    """Of a model file, on all training data."""
    learners, _ = population(Settings(seed=seed), NODES)
    model = learners[0].model
    model.module.load_state_dict(load_file(path))
    return evaluator(learners)(model.state())[0]


def main() -> None:
    """Prints one line a seed, then the means."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 5
    rows: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp(prefix="shoal-bench-"))
    for seed in range(seeds):
        settings = Settings(seed=seed, lr=0.5, batch=16, rounds=ROUNDS, algorithm="d2", topology="ring")
        sgd = pooled_sgd(settings, NODES)
        row: dict[str, Any] = {
            "seed": seed,
            "sgd": {"accuracy": sgd.accuracy, "train_loss": sgd.train_loss},
            "best_alone": max(r.accuracy for r in each_alone(settings, NODES)),
        }
        for algorithm, topology in (("d2", "ring"), ("ad-psgd", "complete")):
            path, figures = one_run(algorithm, topology, seed, folder)
            row[algorithm] = {**figures, "train_loss": train_loss(path, seed)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    for name in ("sgd", "d2", "ad-psgd"):
        accuracy = statistics.mean(r[name]["accuracy"] for r in rows)
        loss = statistics.mean(r[name]["train_loss"] for r in rows)
        slowest = max(r[name].get("seconds", 0.0) for r in rows)
        print(f"{name:8} accuracy {accuracy:.4f}  train loss {loss:.4f}  slowest {slowest:.1f} s")
    if "--json" in sys.argv:
        Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
