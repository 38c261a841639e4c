"""How gRPC is set up on both sides: options, credentials, method names, and what a stream says of its ends.

The only place that chooses credentials: those of `tls.py`, or none where there is no TLS; `process.py` decides which
addresses are listened on without them.
"""

import asyncio
import errno
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc

from shoal.errors import PortInUse, SettingsError
from shoal.transport.frames import CHUNK_BYTES, FRAME_LIMIT
from shoal.v1 import node_pb2 as pb

if TYPE_CHECKING:
    from shoal.certificates.member import Member
    from shoal.transport.tls import Gate, Tls

SERVICE = pb.DESCRIPTOR.services_by_name["NodeService"].full_name
HELLO, CONTROL, EXCHANGE, DIAL_BACK = (
    f"/{SERVICE}/{method}" for method in ("Hello", "Control", "Exchange", "DialBack")
)
REASON_LIMIT = 600
"""Characters of a status' details: HTTP/2 trailers have 8 KiB in all, and a character takes 12 bytes at worst."""

WINDOW_BYTES = 4 * CHUNK_BYTES
"""What a peer may send ahead of our reading, a stream: the bound on memory, and on a slow path the longest queue.
Large enough for 80 MB/s at a round trip of 0.1 s."""

CONNECTIONS_LIMIT = 2048
"""TCP connections to a port, which are closed at once beyond that. A neighbour has two, and a third for a moment."""
HANDSHAKE_S = 10

_FROM, _TO, _CONNECTION = "shoal-from", "shoal-to", "shoal-connection"


class Ends(NamedTuple):
    """Which connection a stream belongs to: the metadata that its caller sends with both of them."""

    caller: str
    caller_incarnation: int
    callee: str
    callee_incarnation: int
    number: int  # the caller's, growing

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """As gRPC metadata."""
        return (
            (_FROM, f"{self.caller}/{self.caller_incarnation}"),
            (_TO, f"{self.callee}/{self.callee_incarnation}"),
            (_CONNECTION, str(self.number)),
        )

    @classmethod
    def read(cls, metadata: Iterable[tuple[str, str]]) -> Self | None:
        """What a caller's metadata says; None when it does not."""
        found = dict(metadata)
        caller, _, caller_incarnation = found.get(_FROM, "").rpartition("/")
        callee, _, callee_incarnation = found.get(_TO, "").rpartition("/")
        numbers = (caller_incarnation, callee_incarnation, found.get(_CONNECTION, ""))
        if not caller or not callee or not all(n.isascii() and n.isdigit() and len(n) <= 20 for n in numbers):
            return None
        return cls(caller, int(numbers[0]), callee, int(numbers[1]), int(numbers[2]))


def channel(address: str, heartbeat_s: float, tls: "Tls | None" = None, to: "Member | None" = None) -> Any:
    """A client's grpc.aio channel; with `tls`, `to` nobody but the holder of that certificate. Raises SettingsError for
    what is no HOST:PORT.

    Each has a TCP connection of its own: a full Exchange must never delay Control.
    """
    host, port = _split(address)
    options: list[tuple[str, int | str]] = [
        *_common_options(heartbeat_s),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),  # peers are reached directly, whatever http_proxy says
        ("grpc.enable_retries", 0),  # a stream is one connection's; nobody but the dialler opens another
    ]
    # With our own scheme in front, an address that a peer gave cannot become "unix:" or "xds:".
    target = f"dns:///{_joined(host, port)}"
    if tls is None:
        return grpc.aio.insecure_channel(target, options)
    assert to is not None, "with TLS nobody is called who was not looked at"
    options.append(("grpc.ssl_target_name_override", to.host))
    return grpc.aio.secure_channel(target, tls.channel_credentials(), options)


def server(heartbeat_s: float, gate: "Gate | None" = None) -> Any:
    """A grpc.aio server that has no port yet; with TLS, behind a gate."""
    options = [
        *_common_options(heartbeat_s),
        ("grpc.so_reuseport", 0),  # else a second node on one port would get half of the first one's peers
        ("grpc.http2.min_ping_interval_without_data_ms", _keepalive_ms(heartbeat_s) // 2),
        ("grpc.max_concurrent_streams", 64),  # of one TCP connection; a node opens one
        ("grpc.max_allowed_incoming_connections", CONNECTIONS_LIMIT),
        ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_S)),  # for who connects and then says nothing
    ]
    interceptors = () if gate is None else (gate,)
    return grpc.aio.server(interceptors=interceptors, options=options, maximum_concurrent_rpcs=4096)


async def bind(server: Any, address: str, tls: "Tls | None" = None) -> str:
    """Opens HOST:PORT on a server and returns it, a free port in place of 0. Raises PortInUse or SettingsError."""
    host, port = _split(address)
    taken = PortInUse(f"somebody listens on {address} already; stop that, or give another port (0 takes a free one)")
    try:
        await _probe(host, port)
        if tls is None:
            bound = server.add_insecure_port(_joined(host, port))
        else:
            bound = server.add_secure_port(_joined(host, port), tls.server_credentials())
    except socket.gaierror as error:
        raise SettingsError(f"cannot listen on {address}: {error.strerror}") from None
    except OSError as error:
        raise (
            taken if error.errno == errno.EADDRINUSE else SettingsError(f"cannot listen on {address}: {error}")
        ) from None
    except RuntimeError:  # gRPC's word for a port that was taken between the probe and now
        raise taken from None
    return _joined(host, bound)


def host_of(context: Any) -> str:
    """Where a call comes from, without its port, which is another each time: what a complaint is about."""
    return str(context.peer()).rpartition(":")[0]


async def _probe(host: str, port: int) -> None:
    """Binds and lets go: plain sockets say why they cannot, gRPC only that it cannot, and on stderr."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, place in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)


def _common_options(heartbeat_s: float) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", FRAME_LIMIT),
        ("grpc.max_receive_message_length", FRAME_LIMIT),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.max_frame_size", 2 * CHUNK_BYTES),  # a chunk in one HTTP/2 frame, not in 64
        ("grpc.experimental.tcp_read_chunk_size", CHUNK_BYTES),  # else 8 KiB at first, and a buffer is cut up
        ("grpc.experimental.tcp_max_read_chunk_size", WINDOW_BYTES),
        ("grpc.http2.bdp_probe", 0),  # else the window grows as far as gRPC's estimate, which a slow reader fills
        ("grpc.keepalive_time_ms", _keepalive_ms(heartbeat_s)),
        ("grpc.keepalive_timeout_ms", 4 * _keepalive_ms(heartbeat_s)),  # a ping queues behind a window of data
        ("grpc.http2.ping_timeout_ms", 4 * _keepalive_ms(heartbeat_s)),  # else its default, a minute, counts
        ("grpc.http2.max_pings_without_data", 0),  # 0: no limit
    ]


def _keepalive_ms(heartbeat_s: float) -> int:
    """Silence before a ping. Far above what membership allows: this ends connections that nobody misses any more."""
    return int(1000 * max(1.0, 20 * heartbeat_s))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host.isprintable():
        raise SettingsError(f"address {address!r} must be HOST:PORT, with a port from 0 to 65535")
    return host, int(port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
