"""What a search for nodes finds, and what can search."""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol


class Candidate(NamedTuple):
    """Where a node may listen: HOST:PORT, and which provider says so. Its id, where that is known, and the member that
    told of it, where it was one."""

    address: str
    source: str
    node_id: str = ""
    told_by: str = ""


class Provider(Protocol):
    """One way to find nodes."""

    source: str

    def candidates(self) -> AsyncIterator[Candidate]:
        """Candidates as they turn up, the same one perhaps again; ends when no more can come. One reader only."""
        ...

    async def close(self) -> None:
        """Takes this node's own announcement back."""
        ...


def join(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
