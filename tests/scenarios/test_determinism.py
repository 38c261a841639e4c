"""The same seed and scenario give the same trace, digest and models, in any process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.errors import Deadlock
from shoal.virtual_time import run

ARGS = ["simulate", "--workers", "6", "--rounds", "30", "--lr", "0.1", "--jitter", "0.5", "--slow", "2:3"]
ARGS += ["--cut", "0.1:0-1:0.2", "--crash", "0.2:5", "--topology", "random:3", "--partition", "dirichlet:0.3"]


def digest(folder: Path, hash_seed: str, *more: str) -> str:
    out = folder / "result.json"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    argv = [sys.executable, "-m", "shoal", *ARGS, *more, "--json", str(out)]
    subprocess.run(argv, check=True, env=environment, capture_output=True, cwd=folder)
    return str(json.loads(out.read_text())["digest"])


def test_the_digest_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    first = digest(tmp_path, "1")
    assert digest(tmp_path, "2") == first
    assert digest(tmp_path, "1", "--seed", "7") != first


def test_a_run_that_can_never_go_on_says_so_instead_of_hanging() -> None:
    async def stuck() -> None:
        import asyncio

        await asyncio.sleep(0.58)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match=r"deadlock at t=0\.580 s: every task waits, no timer is set"):
        run(stuck())
