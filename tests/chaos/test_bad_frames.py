"""100,000 mutated frames, control frames and Hellos against a node that trains. Minutes. `SHOAL_CHAOS_SEED` changes
the seed, which is printed."""

import os
import secrets
from pathlib import Path

import pytest
from bad_frames import bear

SEED = int(os.environ.get("SHOAL_CHAOS_SEED", secrets.randbelow(10**6)))

pytestmark = [pytest.mark.live, pytest.mark.timeout(3600)]


async def test_a_node_bears_a_hundred_thousand_bad_frames_and_trains_on(tmp_path: Path) -> None:
    await bear(tmp_path, 100_000, SEED)
