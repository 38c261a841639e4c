"""What processes have used, from /proc."""

import time
from collections.abc import Iterable
from pathlib import Path

_OF_A_PROCESS = 2
"""Low bits of the id of a clock that counts what all threads of a process have used (Linux: `clock_getcpuclockid`)."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes so far, all their threads, ended ones included."""
    return sum(time.clock_gettime(~pid << 3 | _OF_A_PROCESS) for pid in pids)


def children(pid: int) -> list[int]:
    """Processes that `pid` has started and that live."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in threads for child in file.read_text().split()]


def family(pid: int) -> list[int]:
    """`pid`, its children, theirs, and so on."""
    return [pid, *(member for child in children(pid) for member in family(child))]


def memory_bytes(pid: int, kind: str = "Pss") -> int:
    """Of one process now. Rss: all that is resident. Pss: of pages that n processes share, an n-th."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == kind:
            return 1024 * int(amount.split()[0])
    raise ValueError(f"{kind} is no figure of smaps_rollup; expected Rss or Pss")


def available_bytes() -> int:
    """Memory that new processes can take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
