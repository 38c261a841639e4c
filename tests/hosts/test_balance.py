"""A part of what `make chaos` does: the sum of the models through faults that kill nobody."""

from pathlib import Path

import pytest
from balance_run import balanced
from netlab import FAULT_TOOLS, why_not

WHY_NOT = why_not(*FAULT_TOOLS)
pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.timeout(200)]


def test_the_sum_is_kept_through_cuts_and_stops(tmp_path: Path) -> None:
    balanced(tmp_path, nodes=3, storm_s=20, quiet_s=3, seed=7, averages=200)
