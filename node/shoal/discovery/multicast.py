"""Nodes announce themselves on the local network by multicast DNS (RFC 6762, RFC 6763), and hear each other."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

import ifaddr
import zeroconf
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from shoal.discovery.candidate import Candidate, join
from shoal.errors import SettingsError
from shoal.fields import parse_address
from shoal.settings import PROTOCOL_VERSION

SERVICE = "_shoal._tcp.local."
RESOLVE_MS = 1000
"""How long to ask for the address of an announced node; its answer usually came with the announcement."""
QUEUE_LIMIT = 1000
"""Announcements that may wait to be looked at; more are dropped, and come again."""
OTHERS_LIMIT = 100
"""Names of other shoals that are remembered, and nodes of each."""
ADDRESSES_LIMIT = 4
"""Addresses of one node that are tried."""
SHOAL_BYTES = 240
"""Length of a shoal's name: it is one string of a TXT record, which holds 255 bytes (RFC 6763, section 6.1)."""
LOOK_AGAIN_S = 60.0
"""From one browser to the next."""
VIRTUAL = ("docker", "br-", "veth")
"""How interfaces begin that lead to containers of this machine only."""


class Mdns:
    """Multicast DNS (RFC 6762, RFC 6763) on the interfaces that this node listens on; made by `open`."""

    source = "mdns"

    def __init__(self, node_id: str, shoal: str, zero: AsyncZeroconf, info: AsyncServiceInfo, reason: str) -> None:
        self.node_id, self.shoal = node_id, shoal
        self.interfaces_reason = reason
        self.others: dict[str, set[str]] = {}  # name of another shoal -> ids of its nodes
        self._zero, self._info = zero, info
        self._names: asyncio.Queue[str | None] = asyncio.Queue(QUEUE_LIMIT)
        self._announced: Any = None
        self._browser: AsyncServiceBrowser | None = None
        self._again: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, *, node_id: str, shoal: str, address: str, listen: str, role: str = "node") -> Self:
        """Announces `address`, where peers can dial this node, on the interfaces of `listen`; both HOST:PORT. `role` is
        for people who look at the announcements.

        Raises SettingsError when a host is unknown or multicast is not to be had.
        """
        if len(shoal.encode()) > SHOAL_BYTES:
            raise SettingsError(f"shoal {shoal[:40]!r}... has {len(shoal.encode())} bytes, mdns carries {SHOAL_BYTES}")
        (host, port), (listen_host, _) = parse_address(address), parse_address(listen)
        chosen, reason = interfaces(ifaddr.get_adapters(), await _resolve(listen_host))
        addresses, properties = chosen, {"id": node_id, "shoal": shoal, "protocol": str(PROTOCOL_VERSION), "role": role}
        if (ip := _literal(host)) is None:
            properties["address"] = address  # a name that peers resolve themselves
        elif not ip.is_unspecified:
            addresses = [str(ip)]
        info = AsyncServiceInfo(
            SERVICE,
            f"{node_id}.{SERVICE}",
            port=port,
            properties=properties,
            server=f"{node_id}.local.",
            parsed_addresses=addresses,
        )
        # Multicast over IPv6 loopback is not to be had everywhere; its address can be announced over IPv4.
        multicast = ["127.0.0.1"] if chosen == ["::1"] else chosen
        try:
            mdns = cls(node_id, shoal, AsyncZeroconf(interfaces=multicast), info, reason)
        except OSError as error:
            raise SettingsError(f"mdns cannot run on {', '.join(chosen)}: {error}; name --peers instead") from None
        await mdns._start()
        return mdns

    async def candidates(self) -> AsyncIterator[Candidate]:
        """Nodes of this shoal as they are announced, one candidate for each of their addresses, until `close`."""
        while (name := await self._names.get()) is not None:
            info = AsyncServiceInfo(SERVICE, name)
            if await info.async_request(self._zero.zeroconf, RESOLVE_MS) and not self._closed:
                for candidate in self._read(info):
                    yield candidate

    async def close(self) -> None:
        """Says goodbye, so that others forget the announcement."""
        if self._closed:
            return
        self._closed = True
        if self._again is not None:
            self._again.cancel()
            await asyncio.gather(self._again, return_exceptions=True)
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._announced is not None:
            self._announced.cancel()
            await asyncio.gather(self._announced, return_exceptions=True)
        await (await self._zero.async_unregister_service(self._info))
        await self._zero.async_close()
        while self._names.full():
            self._names.get_nowait()
        self._names.put_nowait(None)

    def others_seen(self) -> str:
        """`found 3 nodes of other shoals: a, b`, or nothing when there are none."""
        count = sum(map(len, self.others.values()))
        return f"found {count} nodes of other shoals: {', '.join(sorted(self.others))}" if count else ""

    async def _start(self) -> None:
        # No probe for the name, which costs a second: ids are unique, and Hello names two nodes that share one.
        self._announced = await self._zero.async_register_service(self._info, cooperating_responders=True)
        self._browser = self._looking()
        self._again = asyncio.create_task(self._look_again(), name="mdns asks again")

    def _looking(self) -> AsyncServiceBrowser:
        return AsyncServiceBrowser(self._zero.zeroconf, SERVICE, handlers=[self._changed])

    async def _look_again(self) -> None:
        """A browser asks in its first seconds, then hardly ever: what was lost meanwhile, or could not pass, would be
        missed. A new one tells of all that is known, too."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            before, self._browser = self._browser, self._looking()
            if before is not None:
                await before.async_cancel()

    def _changed(
        self, zeroconf: zeroconf.Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """A record came, changed or went. One that went means nothing: who is dead is the heartbeats' business."""
        if state_change is not ServiceStateChange.Removed and not self._names.full():
            self._names.put_nowait(name)

    def _read(self, info: AsyncServiceInfo) -> list[Candidate]:
        texts = ((key, value or b"") for key, value in info.properties.items())
        said = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in texts}
        node_id, shoal = said.get("id", ""), said.get("shoal", "")
        if node_id == self.node_id or not node_id.isprintable():
            return []
        if shoal != self.shoal:
            if shoal.isprintable() and (shoal in self.others or len(self.others) < OTHERS_LIMIT):
                seen = self.others.setdefault(shoal, set())
                if len(seen) < OTHERS_LIMIT:
                    seen.add(node_id)
            return []
        hosts = info.parsed_scoped_addresses()[:ADDRESSES_LIMIT]  # IPv4 first
        found = [said["address"]] if "address" in said else [join(host, info.port or 0) for host in hosts]
        return [Candidate(address, self.source, node_id) for address in found if _is_address(address)]


