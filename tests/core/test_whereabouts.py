"""The name and number of a host, by what its system and its DNS say; the address that peers are told."""

import ipaddress
import socket
from pathlib import Path

import pytest

from shoal import whereabouts
from shoal.errors import SettingsError
from shoal.settings import Settings
from shoal.whereabouts import dialable, host_name, placed

CONTAINER = "9f2b6c1d0e3a"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host that DNS does not know."""
    monkeypatch.setattr(whereabouts, "_known_as", lambda address: "")
    return monkeypatch


def name(patch: pytest.MonkeyPatch, host: str, known: str = "") -> None:
    patch.setattr(socket, "gethostname", lambda: host)
    if known:
        patch.setattr(whereabouts, "_known_as", lambda address: known)


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "known", "found"),
    [
        ("lab-3", "other.example.org", "lab-3"),
        (CONTAINER, "", CONTAINER),
        (CONTAINER, "shoal-node-3.shoal_default", "shoal-node-3"),
        (CONTAINER, "shoal_node.3.u2k5gd0n4p7qjv6t1wyz8rs9x.shoal_net", "shoal_node.3"),
        ("shoal-0", "10-0-0-2.shoal.default.svc.cluster.local", "shoal-0"),
    ],
)
def test_a_host_is_called_by_its_name_and_a_nameless_container_by_what_dns_says(
    called: pytest.MonkeyPatch, host: str, known: str, found: str
) -> None:
    name(called, host, known)
    assert host_name() == found


def test_a_container_of_a_service_is_named_after_it(called: pytest.MonkeyPatch) -> None:
    name(called, CONTAINER, "shoal_node.3.u2k5gd0n4p7qjv6t1wyz8rs9x.shoal_net")
    assert placed(Settings(state_dir="state/{name}")).name == "shoal_node-3"
    assert placed(Settings(state_dir="state/{name}")).state_dir == "state/shoal_node-3"
    assert placed(Settings(state_dir="state/{name}", name="mine")).state_dir == "state/mine"
    assert placed(Settings(tls="folder")).name == "", "its certificate names it"
    assert placed(Settings(tls="folder/{name}")).tls == "folder/shoal_node-3"


def test_a_host_with_a_name_keeps_it_out_of_the_settings(called: pytest.MonkeyPatch) -> None:
    name(called, "lab.example.org")
    assert placed(Settings()) == Settings()
    assert placed(Settings(state_dir="/var/{name}")).state_dir == "/var/lab-example-org"


def test_what_is_there_is_gone_on_with_where_that_is_wanted(called: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name(called, "lab")
    wanted = Settings(state_dir=f"{tmp_path}/{{name}}", auto_resume=True)
    assert not placed(wanted).resume, "the first start"
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "checkpoint.safetensors").touch()
    assert placed(wanted).resume
    assert not placed(Settings(state_dir=wanted.state_dir)).resume
    assert placed(Settings(state_dir="elsewhere", resume=True)).resume, "and fails, for there is nothing to go on with"


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "parts", "shard"),
    [
        ("shoal-node-1", 5, "0/5"),
        ("shoal-node-5", 5, "4/5"),
        ("shoal-node-6", 5, "0/5"),
        ("shoal_node.3", 8, "2/8"),
        ("shoal-0", 5, "4/5"),
        ("box-12", 100, "11/100"),
    ],
)
def test_the_number_of_a_replica_says_which_part_is_its_own(
    called: pytest.MonkeyPatch, host: str, parts: int, shard: str
) -> None:
    name(called, host)
    assert placed(Settings(shard=f"auto/{parts}")).shard == shard


def test_every_replica_of_as_many_as_there_are_parts_has_another(called: pytest.MonkeyPatch) -> None:
    for first in (0, 1):
        shards = set()
        for number in range(first, first + 7):
            name(called, f"shoal-{number}")
            shards.add(placed(Settings(shard="auto/7")).shard)
        assert len(shards) == 7


def test_a_host_without_a_number_is_told_what_to_do(called: pytest.MonkeyPatch) -> None:
    name(called, "laptop")
    with pytest.raises(SettingsError, match="needs a number at the end of the host's name, and this is 'laptop'; give"):
        placed(Settings(shard="auto/5"))


@pytest.mark.parametrize("shard", ["auto", "auto/", "auto/0", "auto/x", "auto/-1", "auto/1/2"])
def test_a_share_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(SettingsError, match="K/N, K from 0 and below N; or auto/N"):
        Settings(shard=shard)


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["127.0.0.1:7946", "192.0.2.7:7946", "[::1]:7946", "box.example.org:7946"])
def test_who_listens_at_one_address_tells_it(bound: str) -> None:
    assert dialable(bound, "") == (bound, "")


@pytest.mark.parametrize("bound", ["0.0.0.0:7946", "[::]:7946", "127.0.0.1:1"])
def test_what_is_given_counts(bound: str) -> None:
    assert dialable(bound, "nat.example.org:80") == ("nat.example.org:80", "")


def test_who_listens_everywhere_tells_an_address_of_its_own_with_the_reason() -> None:
    address, reason = dialable("0.0.0.0:7946", "")
    host, _, port = address.rpartition(":")
    assert port == "7946"
    assert not ipaddress.ip_address(host).is_unspecified
    assert "--advertise names another" in reason
    with socket.socket() as mine:
        mine.bind((host, 0))  # only an own address can be


def test_without_a_way_out_it_is_that_of_an_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "_way_out", lambda unspecified: "")
    address, reason = dialable("0.0.0.0:7946", "")
    assert not ipaddress.ip_address(address.rpartition(":")[0]).is_unspecified
    assert reason.startswith("first address of all interfaces")
