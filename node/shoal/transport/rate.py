"""How much a node sends at most, over all its peers together: one token bucket, and a queue in front of it.

Only the chunks of vectors wait for their turn. What is small and must not be late (control frames, headers, trailers)
goes at once and is taken off what is left for the chunks. Who has sent a chunk goes to the end of the queue, so peers
that are sent to at the same time share the rate evenly, whatever the lengths of their vectors.
"""

import asyncio

from shoal.transport.frames import CHUNK_BYTES

CHUNK_S = 0.1
"""A chunk is worth so much of the rate: a stream that is held back flows, and does not come in bursts of seconds."""
LEAST_CHUNK_BYTES = 16 << 10
PAGE_BYTES = 4096
FRAMING_BYTES = 16
"""Tag and length of a chunk's frame, at most."""


def chunk_bytes(rate: float) -> int:
    """The payload of a chunk at `rate` bytes a second, in whole pages; the usual one at 0, which is no limit."""
    worth = int(CHUNK_S * rate) // PAGE_BYTES * PAGE_BYTES
    return min(CHUNK_BYTES, max(LEAST_CHUNK_BYTES, worth)) if rate else CHUNK_BYTES


class Bucket:
    """Holds up to `depth` bytes, is full at first, and fills at `rate` bytes a second. Pure: `now` is of any clock that
    begins at 0 or later and does not go back.

    Who takes only what is ready has taken at most depth + rate T bytes in any T seconds.
    """

    def __init__(self, rate: float, depth: int) -> None:
        self._rate, self._depth = rate, depth
        self._level = float(depth)  # below 0 after `take` of what was not there: that is filled up first
        self._at = 0.0

    def ready_in(self, nbytes: int, now: float) -> float:
        """Seconds until so many bytes are there, if nobody takes any meanwhile; 0 if they are. Of more than `depth`:
        until it is full."""
        missing = min(nbytes, self._depth) - self._filled(now)
        return missing / self._rate if missing >= 1 else 0.0  # a part of a byte would be a wait too short for a clock

    def take(self, nbytes: int, now: float) -> None:
        """Take them, whether they are there or not."""
        self._level, self._at = self._filled(now) - nbytes, now

    def _filled(self, now: float) -> float:
        return min(float(self._depth), self._level + self._rate * (now - self._at))


class Limit:
    """One node's, for all its connections. Everything runs on one event loop, whose clock counts."""

    def __init__(self, rate: float = 0.0) -> None:
        """`rate` in bytes a second; 0: no limit."""
        self.chunk_bytes = chunk_bytes(rate)
        self.waited_s = 0.0  # for which a chunk was held back, however many more stood behind it
        # One chunk that goes, and one for those that went too late: a timer is never early.
        self._bucket = Bucket(rate, 2 * (self.chunk_bytes + FRAMING_BYTES)) if rate else None
        self._queue = asyncio.Lock()  # in the order of waiting; a cancelled wait leaves it

    def count(self, nbytes: int) -> None:
        """So many bytes go now."""
        if self._bucket is not None:
            self._bucket.take(nbytes, asyncio.get_running_loop().time())

    async def turn(self, nbytes: int) -> None:
        """Returns when so many bytes may go, and counts them."""
        if self._bucket is None:
            return
        loop = asyncio.get_running_loop()
        async with self._queue:
            began = loop.time()
            while (wait_s := self._bucket.ready_in(nbytes, loop.time())) > 0:
                await asyncio.sleep(wait_s)
            self._bucket.take(nbytes, loop.time())
            self.waited_s += loop.time() - began
