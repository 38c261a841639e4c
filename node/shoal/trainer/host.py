"""`carrier.Host` in a trainer process: carries one worker, as the daemon tells it."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import torch

from shoal.carrier import View
from shoal.checkpoint import Checkpoint
from shoal.data.loading import load_task, local_data, task_document
from shoal.data.task import Place
from shoal.errors import BadFrame, Diverged, ShoalError
from shoal.fields import parse_shard
from shoal.history import History
from shoal.learner import Counts, Learner, initial_state
from shoal.link import LEAST_SLOT, RECEIVE, TRANSMIT, Channel, Packet, Segment
from shoal.messages import Message, PeerId
from shoal.runtime import Runtime
from shoal.settings import Settings
from shoal.trainer.computing import Computing
from shoal.trainer.device import choose_device, gpu_memory
from shoal.trainer.keeper import Keeper
from shoal.trainer.mail import Mail

T = TypeVar("T")

log = logging.getLogger(__name__)

STATUS_EVERY_S = 0.2
LEAVE_WITHIN_S = 1.0
"""How long a stopping trainer waits for open exchanges to settle before it writes its checkpoint."""


class TrainerHost:
    """One worker of one node. Raises UserError from the constructor when task, data, device or checkpoint are bad."""

    def __init__(self, channel: Channel, memory_fd: int, settings: Settings, me: PeerId, incarnation: int) -> None:
        s = self.settings = settings
        self.channel = channel
        device = choose_device(s.device)
        shard, shards = parse_shard(s.shard)
        self.task = load_task(s.task)
        data = local_data(self.task, Place(shard, shards, s.partition, s.seed, Path(s.data_dir), s.download))
        model, state = initial_state(self.task, s.seed, device, s.precision)
        learner = Learner(
            self.task,
            data,
            model,
            batch=s.batch,
            seed=s.seed,
            shard=shard,
            weight_decay=s.decay_in_gradient,
            factor=s.emulate_attack,
            device=device,
        )
        self.task_document = task_document(self.task, model.layout)
        self.history = History(Path(s.state_dir) / "history.jsonl")
        self.history.write("event", what="began", epoch_s=time.time(), incarnation=incarnation)
        self.runtime = Runtime(me, incarnation, learner, state, s, self)
        self.keeper = Keeper(s, self.runtime, self.task_document, self.history, self._alarm, incarnation)
        if s.resume:
            self.keeper.resume()
        segment = Segment(memory_fd)
        self.slot_bytes = max(LEAST_SLOT, state.nbytes)
        segment.size(self.slot_bytes, TRANSMIT + RECEIVE)
        self.mail = Mail(channel, segment, self.runtime, s, warn=self.warn, failed=self._failed)
        self._computing = Computing()
        self._work: asyncio.Task[None] | None = None  # the algorithm, later the forming of the mean
        self._beside: set[asyncio.Task[None]] = set()
        self._counts = Counts.nothing()
        self._sound = True  # the model is worth a checkpoint

    # --- carrier.Host -------------------------------------------------------------------------------------------

    def send(self, peer: PeerId, message: Message) -> None:
        """To a peer, by way of the daemon."""
        self.mail.send(peer, message)

    def room(self, elements: int, dtype: torch.dtype) -> torch.Tensor | None:
        """In shared memory."""
        return self.mail.outbox.lend(elements, dtype)

    def is_read(self, memory: torch.Tensor) -> bool:
        """By the daemon, or by another node of this machine."""
        return self.mail.outbox.is_read(memory)

    async def compute(self, work: Callable[[], T], cost: float = 1.0) -> T:
        """In the second thread, one piece of work at a time, so that this loop answers peers meanwhile."""
        return await self._computing.submit(functools.partial(self._paced, work, cost))

    def computes(self) -> bool:
        """Whether the second thread has something to do, whoever still waits for it."""
        return self._computing.busy()

    def _paced(self, work: Callable[[], T], cost: float) -> T:
        result = work()
        if self.settings.emulate_compute_s:
            time.sleep(cost * self.settings.emulate_compute_s)
        return result

    def clock(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    def total_gradients(self) -> int:
        """Own gradients and what is known of the others'."""
        return self.runtime.gradients + sum(self.mail.others.values())

    def gradients_of(self, member: PeerId) -> int:
        """Of one member, as far as known here."""
        return self.runtime.gradients if member == self.runtime.me else self.mail.others.get(member, 0)

    def record(self, event: str, **fields: Any) -> None:
        """One line of history."""
        self.history.write(event, **fields)

    def warn(self, text: str) -> None:
        """A line in the daemon's log."""
        self.channel.send("event", level="warning", text=text)

    def counted(self) -> None:
        """After each gradient: history, and now and then a checkpoint or an evaluation. Raises Diverged."""
        runtime, s = self.runtime, self.settings
        loss = runtime.computed.last_loss
        if loss is not None and not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} after {runtime.steps} steps: the model has diverged; "
                f"try a step size below --lr {s.lr}"
            )
        batch = runtime.learner.take_drawn()  # none: the answer of a round that was missed, or all samples
        fields = {} if batch is None else {"batch": batch}
        self.history.write("step", step=runtime.steps, loss=loss, gradients=runtime.gradients, **fields)
        self.keeper.mark()
        if s.checkpoint_every and runtime.steps % s.checkpoint_every == 0:
            self._spawn(self._save(self.keeper.snapshot()), "checkpoint")
        if s.eval_every and runtime.steps % s.eval_every == 0:
            self._spawn(self._evaluate(), "evaluation")

    async def _save(self, checkpoint: Checkpoint) -> None:
        await self.keeper.save(checkpoint)

    async def _evaluate(self) -> None:
        state, step = self.runtime.state.clone(), self.runtime.steps
        counts = await self.compute(lambda: self.runtime.learner.evaluate(state))
        self._counts = counts
        self.history.write("eval", step=step, right=counts.right, total=counts.total, loss=counts.loss)
        await self.keeper.judge(state, step, counts)

    # --- what the daemon says -----------------------------------------------------------------------------------

    def ready(self) -> None:
        """Tell the daemon what was loaded."""
        runtime = self.runtime
        self.channel.send(
            "ready",
            elements=runtime.state.numel(),
            element_bytes=runtime.state.element_size(),
            slot_bytes=self.slot_bytes,
            task_document=self.task_document,
            samples=runtime.learner.samples,
            histogram=runtime.learner.histogram,
            classes=list(self.task.classes),
            memory=None if (own := self.mail.windows.own) is None else own._asdict(),
            step=self._step,
            gradients=runtime.gradients,
            device=str(runtime.state.device),
        )

    async def serve(self) -> None:
        """Until the daemon says stop, or is gone."""
        ticker = asyncio.get_running_loop().create_task(self._report(), name="status")
        try:
            while (packet := await self.channel.receive()) is not None:
                if packet.kind == "stop":
                    await self._stop()
                    return
                self._on_packet(packet)
        finally:
            ticker.cancel()
            self.history.close()

    def _on_packet(self, packet: Packet) -> None:
        fields, mail = packet.fields, self.mail
        match packet.kind:
            case "received":
                mail.received(fields["peer"], fields["conn"], packet.body, fields["slot"], finite=fields["finite"])
            case "sent":
                mail.outbox.sent(fields["slot"])
            case "up":
                mail.up(fields["peer"], fields["conn"], fields["memory"], coordinates=fields["coordinates"])
            case "down":
                mail.down(fields["peer"])
            case "totals":
                for node, gradients in fields["gradients"].items():
                    mail.learn(node, gradients)
            case "view":
                members, samples = tuple(fields["members"]), tuple(fields["samples"])
                cut = tuple((a, b) for a, b in fields["cut"])
                view = View(
                    fields["id"],
                    members,
                    samples,
                    fields["round"],
                    fields["same_round"],
                    fields["parent"],
                    cut,
                    fields["most"],
                )
                self._on_view(view, fields["purpose"], fields["model_from"])
            case "pause":
                self._pause()
            case other:
                raise BadFrame(f"packet {other!r} from the daemon is unknown")

    def _on_view(self, view: View, purpose: str, model_from: str) -> None:
        if purpose == "train":
            self.runtime.install(view)  # raises MemberLost, which ends this process with its exit code
            if self.runtime.mixing is not None:
                self.channel.send("event", level="info", text=self.runtime.mixing.describe())
            if self.settings.fixed_view:
                self.runtime.lacks_model = bool(model_from)
                self._stop_work()
            if self._work is None:
                self._work = self._spawn(self._train(model_from), "the algorithm")
        else:
            self._stop_work()
            self._work = self._spawn(self._finish(view), "the mean model")

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
            self._work = None

    def _pause(self) -> None:
        """The view has fallen: nothing of it is changed any more once this returns."""
        self._stop_work()
        self.channel.send("paused", round=self.runtime.pause(), lacks_model=self.runtime.lacks_model)

    async def _train(self, model_from: str) -> None:
        if model_from:
            await self.runtime.fetch_model(model_from)
            self.history.write("event", what="joined", model_from=model_from)
        await self.runtime.run()
        await self._evaluate()
        self.history.write("event", what="finished", step=self.runtime.steps, gradients=self.runtime.gradients)
        self._report_now()
        view = self.runtime.view
        self.channel.send("finished", view=view.id if view is not None and self.settings.fixed_view else "")

    async def _finish(self, view: View) -> None:
        mean, counts = await self.runtime.form_mean(view)
        about = {"members": list(view.members), "held_out_accuracy": counts.accuracy, "held_out_loss": counts.loss}
        path = await self.keeper.write_model("model.safetensors", mean, about)
        self.history.write("eval", what="mean model", right=counts.right, total=counts.total, loss=counts.loss)
        self.channel.send(
            "averaged",
            view=view.id,
            path=str(path),
            right=counts.right,
            total=counts.total,
            loss=counts.loss,
            accuracy=counts.accuracy,
        )

    async def _stop(self) -> None:
        """Settle what is open, for a moment; then write the checkpoint, unless there is nothing worth it."""
        self._stop_work()
        self.runtime.retire()
        until = self.clock() + LEAVE_WITHIN_S
        while self.clock() < until and self.runtime.settlement.unsettled(self.mail.connections):
            with contextlib.suppress(TimeoutError):
                packet = await asyncio.wait_for(self.channel.receive(), until - self.clock())
                if packet is None:
                    break
                if packet.kind != "view":
                    self._on_packet(packet)
        worth = self._sound and self.runtime.view is not None
        self.channel.send("stopped", checkpoint=await self.keeper.save(self.keeper.snapshot()) if worth else "")

    # --- own tasks and status -----------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._beside.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._beside.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """Tell the daemon, which will say stop."""
        self._sound = self._sound and not isinstance(error, Diverged)
        report_failure(self.channel, error)

    def _alarm(self, text: str) -> None:
        self.channel.send("event", level="error", text=text)

    @property
    def _step(self) -> int:
        return self.runtime.round if self.settings.synchronous else self.runtime.steps

    async def _report(self) -> None:
        while True:
            self._report_now()
            await asyncio.sleep(STATUS_EVERY_S)

    def _report_now(self) -> None:
        runtime, mail, counts = self.runtime, self.mail, self._counts
        settlement = runtime.settlement
        apart = max(settlement.apart, runtime.mixer.apart, key=lambda one: one.chances)
        self.channel.send(
            "status",
            step=self._step,
            gradients=runtime.gradients,
            loss=runtime.loss if math.isfinite(runtime.loss) else None,
            lr=runtime.lr,
            distance=apart.distance,
            norm=apart.norm,
            gpu=gpu_memory(runtime.state.device),
            right=counts.right,
            total=counts.total,
            exchanges={**dataclasses.asdict(settlement.tally), "mixed": runtime.mixer.taken},
            in_doubt=settlement.in_doubt,
            unconfirmed=settlement.unconfirmed + runtime.post.unconfirmed,
            seconds=runtime.seconds,
            timed_steps=runtime.stopwatch.steps,
            exchange_seconds=runtime.take_durations(),
            waits=runtime.waits(),
            in_memory=[peer for peer in mail.outbox.readers if peer in mail.windows],
            shared_bytes=mail.outbox.shared_bytes,
            saved_at=self.keeper.saved_at,
            checkpoint=self.keeper.saved,
            save_failures=self.keeper.failures,
        )


def report_failure(channel: Channel, error: BaseException) -> None:
    """Tell the daemon why this process ends: a traceback only for what is our own fault."""
    if isinstance(error, ShoalError):
        channel.send("failed", message=str(error), exit_code=error.exit_code, traceback="")
    else:
        text = "".join(traceback.format_exception(error))
        channel.send("failed", message=f"{type(error).__name__}: {error}", exit_code=1, traceback=text)
