"""Finding other nodes: on which interfaces, by real multicast on loopback between processes, and by a list."""

import asyncio
import secrets
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ifaddr
import pytest

from shoal.discovery import Candidate, Discovery, Mdns, Static, interfaces, join, multicast
from shoal.discovery.multicast import OTHERS_LIMIT
from shoal.errors import SettingsError
from shoal.v1.node_pb2 import Identity


def adapter(name: str, *addresses: str) -> ifaddr.Adapter:
    ips = [ifaddr.IP((a, 0, 1) if ":" in a else a, 24, name) for a in addresses]
    return ifaddr.Adapter(name, name, ips)


LAN = [
    adapter("lo", "127.0.0.1", "::1"),
    adapter("eth0", "10.0.0.2", "fe80::1"),
    adapter("wlan0", "192.168.7.3"),
    adapter("docker0", "172.17.0.1"),
    adapter("br-5e2f", "172.18.0.1"),
    adapter("veth12", "172.19.0.1"),
]


# --- which interfaces -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "chosen", "reason"),
    [
        ("127.0.0.1", ["127.0.0.1"], "this node listens on 127.0.0.1 only, so only nodes of this machine can find it"),
        ("::1", ["::1"], "this node listens on ::1 only, so only nodes of this machine can find it"),
        ("10.0.0.2", ["10.0.0.2"], "this node listens on 10.0.0.2 only"),
        ("0.0.0.0", ["10.0.0.2", "192.168.7.3"], "all interfaces but lo, docker0, br-5e2f, veth12"),
        ("::", ["10.0.0.2", "192.168.7.3"], "all interfaces but lo, docker0, br-5e2f, veth12"),
    ],
)
def test_a_node_is_announced_where_it_listens_but_not_to_containers(
    listen: str, chosen: list[str], reason: str
) -> None:
    assert interfaces(LAN, listen) == (chosen, reason)


def test_with_no_other_interface_left_loopback_is_used() -> None:
    chosen, reason = interfaces(LAN[:1] + LAN[3:4], "0.0.0.0")
    assert chosen == ["127.0.0.1"]
    assert reason == "all interfaces but lo, docker0: none is left, so only nodes of this machine can find this one"


def test_an_interface_without_ipv4_is_skipped() -> None:
    assert interfaces([adapter("eth0", "fd00::2"), *LAN[2:3]], "0.0.0.0")[0] == ["192.168.7.3"]


@pytest.mark.parametrize(("host", "text"), [("10.0.0.2", "10.0.0.2:80"), ("::1", "[::1]:80"), ("box", "box:80")])
def test_addresses_are_written_so_that_they_can_be_read_back(host: str, text: str) -> None:
    assert join(host, 80) == text


# --- a list of addresses ----------------------------------------------------------------------------------------


async def test_a_list_alone_gives_every_address_once_and_ends() -> None:
    found = [c async for c in Static(["10.0.0.2:700", "[::1]:701"]).candidates()]
    assert found == [Candidate("10.0.0.2:700", "static"), Candidate("[::1]:701", "static")]


@pytest.mark.parametrize("bad", ["10.0.0.2", "box:70000", "http://box:80", ""])
def test_a_peer_that_is_no_address_is_refused(bad: str) -> None:
    with pytest.raises(SettingsError, match="must be HOST:PORT, the port from 0 to 65535"):
        Static([bad])


# --- multicast --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def announced(node_id: str, shoal: str, port: int, host: str = "127.0.0.1") -> AsyncIterator[Mdns]:
    address = join(host, port)
    listen = "127.0.0.1:0" if host.isalpha() else address
    mdns = await Mdns.open(node_id=node_id, shoal=shoal, address=address, listen=listen)
    try:
        yield mdns
    finally:
        await mdns.close()


async def first(mdns: Mdns, node_id: str) -> Candidate:
    """The next candidate that is that node; other tests may run beside this one."""
    async for candidate in mdns.candidates():
        if candidate.node_id == node_id:
            return candidate
    raise AssertionError("closed before it was found")


@pytest.fixture
def unique() -> str:
    """Part of every name in a test: the network is shared."""
    return secrets.token_hex(3)


CHILD = """
import asyncio, sys
from shoal.discovery import Mdns

async def main():
    node_id, shoal, address = sys.argv[1:]
    mdns = await Mdns.open(node_id=node_id, shoal=shoal, address=address, listen=address)
    found = asyncio.create_task(mdns.candidates().__anext__())
    print((await found).node_id, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await mdns.close()

asyncio.run(main())
"""


@pytest.mark.live
async def test_what_is_announced_is_told_again_for_a_browser_asks_in_its_first_seconds_only(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multicast, "LOOK_AGAIN_S", 0.5)
    me, other, shoal = f"node-a-{unique}", f"node-b-{unique}", f"shoal-{unique}"
    async with announced(me, shoal, 7101) as mdns, announced(other, shoal, 7102), asyncio.timeout(60):
        candidates = mdns.candidates()
        for _ in range(3):
            while (await anext(candidates)).node_id != other:
                pass


