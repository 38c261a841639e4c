"""What can go wrong, and whose fault it is.

    ShoalError
    ├── UserError               what the person at the terminal gave; shown in one or two lines, exit code 2
    │   ├── SettingsError       a flag, an environment variable or a key of shoal.toml
    │   ├── TaskError           the task file or class: missing, or not a task
    │   ├── DataError           the data set or its partition
    │   ├── TopologyError       a graph or a mixing matrix that the algorithm may not use
    │   ├── CheckpointError     cut short, of another task, of a newer version
    │   └── PortInUse           an address that somebody listens on already
    ├── PeerError               what another node sent; its message is dropped, the peer named and counted
    │   ├── Mismatch            another shoal, protocol, task or run
    │   ├── Unreached           nobody answers at its address
    │   ├── Untrusted           a certificate that does not hold, or a claim that does not fit it
    │   ├── BadVector           length, dtype, or a value that is not finite
    │   └── BadFrame            a frame that breaks the protocol, or a checksum that does not fit
    ├── Diverged                the loss is no longer finite; exit code 4
    ├── MemberLost              a run that cannot go on with other members has lost or got one; exit code 3
    └── Deadlock                every task waits and no timer is set (virtual time only)

Any other exception is our own fault and shows its traceback (exit code 1). A message names what was expected,
what came, and from whom.
"""


class ShoalError(Exception):
    """Root of every error that shoal raises on purpose."""

    exit_code = 1


class UserError(ShoalError):
    """Wrong input from the user: one or two lines, no traceback."""

    exit_code = 2


class SettingsError(UserError):
    """A setting that is unknown, of the wrong type, out of range or unsound for the algorithm."""


class TaskError(UserError):
    """The task cannot be loaded, or what it gives cannot be trained."""


class DataError(UserError):
    """The data set is missing or cannot be partitioned as asked."""


class TopologyError(UserError):
    """The graph or mixing matrix breaks a condition of the algorithm."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used: cut short, of another task, or written by a newer version."""


class PortInUse(UserError):
    """Somebody listens on that address already."""


class PeerError(ShoalError):
    """A peer's fault. The message is dropped and counted; nothing of ours changes."""


class Mismatch(PeerError):
    """The peer belongs to another shoal, speaks another protocol, or has another task or run."""


class Unreached(PeerError):
    """Nobody answers at that address, or not in time, or nobody with TLS where that is wanted."""


class Untrusted(PeerError):
    """The peer's certificate does not hold here, or the peer claims what its certificate does not."""


class BadVector(PeerError):
    """A vector of the wrong length or dtype, or with a value that is not finite."""


class BadFrame(PeerError):
    """A frame out of order or out of bounds, or bytes that do not fit their checksum."""


class Diverged(ShoalError):
    """The loss is no longer finite. The last checkpoint, from before, is left as it is."""

    exit_code = 4


class MemberLost(ShoalError):
    """The members have changed, and the run cannot go on with others than it began with; the message says why."""

    exit_code = 3


class Deadlock(ShoalError):
    """In virtual time: every task waits and no timer is set, so nothing can ever happen again."""
