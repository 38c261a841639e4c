"""D-PSGD: decentralised parallel SGD (Lian et al., NeurIPS 2017, 1705.09056, algorithm 1).

    g_i    = minibatch gradient at x_i^t
    x_i^{t+1} = sum_j W_ij x_j^t - lr g_i

W is symmetric and doubly stochastic. The gradient is taken at the model before mixing and applied to the mixed one, so
the two run side by side. Its error grows with the spread of the nodes' gradients; `d2` has no such term.
Momentum is local and is known to raise that error (DecentLaM, 2104.11981).

With `exchange_every` = k only every k-th round mixes, the others are local steps (PD-SGD of Cooperative SGD,
1808.07576).
"""

from shoal.algorithms.choco import choco
from shoal.algorithms.descent import direction, keep_direction
from shoal.algorithms.worker import Worker


async def d_psgd(me: Worker) -> None:
    """One mix and one gradient a round; packed, it is `choco.py`."""
    if me.packed:
        await choco(me)
        return
    for t in me.rounds():
        mixing = me.mix(t, me.x) if t % me.exchange_every == 0 else None
        g = await me.gradient()
        if mixing is not None:
            mixed = await mixing
            me.x.copy_(mixed)
        u = direction(me, g)
        me.x.sub_(u, alpha=me.lr)
        keep_direction(me, u)
        me.count()
