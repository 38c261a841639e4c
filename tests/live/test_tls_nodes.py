"""Whole nodes over TLS, with certificates that the commands have made: they train, one is revoked, one is renewed."""

import contextlib
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from certificates_kit import DAY, Members, now
from nodes_kit import GATED, Shoal, assert_one_model, log, own, shoal_command, shoal_in, states

from shoal.certificates.credentials import Credentials
from shoal.demo.fleet import NodeProcess
from shoal.v1 import node_pb2 as pb
from shoal.v1.node_pb2_grpc import NodeServiceStub

pytestmark = pytest.mark.live

SHOAL = "tls-test"
RUN = {"shoal": SHOAL, "rounds": 90, "batch": 4, "suspect_after_s": 2.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the authority is, and a gate that holds the nodes back."""
    certs(tmp_path, "init")
    (tmp_path / "gate").write_text("20")
    return tmp_path


def certs(folder: Path, *args: str) -> str:
    """`shoal certs ARGS` in that folder: what it says."""
    code, said = shoal_command(folder, "certs", *args)
    assert code == 0, said
    return said


def issue(folder: Path, name: str, *args: str) -> Path:
    """A certificate in a folder to carry."""
    out = f"tls-{name}"
    certs(folder, "issue", name, "--shoal", SHOAL, "--out", out, *args)
    return folder / out


def begin(shoal: Shoal, folder: Path, names: list[str]) -> list[NodeProcess]:
    """Nodes that start together, each with its certificate."""
    count = len(names)
    parts = [{"shard": f"{k}/{count}", "tls": folder / f"tls-{name}"} for k, name in enumerate(names)]
    return [shoal.start(name, min_nodes=count, **part) for name, part in zip(names, parts, strict=True)]


def address(node: NodeProcess) -> str:
    """Of its gRPC."""
    facts = node.facts()
    assert facts is not None
    return str(facts["address"])


def metric(node: NodeProcess, name: str) -> float:
    """As Prometheus gets it."""
    facts = node.facts()
    assert facts is not None
    with urllib.request.urlopen(f"http://{facts['http']}/metrics", timeout=5) as answer:
        (line,) = [line for line in answer.read().decode().splitlines() if line.startswith(name)]
    return float(line.rpartition(" ")[2])


@contextlib.contextmanager
def authority_at(folder: Path) -> Iterator[str]:
    """`shoal certs serve`, while it serves: its address."""
    argv = [sys.executable, "-m", "shoal", "certs", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(" on ")[1].split(",")[0]
        process.kill()


def handshake(to: str, folder: Path, version: ssl.TLSVersion) -> str:
    """What any TLS client gets to see there: the serial number of the certificate, hex."""
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(folder / "member.pem", folder / "member.key")
    context.set_alpn_protocols(["h2"])
    host, port = to.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as plain, context.wrap_socket(plain) as safe:
        found = safe.getpeercert()
        assert found is not None
        assert safe.recv(1), "it goes on after the handshake"
        return str(found["serialNumber"]).lower().lstrip("0")


def test_nodes_train_while_strangers_knock_and_a_certificate_is_renewed(folder: Path) -> None:
    issue(folder, "node-1")
    issue(folder, "node-2")
    eye = issue(folder, "eye", "--role", "observer")
    token = certs(folder, "token", "node-3", "--shoal", SHOAL).strip()
    with authority_at(folder) as authority, shoal_in(folder, task=GATED, data_dir=folder, **RUN) as shoal:
        certs(folder, "join", token, authority, "--out", "tls-node-3")
        nodes = begin(shoal, folder, ["node-1", "node-2", "node-3"])
        shoal.until_step(20, *nodes)
        first = nodes[0]
        assert "TLS with members of shoal tls-test alone, as node-1 until" in log(first)

        hello = pb.HelloRequest(hello=pb.Hello(identity=pb.Identity(node_id="x-000000", incarnation=1)))
        with grpc.insecure_channel(address(first)) as plain, pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            NodeServiceStub(plain).Hello(hello, timeout=5)
        assert handshake(address(first), eye, ssl.TLSVersion.TLSv1_3)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(address(first), eye, ssl.TLSVersion.TLSv1_2)

        held = folder / "tls-node-2"
        before = Credentials(held).member
        assert handshake(address(nodes[1]), eye, ssl.TLSVersion.TLSv1_3) == f"{before.serial:x}"
        certs(folder, "renew", "tls-node-2", "--at", authority)
        after = Credentials(held).member
        assert after.serial != before.serial
        now = lambda: handshake(address(nodes[1]), eye, ssl.TLSVersion.TLSv1_3)  # noqa: E731
        shoal.until(lambda: now() == f"{after.serial:x}", "node-2 shows its new certificate")
        shoal.until(
            lambda: metric(nodes[1], "shoal_certificate_expiry_timestamp_seconds") == after.ends.timestamp(),
            "and says until when it holds",
        )
        code, said = shoal_command(folder, "status", str(first.folder))
        assert (code, "node-3" in said) == (0, True), said

        (folder / "gate").unlink()
        assert shoal.codes() == [0, 0, 0]
    assert_one_model(nodes)


def test_a_revoked_node_is_shut_out_while_the_others_go_on(folder: Path) -> None:
    names = ["node-1", "node-2", "node-3"]
    for name in names:
        issue(folder, name)
    with authority_at(folder) as authority, shoal_in(folder, task=GATED, data_dir=folder, **RUN) as shoal:
        first, second, third = begin(shoal, folder, names)
        shoal.until_step(20, first, second, third)
        assert "node node-3" in certs(folder, "revoke", "node-3", "--shoal", SHOAL)
        for name in names[:2]:
            assert "1 certificates revoked" in certs(folder, "update", authority, f"tls-{name}")
        shoal.until_logged("the certificate of node node-3 of shoal tls-test is revoked", first, second)
        shoal.until(lambda: states(first).get("node-3") == "gone", "node-1 counts node-3 as gone")
        assert metric(first, 'shoal_refused_total{reason="Untrusted"}') >= 1

        third.process.kill()
        third.process.wait()
        again = shoal.start("node-3", tls=folder / "tls-node-3", shard="2/3", min_nodes=2)
        shoal.until_logged("refuses: the certificate of node node-3 of shoal tls-test is revoked", again)
        (folder / "gate").unlink()
        assert shoal.codes(first, second) == [0, 0]
        assert "gradients" not in own(again) or own(again)["gradients"] == 0, "it has trained with nobody"
    assert_one_model([first, second])


def test_a_coordinator_and_its_nodes_know_each_other(folder: Path) -> None:
    issue(folder, "middle", "--role", "coordinator")
    for name in ("node-1", "node-2"):
        issue(folder, name)
    (folder / "gate").unlink()
    run = {**RUN, "algorithm": "signum", "rounds": 20}
    with shoal_in(folder, task=GATED, data_dir=folder, **run) as shoal:
        shoal.coordinate(name="middle", tls=folder / "tls-middle")
        nodes = begin(shoal, folder, ["node-1", "node-2"])
        assert shoal.codes() == [0, 0]
        assert shoal.coordinator is not None
        assert "TLS with members of shoal tls-test alone, as middle until" in log(shoal.coordinator)
    assert_one_model(nodes)


@pytest.mark.parametrize(
    ("spoil", "args", "expected"),
    [
        ("chmod 644", [], "can be read by others (mode 644): chmod 600 "),
        ("", ["--shoal", "x"], "is for shoal tls-test, not x: give --shoal tls-test"),
        ("", ["--name", "x"], "is for node-1, not x: leave --name out"),
        ("rm crl", [], "crl.pem cannot be read: No such file"),
        ("", ["--http", "0.0.0.0:0"], "http = 0.0.0.0:0 is beyond loopback"),
    ],
)
def test_a_node_does_not_start_with_what_is_not_safe(folder: Path, spoil: str, args: list[str], expected: str) -> None:
    held = issue(folder, "node-1")
    if spoil == "chmod 644":
        (held / "member.key").chmod(0o644)
    elif spoil == "rm crl":
        (held / "crl.pem").unlink()
    code, said = shoal_command(folder, "node", "--tls", str(held), "--shoal", SHOAL, *args)
    assert code == 2, said
    assert said.startswith("error: ")
    assert expected in said
    assert "Traceback" not in said
    assert not (folder / "shoal-state").exists()


@pytest.mark.parametrize("verb", ["node", "coordinator"])
def test_nobody_starts_with_a_certificate_that_has_ended(tmp_path: Path, verb: str) -> None:
    ended = Members(tmp_path).issue_from_to("old", now() - 2 * DAY, now() - DAY, role=verb)
    code, said = shoal_command(tmp_path, verb, "--tls", str(ended))
    assert code == 2, said
    assert said.startswith(f"error: tls = {ended}: the certificate of ")
    assert " ended at " in said
    assert "`shoal certs join`" in said
    assert "Traceback" not in said


def test_a_coordinators_certificate_is_no_nodes(folder: Path) -> None:
    held = issue(folder, "node-1")
    code, said = shoal_command(folder, "coordinator", "--tls", str(held), "--shoal", SHOAL)
    assert (code, "is for a node, this is a coordinator" in said) == (2, True), said


def test_a_node_has_the_name_of_its_certificate(folder: Path) -> None:
    issue(folder, "clinic")
    run = ["--task", "quadratic", "--partition", "iid", "--device", "cpu", "--discovery", "static", "--rounds", "2"]
    code, said = shoal_command(folder, "node", "--tls", "tls-clinic", "--shoal", SHOAL, *run)
    assert code == 0, said
    assert (folder / "shoal-state" / "node-id").read_text().startswith("clinic-")
