"""Which gradients a node's model is made of, by its history over all its lives; that none is in it twice.

A life begins with the event `began`. It goes on where a checkpoint stood (`resumed`), or with the model of another
member (`joined`), or with the first one. The model of the last life is made of that life's steps, of those of the life
before it up to the step that it resumed at, and so on: these *survive*. What a killed life did after its checkpoint is
*lost*: its batches are drawn again, and what they give is another gradient, taken at another model.

Two things are promised and checked. The steps that survive are 1, 2, 3 ... without a gap or a repetition. And where
the lines name the batch, no batch is in them twice. What a lost step had already given to others by an average stays
with them: an average after a crash knows nothing of it.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass
class Life:
    """Of one process."""

    base: int = 0  # the step that it resumed at
    anew: bool = True  # it began with no model of its own
    steps: list[tuple[int, str | None]] = dataclasses.field(default_factory=list)  # (step, batch)

    @property
    def last(self) -> int:
        """The step that it came to."""
        return self.steps[-1][0] if self.steps else self.base


@dataclasses.dataclass
class Applied:
    """What is in a node's model, and what was lost on the way."""

    survived: list[tuple[int, str | None]]  # (step, batch)
    lost: int  # steps of killed lives that no checkpoint held
    lives: int


class Twice(AssertionError):
    """The history does not bear out that each gradient was applied once."""


def applied(history: Iterable[dict[str, Any]]) -> Applied:
    """Reads a whole history. Raises Twice, with the life and the step."""
    lives = list(lives_of(history))
    survived: list[tuple[int, str | None]] = []
    lost = 0
    for number, life in enumerate(lives, start=1):
        if life.anew:
            lost, survived = lost + len(survived), []
        elif life.base > len(survived):
            raise Twice(f"life {number} resumed at step {life.base}, but only {len(survived)} steps are on record")
        else:
            lost, survived = lost + len(survived) - life.base, survived[: life.base]
        expected = range(len(survived) + 1, len(survived) + 1 + len(life.steps))
        for step, (found, _) in zip(expected, life.steps, strict=True):
            if found != step:
                raise Twice(f"life {number} has step {found}, expected {step}")
        survived += life.steps
    batches: dict[str, int] = {}
    for step, batch in survived:
        if batch is not None and batches.setdefault(batch, step) != step:
            raise Twice(f"step {step} has batch {batch}, and so has step {batches[batch]}")
    return Applied(survived, lost, len(lives))


def lives_of(history: Iterable[dict[str, Any]]) -> Iterable[Life]:
    """In order; steps before the first `began` are nobody's, and an error."""
    life: Life | None = None
    for line in history:
        what = line.get("what")
        if line["kind"] == "event" and what == "began":
            if life is not None:
                yield life
            life = Life()
        elif line["kind"] == "event" and what == "resumed":
            assert life is not None
            life.base, life.anew = line["step"], False
        elif line["kind"] == "step":
            if life is None:
                raise Twice(f"step {line['step']} before any life began")
            life.steps.append((line["step"], line.get("batch")))
    if life is not None:
        yield life
