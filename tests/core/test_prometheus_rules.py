"""Scrape configurations, rules and alerts: by Prometheus' own tool, and their names against the table."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shoal.metric_table import BY_NAME, PROCESS, TRAINER

HERE = Path(__file__).resolve().parents[2] / "compose" / "prometheus"
RULES = HERE / "rules" / "shoal.yml"
TESTS = HERE / "tests" / "shoal_test.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())
RECORDS = re.findall(r"- record: (\S+)", RULES.read_text())

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: comes with Prometheus")


def run(*args: str) -> None:
    done = subprocess.run(["promtool", *args], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
@pytest.mark.parametrize("name", ["prometheus.yml", "http-sd.yml"])
def test_prometheus_takes_the_configuration(name: str) -> None:
    run("check", "config", str(HERE / name))


@promtool
def test_every_alert_fires_where_it_should_and_none_where_all_is_well() -> None:
    run("test", "rules", str(TESTS))


@promtool
def test_a_rule_that_does_not_fire_is_noticed(tmp_path: Path) -> None:
    for folder in ("rules", "tests"):
        shutil.copytree(HERE / folder, tmp_path / folder)
    rules = tmp_path / "rules" / "shoal.yml"
    rules.write_text(rules.read_text().replace('up{job="shoal"} == 0', 'up{job="shoal"} == 2'))
    with pytest.raises(AssertionError, match="ShoalNodeDown"):
        run("test", "rules", str(tmp_path / "tests" / "shoal_test.yml"))


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_test_in_which_it_fires(alert: str) -> None:
    assert f'{{labels: \'ALERTS{{alertname="{alert}", alertstate="firing"' in TESTS.read_text()


@pytest.mark.parametrize("record", RECORDS)
def test_every_sum_has_a_test(record: str) -> None:
    assert f"- expr: {record}" in TESTS.read_text()


def test_rules_name_no_metric_that_is_not_exported() -> None:
    known = {*BY_NAME, *PROCESS, *(f"{TRAINER}_{name}" for name in PROCESS)}
    used = set(re.findall(r"\b(?:shoal|process)_\w+", RULES.read_text()))
    assert used
    assert used <= known


def test_every_alert_says_what_to_do() -> None:
    text = RULES.read_text()
    parts = text.split("- alert: ")[1:]
    for part in parts:
        assert "severity: " in part
        assert "summary: " in part
        assert "description: " in part
