"""From an address that may be a peer's to a Hello with whoever listens there."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from shoal.discovery import Candidate
from shoal.errors import PeerError, Unreached
from shoal.v1 import node_pb2 as pb

log = logging.getLogger("shoal")

LOADING = "still loading its model and data"
"""How a node refuses that does not know its task's fingerprint yet: it is asked again, and nobody is warned."""
AGAIN_S = (0.2, 5.0)
"""Waits between Hellos to an address that does not answer: the first, and the longest."""
LOADING_S = 600.0
"""How long one that was only heard of may say that it still loads."""
SAID_LIMIT = 1_000
"""Addresses and peers whose last complaint is remembered."""
COMPLAINTS_A_MINUTE = 60
"""Lines in the log: whoever sends a new kind of nonsense each time must not fill the disk."""
GIVEN = ("static", "--coordinator")
"""Sources whose addresses the user has given: they are never crowded out."""
AT_ONCE = 256
"""Hints that are followed at a time: a peer may pass on any addresses, and makes nobody dial more. Further ones come
again with the next Hello."""


class Greeter:
    """Says Hello to candidates until they answer. Static ones are tried for ever, and again when they are lost; hints
    are given up at last; a coordinator is tried once, for `Seeking` never tires of asking."""

    def __init__(
        self,
        greet: Callable[[str], Awaitable[pb.Hello]],
        is_known: Callable[[Candidate], bool],
        unreached: Callable[[Candidate], None] = lambda _: None,
    ) -> None:
        """`unreached` is told of each attempt that nobody answered, or another node."""
        self._greet, self._is_known, self._unreached = greet, is_known, unreached
        self._tasks: dict[tuple[str, str, bool], asyncio.Task[None]] = {}
        self._said: dict[str, str] = {}  # the last complaint about each, so that it is told once; the last said last
        self._minute, self._complaints = 0, 0  # of the loop's clock, and in it

    def consider(self, candidate: Candidate) -> None:
        """An address turned up: greet it, unless that node is known or being greeted."""
        crowded = len(self._tasks) >= AT_ONCE and candidate.source not in GIVEN
        # Two nodes may have the same private address, and a coordinator is looked for by its own clock.
        key = candidate.address, candidate.node_id, candidate.source == "--coordinator"
        known = self._is_known(candidate) and candidate.source != "static"
        if key not in self._tasks and not crowded and not known:
            task = asyncio.get_running_loop().create_task(self._try(candidate), name=f"greeting {candidate.address}")
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def complain(self, about: str, text: str) -> None:
        """Warn of a peer's fault, once for each new text, and of so many a minute."""
        if self._said.get(about) == text:
            return
        self._said.pop(about, None)
        self._said[about] = text
        if len(self._said) > SAID_LIMIT:
            del self._said[next(iter(self._said))]
        if LOADING in text:
            return
        minute = int(asyncio.get_running_loop().time() / 60)
        if minute != self._minute:
            self._minute, self._complaints = minute, 0
        self._complaints += 1
        if self._complaints <= COMPLAINTS_A_MINUTE:
            log.warning("%s", text)
        if self._complaints == COMPLAINTS_A_MINUTE:
            log.warning("no more of these is written in this minute; shoal_refused_total counts all")

    def last_words(self, about: str) -> str:
        """The last complaint about that address or peer."""
        return self._said.get(about, "")

    async def close(self) -> None:
        """Greet nobody any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _try(self, candidate: Candidate) -> None:
        """Until that node has answered; who is to be found there for good, by the user's word, again whenever it is not
        known any more: it may have started again, and know nobody."""
        wait_s, longest_s = AGAIN_S
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            if not self._is_known(candidate):
                try:
                    answered = await self._greet(candidate.address)
                except PeerError as error:
                    self.complain(candidate.address, f"{error} (found by {candidate.source})")
                    if isinstance(error, Unreached):
                        self._unreached(candidate)
                    patience_s = LOADING_S if LOADING in str(error) else 0.0
                    tired = wait_s >= longest_s and loop.time() - began >= patience_s
                    if candidate.source == "--coordinator" or (candidate.source != "static" and tired):
                        return
                else:
                    if candidate.node_id and answered.identity.node_id != candidate.node_id:
                        self._unreached(candidate)  # another one has that address here
                    if candidate.source != "static":
                        return
                    candidate, wait_s = candidate._replace(node_id=answered.identity.node_id), AGAIN_S[0]
            elif candidate.source != "static":
                return
            else:
                wait_s = longest_s
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(longest_s, 2 * wait_s)
