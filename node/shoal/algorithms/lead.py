"""LEAD: D2 with compressed differences (Liu, Li, Wang, Tang, Yan, ICLR 2021, 2007.00232, algorithm 1, from memory and
re-derived; with no compression it is `d2.py`, which a test holds).

    y = x - lr (g - h)
    q = C(y - H)                       one bit a coordinate, without bias; four or eight
    z = (W Y)_i - Y_i, Y_j = H_j + q_j    known to everybody's neighbours: w = sum_j W_ij q_j, HW = sum_j W_ij H_j
    x = y + z;   h <- h + z / lr;   H <- H + a q;   HW <- HW + a w

H follows y, so that what is packed becomes small as the run settles, and the noise with it. With the paper's a = .5 it
diverges at one bit; .1 to .3 do equally well. The first round of a view goes in full, and gives all their H and HW.
Memory: two vectors more than D2. Condition on W, momentum and schedules: those of D2.
"""

from shoal.algorithms.descent import direction, keep_direction
from shoal.algorithms.worker import Worker

A = 0.2
BITS = {"q8": 8, "q4": 4, "sign": 1}
TINY = 1e-3
"""As in `d2.py`: below this part of the largest step size so far, h rests."""


async def lead(me: Worker) -> None:
    """One gradient, then one packed mix a round."""
    h, H, HW, known = me.keep("h"), me.keep("H"), me.keep("HW"), me.keep("known")
    if not me.kept_corrections:
        h.zero_()
        known.zero_()
    largest = 0.0
    for t in me.rounds():
        lr = me.lr
        largest = max(largest, lr)
        g = await me.gradient()
        u = direction(me, g)
        y = me.x.sub(u.sub(h), alpha=lr)
        if known[0]:
            w, q = await me.mix_packed(t, y.sub(H), BITS[me.packed])
            x = y.add(HW).add_(w).sub_(H).sub_(q)
            H.add_(q, alpha=A)
            HW.add_(w, alpha=A)
        else:
            x = await me.mix(t, y)
            H.copy_(y)
            HW.copy_(x)
            known[0] = 1
        if lr > TINY * largest:
            h.add_(x.sub(y), alpha=1 / lr)
        me.x.copy_(x)
        keep_direction(me, u)
        me.count()
