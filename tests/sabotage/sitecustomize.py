"""On PYTHONPATH, this breaks the settlement in a trainer process: who serves an average drops its half of it."""

import sys

if "shoal.trainer" in sys.orig_argv:
    import torch

    from shoal.delta import Delta, Made
    from shoal.messages import PeerId
    from shoal.serving import Serving

    genuine = Serving._apply

    def dropped(self: Serving, peer: PeerId, seq: int, delta: Delta, *, crossed: bool) -> None:
        genuine(self, peer, seq, Made(torch.zeros_like(delta.tensor())), crossed=crossed)

    Serving._apply = dropped  # type: ignore[method-assign]
