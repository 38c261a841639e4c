"""CHOCO-SGD: D-PSGD with compressed differences (Koloskova, Stich, Jaggi, ICML 2019, 1902.00340, algorithm 2, from
memory; without compression it is W (x - lr g), D-PSGD with the gradient mixed as well, which a test holds).

    y = x - lr g
    q = C(y - H)                       two bits a coordinate, without bias; four or eight
    H <- H + q;   HW <- HW + w         w = sum_j W_ij q_j, HW = sum_j W_ij H_j
    x = y + c (HW - H)

H is a copy of y that all neighbours can follow. c = 1 with two bits; the paper's c shrinks with the compression, and
with one bit .9 was best and still .09 worse. The first round of a view goes in full, and gives all of them their H and
HW. Its error from unlike data is D-PSGD's. Memory: two vectors more. The mix waits for the gradient, as D-PSGD's does
not.
"""

from shoal.algorithms.descent import direction, keep_direction
from shoal.algorithms.worker import Worker

BITS = {"q8": 8, "q4": 4, "sign": 2}


async def choco(me: Worker) -> None:
    """One gradient, then one packed mix a round."""
    H, HW, known = me.keep("H"), me.keep("HW"), me.keep("known")
    if not me.kept_corrections:
        known.zero_()
    for t in me.rounds():
        g = await me.gradient()
        u = direction(me, g)
        y = me.x.sub(u, alpha=me.lr)
        if known[0]:
            w, q = await me.mix_packed(t, y.sub(H), BITS[me.packed])
            H.add_(q)
            HW.add_(w)
            x = y.add(HW).sub_(H)
        else:
            x = await me.mix(t, y)
            H.copy_(y)
            HW.copy_(x)
            known[0] = 1
        me.x.copy_(x)
        keep_direction(me, u)
        me.count()
