"""A node's lives. Daemon and trainer live and die as one incarnation: when the trainer dies of something that is no
error of the run's, both end, and the next incarnation goes on from the checkpoint."""

import collections
import logging
import sys
import time

from shoal.daemon import Daemon
from shoal.process import AGAIN
from shoal.settings import Settings

log = logging.getLogger("shoal")

DEATHS = 3
"""So many trainers may die within WITHIN_S; one more, and a person has to look."""
WITHIN_S = 600.0


async def live(settings: Settings) -> int:
    """Until the run is over, a signal comes, or something fails that another life would not mend; the exit code."""
    deaths: collections.deque[float] = collections.deque(maxlen=DEATHS + 1)
    while True:
        daemon = Daemon(settings)
        code = await daemon.run()
        if code != AGAIN:
            return code
        deaths.append(time.monotonic())
        if len(deaths) > DEATHS and deaths[-1] - deaths[0] < WITHIN_S:
            print(f"error: the trainer process died {len(deaths)} times in {WITHIN_S / 60:g} minutes", file=sys.stderr)
            return 1
        settings = daemon.next_life()
        log.warning("starting again %s", "from the last checkpoint" if settings.resume else "without a checkpoint")
