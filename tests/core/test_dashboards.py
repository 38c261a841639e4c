"""The dashboards are what their boards say, are what Grafana can read, and ask for nothing that nobody exports.

Whether they show data is asked of a live Prometheus: tests/live/test_monitoring.py.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dashboards import left_out, panels, unknown_names
from panels import DATASOURCE, Board, Panel, document
from prometheus import dashboards, filled

from shoal.metric_table import BY_NAME

GRAFANA = Path(__file__).resolve().parents[2] / "compose" / "grafana"
BOARDS = list(dashboards())
PANELS = [(board["title"], panel) for board in BOARDS for panel in board["panels"]]
LINES = list(panels())
UNITS = {"none", "s", "Bps", "decbytes", "cps", "ops", "percentunit"}
"""Names of Grafana's that are used; another one must be looked up first: an unknown unit shows as a bare number."""
UIDS = {"shoal": "Shoal", "shoal-node": "Node", "shoal-wire": "Wire", "shoal-coordinator": "Coordinator"}


def ids(value: Any) -> str:
    return f"{value[0]}-{value[1]['title']}" if isinstance(value, tuple) else str(value)[:60]


def build(*args: str, folder: Path = GRAFANA) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "build.py", *args], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_what_is_committed_is_what_the_boards_give() -> None:
    done = build("--check")
    assert done.returncode == 0, done.stderr


def test_a_dashboard_that_was_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(GRAFANA, tmp_path / "grafana")
    (tmp_path / "grafana" / "dashboards" / "shoal.json").write_text("{}")
    (tmp_path / "grafana" / "dashboards" / "stray.json").write_text("{}")
    done = build("--check", folder=tmp_path / "grafana")
    assert done.returncode == 1
    assert "shoal.json" in done.stderr
    assert "stray.json" in done.stderr


def test_each_has_its_own_name_for_ever() -> None:
    assert {board["uid"]: board["title"] for board in BOARDS} == UIDS


def test_the_data_source_is_the_one_that_is_provisioned() -> None:
    source = (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert f"uid: {DATASOURCE['uid']}" in source
    assert {panel["datasource"]["uid"] for _, panel in PANELS} == {DATASOURCE["uid"]}


@pytest.mark.parametrize("titled", PANELS, ids=ids)
def test_a_panel_says_in_plain_words_what_it_shows_and_in_which_unit(titled: tuple[str, dict[str, Any]]) -> None:
    _, panel = titled
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert len(panel["description"]) > 30
    assert panel["description"].endswith(".")
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["uid"])
def test_panels_lie_side_by_side_within_the_columns(board: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        g = panel["gridPos"]
        assert g["x"] + g["w"] <= 24
        for cell in ((x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken.get(cell)}"
            taken[cell] = panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize(("where", "expression", "legend"), LINES, ids=ids)
def test_an_expression_names_what_is_exported_and_makes_nothing_up(where: str, expression: str, legend: str) -> None:
    assert unknown_names(expression) == []
    assert "vector(" not in expression
    assert "$" not in filled(expression), "every variable is known"
    assert legend


def test_a_name_that_nobody_exports_is_noticed() -> None:
    assert unknown_names("rate(shoal_steps_total[1m]) + shoal_step + shoal:gradients:rate1m") == ["shoal_steps_total"]
    assert unknown_names("shoal_exchange_seconds_bucket / shoal_step_bucket") == ["shoal_step_bucket"]
    assert unknown_names("shoal_trainer_process_open_fds + process_uptime") == ["process_uptime"]


def test_most_metrics_are_on_a_dashboard() -> None:
    """Those that are not are there for alerts, or for whoever looks for the cause."""
    text = " ".join(expression for _, expression, _ in LINES)
    rules = (GRAFANA.parent / "prometheus" / "rules" / "shoal.yml").read_text()
    unseen = {name for name in BY_NAME if not re.search(rf"\b{name}(_bucket)?\b", text + rules)}
    assert unseen <= {
        "shoal_step",
        "shoal_round",
        "shoal_held_out_samples",
        "shoal_shoal_gradients",
        "shoal_view_members",
        "shoal_averages_per_gradient",
        "shoal_doubts_resolved_total",
        "shoal_vectors_refused_total",
        "shoal_differences_clipped_total",
        "shoal_shared_bytes_total",
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: comes with Prometheus")
def test_prometheus_can_read_every_expression(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{k}", "expr": filled(line[1])} for k, line in enumerate(LINES)]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    command = ["promtool", "check", "rules", "--lint=none", str(tmp_path / "panels.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(LINES)} rules found" in done.stdout


def test_what_a_run_does_not_have_is_left_out_by_name_alone() -> None:
    gpu = next(expression for where, expression, _ in LINES if where == "Node: GPU memory")
    assert left_out(gpu, {"gpu", "tls"}) == "gpu"
    assert left_out(gpu, {"tls"}) == ""
    assert left_out("shoal_step", {"gpu", "tls", "votes", "a-psgd", "coordinator", "pairs"}) == ""


def test_a_row_that_is_full_is_followed_by_another() -> None:
    wide = Panel(title="a", words="b", unit="s", lines=[("c", "d")], width=16)
    board = Board(uid="u", title="t", words="w", variables={}, panels=[wide, wide])
    first, second = document(board, [])["panels"]
    assert (first["gridPos"], second["gridPos"]) == (
        {"x": 0, "y": 0, "w": 16, "h": 8},
        {"x": 0, "y": 8, "w": 16, "h": 8},
    )
