"""A-PSGD: asynchronous SGD with a parameter server (Lian, Huang, Li, Liu, NeurIPS 2015, 1506.08272), one of the
baselines of AD-PSGD's paper (1710.06952, section 5).

    worker:  x <- the server's model;   g = minibatch gradient at x;   send g
    server:  x <- x - lr g              at once, in the order in which gradients come

A gradient was taken at an older model than the one it is applied to; its age, counted in models, is the staleness, on
average about the number of workers less one. `staleness_aware` divides the step by it (Zhang, Gupta, Lian, Liu,
IJCAI 2016, 1511.05950). Fast workers send more gradients, so the model fits their data better. The server's
one link carries the models of all.
"""

from shoal.algorithms.descent import direction, keep_direction
from shoal.algorithms.worker import Worker


async def a_psgd(me: Worker) -> None:
    """Until the server has its gradients; ends with its last model."""
    x = await me.ask(None)
    me.x.copy_(x)
    while me.more():
        g = await me.gradient()
        u = direction(me, g)
        x = await me.ask(u)
        me.x.copy_(x)
        keep_direction(me, u)
        me.count()
