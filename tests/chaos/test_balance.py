"""The sum of the models over 1,000 averages and more, through faults that kill nobody. Three minutes.
`SHOAL_CHAOS_SEED` changes the seed, which is printed."""

import os
import secrets
from pathlib import Path

import pytest
from balance_run import balanced
from netlab import FAULT_TOOLS, why_not

WHY_NOT = why_not(*FAULT_TOOLS)
SEED = int(os.environ.get("SHOAL_CHAOS_SEED", secrets.randbelow(10**6)))
pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.timeout(900)]


def test_the_sum_is_kept_over_a_thousand_averages_through_cuts_and_stops(tmp_path: Path) -> None:
    balanced(tmp_path, nodes=4, storm_s=120, quiet_s=10, seed=SEED, averages=1_000)
