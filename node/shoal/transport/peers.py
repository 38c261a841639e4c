"""Who has said Hello and was welcome, and who is connected. Server and dialler share it; it does no I/O."""

import collections
import itertools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.transport.connection import Connection, Stream, Traffic, TransportEvents
from shoal.transport.rate import Limit
from shoal.v1 import node_pb2 as pb

if TYPE_CHECKING:
    from shoal.certificates.member import Member

_NODE_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # it goes into gRPC metadata and into logs
_TEXT_LIMIT = 256
_WELCOME_LIMIT = 100_000


class Peers:
    """The table of one node's peers."""

    def __init__(
        self,
        identity: pb.Identity,
        hello: Callable[[], pb.Hello],
        judge: Callable[[pb.Hello], str | None],
        events: TransportEvents,
        limit: Limit,
    ) -> None:
        self.identity = identity
        self.hello = hello
        self.events = events
        self.limit = limit
        self.live: dict[str, Connection] = {}
        self.traffic: collections.defaultdict[str, Traffic] = collections.defaultdict(Traffic)
        self.numbers = itertools.count(1)
        self._judge = judge
        self._welcome: dict[str, pb.Identity] = {}

    def receive(self, hello: pb.Hello) -> str | None:
        """Decides on a Hello that came, as a request or as an answer: None is welcome, else why it is refused."""
        identity = hello.identity
        reason = self._improper(identity) or self._judge(hello)
        if reason is None:
            self._welcome[identity.node_id] = identity
            connection = self.live.get(identity.node_id)
            if connection is not None and connection.peer.incarnation != identity.incarnation:
                connection.end(f"{identity.node_id} has started again")
        return reason

    def forget(self, node_id: str) -> None:
        """That node must say Hello again before it may open streams here."""
        self._welcome.pop(node_id, None)

    def admitted(self, node_id: str, incarnation: int) -> tuple[pb.Identity | None, str]:
        """The identity from that node's Hello, if its streams may be opened here; else None and why not."""
        known = self._welcome.get(node_id)
        if known is None:
            return None, f"{node_id!r} has not said Hello to {self.identity.node_id}, or was refused"
        if known.incarnation != incarnation:
            return None, f"{node_id} said Hello as incarnation {known.incarnation}, this is {incarnation}"
        live = self.live.get(node_id)
        if node_id > self.identity.node_id and live is not None and not live.over.is_set():
            return None, f"{node_id} is connected already, and {self.identity.node_id} has the lower node id"
        return known, "it said Hello"

    def begin(
        self, peer: pb.Identity, conn: int, streams: tuple[Stream, Stream], member: "Member | None" = None
    ) -> Connection:
        """Takes a new connection up, after taking down an older one. `streams`: Control, Exchange."""
        older = self.live.get(peer.node_id)
        if older is not None:
            older.end("replaced by a new connection")
        ours = self.hello()
        vector_bytes = (ours.element_bytes or 4) * ours.elements
        traffic = self.traffic[peer.node_id]
        connection = Connection(peer, conn, streams, vector_bytes, self.events, traffic, self.limit)
        connection.member = member
        self.live[peer.node_id] = connection
        connection.begin()
        return connection

    async def settle(self, connection: Connection) -> None:
        """Waits until nothing of an ended connection runs any more, and drops it."""
        await connection.settle()
        if self.live.get(connection.peer.node_id) is connection:
            del self.live[connection.peer.node_id]

    def itself(self, identity: pb.Identity) -> bool:
        """Whether that is this very node, which hears its own announcements."""
        return (identity.node_id, identity.incarnation) == (self.identity.node_id, self.identity.incarnation)

    def _improper(self, theirs: pb.Identity) -> str | None:
        """What is wrong with an identity, whatever its shoal and task."""
        if not _NODE_ID.fullmatch(theirs.node_id):
            return f"node id {theirs.node_id[:80]!r} must be 1 to 128 letters, digits, '_', '-' and '.'"
        for text in (theirs.name, theirs.address, theirs.http):
            if len(text) > _TEXT_LIMIT or not text.isprintable():
                return f"name or address {text[:80]!r} must be at most {_TEXT_LIMIT} printable characters"
        if self.itself(theirs):
            return f"{theirs.node_id} is this node itself"
        if theirs.node_id == self.identity.node_id:
            return f"two nodes have the id {theirs.node_id}: one runs on a copy of the other's state folder"
        known = self._welcome.get(theirs.node_id)
        if known is None and len(self._welcome) >= _WELCOME_LIMIT:
            return f"{self.identity.node_id} knows {_WELCOME_LIMIT} nodes already"
        if known is not None and theirs.incarnation < known.incarnation:
            return f"{theirs.node_id} is incarnation {theirs.incarnation}, but {known.incarnation} was here already"
        return None
