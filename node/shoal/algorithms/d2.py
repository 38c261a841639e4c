"""D2: decentralised training over decentralised data (Tang, Lian, Yan, Zhang, Liu, ICML 2018, 1803.07068, algorithm 1).

    paper:   x^{t+1} = W (2 x^t - x^{t-1} - lr g^t + lr g^{t-1})
    here:    y = x - lr (g - h);   x = W y;   h += (W y - y) / lr,   h = 0 at first

For a constant lr the two give the same trajectory. h is the correction in gradient units: it tends to the node's own
gradient at the common optimum, and sum_i h_i = 0 always. Because it holds no lr, warm-up, decay and pauses leave it
right, where the paper's form drifts or divides by zero; while lr is 0, or tiny against the largest so far, h rests.

Condition: W symmetric, doubly stochastic, connected, smallest eigenvalue above -1/3; `topology.mixing` checks it and
makes W lazy. No bound on how much the nodes' data differ. Momentum, which the paper does not have, acts on g before
the correction and leaves the fixed point where it is.
"""

from shoal.algorithms.descent import direction, keep_direction
from shoal.algorithms.lead import lead
from shoal.algorithms.worker import Worker

TINY = 1e-3
"""Below this part of the largest step size so far, dividing by lr would only amplify rounding."""


async def d2(me: Worker) -> None:
    """One gradient, then one mix a round; packed, it is `lead.py`."""
    if me.packed:
        await lead(me)
        return
    h = me.keep("h")
    if not me.kept_corrections:
        h.zero_()
    largest = 0.0
    for t in me.rounds():
        lr = me.lr
        largest = max(largest, lr)
        g = await me.gradient()
        u = direction(me, g)
        y = me.x.sub(u.sub(h), alpha=lr)
        x = await me.mix(t, y)
        if lr > TINY * largest:
            h.add_(x.sub(y), alpha=1 / lr)
        me.x.copy_(x)
        keep_direction(me, u)
        me.count()
