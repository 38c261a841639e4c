"""AD-PSGD: asynchronous decentralised parallel SGD (Lian, Zhang, Zhang, Liu, ICML 2018, 1710.06952, algorithm 1).

    xh = x_i as it was read when the gradient began
    g  = minibatch gradient at xh
    (x_i, x_j) <- ((x_i + x_j)/2, (x_i + x_j)/2)      for a random neighbour j, atomically
    x_i <- x_i - lr g                                 g is stale, and applied to the averaged model

The average runs while the gradient is computed (the wait-free form of the paper's appendix). We depart in two points.
The paper keeps the pair atomic by a lock and a bipartite graph; here the pair is settled by two deltas that cancel
(`exchange.py`), so any graph will do. And after BUSY the worker tries another neighbour until one average is done;
`overlap` allows that many more gradients before it waits; `exchange_every` spares some the average.

On data that differs from node to node the fixed point weighs each node by its speed (assumption 1 of the paper takes
this as given); equally fast nodes reach the optimum of all. Momentum is local, applied after the average, never sent.

`correction` takes that weight away, by a dual variable for each worker that its averages pull at (ours; no theorem is
claimed, and it was not compared with FSPDA, a published primal-dual gossip):

    x_i <- x_i - lr (g - h_i),   h_i = (eta / lr) (sum of all dx by which averages have moved x_i)

The two ends of an average move by dx and -dx, so the h_i of all sum to zero; at a fixed point g_i = h_i on every
worker, so the g_i sum to zero, however fast each of them is. It costs no byte.
"""

from shoal.algorithms.descent import direction, keep_direction
from shoal.algorithms.worker import Worker
from shoal.settling import Outcome


async def ad_psgd(me: Worker) -> None:
    """Until the shoal has its gradients: one finished average to every 1 + overlap gradients, or fewer."""
    averaging, steps = None, me.exchange_every
    while me.more():
        if averaging is None and steps >= me.exchange_every and me.neighbours:
            averaging, steps = me.begin(average_once(me)), 0
        g = await me.gradient()
        steps += 1
        if averaging is not None and steps > me.overlap:
            await averaging
            averaging = None
        u = direction(me, g)
        me.x.sub_(u if not me.correction else u.sub(me.moved, alpha=gain(me)), alpha=me.lr)
        keep_direction(me, u)
        me.count()
    if averaging is not None:
        await averaging


def gain(me: Worker) -> float:
    """eta / lr: `correction` over the full lr, not the scheduled one, for which a decay would blow h up.

    eta is at most the evenness of the speeds. h pulls every worker back to where it was when the slowest last spoke up
    against it; with a worker a hundred times slower and a larger eta the others would wait for it (measured).
    """
    return min(me.correction, me.evenness) / me.full_lr


async def average_once(me: Worker) -> None:
    """Until one average is done: a random neighbour, and where that is busy a random pause and another. Those with
    whom none can be (a model is not finite, or too far away) are not asked twice; with nobody else left, none is."""
    tries, last, out = 0, "", set[str]()
    while left := [peer for peer in me.neighbours if peer not in out]:
        peer = me.rng.choice(left)
        if peer == last and len(left) > 1:
            continue
        outcome = await me.average(peer)
        if outcome is Outcome.DONE:
            return
        if outcome is Outcome.REFUSED:
            out.add(peer)
        tries, last = tries + 1, peer
        await me.back_off(tries)
