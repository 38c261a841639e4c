"""The reading of histories that other tests rely on: it finds what is applied twice, and what is missing."""

from typing import Any

import pytest
from applied import Twice, applied

BEGAN = {"kind": "event", "what": "began"}


def steps(first: int, last: int, batch: str = "b") -> list[dict[str, Any]]:
    return [{"kind": "step", "step": k, "batch": f"{batch}{k}"} for k in range(first, last + 1)]


def resumed(step: int) -> dict[str, Any]:
    return {"kind": "event", "what": "resumed", "step": step}


def test_one_life_is_all_its_steps() -> None:
    found = applied([BEGAN, *steps(1, 5)])
    assert [step for step, _ in found.survived] == [1, 2, 3, 4, 5]
    assert (found.lost, found.lives) == (0, 1)


def test_what_a_killed_life_did_after_its_checkpoint_is_lost_and_may_be_drawn_again() -> None:
    found = applied([BEGAN, *steps(1, 9), BEGAN, resumed(6), *steps(7, 12), BEGAN, resumed(10), *steps(11, 11)])
    assert [batch for _, batch in found.survived] == [f"b{k}" for k in range(1, 12)]
    assert (found.lost, found.lives) == (3 + 2, 3)


def test_a_life_without_a_checkpoint_begins_with_nothing_of_its_own() -> None:
    found = applied([BEGAN, *steps(1, 4), BEGAN, {"kind": "event", "what": "joined"}, *steps(1, 2)])
    assert len(found.survived) == 2
    assert found.lost == 4


def test_steps_without_batches_are_counted_alone() -> None:
    assert len(applied([BEGAN, {"kind": "step", "step": 1}, {"kind": "step", "step": 2}]).survived) == 2


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ([BEGAN, *steps(1, 3), *steps(3, 4)], "life 1 has step 3, expected 4"),
        ([BEGAN, *steps(1, 3), *steps(5, 6)], "life 1 has step 5, expected 4"),
        ([BEGAN, *steps(1, 3), BEGAN, resumed(5)], "life 2 resumed at step 5, but only 3 steps are on record"),
        ([BEGAN, *steps(1, 6), BEGAN, resumed(3), *steps(5, 6)], "life 2 has step 5, expected 4"),
        ([BEGAN, *steps(1, 3), BEGAN, resumed(3), *steps(4, 4, "b0"), *steps(5, 5)], None),
        ([BEGAN, *steps(1, 2), {"kind": "step", "step": 3, "batch": "b1"}], "step 3 has batch b1, and so has step 1"),
        ([*steps(1, 2)], "step 1 before any life began"),
    ],
)
def test_what_is_twice_or_missing_is_found(history: list[dict[str, Any]], words: str | None) -> None:
    if words is None:
        assert applied(history).lost == 0
    else:
        with pytest.raises(Twice, match=words):
            applied(history)
