"""Whom Prometheus is told to scrape."""

import pytest

from shoal.roster import Member, Roster
from shoal.targets import targets, told
from shoal.v1.node_pb2 import ROLE_COORDINATOR, Identity

ME = Identity(node_id="a-000001", name="a", address="10.0.0.1:7450", http="10.0.0.1:7460", incarnation=1)


def roster(*others: Identity) -> Roster:
    it = Roster(ME, suspect_after_s=5, heartbeat_s=0.5)
    for identity in others:
        it.members[identity.node_id] = Member(identity, samples=0, heard_at=0.0)
    return it


def other(name: str, http: str, **more: int) -> Identity:
    return Identity(
        node_id=f"{name}-00000{len(name)}", name=name, address=f"{name}:1", http=http, incarnation=1, **more
    )


def addresses(it: Roster) -> list[str]:
    return [address for entry in targets(it, "s") for address in entry["targets"]]


@pytest.mark.parametrize(
    ("http", "dialled", "expected"),
    [
        ("10.0.0.1:7460", "10.0.0.1:7450", "10.0.0.1:7460"),
        ("0.0.0.0:7460", "node-a:7450", "node-a:7460"),
        ("[::]:7460", "[fd00::1]:7450", "[fd00::1]:7460"),
        ("127.0.0.1:7460", "127.0.0.1:7450", "127.0.0.1:7460"),
        ("127.0.0.1:7460", "localhost:7450", "127.0.0.1:7460"),
        ("127.0.0.1:7460", "10.0.0.1:7450", ""),  # others would find themselves there
        ("localhost:7460", "node-a:7450", ""),
        ("0.0.0.0:7460", "127.0.0.1:7450", "127.0.0.1:7460"),
    ],
)
def test_the_address_that_is_told_is_one_that_others_reach(http: str, dialled: str, expected: str) -> None:
    assert told(http, dialled) == expected


def test_each_member_is_an_entry_with_what_prometheus_may_relabel_by() -> None:
    coordinator = other("c", "10.0.0.3:7460", role=ROLE_COORDINATOR)
    mine, theirs, middle = targets(roster(other("b", "10.0.0.2:7460"), coordinator), "clinics")
    assert mine == {
        "targets": ["10.0.0.1:7460"],
        "labels": {
            "__meta_shoal_node": "a-000001",
            "__meta_shoal_name": "a",
            "__meta_shoal_role": "node",
            "__meta_shoal_shoal": "clinics",
        },
    }
    assert theirs["labels"]["__meta_shoal_name"] == "b"
    assert middle["labels"]["__meta_shoal_role"] == "coordinator"


def test_who_fell_silent_stays_and_who_took_its_leave_does_not() -> None:
    it = roster(other("b", "10.0.0.2:7460"), other("c", "10.0.0.3:7460"))
    silent, gone = it.members.values()
    assert silent.judge(100.0, 5.0)[0] == "gone"
    gone.left = "finished"
    assert addresses(it) == ["10.0.0.1:7460", "10.0.0.2:7460"]


@pytest.mark.parametrize("http", ["", "nowhere", "host:0", "host:99999", "a b:7460x"])
def test_what_is_no_address_is_no_target(http: str) -> None:
    assert addresses(roster(other("b", http))) == ["10.0.0.1:7460"]
