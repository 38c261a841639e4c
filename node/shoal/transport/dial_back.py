"""Whether a host can be dialled from another: asked by `shoal doctor`, answered by every node and coordinator.

Only the address that the call comes from is dialled, so nobody can make a node knock at other doors.
"""

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from shoal.errors import PeerError
from shoal.transport import channels
from shoal.v1 import node_pb2 as pb

if TYPE_CHECKING:
    from shoal.transport.tls import Tls

TIMEOUT_S = 3.0
ASK_TIMEOUT_S = 6.0
AT_ONCE = 4
"""Hosts that are dialled at a time; who asks meanwhile is told to ask again."""

_under_way: set[asyncio.Task[Any]] = set()


async def answer(request: bytes, context: Any) -> bytes:
    """DialBack, served."""
    try:
        port = pb.DialBackRequest.FromString(request).port
    except DecodeError:
        port = 0
    if not 0 < port < 65536:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected a DialBackRequest with a port, 1 to 65535")
    if len(_under_way) >= AT_ONCE:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{AT_ONCE} hosts are dialled already; ask again")
    host, task = _host(context.peer()), asyncio.current_task()
    assert task is not None
    _under_way.add(task)
    try:
        reason = await _dial(host, port)
    finally:
        _under_way.discard(task)
    said = pb.DialBackResponse(reached=not reason, host=host, reason=reason, time=time.time())
    return said.SerializeToString()


async def ask(address: str, port: int, tls: "Tls | None") -> pb.DialBackResponse:
    """What the node at `address` says of this host's `port`. Raises PeerError when it does not answer, Untrusted when
    a certificate does not hold."""
    to = await tls.reach(address) if tls is not None else None
    request = pb.DialBackRequest(port=port).SerializeToString()
    try:
        async with channels.channel(address, 1.0, tls, to) as channel:
            return pb.DialBackResponse.FromString(
                await channel.unary_unary(channels.DIAL_BACK)(request, timeout=ASK_TIMEOUT_S)
            )
    except grpc.RpcError as error:
        raise PeerError(f"{address}: {error.code().name}: {(error.details() or '')[:200]}") from None
    except DecodeError:
        raise PeerError(f"{address} answers with something else than a DialBackResponse") from None


def _host(peer: str) -> str:
    """Of what gRPC calls a peer: `ipv4:10.0.0.1:5`, or `ipv6:%5B::1%5D:5`."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0]
    return host.replace("%5B", "").replace("%5D", "").strip("[]") if kind == "ipv6" else host


async def _dial(host: str, port: int) -> str:
    """Why there is no connection; empty when there was one."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer within {TIMEOUT_S:g} s: packets to {host} port {port} are lost, as behind a firewall or NAT"
    except OSError as error:
        return (os.strerror(error.errno) if error.errno else str(error))[:200]
    writer.transport.abort()
    return ""
