"""The side that is called: Hello, and the two streams of those who dial."""

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shoal.errors import BadFrame, Mismatch, Untrusted
from shoal.transport import channels, dial_back
from shoal.transport.channels import Ends, host_of
from shoal.transport.claims import misfit, misnamed
from shoal.transport.connection import Connection
from shoal.transport.peers import Peers
from shoal.v1 import node_pb2 as pb

if TYPE_CHECKING:
    from shoal.certificates.member import Member
    from shoal.transport.tls import Tls

PAIR_TIMEOUT_S = 5.0
"""How long a Control stream waits for its Exchange stream."""
HALVES_LIMIT = 4
"""Control streams of one peer that wait for their Exchange stream: one, and what is left of earlier attempts."""
STOP_GRACE_S = 2.0


class Server:
    """Serves NodeService, health v1 and reflection on one port.

    A caller opens Control, waits for its response headers, then opens Exchange with the same metadata
    (`channels.Ends`); the connection is up when both stand.
    """

    def __init__(self, peers: Peers, heartbeat_s: float, tls: "Tls | None" = None) -> None:
        self._peers, self._tls = peers, tls
        self._halves: dict[Ends, tuple[Any, asyncio.Future[Connection]]] = {}
        self._health = health.aio.HealthServicer()
        gate = tls.gate(peers.events.refused) if tls is not None else None
        self._server = channels.server(heartbeat_s, gate)
        # Bytes in and out: what is no protobuf is a bad frame with a name, not a traceback inside grpc.
        handlers = {
            "Hello": grpc.unary_unary_rpc_method_handler(self._hello),
            "Control": grpc.stream_stream_rpc_method_handler(self._control),
            "Exchange": grpc.stream_stream_rpc_method_handler(self._exchange),
            "DialBack": grpc.unary_unary_rpc_method_handler(dial_back.answer),
        }
        generic = grpc.method_handlers_generic_handler(channels.SERVICE, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (channels.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def listen(self, address: str) -> str:
        """Binds, starts to serve, and returns HOST:PORT. Raises PortInUse or SettingsError."""
        bound = await channels.bind(self._server, address, self._tls)
        await self._server.start()
        for service in ("", channels.SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def close(self) -> None:
        """Stops serving; connections should be ended before, so that their callers hear why."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(STOP_GRACE_S)

    async def _hello(self, request: bytes, context: Any) -> bytes:
        try:
            hello = pb.HelloRequest.FromString(request).hello
        except DecodeError as error:
            self._peers.events.refused("", BadFrame(f"Hello from {context.peer()} is none: {error}"))
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "not a HelloRequest")
        member = await self._caller(context)
        if member is not None and (why := misfit(hello.identity, member)) is not None:
            await self._distrust(context, why)
        reason = self._peers.receive(hello)
        if reason is not None:
            if not self._peers.itself(hello.identity):
                self._peers.events.refused(hello.identity.node_id[:128], Mismatch(reason))
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, reason)
        return pb.HelloResponse(hello=self._peers.hello()).SerializeToString()

    async def _control(self, _requests: Any, context: Any) -> None:
        ends, *_ = await self._admitted(context)
        if ends in self._halves:
            await _abort(context, grpc.StatusCode.ALREADY_EXISTS, f"connection {ends.number} has its Control stream")
        if sum(half.caller == ends.caller for half in self._halves) >= HALVES_LIMIT:
            reason = f"{HALVES_LIMIT} Control streams of {ends.caller} wait for their Exchange stream already"
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        paired: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._halves[ends] = context, paired
        try:
            await context.send_initial_metadata(())
            connection = await asyncio.wait_for(paired, PAIR_TIMEOUT_S)
        except TimeoutError:
            reason = f"no Exchange stream came within {PAIR_TIMEOUT_S:g} s of Control"
            await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        finally:
            self._halves.pop(ends, None)
            paired.cancel()
        await self._hold(connection, context)

    async def _exchange(self, _requests: Any, context: Any) -> None:
        ends, *_ = await self._admitted(context)
        if ends not in self._halves:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, "open Control first, with the same metadata")
        control, paired = self._halves.pop(ends)
        await context.send_initial_metadata(())
        _, peer, member = await self._admitted(context)  # it may have been forgotten meanwhile
        if paired.done():
            await _abort(context, grpc.StatusCode.ABORTED, "the Control stream broke")
        streams = (control, context)
        connection = self._peers.begin(peer, next(self._peers.numbers), streams, member)
        paired.set_result(connection)
        await self._hold(connection, context)

    async def _admitted(self, context: Any) -> "tuple[Ends, pb.Identity, Member | None]":
        """Who opens a stream, and for which connection, by which certificate; aborts it if that node may not."""
        ends = Ends.read(context.invocation_metadata())
        if ends is None:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "metadata does not say which connection this is")
        me = self._peers.identity
        if (ends.callee, ends.callee_incarnation) != (me.node_id, me.incarnation):
            reason = f"this is {me.node_id}, incarnation {me.incarnation}"
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, reason)
        member = await self._caller(context)
        if member is not None and misnamed(ends.caller, member):
            await self._distrust(context, f"{ends.caller} is not {member.words}")
        peer, reason = self._peers.admitted(ends.caller, ends.caller_incarnation)
        if peer is None:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, reason)
        return ends, peer, member

    async def _caller(self, context: Any) -> "Member | None":
        """By its certificate, where there is TLS. The gate has looked at it, but it may have been revoked since."""
        try:
            return None if self._tls is None else self._tls.caller(context)
        except Untrusted as error:
            await self._distrust(context, str(error))

    async def _distrust(self, context: Any, why: str) -> NoReturn:
        """Refuses who claims what the certificate does not."""
        self._peers.events.refused(host_of(context), Untrusted(why))
        await _abort(context, grpc.StatusCode.PERMISSION_DENIED, why)

    async def _hold(self, connection: Connection, context: Any) -> None:
        """Keeps a stream open while its connection is up. Cancelled when the caller is gone."""
        try:
            await connection.over.wait()
        except asyncio.CancelledError:
            connection.end(connection.lost, grpc.StatusCode.CANCELLED)
            raise
        finally:
            await self._peers.settle(connection)
        await _abort(context, connection.code, connection.reason)


async def _abort(context: Any, code: grpc.StatusCode, reason: str) -> NoReturn:
    await context.abort(code, reason[: channels.REASON_LIMIT])
    raise AssertionError("abort raises")
