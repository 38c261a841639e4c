"""Averages with one neighbour at a time: how long one may take, when a silent partner is given up. Over `exchange.py`,
which settles them."""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from shoal.delta import Delta
from shoal.exchange import Settlement
from shoal.messages import Kind, Message, PeerId
from shoal.pair_codec import PairCodecs
from shoal.settling import Outcome, Role

FIRST_PATIENCE_S = 30.0
"""How long an average may take before anything is known about how long one takes."""
LEAST_PATIENCE_S = 1.0
USUAL_TIMES = 10.0
"""An average that takes so many times longer than usual with that peer is given up; twice as many after each time."""


class Pairing:
    """One worker's averages. `record(event, **fields)` takes each that ended."""

    def __init__(
        self,
        me: PeerId,
        incarnation: int,
        *,
        snapshot: Callable[[], Tensor],
        state: Callable[[], Tensor],
        add: Callable[[Delta], None],
        send: Callable[[PeerId, Message], None],
        clock: Callable[[], float],
        rng: random.Random,
        record: Callable[..., None],
        codecs: PairCodecs | None = None,
        max_distance: float = math.inf,
        clip_distance: float = math.inf,
        least_s: float = 0.0,
    ) -> None:
        """`least_s`: what a vector takes at the rate to which this node is held, where there is one."""
        self._clock, self._rng, self._record = clock, rng, record
        self.settlement = Settlement(
            me,
            incarnation,
            snapshot=snapshot,
            state=state,
            add=add,
            send=send,
            ended=self._ended,
            codecs=codecs,
            max_distance=max_distance,
            clip_distance=clip_distance,
        )
        self.seconds = 0.0  # that own averages took
        self._first_patience_s = FIRST_PATIENCE_S + USUAL_TIMES * least_s
        self._answer: asyncio.Future[Outcome] | None = None
        self._serving: tuple[PeerId, int] | None = None
        self._served_since = self._offered_at = 0.0
        self._usual_s: dict[PeerId, float] = {}
        self._patience: dict[PeerId, float] = {}
        self._durations: deque[float] = deque(maxlen=4096)
        self._moved = asyncio.Event()

    async def average(self, peer: PeerId) -> Outcome:
        """Offer an average to `peer`, and wait for its end, or for the end of patience."""
        loop, began = asyncio.get_running_loop(), self._clock()
        self._answer, self._offered_at = loop.create_future(), began
        self.settlement.offer(peer)
        timer = loop.call_later(self._patience.get(peer, self._first_patience_s), self._lose_patience, peer)
        try:
            outcome = await self._answer
        finally:
            timer.cancel()
        took = self._clock() - began
        self.seconds += took
        if outcome is Outcome.DONE:
            self._durations.append(took)
            self._usual_s[peer] = 0.8 * self._usual_s.get(peer, took) + 0.2 * took
            self._patience[peer] = max(LEAST_PATIENCE_S, USUAL_TIMES * self._usual_s[peer])
        return outcome

    async def back_off(self, tries: int) -> None:
        """A random part of the time that an average usually takes, more after more tries."""
        usual = sum(self._usual_s.values()) / len(self._usual_s) if self._usual_s else 0.01
        await asyncio.sleep(self._rng.uniform(0.1, 1.0) * usual * min(tries, 8))

    async def settled(self, members: Sequence[PeerId]) -> None:
        """Until no exchange with them is open, in doubt or unconfirmed. Where all have finished, x is final then."""
        while self.settlement.unsettled(members):
            self._moved.clear()
            await self._moved.wait()

    def received(self, peer: PeerId, message: Message) -> None:
        """A message of an exchange."""
        if message.kind is Kind.OFFER:
            self._before_offer()
        self.settlement.received(peer, message)
        self._after_event()

    def up(self, peer: PeerId) -> None:
        """A connection to `peer` stands."""
        self.settlement.up(peer)

    def down(self, peer: PeerId) -> None:
        """The connection to `peer` broke."""
        self.settlement.down(peer)
        self._after_event()

    def take_durations(self) -> list[float]:
        """Seconds of the own averages that were done since the last call."""
        taken = list(self._durations)
        self._durations.clear()
        return taken

    def waits(self) -> list[dict[str, Any]]:
        """For whom an own average waits, and how long."""
        peer = self.settlement.active_with
        return [] if peer is None else [{"for": peer, "seconds": self._clock() - self._offered_at, "why": "average"}]

    def _lose_patience(self, peer: PeerId) -> None:
        if self.settlement.active_with == peer:
            self._patience[peer] = 2 * self._patience.get(peer, self._first_patience_s)
            self.settlement.withdraw()

    def _before_offer(self) -> None:
        """An initiator that fell silent must not keep this node busy for others."""
        if self._serving is not None:
            waited_s = self._clock() - self._served_since
            if waited_s > self._patience.get(self._serving[0], self._first_patience_s):
                self.settlement.stop_waiting()
                self._after_event()

    def _after_event(self) -> None:
        if self.settlement.serving != self._serving:  # perhaps one that was held, right after another
            self._serving, self._served_since = self.settlement.serving, self._clock()
        self._moved.set()

    def _ended(self, role: Role, peer: PeerId, seq: int, outcome: Outcome, reason: str) -> None:
        self._record("exchange", peer=peer, seq=seq, role=role.value, outcome=outcome.value, reason=reason)
        if role is Role.ACTIVE and self._answer is not None and not self._answer.done():
            self._answer.set_result(outcome)
