"""The optional coordinator of a shoal: parameter server, vote counter, averager, address book.

To follow one vote: `server.py` takes it, `teller.py` counts, `rounds.py` decides, `store.py` keeps, `service.py` runs
the process around them.
"""

from shoal_coordinator.rounds import Terms
from shoal_coordinator.server import Server, beside

__all__ = ["Server", "Terms", "beside"]
