"""A latecomer's first model: asked of a member, and of another when that one's connection breaks. Pure.

Only who trains has a model worth giving. A node that has not begun averages with nobody either: its untrained values
would go into the others' models, and what they gave in return would be overwritten by the model that it waits for.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from shoal.errors import BadVector
from shoal.messages import Kind, Message, PeerId, Tag
from shoal.vector import is_finite


class Model(NamedTuple):
    """What a latecomer needs, all of one moment."""

    round: int  # that comes next; 0 where nodes do not share rounds
    parts: list[Tensor]  # the state, and what its algorithm keeps that belongs to it, each (d+b,)


class Handover:
    """One node's part in it: it asks for a model, or gives its own once it has begun.

    `snapshot()` gives copies; `send(peer, message)` hands a message to the link.
    """

    def __init__(self, *, snapshot: Callable[[], Model], send: Callable[[PeerId, Message], None]) -> None:
        self._snapshot, self._send = snapshot, send
        self._trains = False
        self._kept_waiting: dict[PeerId, None] = {}  # who asked before this node had begun
        self._up: dict[PeerId, None] = {}
        self._asked: PeerId | None = None
        self._parts: list[Tensor] = []  # of the model that is coming
        self._model: asyncio.Future[Model] | None = None

    def begin(self) -> None:
        """This node trains from now on: its model is worth something."""
        self._trains = True
        for peer in self._kept_waiting:
            self._give(peer)
        self._kept_waiting.clear()

    def end(self) -> None:
        """This node is about to leave."""
        self._trains = False

    async def fetch(self, peer: PeerId) -> Model:
        """The model of `peer`, or of another member if the connection breaks before it has come whole."""
        self._model = asyncio.get_running_loop().create_future()
        self._ask((peer, *self._up))
        return await self._model

    def up(self, peer: PeerId) -> None:
        """A connection to `peer` stands."""
        self._up[peer] = None
        if self._fetching and self._asked is None:
            self._ask((peer,))

    def down(self, peer: PeerId) -> None:
        """The connection to `peer` broke; nothing of it will arrive until `up`."""
        self._up.pop(peer, None)
        self._kept_waiting.pop(peer, None)
        if self._fetching and self._asked == peer:
            self._ask(self._up)

    def received(self, peer: PeerId, message: Message) -> None:
        """OFFER (of an average that cannot be yet), PULL or MODEL. Raises BadVector for a model that is not finite."""
        match message.kind:
            case Kind.OFFER:
                self._send(peer, Message(Kind.BUSY, seq=message.seq, reason="does not train now"))
            case Kind.PULL if self._trains:
                self._give(peer)
            case Kind.PULL:
                self._kept_waiting[peer] = None
            case Kind.MODEL:
                self._take(peer, message)

    def serves(self, kind: Kind) -> bool:
        """Whether a message of that kind is for `received`, not for the settlement."""
        return kind in (Kind.PULL, Kind.MODEL) or (kind is Kind.OFFER and not self._trains)

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _fetching(self) -> bool:
        return self._model is not None and not self._model.done()

    def _ask(self, peers: Iterable[PeerId]) -> None:
        """The first of them that can be reached; with none, the next that comes up is asked."""
        self._asked, self._parts = next((peer for peer in peers if peer in self._up), None), []
        if self._asked is not None:
            self._send(self._asked, Message(Kind.PULL))

    def _give(self, peer: PeerId) -> None:
        round, parts = self._snapshot()
        for more, part in zip(reversed(range(len(parts))), parts, strict=True):
            self._send(peer, Message(Kind.MODEL, tag=Tag("", round, "model", more), vector=part))

    def _take(self, peer: PeerId, message: Message) -> None:
        part = message.vector
        if self._model is None or self._model.done() or part is None or peer != self._asked:
            return
        if not is_finite(part):
            raise BadVector(f"the model of {peer} holds NaN or Inf: it has diverged")
        self._parts.append(part)
        if message.tag is None or message.tag.step == 0:
            self._model.set_result(Model(0 if message.tag is None else message.tag.round, self._parts))
