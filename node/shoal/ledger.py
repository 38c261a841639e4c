"""What one node remembers of exchanges that both ends do not know to be settled yet. Pure.

As initiator: its commits, until the peer has confirmed them. As the one who served: the deltas in doubt, promised but
without a word from the initiator, and the highest exchange promised to each, by which a repeated commit is known from
one that an earlier life of this node has promised and lost.
"""

from typing import Any

from torch import Tensor

from shoal.messages import Kind, Message, PeerId

MAX_COMMITS = 10_000
"""Commits unconfirmed (three numbers each); beyond it the oldest is dropped and counted as lost."""

Key = tuple[PeerId, int, int]
"""(the other end, incarnation of the initiator, sequence number)."""


class Ledger:
    """Commits, doubts and promises of one node."""

    def __init__(self) -> None:
        self.doubts: dict[Key, Tensor] = {}
        self._commits: dict[Key, None] = {}  # in the order in which they were made
        self._promised: dict[tuple[PeerId, int], int] = {}

    # --- as initiator -------------------------------------------------------------------------------------------

    def commit(self, key: Key) -> bool:
        """Remember a commit; False when an older one had to be forgotten for it."""
        self._commits[key] = None
        if len(self._commits) <= MAX_COMMITS:
            return True
        del self._commits[next(iter(self._commits))]
        return False

    def has_committed(self, key: Key) -> bool:
        """Whether that exchange was committed here, and not confirmed yet."""
        return key in self._commits

    def confirm(self, key: Key) -> bool:
        """Forget a commit that its peer knows of; False when it was confirmed before."""
        if key not in self._commits:
            return False
        del self._commits[key]
        return True

    @property
    def unconfirmed(self) -> int:
        """Commits remembered."""
        return len(self._commits)

    # --- as the one who served ----------------------------------------------------------------------------------

    def promise(self, key: Key) -> None:
        """This node has said READY: from now on only the initiator decides."""
        peer, incarnation, seq = key
        self._promised[peer, incarnation] = seq

    def has_promised(self, key: Key) -> bool:
        """Whether this node, in the life that it remembers, has promised that exchange."""
        peer, incarnation, seq = key
        return seq <= self._promised.get((peer, incarnation), 0)

    # --- both ---------------------------------------------------------------------------------------------------

    def to_say(self, peer: PeerId) -> list[Message]:
        """On a new connection: ask about what is in doubt, repeat what was not confirmed."""
        asked = [Message(Kind.QUERY, seq=seq, initiator=i) for to, i, seq in self.doubts if to == peer]
        repeated = [Message(Kind.COMMIT, seq=seq, initiator=i) for to, i, seq in self._commits if to == peer]
        return asked + repeated

    def peers(self) -> list[PeerId]:
        """The other ends of all that is open here, with repetitions."""
        return [peer for peer, _, _ in (*self.doubts, *self._commits)]

    def export(self, promised: dict[Key, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON document, tensors) for a checkpoint. `promised` belongs to an exchange still open; read back, it
        is in doubt."""
        doubts = {**self.doubts, **promised}
        document = {
            "records": [list(key) for key in self._commits],
            "doubts": [list(key) for key in doubts],
            "promised": [[peer, incarnation, seq] for (peer, incarnation), seq in self._promised.items()],
        }
        return document, {f"doubt.{k}": delta.clone() for k, delta in enumerate(doubts.values())}

    def restore(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes up what `export` gave."""
        for peer, incarnation, seq in document.get("records", []):
            self._commits[str(peer), int(incarnation), int(seq)] = None
        for peer, incarnation, seq in document.get("promised", []):
            self._promised[str(peer), int(incarnation)] = int(seq)
        for k, (peer, incarnation, seq) in enumerate(document.get("doubts", [])):
            self.doubts[str(peer), int(incarnation), int(seq)] = tensors[f"doubt.{k}"]
