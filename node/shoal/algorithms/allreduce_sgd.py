"""AllReduce-SGD: the synchronous baseline that every paper here compares with.

    g_i = minibatch gradient at x, which is the same on all workers
    x  <- x - lr (1/n) sum_i g_i

The mean travels over a ring, reduce-scatter then all-gather, so that every worker sends 2 (n-1)/n of the vector a step,
whatever n is, and all get the same bits. Momentum acts on the mean, and is therefore the same on all. The step waits
for the slowest worker.
"""

from shoal.algorithms.descent import direction, keep_direction
from shoal.algorithms.worker import Worker


async def allreduce_sgd(me: Worker) -> None:
    """One gradient, then one mean a round."""
    kept = [me.keep("momentum")] if me.momentum else []
    for t in me.rounds():
        await me.agree(t, *kept)
        mean = me.missed("mean", t)
        if mean is None:
            g = await me.gradient()
            mean = await me.mean(t, g)
        u = direction(me, mean)
        me.x.sub_(u, alpha=me.lr)
        keep_direction(me, u)
        me.count()
