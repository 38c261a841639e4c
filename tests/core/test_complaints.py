"""What a node says of peers that do not fit: once, and never so much that it fills a disk or its memory."""

import asyncio
import logging

import pytest

from shoal.discovery import Candidate
from shoal.greeter import COMPLAINTS_A_MINUTE, LOADING, SAID_LIMIT, Greeter


async def never(address: str) -> object:
    raise AssertionError(f"nobody is greeted here, and {address} was")


def greeter() -> Greeter:
    def is_known(candidate: Candidate) -> bool:
        return True

    return Greeter(never, is_known)


async def test_a_complaint_is_written_once_for_each_new_text(caplog: pytest.LogCaptureFixture) -> None:
    it = greeter()
    for text in ("refused b: one", "refused b: one", "refused b: two", "refused b: one"):
        it.complain("b", text)
    assert [record.getMessage() for record in caplog.records] == ["refused b: one", "refused b: two", "refused b: one"]
    assert it.last_words("b") == "refused b: one"


async def test_nobody_is_warned_of_a_node_that_still_loads(caplog: pytest.LogCaptureFixture) -> None:
    it = greeter()
    it.complain("b", f"no Hello from b: b is {LOADING}")
    assert caplog.records == []
    assert LOADING in it.last_words("b"), "but it is said to who asks why nobody is found"


async def test_a_peer_with_ever_new_nonsense_fills_neither_the_log_nor_memory(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    it, now = greeter(), 600.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    for k in range(2 * SAID_LIMIT):
        it.complain(f"peer-{k}", f"refused peer-{k}: nonsense")
    assert len(caplog.records) == COMPLAINTS_A_MINUTE + 1
    assert caplog.records[-1].getMessage().startswith("no more of these is written in this minute")
    assert it.last_words("peer-0") == ""
    assert it.last_words(f"peer-{2 * SAID_LIMIT - 1}") != ""
    now += 60
    it.complain("peer", "refused peer: more")
    assert caplog.records[-1].getMessage() == "refused peer: more"
