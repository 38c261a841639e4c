"""The words an algorithm may use. The same algorithm runs over gRPC and in virtual time, and cannot tell which."""

import random
from collections.abc import Awaitable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from shoal.messages import PeerId
from shoal.settling import Outcome


class Worker(Protocol):
    """One worker: its vector, its data's gradients, its neighbours.

    An `await` stands alone on its line: what is read before it may have moved after it, for averages land on `x` at
    any await, and may put it elsewhere. Whatever was kept of `x` over an await is what it was before.
    """

    rng: random.Random
    """Seeded from the run's seed and the worker's id."""
    momentum: float
    weight_decay: float
    """For algorithms that decay x themselves; the gradients of the others hold it already."""
    overlap: int
    exchange_every: int
    """Gradients to each exchange."""
    correction: float
    """Largest step of AD-PSGD's dual variable; 0: none."""
    full_lr: float
    """The step size where the schedule's factor is 1."""
    packed: str
    """The codec by which differences are to travel in place of models: q8, q4 or sign; empty: none."""
    batch: int
    seed: int
    """The run's, the same on every member."""
    tau: float | None
    prox: str

    @property
    def x(self) -> Tensor:
        """(d,) floats, on the worker's device, to be changed in place until the next await."""

    @property
    def neighbours(self) -> Sequence[PeerId]:
        """Sorted, without me; those that can be reached now."""

    @property
    def lr(self) -> float:
        """The step size now, by the run's schedule."""

    @property
    def kept_corrections(self) -> bool:
        """Whether what `keep` holds fits the other members' (False after a resume at unequal rounds)."""

    @property
    def moved(self) -> Tensor:
        """(d,): the sum of all that averages have moved x by here, on either end; over all workers it is zero.

        Only in a run that is corrected.
        """

    @property
    def evenness(self) -> float:
        """Gradients of the slowest member over the mean of all: 1 if all are alike fast, 0 while one has none."""

    @property
    def members(self) -> int:
        """How many take part, this worker included."""

    @property
    def rows(self) -> tuple[int, int, int]:
        """(first, own, all): with the samples of all members in a row, by their ids, this worker's are first ...
        first + own - 1 of all."""

    def more(self) -> bool:
        """Whether the shoal, or the parameter server, still wants gradients (asynchronous runs)."""

    def rounds(self) -> Iterator[int]:
        """The rounds that are left, in order (synchronous runs)."""

    def keep(self, name: str) -> Tensor:
        """(d,) of zeros that goes into checkpoints; after a resume, what it held."""

    def count(self) -> None:
        """One gradient has been applied to x. Call it in the same breath, with no await between."""

    def gradient(self) -> Awaitable[Tensor]:
        """(d,): the next minibatch's gradient at x as it is at the call, weight decay included. It holds until the next
        one is asked for."""

    def full_gradient(self, x: Tensor) -> Awaitable[Tensor]:
        """(d,): at x, the mean over all own samples."""

    def change(self, w: Tensor, x: Tensor, rows: Tensor) -> Awaitable[Tensor]:
        """(d,): sum over these rows of the own samples of grad f_r(w) - grad f_r(x)."""

    def mix(self, t: int, y: Tensor) -> Awaitable[Tensor]:
        """(d,): sum_j W_ij y_j of round t."""

    def mix_packed(self, t: int, z: Tensor, bits: int) -> Awaitable[tuple[Tensor, Tensor]]:
        """(sum_j W_ij q_j, own q), each (d,), where q_j is z_j packed in 1, 2, 4 or 8 bits a coordinate."""

    def mean(self, t: int, y: Tensor, step: int = 0) -> Awaitable[Tensor]:
        """(d,): the mean of all members' y; `step` counts the means of round t. The same bits on every member."""

    def vote(self, t: int, y: Tensor) -> Awaitable[Tensor]:
        """(d,) of +1 and -1, new: what the majority of the members' sign(y) say. Coins decide zeros and ties."""

    def compressed_mean(self, t: int, y: Tensor) -> Awaitable[tuple[Tensor, Tensor]]:
        """(mean, own y as the others got it), each (d,) and new: one bit a coordinate each way, with scales."""

    def missed(self, purpose: str, t: int) -> Tensor | None:
        """The answer of round t where the others went on without this worker, which then takes it as it is."""

    def agree(self, t: int, *kept: Tensor) -> Awaitable[None]:
        """Now and then, compare a hash of x, and of what else must be equal, with the other members'; a replica that
        differs is put right in place."""

    def average(self, peer: PeerId) -> Awaitable[Outcome]:
        """Average x with `peer`: (x_i, x_j) <- ((x_i+x_j)/2, (x_i+x_j)/2), settled on both ends or on neither."""

    def ask(self, u: Tensor | None) -> Awaitable[Tensor]:
        """(d,): the parameter server's model, after it has taken a step of -lr u; with None, as it is. A worker's
        first question offers its own x, which becomes the first model if the server has none."""

    def begin(self, work: Awaitable[None]) -> Awaitable[None]:
        """Start `work` beside this coroutine; await the result to wait for its end."""

    def back_off(self, tries: int) -> Awaitable[None]:
        """Wait a random while, longer after more tries; the unit is how long an average usually takes."""
