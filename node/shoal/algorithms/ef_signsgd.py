"""EF-signSGD: error feedback repairs the signs (Karimireddy, Rebjock, Stich, Jaggi, ICML 2019, 1901.09847,
algorithm 1), here with one bit a coordinate and one scale a tensor in both directions.

    p_i = lr g_i + e_i
    s_i = scale sign(p_i),  scale = mean |p_i| in each tensor
    e_i <- p_i - s_i
    x  <- x - C(mean of s_i + e),  e <- what C left out

The second memory, e, is whoever counts': of the coordinator, or of each member for its part (`rules.py`). What is not
sent now is sent later, so nothing is lost, whatever the workers' data: on data that differ from worker to worker it
ends where SGD on the mean gradient does, and the vote of `signum.py` does not. lr stands inside the compressor, so
that a change of lr leaves what is kept right. Scales are trusted: one liar can ruin it.
"""

from shoal.algorithms.descent import direction, keep_direction
from shoal.algorithms.worker import Worker


async def ef_signsgd(me: Worker) -> None:
    """One gradient, then one compressed mean a round."""
    e = me.keep("e")
    for t in me.rounds():
        await me.agree(t)
        step = me.missed("ef-mean", t)
        if step is None:
            g = await me.gradient()
            u = direction(me, g)
            p = e.add(u, alpha=me.lr)
            step, sent = await me.compressed_mean(t, p)
            e.copy_(p.sub_(sent))
            keep_direction(me, u)
        me.x.sub_(step)
        me.count()
