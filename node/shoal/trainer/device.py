"""Where the trainer computes, and what its GPU holds."""

import torch

from shoal.errors import SettingsError


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda:N as a device. Raises SettingsError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"unknown device {name!r}; known: auto, cpu, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"unknown device {name!r}; known: auto, cpu, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"device {name} is not there: torch sees {torch.cuda.device_count()} GPUs on this machine")
    return device


def gpu_memory(device: torch.device) -> dict[str, int]:
    """Bytes of that GPU: all, used by whoever, and allocated by this process for tensors. Empty on a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"total": total, "used": total - free, "trainer": torch.cuda.memory_allocated(device)}
