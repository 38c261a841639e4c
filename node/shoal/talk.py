"""What the daemon and its trainer say to each other about the run: the trainer's progress, and what it is to do.

The messages between workers, which they pass on as well, are `bridge.py`'s.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from shoal.bridge import Bridge
from shoal.child import Child
from shoal.errors import PeerError
from shoal.link import Packet
from shoal.membership import Membership
from shoal.metrics import Metrics
from shoal.process import AGAIN, Process
from shoal.v1 import node_pb2 as pb

log = logging.getLogger("shoal")

STOP_WITHIN_S = 3.5
"""A trainer that has not written its checkpoint by then is killed; with what follows, Ctrl-C takes below 5 s."""


class Talk:
    """With one trainer, from its first word to its last.

    `task` is the task's name. `joined()` is awaited once it is loaded with its data, before the trainer's next word
    is heard; `phase(phase)` is told how far the run has come, `paused(round, lacks_model)` where it has stopped. A
    trainer that fails or dies ends `process`; after one that dies at work another life may follow.
    """

    def __init__(
        self,
        task: str,
        child: Child,
        bridge: Bridge,
        metrics: Metrics,
        process: Process,
        *,
        joined: Callable[[], Awaitable[None]],
        phase: Callable[[pb.Phase.ValueType], None],
        paused: Callable[[int, bool], None],
    ) -> None:
        self.ready: dict[str, Any] | None = None  # of the task and its data, once they are loaded
        self.trained: dict[str, Any] = {}  # what it said last about itself
        self.averaged: dict[str, Any] | None = None  # the mean model, once it is formed
        self.checkpoint = ""  # path of the one that it wrote at its end
        self._task, self._child, self._bridge = task, child, bridge
        self._metrics, self._process = metrics, process
        self._joined, self._phase, self._paused = joined, phase, paused
        self._totals: Mapping[str, int] = {}
        self._view = ""  # id of the view that it was told of last

    # --- what the trainer hears ---------------------------------------------------------------------------------

    def install(self, view: pb.View, model_from: str) -> None:
        """Take part in `view`, first with the model of another if one is named."""
        self._view = view.id
        self._child.channel.send(
            "view",
            id=view.id,
            purpose="train" if view.purpose == pb.PURPOSE_TRAIN else "finish",
            members=[m.node_id for m in view.members],
            samples=list(view.samples),
            round=view.round,
            same_round=view.same_round,
            parent=view.parent,
            cut=[[edge.a, edge.b] for edge in view.cut],
            most=view.most,
            model_from=model_from,
        )

    def pause(self) -> None:
        """Stop in the view that holds; it answers at once."""
        self._child.channel.send("pause")

    def tell_totals(self, others: Mapping[str, int]) -> None:
        """The gradients of every other node ever met, where that is news."""
        if others != self._totals and self.ready is not None:
            self._totals = others
            self._child.channel.send("totals", gradients=others)

    async def stop(self) -> None:
        """Let it settle and write its checkpoint; `Child.end` is for what is left of it then."""
        if self.ready is None:
            self._child.kill()  # it has nothing to save, and hears nothing while it loads
        elif (trainer := self._process.tasks.get("trainer")) is not None:
            self._child.channel.send("stop")
            await asyncio.wait({trainer}, timeout=STOP_WITHIN_S)

    # --- what the others hear of it -----------------------------------------------------------------------------

    def tell(self, membership: Membership, phase: "pb.Phase.ValueType | None" = None) -> None:
        """Membership gets what the trainer said last, and its new phase if there is one."""
        t = self.trained
        loss = t.get("loss")
        membership.mine(
            phase=membership.roster.mine.phase if phase is None else phase,
            gradients=t.get("gradients", 0),
            step=t.get("step", 0),
            loss=float("nan") if loss is None else loss,
            right=t.get("right") or 0,
            total=0 if t.get("right") is None else t["total"],  # a task without accuracy counts nobody's rows
            view=self.averaged["view"] if self.averaged else "",
        )

    # --- what it says -------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """The process's task "trainer": until the trainer has closed its end."""
        while (packet := await self._child.channel.receive()) is not None:
            self._on_packet(packet)
            if packet.kind == "ready":
                await self._joined()
        if not self._process.ended.done():
            code = await self._child.process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            what = f"the trainer process {how} and said nothing; if memory ran out, the kernel's log says so"
            if self.ready is None:
                self._process.fail(1, what)
            else:
                log.error("%s", what)
                self._process.end(AGAIN, what)

    def _on_packet(self, packet: Packet) -> None:
        fields = packet.fields
        match packet.kind:
            case "send":
                self._bridge.send(fields, packet.body)
            case "free":
                self._child.receiving.give(fields["slot"])
            case "status":
                self.trained = fields
                self._metrics.from_status(fields)
            case "ready":
                self._on_ready(fields)
            case "finished" if fields["view"] not in ("", self._view):
                pass  # that view has fallen
            case "finished":
                log.info("own part is done after %d gradients; serving until all are", self.trained["gradients"])
                self._phase(pb.PHASE_FINISHED)
            case "averaged":
                self.averaged = fields
                accuracy = "" if fields["accuracy"] is None else f", held-out accuracy {fields['accuracy']:.4f}"
                log.info("mean model of all members: loss %.4f%s; %s", fields["loss"], accuracy, fields["path"])
                self._phase(pb.PHASE_AVERAGED)
            case "paused":
                self._paused(fields["round"], fields["lacks_model"])
            case "event":
                log.log(logging.getLevelNamesMapping()[fields["level"].upper()], "%s", fields["text"])
            case "refused":
                self._bridge.refuse(fields["peer"], PeerError(fields["reason"]))
            case "stopped":
                self.checkpoint = fields["checkpoint"]
                self._child.channel.close()  # the trainer waits for that, so that its last word is not lost
            case "failed":
                self._on_failure(fields)

    def _on_ready(self, fields: dict[str, Any]) -> None:
        self.ready = fields
        self._child.map(fields["slot_bytes"])
        histogram = dict(zip(fields["classes"], fields["histogram"], strict=True)) if fields["classes"] else {}
        held = ", ".join(f"{label}: {count}" for label, count in histogram.items() if count)
        what = f"{fields['samples']} training samples" + (f" ({held})" if held else "")
        log.info("%s; %s on %s", what, self._task, fields["device"])
        self._metrics.labels(histogram)
        self._metrics.resumed(fields["gradients"])
        self.trained = {"step": fields["step"], "gradients": fields["gradients"], "loss": None, "right": 0, "total": 0}

    def _on_failure(self, fields: dict[str, Any]) -> None:
        if fields["traceback"] and not self._process.ended.done():
            print(fields["traceback"], file=sys.stderr)
        self._process.fail(fields["exit_code"], fields["message"])
