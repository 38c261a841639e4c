"""A node to whom nobody comes, and one that tells an address at which nobody is: what it says, and what still works."""

import urllib.request
from pathlib import Path

import pytest
from nodes_kit import GATED, assert_one_model, log, shoal_in
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.live

NOWHERE = "127.0.0.1:1"


def test_who_finds_nobody_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    with shoal_in(tmp_path, min_nodes=2) as shoal:
        given = {"discovery": "mdns,static,dns", "peers": NOWHERE, "dns": "nowhere.invalid:7450"}
        node = shoal.start("alone", **given)
        shoal.until_logged("1 of 2 nodes are ready and linked; nobody is found: looked by ", node)
        (line, *_) = [line for line in log(node).splitlines() if "nobody is found" in line]
        for tried in (
            "mdns (this node listens on 127.0.0.1 only",
            f"{NOWHERE} (no Hello from {NOWHERE}: ",
            "dns nowhere.invalid:7450 (DNS knows no address of 'nowhere.invalid'",
        ):
            assert tried in line
        assert "`shoal doctor`" in line
        assert "--peers HOST:PORT" in line


def test_who_has_nowhere_to_look_is_told_so(tmp_path: Path) -> None:
    with shoal_in(tmp_path, min_nodes=2) as shoal:
        shoal.until_logged("nobody is found: discovery is static, no --peers given; ", shoal.start("alone"))


@pytest.mark.parametrize("wrong", ["a", "b"])
def test_one_that_tells_a_wrong_address_takes_part_for_it_dials_the_other(tmp_path: Path, wrong: str) -> None:
    with shoal_in(tmp_path, min_nodes=2, rounds=20) as shoal:
        nodes = [
            shoal.start(name, shard=f"{k}/2", **({"advertise": NOWHERE} if name == wrong else {}))
            for k, name in enumerate("ab")
        ]
        assert shoal.codes() == [0, 0]
        assert_one_model(nodes)


def test_two_that_tell_wrong_addresses_say_where_they_dial_in_vain(tmp_path: Path) -> None:
    with shoal_in(tmp_path, min_nodes=2) as shoal:
        nodes = [shoal.start("a", advertise=NOWHERE), shoal.start("b", advertise=NOWHERE)]
        for node in nodes:
            shoal.until_logged(f" is not reached at {NOWHERE}: ", node)
            shoal.until_logged("(the address that it tells, by --advertise or --listen)", node)


def test_who_asks_a_node_that_still_loads_is_refused_and_nothing_is_wrong(tmp_path: Path) -> None:
    for name in ("loads", "asks"):
        (tmp_path / f"data-{name}").mkdir()
    closed = tmp_path / "data-loads" / "closed"
    closed.touch()
    with shoal_in(tmp_path, task=GATED, min_nodes=2, rounds=5) as shoal:
        loads, asks = (
            shoal.start(name, shard=f"{k}/2", data_dir=tmp_path / f"data-{name}")
            for k, name in enumerate(("loads", "asks"))
        )
        shoal.until_logged("is still loading its model and data; ask again", asks)
        with urllib.request.urlopen(f"http://{(loads.facts() or {})['http']}/metrics", timeout=30) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        counted = [s for family in families for s in family.samples if s.name == "shoal_refused_total"]
        assert counted
        assert not any(s.value for s in counted), "an alert would fire at each start"
        assert "warning" not in log(loads) + log(asks)
        closed.unlink()
        assert shoal.codes() == [0, 0]
