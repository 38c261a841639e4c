"""Nodes, a real Prometheus that finds them by any node's /v1/targets, and the checker of the dashboards on it."""

import contextlib
import http.client
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes_kit import PATIENCE_S, Shoal, shoal_in
from prometheus import Prometheus, Unanswered

from shoal.demo.fleet import NodeProcess

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus on this machine"),
]
COMPOSE = Path(__file__).resolve().parents[2] / "compose"
WITHOUT = "tls,gpu,coordinator,votes,a-psgd"


def address(node: NodeProcess) -> str:
    return str((node.facts() or {})["http"])


@contextlib.contextmanager
def watching(folder: Path, *nodes: NodeProcess) -> Iterator[Prometheus]:
    """With the configuration and the rules that ship, but for addresses and pace: it is told of these nodes alone."""
    shutil.copytree(COMPOSE / "prometheus" / "rules", folder / "rules")
    shipped = (COMPOSE / "prometheus" / "http-sd.yml").read_text()
    urls = "".join(f"      - url: http://{address(n)}/v1/targets\n        refresh_interval: 1s\n" for n in nodes)
    config, changed = re.subn(r"( +- url: .*\n +refresh_interval: .*\n)+", urls, shipped)
    assert changed == 1
    (folder / "prometheus.yml").write_text(config.replace(": 15s", ": 1s"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def until_up(shoal: Shoal, prometheus: Prometheus, count: int) -> None:
    def up() -> bool:
        with contextlib.suppress(Unanswered, http.client.HTTPException):
            return len(prometheus.now('up{job="shoal"} == 1')) == count
        return False

    shoal.until(up, f"Prometheus scrapes {count} targets")


def check(prometheus: Prometheus, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(COMPOSE / "check" / "dashboards.py"), prometheus.url, "--without", WITHOUT, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_every_panel_has_data_that_the_nodes_agree_with_and_a_death_is_shown(tmp_path: Path) -> None:
    with shoal_in(tmp_path, task="digits", partition="labels:4", rounds=1_000_000, eval_every=20) as shoal:
        nodes = shoal.start_all(3, checkpoint_every=20, emulate_compute_s=0.05)
        shoal.until_step(25, *nodes)
        (tmp_path / "monitoring").mkdir()
        with watching(tmp_path / "monitoring", nodes[0], nodes[1]) as prometheus:
            until_up(shoal, prometheus, 3)
            names = {target["labels"]["instance"] for target in prometheus.targets()}
            assert names == {(node.facts() or {})["id"] for node in nodes}, "targets have names in place of addresses"
            sums = "shoal:gradients:rate1m and on (shoal) shoal:model_distance:ratio"
            shoal.until(lambda: prometheus.now(sums), "the rules have made their sums")
            done = check(prometheus, "--healthy")
            assert done.returncode == 0, done.stderr

            began, lost = time.time(), (nodes[2].facts() or {})["id"]
            nodes[2].process.kill()
            down = f'up{{job="shoal"}} == 0 and on (instance) timestamp(up{{job="shoal"}}) > {began}'
            shoal.until(lambda: prometheus.now(down), "its target shows as down")
            gone = 'max by (job) (shoal_members{state="gone"}) == 1'
            shoal.until(lambda: prometheus.now(gone), "the others show it as gone")
            for alert in ("ShoalNodeDown", "ShoalMemberGone"):
                seen = f'ALERTS{{alertname="{alert}"}}'
                shoal.until(lambda seen=seen: prometheus.now(seen), f"{alert} is pending or fires")
            done = check(prometheus, "--healthy")
            assert done.returncode == 1
            assert f"PROBLEM {lost} is down" in done.stderr
            assert "alert ShoalNodeDown would fire" in done.stderr


def test_a_prometheus_that_is_not_there_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = check(Prometheus(f"http://127.0.0.1:{port}"))
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
