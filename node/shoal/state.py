"""A worker's model, which others read as it was sent while it goes on. Pure.

To copy the model for each average would be the dearest part of one between two nodes of a machine. So it is sent where
it lies, and left there as it is for as long as somebody holds what was sent, or reads it: whoever changes it meanwhile
gets it in other memory. Half the way to another's model is made in other memory too, and if nothing has landed since
the model was sent, the model is there then: nothing was copied.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.delta import Between, Delta
from shoal.vector import copy


class Halfway:
    """Between a model that was sent and another's, made piece by piece while that one is looked at for the first time.
    It is of use only if nothing lands on the model before the average is settled."""

    def __init__(self, mine: Tensor, theirs: Tensor, room: Tensor) -> None:
        self.model = room
        self._mine, self._theirs = mine, weakref.ref(theirs)

    def make(self, start: int, stop: int) -> None:
        """These coordinates of it."""
        theirs = self._theirs()
        assert theirs is not None
        torch.lerp(self._mine[start:stop], theirs[start:stop], 0.5, out=self.model[start:stop])

    def leads_to(self, theirs: Tensor) -> bool:
        """Whether it was made of just that vector."""
        return self._theirs() is theirs


class State:
    """(d+b,): d parameters, then b carried values. One event loop owns it."""

    def __init__(
        self, first: Tensor, *, room: Callable[[int, torch.dtype], Tensor | None], is_read: Callable[[Tensor], bool]
    ) -> None:
        """`room(elements, dtype)`: memory on the CPU that others can read, None where none is to spare.
        `is_read(memory)`: whether somebody still does, though nobody here holds what was sent."""
        self._now, self._lend, self._is_read = first, room, is_read
        self._placed = False  # in memory that others can read
        self._sent: list[weakref.ref[Tensor]] = []  # all over the same memory, each for somebody else
        self._halfway: Halfway | None = None

    @property
    def now(self) -> Tensor:
        """For reading, until the next await."""
        return self._now

    def changing(self) -> Tensor:
        """For changing it, until the next await."""
        self._halfway = None
        if self._held() or (self._placed and self._is_read(self._now)):
            self._go_to(*self._copied())
        return self._now

    def snapshot(self) -> Tensor:
        """As it is now, for reading; it stays so for as long as somebody holds just this tensor."""
        if not self._placed and not self._held() and (room := self._room()) is not None:
            copy(self._now, room)
            self._go_to(room, True)
        sent = self._now[:]
        weakref.finalize(sent, _nothing, self._now).atexit = False  # which holds the memory as long
        self._sent.append(weakref.ref(sent))
        return sent

    def meet(self, theirs: Tensor) -> Halfway | None:
        """The way to a model that has come, to be made while that is looked at; None where it would be of no use."""
        self._halfway = None
        alike = theirs.dtype == self._now.dtype and theirs.numel() == self._now.numel()
        if alike and self._held() and (room := self._room()) is not None:
            self._halfway = Halfway(self._now, theirs, room)
        return self._halfway

    def add(self, delta: Delta) -> None:
        """At once. What was sent for it is of no use afterwards, nor is half the way, where the delta goes less far."""
        if isinstance(delta, Between) and delta.is_half and delta.mine.data_ptr() == self._now.data_ptr():
            self._go_halfway(delta.mine, delta.theirs)
        else:
            delta.add_to(self.changing())

    def _go_halfway(self, mine: Tensor, theirs: Tensor) -> None:
        halfway, self._halfway = self._halfway, None
        if halfway is not None and halfway.leads_to(theirs):
            self._go_to(halfway.model, True)
        elif self._placed and not self._held(but_for=mine) and not self._is_read(self._now):
            self._now.lerp_(theirs, 0.5)
        else:
            room, placed = self._elsewhere()
            self._go_to(torch.lerp(self._now, theirs, 0.5, out=room), placed)

    def _held(self, but_for: Tensor | None = None) -> bool:
        self._sent = [ref for ref in self._sent if ref() is not None]
        return any(ref() is not but_for for ref in self._sent)

    def _copied(self) -> tuple[Tensor, bool]:
        room, placed = self._elsewhere()
        copy(self._now, room)
        return room, placed

    def _room(self) -> Tensor | None:
        now = self._now
        return self._lend(now.numel(), now.dtype) if now.device.type == "cpu" else None

    def _elsewhere(self) -> tuple[Tensor, bool]:
        room = self._room()
        return (torch.empty_like(self._now), False) if room is None else (room, True)

    def _go_to(self, memory: Tensor, placed: bool) -> None:
        self._now, self._placed = memory, placed
        self._sent, self._halfway = [], None


def _nothing(memory: Tensor) -> None:
    """Lets go of it."""
