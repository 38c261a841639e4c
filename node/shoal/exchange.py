"""Settles pairwise averages: exactly once, without a lock across the network, without livelock. Pure.

The delta rule: i has sent its snapshot s, j its own r. i adds (r-s)/2 and j adds (s-r)/2 to whatever they hold when
they apply it. The two deltas sum to zero, so the sum of the models is kept though gradients land meanwhile
(AD-PSGD, 1710.06952, averages atomically under a lock; this needs none: no cycle can deadlock, any graph will do).

i decides. When r has come whole and j is READY, i records (j, its own incarnation, sequence number), applies its half
and sends COMMIT; it keeps the record until j's CONFIRM. A j whose stream breaks after READY is *in doubt*: it keeps its
delta, is free for others, and asks at the next contact. Suspicion never settles anything. The messages are drawn in
`messages.py`; who calls whom is in `runtime.py`.
"""

import dataclasses
import enum
from collections.abc import Callable, Container
from typing import Any

from torch import Tensor

from shoal.ledger import Key, Ledger
from shoal.messages import Kind, Message, PeerId
from shoal.pair_codec import Full, PairCodec
from shoal.vector import is_finite

MAX_IN_DOUBT = 4
"""Deltas in doubt that a node holds, each as large as the model, before it answers BUSY."""
MAX_HELD = 1
"""Offers that wait here while another is served. A held offer needs no second asking; with more, a node would wait
behind a slow one although others are free."""


class Outcome(enum.Enum):
    """How an average ended for the one who asked for it."""

    DONE = "done"
    BUSY = "busy"
    GONE = "gone"


class Role(enum.Enum):
    """Which end of an exchange: the one who offered, or the one who served."""

    ACTIVE = "active"
    PASSIVE = "passive"


@dataclasses.dataclass(slots=True)
class _Own:
    """The one exchange that this node has initiated and not decided."""

    peer: PeerId
    seq: int
    delta: Tensor | None = None  # (r - s) / 2, once the peer's ACCEPT came; from then on s is out


@dataclasses.dataclass(slots=True)
class _Offer:
    """An offer that another node has made."""

    peer: PeerId
    initiator: int
    seq: int
    crossed: bool = False  # my own offer to the same peer has become this one


@dataclasses.dataclass(slots=True)
class _Served:
    """The one exchange that this node serves for another."""

    peer: PeerId
    initiator: int
    seq: int
    mine: Tensor  # r
    crossed: bool
    delta: Tensor | None = None  # (s - r) / 2 once s has come; from then on it is promised
    overlapped: bool = False


@dataclasses.dataclass(slots=True)
class Tally:
    """Totals for the metrics."""

    active: int = 0  # averages finished that this node offered
    passive: int = 0  # averages finished that this node served
    busy: int = 0  # own offers answered BUSY
    gone: int = 0  # own exchanges ended by a broken connection
    withdrawn: int = 0  # own exchanges given up because no answer came
    refused: int = 0  # vectors of peers that were not finite
    resolved: int = 0  # doubts settled by asking
    lost: int = 0  # exchanges of which only one half may have happened


