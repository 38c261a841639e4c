"""`shoal coordinator`: parameter server, vote counter and address book, until a signal comes."""

import asyncio
import dataclasses

from shoal.cli.options import with_settings
from shoal.settings import Settings
from shoal.whereabouts import placed
from shoal_coordinator.service import Service

SETTINGS = [
    "listen",
    "advertise",
    "http",
    "tls",
    "insecure",
    "shoal",
    "name",
    "state_dir",
    "quorum",
    "deadline_s",
    "min_nodes",
    "max_rate",
    "discovery",
    "heartbeat_s",
    "suspect_after_s",
    "log",
    "log_level",
]
STATE_DIR = "coordinator-state"
"""Where it keeps its state if nothing is said: a node may run in the same folder."""


@with_settings(only=SETTINGS)
def command(settings: Settings, origins: dict[str, str]) -> int:
    """Run a coordinator: it counts votes, averages, or keeps the model of a-psgd, for the first run that comes to it.

    It goes on where it stopped, also after a kill -9, when it is started again on its port and its --state-dir.
    Without --state-dir it keeps its state in ./coordinator-state.
    """
    if origins["state_dir"] == "default":
        settings = dataclasses.replace(settings, state_dir=STATE_DIR)
    return asyncio.run(Service(placed(settings)).run())
