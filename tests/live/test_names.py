"""Finding nodes by DNS: what is a name, all addresses of a host by the system's resolver, SRV records of a server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from shoal.discovery import Candidate, Dns
from shoal.discovery import names as module
from shoal.discovery.names import look_up
from shoal.errors import SettingsError
from shoal.fields import parse_name

SERVICE = "_shoal._tcp.example.test"


class Server(asyncio.DatagramProtocol):
    """Answers for SRV records over UDP, as a name server does."""

    def __init__(self) -> None:
        self.records: list[str] = []
        self.asked: list[str] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        (question,) = query.question
        self.asked.append(question.name.to_text())
        if self.records:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "SRV", *self.records))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), address)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """The name server of this process."""
    transport, it = await asyncio.get_running_loop().create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], transport.get_extra_info("sockname")[1]
    monkeypatch.setattr(dns.asyncresolver, "default_resolver", resolver)
    yield it
    transport.close()


# --- what is a name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("nodes:7946", ("nodes", 7946)),
        ("shoal.default.svc.cluster.local:7946", ("shoal.default.svc.cluster.local", 7946)),
        (SERVICE, (SERVICE, None)),
        (SERVICE + ".", (SERVICE + ".", None)),
    ],
)
def test_a_name_is_a_host_with_a_port_or_a_service(text: str, parsed: tuple[str, int | None]) -> None:
    assert parse_name(text) == parsed


@pytest.mark.parametrize("text", ["nodes", "nodes:0", "nodes:70000", "_shoal._udp.example.test", "_shoal._tcp", ""])
def test_what_is_none_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(SettingsError, match=r"must be HOST:PORT.*, or _SERVICE\._tcp\.DOMAIN"):
        Dns([text])


# --- addresses --------------------------------------------------------------------------------------------------


async def test_all_addresses_of_a_host_are_found() -> None:
    found = await look_up("localhost:7946")
    assert "127.0.0.1:7946" in found
    assert found == sorted(set(found))
    assert all(address.endswith(":7946") for address in found)


async def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(LookupError, match=r"DNS knows no address of 'nobody\.invalid'"):
        await look_up("nobody.invalid:7946")


async def test_a_service_gives_hosts_and_ports(server: Server) -> None:
    server.records = ["0 0 7001 localhost.", "5 10 7002 localhost.", "0 0 7003 nobody.invalid."]
    found = await look_up(SERVICE)
    assert {"127.0.0.1:7001", "127.0.0.1:7002"} <= set(found), "whatever their priorities and weights"
    assert not any("7003" in address for address in found), "a host without an address is left out"
    assert server.asked == [SERVICE + "."]


async def test_a_service_that_is_none_is_named(server: Server) -> None:
    with pytest.raises(LookupError, match=f"DNS knows no service '{SERVICE}'"):
        await look_up(SERVICE)


async def test_hosts_of_a_service_without_an_address_are_nobody(server: Server) -> None:
    server.records = ["0 0 7003 nobody.invalid."]
    with pytest.raises(LookupError, match="but knows no address of them"):
        await look_up(SERVICE)


# --- again and again --------------------------------------------------------------------------------------------


async def test_who_comes_later_is_found_too_and_who_is_not_there_is_complained_of_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", (0.01, 0.02))
    names = Dns([SERVICE])
    found: asyncio.Queue[Candidate] = asyncio.Queue()

    async def read() -> None:
        async for candidate in names.candidates():
            found.put_nowait(candidate)

    reader = asyncio.create_task(read())
    while len(server.asked) < 3:
        await asyncio.sleep(0.01)
    assert len([m for m in caplog.messages if "it is asked for again" in m]) == 1
    server.records = ["0 0 7001 localhost."]
    candidate = await found.get()
    assert candidate.source == f"dns {SERVICE}"
    assert candidate.address.endswith(":7001")
    server.records.append("0 0 7002 localhost.")
    while not (await found.get()).address.endswith(":7002"):
        pass
    await names.close()
    await reader
    asked = len(server.asked)
    await asyncio.sleep(0.05)
    assert len(server.asked) <= asked + 1, "nobody asks any more"
