"""Where other nodes may be. A candidate is a hint, never liveness: it becomes a member by its Hello.

Three providers behind one interface: `Mdns` announces this node on the local network and hears the others, `Dns` asks
for the addresses behind names, `Static` gives those of the settings. Each is sufficient alone; `Discovery` runs those
that the settings name.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from shoal.discovery.candidate import Candidate, Provider, join
from shoal.discovery.multicast import Mdns, interfaces
from shoal.discovery.names import Dns
from shoal.errors import SettingsError
from shoal.fields import parse_address
from shoal.v1.node_pb2 import ROLE_COORDINATOR, Identity

__all__ = ["KNOWN", "Candidate", "Discovery", "Dns", "Mdns", "Provider", "Static", "interfaces", "join"]

KNOWN = ("mdns", "static", "dns")
"""Names of the providers, as the setting `discovery` has them."""
MISSED_AFTER_S = 3.0
"""From the start of the search until a node says that it has found nobody."""

log = logging.getLogger(__name__)


class Static:
    """The addresses of `--peers`, each once; the daemon tries them again."""

    source = "static"

    def __init__(self, peers: Iterable[str]) -> None:
        """Raises SettingsError for what is no HOST:PORT."""
        self.addresses = tuple(peers)
        for peer in self.addresses:
            try:
                parse_address(peer)
            except ValueError as expected:
                raise SettingsError(f"peer {peer!r} must be {expected}") from None

    async def candidates(self) -> AsyncIterator[Candidate]:
        """All of them, at once."""
        for peer in self.addresses:
            yield Candidate(peer, self.source)

    async def close(self) -> None:
        """Nothing was announced."""


class Discovery:
    """All providers that the settings name; `found` is called on the event loop with what any of them finds."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        identity: Identity,
        shoal: str,
        peers: Sequence[str],
        dns: Sequence[str],
        listen: str,
        found: Callable[[Candidate], None],
    ) -> None:
        """`identity.address` is announced, on the interfaces of `listen`; both HOST:PORT, with the port that was taken.

        Raises SettingsError for a provider that is unknown, or a peer or a name that is none.
        """
        if unknown := set(names) - set(KNOWN):
            raise SettingsError(f"unknown discovery {', '.join(sorted(unknown))!r}; known: {', '.join(KNOWN)}")
        self._names, self._identity, self._shoal, self._listen = names, identity, shoal, listen
        self._found, self._peers, self._dns = found, Static(peers), Dns(dns)
        self._missed_at = math.inf
        self._providers: list[Provider] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Announces this node and begins to search. Raises SettingsError when no provider can run.

        Without multicast a node that knows peers, or names of them, still finds them: that is a warning.
        """
        self._missed_at = asyncio.get_running_loop().time() + MISSED_AFTER_S
        if "static" in self._names:
            self._run(self._peers)
        if "dns" in self._names and self._dns.names:
            self._run(self._dns)
        if "mdns" not in self._names:
            return
        me = self._identity
        try:
            role = "coordinator" if me.role == ROLE_COORDINATOR else "node"
            mdns = await Mdns.open(
                node_id=me.node_id, shoal=self._shoal, address=me.address, listen=self._listen, role=role
            )
        except SettingsError as error:
            if not self._providers or not (self._peers.addresses or self._dns.names):
                raise
            log.warning("%s", error)
        else:
            log.debug("mdns: %s", mdns.interfaces_reason)
            self._run(mdns)

    async def close(self) -> None:
        """Takes the announcement back and ends the search."""
        for provider in self._providers:
            await provider.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def waiting(self, alone: bool, last_words: Callable[[str], str]) -> list[str]:
        """Why a node waits, as far as the search knows: nodes of other shoals, and, for one that is `alone`, what was
        tried and what to do. `last_words` says why an address did not answer."""
        others = [words for p in self._providers if isinstance(p, Mdns) and (words := p.others_seen())]
        if not alone or asyncio.get_running_loop().time() < self._missed_at:
            return others
        tried: list[str] = []
        for provider in self._providers:
            match provider:
                case Mdns():
                    tried.append(f"mdns ({provider.interfaces_reason})")
                case Dns():
                    tried += provider.tried()
                case Static():
                    tried += [f"{peer} ({last_words(peer) or 'no answer yet'})" for peer in provider.addresses]
        looked = f"looked by {', '.join(tried)}" if tried else f"discovery is {','.join(self._names)}, no --peers given"
        remedy = "`shoal doctor` says what is in the way, --peers HOST:PORT names a node"
        return [f"nobody is found: {looked}; {remedy}", *others]

    def _run(self, provider: Provider) -> None:
        self._providers.append(provider)
        task = asyncio.create_task(self._search(provider), name=f"discovery by {provider.source}")
        task.add_done_callback(_report)
        self._tasks.append(task)

    async def _search(self, provider: Provider) -> None:
        async for candidate in provider.candidates():
            self._found(candidate)


def _report(task: "asyncio.Task[None]") -> None:
    """A search that fails must not fail in silence; the other provider goes on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s ended", task.get_name(), exc_info=error)
