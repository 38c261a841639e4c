"""The daemon around one worker: starts and stops everything, and is the only file that knows all the others.

It holds no vector and imports no torch, so it goes on answering heartbeats whatever the user's code does. The trainer
(`child.py`) owns the model; the transport owns the connections; membership decides who is in. This file passes on what
one of them says to the others.
"""

import asyncio
import contextlib
import ipaddress
import logging
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from shoal import hello, logs, status
from shoal.child import Child
from shoal.discovery import Candidate, Discovery
from shoal.errors import Mismatch, PeerError, SettingsError, ShoalError
from shoal.fields import parse_address
from shoal.folder import StateFolder
from shoal.link import Packet
from shoal.membership import Membership
from shoal.metrics import Metrics
from shoal.roster import Action, Dropped, Gone, Installed, Joined, Refused, Send, Stop
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
GREET_AGAIN_S = (0.2, 5.0)
"""Waits between Hellos to an address that does not answer: the first, and the longest."""
LOADING = "still loading its model and data"


class Daemon:
    """One node, from its start to its end. `transport.TransportEvents` are its methods up to `refused`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        check_exposure(settings)
        self.began = time.time()
        self.trained: dict[str, Any] = {}  # what the trainer said last about itself
        self.averaged: dict[str, Any] | None = None  # the mean model, once it is formed
        self.ready: dict[str, Any] | None = None
        self.checkpoint = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, str] = {}  # the last complaint about each peer, so that it is told once

    # --- start and end ------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until the run is over, a signal comes, or something fails; returns the exit code. Raises ShoalError."""
        s = self.settings
        logs.configure(s.log, s.log_level)
        self.folder = StateFolder(Path(s.state_dir), s.name)
        self.me = pb.Identity(node_id=self.folder.node_id, incarnation=self.folder.incarnation, name=self.folder.name)
        self.ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.metrics = Metrics(node=self.me.node_id, algorithm=s.algorithm, task=s.task)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack)
                code, reason = await self.ended
                return await self._finish(code, reason)
        finally:
            self.folder.close()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        s = self.settings
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        self.web = Web(s.http, registry=self.metrics.registry)
        stack.callback(self.web.close)
        self.child = await Child.start(s, self.me.node_id, self.me.incarnation)
        stack.push_async_callback(self.child.end)
        self.discovery: Discovery | None = None
        self.transport = Transport(
            identity=self.me, hello=self._hello, judge=self._judge, events=self, heartbeat_s=s.heartbeat_s
        )
        self.bound = bound = await self.transport.listen(s.listen)
        stack.push_async_callback(self.transport.close)
        self.me.address = s.advertise or bound
        self.membership = Membership(
            self.me,
            heartbeat_s=s.heartbeat_s,
            suspect_after_s=s.suspect_after_s,
            min_nodes=s.min_nodes,
            synchronous=s.synchronous,
            rng=random.Random(),
        )
        facts = {"id": self.me.node_id, "name": self.me.name, "address": bound, "http": self.web.address}
        self.folder.tell("node.json", facts)
        log.info("node %s, shoal %s: gRPC on %s, HTTP on http://%s", self.me.node_id, s.shoal, bound, self.web.address)
        if s.insecure:
            log.warning("--insecure: no TLS, so whoever reaches %s can join and read every model", bound)
        self._own("trainer", self._hear_trainer())
        self._own("ticks", self._tick())
        stack.push_async_callback(self._cancel_tasks)

    def _own(self, name: str, work: Any) -> None:
        """One background task, one name; one that ends with an error ends the node."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._task_ended(name, done))

    def _task_ended(self, name: str, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None and not self.ended.done():
            self.ended.set_exception(error)

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, code: int, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result((code, reason))

    def _on_signal(self, number: int) -> None:
        if self.ended.done():
            log.warning("stopping already; a checkpoint is being written")
        self._end(128 + number, f"stopped by {signal.Signals(number).name}")

    async def _finish(self, code: int, reason: str) -> int:
        """Leave in order: tell the others, stop the trainer, write what happened."""
        if self.discovery is not None:
            await self.discovery.close()
        self._do(self.membership.leave(reason, finished=code == 0, now=time.monotonic()))
        if (trainer := self._tasks.get("trainer")) is not None:
            self.child.channel.send("stop")
            await asyncio.wait({trainer}, timeout=STOP_WITHIN_S)
        await self.child.end()
        checkpoint = self.checkpoint
        self.folder.tell(
            "result.json",
            {
                "outcome": reason,
                "exit_code": code,
                "checkpoint": checkpoint,
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
            })
        if checkpoint:
            log.info("%s; checkpoint: %s (go on with --resume)", reason, checkpoint)
        else:
            log.info("%s; no checkpoint was written", reason)
        if code == 3:
            print(f"error: {reason}; checkpoint: {checkpoint or 'none'}", file=sys.stderr)
        return code

    # --- the trainer --------------------------------------------------------------------------------------------

    async def _hear_trainer(self) -> None:
        while (packet := await self.child.channel.receive()) is not None:
            self._on_packet(packet)
            if packet.kind == "ready":
                await self._join()
        if not self.ended.done():
            status = await self.child.process.wait()
            raise ShoalError(f"the trainer process ended with status {status} and said nothing; was it killed?")

    def _on_packet(self, packet: Packet) -> None:
        fields = packet.fields
        match packet.kind:
            case "send":
                self._send(fields["peer"], fields["conn"], fields["slot"], packet.body)
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
                self.refused(fields["peer"], PeerError(fields["reason"]))
                self.transport.reset(fields["peer"], fields["reason"])
            case "stopped":
                self.checkpoint = fields["checkpoint"]
            case "failed":
                self._on_failure(fields)

    def _on_ready(self, fields: dict[str, Any]) -> None:
        self.ready = fields
        self.child.map(fields["slot_bytes"])
        histogram = dict(zip(fields["classes"], fields["histogram"], strict=True)) if fields["classes"] else {}
        held = ", ".join(f"{label}: {count}" for label, count in histogram.items() if count)
        log.info("%d training samples%s; %s on %s", fields["samples"], f" ({held})" if held else "", self.settings.task, fields["device"])
        self.metrics.labels(histogram)
        self.trained = {"step": fields["step"], "gradients": fields["gradients"], "loss": None, "right": 0, "total": 0}

    async def _join(self) -> None:
        """Only now: a Hello shows the task's fingerprint, which the trainer had to work out first."""
        s = self.settings
        assert self.ready is not None
        self.membership.samples = self.ready["samples"]
        self._phase(pb.PHASE_READY)
        self.discovery = Discovery(
            s.discovery.split(","),
            identity=self.me,
            shoal=s.shoal,
            peers=s.peers,
            listen=self.bound,
            found=self._on_candidate,
        )
        await self.discovery.start()

    def _on_failure(self, fields: dict[str, Any]) -> None:
        if fields["traceback"]:
            print(fields["traceback"], file=sys.stderr)
        print(f"error: {fields['message']}", file=sys.stderr)
        self._end(fields["exit_code"], f"failed: {fields['message'].splitlines()[0]}")

    def _send(self, peer: str, conn: int, slot: int, header: bytes) -> None:
        if slot < 0:
            self.transport.send(peer, conn, header, None, lambda: None)
            return
        size = pb.Header.FromString(header).vector.bytes
        self.transport.send(
            peer, conn, header, self.child.segment.slot(slot)[:size], lambda: self.child.channel.send("sent", slot=slot)
        )

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
            total=t.get("total", 0),
            view=self.averaged["view"] if self.averaged else "",
        )

    # --- peers: Hello, connections, members ---------------------------------------------------------------------

    def _hello(self) -> pb.Hello:
        assert self.ready is not None
        return hello.own(self.settings, self.me, self.ready, (m.identity for m in self.membership.roster.live()))

    def _judge(self, theirs: pb.Hello) -> str | None:
        """None welcomes; a text says what differs. Whoever is welcome is a member at once."""
        if self.ready is None:
            return f"{self.me.node_id} is {LOADING}; ask again"
        reason = hello.compare(self._hello(), theirs)
        if reason is None:
            try:
                self._do(self.membership.met(theirs.identity, theirs.samples, time.monotonic()))
            except Mismatch as error:
                return str(error)
            self.transport.connect(theirs.identity)
            for identity in theirs.known[: hello.KNOWN_LIMIT]:
                self._on_candidate(Candidate(identity.address, f"member {theirs.identity.node_id}", identity.node_id))
        return reason

    def _on_candidate(self, candidate: Candidate) -> None:
        """An address that may be a peer's."""
        known = {m.identity.address for m in self.membership.roster.live()}
        name = f"greeting {candidate.address}"
        mine = candidate.node_id == self.me.node_id or candidate.address == self.me.address
        if not mine and candidate.address not in known and name not in self._tasks:
            self._own(name, self._greet(candidate))

    async def _greet(self, candidate: Candidate) -> None:
        """Say Hello until it is answered, or refused. A hint of multicast or of a member is given up at last."""
        wait_s, longest_s = GREET_AGAIN_S
        while True:
            try:
                await self.transport.greet(candidate.address)
                return
            except PeerError as error:
                loading = LOADING in str(error)
                if not loading:
                    self._complain(candidate.address, f"{candidate.address} (by {candidate.source}): {error}")
                if candidate.source != "static" and not loading and wait_s >= longest_s:
                    return
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(longest_s, 2 * wait_s)

    def _complain(self, about: str, text: str) -> None:
        if self._refused.get(about) != text:
            self._refused[about] = text
            log.warning("%s", text)

    # --- transport.TransportEvents ------------------------------------------------------------------------------

    def up(self, peer: pb.Identity, conn: int) -> None:
        """Both streams stand."""
        self.metrics.connection("up")
        self.child.channel.send("up", peer=peer.node_id, conn=conn, incarnation=peer.incarnation)
        self._do(self.membership.link_up(peer.node_id, time.monotonic(), peer.incarnation))

    def down(self, peer_id: str, conn: int, reason: str) -> None:
        """The connection is gone."""
        self.metrics.connection("down")
        log.debug("connection %d to %s is down: %s", conn, peer_id, reason)
        self.child.channel.send("down", peer=peer_id, conn=conn, reason=reason)
        self._do(self.membership.link_down(peer_id, reason, time.monotonic()))

    def control(self, peer_id: str, conn: int, control: pb.Control) -> None:
        """A control frame."""
        try:
            actions = self.membership.heard(peer_id, control, time.monotonic())
        except PeerError as error:
            self.refused(peer_id, error)
            self.transport.reset(peer_id, str(error))
        else:
            self._do(actions)

    async def buffer(self, nbytes: int) -> tuple[int, memoryview]:
        """A receive slot."""
        slot = await self.child.receiving.take()
        return slot, self.child.segment.slot(slot)[:nbytes]

    def release(self, slot: int) -> None:
        """A receive slot that is not used after all."""
        self.child.receiving.give(slot)

    def message(self, peer_id: str, conn: int, header: bytes, slot: int | None) -> None:
        """A whole message, for the trainer."""
        self.child.channel.send("received", body=header, peer=peer_id, conn=conn, slot=-1 if slot is None else slot)

    def refused(self, peer_id: str, error: PeerError) -> None:
        """A peer's fault."""
        self.metrics.refused(type(error).__name__)
        if LOADING not in str(error):
            self._complain(peer_id, f"refused {peer_id}: {error}")

    # --- membership's actions -----------------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Send(peer_id, control):
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
                self._end(3, reason)
            case Refused(reason):
                print(f"error: {reason}", file=sys.stderr)
                self._end(2, reason)

    def _on_view(self, view: pb.View, model_from: str) -> None:
        purpose = "train" if view.purpose == pb.PURPOSE_TRAIN else "finish"
        members = [m.node_id for m in view.members]
        what = "training begins" if purpose == "train" else "all are done; forming the mean model"
        log.info("view %d of %d members: %s (%s)", view.number, len(members), what, ", ".join(members))
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
        totals: dict[str, int] = {}
        while True:
            now = time.monotonic()
            self._tell_membership()
            self._do(self.membership.tick(now))
            others = {k: n for k, n in self.membership.roster.gradients().items() if not k.startswith(f"{self.me.node_id}/")}
            if others != totals and self.ready is not None:
                totals = others
                self.child.channel.send("totals", gradients=others)
            if self.membership.done(now):
                self._end(0, "finished")
            if now >= next_status:
                next_status = now + STATUS_S
                self._publish()
            if now >= next_progress and self.membership.view is not None:
                next_progress = now + PROGRESS_S
                self._log_progress()
            self.web.beat()
            await asyncio.sleep(TICK_S)

    def _log_progress(self) -> None:
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
        )
        self.web.publish(shown, ready=self.membership.view is not None, why=self.membership.waiting or "loading")
        self.metrics.from_members(shown)


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError for an address beyond loopback without an explicit word: there is no TLS yet."""
    host, _ = parse_address(settings.listen)
    if host != "localhost" and not settings.insecure:
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise SettingsError(
                f"listen = {settings.listen} is beyond loopback, where anyone could join and read the models; "
                "give --insecure if that is meant"
            )
