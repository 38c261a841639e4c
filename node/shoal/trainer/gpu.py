"""What the trainer's GPU holds, for the metrics."""

import torch


def memory(device: torch.device) -> dict[str, int]:
    """Bytes of that GPU: all, used by whoever, and allocated by this process for tensors. Empty on a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"total": total, "used": total - free, "trainer": torch.cuda.memory_allocated(device)}
