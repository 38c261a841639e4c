"""i, the one who offers an average and decides whether it has happened. Pure."""

import dataclasses
from collections.abc import Callable

from shoal.delta import Delta
from shoal.messages import Kind, Message, PeerId
from shoal.pair_codec import Duplex, PairCodec
from shoal.settling import Desk, Outcome, Own, Role
from shoal.vector import is_finite


class Offering:
    """The averages that this node asks others for, one at a time. `freed()` is called after each has ended."""

    def __init__(self, desk: Desk, freed: Callable[[], None]) -> None:
        self._desk, self._freed = desk, freed
        self._last_seq: dict[PeerId, int] = {}
        self.answers: dict[Kind, Callable[[PeerId, Message], None]] = {
            Kind.BUSY: self._on_busy,
            Kind.GRANT: self._on_grant,
            Kind.ACCEPT: self._on_accept,
            Kind.READY: self._on_ready,
            Kind.CONFIRM: self._on_confirm,
            Kind.REFUSE: self._on_refuse,
            Kind.QUERY: self._on_query,
        }

    def offer(self, peer: PeerId) -> int:
        """Offer `peer` an average; returns its sequence number. One own exchange at a time."""
        desk = self._desk
        if desk.own is not None:
            raise RuntimeError(f"{desk.me} offers {peer} an average while one with {desk.own.peer} is open")
        seq = self._last_seq.get(peer, 0) + 1
        self._last_seq[peer] = seq
        desk.own = Own(peer, seq)
        if desk.me < peer:  # the peer takes its own waiting offer for part of this one
            desk.held = [offer for offer in desk.held if offer.peer != peer]
        desk.say(peer, Kind.OFFER, seq, codec=desk.codecs.wish)
        return seq

    def withdraw(self) -> None:
        """Give up the own exchange, as its initiator may at any time before it commits."""
        own = self._desk.own
        if own is not None:
            self._desk.tally.withdrawn += 1
            self._desk.say(own.peer, Kind.ABORT, own.seq)
            self._end_own(Outcome.BUSY, "no answer in time")

    def down(self, peer: PeerId) -> None:
        """The connection to `peer` broke."""
        if self._desk.own is not None and self._desk.own.peer == peer:
            self._end_own(Outcome.GONE, "connection broke")

    def _on_busy(self, peer: PeerId, message: Message) -> None:
        if self._is_own(peer, message.seq):
            self._desk.tally.busy += 1
            self._end_own(Outcome.BUSY, message.reason)

    def _on_grant(self, peer: PeerId, message: Message) -> None:
        """r is on its way, and s goes out to meet it."""
        own = self._desk.own
        if own is None or not self._is_own(peer, message.seq) or own.out:
            self._desk.say(peer, Kind.ABORT, message.seq, reason="no such exchange")
        elif (codec := self._chosen(own, message.codec)) is None:
            return
        elif not isinstance(codec, Duplex):
            self._give_up(own, f"{own.codec} goes in turn, and has no GRANT")
        elif self._goes_out(own):
            own.mine = self._desk.to_send(codec)
            self._desk.say(peer, Kind.VALUES, message.seq, vector=own.mine)

    def _on_accept(self, peer: PeerId, message: Message) -> None:
        own = self._desk.own
        if own is None or not self._is_own(peer, message.seq) or own.delta is not None or message.vector is None:
            self._desk.say(peer, Kind.ABORT, message.seq, reason="no such exchange")
        elif not (message.finite or is_finite(message.vector)):
            self._desk.tally.refused += 1
            self._desk.say(peer, Kind.ABORT, message.seq, reason="your vector is not finite")
            self._end_own(Outcome.REFUSED, f"vector from {peer} is not finite")
        elif (codec := self._chosen(own, message.codec)) is None:
            return
        elif isinstance(codec, Duplex):
            if own.mine is None:
                self._give_up(own, "your vector came before your word that it would")
            else:
                delta = codec.delta(own.mine, message.vector, peer)
                own.mine = None
                self._is_near(own, delta)
        elif self._goes_out(own):
            values, delta = codec.second(message.vector, self._desk.snapshot(), peer)
            if self._is_near(own, delta):
                self._desk.say(peer, Kind.VALUES, message.seq, vector=values)

    def _is_near(self, own: Own, delta: Delta) -> bool:
        """Whether the two models may be averaged, and then that is its delta; if not, the exchange is over."""
        own.delta, far = self._desk.bounded(delta)
        if far:
            self._desk.tally.refused += 1
            self._give_up(own, far)
        return not far

    def _chosen(self, own: Own, said: str) -> PairCodec | None:
        """What the peer has chosen, once and for all; None where it must not, and then the exchange is over."""
        if not own.codec:
            own.codec, wrong = self._desk.codecs.chosen(said)
            if wrong:
                self._give_up(own, wrong)
                return None
            self._desk.tally.goes(own.peer, own.codec)
        return self._desk.codecs[own.codec]

    def _give_up(self, own: Own, reason: str) -> None:
        """The peer breaks a rule, or its model is not wanted."""
        self._desk.say(own.peer, Kind.ABORT, own.seq, reason=reason)
        self._end_own(Outcome.REFUSED, f"{own.peer} was told: {reason}")

    def _goes_out(self, own: Own) -> bool:
        """Whether s may be taken now; if not, the exchange is over."""
        served = self._desk.served
        if served is not None and served.overlapped:
            self._desk.say(own.peer, Kind.ABORT, own.seq, reason="a third average would overlap")
            self._desk.tally.busy += 1
            self._end_own(Outcome.BUSY, "a third average would overlap")
            return False
        if served is not None:
            served.overlapped = True
        own.out = True
        return True

    def _on_ready(self, peer: PeerId, message: Message) -> None:
        own = self._desk.own
        if own is None or not self._is_own(peer, message.seq) or own.delta is None:
            self._desk.say(peer, Kind.ABORT, message.seq, reason="no such exchange")
            return
        if not self._desk.ledger.commit((peer, self._desk.incarnation, own.seq)):
            self._desk.tally.lost += 1
        self._desk.say(peer, Kind.COMMIT, own.seq)  # before the own half: the peer applies its half meanwhile
        self._desk.add(own.delta)
        self._desk.tally.active += 1
        self._end_own(Outcome.DONE, "")

    def _on_confirm(self, peer: PeerId, message: Message) -> None:
        if self._desk.ledger.confirm((peer, message.initiator, message.seq)) and not message.committed:
            self._desk.tally.lost += 1  # the peer died after its promise, and its checkpoint is from before it

    def _on_refuse(self, peer: PeerId, message: Message) -> None:
        if self._is_own(peer, message.seq):
            self._end_own(Outcome.REFUSED, f"{peer} refused: {message.reason}")

    def _on_query(self, peer: PeerId, message: Message) -> None:
        if message.initiator == self._desk.incarnation and self._is_own(peer, message.seq):
            self._end_own(Outcome.GONE, "asked before it was decided")  # the question decides it: no
        committed = self._desk.ledger.has_committed((peer, message.initiator, message.seq))
        self._desk.send(peer, dataclasses.replace(message, kind=Kind.VERDICT, committed=committed))

    def _is_own(self, peer: PeerId, seq: int) -> bool:
        return self._desk.own is not None and (self._desk.own.peer, self._desk.own.seq) == (peer, seq)

    def _end_own(self, outcome: Outcome, reason: str) -> None:
        own, self._desk.own = self._desk.own, None
        assert own is not None
        if outcome in (Outcome.GONE, Outcome.REFUSED):
            self._desk.tally.gone += 1
        self._desk.ended(Role.ACTIVE, own.peer, own.seq, outcome, reason)
        self._freed()
