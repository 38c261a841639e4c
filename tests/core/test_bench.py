"""The bench's arithmetic, its table and its command. What it measures has no test: times are no assertions."""

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from shoal.bench import crowd, nodes, sizes
from shoal.bench.against_hivemind import VERSION, compared, installed
from shoal.bench.baselines import copying, in_turn, rates
from shoal.bench.blank import layers_file, task_file
from shoal.bench.exchange import WARM_UP
from shoal.bench.idle import Use
from shoal.bench.lab import Figure, Lab, median, ratio_of
from shoal.bench.measurements import MEASUREMENTS
from shoal.bench.picture import FARTHEST, draw, reached, said
from shoal.bench.processes import available_bytes, children, cpu_seconds, family, memory_bytes
from shoal.bench.start import first_average
from shoal.bench.told import Pair, Told
from shoal.cli import main
from shoal.data.loading import load_task
from shoal.data.task import Place
from shoal.learner import Learner, initial_state
from shoal.settings import Settings


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


def test_layers_have_as_many_parameters_as_they_say_and_are_a_finite_sum(tmp_path: Path) -> None:
    (tmp_path / "blank.py").write_text(layers_file(20, 4))
    task = load_task(f"{tmp_path / 'blank.py'}:Blank")
    model, state = initial_state(task, 0)
    assert model.layout.d == 4 * 20 * 21
    learner = Learner(task, task.data(Place(0, 1, "iid", 0, tmp_path, download=False)), model, batch=4, seed=0, shard=0)
    learner.check_finite_sum(state)
    assert learner.full_gradient(state).norm() > 0


# --- processes --------------------------------------------------------------------------------------------------


def test_a_process_that_works_uses_its_processor() -> None:
    before = cpu_seconds([os.getpid()])
    while cpu_seconds([os.getpid()]) < before + 0.01:
        sum(range(1000))
    assert children(os.getpid()) == children(os.getpid())


def test_shared_pages_count_in_full_or_in_part() -> None:
    resident, own = (memory_bytes(os.getpid(), kind) for kind in ("Rss", "Pss"))
    assert 0 < own <= resident
    assert available_bytes() > 0
    with pytest.raises(ValueError, match="Shared is no figure"):
        memory_bytes(os.getpid(), "Shared")


ECHO = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"
FAMILY = "import subprocess, sys\nsubprocess.Popen(['sleep', '100'])\nprint('ready', flush=True)\nsys.stdin.read()"
ENDS = """
import sys
if len(sys.argv) == 1:
    print("here", flush=True)
else:
    assert sys.argv[1:] == ["here"]
print("ready", flush=True)
for line in sys.stdin:
    print("done" if line == "swap\\n" else "what?", flush=True)
"""


