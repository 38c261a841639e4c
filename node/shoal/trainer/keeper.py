"""What a trainer writes to disk beside its history: checkpoints, the best model so far, and the mean model."""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.checkpoint import Checkpoint, read, read_model, write, write_model
from shoal.errors import CheckpointError, SettingsError
from shoal.history import History
from shoal.learner import Counts
from shoal.runtime import Runtime
from shoal.settings import Settings
from shoal.vector import is_finite

BEST = "best.safetensors"


class Keeper:
    """Files of one node's state folder. Snapshots are taken on the worker's loop, files written in a thread."""

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        task_document: dict[str, Any],
        history: History,
        alarm: Callable[[str], None],
        incarnation: int,
    ) -> None:
        self.settings, self.runtime, self.task_document, self.history = settings, runtime, task_document, history
        self.folder = Path(settings.state_dir)
        self.checkpoint_path = self.folder / "checkpoint.safetensors"
        self.incarnation = incarnation
        self.saved_at: float | None = None
        self.saved = ""  # path of the checkpoint to go on from, once there is one of this run
        self.failures = 0
        self._alarm = alarm
        self._best = (-math.inf, -math.inf)
        self.mark()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")

    def resume(self) -> None:
        """Put the worker where its checkpoint was. Raises CheckpointError."""
        run = self.settings.run_document()
        saved = read(self.checkpoint_path, task_document=self.task_document, run_document=run)
        self.saved = str(self.checkpoint_path)
        runtime, device = self.runtime, self.runtime.state.device
        runtime.put(saved.state)
        runtime.gradients, runtime.steps, runtime.round = saved.gradients, saved.step, saved.round
        doubts, kept = {}, {}
        for name, tensor in saved.memory.items():
            if name.startswith("doubt."):
                doubts[name] = tensor.to(device)
            elif name != "batches":
                kept[name] = tensor.to(device)
        runtime.memory.update(kept)
        runtime.settlement.restore(saved.settlement, doubts)
        runtime.learner.restore_rng(saved.memory["batches"])
        self.mark()
        version, internal, gauss = saved.rng["algorithm"]
        runtime.rng.setstate((version, tuple(internal), gauss))
        self._best = self._best_so_far()
        self.history.write("event", what="resumed", step=saved.step, gradients=saved.gradients)

    def mark(self) -> None:
        """A step is done. A batch that is drawn from now on belongs to the next, and is drawn again after a resume."""
        self._drawn = self.runtime.learner.rng_state()

    def snapshot(self) -> Checkpoint:
        """Everything that goes into a checkpoint, as it was after the last whole step."""
        runtime = self.runtime
        settlement, doubts = runtime.settlement.export()
        version, internal, gauss = runtime.rng.getstate()
        tensors = {**runtime.memory, **doubts, "batches": self._drawn}
        return Checkpoint(
            task_document=self.task_document,
            run_document=self.settings.run_document(),
            node_id=runtime.me,
            incarnation=self.incarnation,
            step=runtime.steps,
            gradients=runtime.gradients,
            round=runtime.round,
            state=_copy(runtime.state),
            memory={name: _copy(tensor) for name, tensor in tensors.items()},
            rng={"algorithm": [version, list(internal), gauss]},
            settlement=settlement,
        )

    async def save(self, checkpoint: Checkpoint) -> str:
        """Write it; returns its path, or "" after raising the alarm (a full disk is no reason to stop)."""
        if not is_finite(checkpoint.state):
            self._alarm("the model is not finite: no checkpoint is written, the one from before stays")
            return ""
        self.history.flush()  # of no step that a checkpoint holds may the line be missing after a crash
        try:
            await self._in_thread(lambda: write(self.checkpoint_path, checkpoint))
        except OSError as error:
            self.failures += 1
            self._alarm(f"cannot write {self.checkpoint_path}: {error}")
            return ""
        self.saved_at, self.saved = checkpoint.saved_at, str(self.checkpoint_path)
        self.history.write("event", what="checkpoint", step=checkpoint.step)
        return self.saved

    async def judge(self, state: Tensor, step: int, counts: Counts) -> None:
        """Keep `state` as the best model if its held-out accuracy, then its loss, is the best so far."""
        score = (-math.inf if counts.accuracy is None else counts.accuracy, -counts.loss)
        if score > self._best:
            self._best = score
            about = {"step": step, "held_out_accuracy": counts.accuracy, "held_out_loss": counts.loss}
            try:
                await self.write_model(BEST, state, about)
            except SettingsError as error:
                self.failures += 1
                self._alarm(str(error))

    def _best_so_far(self) -> tuple[float, float]:
        """Score of the best model of the run that is resumed."""
        try:
            _, about = read_model(self.folder / BEST)
            accuracy, loss = about["held_out_accuracy"], float(about["held_out_loss"])
        except (CheckpointError, LookupError, TypeError, ValueError):
            return self._best
        return -math.inf if accuracy is None else float(accuracy), -loss

    async def write_model(self, name: str, state: Tensor, about: dict[str, Any]) -> Path:
        """A file that plain torch loads into the task's model. Raises SettingsError when it cannot be written."""
        path = self.folder / name
        tensors = self.runtime.learner.model.state_dict(_copy(state))
        about = {"task": self.settings.task, "run": self.settings.run_document(), **about}
        try:
            await self._in_thread(lambda: write_model(path, tensors, about))
        except OSError as error:
            raise SettingsError(f"cannot write {path}: {error.strerror or error}") from error
        return path

    async def _in_thread(self, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True) if tensor.dtype != torch.uint8 else tensor.clone()
