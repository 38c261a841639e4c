"""The faults that other tests build on, each seen from the hosts: what is cut does not pass, and the rest does."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from netlab import FAULT_TOOLS, Lab, lab, why_not

WHY_NOT = why_not(*FAULT_TOOLS)
pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

COUNT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
    here.bind((sys.argv[1], 9001))
    here.settimeout(20)
    print("listening", flush=True)
    heard = 0
    while here.recv(100) != b"last": heard += 1
print(heard, flush=True)
"""
TELL = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
    for k in range(int(sys.argv[2])): here.sendto(b"one", (sys.argv[1], 9001)); time.sleep(0.001)
    for k in range(40): here.sendto(b"last", (sys.argv[1], 9001))
"""
TRIP = """
import socket, sys, time
began = time.monotonic()
try: socket.create_connection((sys.argv[1], 9), 5.0)
except ConnectionRefusedError: print(time.monotonic() - began)
"""
ECHO = """
import socket, sys
serving = socket.create_server((sys.argv[1], 9000))
print("listening", flush=True)
there, _ = serving.accept()
total = 0
while len(piece := there.recv(1 << 16)): total += len(piece)
print(total, flush=True)
"""
SEND = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], 9000)) as there:
    there.sendall(bytes(int(sys.argv[2])))
    there.shutdown(socket.SHUT_WR)
    while there.recv(1): pass
print(time.monotonic() - began)
"""


@pytest.fixture
def made() -> Iterator[Lab]:
    with lab(["a", "b", "c"]) as it:
        yield it


def test_a_partition_parts_the_groups_and_heals(made: Lab) -> None:
    made.partition([0], [1, 2])
    assert not made.reaches(0, 1)
    assert not made.reaches(2, 0)
    assert made.reaches(1, 2)
    assert not made.connected(0, 2)
    made.mend()
    assert made.reaches(0, 1)
    assert made.connected(0, 2)


def test_a_cut_edge_leaves_the_others(made: Lab) -> None:
    made.cut(0, 1)
    assert not made.reaches(0, 1)
    assert made.reaches(0, 2)
    assert made.reaches(1, 2)
    made.mend([(0, 1), (1, 0)])
    assert made.reaches(0, 1)


def datagrams(made: Lab, source: int, to: int, count: int) -> int:
    """How many of `count` arrive."""
    hearing = made.hosts[to].start([sys.executable, "-c", COUNT, made.hosts[to].ip], stdout=subprocess.PIPE)
    assert hearing.stdout is not None
    assert hearing.stdout.readline() == b"listening\n"
    subprocess.run(made.hosts[source].argv([sys.executable, "-c", TELL, made.hosts[to].ip, str(count)]), check=True)
    heard = int(hearing.stdout.readline())
    hearing.wait()
    hearing.stdout.close()
    return heard


def test_a_blocked_way_passes_in_the_other_direction(made: Lab) -> None:
    made.block(0, 1)
    assert not made.reaches(1, 0)
    assert not made.reaches(0, 1)
    assert datagrams(made, 1, 0, 50) == 50
    assert made.reaches(0, 2)


def seconds_for(made: Lab, nbytes: int) -> float:
    """To carry so many bytes from host 0 to host 1, and the answer that they are there."""
    serving = made.hosts[1].start([sys.executable, "-c", ECHO, made.hosts[1].ip], stdout=subprocess.PIPE)
    assert serving.stdout is not None
    assert serving.stdout.readline() == b"listening\n"
    argv = made.hosts[0].argv([sys.executable, "-c", SEND, made.hosts[1].ip, str(nbytes)])
    took = float(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
    assert int(serving.stdout.readline()) == nbytes
    serving.wait()
    serving.stdout.close()
    return took


def test_a_limit_is_kept_whatever_is_sent(made: Lab) -> None:
    """A lower bound: 2 Mbit/s carry 500,000 bytes in no less than 2 s, but for the burst of 64 kB."""
    made.limit(0, "2mbit")
    assert seconds_for(made, 500_000) > 8 * (500_000 - 80_000) / 2e6
    made.limit(0)
    assert seconds_for(made, 500_000) > 0


def test_a_delay_adds_to_every_round_trip_and_may_be_taken_away_again(made: Lab) -> None:
    made.delay(0, 100)
    argv = made.hosts[0].argv([sys.executable, "-c", TRIP, made.hosts[1].ip])
    assert float(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout) >= 0.2
    made.cut(0, 1)
    assert not made.reaches(0, 1), "a cut holds for a delayed link, too"
    made.delay(0)
    assert not made.reaches(0, 1), "and for one whose delay is gone"
    made.mend()
    assert made.reaches(0, 1)


def test_lost_frames_are_some_and_tcp_sends_them_again(made: Lab) -> None:
    made.loss(20)
    assert 0 < datagrams(made, 0, 1, 300) < 300
    assert seconds_for(made, 50_000) > 0
    made.loss(0)
    assert datagrams(made, 0, 1, 300) == 300
