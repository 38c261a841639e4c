"""This machine's side of the network: interfaces, the address that peers are told, ports, multicast."""

import contextlib
import errno
import ipaddress
import json
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import ifaddr

from shoal.discovery import interfaces
from shoal.doctor.finding import Finding
from shoal.errors import SettingsError
from shoal.fields import parse_address
from shoal.process import check_exposure
from shoal.settings import Settings

MDNS_GROUP = "224.0.0.251"
"""The group of multicast DNS (RFC 6762); the test uses a port of its own."""
MULTICAST_S = 1.0


def resolved(host: str) -> list[str]:
    """IP addresses of a host, IPv4 first. Raises OSError when it has none."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def check_listen(settings: Settings, adapters: Sequence[ifaddr.Adapter]) -> Iterator[Finding]:
    """Which interfaces are announced on and why, and whether peers can dial what they are told."""
    try:
        check_exposure(settings)
    except SettingsError as error:
        yield Finding("address", "failure", str(error), "one of these; `shoal node` refuses to start otherwise")
        return
    host, _ = parse_address(settings.listen)
    try:
        ip = resolved(host)[0]
    except OSError as error:
        remedy = "give --listen an address of this machine"
        yield Finding("interfaces", "failure", f"--listen {host}: {error.strerror or error}", remedy)
        return
    chosen, why = interfaces(adapters, ip)
    mine = [str(each.ip) for adapter in adapters for each in adapter.ips if each.is_IPv4]
    yield Finding("interfaces", "ok", f"{', '.join(chosen)}: {why}")
    told = settings.advertise or settings.listen
    yield _told(told, mine, ipaddress.ip_address(ip).is_loopback)


def _told(told: str, mine: Sequence[str], loopback: bool) -> Finding:
    host, _ = parse_address(told)
    try:
        found = resolved(host)
    except OSError as error:
        words = f"peers are told {told}, and {host} is unknown here: {error.strerror or error}"
        return Finding("address", "failure", words, "give --advertise a name that DNS knows, or an IP address")
    if loopback:
        words = f"peers are told {told}: only nodes of this machine reach it"
        return Finding("address", "warning", words, "for others: --listen ADDRESS:PORT of this machine, and --tls DIR")
    if not set(found) & set(mine):
        words = f"peers are told {told}, which is no address of this machine ({', '.join(mine)})"
        remedy = "right behind NAT or in a container, if that port leads here; else give --advertise another"
        return Finding("address", "warning", words, remedy)
    return Finding("address", "ok", f"peers are told {told}")


def check_ports(settings: Settings) -> Iterator[Finding]:
    """Whether gRPC and HTTP can listen, or are listened on by this very node."""
    running = running_node(settings)
    for name in ("listen", "http"):
        address = getattr(settings, name)
        if running:
            yield Finding(name, "ok", f"the node of {settings.state_dir} runs, on {running[name]}")
            continue
        try:
            with listening(address):
                yield Finding(name, "ok", f"{address} is free")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                remedy = f"stop who listens there (ss -ltnp), or give another --{name}; port 0 takes a free one"
                yield Finding(name, "failure", f"somebody listens on {address} already", remedy)
            else:
                remedy = f"give --{name} an address of this machine, and a port above 1023"
                yield Finding(name, "failure", f"{address}: {error.strerror or error}", remedy)


def running_node(settings: Settings) -> dict[str, str]:
    """The addresses of the node that runs on the state folder, by setting; empty when none does."""
    try:
        facts = json.loads((Path(settings.state_dir) / "node.json").read_text())
        running = {"listen": str(facts["address"]), "http": str(facts["http"])}
        with socket.create_connection(parse_address(running["http"]), timeout=1):
            return running
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@contextlib.contextmanager
def listening(address: str) -> Iterator[int]:
    """A socket that listens there, and its port. Raises OSError."""
    host, port = parse_address(address)
    family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.create_server(place[:2], family=family) as server:
        yield int(server.getsockname()[1])


def check_multicast(settings: Settings, adapters: Sequence[ifaddr.Adapter]) -> Iterator[Finding]:
    """Whether what this machine says to the group of mDNS comes back to it, on each interface that is announced on."""
    if "mdns" not in settings.discovery:
        yield Finding("multicast", "skipped", f"discovery is {settings.discovery}")
        return
    try:
        chosen, _ = interfaces(adapters, resolved(parse_address(settings.listen)[0])[0])
    except (OSError, ValueError) as error:
        yield Finding("multicast", "skipped", f"no interface to try it on: {error}")
        return
    for address in chosen:
        if ":" in address:
            yield Finding("multicast", "skipped", f"{address}: mDNS goes over IPv4 here")
        elif why := heard_oneself(address):
            remedy = "let UDP port 5353 and IGMP pass the firewall, or name --peers HOST:PORT"
            yield Finding("multicast", "failure", f"{address}: {why}", remedy)
        else:
            words = f"{address}: this machine hears itself; whether the network carries it, only another node can tell"
            yield Finding("multicast", "ok", words)


def heard_oneself(address: str) -> str:
    """Why a packet to the group of mDNS by way of that interface did not come back; empty when it did."""
    word = secrets.token_bytes(16)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as both:
            both.bind(("", 0))
            both.settimeout(MULTICAST_S)
            own = socket.inet_aton(address)
            both.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(MDNS_GROUP) + own)
            both.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            both.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            both.sendto(word, (MDNS_GROUP, both.getsockname()[1]))
            while both.recv(64) != word:
                pass
    except TimeoutError:
        return f"a packet to {MDNS_GROUP} did not come back within {MULTICAST_S:g} s"
    except OSError as error:
        return f"multicast cannot be sent: {error.strerror or error}"
    return ""
