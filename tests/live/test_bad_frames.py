"""A part of what `make chaos` sends: mutated frames, control frames and Hellos against a node that trains."""

from pathlib import Path

import pytest
from bad_frames import bear

pytestmark = pytest.mark.live


async def test_a_node_bears_twenty_thousand_bad_frames_and_trains_on(tmp_path: Path) -> None:
    await bear(tmp_path, 20_000, seed=1)
