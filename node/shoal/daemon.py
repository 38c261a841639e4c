"""The daemon around one worker: starts and stops everything, and is the only file that knows all the others.

It holds no vector and imports no torch, so it goes on answering heartbeats whatever the user's code does. The trainer
(`child.py`) owns the model; the transport owns the connections; membership decides who is in. This file passes on what
one of them says to the others.
"""

import asyncio
import contextlib
import logging
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from shoal import hello, logs, status
from shoal.bridge import Bridge
from shoal.child import Child
from shoal.discovery import Candidate, Discovery
from shoal.errors import Mismatch, PeerError
from shoal.folder import StateFolder
from shoal.greeter import LOADING, Greeter
from shoal.link import Packet
from shoal.membership import Membership
from shoal.metrics import Metrics
from shoal.process import Process, check_exposure
from shoal.roster import Action, Dropped, Gone, Installed, Joined, Refused, Send, Stop
from shoal.seeking import Seeking
from shoal.settings import Settings
from shoal.transport import Transport
from shoal.v1 import node_pb2 as pb
from shoal.web import Web

log = logging.getLogger("shoal")

STOP_WITHIN_S = 3.5
"""A trainer that has not written its checkpoint by then is killed; with what follows, Ctrl-C takes below 5 s."""
TICK_S = 0.05
STATUS_S = 0.25
PROGRESS_S = 5.0


