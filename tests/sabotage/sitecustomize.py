"""On PYTHONPATH, this breaks the settlement in a trainer process: who serves an average drops its half of it."""

import sys

if "shoal.trainer" in sys.orig_argv:
    import torch
    from torch import Tensor

    from shoal.exchange import Settlement
    from shoal.messages import PeerId

    genuine = Settlement._apply_passive

    def dropped(self: Settlement, peer: PeerId, seq: int, delta: Tensor, *, crossed: bool) -> None:
        genuine(self, peer, seq, torch.zeros_like(delta), crossed=crossed)

    Settlement._apply_passive = dropped  # type: ignore[method-assign]
