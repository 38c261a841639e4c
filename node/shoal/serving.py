"""j, the one who serves: takes offers, promises its half, applies it when the initiator says so. Pure.

What has been promised and not decided stays in doubt (see `exchange.py`); only the initiator's word settles it.
"""

from collections.abc import Callable

from shoal.delta import Delta, Made
from shoal.ledger import Key
from shoal.messages import Kind, Message, PeerId
from shoal.pair_codec import Duplex
from shoal.settling import Desk, Offer, Outcome, Role, Served
from shoal.vector import is_finite

MAX_IN_DOUBT = 4
"""Deltas in doubt that a node holds, each as large as the model, before it answers BUSY."""
MAX_HELD = 1
"""Offers that wait here while another is served. A held offer needs no second asking; with more, a node would wait
behind a slow one although others are free."""


class Serving:
    """The averages that others ask this node for."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.answers: dict[Kind, Callable[[PeerId, Message], None]] = {
            Kind.OFFER: self._on_offer,
            Kind.VALUES: self._on_values,
            Kind.COMMIT: self._on_commit,
            Kind.ABORT: self._on_abort,
            Kind.VERDICT: self._on_verdict,
        }

    def stop_waiting(self) -> None:
        """Give up waiting for the initiator that is served: drop the exchange, or hold it in doubt if promised."""
        served = self._desk.served
        if served is not None:
            if served.delta is None:
                self._desk.say(served.peer, Kind.REFUSE, served.seq, reason="waited too long")
            self._release(Outcome.GONE, "the initiator fell silent")

    def down(self, peer: PeerId) -> None:
        """The connection to `peer` broke."""
        for offer in [offer for offer in self._desk.held if offer.peer == peer]:
            self._drop_held(offer, "connection broke")
        if self._desk.served is not None and self._desk.served.peer == peer:
            self._release(Outcome.GONE, "connection broke")

    def _on_offer(self, peer: PeerId, message: Message) -> None:
        own = self._desk.own
        codec, unknown = self._desk.codecs.agreed(message.codec)
        offer = Offer(peer, message.initiator, message.seq, codec)
        if own is not None and own.peer == peer and not own.out:
            if self._desk.me < peer:
                return  # both offered at once: the lower id's offer stands, and the peer sees it the same way
            offer.crossed, self._desk.own = True, None
        free, reason = self._may_serve()
        if unknown:
            self._desk.say(peer, Kind.REFUSE, message.seq, reason=unknown)
            if offer.crossed:
                self._desk.ended(Role.ACTIVE, peer, message.seq, Outcome.GONE, unknown)
        elif free:
            self._serve(offer)
        elif len(self._desk.held) < MAX_HELD and len(self._desk.ledger.doubts) < MAX_IN_DOUBT:
            self._desk.held.append(offer)
        else:
            self._desk.say(peer, Kind.BUSY, message.seq, reason=reason)
            if offer.crossed:
                self._desk.tally.busy += 1
                self._desk.ended(Role.ACTIVE, peer, message.seq, Outcome.BUSY, reason)

    def _may_serve(self) -> tuple[bool, str]:
        """One at a time, and none is begun while an own snapshot is out: with two averages on one stale snapshot the
        weight on the old self is zero, with more it is negative. (Two meet only when an own offer is accepted while
        another is served; over 16 seeds on digits, beginning one more then cost outliers of 3 points in accuracy.)"""
        if self._desk.served is not None:
            return False, f"serving {self._desk.served.peer}"
        if len(self._desk.ledger.doubts) >= MAX_IN_DOUBT:
            return False, f"{len(self._desk.ledger.doubts)} exchanges in doubt"
        if self._desk.own is not None and self._desk.own.out:
            return False, f"averaging with {self._desk.own.peer}"
        return True, ""

    def _serve(self, offer: Offer) -> None:
        codec = self._desk.codecs[offer.codec]
        if isinstance(codec, Duplex):  # first of all: the peer takes its own while we take ours
            self._desk.say(offer.peer, Kind.GRANT, offer.seq, codec=offer.codec)
            sent = mine = self._desk.to_send(codec)
        else:
            mine = self._desk.snapshot()
            sent = codec.first(mine)
        self._desk.served = Served(offer.peer, offer.initiator, offer.seq, mine, offer.codec, offer.crossed)
        self._desk.tally.goes(offer.peer, offer.codec)
        self._desk.say(offer.peer, Kind.ACCEPT, offer.seq, vector=sent, codec=offer.codec)

    def serve_held(self) -> None:
        """After whatever has made this node free."""
        while self._desk.held and self._may_serve()[0]:
            offer, own = self._desk.held.pop(0), self._desk.own
            if own is not None and own.peer == offer.peer and not own.out:
                offer.crossed, self._desk.own = True, None  # it has ignored that one: its own stands
            self._serve(offer)

    def _drop_held(self, offer: Offer, reason: str) -> None:
        self._desk.held.remove(offer)
        if offer.crossed:
            self._desk.ended(Role.ACTIVE, offer.peer, offer.seq, Outcome.GONE, reason)

    def _on_values(self, peer: PeerId, message: Message) -> None:
        served = self._desk.served
        if served is None or (served.peer, served.seq) != (peer, message.seq) or message.vector is None:
            self._desk.say(peer, Kind.REFUSE, message.seq, reason="no such exchange")
        elif not (message.finite or is_finite(message.vector)):
            self._desk.tally.refused += 1
            self._desk.say(peer, Kind.REFUSE, message.seq, reason="your vector is not finite")
            self._release(Outcome.REFUSED, f"vector from {peer} is not finite")
        else:
            codec = self._desk.codecs[served.codec]
            come = codec.delta if isinstance(codec, Duplex) else codec.last
            delta, far = self._desk.bounded(come(served.mine, message.vector, peer))
            if far:
                self._desk.tally.refused += 1
                self._desk.say(peer, Kind.REFUSE, message.seq, reason=far)
                self._release(Outcome.REFUSED, f"{peer} was told: {far}")
                return
            served.delta = delta
            self._desk.ledger.promise((peer, served.initiator, message.seq))
            self._desk.say(peer, Kind.READY, message.seq)

    def _on_commit(self, peer: PeerId, message: Message) -> None:
        served = self._desk.served
        if served is not None and (served.peer, served.seq) == (peer, message.seq) and served.delta is not None:
            self._desk.served = None
            self._apply(peer, message.seq, served.delta, crossed=served.crossed)
        else:
            self._resolve((peer, message.initiator, message.seq), committed=True)
        self._confirm(peer, message)
        self.serve_held()

    def _confirm(self, peer: PeerId, message: Message) -> None:
        """Say that my half is done; or, if I never promised it in the life that I remember, that it is lost."""
        known = self._desk.ledger.has_promised((peer, message.initiator, message.seq))
        self._desk.send(peer, Message(Kind.CONFIRM, seq=message.seq, initiator=message.initiator, committed=known))

    def _on_abort(self, peer: PeerId, message: Message) -> None:
        served, reason = self._desk.served, message.reason or "aborted by its initiator"
        held = next((o for o in self._desk.held if (o.peer, o.seq) == (peer, message.seq)), None)
        if served is not None and (served.peer, served.seq) == (peer, message.seq):
            served.delta = None  # the initiator has decided: it is not in doubt
            self._release(Outcome.REFUSED if message.reason else Outcome.GONE, reason)
        elif held is not None:
            self._drop_held(held, reason)
        else:
            self._resolve((peer, message.initiator, message.seq), committed=False)

    def _on_verdict(self, peer: PeerId, message: Message) -> None:
        self._resolve((peer, message.initiator, message.seq), committed=message.committed)
        if message.committed:
            self._confirm(peer, message)

    def _resolve(self, doubt: Key, *, committed: bool) -> None:
        delta = self._desk.ledger.doubts.pop(doubt, None)
        if delta is not None:
            self._desk.tally.resolved += 1
            if committed:
                self._apply(doubt[0], doubt[2], Made(delta), crossed=False)

    def _apply(self, peer: PeerId, seq: int, delta: Delta, *, crossed: bool) -> None:
        self._desk.add(delta)
        self._desk.tally.passive += 1
        self._desk.ended(Role.PASSIVE, peer, seq, Outcome.DONE, "")
        if crossed:
            self._desk.ended(Role.ACTIVE, peer, seq, Outcome.DONE, "crossing offers became one exchange")

    def _release(self, outcome: Outcome, reason: str) -> None:
        """Stop serving without a commit; what was promised stays in doubt."""
        served, self._desk.served = self._desk.served, None
        assert served is not None
        if served.delta is not None:
            self._desk.ledger.doubts[served.peer, served.initiator, served.seq] = served.delta.tensor()
        self._desk.ended(Role.PASSIVE, served.peer, served.seq, outcome, reason)
        if served.crossed:
            self._desk.ended(Role.ACTIVE, served.peer, served.seq, outcome, reason)
        self.serve_held()