@pytest.mark.live
async def test_two_processes_find_each_other_on_loopback(unique: str) -> None:
    me, other, shoal = f"node-a-{unique}", f"node-b-{unique}", f"shoal-{unique}"
    command = [sys.executable, "-W", "error", "-c", CHILD, other, shoal, "127.0.0.1:7102"]
    child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        async with announced(me, shoal, 7101) as mdns, asyncio.timeout(30):
            assert await first(mdns, other) == Candidate("127.0.0.1:7102", "mdns", other)
            assert child.stdout is not None
            assert (await child.stdout.readline()).decode().strip() == me
            _, errors = await child.communicate(b"")
            assert (child.returncode, errors) == (0, b"")
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()


@pytest.mark.live
async def test_a_node_that_starts_again_elsewhere_is_found_at_its_new_address(unique: str) -> None:
    shoal, other = f"shoal-{unique}", f"node-b-{unique}"
    async with announced(f"node-a-{unique}", shoal, 7101) as mdns, asyncio.timeout(30):
        async with announced(other, shoal, 7102):
            assert (await first(mdns, other)).address == "127.0.0.1:7102"
        async with announced(other, shoal, 7103):
            found = await first(mdns, other)
            while found.address != "127.0.0.1:7103":
                found = await first(mdns, other)


@pytest.mark.live
@pytest.mark.parametrize(("host", "address"), [("::1", "[::1]:7104"), ("localhost", "localhost:7104")])
async def test_ipv6_loopback_and_host_names_can_be_announced(unique: str, host: str, address: str) -> None:
    shoal, other = f"shoal-{unique}", f"node-b-{unique}"
    async with (
        announced(f"node-a-{unique}", shoal, 7101) as mdns,
        announced(other, shoal, 7104, host),
        asyncio.timeout(30),
    ):
        assert await first(mdns, other) == Candidate(address, "mdns", other)


@pytest.mark.live
async def test_nodes_of_another_shoal_are_no_candidates_but_are_named(unique: str) -> None:
    shoal, strange = f"shoal-{unique}", f"other-{unique}"
    async with announced(f"node-b-{unique}", strange, 7105), announced(f"node-a-{unique}", shoal, 7101) as mdns:
        search = asyncio.create_task(first(mdns, f"node-b-{unique}"))  # never ends well: reads on until closed
        async with asyncio.timeout(30):
            while strange not in mdns.others_seen():
                await asyncio.sleep(0.01)
        assert mdns.others[strange] == {f"node-b-{unique}"}
        assert mdns.others_seen().startswith("found ")
        await mdns.close()
        with pytest.raises(AssertionError, match="closed before it was found"):
            await search


@pytest.mark.live
async def test_closing_ends_the_search_and_may_be_repeated(unique: str) -> None:
    async with announced(f"node-a-{unique}", f"shoal-{unique}", 7101) as mdns:
        search = asyncio.create_task(_drain(mdns))
        await mdns.close()
        await asyncio.wait_for(search, 30)


async def _drain(mdns: Mdns) -> None:
    async for _ in mdns.candidates():
        pass


# --- what strangers may send ------------------------------------------------------------------------------------


class Announcement:
    """What `Mdns._read` looks at."""

    port = 7107

    def __init__(self, *hosts: str, **texts: str) -> None:
        self.properties = {key.encode(): value.encode() for key, value in texts.items()}
        self._hosts = list(hosts)

    def parsed_scoped_addresses(self) -> list[str]:
        return self._hosts


def quiet(shoal: str = "s") -> Mdns:
    nothing: Any = None
    return Mdns("node-a", shoal, nothing, nothing, "")


@pytest.mark.parametrize(
    ("announcement", "expected"),
    [
        (Announcement("10.0.0.2", id="node-b", shoal="s"), ["10.0.0.2:7107"]),
        (Announcement("10.0.0.2", "fe80::2%eth0", id="node-b", shoal="s"), ["10.0.0.2:7107", "[fe80::2%eth0]:7107"]),
        (Announcement("10.0.0.2", id="node-b", shoal="s", address="box:80"), ["box:80"]),
        (Announcement("10.0.0.2", id="node-b", shoal="s", address="no address"), []),
        (Announcement("10.0.0.2", id="node-a", shoal="s"), []),
        (Announcement("10.0.0.2", id="node-\x1b[2J", shoal="s"), []),
        (Announcement("10.0.0.2", id="node-b"), []),
        (Announcement(id="node-b", shoal="s"), []),
        (
            Announcement(*(f"10.0.0.{k}" for k in range(50)), id="node-b", shoal="s"),
            [f"10.0.0.{k}:7107" for k in range(4)],
        ),
    ],
)
def test_an_announcement_gives_its_addresses_if_they_are_any(announcement: Any, expected: list[str]) -> None:
    assert [c.address for c in quiet()._read(announcement)] == expected


