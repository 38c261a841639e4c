"""Katyusha X: one line of momentum over SVRG (Allen-Zhu, ICML 2018, 1802.03866, algorithms 1 to 3).

    SVRG1ep(x0):   mu <- (1/n) sum_i grad f_i(x0);   w <- x0
                   n/b times:  S <- b indices of all n, with replacement
                               v <- mu + (1/b) sum_S (grad f_i(w) - grad f_i(x0))
                               w <- prox(w - lr v)
                   gives the last w

    s-form:  x <- (3/2 y + 1/2 x - (1 - tau) y_before) / (1 + tau);                  y_before, y <- y, SVRG1ep(x)
    w-form:  x <- ((3k+1) y + (k+1) x - (2k-2) y_before) / (2k+4)  in epoch k;       the same

tau = 1/2 is SVRG, for then x = y. The s-form is for strongly convex sums (tau = sqrt(m lr sigma)/2 or a constant to be
tuned), the w-form for convex ones. Each f_i may be non-convex; their mean must be convex. The number of inner steps is
n/b; the paper draws it at random around that. lr at most min(1, sqrt(b/m)) / 2L, m = n/b, by theory.

All members hold the same x, y and w, and draw the same indices of the samples of all; each computes those of its own
samples, and the sum is formed together. So the iterates do not depend on how many workers share the work.
Variance reduction cancels large numbers: use float64 (`--precision f64`, the default here).
"""

import hashlib

import torch
from torch import Tensor

from shoal.algorithms.worker import Worker


async def katyusha_x(me: Worker) -> None:
    """One epoch a round."""
    x, y_before = me.keep("x"), me.keep("y before")  # and y is me.x
    for k in me.rounds():
        await me.agree(k, x, y_before)
        if k == 0:
            x.copy_(me.x)
            y_before.copy_(me.x)
        start = coupled(k, me.tau, x, me.x, y_before)
        w = await svrg_epoch(me, k, start)
        x.copy_(start)  # not before: whoever stops in the epoch begins it again
        y_before.copy_(me.x)
        me.x.copy_(w)
        me.count()


def coupled(k: int, tau: float | None, x: Tensor, y: Tensor, y_before: Tensor) -> Tensor:
    """(d,): where epoch k starts: the s-form with tau, the w-form with None."""
    if tau is None:
        return ((3 * k + 1) * y + (k + 1) * x - (2 * k - 2) * y_before) / (2 * k + 4)
    return (1.5 * y + 0.5 * x - (1 - tau) * y_before) / (1 + tau)


async def svrg_epoch(me: Worker, k: int, x0: Tensor) -> Tensor:
    """(d,): the last iterate of epoch k. One mean for the snapshot, and one for each inner step."""
    first, own, n = me.rows
    b = me.batch * me.members
    local = await me.full_gradient(x0)
    mu = await me.mean(k, local.mul_(own * me.members / n))
    w = x0.clone()
    for t, drawn in enumerate(drawn_rows(me.seed, k, n, b), start=1):
        mine = drawn[(drawn >= first) & (drawn < first + own)] - first
        change = await me.change(w, x0, mine)
        v = await me.mean(k, change.mul_(me.members / b), step=t)
        w.sub_(v.add_(mu), alpha=me.lr)
        proximal(me.prox, me.lr, w)
    return w


def drawn_rows(seed: int, k: int, n: int, b: int) -> Tensor:
    """(ceil(n/b), b) int64: the rows of each inner step of epoch k, with replacement; the same on every member."""
    digest = hashlib.sha256(f"inner steps {seed}/{k}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randint(n, (-(-n // b), b), generator=draw)


def proximal(spec: str, lr: float, w: Tensor) -> None:
    """In place: argmin_u psi(u) + |u - w|^2 / (2 lr), psi = S |u|_1 for l1:S, (S/2) |u|^2 for l2:S."""
    kind, _, strength = spec.partition(":")
    if kind == "l1":
        w.copy_(w.sign() * (w.abs() - lr * float(strength)).clamp_(min=0))
    elif kind == "l2":
        w.div_(1 + lr * float(strength))
