"""Whom Prometheus should scrape: all members that this node knows, in the format of its HTTP service discovery."""

import ipaddress
from typing import Any

from shoal.fields import parse_address
from shoal.roster import Roster
from shoal.v1.node_pb2 import ROLE_COORDINATOR, Identity


def told(http: str, address: str) -> str:
    """Where others reach the HTTP port that is listened on at `http`, if they dial this node at `address`; both
    HOST:PORT. Empty where they cannot: on loopback, for those of another machine."""
    host, port = parse_address(http)
    dialled, _ = parse_address(address)
    if _is(host, "is_unspecified"):
        host = dialled
    if _is(host, "is_loopback") and not _is(dialled, "is_loopback"):
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def targets(roster: Roster, shoal: str) -> list[dict[str, Any]]:
    """One entry a member (prometheus.io/docs/prometheus/latest/http_sd), this one first. One that fell silent stays, so
    that it shows as down; one that took its leave does not. Whoever has told no address is left out."""
    here = [roster.me, *(m.identity for _, m in sorted(roster.members.items()) if not m.left)]
    return [_entry(identity, shoal) for identity in here if _is_address(identity.http)]


def _entry(identity: Identity, shoal: str) -> dict[str, Any]:
    role = "coordinator" if identity.role == ROLE_COORDINATOR else "node"
    said = {"node": identity.node_id, "name": identity.name, "role": role, "shoal": shoal}
    return {"targets": [identity.http], "labels": {f"__meta_shoal_{key}": value for key, value in said.items()}}


def _is(host: str, what: str) -> bool:
    """A property of an IP address; of a name only whether it is that of this machine itself."""
    try:
        return bool(getattr(ipaddress.ip_address(host), what))
    except ValueError:
        return what == "is_loopback" and host == "localhost"


def _is_address(text: str) -> bool:
    try:
        return parse_address(text)[1] > 0
    except ValueError:
        return False
