"""What two workers say to each other: one small record, the same over gRPC and in virtual time.

Settling a pairwise average (`exchange.py`), i asks and decides, j answers:

    i  OFFER  ->                 may we average?
       <- BUSY                   no: j serves another and holds one more offer already
       <- GRANT                  yes, and my vector follows (where s needs not wait for it: `pair_codec.py`)
       <- ACCEPT + r             yes, and this is j's vector as it is now
       VALUES + s ->             this is i's vector as it is now; after a GRANT it goes while r comes
       <- READY                  s came whole; j has put its half aside
       COMMIT ->                 i has applied its half, and remembers so
       <- CONFIRM                j has applied its half; i may forget
    i  ABORT ->                  nothing happens (r was refused, i waited too long, or it never committed)
       <- REFUSE                 j, before its READY: nothing happens (s was refused, the exchange is unknown)
    j  QUERY  ->                 after a broken stream: did you commit?
       <- VERDICT                i: yes or no
    PULL -> , <- MODEL + x       a latecomer asks for a model; its tag says to which round it belongs, and its step
                                 how many more follow with what the algorithm keeps beside x

Synchronous rounds (`rounds.py`): POST + vector, answered by RECEIVED.

Nodes of one machine (`sharing.py`): MAPPED says that the sender sees the receiver's slots, so that vectors need not
travel, TAKEN that it is done with one.
"""

import dataclasses
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the daemon reads headers, and imports no torch
    from torch import Tensor

PeerId = str
"""Node id, made once and kept on disk; ids sort as strings, and sums run in that order."""


class Kind(enum.IntEnum):
    """Numbers are those of `MessageKind` in the proto."""

    OFFER = 1
    BUSY = 2
    ACCEPT = 3
    VALUES = 4
    READY = 5
    COMMIT = 6
    CONFIRM = 7
    ABORT = 8
    QUERY = 9
    VERDICT = 10
    PULL = 11
    MODEL = 12
    POST = 13
    RECEIVED = 14
    REFUSE = 15
    GRANT = 16
    MAPPED = 17
    TAKEN = 18


AVERAGES = frozenset({Kind.ACCEPT, Kind.VALUES})
"""The two vectors of an average."""
CARRIES_VECTOR = frozenset({Kind.ACCEPT, Kind.VALUES, Kind.MODEL, Kind.POST})


@dataclasses.dataclass(frozen=True, slots=True)
class Tag:
    """Which post of a synchronous run this is: view, round, purpose, and step within it."""

    view: str
    round: int
    purpose: str  # "mix", or what is averaged over all: "mean", "counts", ...
    step: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message. Unused fields keep their defaults."""

    kind: Kind
    seq: int = 0  # number of the exchange, counted by its initiator for each peer; TAKEN: the ticket
    initiator: int = 0  # incarnation of the initiator when the exchange began (QUERY, VERDICT)
    committed: bool = False  # VERDICT: I did; CONFIRM: my half is done, too
    reason: str = ""  # ABORT, REFUSE, BUSY
    tag: Tag | None = None  # POST, RECEIVED, MODEL
    gradients: int = 0  # gradients the sender has applied so far; the end of a run is counted with it
    heard: tuple[tuple[PeerId, int], ...] = ()  # gradients of others, passed on (OFFER, ACCEPT)
    # (n,) float32 or float64, or uint8 if packed; of the kinds in CARRIES_VECTOR. In an average it is the receiver's to
    # change, and lies in a buffer that others wait for: whoever keeps it for longer than a round trip copies it.
    vector: "Tensor | None" = None
    finite: bool = False  # it is known to be
    codec: str = ""  # OFFER: what i wishes for; GRANT, or an ACCEPT without one: what is taken. "": the plainest
