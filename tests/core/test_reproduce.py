"""`shoal reproduce`'s frame: criteria, the lab, runs as plain values, pictures, and the command's words."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.cli import main
from shoal.mixing import mixing
from shoal.reproduce import claims, pictures
from shoal.reproduce.ad_psgd_speed import expected
from shoal.reproduce.d2 import distances
from shoal.reproduce.lab import Claim, Criterion, Finding, Lab, not_worse, points_lost, tuned, within
from shoal.reproduce.pareto import bytes_to, front, lost_in_packing, methods
from shoal.reproduce.runs import TINY, Outcome, Run, curve, execute, mean, row
from shoal.simulation import Point, Scenario
from shoal.topology import graph
from shoal.traits import ALGORITHMS

Output = pytest.CaptureFixture[str]


def outcome(loss: float, sent: int = 0, **more: Any) -> Outcome:
    return Outcome(seed=0, loss=loss, sent_bytes=sent, **more)


def falling(losses: list[float]) -> Outcome:
    """Ten bytes a point."""
    points = [Point(float(k), k, loss, None, 0.0, 10 * k) for k, loss in enumerate(losses)]
    return outcome(losses[-1], curve=points)


def tiny(**settings: Any) -> Run:
    return Run(workers=3, settings={**TINY, "algorithm": "d-psgd", "rounds": 4, **settings}, points=2)


# --- criteria -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "passes"),
    [
        (Criterion("", 1.0, "at most", 1.0), True),
        (Criterion("", 1.01, "at most", 1.0), False),
        (Criterion("", 1.0, "at least", 1.0), True),
        (Criterion("", 0.99, "at least", 1.0), False),
        (within("", 12.5, 10, 0.25), True),
        (within("", 7.4, 10, 0.25), False),
        (not_worse("", 0.1, 10, 0.1), True),
        (not_worse("", 11.1, 10, 0.1), False),
        (points_lost("", 0.97, 0.98, 1.0001), True),
        (points_lost("", 0.96, 0.98, 1), False),
        (points_lost("", 0.99, 0.98, 1), True),
    ],
)
def test_a_figure_is_held_against_its_bar(criterion: Criterion, passes: bool) -> None:
    assert criterion.passed is passes
    assert criterion.line().startswith("PASS" if passes else "FAIL")


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_a_figure_of_a_run_that_diverged_passes_no_upper_bar(figure: float) -> None:
    assert not Criterion("", figure, "at most", 1e9).passed
    assert not within("", figure, 1.0, 0.5).passed
    assert not not_worse("", figure, 1.0, 0.5).passed


def test_a_figure_that_is_no_number_passes_no_lower_bar() -> None:
    assert not Criterion("", math.nan, "at least", -1e9).passed


def test_one_criterion_that_fails_is_a_claim_that_does_not_hold_and_none_is_no_claim() -> None:
    good, bad = Criterion("", 1, "at most", 2), Criterion("", 3, "at most", 2)
    assert found([good, good]).holds
    assert not found([good, bad]).holds
    assert not found([]).holds


def found(criteria: list[Criterion]) -> Finding:
    return Finding(
        setting={"lr": 0.1},
        rows=[{"method": "d2", "train loss": math.inf, "of each seed": [1, 2]}],
        criteria=criteria,
        emulated=["the slow worker"],
        shown=["it is slow"],
        draw=Path.touch,
    )


# --- runs and the lab -----------------------------------------------------------------------------------------------


def test_a_run_becomes_plain_values_and_the_same_run_the_same_values() -> None:
    first, again = execute(tiny()), execute(tiny())
    assert first.gradients == 12
    assert first.sent_bytes > 0
    assert len(first.own_losses) == 3
    assert mean([first], "loss") == pytest.approx(np.mean(first.own_losses), rel=1e-3)
    assert (first.loss, first.seconds, first.curve) == (again.loss, again.seconds, again.curve)


def test_the_points_of_a_curve_lie_at_whole_rounds() -> None:
    assert [p.gradients for p in execute(tiny()).curve] == [0, 6, 12, 12]


def test_a_run_that_only_its_speed_is_wanted_of_evaluates_nothing() -> None:
    quiet = Run(workers=3, settings={**TINY, "algorithm": "ad-psgd", "gradients": 30}, judged=False)
    result = execute(quiet)
    assert not result.curve
    assert result.rate > 0


def test_a_run_that_diverges_is_an_outcome_and_no_error() -> None:
    result = execute(tiny(lr=1e5, rounds=60))
    assert result.diverged
    assert result.accuracy == 0
    assert math.isinf(mean([result, outcome(1.0)], "loss"))


def test_an_algorithm_that_needs_a_coordinator_gets_one() -> None:
    assert execute(tiny(algorithm="a-psgd")).gradients >= 12


def test_the_lab_runs_everything_with_every_seed_and_keeps_them_apart() -> None:
    with Lab(2, processes=1) as lab:
        outcomes = lab.train({"a": tiny(), "b": tiny(lr=0.5)})
    assert [o.seed for o in outcomes["a"]] == [0, 1]
    losses = {o.loss for both in outcomes.values() for o in both}
    assert len(losses) == 4


def test_a_quick_lab_has_one_seed() -> None:
    with Lab(3, quick=True, processes=1) as lab:
        assert list(lab.seeds) == [0]


def test_the_step_size_with_the_least_mean_loss_wins_and_one_that_diverges_never() -> None:
    grid = {0.1: [outcome(3), outcome(3)], 0.3: [outcome(1), outcome(2)], 0.9: [outcome(0.1), outcome(math.inf)]}
    assert tuned(grid) == 0.3


def test_a_row_has_the_means_and_each_seed() -> None:
    line = row([outcome(1.0, 2_000_000), outcome(3.0, 4_000_000)], method="d2")
    assert (line["method"], line["train loss"], line["MB sent"]) == ("d2", 2.0, 3.0)
    assert [seed["loss"] for seed in line["of each seed"]] == [1.0, 3.0]


# --- single claims --------------------------------------------------------------------------------------------------


def test_those_who_do_not_wait_are_ahead_by_what_the_others_wait() -> None:
    assert [expected(16, s) for s in (1, 2, 10, 100)] == [1, 31 / 16, 151 / 16, 1501 / 16]


def test_bytes_to_a_loss_are_those_of_the_first_point_below_it() -> None:
    assert bytes_to([falling([2, 1, 0.5, 0.7])], 0.6) == 20
    assert math.isinf(bytes_to([falling([2, 1])], 0.6))


def test_a_curve_is_the_mean_over_seeds_as_far_as_the_shortest_goes() -> None:
    assert curve([falling([4, 2, 1]), falling([2, 0])], "loss") == [3, 1]


def test_on_the_front_are_those_that_no_other_beats_in_loss_and_bytes() -> None:
    runs = {
        ("iid", "d2"): [outcome(1.0, 100)],
        ("iid", "signum"): [outcome(2.0, 10)],
        ("iid", "svrg"): [outcome(3.0, 50)],
        ("labels:2", "ad-psgd"): [outcome(0.1, 1)],
    }
    assert front("iid", runs) == ["D2", "Signum"]


def test_every_algorithm_is_in_the_picture_of_all() -> None:
    assert set(ALGORITHMS) <= set(methods(quick=False))
    assert "d2 sign" in methods(quick=False)


def test_with_a_constant_step_size_the_controls_of_d2_are_one_recursion() -> None:
    ring, constant = mixing(graph("ring", 5)).W, np.full(300, 0.05)
    assert distances(ring, constant, naive=True) == pytest.approx(distances(ring, constant, naive=False), rel=1e-6)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_methods_differ_in_colour_and_shape_and_packed_ones_keep_theirs() -> None:
    looks = {(pictures.colour(a), pictures.marker(a)) for a in ALGORITHMS}
    assert len(looks) == len(ALGORITHMS)
    assert pictures.colour("d2 sign") == pictures.colour("d2") == pictures.colour("d2, lr .5")
    assert pictures.title("ad-psgd sign") == "AD-PSGD sign"


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    with pictures.picture(tmp_path / "a.png", "heading", columns=2) as (left, right):
        pictures.line(left, "d2", [1, 2], [1, 2])
        pictures.bars(right, {"d2": 1.0, "signum": 2.0}, what="loss", bar=1.5)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def one_claim(monkeypatch: pytest.MonkeyPatch) -> list[Criterion]:
    """A claim `made-up` whose criteria are this list."""
    criteria = [Criterion("what was asked", 1.0, "at most", 2.0)]
    made_up = Claim("made-up", "A claim of a test.", lambda lab: found(criteria))
    monkeypatch.setitem(claims.CLAIMS, "made-up", made_up)
    return criteria


def reproduce(folder: Path, *words: str) -> int:
    return main(["reproduce", *words, "--out", str(folder), "--processes", "1"])


def test_list_names_every_claim(capsys: Output) -> None:
    assert main(["reproduce", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in claims.CLAIMS)


def test_a_claim_that_holds_leaves_a_picture_and_its_figures_and_code_0(
    one_claim: list[Criterion], tmp_path: Path, capsys: Output
) -> None:
    assert reproduce(tmp_path, "made-up", "--seeds", "2") == 0
    printed = capsys.readouterr().out
    assert "PASS  what was asked: 1 (at most 2)" in printed
    assert "emulated: the slow worker" in printed
    assert "shown: it is slow" in printed
    written = json.loads((tmp_path / "made-up.json").read_text())
    assert written["holds"] is True
    assert written["seeds"] == [0, 1]
    assert written["criteria"] == [
        {"what": "what was asked", "figure": 1.0, "must be": "at most", "bar": 2.0, "passed": True}
    ]
    assert written["emulated"] == ["the slow worker"]
    assert written["rows"][0]["train loss"] is None  # JSON knows no infinity
    assert (tmp_path / "made-up.png").exists()


def test_a_claim_that_does_not_hold_says_so_and_ends_with_code_1(
    one_claim: list[Criterion], tmp_path: Path, capsys: Output
) -> None:
    one_claim.append(Criterion("what was hoped", 3.0, "at most", 2.0))
    assert reproduce(tmp_path, "made-up") == 1
    assert "FAIL  what was hoped: 3 (at most 2)" in capsys.readouterr().out
    assert json.loads((tmp_path / "made-up.json").read_text())["holds"] is False


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "which claim?"),
        (["no-such"], "unknown claim 'no-such'; known: ad-psgd-speed"),
        (["d2", "--over", "pigeon"], "expected virtual or grpc"),
        (["d2", "--over", "grpc"], "d2 runs in virtual time only; over grpc: ad-psgd-speed"),
    ],
)
def test_wrong_words_are_one_line_and_code_2(words: list[str], says: str, tmp_path: Path, capsys: Output) -> None:
    assert reproduce(tmp_path / "out", *words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "file").write_text("")
    assert reproduce(tmp_path / "file", "d2") == 2
    assert "cannot be made" in capsys.readouterr().err


def test_a_slow_worker_of_a_run_is_that_of_its_scenario() -> None:
    even, slow = (
        execute(Run(workers=3, settings=tiny().settings, scenario=Scenario(slow=((0, s),)), judged=False))
        for s in (1.0, 5.0)
    )
    assert slow.seconds > 4 * even.seconds


def test_a_packed_run_that_ends_worse_than_in_full_is_shown() -> None:
    runs = {
        ("iid", "d2"): [outcome(1.0)],
        ("iid", "d2 sign"): [outcome(1.05)],
        ("labels:2", "d2"): [outcome(1.0)],
        ("labels:2", "d2 sign"): [outcome(1.0), outcome(2.0)],
    }
    assert lost_in_packing(runs) == ["labels:2: D2 sign ends at 1.5 (seeds: 1, 2), in full at 1"]
