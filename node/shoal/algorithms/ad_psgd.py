"""AD-PSGD: asynchronous decentralised parallel SGD (Lian, Zhang, Zhang, Liu, ICML 2018, 1710.06952, algorithm 1).

    xh = x_i as it was read when the gradient began
    g  = minibatch gradient at xh
    (x_i, x_j) <- ((x_i + x_j)/2, (x_i + x_j)/2)      for a random neighbour j, atomically
    x_i <- x_i - lr g                                 g is stale, and applied to the averaged model

The average runs while the gradient is computed (the wait-free form of the paper's appendix). We depart in two points.
The paper keeps the pair atomic by a lock and a bipartite graph; here the pair is settled by two deltas that cancel
(`exchange.py`), so any graph will do. And after BUSY the worker tries another neighbour until one average is done;
`overlap` allows that many more gradients before it waits.

On data that differs from node to node the fixed point weighs each node by its speed (assumption 1 of the paper takes
this as given); equally fast nodes reach the optimum of all. Momentum is local, applied after the average, never sent.
"""

from shoal.algorithms.descent import direction
from shoal.algorithms.worker import Worker
from shoal.exchange import Outcome


async def ad_psgd(me: Worker) -> None:
    """Until the shoal has its gradients: one finished average to every 1 + overlap gradients."""
    averaging, steps = None, 0
    while me.more():
        if averaging is None:
            averaging, steps = me.begin(average_once(me)), 0
        g = await me.gradient(me.x)
        steps += 1
        if steps > me.overlap:
            await averaging
            averaging = None
        u = direction(me, g)
        me.x.sub_(u, alpha=me.lr)
        me.count()
    if averaging is not None:
        await averaging


async def average_once(me: Worker) -> None:
    """Until one average is done: a random neighbour, and after a refusal a random pause and another."""
    tries, last = 0, ""
    while me.neighbours:
        peer = me.rng.choice(me.neighbours)
        if peer == last and len(me.neighbours) > 1:
            continue
        outcome = await me.average(peer)
        if outcome is Outcome.DONE:
            return
        tries, last = tries + 1, peer
        await me.back_off(tries)
