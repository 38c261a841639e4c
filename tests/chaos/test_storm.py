"""Ten minutes of random faults on eight nodes, each algorithm of the table. `SHOAL_CHAOS_MINUTES` and
`SHOAL_CHAOS_SEED` change length and seed; the seed is printed."""

import os
import secrets
from pathlib import Path

import pytest
from netlab import FAULT_TOOLS, why_not
from storm import ROWS
from storm_run import stormy

WHY_NOT = why_not(*FAULT_TOOLS)
MINUTES = float(os.environ.get("SHOAL_CHAOS_MINUTES", "10"))
SEED = int(os.environ.get("SHOAL_CHAOS_SEED", secrets.randbelow(10**6)))
NODES, QUIET_S = 8, 60.0

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(60 * (5 * MINUTES + 10)),
]


@pytest.mark.parametrize("name", ROWS)
def test_a_storm_stalls_nobody_and_loses_nothing(name: str, tmp_path: Path) -> None:
    stormy(name, tmp_path, nodes=NODES, storm_s=60 * MINUTES, quiet_s=QUIET_S, seed=SEED)
