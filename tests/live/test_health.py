"""`shoal health`: what a container's health check and a script see of a node and a coordinator."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from nodes_kit import GATED, Shoal, shoal_command, shoal_in

from shoal.demo.fleet import NodeProcess

pytestmark = pytest.mark.live


def serving(node: NodeProcess, shoal: Shoal) -> str:
    """Where it listens."""
    return str(shoal.until(node.facts, f"{node.name} listens")["address"])


def test_a_node_and_a_coordinator_serve_until_they_are_stopped(tmp_path: Path) -> None:
    (tmp_path / "gate").write_text("0")
    with shoal_in(tmp_path, algorithm="signum", task=GATED, data_dir=tmp_path, rounds=5) as shoal:
        for process in (shoal.coordinate(), shoal.start("node-1")):
            where = serving(process, shoal)
            by_folder = shoal_command(tmp_path, "health", "--state-dir", str(process.folder))
            assert by_folder == shoal_command(tmp_path, "health", where) == (0, f"{where} serves\n")
        node = shoal.nodes[0]
        node.process.send_signal(signal.SIGTERM)
        node.process.wait()
        code, said = shoal_command(tmp_path, "health", "--state-dir", str(node.folder))
        assert code == 2
        assert said == f"error: nothing runs on {node.folder}; give its --state-dir, or HOST:PORT\n"
        code, said = shoal_command(tmp_path, "health", where)
        assert code == 1
        assert said.startswith(f"error: {where} does not serve: ")


def test_one_that_hangs_does_not_serve(tmp_path: Path) -> None:
    (tmp_path / "gate").write_text("0")
    with shoal_in(tmp_path, task=GATED, data_dir=tmp_path, rounds=5) as shoal:
        node = shoal.start("node-1")
        where = serving(node, shoal)
        os.kill(node.process.pid, signal.SIGSTOP)
        code, said = shoal_command(tmp_path, "health", where)
        assert (code, said) == (1, f"error: {where} does not serve: Deadline Exceeded\n")


def test_where_something_else_listens_nothing_serves(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        code, said = shoal_command(tmp_path, "health", where)
    assert code == 1
    assert said.startswith(f"error: {where} does not serve: ")


def test_one_that_listens_everywhere_is_asked_over_loopback(tmp_path: Path) -> None:
    common = {"listen": "0.0.0.0:0", "insecure": True, "state_dir": str(tmp_path / "{name}")}
    (tmp_path / "gate").write_text("0")
    with shoal_in(tmp_path, task=GATED, data_dir=tmp_path, rounds=5) as shoal:
        node = shoal.start("node-1", **{k: v for k, v in common.items() if k != "state_dir"})
        where = serving(node, shoal)
        assert where.startswith("0.0.0.0:")
        code, said = shoal_command(tmp_path, "health", environ={"SHOAL_STATE_DIR": str(node.folder)})
        assert (code, said) == (0, f"{where.replace('0.0.0.0', '127.0.0.1')} serves\n")


def test_over_tls_it_asks_with_a_certificate(tmp_path: Path) -> None:
    for args in (
        ["init"],
        ["issue", "a", "--out", "tls-a"],
        ["issue", "eye", "--role", "observer", "--out", "tls-eye"],
    ):
        assert shoal_command(tmp_path, "certs", *args)[0] == 0
    (tmp_path / "gate").write_text("0")
    with shoal_in(tmp_path, shoal="default", task=GATED, data_dir=tmp_path, rounds=5) as shoal:
        node = shoal.start("a", tls=tmp_path / "tls-a")
        where = serving(node, shoal)
        for who in ("a", "eye"):
            assert shoal_command(tmp_path, "health", where, "--tls", f"tls-{who}") == (0, f"{where} serves\n")
        code, said = shoal_command(tmp_path, "health", where)
        assert code == 1
        assert "does not serve" in said


def test_it_imports_no_torch() -> None:
    """It is called again and again beside what it looks at."""
    code = "import sys, shoal.cli.health; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
