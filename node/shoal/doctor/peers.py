"""The peers that are named: can they be found and dialled, can they dial back, are the clocks alike."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from shoal.doctor.finding import Finding
from shoal.doctor.network import listening, resolved, running_node
from shoal.errors import PeerError, ShoalError, Untrusted
from shoal.fields import parse_address
from shoal.settings import Settings
from shoal.transport import dial_back
from shoal.transport.tls import Tls
from shoal.v1 import node_pb2 as pb

CLOCK_S = 30.0
"""Clocks that differ by more make certificates seem to begin in the future, and logs hard to read together."""


async def check_peers(settings: Settings, tls: Tls | None) -> AsyncIterator[Finding]:
    """Of `--peers` and `--coordinator`."""
    named = [*settings.peers, *([settings.coordinator] if settings.coordinator else [])]
    if not named:
        yield Finding("peers", "skipped", "none is named: --peers HOST:PORT of a running node tries the way both ways")
    for address in named:
        async for finding in _check_peer(address, settings, tls):
            yield finding


async def _check_peer(address: str, settings: Settings, tls: Tls | None) -> AsyncIterator[Finding]:
    host, _ = parse_address(address)
    try:
        found = await asyncio.to_thread(resolved, host)
    except OSError as error:
        remedy = "is the name right? `getent hosts NAME` asks as shoal does; an IP address needs no DNS"
        yield Finding("dns", "failure", f"{host}: {error.strerror or error}", remedy)
        return
    if found != [host]:
        yield Finding("dns", "ok", f"{host} is {', '.join(found)}")
    with contextlib.ExitStack() as stack:
        if running := running_node(settings):
            port = parse_address(running["listen"])[1]
        else:
            try:
                port = stack.enter_context(listening(settings.listen))
            except OSError as error:
                words = f"{address} has nothing to dial: {settings.listen}: {error.strerror}"
                yield Finding("dial back", "skipped", words)
                return
        began = time.time()
        try:
            said = await dial_back.ask(address, port, tls)
        except ShoalError as error:
            yield Finding("peer", "failure", str(error), _remedy(error))
            return
        ended = time.time()
    yield Finding("peer", "ok", f"{address} answers within {1000 * (ended - began):.0f} ms")
    yield _dialled(address, port, said)
    yield _clock(address, said.time - (began + ended) / 2, (ended - began) / 2)


def _remedy(error: ShoalError) -> str:
    if isinstance(error, Untrusted):
        return "compare both certificates with `shoal certs show DIR`"
    if isinstance(error, PeerError) and "UNIMPLEMENTED" in str(error):
        return "that node is of an older version: update it"
    return "does a node listen there, on an address that is not loopback? Does a firewall between let TCP pass?"


def _dialled(address: str, port: int, said: pb.DialBackResponse) -> Finding:
    if said.reached:
        return Finding("dial back", "ok", f"{address} reaches this machine as {said.host}, port {port}")
    words = f"{address} cannot dial {said.host} port {port}: {said.reason[:200]}"
    remedy = (
        "let TCP to that port in; behind NAT forward it and name it by --advertise. A --listen on loopback is reached "
        "by nodes of this machine alone"
    )
    return Finding("dial back", "failure", words, remedy)


def _clock(address: str, ahead_s: float, sure_s: float) -> Finding:
    way = "ahead" if ahead_s > 0 else "behind"
    words = f"that of {address} is {abs(ahead_s):.2f} s {way}, give or take {sure_s:.2f} s"
    if abs(ahead_s) - sure_s <= CLOCK_S:
        return Finding("clock", "ok", words)
    return Finding("clock", "failure", words, "set both clocks, by NTP (`timedatectl set-ntp true`)")
