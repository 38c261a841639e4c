"""The side that calls: Hello to an address, and the two streams to each peer."""

import asyncio
import contextlib
import itertools
import logging
import random
import re
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from shoal.errors import BadFrame, Mismatch, PeerError, SettingsError, Unreached, Untrusted
from shoal.transport import channels
from shoal.transport.channels import Ends
from shoal.transport.claims import misfit
from shoal.transport.connection import REASON_GRACE_S, Connection
from shoal.transport.peers import Peers
from shoal.v1 import node_pb2 as pb

if TYPE_CHECKING:
    from shoal.certificates.member import Member
    from shoal.transport.tls import Tls

HELLO_TIMEOUT_S = 5.0
STAND_TIMEOUT_S = 5.0
"""How long both streams may take to stand."""
TURN_S = 6.0
"""A peer with a lower id opens the streams; who has had none of it for so long, more than one attempt, does it too."""

log = logging.getLogger(__name__)

_PREAMBLE = re.compile(r"^failed to connect to all addresses; last error: (?:[A-Z_]+: )?(?:\S+: )?")


class Dialler:
    """Greets addresses and keeps the connections to the peers that are ours to dial."""

    def __init__(
        self, peers: Peers, heartbeat_s: float, redial_s: tuple[float, float], tls: "Tls | None" = None
    ) -> None:
        self._peers, self._tls = peers, tls
        self._heartbeat_s = heartbeat_s
        self._redial_least_s, self._redial_most_s = redial_s
        self._targets: dict[str, pb.Identity] = {}
        self._attempts = itertools.count(1)
        self._dialled: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._strangers: set[str] = set()  # who does not know this node any more
        self.failed: dict[str, str] = {}
        """Peers that were dialled in vain since they were last connected -> where, and why."""

    async def greet(self, address: str) -> pb.Hello:
        """Says Hello to an address and returns the answer, which is welcome.

        Raises Mismatch when either side refuses, with the keys that differ; Untrusted when a certificate does not
        hold; Unreached when nobody answers in time.
        """
        to = await self._reach(address)
        request = pb.HelloRequest(hello=self._peers.hello()).SerializeToString()
        try:
            async with channels.channel(address, self._heartbeat_s, self._tls, to) as channel:
                answer = await channel.unary_unary(channels.HELLO)(request, timeout=HELLO_TIMEOUT_S)
            hello = pb.HelloResponse.FromString(answer).hello
        except SettingsError as error:
            raise PeerError(str(error)) from None
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise Mismatch(f"the node at {address} refuses: {_words(error.code(), error.details())}") from None
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise Untrusted(f"the node at {address} refuses: {_words(error.code(), error.details())}") from None
            raise Unreached(f"no Hello from {address}: {_words(error.code(), error.details())}") from None
        except DecodeError as error:
            raise BadFrame(f"Hello from {address} is none: {error}") from None
        if to is not None and (why := misfit(hello.identity, to)) is not None:
            raise Untrusted(f"{address}: {why}")
        reason = self._peers.receive(hello)
        if reason is not None:
            raise Mismatch(f"{hello.identity.node_id} at {address} does not fit: {reason}")
        return hello

    def dial(self, peer: pb.Identity) -> None:
        """Opens the streams to a peer while none stand, again and again, until `hang_up`. A newer incarnation replaces
        an older one."""
        known = self._targets.get(peer.node_id)
        if known is not None and peer.incarnation < known.incarnation:
            return
        if known is not None and peer.incarnation > known.incarnation:
            self.hang_up(peer.node_id)
        self._targets[peer.node_id] = peer  # the same incarnation at another address counts from the next attempt
        if peer.node_id not in self._dialled:
            task = asyncio.create_task(self._keep(peer.node_id), name=f"dialler of {peer.node_id}")
            task.add_done_callback(_report)
            self._dialled[peer.node_id] = task

    def hang_up(self, peer_id: str) -> None:
        """Dials that peer no more."""
        self._targets.pop(peer_id, None)
        self.failed.pop(peer_id, None)
        task = self._dialled.pop(peer_id, None)
        if task is not None:
            task.cancel()
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Dials nobody any more; returns when no task is left."""
        for peer_id in list(self._dialled):
            self.hang_up(peer_id)
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _keep(self, peer_id: str) -> None:
        """Redials after random waits, which double while the peer is out of reach or one end breaks the protocol."""
        failures = 0
        while True:
            await self._turn(peer_id)
            peer = self._targets[peer_id]
            served, reason = await self._connect(peer)
            log.debug("connection to %s at %s ended: %s", peer.node_id, peer.address, reason)
            if served:
                failures = 0
            else:
                failures += 1
                self.failed[peer_id] = f"{peer.address}: {reason}"
            if peer_id in self._strangers:  # it has started again, or has lost our Hello
                self._strangers.discard(peer_id)
                with contextlib.suppress(PeerError):
                    await self.greet(peer.address)
            longest = min(self._redial_most_s, self._redial_least_s * 2.0 ** min(failures, 30))
            await asyncio.sleep(longest * random.uniform(0.5, 1))

    async def _turn(self, peer_id: str) -> None:
        """Returns when it is ours to dial: no connection stands, and a peer with a lower id has had its time."""
        patience_s = TURN_S if peer_id < self._peers.identity.node_id else 0.0
        while True:
            if (connection := self._peers.live.get(peer_id)) is not None:
                self.failed.pop(peer_id, None)
                await connection.over.wait()
                await self._peers.settle(connection)
            else:
                await asyncio.sleep(patience_s)
                if peer_id not in self._peers.live:
                    return

    async def _connect(self, peer: pb.Identity) -> tuple[bool, str]:
        """One connection from dialling to its end: whether it stood and kept to the protocol, and why it ended."""
        me = self._peers.identity
        ends = Ends(me.node_id, me.incarnation, peer.node_id, peer.incarnation, next(self._attempts))
        metadata = ends.metadata()
        try:
            to = await self._reach(peer.address)
            if to is not None and (reason := misfit(peer, to)) is not None:
                raise Untrusted(f"at {peer.address}: {reason}")  # noqa: TRY301
            first = channels.channel(peer.address, self._heartbeat_s, self._tls, to)
            second = channels.channel(peer.address, self._heartbeat_s, self._tls, to)
        except Untrusted as error:
            self._peers.events.refused(peer.node_id, error)
            return False, str(error)
        except (SettingsError, PeerError) as error:
            return False, str(error)
        async with first, second:
            try:
                async with asyncio.timeout(STAND_TIMEOUT_S):
                    control = await _standing(first, channels.CONTROL, metadata)
                    exchange = await _standing(second, channels.EXCHANGE, metadata)
            except TimeoutError:
                return False, f"the streams did not stand within {STAND_TIMEOUT_S:g} s"
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    self._strangers.add(peer.node_id)
                return False, _words(error.code(), error.details())
            if peer.node_id < me.node_id and peer.node_id in self._peers.live:
                return True, f"{peer.node_id} has opened them meanwhile"
            connection = self._peers.begin(peer, next(self._peers.numbers), (control, exchange), to)
            await self._hold(connection, control, exchange)
        return connection.code is not grpc.StatusCode.INVALID_ARGUMENT, connection.reason

    async def _reach(self, address: str) -> "Member | None":
        """Who listens there by its certificate; without TLS nobody can know. Raises PeerError."""
        return None if self._tls is None else await self._tls.reach(address)

    async def _hold(self, connection: Connection, *calls: Any) -> None:
        """Returns when the connection is over, which it is when either call is."""
        watches = [asyncio.create_task(_watch(connection, call)) for call in calls]
        try:
            await connection.over.wait()
        finally:
            connection.end(f"{self._peers.identity.node_id} hangs up")
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await self._peers.settle(connection)


async def _standing(channel: Any, method: str, metadata: tuple[tuple[str, str], ...]) -> Any:
    """A stream whose other end has accepted it: its response headers are there. Raises grpc.RpcError if refused."""
    call = channel.stream_stream(method)(metadata=metadata)
    await call.initial_metadata()
    await call.wait_for_connection()  # raises the status of a call that has ended
    return call


async def _watch(connection: Connection, call: Any) -> None:
    """Ends the connection when the call has its status, even while nobody reads or writes."""
    code, details = await call.code(), await call.details()
    # INTERNAL may be gRPC's word for a write that failed before the status came; the other call may say why.
    if code is not grpc.StatusCode.INTERNAL or connection.lost_code is grpc.StatusCode.CANCELLED:
        connection.lost, connection.lost_code = _words(code, details), code
    if code is grpc.StatusCode.INTERNAL:
        await asyncio.sleep(REASON_GRACE_S)
    await connection.heard_out()
    connection.end(connection.lost, connection.lost_code)


def _words(code: grpc.StatusCode, details: str | None) -> str:
    """A status in words; they are the peer's, and go into logs. Of gRPC's own the last tells most."""
    words = _PREAMBLE.sub("", details or code.name)[: channels.REASON_LIMIT]
    return "".join(c if c.isprintable() else " " for c in words)


def _report(task: asyncio.Task[None]) -> None:
    """A dialler runs until it is cancelled; anything else is our own fault."""
    if not task.cancelled():
        log.error("%s has ended early", task.get_name(), exc_info=task.exception())
