"""What connections leave behind in memory that Python does not count."""

import contextlib
import ctypes
import itertools

import pytest
from transport_kit import HandMade, nodes

from shoal.transport.connection import STREAM_ERRORS

pytestmark = pytest.mark.live

CONNECTIONS = 300
NONSENSE = b"\xff\xff"
MOST_LEFT = 37_500
"""Bytes a connection: half of what was measured while reads under way were cancelled."""


class Heap(ctypes.Structure):
    """What glibc's mallinfo2 gives; only one field is of interest."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in (*"abcdefg", "allocated", "free", "keep"))


def allocated() -> int:
    """Bytes of the C heap in use."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Heap
    return int(mallinfo().allocated)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
async def test_a_connection_that_is_reset_while_frames_come_leaves_nothing_in_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    numbers = itertools.count(1)
    async with nodes(caplog) as make:
        node = await make("b")

        async def broken(count: int) -> None:
            for _ in range(count):
                async with HandMade(node) as a:
                    a.ends = a.ends._replace(number=next(numbers))
                    await a.connect()
                    with contextlib.suppress(*STREAM_ERRORS):
                        await a.control.write(NONSENSE)  # the connection ends by it, while frames come on Exchange
                        await a.exchange.write(50 * NONSENSE)
                        await a.control.read()
                await node.down()

        await broken(100)  # caches fill
        before = allocated()
        await broken(CONNECTIONS)
        left = (allocated() - before) / CONNECTIONS
        print(f"{left:.0f} bytes a connection")
        assert left < MOST_LEFT
