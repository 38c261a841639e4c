"""The short part of `make chaos`: twenty seconds of random faults on four nodes, each algorithm of the table."""

from pathlib import Path

import pytest
from netlab import FAULT_TOOLS, why_not
from storm import ROWS
from storm_run import stormy

WHY_NOT = why_not(*FAULT_TOOLS)
NODES, STORM_S, QUIET_S, SEED = 4, 20.0, 5.0, 5

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(240),
]


@pytest.mark.parametrize("name", ROWS)
def test_a_short_storm_stalls_nobody_and_loses_nothing(name: str, tmp_path: Path) -> None:
    stormy(name, tmp_path, nodes=NODES, storm_s=STORM_S, quiet_s=QUIET_S, seed=SEED)
