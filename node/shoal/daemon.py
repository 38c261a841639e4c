"""The daemon around one worker: starts and stops everything, and is the only file that knows all the others.

It holds no vector and imports no torch, so it goes on answering heartbeats whatever the user's code does. The trainer
(`child.py`, `talk.py`) owns the model; the transport owns the connections; membership decides who is in, and
`reception.py` who may ask to be. This file passes on what one of them says to the others.
"""

import asyncio
import contextlib
import dataclasses
import logging
import random
import time
from pathlib import Path

from shoal import logs, status
from shoal.bridge import Bridge
from shoal.child import Child
from shoal.discovery import Discovery
from shoal.folder import StateFolder
from shoal.greeter import Greeter
from shoal.hello import KNOWN_LIMIT
from shoal.membership import Membership
from shoal.metrics import Metrics
from shoal.packed import Packed
from shoal.process import AGAIN, Process, check_exposure, say_exposure, tls_of
from shoal.reception import Reception
from shoal.roster import Action, Dropped, Gone, Installed, Introduced, Joined, Pause, Refused, Send
from shoal.seeking import Seeking
from shoal.settings import Settings
from shoal.talk import Talk
from shoal.targets import targets, told
from shoal.transport import Transport
from shoal.v1 import node_pb2 as pb
from shoal.web import Web
from shoal.whereabouts import dialable

log = logging.getLogger("shoal")

TICK_S = 0.1
"""At most; a few fit between two heartbeats."""
STATUS_S = 0.5
PROGRESS_S = 5.0


