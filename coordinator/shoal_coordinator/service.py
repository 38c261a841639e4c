"""The process around a coordinator: gRPC, HTTP, discovery, heartbeats, a state folder; and what becomes of them.

Its workers are members like a node's, by the same heartbeats: one that leaves or falls silent is enrolled no more. It
greets nobody: nodes find it, and it passes on to each the addresses of the others.
"""

import asyncio
import contextlib
import logging
import random
import time
from pathlib import Path
from typing import Any

from shoal import hello, logs
from shoal.discovery import Discovery
from shoal.errors import Mismatch, PeerError, SettingsError
from shoal.folder import StateFolder
from shoal.greeter import SAID_LIMIT
from shoal.membership import Membership
from shoal.metrics import Metrics
from shoal.process import Process, check_exposure, say_exposure, tls_of
from shoal.roster import Action, Gone, Joined, Send
from shoal.settings import Settings
from shoal.targets import targets, told
from shoal.transport import Transport
from shoal.v1 import node_pb2 as pb
from shoal.web import Web
from shoal.whereabouts import dialable
from shoal_coordinator import adopted, report
from shoal_coordinator.mail import Mail
from shoal_coordinator.rounds import Terms
from shoal_coordinator.server import Server
from shoal_coordinator.store import Store

log = logging.getLogger("shoal")

TICK_S = 0.05
STATUS_S = 0.25
PROGRESS_S = 5.0
BACK_WITHIN_S = 15.0
"""After a restart: workers of before that have not come back by then are gone."""


