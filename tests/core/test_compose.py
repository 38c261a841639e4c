"""The demo's files against what the product knows: settings, ports, services; and the trouble-maker against an engine
that only writes down what it is asked. `make check-docker` runs them for real."""

import contextlib
import dataclasses
import http.server
import importlib.util
import json
import os
import re
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shoal.certificates.authority import Authority
from shoal.certificates.credentials import Credentials
from shoal.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose"
KUBERNETES = COMPOSE / "kubernetes"
FILES = [*COMPOSE.glob("*.yaml"), KUBERNETES / "base" / "kustomization.yaml", ROOT / "node" / "Dockerfile"]
KNOWN = {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_in_the_environment_is_one(path: Path) -> None:
    given = set(re.findall(r"\bSHOAL_([A-Z_]+)\b", path.read_text()))
    assert {name.lower() for name in given} <= KNOWN


def test_what_is_given_to_the_nodes_by_default_is_valid() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    given = dict(re.findall(r'^ +SHOAL_([A-Z_]+): "?([^"#\n]*?)"? *(?:#.*)?$', text, re.MULTILINE))
    plain = {key.lower(): re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for key, value in given.items()}
    settings = Settings(**{key: value for key, value in plain.items() if value})
    assert (settings.algorithm, settings.partition, settings.shard) == ("ad-psgd", "labels:2", "auto/5")
    assert settings.dns == ("node:7450",)


def test_ports_and_services_are_the_same_everywhere() -> None:
    image = (ROOT / "node" / "Dockerfile").read_text()
    grpc, scraped = re.findall(r"SHOAL_(?:LISTEN|HTTP)=0\.0\.0\.0:(\d+)", image)
    assert f"EXPOSE {grpc} {scraped}" in image
    assert f"node:{grpc}" in (COMPOSE / "compose.yaml").read_text()
    assert f"coordinator:{grpc}" in (COMPOSE / "a-psgd.env").read_text()
    assert set(re.findall(r"port: (\d+)", (COMPOSE / "prometheus" / "prometheus.yml").read_text())) == {scraped}


def test_variables_of_the_parameter_server_are_ones_that_compose_reads() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    given = re.findall(r"^([A-Z_]+)=", (COMPOSE / "a-psgd.env").read_text(), re.MULTILINE)
    assert all(f"${{{name}:-" in text for name in given if not name.startswith("COMPOSE_"))


def services(path: Path) -> dict[str, str]:
    """Their text, by name."""
    _, _, text = path.read_text().partition("\nservices:\n")
    parts = re.split(r"^  ([a-z-]+):", text.partition("\nvolumes:\n")[0], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_whoever_trains_or_coordinates_has_a_certificate_in_the_overlay_and_is_found_by_the_others() -> None:
    plain, secured = services(COMPOSE / "compose.yaml"), services(COMPOSE / "tls.yaml")
    members = {name for name, text in plain.items() if "<<: *container" in text or "extends: node" in text}
    assert members == {"node", "gpu-node", "coordinator"}
    assert {name for name, text in secured.items() if "SHOAL_TLS: /certificates/" in text} == members
    assert "aliases: [node]" in plain["gpu-node"], "the name by which nodes and Prometheus ask DNS"


def test_certificates_are_made_once_renewed_when_old_and_not_given_back_to_who_was_revoked(tmp_path: Path) -> None:
    authority, folder = tmp_path / "authority", tmp_path / "certificates"
    own = {"AUTHORITY": str(authority), "CERTIFICATES": str(folder), "PROJECT": "p"}
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def certs(nodes: int) -> dict[str, int]:
        """What is there then: the serial numbers."""
        env = {**os.environ, **own, "NODES": str(nodes), "PATH": paths}
        subprocess.run(["sh", COMPOSE / "certs.sh"], env=env, timeout=100, check=True, capture_output=True)
        return {path.name: Credentials(path).member.serial for path in folder.iterdir()}

    made = certs(2)
    assert set(made) == {"coordinator", "p-gpu-node-1", "p-node-1", "p-node-2"}
    for name in ("p-node-1", "p-node-2"):
        os.utime(folder / name / "member.pem", (0, 0))
    Authority.of(authority).revoke("compose", "p-node-2")
    later = certs(3)
    assert later.pop("p-node-3") not in made.values()
    assert {name for name in made if later[name] != made[name]} == {"p-node-1"}


# --- Kubernetes, systemd ----------------------------------------------------------------------------------------


def test_settings_and_ports_of_the_pods_are_those_of_the_image() -> None:
    text = (KUBERNETES / "base" / "kustomization.yaml").read_text()
    given = {key.lower(): value for key, value in re.findall(r"- SHOAL_([A-Z_]+)=(\S+)", text)}
    assert Settings(**given).dns == ("shoal:7450",)
    ports = {
        match for path in (KUBERNETES / "base").glob("*.yaml") for match in re.findall(r"7\d{3}", path.read_text())
    }
    assert ports == {"7450", "7460"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("overlay", ["base", "gpu", "monitoring"])
def test_what_kustomize_makes_is_restricted_and_selects_its_own(overlay: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / overlay], capture_output=True, text=True, timeout=60, check=True
    )
    made = done.stdout
    for wanted in (
        "runAsNonRoot: true",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "type: RuntimeDefault",
        "enableServiceLinks: false",
        "automountServiceAccountToken: false",
    ):
        assert wanted in made
    assert "selector: {}" not in made.lower(), "something would select every pod of the namespace"
    assert ("nvidia.com/gpu: 1" in made) == (overlay == "gpu")
    assert ("kind: ServiceMonitor" in made) == (overlay == "monitoring")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (COMPOSE / "systemd" / "shoal@.service").read_text()
    unit = tmp_path / "shoal@.service"
    unit.write_text(text.replace("/opt/shoal/bin/shoal", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_starts_a_node_with_options_that_there_are() -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", (COMPOSE / "systemd" / "shoal@.service").read_text(), re.MULTILINE)
    options = re.findall(r"--([a-z-]+)", line)
    assert {name.replace("-", "_") for name in options} <= KNOWN | {"config"}


# --- trouble ----------------------------------------------------------------------------------------------------


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers as the Docker engine does, and does nothing."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.fails: set[str] = set()
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                labels = {"com.docker.compose.service": "node"}
                networks = {"shoal_default": {"IPAddress": "172.18.0.3", "Aliases": ["node"]}}
                node = {
                    "Id": "c1",
                    "Names": ["/shoal-node-1"],
                    "Labels": labels,
                    "NetworkSettings": {"Networks": networks},
                }
                if self.path == "/containers/c1/json":
                    self._answer(200, node)
                    return
                listed = {**node, "NetworkSettings": {"Networks": {"shoal_default": {"Aliases": None}}}}
                other = {**listed, "Id": "p1", "Labels": {"com.docker.compose.service": "prometheus"}}
                self._answer(200, [listed, other])

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                engine.bodies.append(json.loads(body or "null"))
                what = self.path.rpartition("/")[2].partition("?")[0]
                engine.asked.append(what)
                self._answer(500 if what in engine.fails else 204, None)

            def _answer(self, status: int, body: Any) -> None:
                text = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if text:  # who has read the head of an answer without a body may be gone already
                    self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

            def address_string(self) -> str:
                return "unix"

        super().__init__(str(path), Handler)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "docker.sock") as it:
        threading.Thread(target=it.serve_forever, args=(0.05,), daemon=True).start()
        yield it
        it.shutdown()


@pytest.fixture
def chaos(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos", COMPOSE / "chaos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SOCKET", engine.server_address)
    monkeypatch.setattr(module, "LENGTH_S", 0.0)
    return module


@pytest.mark.parametrize(
    ("fault", "asked"),
    [
        ("kill", ["kill", "start"]),
        ("pause", ["pause", "unpause"]),
        ("slow", ["update", "update"]),
        ("disconnect", ["disconnect", "connect"]),
    ],
)
def test_what_is_broken_is_mended(chaos: ModuleType, engine: Engine, fault: str, asked: list[str]) -> None:
    with contextlib.closing(chaos.Engine()) as connection:
        (node,) = chaos.containers(connection)
        assert node["Id"] == "c1", "Prometheus is left alone"
        getattr(chaos, fault)(connection, node)
    assert engine.asked == asked
    assert getattr(chaos, fault) in chaos.FAULTS


@pytest.mark.parametrize("fault", ["kill", "pause", "slow", "disconnect"])
def test_who_is_stopped_mends_what_it_broke(
    chaos: ModuleType, engine: Engine, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def stopped(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chaos.time, "sleep", stopped)
    with contextlib.closing(chaos.Engine()) as connection, pytest.raises(KeyboardInterrupt):
        getattr(chaos, fault)(connection, *chaos.containers(connection))
    assert len(engine.asked) == 2


def test_what_was_slow_has_no_quota_afterwards(chaos: ModuleType, engine: Engine) -> None:
    with contextlib.closing(chaos.Engine()) as connection:
        chaos.slow(connection, *chaos.containers(connection))
    slow, after = (body["CpuQuota"] / body["CpuPeriod"] for body in engine.bodies)
    assert 0 < slow < 0.1
    assert after < 0, "0 would be taken for no change"


def test_a_network_is_given_back_with_the_names_that_others_look_for(chaos: ModuleType, engine: Engine) -> None:
    with contextlib.closing(chaos.Engine()) as connection:
        chaos.disconnect(connection, *chaos.containers(connection))
    given = engine.bodies[-1]["EndpointConfig"]
    assert given == {"Aliases": ["node"], "IPAMConfig": {"IPv4Address": "172.18.0.3"}}


def test_a_network_is_given_back_without_its_address_where_the_engine_will_not_have_it(
    chaos: ModuleType, engine: Engine
) -> None:
    engine.fails = {"connect"}
    with contextlib.closing(chaos.Engine()) as connection:
        (node,) = chaos.containers(connection)
        with pytest.raises(RuntimeError, match="connect"):
            chaos.disconnect(connection, node)
    assert engine.asked == ["disconnect", "connect", "connect"]
