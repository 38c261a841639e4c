"""What a process does with memory that it frees: it keeps some of it, where it would give it back and ask for it anew.

A megabyte that gRPC frees and takes again for each chunk comes from the kernel each time, page by page and zeroed: ten
thousand page faults for a vector of 47 MB, a quarter of what its exchange costs.
"""

import contextlib
import ctypes
from typing import Final

MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8
"""Numbers of `mallopt` (glibc)."""
LARGEST: Final = 32 << 20
"""Bytes: larger pieces are mapped and unmapped one by one, whatever is asked; glibc knows no more."""
KEPT: Final = 64 << 20
"""Bytes that may lie free at the end of the heap."""


def keep_freed_memory() -> None:
    """For a process that moves chunks or makes gradients, before it starts threads. Without glibc nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, KEPT), (ARENA_MAX, 1)):
            mallopt(option, value)
