"""The link between daemon and trainer: packets in order, sizes bounded, and nothing left behind by a killed process."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shoal import link
from shoal.link import FRAME_LIMIT, Channel, Packet, Segment, Slots


async def channels() -> tuple[Channel, Channel]:
    ours, theirs = socket.socketpair()
    return await Channel.open(ours), await Channel.open(theirs)


async def raw_end() -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return await Channel.open(ours), theirs


class TestChannel:
    async def test_packets_arrive_in_order_with_fields_and_body(self) -> None:
        a, b = await channels()
        a.send("send", b"\x00header\xff", peer="node-abcdef", conn=3, slot=-1)
        a.send("failed", kind="user", message="keine Daten für Klasse ß")
        a.send("finished")
        assert await b.receive() == Packet("send", {"peer": "node-abcdef", "conn": 3, "slot": -1}, b"\x00header\xff")
        assert await b.receive() == Packet("failed", {"kind": "user", "message": "keine Daten für Klasse ß"})
        assert await b.receive() == Packet("finished", {}, b"")
        a.close()
        b.close()

    async def test_both_ends_may_send_at_once(self) -> None:
        a, b = await channels()
        for n in range(100):
            a.send("status", step=n)
            b.send("totals", gradients=n)
        assert [(await b.receive() or Packet("", {})).fields["step"] for _ in range(100)] == list(range(100))
        assert [(await a.receive() or Packet("", {})).fields["gradients"] for _ in range(100)] == list(range(100))
        a.close()
        b.close()

    async def test_what_was_sent_before_closing_still_arrives_then_comes_the_end(self) -> None:
        a, b = await channels()
        a.send("stopped", bytes(5 << 20), checkpoint="x")
        a.close()
        packet = await b.receive()
        assert packet is not None
        assert packet.body == bytes(5 << 20)
        assert await b.receive() is None
        b.close()

    async def test_a_packet_arrives_whole_however_it_is_cut_up(self) -> None:
        channel, raw = await raw_end()
        text = json.dumps(["send", {"slot": 2}]).encode()
        frame = struct.pack("<II", 4 + len(text) + 3, len(text)) + text + b"xyz"
        waiting = asyncio.create_task(channel.receive())
        for byte in frame:
            assert not waiting.done()
            raw.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await waiting == Packet("send", {"slot": 2}, b"xyz")
        channel.close()
        raw.close()

    async def test_a_process_that_dies_in_the_middle_of_a_packet_is_an_end(self) -> None:
        channel, raw = await raw_end()
        raw.send(struct.pack("<II", 100, 20) + b'["send"')
        raw.close()
        assert await channel.receive() is None
        channel.close()

    @pytest.mark.parametrize(("total", "length"), [(FRAME_LIMIT + 1, 2), (2**32 - 1, 2), (10, 7), (3, 0)])
    async def test_sizes_out_of_bounds_are_refused_before_anything_is_allocated(self, total: int, length: int) -> None:
        channel, raw = await raw_end()
        raw.send(struct.pack("<II", total, length))
        with pytest.raises(ValueError, match=f"frame of {total} bytes"):
            await channel.receive()
        channel.close()
        raw.close()

    async def test_a_packet_that_the_other_end_would_refuse_is_not_sent(self) -> None:
        a, b = await channels()
        with pytest.raises(ValueError, match=r"'model' of \d+ bytes; a packet has at most"):
            a.send("model", bytes(FRAME_LIMIT))
        a.send("finished")
        assert await b.receive() == Packet("finished", {})
        a.close()
        b.close()

    async def test_a_packet_of_the_largest_size_arrives(self) -> None:
        a, b = await channels()
        body = bytes(FRAME_LIMIT - 4 - len(b'["x",{}]'))
        a.send("x", body)
        packet = await b.receive()
        assert packet is not None
        assert packet.body == body
        with pytest.raises(ValueError, match="at most"):
            a.send("x", body + b"1")
        a.close()
        b.close()

    async def test_a_reader_that_hangs_is_an_error_and_not_endless_memory(self) -> None:
        a, b = await channels()

        def send_much() -> None:
            for _ in range(100):
                a.send("event", bytes(1 << 20))

        with pytest.raises(BufferError, match="unread"):
            send_much()
        a.close()
        b.close()

    async def test_sending_to_a_process_that_is_gone_is_silent(self) -> None:
        a, b = await channels()
        b.close()
        assert await a.receive() is None
        for _ in range(20):
            a.send("status", step=1)
        a.close()


class TestSegment:
    def test_slots_hold_what_was_written_and_do_not_touch(self) -> None:
        segment = Segment.create()
        segment.size(5000, 8)
        for k in range(8):
            segment.slot(k)[:] = bytes([k]) * 5000
        assert [bytes(segment.slot(k)) for k in range(8)] == [bytes([k]) * 5000 for k in range(8)]
        segment.close()

    def test_the_other_end_sees_the_same_bytes(self) -> None:
        ours = Segment.create()
        theirs = Segment(os.dup(ours.fd))
        theirs.size(12, 2)
        daemon = Segment.attach(ours.fd, 12, 2)
        theirs.slot(1)[:] = b"from trainer"
        assert bytes(daemon.slot(1)) == b"from trainer"
        daemon.slot(0)[:] = b"from  daemon"
        assert bytes(theirs.slot(0)) == b"from  daemon"
        for segment in (ours, theirs, daemon):
            segment.close()

    def test_a_slot_of_no_bytes_is_a_view_of_no_bytes(self) -> None:
        segment = Segment.create()
        segment.size(0, 2)
        assert len(segment.slot(1)) == 0
        segment.close()

    def test_attaching_to_less_than_was_promised_is_an_error(self) -> None:
        segment = Segment.create()
        segment.size(4096, 2)
        with pytest.raises(ValueError, match=r"segment of 8192 bytes, expected 12288 for 3 slots"):
            Segment.attach(segment.fd, 4096, 3)
        segment.close()

    @pytest.mark.parametrize(("slot_bytes", "slots"), [(-1, 4), (10, 0)])
    def test_impossible_sizes_are_refused(self, slot_bytes: int, slots: int) -> None:
        segment = Segment.create()
        with pytest.raises(ValueError, match="slots of"):
            segment.size(slot_bytes, slots)
        segment.close()

    def test_a_size_is_given_once_and_slots_exist_only_after_it(self) -> None:
        segment = Segment.create()
        with pytest.raises(IndexError):
            segment.slot(0)
        segment.size(10, 2)
        with pytest.raises(IndexError, match="slot 2 of 2"):
            segment.slot(2)
        with pytest.raises(ValueError, match="already"):
            segment.size(20, 2)
        segment.close()

    def test_views_outlive_the_segment(self) -> None:
        segment = Segment.create()
        segment.size(10, 1)
        view = segment.slot(0)
        segment.close()
        view[:] = b"still here"
        assert bytes(view) == b"still here"

    def test_without_memfd_an_unlinked_file_serves(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr(link.tempfile, "tempdir", str(tmp_path))
        segment = Segment.create()
        segment.size(100, 2)
        segment.slot(1)[:] = b"x" * 100
        assert not list(tmp_path.iterdir())
        segment.close()


CHILD = """
import sys
from shoal.link import Segment
segment = Segment(int(sys.argv[1]))
segment.size(1 << 20, 4)
segment.slot(2)[:] = b"t" * (1 << 20)
print("sized", flush=True)
sys.stdin.readline()
print(bytes(segment.slot(3)) == b"d" * (1 << 20), flush=True)
sys.stdin.readline()
"""


def test_a_child_shares_the_segment_and_nothing_stays_when_it_is_killed() -> None:
    shm = Path("/dev/shm")
    before = set(shm.glob("*"))
    created = Segment.create()
    command = [sys.executable, "-c", CHILD, str(created.fd)]
    with subprocess.Popen(
        command, pass_fds=[created.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "sized\n"
        segment = Segment.attach(created.fd, 1 << 20, 4)
        assert bytes(segment.slot(2)) == b"t" * (1 << 20)
        segment.slot(3)[:] = b"d" * (1 << 20)
        child.stdin.write("\n")
        assert child.stdout.readline() == "True\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert bytes(segment.slot(2)) == b"t" * (1 << 20)
    segment.close()
    created.close()
    assert set(shm.glob("*")) <= before


class TestSlots:
    async def test_every_slot_is_taken_once_until_it_is_given_back(self) -> None:
        slots = Slots(range(4, 8))
        assert sorted([await slots.take() for _ in range(4)]) == [4, 5, 6, 7]
        assert slots.take_nowait() is None
        slots.give(6)
        assert slots.take_nowait() == 6

    async def test_who_waits_longest_is_served_first(self) -> None:
        slots = Slots([0])
        slots.take_nowait()
        order: list[str] = []

        async def wait(name: str) -> None:
            k = await slots.take()
            order.append(name)
            slots.give(k)

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(wait(name))
                await asyncio.sleep(0)
            slots.give(0)
        assert order == ["a", "b", "c"]

    async def test_a_cancelled_wait_loses_no_slot(self) -> None:
        slots = Slots([0])
        slots.take_nowait()
        waiting = asyncio.create_task(slots.take())
        await asyncio.sleep(0)
        slots.give(0)  # the wait is over, but its task has not run yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert slots.take_nowait() == 0

    @pytest.mark.parametrize("k", [0, 9])
    async def test_giving_what_was_not_taken_is_an_error(self, k: int) -> None:
        slots = Slots([0, 1])
        slots.give(slots.take_nowait() or 0)
        with pytest.raises(ValueError, match=f"slot {k} was not taken"):
            slots.give(k)
        assert slots.free == 2
