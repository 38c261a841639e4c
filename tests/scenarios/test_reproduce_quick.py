"""`shoal reproduce all --quick`: the core of every claim, in virtual time, with one seed."""

from pathlib import Path

import pytest

from shoal.reproduce.claims import CLAIMS
from shoal.reproduce.lab import Lab


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_holds_in_its_quick_form(name: str, tmp_path: Path) -> None:
    with Lab(quick=True, processes=1) as lab:
        finding = CLAIMS[name].experiment(lab)
    assert finding.holds, "\n".join(criterion.line() for criterion in finding.criteria)
    assert finding.rows
    finding.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
