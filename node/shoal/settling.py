"""What the two roles of an average share: its words, what is open and whom to tell. Pure.

`offering.py` is the one who offers and decides, `serving.py` the one who serves, `exchange.py` both of one node.
"""

import dataclasses
import enum
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shoal.apart import Apart
from shoal.delta import Delta
from shoal.ledger import Ledger
from shoal.messages import Kind, Message, PeerId
from shoal.pair_codec import Duplex, PairCodecs

CODECS_LIMIT = 256
"""Neighbours whose codec is told."""
CLIPPED_AT_MOST = 1e20
"""Euclid's distance from which models are refused where nearer ones are clipped: a difference that is not finite has no
length, and a factor that is no normal number of float32 is not exact."""


class Outcome(enum.Enum):
    """How an average ended for the one who asked for it."""

    DONE = "done"
    BUSY = "busy"
    GONE = "gone"  # its connection broke
    REFUSED = "refused"  # by either end, because of what the other sent


class Role(enum.Enum):
    """Which end of an exchange: the one who offered, or the one who served."""

    ACTIVE = "active"
    PASSIVE = "passive"


@dataclasses.dataclass(slots=True)
class Own:
    """The one exchange that this node has initiated and not decided."""

    peer: PeerId
    seq: int
    out: bool = False  # s has been taken, and sent
    codec: str = ""  # once the peer has chosen
    mine: Tensor | None = None  # s as it was sent, while r is on its way
    delta: Delta | None = None  # (r - s) / 2, once the peer's ACCEPT came


@dataclasses.dataclass(slots=True)
class Offer:
    """An offer that another node has made."""

    peer: PeerId
    initiator: int
    seq: int
    codec: str
    crossed: bool = False  # my own offer to the same peer has become this one


@dataclasses.dataclass(slots=True)
class Served:
    """The one exchange that this node serves for another."""

    peer: PeerId
    initiator: int
    seq: int
    mine: Tensor  # r; as it was sent, where s goes at the same time
    codec: str
    crossed: bool
    delta: Delta | None = None  # (s - r) / 2 once s has come; from then on it is promised
    overlapped: bool = False


@dataclasses.dataclass(slots=True)
class Tally:
    """Totals for the metrics."""

    active: int = 0  # averages finished that this node offered
    passive: int = 0  # averages finished that this node served
    busy: int = 0  # own offers answered BUSY
    gone: int = 0  # own exchanges ended by a broken connection, or refused
    withdrawn: int = 0  # own exchanges given up because no answer came
    refused: int = 0  # vectors of peers that were not finite, or too far away
    clipped: int = 0  # differences to models of peers that were shortened
    resolved: int = 0  # doubts settled by asking
    lost: int = 0  # exchanges of which only one half may have happened
    codecs: dict[PeerId, str] = dataclasses.field(default_factory=dict)  # of the last exchange with each, the last last

    def goes(self, peer: PeerId, codec: str) -> None:
        """An exchange with `peer` travels by that codec."""
        self.codecs.pop(peer, None)
        self.codecs[peer] = codec
        if len(self.codecs) > CODECS_LIMIT:
            del self.codecs[next(iter(self.codecs))]


@dataclasses.dataclass(slots=True)
class Desk:
    """What is open at one node, and the five calls out of it (see `Settlement`)."""

    me: PeerId
    incarnation: int
    snapshot: Callable[[], Tensor]
    state: Callable[[], Tensor]
    add: Callable[[Delta], None]
    send: Callable[[PeerId, Message], None]
    ended: Callable[[Role, PeerId, int, Outcome, str], None]
    codecs: PairCodecs = dataclasses.field(default_factory=PairCodecs)
    max_distance: float = math.inf
    clip_distance: float = math.inf
    own: Own | None = None
    served: Served | None = None
    held: list[Offer] = dataclasses.field(default_factory=list)
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    tally: Tally = dataclasses.field(default_factory=Tally)
    apart: Apart = dataclasses.field(default_factory=Apart)

    def to_send(self, codec: Duplex) -> Tensor:
        """What goes out of this node's model, which may change from now on."""
        return codec.own(self.snapshot() if codec.as_it_is else self.state())

    def bounded(self, delta: Delta) -> tuple[Delta, str]:
        """(what is added of it, why these models are not averaged at all), by their distance, twice the delta's length.

        Self-centred clipping: min(1, tau / |r - s|) (r - s) / 2, so that no average moves a model by more than tau / 2,
        tau being `clip_distance`. That is x_i += sum_j W_ij clip(x_j - x_i, tau) of He, Karimireddy and Jaggi
        (Byzantine-robust decentralized learning via ClippedGossip, 2202.01545: from memory, unverified) for one pair
        and W_ij = 1/2. Both ends reckon with the same two vectors, and r - s is as long as s - r, so their deltas
        cancel as they do without it. Squares are summed in float64 and the factor is rounded to float32: machines that
        sum in another order have the same one, too, but for about one average in a million, where it is off by 2^-24.
        """
        self.apart.look(lambda: 2 * delta.length(), lambda: float(torch.linalg.vector_norm(self.state())))
        if self.max_distance == self.clip_distance == math.inf:
            return delta, ""
        clips = self.clip_distance < math.inf
        most = min(self.max_distance, CLIPPED_AT_MOST) if clips else self.max_distance
        away = 2 * delta.length(torch.float64 if clips else None)
        if not away <= most:
            return delta, f"our models are {away:.3g} apart, at most {most:g} here"
        if away <= self.clip_distance:
            return delta, ""
        self.tally.clipped += 1
        return delta.shortened(float(np.float32(self.clip_distance / away))), ""

    def say(
        self, peer: PeerId, kind: Kind, seq: int, *, reason: str = "", vector: Tensor | None = None, codec: str = ""
    ) -> None:
        """A message about an exchange, under this node's own incarnation."""
        self.send(peer, Message(kind, seq=seq, initiator=self.incarnation, reason=reason, vector=vector, codec=codec))
