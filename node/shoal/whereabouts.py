"""Where this process runs: the name and number of its host, and the address at which others can dial it.

A container's host name is random, but the DNS of Docker knows its address by service and number (`shoal-node-3`), and
Kubernetes and Swarm can number host names themselves. So `shard = auto/N` and the name follow the number of a replica.
"""

import dataclasses
import ipaddress
import re
import socket
from pathlib import Path
from typing import NamedTuple

import ifaddr

from shoal.discovery import interfaces, join
from shoal.errors import SettingsError
from shoal.fields import AUTO, parse_address
from shoal.settings import Settings

CHECKPOINT = "checkpoint.safetensors"
"""What `auto_resume` looks for in the state folder."""
NAMELESS = re.compile(r"[0-9a-f]{12}")
"""A host name that Docker made up: the first digits of the container's id."""
NUMBERED = re.compile(r"[-_.](\d{1,6})$")
REVERSE_S = 3.0
"""How long DNS may take to say what it calls an address."""
SOMEWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses that nobody has (RFC 5737, RFC 3849). Asking the way there sends nothing, and shows which it would be."""


class Address(NamedTuple):
    """HOST:PORT that peers are told, and why that one; no reason where it was given."""

    address: str
    reason: str


def placed(settings: Settings) -> Settings:
    """With `shard`, `name`, folders and `resume` as they are on this host. Raises SettingsError where its number is
    wanted and not known."""
    name = host_name()
    shard = settings.shard
    if shard.startswith(AUTO):
        number = NUMBERED.search(name)
        if number is None:
            raise SettingsError(
                f"shard = {shard} needs a number at the end of the host's name, and this is {name!r}; give K/N"
            )
        parts = int(shard.removeprefix(AUTO))
        shard = f"{(int(number[1]) - 1) % parts}/{parts}"
    mine = settings.name or ("" if settings.tls or name == socket.gethostname() else clean(name))
    folders = {key: getattr(settings, key).replace("{name}", mine or clean(name)) for key in ("state_dir", "tls")}
    resume = settings.resume or (settings.auto_resume and (Path(folders["state_dir"]) / CHECKPOINT).exists())
    return dataclasses.replace(settings, shard=shard, name=mine, resume=resume, **folders)


def host_name() -> str:
    """This host's; of a container without a name of its own what DNS calls its address, up to the first dot."""
    name = socket.gethostname()
    if NAMELESS.fullmatch(name) is None:
        return name
    known = _known_as(_way_out("0.0.0.0"))
    # Swarm: shoal_node.3.TASKID.NETWORK, compose: shoal-node-3.NETWORK
    swarm = re.match(r"([^.]+\.\d+)\.[0-9a-z]{25}\b", known)
    return swarm[1] if swarm else known.partition(".")[0] or name


def clean(name: str) -> str:
    """As the name of a node may be: letters, digits, - and _, at most 56."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:56]


def dialable(bound: str, advertise: str) -> Address:
    """What peers are told of a node that listens on `bound`: `advertise` if that is given, and of one that listens on
    all interfaces the address by which this machine reaches others."""
    host, port = parse_address(bound)
    if advertise:
        return Address(advertise, "")
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            return Address(bound, "")
    except ValueError:
        return Address(bound, "")
    if way := _way_out(host):
        return Address(join(way, port), "the address by which this machine reaches others; --advertise names another")
    (first, *_), reason = interfaces(ifaddr.get_adapters(), "0.0.0.0")
    return Address(join(first, port), f"first address of {reason}; --advertise names another")


def _known_as(address: str) -> str:
    """What DNS calls that address; empty where it does not know. The system's resolver would look into the container's
    own /etc/hosts, where it is called by the name that says nothing."""
    import dns.exception
    import dns.resolver

    try:
        answer = dns.resolver.resolve_address(address, lifetime=REVERSE_S)
    except (dns.exception.DNSException, OSError, ValueError):
        return ""
    return str(answer[0].to_text())


def _way_out(unspecified: str) -> str:
    """Own address on the way to others; empty where there is no way."""
    four = "." in unspecified
    with socket.socket(socket.AF_INET if four else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((SOMEWHERE[0 if four else 1], 9))
        except OSError:
            return "" if four else _way_out("0.0.0.0")
        return str(probe.getsockname()[0])
