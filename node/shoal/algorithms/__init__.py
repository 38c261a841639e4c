"""The table of algorithms. Each is one short coroutine over the words of `worker.py`."""

from collections.abc import Awaitable, Callable

from shoal.algorithms.a_psgd import a_psgd
from shoal.algorithms.ad_psgd import ad_psgd
from shoal.algorithms.allreduce_sgd import allreduce_sgd
from shoal.algorithms.d2 import d2
from shoal.algorithms.d_psgd import d_psgd
from shoal.algorithms.ef_signsgd import ef_signsgd
from shoal.algorithms.katyusha_x import katyusha_x
from shoal.algorithms.signum import signum
from shoal.algorithms.worker import Worker

BY_NAME: dict[str, Callable[[Worker], Awaitable[None]]] = {
    "a-psgd": a_psgd,
    "ad-psgd": ad_psgd,
    "d-psgd": d_psgd,
    "d2": d2,
    "allreduce-sgd": allreduce_sgd,
    "signsgd": signum,
    "signum": signum,
    "ef-signsgd": ef_signsgd,
    "katyusha-x": katyusha_x,
    "svrg": katyusha_x,
}