def interfaces(adapters: Iterable[ifaddr.Adapter], listen: str) -> tuple[list[str], str]:
    """(addresses of the interfaces to announce on, why these), for a node that listens on the IP address `listen`.

    Loopback for a node that listens there; the one address that it listens on; or for the unspecified
    address every IPv4 address except those of loopback and of containers' interfaces.
    """
    ip = ipaddress.ip_address(listen)
    if ip.is_loopback:
        return [str(ip)], f"this node listens on {ip} only, so only nodes of this machine can find it"
    if not ip.is_unspecified:
        return [str(ip)], f"this node listens on {ip} only"
    chosen, skipped = [], []
    for adapter in adapters:
        addresses = [str(each.ip) for each in adapter.ips if each.is_IPv4]
        virtual = adapter.nice_name.startswith(VIRTUAL)
        if virtual or all(ipaddress.ip_address(address).is_loopback for address in addresses):
            skipped.append(adapter.nice_name)
        else:
            chosen += addresses
    words = f"all interfaces but {', '.join(skipped)}" if skipped else "all interfaces"
    if not chosen:
        return ["127.0.0.1"], f"{words}: none is left, so only nodes of this machine can find this one"
    return chosen, words


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_address(text: str) -> bool:
    try:
        return parse_address(text)[1] > 0
    except ValueError:
        return False


async def _resolve(host: str) -> str:
    """The IP address of a host, IPv4 if it has one. Raises SettingsError when it has none."""
    if _literal(host) is not None:
        return host
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise SettingsError(f"host {host!r} is unknown: {error.strerror}") from None
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return str(found[0][4][0])
