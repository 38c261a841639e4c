"""The one object that the daemon holds: listens, greets, keeps the connections, sends."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from shoal.errors import SettingsError, Untrusted
from shoal.transport.connection import Traffic, TransportEvents
from shoal.transport.dialler import Dialler
from shoal.transport.peers import Peers
from shoal.transport.rate import Limit
from shoal.transport.server import Server
from shoal.v1 import node_pb2 as pb

if TYPE_CHECKING:
    from shoal.certificates.member import Member
    from shoal.transport.tls import Tls

LAST_WORDS_S = 0.5
CERTIFICATES_S = 1.0
"""How often the files of certificates are looked at, and whether those of connections that stand still hold."""

log = logging.getLogger("shoal")


class Transport:
    """gRPC in both directions. Everything runs on the event loop that made it; `events` is called there."""

    def __init__(
        self,
        *,
        identity: pb.Identity,
        hello: Callable[[], pb.Hello],
        judge: Callable[[pb.Hello], str | None],
        events: TransportEvents,
        heartbeat_s: float = 0.5,
        redial_s: tuple[float, float] = (0.05, 2.0),
        max_rate: float = 0.0,
        tls: "Tls | None" = None,
    ) -> None:
        """`hello` says who we are now; its `elements` and `element_bytes` fix the size of every vector.

        `judge` decides on another's Hello: None is welcome, a text is the reason for refusal, with the keys that
        differ. `redial_s` bounds the waits between attempts to connect, least and most. `max_rate` bounds the bytes
        a second that go out, to all peers together; 0: no limit. With `tls` nobody is talked to without it.
        """
        self._identity = identity
        self._limit = Limit(max_rate)
        self._peers = Peers(identity, hello, judge, events, self._limit)
        self._tls = tls
        self._server = Server(self._peers, heartbeat_s, tls)
        self._dialler = Dialler(self._peers, heartbeat_s, redial_s, tls)
        self._watch: asyncio.Task[None] | None = None

    @property
    def traffic(self) -> Mapping[str, Traffic]:
        """Bytes by peer id, over all its connections."""
        return self._peers.traffic

    @property
    def limited_s(self) -> float:
        """Seconds for which `max_rate` has held something back."""
        return self._limit.waited_s

    async def listen(self, address: str) -> str:
        """Serves on HOST:PORT and returns it, with the port that was taken for 0. Raises PortInUse or SettingsError."""
        bound = await self._server.listen(address)
        if self._tls is not None:
            self._watch = asyncio.create_task(self._watch_certificates(self._tls), name="certificates")
        return bound

    async def greet(self, address: str) -> pb.Hello:
        """Exchanges Hellos with whoever listens there; both sides judge. At most 5 s.

        Raises Mismatch when either refuses, with the reason, PeerError when nobody answers.
        """
        return await self._dialler.greet(address)

    def connect(self, peer: pb.Identity) -> None:
        """Wants a connection to a peer, after a Hello by either, until `forget`. Calling it again changes nothing.

        The lower node id dials, again and again; the other dials too when it has waited in vain, for one of the two may
        be where nobody gets in (a firewall, NAT). A newer incarnation or another address of the same peer takes the
        place of the old.
        """
        self._dialler.dial(peer)

    def unreached(self) -> list[str]:
        """Where peers were dialled in vain, who are not connected, and why: of three of them."""
        failed = sorted(self._dialler.failed.items())[:3]
        return [
            f"{peer} is not reached at {why} (the address that it tells, by --advertise or --listen)"
            for peer, why in failed
            if peer not in self._peers.live
        ]

    def send(
        self, peer_id: str, conn: int, header: bytes, payload: memoryview | None, sent: Callable[[], None]
    ) -> None:
        """Queues a message, in order, on connection `conn`; drops it when that is not up any more.

        `payload` is (n,) uint8, as many as the header announces, and must not change until `sent` is called: once,
        on the loop, perhaps before this returns, whether the message went or not.
        """
        connection = self._peers.live.get(peer_id)
        if connection is None or connection.conn != conn:
            sent()
        else:
            connection.send(header, payload, sent)

    def send_control(self, peer_id: str, control: pb.Control) -> None:
        """Queues a control frame; drops it while no connection is up."""
        connection = self._peers.live.get(peer_id)
        if connection is not None:
            connection.send_control(control)

    def reset(self, peer_id: str, reason: str) -> None:
        """Drops the connection, on both ends; it is dialled again as after any failure."""
        connection = self._peers.live.get(peer_id)
        if connection is not None:
            connection.end(reason)

    def forget(self, peer_id: str, reason: str) -> None:
        """Drops the connection and wants none any more; the peer must say Hello again."""
        self._peers.forget(peer_id)
        self.reset(peer_id, reason)
        self._dialler.hang_up(peer_id)

    async def close(self) -> None:
        """Ends every connection, then listening; returns when no task is left. What was said to the peers goes first: a
        last word, most of all; but nobody waits long for one that does not read."""
        last_words = [asyncio.ensure_future(one.last_words()) for one in self._peers.live.values()]
        if last_words:
            _, late = await asyncio.wait(last_words, timeout=LAST_WORDS_S)
            for one in late:
                one.cancel()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        for peer_id in list(self._peers.live):
            self.forget(peer_id, f"{self._identity.node_id} closes")
        await self._dialler.close()
        await self._server.close()

    async def _watch_certificates(self, tls: "Tls") -> None:
        """Takes up what has changed on disk, and ends the connections whose certificates hold no more."""
        said = ""  # of our own certificate, once for each new text
        while True:
            try:
                if news := tls.credentials.refresh():
                    log.info("%s", news)
            except SettingsError as error:
                log.warning("%s; what was read before still holds", error)
            if (ours := tls.credentials.warning()) != said:
                said = ours
                if ours:
                    log.warning("%s", ours)
            for peer_id, connection in list(self._peers.live.items()):
                if connection.member is not None:
                    self._check_certificate(tls, peer_id, connection.member)
            await asyncio.sleep(CERTIFICATES_S)

    def _check_certificate(self, tls: "Tls", peer_id: str, member: "Member") -> None:
        why = tls.credentials.problem(member)
        if why is None:
            return
        self._peers.events.refused(peer_id, Untrusted(why))
        if member.serial in tls.credentials.revoked:
            self.forget(peer_id, why)
        else:
            self.reset(peer_id, why)  # one that was renewed comes back with the new certificate
