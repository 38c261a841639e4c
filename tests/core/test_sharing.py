"""Memory is shared with who runs on the same machine for the same user and sees the process; with nobody else."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal import sharing
from shoal.link import TRANSMIT, Segment
from shoal.sharing import Memory, NotShared

SLOT = 10_000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sealed memory and /proc")


def segment(slots: int = TRANSMIT) -> Segment:
    made = Segment.create()
    made.size(SLOT, slots)
    return made


@pytest.fixture
def mine() -> Iterator[Segment]:
    made = segment()
    yield made
    made.close()


def memory_of(made: Segment) -> Memory:
    memory = sharing.own(made.fd)
    assert memory is not None
    return memory


def test_what_is_written_later_is_seen_where_it_lies(mine: Segment) -> None:
    view = sharing.read_only(memory_of(mine), SLOT, TRANSMIT)
    for k in range(TRANSMIT):
        mine.slot(k)[:4] = bytes([k, k, k, 7])
        assert bytes(view.slot(k)[:4]) == bytes([k, k, k, 7])


def test_who_reads_cannot_write(mine: Segment) -> None:
    view = sharing.read_only(memory_of(mine), SLOT, TRANSMIT)
    with pytest.raises(TypeError, match="read-only"):
        view.slot(0)[0] = 1


def test_another_process_reads_it_and_keeps_what_it_holds_when_the_owner_is_killed() -> None:
    """Nothing vanishes under a reader, and nothing is left behind: the memory has no name in any folder."""
    code = (
        "import sys; from shoal import sharing; from shoal.link import Segment, TRANSMIT\n"
        f"made = Segment.create(); made.size({SLOT}, TRANSMIT); made.slot(1)[:5] = b'hello'\n"
        "print(*sharing.own(made.fd), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        machine, pid, fd, name = owner.stdout.readline().decode().split()
        memory = Memory(machine, int(pid), int(fd), name)
        view = sharing.read_only(memory, SLOT, TRANSMIT)
        assert sharing.is_there(memory)
        owner.send_signal(signal.SIGKILL)
    assert bytes(view.slot(1)[:5]) == b"hello"
    assert not sharing.is_there(memory)
    with pytest.raises(NotShared, match="cannot be opened"):
        sharing.read_only(memory, SLOT, TRANSMIT)


def test_it_is_for_its_owner_alone_and_cannot_be_cut_short(mine: Segment) -> None:
    assert os.fstat(mine.fd).st_mode & 0o777 == 0o600
    assert fcntl.fcntl(mine.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(mine.fd, 4096)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"machine": "0" * 32}, "it runs on another machine"),
        ({"name": "shoal-" + "0" * 32}, "it runs on another machine"),
        ({"pid": 2**22 + 1}, "cannot be opened: No such file"),
        ({"fd": 987_654}, "cannot be opened: No such file"),
    ],
)
def test_what_a_hello_says_must_be_true(mine: Segment, wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(NotShared, match=why):
        sharing.read_only(memory_of(mine)._replace(**wrong), SLOT, TRANSMIT)


def test_another_file_of_the_same_process_is_not_touched(mine: Segment, tmp_path: Path) -> None:
    """Not even opened: a pipe that nobody reads would block, a device might do anything."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    other = segment()
    for fd in (pipe, other.fd):
        with pytest.raises(NotShared, match="not to be seen from here"):
            sharing.read_only(memory_of(mine)._replace(fd=fd), SLOT, TRANSMIT)
    os.close(pipe)


def test_memory_of_another_user_is_not_read(mine: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root could open it."""
    memory = memory_of(mine)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    with pytest.raises(NotShared, match=rf"belongs to user {os.getuid()}, this is 12345"):
        sharing.read_only(memory, SLOT, TRANSMIT)


def test_after_another_boot_it_is_another_machine(
    mine: Segment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = memory_of(mine)
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(sharing, "BOOT_ID", tmp_path / "boot_id")
    with pytest.raises(NotShared, match="another machine"):
        sharing.read_only(memory, SLOT, TRANSMIT)


def test_memory_that_is_smaller_than_the_model_is_not_read(mine: Segment) -> None:
    with pytest.raises(NotShared, match=r"segment of \d+ bytes, expected \d+ for 4 slots"):
        sharing.read_only(memory_of(mine), 100 * SLOT, TRANSMIT)


def test_memory_that_could_be_cut_short_is_neither_offered_nor_read(mine: Segment) -> None:
    """A reader of what was cut off dies by SIGBUS."""
    name = "shoal-" + "a" * 32
    fd = os.memfd_create(name, os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)
    assert sharing.own(fd) is None
    machine = sharing._machine(name)
    with pytest.raises(NotShared, match="cut short"):
        sharing.read_only(Memory(machine, os.getpid(), fd, name), SLOT, TRANSMIT)
    os.close(fd)


def test_where_there_is_no_such_memory_none_is_offered(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert sharing.own(file.fileno()) is None
    assert sharing.own(987_654) is None


def test_what_is_told_does_not_say_which_machine_it_is(mine: Segment) -> None:
    """Two segments of one machine look like those of two."""
    one, other = memory_of(mine), memory_of(segment())
    assert one.machine != other.machine
    assert sharing.BOOT_ID.read_text().strip() not in str(one)


def test_no_descriptor_is_left(mine: Segment) -> None:
    before = len(os.listdir("/proc/self/fd"))
    view = sharing.read_only(memory_of(mine), SLOT, TRANSMIT)
    data = torch.frombuffer(bytearray(view.slot(0)), dtype=torch.uint8)
    view.close()
    del view
    assert len(os.listdir("/proc/self/fd")) == before
    assert data.numel() == SLOT
