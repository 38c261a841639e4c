"""The HTTP port of a node, over real sockets."""

import contextlib
import http.client
import json
import math
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from shoal import web
from shoal.errors import PortInUse, SettingsError
from shoal.fields import parse_address
from shoal.metrics import Metrics
from shoal.web import AT_ONCE, PATHS, REQUEST_BYTES, Web

pytestmark = pytest.mark.live


@pytest.fixture
def served() -> Iterator[Web]:
    with contextlib.closing(Web("127.0.0.1:0", registry=CollectorRegistry())) as it:
        yield it


def ask(it: Web, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """(status, headers, body)."""
    host, port = parse_address(it.address)
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=10)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode()


def raw(it: Web, request: bytes) -> bytes:
    """The whole answer to these bytes."""
    with socket.create_connection(parse_address(it.address), timeout=10) as connection:
        connection.sendall(request)
        with contextlib.suppress(OSError):  # who refuses a request may have closed before it was read to its end
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# --- the four paths ---------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_registry_in_the_format_of_prometheus() -> None:
    metrics = Metrics(node="node-a-1", algorithm="ad-psgd", task="digits")
    metrics.connection("up")
    with contextlib.closing(Web("127.0.0.1:0", registry=metrics.registry)) as it:
        status, headers, body = ask(it, "/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(body) for s in f.samples}
    assert values["shoal_connections_total", "up"] == 1


def test_health_lasts_as_long_as_the_loop_beats(served: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(served, "/healthz")[::2] == (200, "ok\n")
    now = served._beat_at
    monkeypatch.setattr(web.time, "monotonic", lambda: now + 11)
    assert ask(served, "/healthz")[::2] == (503, "the event loop has not run for 11 s\n")
    served.beat()
    assert ask(served, "/healthz")[0] == 200


def test_readiness_says_why_not_yet(served: Web) -> None:
    assert ask(served, "/readyz")[::2] == (503, "not ready: the node is starting\n")
    served.publish({}, ready=False, why="2 of 5 nodes are ready and linked")
    assert ask(served, "/readyz")[::2] == (503, "not ready: 2 of 5 nodes are ready and linked\n")
    served.publish({}, ready=True, why="")
    assert ask(served, "/readyz")[::2] == (200, "ready\n")


def test_the_status_is_what_was_published_last(served: Web) -> None:
    assert json.loads(ask(served, "/v1/status")[2]) == {}
    shown: dict[str, Any] = {"node": {"step": 1, "loss": math.nan}, "members": [{"name": "é"}]}
    served.publish(shown, ready=True, why="")
    shown["node"]["step"] = 2  # the loop goes on; what was published does not
    status, headers, body = ask(served, "/v1/status?pretty=1")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {"node": {"step": 1, "loss": None}, "members": [{"name": "é"}]}


def test_targets_are_those_that_were_published_last(served: Web) -> None:
    assert json.loads(ask(served, "/v1/targets")[2]) == []
    shown = [{"targets": ["10.0.0.1:7460"], "labels": {"__meta_shoal_node": "a-000001"}}]
    served.publish({}, targets=shown, ready=True, why="")
    status, headers, body = ask(served, "/v1/targets")
    assert (status, headers["content-type"]) == (200, "application/json"), "or Prometheus does not take it"
    assert json.loads(body) == shown


@pytest.mark.parametrize("path", ["/", "/metrics/", "/v1", "/../etc/passwd", "/v1/status/x", "/%6detrics"])
def test_another_path_is_not_found_and_the_answer_lists_those_there_are(served: Web, path: str) -> None:
    status, _, body = ask(served, path)
    assert status == 404
    assert all(known in body for known in PATHS)


# --- what it refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
def test_nothing_but_get_is_allowed(served: Web, method: str) -> None:
    status, headers, body = ask(served, "/metrics", method)
    assert (status, headers["allow"]) == (405, "GET")
    assert body == ("" if method == "HEAD" else "only GET: nothing can be changed here\n")


def test_a_method_that_nobody_knows_is_refused_too(served: Web) -> None:
    assert raw(served, b"BREW /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 501 ")


@pytest.mark.parametrize("length", [REQUEST_BYTES, 100_000])
def test_a_long_request_line_is_refused(served: Web, length: int) -> None:
    answer = raw(served, b"GET /" + length * b"x" + b" HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 414 ")


@pytest.mark.parametrize("request_line", [b"", b"\x00\xff\r\n", b"GET\r\n\r\n", b"GET /healthz HTTP/9.9\r\n\r\n"])
def test_what_is_no_request_does_no_harm(served: Web, request_line: bytes) -> None:
    assert b" 200 " not in raw(served, request_line).split(b"\r\n")[0]
    assert ask(served, "/healthz")[0] == 200


def test_requests_at_once_are_bounded_and_the_loop_is_never_asked(served: Web) -> None:
    address = parse_address(served.address)
    with contextlib.ExitStack() as idle:
        for _ in range(AT_ONCE):  # connected, and say nothing
            idle.enter_context(socket.create_connection(address, timeout=10))
        one_too_many = idle.enter_context(socket.create_connection(address, timeout=10))
        assert one_too_many.recv(1) == b"", "it is hung up on"
        assert (
            sum(t.name.startswith("Thread-") and "process_request" in t.name for t in threading.enumerate()) <= AT_ONCE
        )
    assert eventually_ok(served)


def eventually_ok(it: Web) -> bool:
    """The threads of those who hung up end soon, not at once."""
    for _ in range(1000):
        with contextlib.suppress(OSError, http.client.HTTPException):
            return ask(it, "/healthz")[0] == 200
    return False


def test_one_answer_a_connection(served: Web) -> None:
    answer = raw(served, 2 * b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.0 200 ") == 1


# --- listening --------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(served: Web) -> None:
    with pytest.raises(PortInUse, match=f"http {served.address}: somebody listens there already"):
        Web(served.address, registry=CollectorRegistry())


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("7460", "http '7460' must be HOST:PORT"),
        ("203.0.113.7:0", "http 203.0.113.7:0: cannot listen there"),
        ("nowhere.invalid:0", "http nowhere.invalid:0: cannot listen there"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Web(address, registry=CollectorRegistry())


def test_ipv6_is_served_and_written_in_brackets() -> None:
    with contextlib.closing(Web("[::1]:0", registry=CollectorRegistry())) as it:
        assert it.address.startswith("[::1]:")
        assert ask(it, "/healthz")[0] == 200


def test_after_closing_nobody_listens_and_the_port_is_free() -> None:
    it = Web("127.0.0.1:0", registry=CollectorRegistry())
    it.close()
    with pytest.raises(ConnectionRefusedError):
        ask(it, "/healthz")
    Web(it.address, registry=CollectorRegistry()).close()


def test_closing_does_not_wait_for_a_reader_that_dawdles(served: Web) -> None:
    with socket.create_connection(parse_address(served.address), timeout=10):
        served.close()
    assert not served._thread.is_alive()


def test_scraping_leaves_no_line_in_the_log_but_our_own_faults_do(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(CollectorRegistry):
        def collect(self) -> Any:
            raise ZeroDivisionError("for the test")

    with contextlib.closing(Web("127.0.0.1:0", registry=Broken())) as it:
        ask(it, "/healthz")
        ask(it, "/nothing")
        assert (caplog.text, capsys.readouterr().err) == ("", "")
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(it, "/metrics")
        assert ask(it, "/healthz")[0] == 200
    assert "ZeroDivisionError: for the test" in caplog.text


def test_scrapes_beside_updates_are_whole() -> None:
    registry = CollectorRegistry()
    counter, stop = Counter("told", "For the test.", registry=registry), threading.Event()

    def update() -> None:
        while not stop.is_set():
            counter.inc()
            it.publish({"a": [1] * 100, "b": [1] * 100}, ready=True, why="")

    with contextlib.closing(Web("127.0.0.1:0", registry=registry)) as it:
        it.publish({"a": [], "b": []}, ready=True, why="")
        thread = threading.Thread(target=update)
        thread.start()
        try:
            for _ in range(20):
                status = json.loads(ask(it, "/v1/status")[2])
                assert len(status["a"]) == len(status["b"])
                assert "told_total" in ask(it, "/metrics")[2]
        finally:
            stop.set()
            thread.join()
