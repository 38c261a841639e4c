"""signSGD and Signum with majority vote (Bernstein, Wang, Azizzadenesheli, Anandkumar, ICML 2018, 1802.04434,
algorithms 2 and 3; Bernstein, Zhao, Azizzadenesheli, Anandkumar, ICLR 2019, 1810.05291, algorithm 1).

    m_i <- b m_i + (1 - b) g_i            on the worker; b = 0 is signSGD
    v    = majority of sign(m_i)          one bit a coordinate each way
    x   <- x - lr (v + wd x)

All workers hold the same x. Weight decay is decoupled, after the vote, as in the second paper; the first couples it.
No bias correction of m: it would not change a sign. A step has the same length in every coordinate, so lr is of the
size that Adam likes, does not grow with the number of workers, and must decay for x to come to rest.

A vote is a median of signs. Where the workers' data differ, it ends far from the optimum of their mean; see
`ef_signsgd.py`. Up to half of the workers may flip their signs or shout, as long as they do not know the others'.
"""

from shoal.algorithms.worker import Worker


async def signum(me: Worker) -> None:
    """One gradient, then one vote a round."""
    m = me.keep("m")
    for t in me.rounds():
        await me.agree(t)
        v = me.missed("vote", t)
        if v is None:
            g = await me.gradient()
            ahead = m.mul(me.momentum).add_(g, alpha=1 - me.momentum)
            v = await me.vote(t, ahead)
            m.copy_(ahead)  # not before: whoever stops in the vote takes this gradient again
        me.x.sub_(v.add_(me.x, alpha=me.weight_decay), alpha=me.lr)
        me.count()
