"""Finding nodes by DNS: every address of a name, or the hosts and ports of a service, asked for again and again."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterable

from shoal.discovery.candidate import Candidate, join
from shoal.errors import SettingsError
from shoal.fields import parse_name

AGAIN_S = (1.0, 10.0)
"""Between two questions for a name: while nobody is found, and the longest."""
ADDRESSES_LIMIT = 1_000
"""Of one name that are followed."""

log = logging.getLogger(__name__)


class Dns:
    """Nodes behind names. All the addresses (A, AAAA) of a HOST:PORT; for a service its SRV records (RFC 2782), whose
    priorities and weights mean nothing here: everybody is wanted."""

    source = "dns"

    def __init__(self, names: Iterable[str]) -> None:
        """Raises SettingsError for what is no name."""
        self.names = tuple(names)
        for name in self.names:
            try:
                parse_name(name)
            except ValueError as expected:
                raise SettingsError(f"dns {name!r} must be {expected}") from None
        self._found: asyncio.Queue[Candidate | None] = asyncio.Queue()
        self._said: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def candidates(self) -> AsyncIterator[Candidate]:
        """Every address, each time that it is asked for: who has left may come back at the same one."""
        self._tasks = [asyncio.create_task(self._ask_for_ever(name), name=f"dns {name}") for name in self.names]
        while (candidate := await self._found.get()) is not None:
            yield candidate

    def tried(self) -> list[str]:
        """Each name, and why it gives nobody where it gives none."""
        return [f"dns {name} ({why})" if (why := self._said.get(name)) else f"dns {name}" for name in self.names]

    async def close(self) -> None:
        """Asks no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._found.put_nowait(None)

    async def _ask_for_ever(self, name: str) -> None:
        wait_s, longest_s = AGAIN_S
        while True:
            try:
                addresses = await look_up(name)
            except LookupError as error:
                addresses = []
                self._complain(name, str(error))
            else:
                self._said.pop(name, None)
            for address in addresses[:ADDRESSES_LIMIT]:
                self._found.put_nowait(Candidate(address, f"dns {name}"))
            await asyncio.sleep(wait_s)
            wait_s = min(longest_s, 2 * wait_s) if len(addresses) > 1 else AGAIN_S[0]

    def _complain(self, name: str, text: str) -> None:
        if self._said.get(name) != text:
            self._said[name] = text
            log.warning("%s; it is asked for again", text)


async def look_up(name: str) -> list[str]:
    """HOST:PORT of everybody behind that name, sorted. Raises LookupError, saying why there is nobody."""
    host, port = parse_name(name)
    return await (_service(host) if port is None else _host(host, port))


async def _host(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LookupError(f"DNS knows no address of {host!r}: {getattr(error, 'strerror', '') or error}") from None
    return sorted({join(str(address[0]), port) for *_, address in found})


async def _service(name: str) -> list[str]:
    # Here, for it is slow to import and only asked for SRV records, which the system's resolver does not give.
    import dns.asyncresolver
    import dns.exception

    try:
        answer = await dns.asyncresolver.resolve(name, "SRV")
    except (dns.exception.DNSException, OSError) as error:
        raise LookupError(f"DNS knows no service {name!r}: {str(error) or type(error).__name__}") from None
    found: set[str] = set()
    for record in answer:
        _, _, port, host = record.to_text().split()  # RFC 2782: priority, weight, port, target
        try:
            found.update(await _host(host.rstrip("."), int(port)))
        except LookupError as error:
            log.debug("%s", error)
    if not found:
        raise LookupError(f"DNS names hosts of {name!r}, but knows no address of them")
    return sorted(found)