class Settlement:
    """All pairwise averages of one node.

    `snapshot()` gives a copy of the state, (d+b,) float32; `add(delta)` adds to it at once; `send(peer, message)` hands
    a message to the link, in order for each peer; `ended(role, peer, seq, outcome, reason)` hears how each exchange
    ended. None of them may call back into the settlement, but for `ended`.
    """

    def __init__(
        self,
        me: PeerId,
        incarnation: int,
        *,
        snapshot: Callable[[], Tensor],
        add: Callable[[Tensor], None],
        send: Callable[[PeerId, Message], None],
        ended: Callable[[Role, PeerId, int, Outcome, str], None],
        codec: PairCodec | None = None,
    ) -> None:
        self.me, self.incarnation = me, incarnation
        self.tally = Tally()
        self._codec: PairCodec = codec or Full()
        self._snapshot, self._add, self._send, self._ended = snapshot, add, send, ended
        self._last_seq: dict[PeerId, int] = {}
        self._own: _Own | None = None
        self._served: _Served | None = None
        self._held: list[_Offer] = []
        self._ledger = Ledger()
        self._answers: dict[Kind, Callable[[PeerId, Message], None]] = {
            Kind.OFFER: self._on_offer,
            Kind.BUSY: self._on_busy,
            Kind.ACCEPT: self._on_accept,
            Kind.VALUES: self._on_values,
            Kind.READY: self._on_ready,
            Kind.COMMIT: self._on_commit,
            Kind.CONFIRM: self._on_confirm,
            Kind.ABORT: self._on_abort,
            Kind.REFUSE: self._on_refuse,
            Kind.QUERY: self._on_query,
            Kind.VERDICT: self._on_verdict,
        }

    # --- what the runtime asks ----------------------------------------------------------------------------------

    def offer(self, peer: PeerId) -> int:
        """Offer `peer` an average; returns its sequence number. One own exchange at a time."""
        if self._own is not None:
            raise RuntimeError(f"{self.me} offers {peer} an average while one with {self._own.peer} is open")
        seq = self._last_seq.get(peer, 0) + 1
        self._last_seq[peer] = seq
        self._own = _Own(peer, seq)
        if self.me < peer:  # the peer takes its own waiting offer for part of this one
            self._held = [offer for offer in self._held if offer.peer != peer]
        self._say(peer, Kind.OFFER, seq)
        return seq

    def withdraw(self) -> None:
        """Give up the own exchange, as its initiator may at any time before it commits."""
        if self._own is not None:
            self.tally.withdrawn += 1
            self._say(self._own.peer, Kind.ABORT, self._own.seq)
            self._end_own(Outcome.BUSY, "no answer in time")

    def stop_waiting(self) -> None:
        """Give up waiting for the initiator that is served: drop the exchange, or hold it in doubt if promised."""
        if self._served is not None:
            if self._served.delta is None:
                self._say(self._served.peer, Kind.REFUSE, self._served.seq, reason="waited too long")
            self._release(Outcome.GONE, "the initiator fell silent")

    def up(self, peer: PeerId) -> None:
        """A connection to `peer` stands: ask about what is in doubt between us, repeat what was not confirmed."""
        for message in self._ledger.to_say(peer):
            self._send(peer, message)

    def down(self, peer: PeerId) -> None:
        """The connection to `peer` broke. Nothing from it will arrive until `up`."""
        if self._own is not None and self._own.peer == peer:
            self._end_own(Outcome.GONE, "connection broke")
        for offer in [offer for offer in self._held if offer.peer == peer]:
            self._drop_held(offer, "connection broke")
        if self._served is not None and self._served.peer == peer:
            self._release(Outcome.GONE, "connection broke")

    def received(self, peer: PeerId, message: Message) -> None:
        """Any message of an exchange (see the table in `messages.py`)."""
        self._answers[message.kind](peer, message)

    @property
    def active_with(self) -> PeerId | None:
        """The peer of the own exchange, if one is open."""
        return self._own.peer if self._own else None

    @property
    def serving(self) -> tuple[PeerId, int] | None:
        """(peer, seq) of the exchange being served, if any."""
        return (self._served.peer, self._served.seq) if self._served else None

    @property
    def in_doubt(self) -> int:
        """Deltas whose initiator has not said whether it committed."""
        return len(self._ledger.doubts)

    @property
    def unconfirmed(self) -> int:
        """Own commits whose peer has not said that it applied its half."""
        return self._ledger.unconfirmed

    @property
    def idle(self) -> bool:
        """Whether nothing is open, in doubt or unconfirmed."""
        return not (self._own or self._served or self._held or self._ledger.peers())

    def unsettled(self, peers: Container[PeerId]) -> bool:
        """Whether an exchange with one of `peers` is open, in doubt or unconfirmed."""
        open_with = [e.peer for e in (self._own, self._served, *self._held) if e is not None]
        known = (*open_with, *self._ledger.peers())
        return any(peer in peers for peer in known)

    # --- j, the one who serves ----------------------------------------------------------------------------------

    def _on_offer(self, peer: PeerId, message: Message) -> None:
        own = self._own
        offer = _Offer(peer, message.initiator, message.seq)
        if own is not None and own.peer == peer and own.delta is None:
            if self.me < peer:
                return  # both offered at once: the lower id's offer stands, and the peer sees it the same way
            offer.crossed, self._own = True, None
        free, reason = self._may_serve()
        if free:
            self._serve(offer)
        elif len(self._held) < MAX_HELD and self.in_doubt < MAX_IN_DOUBT:
            self._held.append(offer)
        else:
            self._say(peer, Kind.BUSY, message.seq, reason=reason)
            if offer.crossed:
                self.tally.busy += 1
                self._ended(Role.ACTIVE, peer, message.seq, Outcome.BUSY, reason)

    def _may_serve(self) -> tuple[bool, str]:
        """One at a time, and none is begun while an own snapshot is out: with two averages on one stale snapshot the
        weight on the old self is zero, with more it is negative. (Two meet only when an own offer is accepted while
        another is served; over 16 seeds on digits, beginning one more then cost outliers of 3 points in accuracy.)"""
        if self._served is not None:
            return False, f"serving {self._served.peer}"
        if self.in_doubt >= MAX_IN_DOUBT:
            return False, f"{self.in_doubt} exchanges in doubt"
        if self._own is not None and self._own.delta is not None:
            return False, f"averaging with {self._own.peer}"
        return True, ""

    def _serve(self, offer: _Offer) -> None:
        mine = self._snapshot()
        self._served = _Served(offer.peer, offer.initiator, offer.seq, mine, offer.crossed)
        self._say(offer.peer, Kind.ACCEPT, offer.seq, vector=self._codec.first(mine))

    def _serve_held(self) -> None:
        """After whatever has made this node free."""
        while self._held and self._may_serve()[0]:
            offer, own = self._held.pop(0), self._own
            if own is not None and own.peer == offer.peer and own.delta is None:
                offer.crossed, self._own = True, None  # it has ignored that one: its own stands
            self._serve(offer)

    def _drop_held(self, offer: _Offer, reason: str) -> None:
        self._held.remove(offer)
        if offer.crossed:
            self._ended(Role.ACTIVE, offer.peer, offer.seq, Outcome.GONE, reason)

    def _on_values(self, peer: PeerId, message: Message) -> None:
        served = self._served
        if served is None or (served.peer, served.seq) != (peer, message.seq) or message.vector is None:
            self._say(peer, Kind.REFUSE, message.seq, reason="no such exchange")
        elif not is_finite(message.vector):
            self.tally.refused += 1
            self._say(peer, Kind.REFUSE, message.seq, reason="your vector is not finite")
            self._release(Outcome.GONE, f"vector from {peer} is not finite")
        else:
            served.delta = self._codec.last(message.vector, served.mine, peer)
            self._ledger.promise((peer, served.initiator, message.seq))
            self._say(peer, Kind.READY, message.seq)

    def _on_commit(self, peer: PeerId, message: Message) -> None:
        served = self._served
        if served is not None and (served.peer, served.seq) == (peer, message.seq) and served.delta is not None:
            self._served = None
            self._apply_passive(peer, message.seq, served.delta, crossed=served.crossed)
        else:
            self._resolve((peer, message.initiator, message.seq), committed=True)
        self._confirm(peer, message)
        self._serve_held()

    def _confirm(self, peer: PeerId, message: Message) -> None:
        """Say that my half is done; or, if I never promised it in the life that I remember, that it is lost."""
        known = self._ledger.has_promised((peer, message.initiator, message.seq))
        self._send(peer, Message(Kind.CONFIRM, seq=message.seq, initiator=message.initiator, committed=known))

    def _on_abort(self, peer: PeerId, message: Message) -> None:
        served, reason = self._served, message.reason or "aborted by its initiator"
        held = next((o for o in self._held if (o.peer, o.seq) == (peer, message.seq)), None)
        if served is not None and (served.peer, served.seq) == (peer, message.seq):
            served.delta = None  # the initiator has decided: it is not in doubt
            self._release(Outcome.GONE, reason)
        elif held is not None:
            self._drop_held(held, reason)
        else:
            self._resolve((peer, message.initiator, message.seq), committed=False)

    def _on_verdict(self, peer: PeerId, message: Message) -> None:
        self._resolve((peer, message.initiator, message.seq), committed=message.committed)
        if message.committed:
            self._confirm(peer, message)

    def _resolve(self, doubt: Key, *, committed: bool) -> None:
        delta = self._ledger.doubts.pop(doubt, None)
        if delta is not None:
            self.tally.resolved += 1
            if committed:
                self._apply_passive(doubt[0], doubt[2], delta, crossed=False)

    def _apply_passive(self, peer: PeerId, seq: int, delta: Tensor, *, crossed: bool) -> None:
        self._add(delta)
        self.tally.passive += 1
        self._ended(Role.PASSIVE, peer, seq, Outcome.DONE, "")
        if crossed:
            self._ended(Role.ACTIVE, peer, seq, Outcome.DONE, "crossing offers became one exchange")

    def _release(self, outcome: Outcome, reason: str) -> None:
        """Stop serving without a commit; what was promised stays in doubt."""
        served, self._served = self._served, None
        assert served is not None
        if served.delta is not None:
            self._ledger.doubts[served.peer, served.initiator, served.seq] = served.delta
        self._ended(Role.PASSIVE, served.peer, served.seq, outcome, reason)
        if served.crossed:
            self._ended(Role.ACTIVE, served.peer, served.seq, outcome, reason)
        self._serve_held()

    # --- i, the one who offers and decides ----------------------------------------------------------------------

    def _on_busy(self, peer: PeerId, message: Message) -> None:
        if self._is_own(peer, message.seq):
            self.tally.busy += 1
            self._end_own(Outcome.BUSY, message.reason)

    def _on_accept(self, peer: PeerId, message: Message) -> None:
        own = self._own
        if own is None or not self._is_own(peer, message.seq) or own.delta is not None or message.vector is None:
            self._say(peer, Kind.ABORT, message.seq, reason="no such exchange")
        elif not is_finite(message.vector):
            self.tally.refused += 1
            self._say(peer, Kind.ABORT, message.seq, reason="your vector is not finite")
            self._end_own(Outcome.GONE, f"vector from {peer} is not finite")
        elif self._served is not None and self._served.overlapped:
            self._say(peer, Kind.ABORT, message.seq, reason="a third average would overlap")
            self.tally.busy += 1
            self._end_own(Outcome.BUSY, "a third average would overlap")
        else:
            values, own.delta = self._codec.second(message.vector, self._snapshot(), peer)
            if self._served is not None:
                self._served.overlapped = True
            self._say(peer, Kind.VALUES, message.seq, vector=values)

    def _on_ready(self, peer: PeerId, message: Message) -> None:
        own = self._own
        if own is None or not self._is_own(peer, message.seq) or own.delta is None:
            self._say(peer, Kind.ABORT, message.seq, reason="no such exchange")
            return
        if not self._ledger.commit((peer, self.incarnation, own.seq)):
            self.tally.lost += 1
        self._add(own.delta)
        self.tally.active += 1
        self._say(peer, Kind.COMMIT, own.seq)
        self._end_own(Outcome.DONE, "")

    def _on_confirm(self, peer: PeerId, message: Message) -> None:
        if self._ledger.confirm((peer, message.initiator, message.seq)) and not message.committed:
            self.tally.lost += 1  # the peer died after its promise, and its checkpoint is from before it

    def _on_refuse(self, peer: PeerId, message: Message) -> None:
        if self._is_own(peer, message.seq):
            self._end_own(Outcome.GONE, f"{peer} refused: {message.reason}")

    def _on_query(self, peer: PeerId, message: Message) -> None:
        if message.initiator == self.incarnation and self._is_own(peer, message.seq):
            self._end_own(Outcome.GONE, "asked before it was decided")  # the question decides it: no
        committed = self._ledger.has_committed((peer, message.initiator, message.seq))
        self._send(peer, dataclasses.replace(message, kind=Kind.VERDICT, committed=committed))

    def _is_own(self, peer: PeerId, seq: int) -> bool:
        return self._own is not None and (self._own.peer, self._own.seq) == (peer, seq)

    def _end_own(self, outcome: Outcome, reason: str) -> None:
        own, self._own = self._own, None
        assert own is not None
        if outcome is Outcome.GONE:
            self.tally.gone += 1
        self._ended(Role.ACTIVE, own.peer, own.seq, outcome, reason)
        self._serve_held()

    def _say(
        self,
        peer: PeerId,
        kind: Kind,
        seq: int,
        *,
        reason: str = "",
        vector: Tensor | None = None,
    ) -> None:
        self._send(peer, Message(kind, seq=seq, initiator=self.incarnation, reason=reason, vector=vector))

    # --- checkpoints --------------------------------------------------------------------------------------------

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON document, tensors) to be written with the state into one checkpoint. A promised delta is in doubt."""
        served = self._served
        open_promise = {}
        if served is not None and served.delta is not None:
            open_promise = {(served.peer, served.initiator, served.seq): served.delta}
        return self._ledger.export(open_promise)

    def restore(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes up what `export` gave, under a new incarnation."""
        self._ledger.restore(document, tensors)
