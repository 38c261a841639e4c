"""Delay on a link of `netlab.py`, where the kernel has no netem: raw frames go from one interface to another, later.

delayline.py INTERFACE INTERFACE DELAY_MS JITTER_MS    in the switch's namespace; one way; says "ready"
delayline.py --plain INTERFACE                         frames leave it checksummed and no larger than the MTU
"""

import contextlib
import ctypes
import fcntl
import heapq
import random
import select
import socket
import struct
import sys
import time

SIOCETHTOOL = 0x8946
OFFLOADS = (0x17, 0x1F, 0x24, 0x2C)  # ETHTOOL_STXCSUM, STSO, SGSO, SGRO of linux/ethtool.h
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
EVERY_PROTOCOL = 3  # ETH_P_ALL
FRAME_BYTES, BURST = 1 << 16, 256


def plain(interface: str) -> None:
    """Turns off what a network card would do after us: a raw socket sees frames before that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(any_socket, SIOCETHTOOL, request)
            except OSError as error:
                print(f"{interface}: offload {command:#x} stays: {error}", file=sys.stderr)


def opened(interface: str) -> socket.socket:
    """Reads and writes whole frames there."""
    plain(interface)
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
    raw.bind((interface, 0))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)  # what it has sent is not read back
    raw.setblocking(False)
    return raw


def frames(raw: socket.socket) -> list[bytes]:
    """All that wait, up to a burst."""
    found: list[bytes] = []
    try:
        while len(found) < BURST:
            found.append(raw.recv(FRAME_BYTES))
    except OSError:
        pass
    return found


def relay(one: str, other: str, delay_s: float, jitter_s: float) -> None:
    """For ever. Frames of one direction keep their order."""
    ends = {end.fileno(): end for end in map(opened, (one, other))}
    there = dict(zip(ends, reversed(ends.values()), strict=True))
    last = dict.fromkeys(ends, 0.0)
    queue: list[tuple[float, int, int, bytes]] = []  # (due, number, from, frame)
    poll, number = select.epoll(), 0
    for end in ends:
        poll.register(end, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        while queue and queue[0][0] <= time.monotonic():
            _, _, source, frame = heapq.heappop(queue)
            with contextlib.suppress(OSError):  # as on a wire: nobody is told
                there[source].send(frame)
        ready = poll.poll(max(0.0, queue[0][0] - time.monotonic()) if queue else 1.0)
        now = time.monotonic()
        for end, _ in ready:
            for frame in frames(ends[end]):
                last[end] = max(now + delay_s + random.uniform(-jitter_s, jitter_s), last[end])
                number += 1
                heapq.heappush(queue, (last[end], number, end, frame))


if __name__ == "__main__":
    if sys.argv[1] == "--plain":
        plain(sys.argv[2])
    else:
        relay(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000, float(sys.argv[4]) / 1000)
