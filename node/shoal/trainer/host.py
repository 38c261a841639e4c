"""`carrier.Host` in a trainer process: carries one worker, as the daemon tells it."""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import time
import traceback
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import torch

from shoal import wire
from shoal.carrier import View
from shoal.checkpoint import Checkpoint
from shoal.data.loading import load_task, local_data, task_document
from shoal.data.task import Place
from shoal.errors import BadFrame, Diverged, PeerError, SettingsError, ShoalError
from shoal.fields import parse_shard
from shoal.history import History
from shoal.learner import Counts, Learner, initial_state
from shoal.link import LEAST_SLOT, RECEIVE, TRANSMIT, Channel, Packet, Segment
from shoal.messages import AVERAGES, Kind, Message, PeerId
from shoal.runtime import Runtime
from shoal.settings import Settings
from shoal.settling import CLIPPED_AT_MOST
from shoal.sharing import Memory
from shoal.trainer import gpu
from shoal.trainer.computing import Computing
from shoal.trainer.keeper import Keeper
from shoal.trainer.outbox import DTYPES, Outbox, bytes_of
from shoal.trainer.windows import Windows, check
from shoal.words import words_of

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
        self.outbox = Outbox(channel, segment)
        self.windows = Windows(memory_fd, self.slot_bytes, wanted=s.share_memory)
        received = range(TRANSMIT, TRANSMIT + RECEIVE)
        self._received = {k: torch.frombuffer(segment.slot(k), dtype=torch.uint8) for k in received}
        self._computing = Computing()
        self._connections: dict[PeerId, int] = {}  # connection numbers
        self._others: dict[PeerId, int] = {}  # gradients, the most that was heard of
        self._work: asyncio.Task[None] | None = None  # the algorithm, later the forming of the mean
        self._beside: set[asyncio.Task[None]] = set()
        self._counts = Counts.nothing()
        self._sound = True  # the model is worth a checkpoint
        self._warned_of: set[PeerId] = set()

    # --- carrier.Host -------------------------------------------------------------------------------------------

    def send(self, peer: PeerId, message: Message) -> None:
        """To a peer, by way of the daemon; the own count of gradients rides along."""
        if peer in self._connections:
            conn = self._connections[peer]
            heard = self._passed_on() if message.kind in (Kind.OFFER, Kind.ACCEPT) else ()
            self.outbox.send(peer, conn, dataclasses.replace(message, gradients=self.runtime.gradients, heard=heard))

    def room(self, elements: int, dtype: torch.dtype) -> torch.Tensor | None:
        """In shared memory."""
        return self.outbox.lend(elements, dtype)

    def is_read(self, memory: torch.Tensor) -> bool:
        """By the daemon, or by another node of this machine."""
        return self.outbox.is_read(memory)

    def _passed_on(self) -> tuple[tuple[PeerId, int], ...]:
        """The counts of others that were learnt last. They spread with the averages: heartbeats alone are late by many
        gradients."""
        return tuple(itertools.islice(reversed(self._others.items()), wire.HEARD_LIMIT))

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
        return self.runtime.gradients + sum(self._others.values())

    def gradients_of(self, member: PeerId) -> int:
        """Of one member, as far as known here."""
        return self.runtime.gradients if member == self.runtime.me else self._others.get(member, 0)

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
            memory=None if self.windows.own is None else self.windows.own._asdict(),
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
        fields, runtime = packet.fields, self.runtime
        match packet.kind:
            case "received":
                self._on_message(fields, packet.body)
            case "sent":
                self.outbox.sent(fields["slot"])
            case "up":
                self._on_up(fields)
            case "down":
                self._connections.pop(fields["peer"], None)
                self.outbox.unread_by(fields["peer"])
                runtime.down(fields["peer"])
                self.windows.close(fields["peer"])
            case "totals":
                for node, gradients in fields["gradients"].items():
                    self._learn(node, gradients)
            case "view":
                members, samples = tuple(fields["members"]), tuple(fields["samples"])
                cut = tuple((a, b) for a, b in fields["cut"])
                view = View(
                    fields["id"], members, samples, fields["round"], fields["same_round"], fields["parent"], cut
                )
                self._on_view(view, fields["purpose"], fields["model_from"])
            case "pause":
                self._pause()
            case other:
                raise BadFrame(f"packet {other!r} from the daemon is unknown")

    def _on_up(self, fields: dict[str, Any]) -> None:
        peer, memory = fields["peer"], fields["memory"]
        self._connections[peer] = fields["conn"]
        why_not = self.windows.open(peer, None if memory is None else Memory(**memory))
        if not why_not:
            self.outbox.send(peer, fields["conn"], Message(Kind.MAPPED))
        elif memory is not None:
            log.debug("vectors of %s travel: %s", peer, why_not)
        self.runtime.up(peer, coordinates=fields["coordinates"])

    def _on_message(self, fields: dict[str, Any], header: bytes) -> None:
        peer, slot = fields["peer"], fields["slot"]
        done: Callable[[], None] | None = None  # with the memory of the vector
        try:
            message, shape = wire.decode(header)
            if shape is not None:
                if shape.slot is None:
                    vector = self._received[slot][: shape.nbytes].view(DTYPES[shape.dtype])
                    finite, done = fields["finite"], functools.partial(self.channel.send, "free", slot=slot)
                else:
                    done = functools.partial(self._taken, peer, fields["conn"], shape.ticket)
                    vector = self.windows.vector(peer, shape)
                    finite = self._looked_at(peer, message.kind, shape, vector)
                if message.kind in AVERAGES and self.runtime.state.device.type == "cpu":
                    weakref.finalize(vector, done).atexit = False
                    done = None
                else:
                    vector = vector.to(self.runtime.state.device, copy=True)
                message = dataclasses.replace(message, vector=vector, finite=finite)
                del vector  # but for the message nobody holds it here
            if message.kind is Kind.MAPPED and peer in self.windows:
                self.outbox.read_by(peer, self.windows.presence(peer))
            elif message.kind is Kind.TAKEN:
                self.outbox.taken(peer, message.seq)
            elif message.kind is not Kind.MAPPED and peer in self._connections:
                for node, gradients in ((peer, message.gradients), *message.heard):
                    self._learn(node, gradients)
                refused = self.runtime.settlement.tally.refused
                self.runtime.received(peer, message)
                if self.runtime.settlement.tally.refused > refused:
                    self._warn_of(peer)
        except PeerError as error:
            if self.settings.synchronous:
                self._failed(error)  # its post would not get better by being repeated
            else:
                self.channel.send("refused", peer=peer, conn=fields["conn"], reason=str(error))
        finally:
            if done is not None:
                done()

    def _looked_at(self, peer: PeerId, kind: Kind, shape: wire.Shape, vector: torch.Tensor) -> bool:
        """Whether what lies in a peer's memory is finite. Reading it is what an average costs, so half the way to it is
        made at the same time. Raises BadVector."""
        halfway = self.runtime.meet(vector) if kind in AVERAGES else None
        if halfway is None:
            return check(peer, shape, vector)
        data, words, size = bytes_of(halfway.model), 0, vector.element_size()

        def beside(start: int, stop: int) -> None:
            nonlocal words
            halfway.make(start, stop)
            words += words_of(data[size * start : size * stop])

        finite = check(peer, shape, vector, beside)
        self.outbox.summed(halfway.model, words)
        return finite

    def _taken(self, peer: PeerId, conn: int, ticket: int) -> None:
        """A peer's slot is not read any more; of an earlier connection it knows that by itself."""
        if self._connections.get(peer) == conn:
            self.outbox.send(peer, conn, Message(Kind.TAKEN, seq=ticket))

    def _warn_of(self, peer: PeerId) -> None:
        """Once, and not for each of its vectors: they will hardly become better."""
        if peer not in self._warned_of:
            self._warned_of.add(peer)
            s = self.settings
            most = s.max_distance or (CLIPPED_AT_MOST if s.clip_distance else 0.0)
            far = f", or is further away than {most:g}" if most else ""
            text = f"vector from {peer} holds NaN or Inf{far}: this node does not average with it"
            self.warn(text)

    def _learn(self, node: PeerId, gradients: int) -> None:
        if node != self.runtime.me and gradients > self._others.get(node, -1):
            self._others.pop(node, None)  # to the end: the order is that of learning
            self._others[node] = gradients

    def _on_view(self, view: View, purpose: str, model_from: str) -> None:
        if purpose == "train":
            self.runtime.install(view)  # raises MemberLost, which ends this process with its exit code
            if self.runtime.mixing is not None:
                self.channel.send("event", level="info", text=self.runtime.mixing.describe())
            if self.settings.fixed_view:
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
        while self.clock() < until and self.runtime.settlement.unsettled(self._connections):
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
        runtime, counts = self.runtime, self._counts
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
            gpu=gpu.memory(runtime.state.device),
            right=counts.right,
            total=counts.total,
            exchanges={**dataclasses.asdict(settlement.tally), "mixed": runtime.mixer.taken},
            in_doubt=settlement.in_doubt,
            unconfirmed=settlement.unconfirmed + runtime.post.unconfirmed,
            seconds=runtime.seconds,
            timed_steps=runtime.stopwatch.steps,
            exchange_seconds=runtime.take_durations(),
            waits=runtime.waits(),
            in_memory=[peer for peer in self.outbox.readers if peer in self.windows],
            shared_bytes=self.outbox.shared_bytes,
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


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda:N as a device. Raises SettingsError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"unknown device {name!r}; known: auto, cpu, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"unknown device {name!r}; known: auto, cpu, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"device {name} is not there: torch sees {torch.cuda.device_count()} GPUs on this machine")
    return device