class Daemon:
    """One node, from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        check_exposure(settings)
        self.tls = tls_of(settings, "node")
        self.began = time.time()
        self.discovery: Discovery | None = None  # not before the trainer has loaded task and data
        self._heartbeats_sent = 0

    # --- start and end ------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until the run is over, a signal comes, or something fails; returns the exit code. Raises ShoalError."""
        s = self.settings
        logs.configure(s.log, s.log_level)
        name = s.name or (self.tls.name if self.tls else "")
        self.folder = StateFolder(Path(s.state_dir), name)
        self.me = pb.Identity(node_id=self.folder.node_id, incarnation=self.folder.incarnation, name=self.folder.name)
        self.process = Process()
        self.metrics = Metrics(node=self.me.node_id, algorithm=s.algorithm, task=s.task, shoal=s.shoal)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack)
                code, reason = await self.process.ended
                return await self._finish(code, reason)
        finally:
            self.folder.close()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        s = self.settings
        self.web = Web(s.http, registry=self.metrics.registry)
        stack.callback(self.web.close)
        self.child = await Child.start(s, self.me.node_id, self.me.incarnation)
        stack.push_async_callback(self.child.end)
        self.metrics.trainer(lambda: self.child.process.pid)
        self._assemble()
        stack.push_async_callback(self.greeter.close)
        self.bound = bound = await self.transport.listen(s.listen)
        stack.push_async_callback(self.transport.close)
        self.me.address, why = dialable(bound, s.advertise)
        self.me.http = told(self.web.address, self.me.address)
        facts = {"id": self.me.node_id, "name": self.me.name, "address": bound, "http": self.web.address}
        self.folder.tell("node.json", facts)
        log.info("node %s, shoal %s: gRPC on %s, HTTP on http://%s", self.me.node_id, s.shoal, bound, self.web.address)
        if why:
            log.info("peers are told %s: %s", self.me.address, why)
        say_exposure(s, self.tls, bound)
        self.process.own("trainer", self.talk.listen())
        self.process.own("ticks", self._tick())
        stack.push_async_callback(self.process.cancel_tasks)

    def _assemble(self) -> None:
        """What decides, greets, carries and talks; nothing of it is at work before the transport listens."""
        s = self.settings
        self.membership = Membership(
            self.me,
            heartbeat_s=s.heartbeat_s,
            suspect_after_s=s.suspect_after_s,
            min_nodes=s.min_nodes,
            synchronous=s.fixed_view,
            replicas=s.traits.replicas,
            on_partition=s.on_partition,
            rng=random.Random(),
        )
        self.greeter = Greeter(
            lambda address: self.transport.greet(address),
            is_known=lambda c: self.reception.is_known(c),
            unreached=lambda c: self.reception.unreached(c),
        )
        self.seeking = Seeking(s, self.membership.roster, self.greeter)
        self.reception = Reception(
            s,
            self.membership,
            self.greeter,
            self.seeking,
            ready=lambda: self.talk.ready,
            do=self._do,
            connect=lambda identity: self.transport.connect(identity),
        )
        self.bridge = Bridge(
            self.child,
            self.membership,
            self.metrics,
            self.greeter,
            self._do,
            self.reception.memory_of,
            Packed(s.codec),
        )
        self.talk = Talk(
            s.task,
            self.child,
            self.bridge,
            self.metrics,
            self.process,
            joined=self._join,
            phase=self._phase,
            paused=self._paused,
        )
        self.transport = self.bridge.transport = Transport(
            identity=self.me,
            hello=self.reception.hello,
            judge=self.reception.judge,
            events=self.bridge,
            heartbeat_s=s.heartbeat_s,
            max_rate=s.max_bytes_a_second,
            tls=self.tls,
        )

    async def _finish(self, code: int, reason: str) -> int:
        """Leave in order: stop the trainer, tell the others, write what happened."""
        if self.discovery is not None:
            await self.discovery.close()
        await self.talk.stop()
        # Not before: it may have to settle averages with them, and they hang up at once.
        self._do(self.membership.leave(reason.splitlines()[0], finished=code == 0, now=time.monotonic()))
        await self.child.end()
        talk, had_view = self.talk, self.membership.view is not None
        earlier = talk.trained.get("checkpoint", "")
        facts = talk.ready or {}, talk.trained, talk.averaged
        self.folder.tell(
            "result.json",
            {
                "outcome": reason,
                "exit_code": code,
                "checkpoint": talk.checkpoint or earlier,
                "began": self.began,
                "seconds": time.time() - self.began,
                **status.result(self.settings, self.membership, *facts, self.transport),
            },
        )
        if code != AGAIN and (last := status.goodbye(code, reason, talk.checkpoint, earlier, had_view=had_view)):
            log.info("%s", last)
        return code

    def next_life(self) -> Settings:
        """Those of the incarnation that follows on this one: at the same addresses, from the last checkpoint if any."""
        saved = self.talk.checkpoint or self.talk.trained.get("checkpoint", "")
        resume = self.settings.resume or bool(saved)
        met = [m.identity.address for m in self.membership.roster.members.values() if not m.coordinates]
        peers = tuple(dict.fromkeys([*self.settings.peers, *met]))[:KNOWN_LIMIT]
        return dataclasses.replace(self.settings, listen=self.bound, http=self.web.address, resume=resume, peers=peers)

    # --- the run, as its trainer sees it ------------------------------------------------------------------------

    async def _join(self) -> None:
        """Only now: a Hello shows the task's fingerprint, which the trainer had to work out first."""
        s = self.settings
        assert self.talk.ready is not None
        self.membership.roster.samples = self.talk.ready["samples"]
        self._phase(pb.PHASE_READY)
        self.discovery = Discovery(
            s.discovery.split(","),
            identity=self.me,
            shoal=s.shoal,
            peers=(*s.peers, *([s.coordinator] if s.coordinator else [])),
            dns=s.dns,
            listen=self.bound,
            found=self.greeter.consider,
        )
        await self.discovery.start()

    def _phase(self, phase: pb.Phase.ValueType) -> None:
        self.talk.tell(self.membership, phase)
        self._do(self.membership.tick(time.monotonic()))

    def _paused(self, round: int, lacks_model: bool) -> None:
        self._do(self.membership.paused(round, time.monotonic(), lacks_model=lacks_model))

    def _tell_totals(self) -> None:
        gradients = self.membership.roster.gradients()
        self.talk.tell_totals({node: n for node, n in gradients.items() if node != self.me.node_id})

    # --- membership's actions -----------------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Send(peer_id, control):
                self._heartbeats_sent += control.HasField("heartbeat")
                self.transport.send_control(peer_id, control)
            case Joined(peer_id, _):
                log.info("%s is here", peer_id)
            case Gone(peer_id, _, reason, finished):
                log.log(logging.INFO if finished else logging.WARNING, "%s is gone: %s", peer_id, reason)
                if finished or reason.startswith("left"):
                    self.transport.forget(peer_id, reason)
                else:
                    self.transport.reset(peer_id, reason)
            case Introduced(identity, by):
                self.reception.told(identity, by)
            case Installed(view, model_from):
                self._on_view(view, model_from)
            case Dropped(reason):
                log.info("no view yet: %s", reason)
            case Pause():
                self.talk.pause()
            case Refused(reason):
                self.process.fail(2, reason)

    def _on_view(self, view: pb.View, model_from: str) -> None:
        if self.settings.resume and not self.settings.fixed_view:
            model_from = ""  # its own model holds gradients that are in no other
        log.info("%s", status.of_view(view, model_from))
        self._tell_totals()  # before it trains: the run may have all its gradients already
        self.talk.install(view, model_from)

    def _plan_detours(self) -> None:
        view, me = self.membership.view, self.me.node_id
        cut = (
            () if view is None else (edge.b if edge.a == me else edge.a for edge in view.cut if me in (edge.a, edge.b))
        )
        self.bridge.detours.plan(cut, self.membership.relays.to)

    # --- ticks and status ---------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        next_status = next_progress = 0.0
        tick_s = min(TICK_S, self.settings.heartbeat_s / 4)
        while True:
            now = time.monotonic()
            self.talk.tell(self.membership)
            self._do(self.membership.tick(now))
            self._tell_totals()
            self._plan_detours()
            if self.talk.ready is not None and (why := self.seeking.step(now)):
                self.process.fail(2, why)
            if self.membership.done(now):
                self.process.end(0, "finished")
            if now >= next_status:
                next_status = now + STATUS_S
                self._publish()
            if now >= next_progress and self.talk.ready is not None:
                next_progress = now + PROGRESS_S
                self._log_progress()
            self.web.beat()
            await asyncio.sleep(tick_s)

    def _log_progress(self) -> None:
        if self.membership.view is None:
            words = [self.membership.waiting or "for members", self.seeking.waiting]
            if self.discovery:
                words += self.discovery.waiting(not self.membership.roster.members, self.greeter.last_words)
            words += self.transport.unreached()
            log.info("waiting: %s", "; ".join(filter(None, words)))
            return
        for why in filter(None, (self.seeking.waiting, self.membership.held_up)):
            log.info("waiting: %s", why)
        log.info("%s", status.progress(self.membership, self.talk.trained))

    def _publish(self) -> None:
        """A snapshot for /v1/status, and the metrics that are read from one."""
        shown = status.status(
            self.settings,
            self.membership,
            self.talk.ready or {},
            self.talk.trained,
            self.transport,
            time.monotonic(),
            self.seeking.waiting,
        )
        where = targets(self.membership.roster, self.settings.shoal)
        ready, why = self.membership.view is not None, self.membership.waiting or "loading"
        self.web.publish(shown, targets=where, ready=ready, why=why)
        self.metrics.from_members(shown)
        self.metrics.certificate(self.tls.ends if self.tls else None)
        self.metrics.disk(self.folder.free_bytes())
        self.metrics.heartbeats(self._heartbeats_sent, self.bridge.heartbeats_received)
