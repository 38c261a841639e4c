"""`shoal node`: run one node until the run is over, a signal comes, or something is wrong."""

import asyncio

from shoal.cli.options import with_settings
from shoal.lives import live
from shoal.settings import Settings
from shoal.whereabouts import placed


@with_settings(without=("quorum", "deadline_s"))
def command(settings: Settings) -> int:
    """Run a node: find the others, train with them, serve until all are done.

    Ctrl-C (or SIGTERM) stops within five seconds and says where the checkpoint is; --resume goes on from it.
    """
    return asyncio.run(live(placed(settings)))