class Daemon:
    """One node, from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        check_exposure(settings)
        self.began = time.time()
        self.trained: dict[str, Any] = {}  # what the trainer said last about itself
        self.averaged: dict[str, Any] | None = None  # the mean model, once it is formed
        self.ready: dict[str, Any] | None = None
        self.checkpoint = ""  # path of the one that the trainer wrote at its end
        self.discovery: Discovery | None = None  # not before the trainer has loaded task and data
        self._heartbeats_sent = 0
        self._totals: dict[str, int] = {}

    # --- start and end ------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until the run is over, a signal comes, or something fails; returns the exit code. Raises ShoalError."""
        s = self.settings
        logs.configure(s.log, s.log_level)
        self.folder = StateFolder(Path(s.state_dir), s.name)
        self.me = pb.Identity(node_id=self.folder.node_id, incarnation=self.folder.incarnation, name=self.folder.name)
        self.process = Process()
        self.metrics = Metrics(node=self.me.node_id, algorithm=s.algorithm, task=s.task)
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
        self.membership = Membership(
            self.me,
            heartbeat_s=s.heartbeat_s,
            suspect_after_s=s.suspect_after_s,
            min_nodes=s.min_nodes,
            synchronous=s.fixed_view,
            rng=random.Random(),
        )
        self.greeter = Greeter(lambda address: self.transport.greet(address), self._is_known)
        stack.push_async_callback(self.greeter.close)
        self.seeking = Seeking(s, self.membership.roster, self.greeter)
        self.bridge = Bridge(self.child, self.membership, self.metrics, self.greeter, self._do)
        self.transport = self.bridge.transport = Transport(
            identity=self.me, hello=self._hello, judge=self._judge, events=self.bridge, heartbeat_s=s.heartbeat_s
        )
        self.bound = bound = await self.transport.listen(s.listen)
        stack.push_async_callback(self.transport.close)
        self.me.address = s.advertise or bound
        facts = {"id": self.me.node_id, "name": self.me.name, "address": bound, "http": self.web.address}
        self.folder.tell("node.json", facts)
        log.info("node %s, shoal %s: gRPC on %s, HTTP on http://%s", self.me.node_id, s.shoal, bound, self.web.address)
        if s.insecure:
            log.warning("--insecure: no TLS, so whoever reaches %s can join and read every model", bound)
        self.process.own("trainer", self._hear_trainer())
        self.process.own("ticks", self._tick())
        stack.push_async_callback(self.process.cancel_tasks)

    async def _finish(self, code: int, reason: str) -> int:
        """Leave in order: stop the trainer, tell the others, write what happened."""
        if self.discovery is not None:
            await self.discovery.close()
        if self.ready is None:
            self.child.kill()  # it has nothing to save, and hears nothing while it loads
        elif (trainer := self.process.tasks.get("trainer")) is not None:
            self.child.channel.send("stop")
            await asyncio.wait({trainer}, timeout=STOP_WITHIN_S)
        # Not before: it may have to settle averages with them, and they hang up at once.
        self._do(self.membership.leave(reason.splitlines()[0], finished=code == 0, now=time.monotonic()))
        await self.child.end()
        self.folder.tell(
            "result.json",
            {
                "outcome": reason,
                "exit_code": code,
                "checkpoint": self.checkpoint or self.trained.get("checkpoint", ""),
                "began": self.began,
                "seconds": time.time() - self.began,
                **status.result(
                    self.settings,
                    self.membership,
                    self.ready or {},
                    self.trained,
                    self.averaged,
                    self.transport.traffic.values(),
                ),
            },
        )
        self._say_goodbye(code, reason)
        return code

    def _say_goodbye(self, code: int, reason: str) -> None:
        if self.checkpoint:
            where = f"checkpoint: {self.checkpoint} (go on with --resume)"
        elif before := self.trained.get("checkpoint"):
            where = f"the last checkpoint, from before: {before} (go on with --resume)"
        else:
            where = "no checkpoint was written"
        told = 0 < code < 128  # by `_fail`, when it happened
        if not told:
            where = f"{reason}; {where}"
        if not told or self.membership.view is not None:
            log.info("%s", where)

    # --- the trainer --------------------------------------------------------------------------------------------

    async def _hear_trainer(self) -> None:
        while (packet := await self.child.channel.receive()) is not None:
            self._on_packet(packet)
            if packet.kind == "ready":
                await self._join()
        if not self.process.ended.done():
            code = await self.child.process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            what = f"the trainer process {how} and said nothing; if memory ran out, the kernel's log says so"
            self.process.fail(1, what)

    def _on_packet(self, packet: Packet) -> None:
        fields = packet.fields
        match packet.kind:
            case "send":
                self.bridge.send(fields, packet.body)
            case "free":
                self.child.receiving.give(fields["slot"])
            case "status":
                self.trained = fields
                self.metrics.from_status(fields)
            case "ready":
                self._on_ready(fields)
            case "finished":
                log.info("own part is done after %d gradients; serving until all are", self.trained["gradients"])
                self._phase(pb.PHASE_FINISHED)
            case "averaged":
                self.averaged = fields
                accuracy = "" if fields["accuracy"] is None else f", held-out accuracy {fields['accuracy']:.4f}"
                log.info("mean model of all members: loss %.4f%s; %s", fields["loss"], accuracy, fields["path"])
                self._phase(pb.PHASE_AVERAGED)
            case "event":
                log.log(logging.getLevelNamesMapping()[fields["level"].upper()], "%s", fields["text"])
            case "refused":
                self.bridge.refuse(fields["peer"], PeerError(fields["reason"]))
            case "stopped":
                self.checkpoint = fields["checkpoint"]
                self.child.channel.close()  # the trainer waits for that, so that its last word is not lost
            case "failed":
                self._on_failure(fields)

    def _on_ready(self, fields: dict[str, Any]) -> None:
        self.ready = fields
        self.child.map(fields["slot_bytes"])
        histogram = dict(zip(fields["classes"], fields["histogram"], strict=True)) if fields["classes"] else {}
        held = ", ".join(f"{label}: {count}" for label, count in histogram.items() if count)
        what = f"{fields['samples']} training samples" + (f" ({held})" if held else "")
        log.info("%s; %s on %s", what, self.settings.task, fields["device"])
        self.metrics.labels(histogram)
        self.trained = {"step": fields["step"], "gradients": fields["gradients"], "loss": None, "right": 0, "total": 0}

    async def _join(self) -> None:
        """Only now: a Hello shows the task's fingerprint, which the trainer had to work out first."""
        s = self.settings
        assert self.ready is not None
        self.membership.roster.samples = self.ready["samples"]
        self._phase(pb.PHASE_READY)
        self.discovery = Discovery(
            s.discovery.split(","),
            identity=self.me,
            shoal=s.shoal,
            peers=(*s.peers, *([s.coordinator] if s.coordinator else [])),
            listen=self.bound,
            found=self.greeter.consider,
        )
        await self.discovery.start()

    def _on_failure(self, fields: dict[str, Any]) -> None:
        if fields["traceback"] and not self.process.ended.done():
            print(fields["traceback"], file=sys.stderr)
        self.process.fail(fields["exit_code"], fields["message"])

    def _phase(self, phase: pb.Phase.ValueType) -> None:
        self._tell_membership(phase)
        self._do(self.membership.tick(time.monotonic()))

    def _tell_membership(self, phase: "pb.Phase.ValueType | None" = None) -> None:
        t = self.trained
        loss = t.get("loss")
        self.membership.mine(
            phase=self.membership.roster.mine.phase if phase is None else phase,
            gradients=t.get("gradients", 0),
            step=t.get("step", 0),
            loss=float("nan") if loss is None else loss,
            right=t.get("right") or 0,
            total=0 if t.get("right") is None else t["total"],  # a task without accuracy counts nobody's rows
            view=self.averaged["view"] if self.averaged else "",
        )

    # --- peers: Hello, connections, members ---------------------------------------------------------------------

    def _hello(self) -> pb.Hello:
        assert self.ready is not None
        return hello.own(self.settings, self.me, self.ready, (m.identity for m in self.membership.roster.around()))

    def _judge(self, theirs: pb.Hello) -> str | None:
        """None welcomes; a text says what differs. Whoever is welcome is a member at once."""
        if self.ready is None:
            return f"{self.me.node_id} is {LOADING}; ask again"
        reason = hello.compare(self._hello(), theirs)
        if reason is None and theirs.identity.role == pb.ROLE_COORDINATOR:
            reason = self.seeking.conflict(theirs.identity.node_id)
        if reason is None:
            try:
                self._do(self.membership.met(theirs.identity, theirs.samples, time.monotonic()))
            except Mismatch as error:
                return str(error)
            self.transport.connect(theirs.identity)
            source = f"member {theirs.identity.node_id}"
            for identity in theirs.known[: hello.KNOWN_LIMIT]:
                self.greeter.consider(Candidate(identity.address, source, identity.node_id))
        return reason

    def _is_known(self, candidate: Candidate) -> bool:
        """Whether that address is this node's own, or a live member's. A coordinator that starts again at its address
        counts on being greeted: it counts as known while it is linked."""
        mine = candidate.node_id == self.me.node_id or candidate.address == self.me.address
        around = self.membership.roster.around()
        here = [m for m in around if m.identity.address == candidate.address]
        return mine or any(m.linked or not m.coordinates for m in here)

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
            case Installed(view, model_from):
                self._on_view(view, model_from)
            case Dropped(reason):
                log.info("no view yet: %s", reason)
            case Stop(reason):
                self.process.fail(3, reason)
            case Refused(reason):
                self.process.fail(2, reason)

    def _on_view(self, view: pb.View, model_from: str) -> None:
        if self.settings.resume:
            model_from = ""  # its own model holds gradients that are in no other
        purpose = "train" if view.purpose == pb.PURPOSE_TRAIN else "finish"
        members = [m.node_id for m in view.members]
        if purpose == "finish":
            what = "all are done; forming the mean model"
        elif model_from:
            what = f"joining the training with the model of {model_from}"
        else:
            what = "training goes on" if view.parent else "training begins"
        log.info("view %d of %d members: %s (%s)", view.number, len(members), what, ", ".join(members))
        self._tell_totals()  # before it trains: the run may have all its gradients already
        self.child.channel.send(
            "view",
            id=view.id,
            purpose=purpose,
            members=members,
            samples=list(view.samples),
            round=view.round,
            same_round=view.same_round,
            model_from=model_from,
        )

    # --- ticks and status ---------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        next_status = next_progress = 0.0
        while True:
            now = time.monotonic()
            self._tell_membership()
            self._do(self.membership.tick(now))
            self._tell_totals()
            if self.ready is not None and (why := self.seeking.step(now)):
                self.process.fail(2, why)
            if self.membership.done(now):
                self.process.end(0, "finished")
            if now >= next_status:
                next_status = now + STATUS_S
                self._publish()
            if now >= next_progress and self.ready is not None:
                next_progress = now + PROGRESS_S
                self._log_progress()
            self.web.beat()
            await asyncio.sleep(TICK_S)

    def _tell_totals(self) -> None:
        """The trainer learns the gradients of every other node ever met."""
        others = {node: n for node, n in self.membership.roster.gradients().items() if node != self.me.node_id}
        if others != self._totals and self.ready is not None:
            self._totals = others
            self.child.channel.send("totals", gradients=others)

    def _log_progress(self) -> None:
        if self.membership.view is None:
            others = self.discovery.others_seen() if self.discovery else ""
            waiting = self.membership.waiting or "for members"
            log.info("waiting: %s", "; ".join(filter(None, (waiting, self.seeking.waiting, others))))
            return
        if self.seeking.waiting:
            log.info("waiting: %s", self.seeking.waiting)
        t, (right, total) = self.trained, self.membership.held_out()
        loss = "-" if t.get("loss") is None else f"{t['loss']:.4f}"
        accuracy = f"{right / total:.3f}" if total else "-"
        live = len(self.membership.roster.live())
        log.info("step %s, loss %s, held-out accuracy of all %s, %d others", t.get("step"), loss, accuracy, live)

    def _publish(self) -> None:
        """A snapshot for /v1/status, and the metrics that are read from one."""
        shown = status.status(
            self.settings,
            self.membership,
            self.ready or {},
            self.trained,
            self.transport.traffic.values(),
            time.monotonic(),
            self.seeking.waiting,
        )
        self.web.publish(shown, ready=self.membership.view is not None, why=self.membership.waiting or "loading")
        self.metrics.from_members(shown)
        self.metrics.heartbeats(self._heartbeats_sent, self.bridge.heartbeats_received)
