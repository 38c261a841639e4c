"""Plain HTTP for people and monitoring: /metrics, /healthz, /readyz, /v1/status, /v1/targets. Read only, of a snapshot.

It runs in threads of its own, so a slow reader never holds up the event loop; what it serves was put together there.
"""

import errno
import json
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest

from shoal.errors import PortInUse, SettingsError
from shoal.fields import parse_address
from shoal.history import plain

STALLED_S = 10.0
"""Without a beat for so long the event loop hangs, and /healthz says so. A machine that starts five nodes takes 2 s."""
CLOSE_WITHIN_S = 0.1
"""How soon `close` is noticed."""
READ_S = 5.0
"""How long a request may take to come, line by line."""
REQUEST_BYTES = 2048
"""Of a request's first line; ours have 20."""
AT_ONCE = 16
"""Requests served at the same time; further ones are turned away."""

TEXT = "text/plain; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"
JSON = "application/json"
PATHS = ("/metrics", "/healthz", "/readyz", "/v1/status", "/v1/targets")


log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """Status, content type and body of a response."""

    status: HTTPStatus
    content_type: str
    body: bytes


class _Snapshot(NamedTuple):
    """What the loop published last; replaced as a whole, so a reader sees one moment."""

    status: bytes
    targets: bytes
    ready: bool
    why: str


class Web:
    """Serves from construction to `close`. `beat` and `publish` are called by the event loop."""

    def __init__(self, address: str, *, registry: CollectorRegistry) -> None:
        """`address` is HOST:PORT, port 0 takes a free one. Raises PortInUse or SettingsError."""
        self._registry = registry
        self._snapshot = _Snapshot(b"{}", b"[]", False, "the node is starting")
        self._beat_at = time.monotonic()
        self._server = _listen(address, self)
        host, port = self._server.server_address[:2]
        self.address = f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"
        """HOST:PORT that is listened on."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(CLOSE_WITHIN_S,), name="http", daemon=True
        )
        self._thread.start()

    def beat(self) -> None:
        """The event loop runs."""
        self._beat_at = time.monotonic()

    def publish(self, status: dict[str, Any], *, ready: bool, why: str, targets: Sequence[dict[str, Any]] = ()) -> None:
        """Replaces what is shown: /v1/status and /v1/targets as plain values, and whether this node trains, or why not
        yet."""
        body = json.dumps(plain(status), allow_nan=False).encode() + b"\n"
        self._snapshot = _Snapshot(body, json.dumps(list(targets)).encode() + b"\n", ready, why)

    def close(self) -> None:
        """Ends listening; requests under way are cut off with the process."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str) -> Answer:
        """What a GET of that path is answered with. Called in the threads."""
        snapshot = self._snapshot
        match path:
            case "/metrics":
                return Answer(HTTPStatus.OK, METRICS, generate_latest(self._registry))
            case "/healthz":
                silent_s = time.monotonic() - self._beat_at
                if silent_s < STALLED_S:
                    return _text(HTTPStatus.OK, "ok")
                return _text(HTTPStatus.SERVICE_UNAVAILABLE, f"the event loop has not run for {silent_s:.0f} s")
            case "/readyz":
                if snapshot.ready:
                    return _text(HTTPStatus.OK, "ready")
                return _text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {snapshot.why}")
            case "/v1/status":
                return Answer(HTTPStatus.OK, JSON, snapshot.status)
            case "/v1/targets":
                return Answer(HTTPStatus.OK, JSON, snapshot.targets)
        return _text(HTTPStatus.NOT_FOUND, f"there is no such path; there are {', '.join(PATHS)}")


class _Server(ThreadingHTTPServer):
    """Bounded in requests at once, and silent about those that break off."""

    daemon_threads = True
    block_on_close = False  # a reader that dawdles must not delay the node's end

    def __init__(self, address: tuple[str, int], web: Web) -> None:
        self.web = web
        self._free = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the name look-up of the base class, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """One thread a request, as many as are free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has hung up, and nobody is left to tell; or it is our own fault."""
        if not isinstance(sys.exception(), OSError):
            log.exception("HTTP request of %s", client_address)


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """One request, then the connection is closed: threads are few, and a scrape comes every 15 s."""

    server: _Server
    timeout = READ_S
    server_version = "shoal"
    sys_version = ""

    def do_GET(self) -> None:
        """The only method."""
        if len(self.requestline) > REQUEST_BYTES:
            limit = f"a request line has at most {REQUEST_BYTES} bytes"
            self._send(_text(HTTPStatus.REQUEST_URI_TOO_LONG, limit))
        else:
            self._send(self.server.web.answer(self.path.partition("?")[0]))

    def _refuse(self) -> None:
        self._send(_text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET: nothing can be changed here"), allow="GET")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _send(self, answer: Answer, **headers: str) -> None:
        self.send_response(answer.status)
        fields = {"content-type": answer.content_type, "content-length": str(len(answer.body)), "connection": "close"}
        for name, value in {
            **fields,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line a scrape: the node's log is about training."""


def _listen(address: str, web: Web) -> _Server:
    try:
        host, port = parse_address(address)
    except ValueError as expected:
        raise SettingsError(f"http {address!r} must be {expected}") from None
    kind = _SixServer if ":" in host else _Server
    try:
        return kind((host, port), web)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"http {address}: somebody listens there already; name another with --http") from None
        raise SettingsError(f"http {address}: cannot listen there: {error.strerror or error}") from None


def _text(status: HTTPStatus, words: str) -> Answer:
    return Answer(status, TEXT, words.encode() + b"\n")
