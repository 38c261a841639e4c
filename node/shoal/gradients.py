"""One worker's gradients: computed beside its loop, and kept for as long as a round may have to be done again."""

import asyncio

import torch
from torch import Tensor

from shoal.carrier import Host
from shoal.learner import Gradient, Learner
from shoal.state import State
from shoal.stopwatch import Stopwatch

SMOOTHING = 0.05
"""Weight of a new minibatch in the loss that is shown."""


class Gradients:
    """Of the d parameters in `state`, whose b float buffers they are computed with, and change."""

    def __init__(self, learner: Learner, state: State, host: Host, stopwatch: Stopwatch, *, batch: int) -> None:
        self._learner, self._host, self._stopwatch, self._batch = learner, host, stopwatch, batch
        self._state, self._d = state, learner.model.layout.d
        self._g = torch.empty_like(state.now[: self._d])  # where they are made
        self._kept: asyncio.Future[Gradient] | None = None
        self.loss = float("nan")  # a running mean over minibatches
        self.last_loss: float | None = None  # of the last gradient, once there is one in this process

    async def minibatch(self, *, keep: bool) -> Tensor:
        """(d,): the next minibatch's at the state as it is now; it holds until the next one is asked for.

        With `keep`, one that was asked for before and not forgotten is given again: the caller was stopped, and does
        its round again with x as it was.
        """
        with self._stopwatch.at("compute"):
            if not keep:
                return (await self._computed()).g
            if self._kept is None:
                self._kept = asyncio.ensure_future(self._computed())
                self._kept.add_done_callback(_looked_at)
            return (await asyncio.shield(self._kept)).g

    def forget(self) -> None:
        """The gradient is applied, or of no use any more: the next one is of another minibatch."""
        self._kept = None

    async def _computed(self) -> Gradient:
        pulled: Tensor | None = None
        if self._host.computes():  # the model is in use
            pulled = self._state.now.clone()
        else:
            self._learner.pull(self._state.now)
        result = await self._host.compute(lambda: self._learner.gradient(pulled, out=self._g))
        if result.buffers is not None:
            self._state.changing()[self._d :].add_(result.buffers)
        first = self.loss != self.loss
        self.loss = result.loss if first else (1 - SMOOTHING) * self.loss + SMOOTHING * result.loss
        self.last_loss = result.loss
        return result

    async def full(self, x: Tensor) -> Tensor:
        """(d,): the mean over all own samples. Its loss is the one that is shown from here on."""
        at, cost = self._beside_buffers(x), self._learner.samples / self._batch
        with self._stopwatch.at("compute"):
            result = await self._host.compute(lambda: self._learner.full(at), cost)
        self.loss = self.last_loss = result.loss
        return result.g

    async def change(self, w: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        """(d,): sum over `rows` of grad f_r(w) - grad f_r(x)."""
        if not len(rows):
            return torch.zeros_like(w)
        at, snapshot = (self._beside_buffers(v) for v in (w, x))
        cost = 2 * len(rows) / self._batch
        with self._stopwatch.at("compute"):
            return await self._host.compute(lambda: self._learner.change(at, snapshot, rows), cost)

    def _beside_buffers(self, x: Tensor) -> Tensor:
        return torch.cat((x, self._state.now[self._d :]))


def _looked_at(kept: "asyncio.Future[Gradient]") -> None:
    """An error of a gradient that nobody waits for any more is nobody's."""
    if not kept.cancelled():
        kept.exception()
