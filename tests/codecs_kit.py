"""Two exact codecs for tests of averages: one whose vectors go at the same time, one whose vectors go in turn."""

from torch import Tensor

from shoal.delta import Between, Delta
from shoal.pair_codec import Full, InTurn


class OneAfterTheOther(InTurn):
    """What is exact, and yet goes in turn."""

    def first(self, r: Tensor) -> Tensor:
        return r

    def second(self, first: Tensor, s: Tensor, peer: str) -> tuple[Tensor, Delta]:
        return s, Between(s, first)

    def last(self, r: Tensor, second: Tensor, peer: str) -> Delta:
        return Between(r, second)


CODECS = {"at once": Full(), "in turn": OneAfterTheOther()}