class Service:
    """One coordinator, from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        check_exposure(settings)
        self.tls = tls_of(settings, "coordinator")
        self.settings = settings
        self.terms = Terms(settings.quorum, settings.deadline_s, settings.min_nodes)
        self.adopted: pb.Hello | None = None
        self.server: Server | None = None  # once a run is adopted that needs one
        self._heartbeats = [0, 0]  # sent, received
        self._incarnations: dict[tuple[str, int], int] = {}  # of the connections that are up
        self._complaints: dict[str, str] = {}

    # --- start and end ------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until a signal comes or something fails; returns the exit code. Raises ShoalError."""
        s = self.settings
        logs.configure(s.log, s.log_level)
        name = s.name or (self.tls.name if self.tls else "coordinator")
        self.folder = StateFolder(Path(s.state_dir), name)
        self.me = pb.Identity(
            node_id=self.folder.node_id,
            incarnation=self.folder.incarnation,
            name=self.folder.name,
            role=pb.ROLE_COORDINATOR,
        )
        self.process = Process()
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack)
                code, reason = await self.process.ended
                self._do(self.membership.leave(reason.splitlines()[0], finished=False, now=time.monotonic()))
                self.folder.tell("result.json", {"outcome": reason, "exit_code": code, **self._status()})
                log.info("%s; state in %s, where another start goes on", reason, self.folder.path)
                return code
        finally:
            self.folder.close()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        s = self.settings
        self.metrics = Metrics(node=self.me.node_id, algorithm="", task="", shoal=s.shoal, coordinates=True)
        self.web = Web(s.http, registry=self.metrics.registry)
        stack.callback(self.web.close)
        self.membership = Membership(
            self.me,
            heartbeat_s=s.heartbeat_s,
            suspect_after_s=s.suspect_after_s,
            min_nodes=1,
            synchronous=False,
            rng=random.Random(),
        )
        self.transport = Transport(
            identity=self.me,
            hello=self._hello,
            judge=self._judge,
            events=self,
            heartbeat_s=s.heartbeat_s,
            max_rate=s.max_bytes_a_second,
            tls=self.tls,
        )
        self.mail = Mail(self.transport)
        self.store = Store(self.folder.path / "run")
        self._restore()
        bound = await self.transport.listen(s.listen)
        stack.push_async_callback(self.transport.close)
        self.me.address, why = dialable(bound, s.advertise)
        self.me.http = told(self.web.address, self.me.address)
        facts = {"id": self.me.node_id, "name": self.me.name, "address": bound, "http": self.web.address}
        self.folder.tell("node.json", facts)
        where = f"gRPC on {bound}, HTTP on http://{self.web.address}"
        log.info("coordinator %s, shoal %s: %s", self.me.node_id, s.shoal, where)
        if why:
            log.info("nodes are told %s: %s", self.me.address, why)
        say_exposure(s, self.tls, bound)
        discovery = Discovery(
            s.discovery.split(","),
            identity=self.me,
            shoal=s.shoal,
            peers=(),
            dns=(),
            listen=bound,
            found=lambda _: None,
        )
        try:
            await discovery.start()
        except SettingsError as error:
            if "static" not in s.discovery:
                raise
            log.warning("%s; nodes find this coordinator by --coordinator only", error)
        stack.push_async_callback(discovery.close)
        self.process.own("ticks", self._tick())
        stack.push_async_callback(self.process.cancel_tasks)

    def _restore(self) -> None:
        """Go on with the run of the last process, if there was one."""
        document = self.store.load_adopted()
        if document is not None:
            self.adopted, run = adopted.from_disk(document)
            self._serve(run)
            if self.server is not None:
                asyncio.get_running_loop().call_later(BACK_WITHIN_S, self._drop_silent)

    def _drop_silent(self) -> None:
        if self.server is not None:
            for worker in self.server.expected():
                if self.mail.connection(worker) is None:
                    self.server.left(worker)

    # --- Hello --------------------------------------------------------------------------------------------------

    def _hello(self) -> pb.Hello:
        known = (m.identity for m in self.membership.roster.around())
        return hello.of_coordinator(self.settings.shoal, self.me, self.adopted, known)

    def _judge(self, theirs: pb.Hello) -> str | None:
        """None welcomes; a text says what differs. The first welcome node's run is the coordinator's from then on."""
        if theirs.identity.role == pb.ROLE_COORDINATOR:
            return f"{self.me.node_id} is a coordinator itself"
        try:
            if self.adopted is None:
                self._adopt(theirs)
            elif (reason := hello.compare(self._hello(), theirs)) is not None:
                return f"{reason}; {adopted.REMEDY}" if theirs.shoal == self.settings.shoal else reason
            self._do(self.membership.met(theirs.identity, theirs.samples, time.monotonic()))
        except Mismatch as error:
            return str(error)
        self.transport.connect(theirs.identity)
        return None

    def _adopt(self, theirs: pb.Hello) -> None:
        ours, run = adopted.adopt(theirs, self.terms, shoal=self.settings.shoal)
        self.store.forget()
        self.store.save_adopted(adopted.to_disk(ours))
        self.adopted = ours
        log.info("the run of %s: %s over %s", theirs.identity.node_id, run.algorithm, run.over)
        self._serve(run)

    def _serve(self, run: Settings) -> None:
        if run.over == "coordinator":
            self.server = Server(
                self.me.node_id,
                run,
                self.terms,
                send=self.mail.send,
                clock=time.monotonic,
                store=self.store,
                complain=self._complain,
            )

    def _release(self) -> None:
        """The run is over and all have left in order: the next may be another."""
        if self.server is not None:
            self.server.close()
        self.adopted = self.server = None
        self.store.forget()
        log.info("the run is over; the next may be another")

    # --- transport.TransportEvents ------------------------------------------------------------------------------

    def up(self, peer: pb.Identity, conn: int) -> None:
        """Both streams stand."""
        self.metrics.connection("up")
        self.mail.up(peer.node_id, conn)
        self._incarnations[peer.node_id, conn] = peer.incarnation
        self._do(self.membership.link_up(peer.node_id, time.monotonic(), peer.incarnation))

    def down(self, peer_id: str, conn: int, reason: str) -> None:
        """The connection is gone."""
        self.metrics.connection("down")
        self.mail.down(peer_id, conn)
        if self.server is not None:
            self.server.down(peer_id)
        incarnation = self._incarnations.pop((peer_id, conn))
        self._do(self.membership.link_down(peer_id, reason, time.monotonic(), incarnation))

    def control(self, peer_id: str, conn: int, control: pb.Control) -> None:
        """A heartbeat, or a leave-taking."""
        self._heartbeats[1] += control.HasField("heartbeat")
        try:
            incarnation = self._incarnations[peer_id, conn]
            self._do(self.membership.heard(peer_id, control, time.monotonic(), incarnation))
        except PeerError as error:
            self._complain(peer_id, error)
            self.transport.reset(peer_id, str(error))

    async def buffer(self, nbytes: int) -> tuple[int, memoryview]:
        """A buffer for a vector that is announced."""
        return self.mail.buffer(nbytes)

    def release(self, slot: int) -> None:
        """It is not used after all."""
        self.mail.release(slot)

    def message(self, peer_id: str, conn: int, header: bytes, slot: int | None, finite: bool) -> None:
        """A whole message, for the server."""
        try:
            message = self.mail.opened(peer_id, header, slot)
        except PeerError as error:
            self._complain(peer_id, error)
            self.transport.reset(peer_id, str(error))
        else:
            if self.server is not None:
                self.server.received(peer_id, message)

    def refused(self, peer_id: str, error: PeerError) -> None:
        """A peer's fault."""
        self._complain(peer_id, error)

    def _complain(self, peer_id: str, error: PeerError) -> None:
        """Count it, and warn once for each new text."""
        self.metrics.refused(type(error).__name__)
        if self._complaints.get(peer_id) != str(error):
            self._complaints.pop(peer_id, None)
            if len(self._complaints) >= SAID_LIMIT:
                del self._complaints[next(iter(self._complaints))]
            self._complaints[peer_id] = str(error)
            log.warning("refused %s: %s", peer_id, error)

    # --- membership's actions -----------------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(peer_id, control):
                    self._heartbeats[0] += control.HasField("heartbeat")
                    self.transport.send_control(peer_id, control)
                case Joined(peer_id, _):
                    log.info("%s is here", peer_id)
                case Gone(peer_id, _, reason, finished):
                    self._on_gone(peer_id, reason, finished)

    def _on_gone(self, peer_id: str, reason: str, finished: bool) -> None:
        log.log(logging.INFO if finished else logging.WARNING, "%s is gone: %s", peer_id, reason)
        if self.server is not None:
            self.server.left(peer_id)
        if finished or reason.startswith("left"):
            self.transport.forget(peer_id, reason)
        else:
            self.transport.reset(peer_id, reason)
        if finished and not self.membership.roster.live():
            self._release()

    # --- ticks and status ---------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        next_status = next_progress = 0.0
        while True:
            now = time.monotonic()
            self.membership.mine(pb.PHASE_RUNNING, 0, 0, float("nan"), 0, 0)
            self._do(self.membership.tick(now))
            if now >= next_status:
                next_status = now + STATUS_S
                shown = self._status()
                where = targets(self.membership.roster, self.settings.shoal)
                self.web.publish(shown, targets=where, ready=self.adopted is not None, why="no node has said Hello")
                self.metrics.from_coordinator(shown, report.take_staleness(self.server))
                self.metrics.certificate(self.tls.ends if self.tls else None)
                self.metrics.disk(self.folder.free_bytes())
                self.metrics.heartbeats(*self._heartbeats)
            if now >= next_progress:
                next_progress = now + PROGRESS_S
                log.info("%s", report.progress(self._status()))
            self.web.beat()
            await asyncio.sleep(TICK_S)

    def _status(self) -> dict[str, Any]:
        return report.status(self.settings, self.membership, self.server, self.transport, time.monotonic())