def alive(pid: int) -> bool:
    """Whether it runs; one that is dead and was not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_is_told_a_line_and_answers_with_one() -> None:
    with Told([sys.executable, "-c", ECHO]) as told:
        told.tell("ready")
        told.expect("READY")
        told.tell("swap")
        with pytest.raises(RuntimeError, match="says 'SWAP', expected 'done'"):
            told.expect("done")


def test_a_process_that_ends_is_no_answer() -> None:
    with (
        Told([sys.executable, "-c", "raise SystemExit(3)"]) as told,
        pytest.raises(RuntimeError, match="ended with exit code 3, expected an answer"),
    ):
        told.heard()


def test_with_a_process_end_those_that_it_has_started() -> None:
    with Told([sys.executable, "-c", FAMILY]) as told:
        told.expect("ready")
        mine, child = family(told.pid)
        assert mine == told.pid
        assert child in children(mine)
    while alive(child):
        time.sleep(0.01)


def test_the_second_of_a_pair_is_told_where_the_first_is() -> None:
    with Pair([sys.executable, "-c", ENDS]) as pair:
        assert len(pair.pids) == 2
        wall, cpu = pair.swap()
        assert wall > 0
        assert cpu >= 0
        with pytest.raises(RuntimeError, match="says 'what\\?', expected 'done'"):
            pair.both("reduce", "done")


def test_a_pair_that_cannot_begin_leaves_no_process() -> None:
    before = children(os.getpid())
    with pytest.raises(RuntimeError, match="expected an answer"):
        Pair([sys.executable, "-c", "print('here', flush=True)"])
    assert set(children(os.getpid())) <= set(before)


def test_a_plain_loop_takes_steps_and_says_how_long(tmp_path: Path) -> None:
    (tmp_path / "blank.py").write_text(layers_file(4))
    with Told([sys.executable, "-m", "shoal.bench.plain", f"{tmp_path / 'blank.py'}:Blank", "2"]) as plain:
        plain.expect("ready")
        plain.tell("steps 3")
        assert float(plain.heard()) > 0


# --- figures of each measurement --------------------------------------------------------------------------------


def test_works_are_done_in_turn_and_what_warms_up_is_not_counted() -> None:
    done: list[str] = []

    def work(name: str) -> tuple[float, float]:
        done.append(name)
        return len(done), 0.0

    taken = in_turn({"a": lambda: work("a"), "b": lambda: work("b")}, 2)
    assert done == ["a", "b"] * (WARM_UP + 2)
    assert taken["b"] == [(2 * WARM_UP + 2, 0.0), (2 * WARM_UP + 4, 0.0)]


def test_speeds_are_of_the_float32_bytes_and_beside_the_first_of_the_same_turn() -> None:
    taken = {"TCP": [(1.0, 0.5), (2.0, 0.5)], "ours": [(2.0, 1.0), (8.0, 1.0)]}
    speed, cpu, ours, ours_cpu = rates(taken, 4_000_000_000)
    assert (speed.value, speed.unit, speed.note) == (3.0, "GB/s of f32", "")
    assert cpu.value == 0.125
    assert (ours.value, ours.note) == (1.25, "0.38 of TCP")  # medians of 2 and .5, of .5 and .25
    assert (ours_cpu.name, ours_cpu.value) == ("ours: CPU", 0.25)


def test_a_copy_takes_time() -> None:
    wall, cpu = copying(1000)()
    assert wall > 0
    assert cpu >= 0


def test_growth_is_from_the_fewest_nodes_to_the_most() -> None:
    uses = {4: [Use(1.0, 70.0, 40.0, 100.0)] * 2, 16: [Use(3.0, 70.0, 42.0, 400.0)] * 3, 8: [Use(2.0, 70, 41, 200)]}
    figures = {figure.name: figure for figure in nodes.of_uses(uses)}
    assert len(figures) == 3 * 4
    assert figures["CPU of an idle daemon: growth from 4 to 16 nodes"].value == 3.0
    assert figures["control traffic of an idle daemon: growth from 4 to 16 nodes"].value == 4.0
    assert figures["memory of an idle daemon, 8 nodes"].value == 41


def test_the_members_of_a_crowd_speak_as_often_as_members_do() -> None:
    """Sixteen are told at once; of more, sixteen in each interval."""
    few, many = crowd.among(5, 20.0), crowd.among(101, 20.0)
    assert few.heard == pytest.approx(4 / Settings().heartbeat_s, rel=0.1)
    assert few.sent == pytest.approx(few.heard, rel=0.2)
    assert many.heard == pytest.approx(many.sent, rel=0.2)
    assert many.sent < 4.5 * few.sent


def test_a_crowd_whose_members_fall_silent_is_no_measurement() -> None:
    node = crowd.Observed(3)
    node.live(5.0)
    node.others.say = lambda now: iter(())  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="2 members that speak are taken for gone, first p0000"):
        node.live(60.0)


def test_too_little_memory_for_any_nodes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "available_bytes", lambda: 0)
    with pytest.raises(RuntimeError, match="4 nodes need 640 MiB"):
        nodes.measure(Lab(1))


def test_sizes_that_there_is_no_memory_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "available_bytes", lambda: 0)
    assert sizes.measure(Lab(1)) == []


def test_the_first_average_is_in_seconds_of_the_epoch() -> None:
    history = [
        {"t": 0.5, "kind": "event", "what": "began", "epoch_s": 1000.0},
        {"t": 1.0, "kind": "step"},
        {"t": 1.5, "kind": "exchange", "outcome": "busy"},
        {"t": 2.0, "kind": "exchange", "outcome": "done"},
        {"t": 3.0, "kind": "exchange", "outcome": "done"},
    ]
    assert first_average(history) == 1001.5


def test_beside_hivemind_its_search_for_a_group_counts_apart() -> None:
    theirs, ours = [(2.0, 8.0), (4.0, 8.0)], [(1.0, 2.0), (1.0, 2.0)]
    speed, whole, cpu = compared("average", theirs, ours, [9.0, 9.0, 1.0, 2.0], "1.2.3")  # the first two to warm up
    assert (speed.value, speed.bar, speed.note) == (3.0, 4, "1000 ms, hivemind 1.2.3 3000 ms")
    assert whole.samples == (3.0, 6.0)
    assert cpu.value == 4.0


def test_an_interpreter_with_hivemind_tells_its_version(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 1.2.3\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    assert installed(str(python)) == "1.2.3"


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n"])
def test_without_hivemind_it_says_how_to_install_it(script: str | None, tmp_path: Path) -> None:
    python = tmp_path / "python"
    if script is not None:
        python.write_text(script)
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(RuntimeError, match=rf"cannot import hivemind: `pip install hivemind=={VERSION}`.*--hivemind"):
        installed(str(python))


# --- the picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "bar", "less_is_better", "expected"),
    [
        (1.0, 2.0, False, 0.5),
        (1.0, 2.0, True, 2.0),
        (2.0, 2.0, True, 1.0),
        (-1.0, 5.0, True, FARTHEST),  # an overhead below nothing
        (0.0, 5.0, True, FARTHEST),
        (0.0, 5.0, False, 1 / FARTHEST),
        (1e9, 5.0, True, 1 / FARTHEST),
        (1e9, 5.0, False, FARTHEST),
    ],
)
def test_a_bar_is_reached_at_one(value: float, bar: float, less_is_better: bool, expected: float) -> None:
    figure = Figure(name="speed", value=value, unit="x", bar=bar, less_is_better=less_is_better)
    assert reached(figure) == expected


def test_beside_a_drawn_figure_are_its_value_and_its_bar() -> None:
    assert said(Figure(name="a", value=0.5, unit="x", bar=0.45)) == " 0.5 x (≥ 0.45) "
    assert said(Figure(name="a", value=3.0, unit="%", bar=5, less_is_better=True)) == " 3 % (≤ 5) "


def test_figures_with_a_bar_are_drawn(tmp_path: Path) -> None:
    figures = [
        Figure(name="met", value=1.0, unit="x", bar=0.5),
        Figure(name="missed", value=9.0, unit="%", bar=3, less_is_better=True),
        Figure(name="without", value=9.0, unit="%"),
    ]
    assert not draw(tmp_path / "none.png", figures[2:], "nothing")
    assert not (tmp_path / "none.png").exists()
    assert draw(tmp_path / "some.png", figures, "two of three")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


# --- the command ------------------------------------------------------------------------------------------------


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
    assert (tmp_path / "bench.png").exists()


def test_what_cannot_be_measured_here_is_said_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(tmp_path / "no-python")
    assert main(["bench", "hivemind", "--hivemind", where, "--out", str(tmp_path)]) == 0
    assert "hivemind cannot be measured here" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text())["figures"] == {}
    assert not (tmp_path / "bench.png").exists()
