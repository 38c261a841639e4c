"""What the two roles of an average share: its words, what is open and whom to tell. Pure.

`active.py` is the one who offers and decides, `passive.py` the one who serves, `exchange.py` both of one node.
"""

import dataclasses
import enum
from collections.abc import Callable

from torch import Tensor

from shoal.ledger import Ledger
from shoal.messages import Kind, Message, PeerId
from shoal.pair_codec import Full, PairCodec


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
class Own:
    """The one exchange that this node has initiated and not decided."""

    peer: PeerId
    seq: int
    delta: Tensor | None = None  # (r - s) / 2, once the peer's ACCEPT came; from then on s is out


@dataclasses.dataclass(slots=True)
class Offer:
    """An offer that another node has made."""

    peer: PeerId
    initiator: int
    seq: int
    crossed: bool = False  # my own offer to the same peer has become this one


@dataclasses.dataclass(slots=True)
class Served:
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


@dataclasses.dataclass(slots=True)
class Desk:
    """What is open at one node, and the four calls out of it (see `Settlement`)."""

    me: PeerId
    incarnation: int
    snapshot: Callable[[], Tensor]
    add: Callable[[Tensor], None]
    send: Callable[[PeerId, Message], None]
    ended: Callable[[Role, PeerId, int, Outcome, str], None]
    codec: PairCodec = dataclasses.field(default_factory=Full)
    own: Own | None = None
    served: Served | None = None
    held: list[Offer] = dataclasses.field(default_factory=list)
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    tally: Tally = dataclasses.field(default_factory=Tally)

    def say(self, peer: PeerId, kind: Kind, seq: int, *, reason: str = "", vector: Tensor | None = None) -> None:
        """A message about an exchange, under this node's own incarnation."""
        self.send(peer, Message(kind, seq=seq, initiator=self.incarnation, reason=reason, vector=vector))
