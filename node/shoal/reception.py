"""Who is welcome at a node: its own Hello, its word on that of another, and whom it knows already."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from shoal import hello
from shoal.discovery import Candidate
from shoal.errors import Mismatch
from shoal.greeter import LOADING, Greeter
from shoal.membership import Membership
from shoal.roster import Action, State
from shoal.seeking import Seeking
from shoal.settings import Settings
from shoal.v1 import node_pb2 as pb


class Reception:
    """Of one node. `ready()` is what the trainer said once it had loaded task and data, None before; `do` carries out
    what membership wants; `connect` opens the streams to one who is welcome."""

    def __init__(
        self,
        settings: Settings,
        membership: Membership,
        greeter: Greeter,
        seeking: Seeking,
        *,
        ready: Callable[[], Mapping[str, Any] | None],
        do: Callable[[list[Action]], None],
        connect: Callable[[pb.Identity], None],
    ) -> None:
        self._settings, self._membership, self._greeter, self._seeking = settings, membership, greeter, seeking
        self._ready, self._do, self._connect = ready, do, connect
        self._memories: dict[str, dict[str, Any]] = {}  # of nodes that let others of their machine read

    def hello(self) -> pb.Hello:
        """Only once the trainer is ready: it shows the task's fingerprint."""
        ready, roster = self._ready(), self._membership.roster
        assert ready is not None
        return hello.own(self._settings, roster.me, ready, (m.identity for m in roster.around()))

    def judge(self, theirs: pb.Hello) -> str | None:
        """None welcomes; a text says what differs. Whoever is welcome is a member at once."""
        if self._ready() is None:
            return f"{self._membership.roster.me.node_id} is {LOADING}; ask again"
        reason = hello.compare(self.hello(), theirs)
        if reason is None and theirs.identity.role == pb.ROLE_COORDINATOR:
            reason = self._seeking.conflict(theirs.identity.node_id)
        if reason is None:
            try:
                self._do(self._membership.met(theirs.identity, theirs.samples, time.monotonic()))
            except Mismatch as error:
                return str(error)
            self._memories.pop(theirs.identity.node_id, None)
            if theirs.HasField("memory"):
                self._memories[theirs.identity.node_id] = hello.memory(theirs)
            self._connect(theirs.identity)
            for identity in theirs.known[: hello.KNOWN_LIMIT]:
                self.told(identity, theirs.identity.node_id)
        return reason

    def told(self, of: pb.Identity, by: str) -> None:
        """A member names another node, or passes on that one's word that it cannot greet this one first."""
        candidate, me = Candidate(of.address, f"member {by}", of.node_id, by), self._membership.roster.me
        if of.address == me.address and of.node_id != me.node_id:
            self.unreached(candidate)  # in another network, where that address is another's
        elif len(of.address) <= hello.ADDRESS_LIMIT:
            self._greeter.consider(candidate)

    def unreached(self, candidate: Candidate) -> None:
        """Nobody answered there, perhaps behind a firewall that lets nobody in: it is to greet this node, and hears
        that from the member that told of it."""
        if candidate.told_by:
            self._do(self._membership.introduce(candidate.told_by, candidate.node_id))

    def memory_of(self, peer_id: str) -> dict[str, Any] | None:
        """Where that node's vectors lie, by its last Hello; None where nobody may read them."""
        return self._memories.get(peer_id)

    def is_known(self, candidate: Candidate) -> bool:
        """Whether that is this node itself, or a member that is here, or has ended in order: by its id where a link
        stands, else by its address. A coordinator that starts again counts on being greeted: it is here while linked.
        """
        me, node_id = self._membership.roster.me, candidate.node_id
        if node_id == me.node_id or (not node_id and candidate.address == me.address):
            return True
        for m in self._membership.roster.members.values():
            its_place = m.identity.address == candidate.address and node_id in ("", m.id)
            here = m.state is not State.GONE and (m.linked or (its_place and not m.coordinates))
            if (here and (its_place or node_id == m.id)) or (its_place and m.finished):
                return True
        return False
