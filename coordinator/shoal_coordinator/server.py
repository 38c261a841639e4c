"""The coordinator among its workers: who said what, and when something falls due. Over gRPC and in virtual time."""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from shoal.enrolment import ENROL, VIEW, Enrolment
from shoal.errors import BadFrame, PeerError
from shoal.messages import Kind, Message, PeerId
from shoal.settings import Settings
from shoal_coordinator.parameters import ParameterServer
from shoal_coordinator.rounds import Terms
from shoal_coordinator.teller import Teller

if TYPE_CHECKING:
    from shoal_coordinator.store import Store

ROUNDING_S = 1e-6
"""A timer must not fire just before what it is for."""

Beside = Callable[[PeerId, Callable[[PeerId, Message], None], Callable[[], float]], "Server"]


class Server:
    """Serves one run. `send(peer, message)` hands over in order, and drops what cannot be delivered.

    `complain(peer, error)` is told of what a worker sent that cannot be right; the worker is told, too.
    """

    def __init__(
        self,
        me: PeerId,
        run: Settings,
        terms: Terms,
        *,
        send: Callable[[PeerId, Message], None],
        clock: Callable[[], float],
        store: "Store | None" = None,
        complain: Callable[[PeerId, PeerError], None] | None = None,
    ) -> None:
        self.me, self.run, self.terms = me, run, terms
        self.serves: Teller | ParameterServer
        if run.traits.rounds:
            self.serves = Teller(run, terms, send=send, clock=clock, store=store)
        else:
            self.serves = ParameterServer(run, send=send, clock=clock, store=store)
        self._send, self._clock, self._complain = send, clock, complain
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf

    def down(self, peer: PeerId) -> None:
        """The connection broke."""
        self.serves.down(peer)

    def left(self, peer: PeerId) -> None:
        """The worker took its leave, or has been silent for too long."""
        self.serves.left(peer)
        self._rearm()

    def received(self, peer: PeerId, message: Message) -> None:
        """A message of a worker. One that cannot be right changes nothing, and is answered by why."""
        try:
            self._take(peer, message)
        except PeerError as error:
            if isinstance(self.serves, Teller):
                self.serves.tally.votes["refused"] += 1
            self._send(peer, Message(Kind.REFUSE, reason=str(error)))
            if self._complain is not None:
                self._complain(peer, error)
        self._rearm()

    def expected(self) -> list[PeerId]:
        """Workers whose answers a round waits for, sorted."""
        return self.serves.roll.members if isinstance(self.serves, Teller) else []

    def model(self) -> Tensor | None:
        """A parameter server's, (d+b,), once a worker has brought the first."""
        return self.serves.x if isinstance(self.serves, ParameterServer) else None

    def close(self) -> None:
        """No timer any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, peer: PeerId, message: Message) -> None:
        tag = message.tag
        if message.kind is not Kind.POST or tag is None or tag.view != VIEW or message.vector is None:
            raise BadFrame(f"{message.kind.name} from {peer}, expected a post for a coordinator")
        if tag.purpose == ENROL:
            self.serves.enrol(peer, Enrolment.of(message, peer))
        else:
            self.serves.post(peer, message)

    def _rearm(self) -> None:
        """One timer, for what falls due next."""
        due = self.serves.due()
        if due == self._timer_due:
            return
        self.close()
        self._timer_due = due
        if due < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due - self._clock()) + ROUNDING_S, self._on_time)

    def _on_time(self) -> None:
        self._timer_due = math.inf
        self.serves.tick()
        self._rearm()


def beside(run: Settings, terms: Terms | None = None, store: "Store | None" = None) -> Beside:
    """What `simulation.World` takes as its coordinator."""

    def start(me: PeerId, send: Callable[[PeerId, Message], None], clock: Callable[[], float]) -> Server:
        return Server(me, run, terms or Terms(), send=send, clock=clock, store=store)

    return start
