"""shoal: train one PyTorch model across machines that keep their own data, with no hub.

The public face is `Task`, `Data` and `Place` (import them from `shoal.data.task`, or lazily from here): what a
user writes. Everything else is reached through the command line.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Data", "Place", "Task", "__version__"]

if TYPE_CHECKING:
    from shoal.data.task import Data, Place, Task


def __getattr__(name: str) -> Any:
    # Lazy, because the daemon process imports shoal but must not import torch.
    if name in ("Task", "Data", "Place"):
        from shoal.data import task

        return getattr(task, name)
    raise AttributeError(f"module 'shoal' has no attribute {name!r}")
