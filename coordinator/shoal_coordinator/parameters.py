"""A parameter server: one model, to which every worker's gradient is applied as it comes (A-PSGD)."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from shoal.algorithms.descent import schedule
from shoal.collective import check
from shoal.enrolment import FINAL, FRESH, GRADIENT, START, Enrolment
from shoal.errors import BadFrame, BadVector, Mismatch
from shoal.messages import Kind, Message, PeerId, Tag
from shoal.settings import Settings
from shoal.vector import is_finite
from shoal_coordinator.rounds import may_begin
from shoal_coordinator.teller import DTYPES

if TYPE_CHECKING:
    from shoal_coordinator.store import Store

SAVE_EVERY_S = 1.0
"""How much work a kill -9 loses, and the workers repeat; they keep their gradients so long."""


class ParameterServer:
    """Applies each gradient of (worker, incarnation, number) exactly once, and answers it with the model at once.

    A gradient is confirmed once the model is saved and its answer was heard, for its worker has sent the next. What a
    killed process had not saved is repeated by the workers, so nothing is lost and nothing applied twice.
    """

    def __init__(
        self,
        run: Settings,
        *,
        send: Callable[[PeerId, Message], None],
        clock: Callable[[], float],
        store: "Store | None" = None,
    ) -> None:
        self.run = run
        self.x: Tensor | None = None  # (d+b,)
        self.version = 0  # gradients applied
        self.members: set[PeerId] = set()  # who counts for the length of the run
        self.waiting = "no worker has come"
        self._send, self._clock, self._store = send, clock, store
        self._factor = schedule(run.schedule, run.warmup)
        self._start = ""
        self._shape: tuple[int, int] | None = None  # d, b
        self._linked: set[PeerId] = set()
        self._seen: dict[PeerId, tuple[int, int]] = {}  # worker -> (incarnation, number of its last post)
        self._unconfirmed: list[tuple[PeerId, Tag]] = []
        self._saved_version = 0
        self._saved_at = clock()
        self._staleness: list[int] = []  # since they were taken last
        self._ages = (0, 0, 0)  # gradients, sum and largest of their staleness since the start
        if store is not None:
            self._restore(store)

    @property
    def budget(self) -> int:
        """Gradients of the run."""
        return self.run.total_gradients(max(1, len(self.members)))

    @property
    def staleness(self) -> dict[str, float | None]:
        """Mean and largest since the start of the process, counted in models."""
        n, total, largest = self._ages
        return {"mean": total / n if n else None, "largest": largest}

    @property
    def linked(self) -> list[PeerId]:
        """Workers that are connected, sorted."""
        return sorted(self._linked)

    def take_staleness(self) -> list[int]:
        """How many models old the gradients were that came since the last call."""
        taken, self._staleness = self._staleness, []
        return taken

    # --- workers ------------------------------------------------------------------------------------------------

    def enrol(self, worker: PeerId, enrolment: Enrolment) -> None:
        """A worker is connected. Raises Mismatch, with nothing changed."""
        shape = sum(enrolment.segments), enrolment.carried
        if self._shape not in (None, shape):
            raise Mismatch(f"{worker} has {shape} parameters and buffers, the run {self._shape}")
        begins = enrolment.start not in ("", self._start)
        fits, why = may_begin(enrolment.members, self._linked - {worker}) if begins else (True, "")
        if not fits:
            raise Mismatch(why)
        self._shape = shape
        if begins:
            if enrolment.first == 0:  # all begin anew
                self.x, self.version, self._saved_version, self._seen, self._unconfirmed = None, 0, 0, {}, []
                if self._store is not None:
                    self._store.forget_run()
            self._start, self.members = enrolment.start, set(enrolment.members)
        self.members.add(worker)
        self._linked.add(worker)
        self.waiting = ""
        if self._store is not None:
            self._store.save_run({"start": self._start, "members": sorted(self.members), "shape": shape})

    def post(self, worker: PeerId, message: Message) -> None:
        """A gradient, or a first model. Raises BadFrame, BadVector or Mismatch, naming the worker, with nothing
        changed."""
        tag, vector = message.tag, message.vector
        assert tag is not None
        assert vector is not None
        self._check(worker, tag, vector)
        incarnation, last = self._seen.get(worker, (0, -1))
        if message.initiator < incarnation:
            return  # of a life that is over
        if message.initiator > incarnation or tag.round > last:
            applied = self._take(message.seq, tag.purpose, vector)
            self._seen[worker] = (message.initiator, tag.round)
        else:
            applied = tag.purpose == GRADIENT  # a repetition
        self._unconfirmed.append((worker, tag))
        at_once = tag.purpose == START or self.version >= self.budget > self._saved_version
        if at_once or self._clock() >= self.due():
            self._save()
        if tag.round == self._seen[worker][1]:
            self._answer(worker, tag, applied)

    def down(self, worker: PeerId) -> None:
        """Its connection broke."""
        self._linked.discard(worker)

    def left(self, worker: PeerId) -> None:
        """It is gone. Its gradients stay, and so does its part in the length of the run."""
        self.down(worker)

    def due(self) -> float:
        """When `tick` has something to do, on the clock; inf for never."""
        return self._saved_at + SAVE_EVERY_S if self.version > self._saved_version else math.inf

    def tick(self) -> None:
        """Time has passed."""
        if self._clock() >= self.due():
            self._save()

    # --- inside -------------------------------------------------------------------------------------------------

    def _check(self, worker: PeerId, tag: Tag, vector: Tensor) -> None:
        if worker not in self._linked or self._shape is None:
            raise BadFrame(f"{worker} posts {tag.purpose[:32]!r} and has not enrolled")
        if tag.purpose not in (START, GRADIENT):
            raise BadFrame(f"{worker} posts {tag.purpose[:32]!r}, expected {START!r} or {GRADIENT!r}")
        check(vector, sum(self._shape), DTYPES[self.run.precision], worker, tag.purpose)
        if not is_finite(vector):
            raise BadVector(f"{tag.purpose} {tag.round} from {worker} holds NaN or Inf: its model has diverged")
        if self.x is None and tag.purpose == GRADIENT:
            words = "the coordinator has no model to apply it to: it began anew without its state folder"
            raise Mismatch(f"gradient {tag.round} from {worker}: {words}; start the nodes anew, or it with its folder")

    def _take(self, taken_at: int, purpose: str, vector: Tensor) -> bool:
        """Whether it changed the model. `taken_at`: version of the model of which it is the gradient."""
        if purpose == START:
            self.x = vector.clone() if self.x is None else self.x
            return False
        if self.version >= self.budget:
            return False
        assert self.x is not None
        assert self._shape is not None
        staleness = self.version - min(taken_at, self.version)
        lr = self.run.lr * self._factor(self.version / self.budget)
        if self.run.staleness_aware:
            lr /= max(1, staleness)
        d = self._shape[0]
        self.x[:d].sub_(vector[:d], alpha=lr)
        self.x[d:].lerp_(vector[d:], 1 / max(1, len(self.members)))
        self.version += 1
        self._staleness.append(staleness)
        n, total, largest = self._ages
        self._ages = n + 1, total + staleness, max(largest, staleness)
        return True

    def _answer(self, worker: PeerId, tag: Tag, applied: bool) -> None:
        assert self.x is not None
        purpose = FINAL if self.version >= self.budget else FRESH
        answer = Tag(tag.view, tag.round, purpose)
        self._send(worker, Message(Kind.POST, seq=self.version, tag=answer, vector=self.x.clone(), committed=applied))

    def _save(self) -> None:
        if self._store is not None:
            assert self.x is not None
            self._store.save_model(self.x, {"version": self.version, "seen": self._seen})
        self._saved_at, self._saved_version = self._clock(), self.version
        kept = []
        for worker, tag in self._unconfirmed:
            if tag.round < self._seen[worker][1]:
                self._send(worker, Message(Kind.RECEIVED, tag=tag))
            else:
                kept.append((worker, tag))
        self._unconfirmed = kept

    def _restore(self, store: "Store") -> None:
        document = store.load_run()
        if document is None:
            return
        self._start, self.members = document["start"], set(document["members"])
        d, b = document["shape"]
        self._shape = d, b
        if (saved := store.load_model()) is not None:
            self.x, about = saved
            self.version = self._saved_version = about["version"]
            self._seen = {worker: (incarnation, last) for worker, (incarnation, last) in about["seen"].items()}
