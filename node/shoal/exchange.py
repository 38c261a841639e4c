"""Settles pairwise averages: exactly once, without a lock across the network, without livelock. Pure.

The delta rule: i has sent its snapshot s, j its own r. i adds (r-s)/2 and j adds (s-r)/2 to whatever they hold when
they apply it. The two deltas sum to zero, so the sum of the models is kept though gradients land meanwhile
(AD-PSGD, 1710.06952, averages atomically under a lock; this needs none: no cycle can deadlock, any graph will do).

i decides. When r has come whole and j is READY, i records (j, its own incarnation, sequence number), applies its half
and sends COMMIT; it keeps the record until j's CONFIRM. A j whose stream breaks after READY is *in doubt*: it keeps its
delta, is free for others, and asks at the next contact. Suspicion never settles anything. i's part is in
`offering.py`, j's in `serving.py`, what they share in `settling.py`; the messages are drawn in `messages.py`; who calls
whom is in `runtime.py`.
"""

import math
from collections.abc import Callable, Container
from typing import Any

from torch import Tensor

from shoal.delta import Delta
from shoal.messages import Message, PeerId
from shoal.offering import Offering
from shoal.pair_codec import PairCodecs
from shoal.serving import Serving
from shoal.settling import Desk, Outcome, Role


class Settlement:
    """All pairwise averages of one node.

    `snapshot()` gives a copy of the state, (d+b,) float32, and `state()` the state itself; `add(delta)` adds to it at
    once; `send(peer, message)` hands a message to the link, in order for each peer; `ended(role, peer, seq, outcome,
    reason)` hears how each exchange ended. None of them may call back into the settlement, but for `ended`.
    """

    def __init__(
        self,
        me: PeerId,
        incarnation: int,
        *,
        snapshot: Callable[[], Tensor],
        state: Callable[[], Tensor] | None = None,
        add: Callable[[Delta], None],
        send: Callable[[PeerId, Message], None],
        ended: Callable[[Role, PeerId, int, Outcome, str], None],
        codecs: PairCodecs | None = None,
        max_distance: float = math.inf,
        clip_distance: float = math.inf,
    ) -> None:
        """Models that are further apart than `max_distance` (Euclid's) are not averaged. An average moves a model by
        half of `clip_distance` at most, which must be the same at both ends."""
        known = codecs or PairCodecs()
        self._desk = Desk(
            me, incarnation, snapshot, state or snapshot, add, send, ended, known, max_distance, clip_distance
        )
        self.tally, self.apart = self._desk.tally, self._desk.apart
        self._serving = Serving(self._desk)
        self._offering = Offering(self._desk, freed=self._serving.serve_held)
        self._answers = {**self._serving.answers, **self._offering.answers}

    # --- what the runtime asks ----------------------------------------------------------------------------------

    def offer(self, peer: PeerId) -> int:
        """Offer `peer` an average; returns its sequence number. One own exchange at a time."""
        return self._offering.offer(peer)

    def withdraw(self) -> None:
        """Give up the own exchange, as its initiator may at any time before it commits."""
        self._offering.withdraw()

    def stop_waiting(self) -> None:
        """Give up waiting for the initiator that is served: drop the exchange, or hold it in doubt if promised."""
        self._serving.stop_waiting()

    def up(self, peer: PeerId) -> None:
        """A connection to `peer` stands: ask about what is in doubt between us, repeat what was not confirmed."""
        for message in self._desk.ledger.to_say(peer):
            self._desk.send(peer, message)

    def down(self, peer: PeerId) -> None:
        """The connection to `peer` broke. Nothing from it will arrive until `up`."""
        self._offering.down(peer)
        self._serving.down(peer)

    def received(self, peer: PeerId, message: Message) -> None:
        """Any message of an exchange (see the table in `messages.py`)."""
        self._answers[message.kind](peer, message)

    @property
    def active_with(self) -> PeerId | None:
        """The peer of the own exchange, if one is open."""
        return self._desk.own.peer if self._desk.own else None

    @property
    def serving(self) -> tuple[PeerId, int] | None:
        """(peer, seq) of the exchange being served, if any."""
        return (self._desk.served.peer, self._desk.served.seq) if self._desk.served else None

    @property
    def in_doubt(self) -> int:
        """Deltas whose initiator has not said whether it committed."""
        return len(self._desk.ledger.doubts)

    @property
    def unconfirmed(self) -> int:
        """Own commits whose peer has not said that it applied its half."""
        return self._desk.ledger.unconfirmed

    @property
    def idle(self) -> bool:
        """Whether nothing is open, in doubt or unconfirmed."""
        return not (self._desk.own or self._desk.served or self._desk.held or self._desk.ledger.peers())

    def unsettled(self, peers: Container[PeerId]) -> bool:
        """Whether an exchange with one of `peers` is open, in doubt or unconfirmed."""
        open_with = [e.peer for e in (self._desk.own, self._desk.served, *self._desk.held) if e is not None]
        known = (*open_with, *self._desk.ledger.peers())
        return any(peer in peers for peer in known)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON document, tensors) to be written with the state into one checkpoint. A promised delta is in doubt."""
        served = self._desk.served
        open_promise = {}
        if served is not None and served.delta is not None:
            open_promise = {(served.peer, served.initiator, served.seq): served.delta.tensor()}
        return self._desk.ledger.export(open_promise)

    def restore(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes up what `export` gave, under a new incarnation."""
        self._desk.ledger.restore(document, tensors)