def test_what_is_remembered_of_other_shoals_is_bounded_and_printable() -> None:
    mdns = quiet()
    for shoal in range(OTHERS_LIMIT + 5):
        for node in range(OTHERS_LIMIT + 5 if shoal == 0 else 1):
            mdns._read(Announcement("10.0.0.2", id=f"node-{node}", shoal=f"shoal-{shoal}"))  # type: ignore[arg-type]
    mdns._read(Announcement("10.0.0.2", id="node-b", shoal="\x1b[2J"))  # type: ignore[arg-type]
    assert len(mdns.others) == OTHERS_LIMIT
    assert len(mdns.others["shoal-0"]) == OTHERS_LIMIT
    assert mdns.others_seen().isprintable()


# --- all together -----------------------------------------------------------------------------------------------


class Found:
    """What a `Discovery` has found, and a way to wait for it."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self._new = asyncio.Event()

    def __call__(self, candidate: Candidate) -> None:
        self.candidates.append(candidate)
        self._new.set()

    async def wait_for(self, address: str) -> Candidate:
        async with asyncio.timeout(30):
            while True:
                for candidate in self.candidates:
                    if candidate.address == address:
                        return candidate
                self._new.clear()
                await self._new.wait()


def discovery(names: str, node_id: str, port: int, found: Found, peers: tuple[str, ...] = ()) -> Discovery:
    identity = Identity(node_id=node_id, incarnation=1, address=f"127.0.0.1:{port}")
    shoal = f"shoal-{node_id[-6:]}"
    where = {"peers": peers, "dns": (), "listen": "127.0.0.1:0"}
    return Discovery(names.split(","), identity=identity, shoal=shoal, **where, found=found)  # type: ignore[arg-type]


@pytest.mark.live
async def test_both_providers_find_and_only_what_the_setting_names_runs(unique: str) -> None:
    known, all_found, static_found = "127.0.0.1:7111", Found(), Found()
    everything = discovery("mdns,static", f"node-a-{unique}", 7101, all_found, (known,))
    static = discovery("static", f"node-b-{unique}", 7112, static_found, (known,))
    announced_too = discovery("mdns", f"node-c-{unique}", 7113, Found(), ("127.0.0.1:7114",))
    for each in (everything, static, announced_too):
        await each.start()
    try:
        assert (await all_found.wait_for("127.0.0.1:7113")).source == "mdns"
        assert (await all_found.wait_for(known)).source == "static"
        assert static_found.candidates == [Candidate(known, "static")]
        assert {c.source for c in all_found.candidates if c.address == "127.0.0.1:7112"} == set(), "not announced"
    finally:
        for each in (everything, static, announced_too):
            await each.close()


async def test_an_unknown_provider_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(SettingsError, match="unknown discovery 'gossip'; known: mdns, static, dns"):
        discovery("mdns,gossip", "node-a", 7101, Found())


async def test_without_multicast_a_node_that_knows_peers_goes_on_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(**_: Any) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("shoal.discovery.multicast.AsyncZeroconf", fails)
    found = Found()
    knowing = discovery("mdns,static", "node-a", 7101, found, ("10.0.0.2:700",))
    await knowing.start()
    assert await found.wait_for("10.0.0.2:700")
    await knowing.close()
    assert "mdns cannot run on 127.0.0.1: [Errno 19] No such device" in caplog.text
    for names, peers in (("mdns", ("10.0.0.2:700",)), ("mdns,static", ())):
        with pytest.raises(SettingsError, match="name --peers instead"):
            await discovery(names, "node-a", 7101, Found(), peers).start()


async def test_a_search_that_fails_is_an_error_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    asked = asyncio.Event()

    def fails(_: Candidate) -> None:
        asked.set()
        raise ZeroDivisionError("for the test")

    failing = discovery("static", "node-a", 7101, fails, ("10.0.0.2:700",))  # type: ignore[arg-type]
    await failing.start()
    await asked.wait()
    await failing.close()
    assert "discovery by static ended" in caplog.text


async def test_a_name_too_long_for_an_announcement_and_an_unknown_host_are_refused() -> None:
    here = "127.0.0.1:7101"
    with pytest.raises(SettingsError, match="has 241 bytes, mdns carries 240"):
        await Mdns.open(node_id="node-a", shoal="s" * 241, address=here, listen=here)
    with pytest.raises(SettingsError, match=r"host 'nowhere\.invalid' is unknown"):
        await Mdns.open(node_id="node-a", shoal="s", address=here, listen="nowhere.invalid:7101")
