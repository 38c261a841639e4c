"""The bench's arithmetic, its table and its command. What it measures has no test: times are no assertions."""

import json
from pathlib import Path

import pytest

from shoal.bench.blank import task_file
from shoal.bench.lab import Figure, Lab, median, ratio_of
from shoal.bench.measurements import MEASUREMENTS
from shoal.bench.processes import children, cpu_seconds
from shoal.cli import main
from shoal.data.loading import load_task


@pytest.mark.parametrize(
    ("value", "less_is_better", "met"), [(0.5, False, True), (0.4, False, False), (0.4, True, True), (0.6, True, False)]
)
def test_a_bar_is_met_from_the_side_that_is_better(value: float, less_is_better: bool, met: bool) -> None:
    figure = Figure(name="speed", value=value, unit="x", bar=0.5, less_is_better=less_is_better)
    assert figure.met is met
    assert figure.line().startswith("met" if met else "MISSED")
    assert ("at most 0.5" if less_is_better else "at least 0.5") in figure.line()


def test_a_figure_without_a_bar_is_only_said() -> None:
    figure = Figure(name="memory", value=54.0, unit="MiB", note="idle")
    assert figure.met is None
    assert figure.line().strip() == "memory: 54 MiB (idle)"


def test_a_figure_is_the_median_of_its_samples() -> None:
    figure = median("speed", [1.0, 100.0, 2.0], "x", bar=1.5)
    assert (figure.value, figure.samples) == (2.0, (1.0, 100.0, 2.0))


def test_pairs_are_taken_in_turn_after_one_of_each_to_warm_up() -> None:
    done: list[str] = []
    ratios = ratio_of(lambda: done.append("reference"), lambda: done.append("work"), 3)
    assert done == ["reference", "work"] * 4
    assert len(ratios) == 3
    assert all(ratio > 0 for ratio in ratios)


def test_quick_vectors_are_a_tenth() -> None:
    assert [Lab(quick=quick).size(1000) for quick in (False, True)] == [1000, 100]


def test_a_task_of_any_size_is_a_file_that_loads(tmp_path: Path) -> None:
    (tmp_path / "blank.py").write_text(task_file(123))
    task = load_task(f"{tmp_path / 'blank.py'}:Blank")
    assert sum(p.numel() for p in task.model().parameters()) == 123


def test_a_process_that_works_uses_its_processor() -> None:
    import os

    before = cpu_seconds([os.getpid()])
    while cpu_seconds([os.getpid()]) < before + 0.01:
        sum(range(1000))
    assert children(os.getpid()) == children(os.getpid())


def test_the_measurements_can_be_listed() -> None:
    from shoal.cli.bench import command

    assert command.__doc__
    assert main(["bench", "--list"]) == 0


def test_an_unknown_measurement_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed"]) == 2
    assert f"unknown measurement 'speed'; known: {', '.join(MEASUREMENTS)}" in capsys.readouterr().err


def test_quick_signs_are_measured_and_written(tmp_path: Path) -> None:
    assert main(["bench", "signs", "--quick", "--pairs", "1", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [figure["bar"] for figure in document["figures"]["signs"]] == [0.6, 0.6, 0.5, 0.45]
    assert document["machine"]["cores"] >= 1
