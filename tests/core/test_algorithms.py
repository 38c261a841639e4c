"""What all algorithms share: how they read, and the step they are made of."""

import ast
from pathlib import Path

import pytest

import shoal.algorithms
from shoal.algorithms import BY_NAME
from shoal.algorithms.descent import largest_growth, schedule
from shoal.errors import SettingsError
from shoal.traits import ALGORITHMS

COMPOUND = ast.AsyncFunctionDef | ast.For | ast.While | ast.If
FILES = sorted(Path(shoal.algorithms.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_an_await_stands_alone_on_its_line(path: Path) -> None:
    """`me.x = me.x - lr * await gradient` reads x before the await and loses every average that lands meanwhile."""
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.stmt) and not isinstance(
            statement, ast.AsyncFunctionDef | ast.For | ast.While | ast.If
        ):
            awaits = [node for node in ast.walk(statement) if isinstance(node, ast.Await)]
            whole = getattr(statement, "value", None)
            assert all(a is whole for a in awaits), f"{path.name}:{statement.lineno}"


def test_the_table_has_every_algorithm_that_the_settings_know() -> None:
    assert sorted(BY_NAME) == sorted(ALGORITHMS)


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("constant", [1, 1, 1]),
        ("linear", [1, 0.5, 0]),
        ("cosine", [1, 0.5, 0]),
        ("step:0.1@0.5,0.75", [1, 0.1, 0.01]),
    ],
)
def test_a_schedule_at_its_start_middle_and_end(spec: str, values: list[float]) -> None:
    factor = schedule(spec)
    assert [factor(p) for p in (0.0, 0.5, 1.0)] == pytest.approx(values)


def test_a_warm_up_grows_from_zero_and_then_meets_the_schedule() -> None:
    factor = schedule("linear", warmup=0.2)
    assert [factor(p) for p in (0.0, 0.1, 0.2, 0.6)] == pytest.approx([0, 0.5, 0.8, 0.4])


@pytest.mark.parametrize("spec", ["exponential", "step:2@0.5", "step:0.1@0.7,0.5", "step:0.1", "step:x@0.5"])
def test_an_unsound_schedule_says_what_was_expected(spec: str) -> None:
    with pytest.raises(SettingsError, match="schedule"):
        schedule(spec)


def test_the_largest_growth_is_that_of_the_warm_up_and_1_without_one() -> None:
    assert largest_growth(schedule("cosine"), 100) == 1.0
    assert largest_growth(schedule("constant", warmup=0.1), 100) == pytest.approx(2.0)  # 1/10 -> 2/10
