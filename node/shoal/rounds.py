"""Synchronous rounds: every post arrives exactly once, so both ends of an edge see it or neither does. Pure.

For D2 a loss that only one end sees biases the result for ever (sum of corrections is no longer 0). So a post is kept
until its receiver has confirmed it and is repeated on the next connection; a repeated one is confirmed again and
ignored. A neighbour may be one round ahead, never two: it needs our post of a round to leave it. Where not every
gradient has an exchange, a round here is one exchange with the gradients up to the next.
"""

from collections.abc import Callable

from torch import Tensor

from shoal.errors import BadFrame, BadVector
from shoal.messages import Kind, Message, PeerId, Tag
from shoal.vector import is_finite

MAX_WAITING = 4096
"""Posts of one peer that wait here. Two rounds of mixing need 2; a ring over n nodes sends up to n pieces ahead."""


class Rounds:
    """The post of one node: `post` puts a vector in the mail, `take` collects what has come.

    `send(peer, message)` hands a message to the link; `arrived(tag, peer)` tells that a post can be taken.
    """

    def __init__(self, *, send: Callable[[PeerId, Message], None], arrived: Callable[[Tag, PeerId], None]) -> None:
        self._send, self._arrived = send, arrived
        self._view = ""
        self._round = 0
        self._unconfirmed: dict[tuple[PeerId, Tag], Tensor] = {}
        self._inbox: dict[tuple[PeerId, Tag], Tensor] = {}
        self._taken: dict[tuple[PeerId, str, int, str], int] = {}  # the last step; this round's, and the one's before
        self._early: dict[PeerId, list[Message]] = {}  # posts of another view than ours
        self._up: set[PeerId] = set()

    @property
    def unconfirmed(self) -> int:
        """Posts that their receivers have not confirmed."""
        return len(self._unconfirmed)

    @property
    def view(self) -> str:
        """Id of the view whose posts count."""
        return self._view

    def waits(self) -> list[PeerId]:
        """Peers that have not confirmed a post, sorted."""
        return sorted({peer for peer, _ in self._unconfirmed})

    def enter(self, view: str, round: int) -> None:
        """Begin a view at a round. What belongs to another view is dropped; what came early for it is admitted."""
        self._view, self._round = view, round
        for box in (self._unconfirmed, self._inbox):
            for key in [k for k in box if k[1].view != view]:
                del box[key]
        self._taken = {key: step for key, step in self._taken.items() if key[1] == view}
        early, self._early = self._early, {}
        for peer in sorted(early):
            for message in early[peer]:
                if message.tag is not None and message.tag.view == view:
                    self.received(peer, message)

    def begin(self, round: int) -> None:
        """This node works on `round` now: what was taken before the last one is forgotten."""
        self._round = round
        for key in [k for k in self._taken if k[2] < round - 1]:
            del self._taken[key]

    def post(self, peer: PeerId, tag: Tag, vector: Tensor) -> None:
        """Send `vector` to `peer`, again after every broken connection, until it is confirmed."""
        self._unconfirmed[peer, tag] = vector
        if peer in self._up:
            self._send(peer, Message(Kind.POST, tag=tag, vector=vector))

    def take(self, peer: PeerId, tag: Tag) -> Tensor | None:
        """The post of `peer` under `tag`, once; None if it has not come. Steps of one purpose are taken in order."""
        vector = self._inbox.pop((peer, tag), None)
        if vector is not None:
            self._taken[peer, tag.view, tag.round, tag.purpose] = tag.step
        return vector

    def _was_taken(self, peer: PeerId, tag: Tag) -> bool:
        return self._taken.get((peer, tag.view, tag.round, tag.purpose), -1) >= tag.step

    def up(self, peer: PeerId) -> None:
        """A connection stands: repeat what was not confirmed, in the order in which it was posted."""
        self._up.add(peer)
        for (to, tag), vector in list(self._unconfirmed.items()):
            if to == peer:
                self._send(peer, Message(Kind.POST, tag=tag, vector=vector))

    def down(self, peer: PeerId) -> None:
        """The connection broke; posts wait for the next one."""
        self._up.discard(peer)

    def received(self, peer: PeerId, message: Message) -> None:
        """POST or RECEIVED. Raises BadFrame or BadVector, naming the peer, for what cannot be right."""
        tag = message.tag
        if tag is None:
            raise BadFrame(f"{message.kind.name} from {peer} has no tag")
        if message.kind is Kind.RECEIVED:
            self._unconfirmed.pop((peer, tag), None)
            return
        vector = message.vector
        if vector is None:
            raise BadFrame(f"POST from {peer} for round {tag.round} carries no vector")
        if tag.view != self._view:
            self._keep_early(peer, message)
            return
        if tag.round > self._round + 1:
            raise BadFrame(
                f"{peer} is in round {tag.round}, expected at most {self._round + 1}: "
                f"it cannot have our post of {self._round}"
            )
        key = (peer, tag)
        if tag.round >= self._round - 1 and not self._was_taken(peer, tag) and key not in self._inbox:
            if not is_finite(vector):
                raise BadVector(f"vector from {peer} in round {tag.round} holds NaN or Inf: its model has diverged")
            if sum(1 for k in self._inbox if k[0] == peer) >= MAX_WAITING:
                raise BadFrame(f"{peer} has more than {MAX_WAITING} posts waiting here")
            self._inbox[key] = vector
            self._send(peer, Message(Kind.RECEIVED, tag=tag))
            self._arrived(tag, peer)
        else:
            self._send(peer, Message(Kind.RECEIVED, tag=tag))  # a repetition

    def _keep_early(self, peer: PeerId, message: Message) -> None:
        """The peer installed a view before us, or is behind: unconfirmed, so it would come again after a reconnect;
        held, so that it need not."""
        held = self._early.setdefault(peer, [])
        if len(held) >= MAX_WAITING:
            raise BadFrame(f"{peer} has more than {MAX_WAITING} posts waiting for a view that is not ours")
        if message.tag not in [m.tag for m in held]:
            held.append(message)
