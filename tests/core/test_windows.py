"""What another trainer of this machine announces is read where it lies, checked as if it had travelled."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from shoal import sharing
from shoal.errors import BadVector
from shoal.link import RECEIVE, TRANSMIT, Segment
from shoal.trainer.windows import Windows, check
from shoal.wire import Shape
from shoal.words import words_of

N = 1000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sealed memory and /proc")


class Pair:
    """A node that writes, as `b`, and one that reads."""

    def __init__(self) -> None:
        self.theirs, self.mine = Segment.create(), Segment.create()
        for segment in (self.theirs, self.mine):
            segment.size(4 * N, TRANSMIT + RECEIVE)
        self.windows = Windows(self.mine.fd, 4 * N, wanted=True)
        assert self.windows.open("b", sharing.own(self.theirs.fd)) == ""

    def write(self, slot: int, vector: torch.Tensor) -> Shape:
        """Put it there; what is announced of it."""
        torch.frombuffer(self.theirs.slot(slot), dtype=vector.dtype)[: vector.numel()].copy_(vector)
        words = words_of(self.theirs.slot(slot)[: vector.nbytes]) % 2**64
        dtype = {torch.float32: "f32", torch.float64: "f64", torch.uint8: "u8"}[vector.dtype]
        return Shape(vector.numel(), dtype, slot, 1, words)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.theirs.close()
    made.mine.close()


@pytest.mark.parametrize("slot", range(TRANSMIT))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_a_vector_is_read_where_it_lies(pair: Pair, slot: int, dtype: torch.dtype) -> None:
    vector = torch.arange(N // 2).to(dtype)
    shape = pair.write(slot, vector)
    found = pair.windows.vector("b", shape)
    assert torch.equal(found, vector)
    assert check("b", shape, found) == (dtype is not torch.uint8)  # of what is packed its codec finds out


def test_it_is_not_a_copy(pair: Pair) -> None:
    found = pair.windows.vector("b", pair.write(2, torch.zeros(N)))
    pair.write(2, torch.ones(N))
    assert torch.equal(found, torch.ones(N))


def test_a_vector_that_is_not_finite_is_not_said_to_be(pair: Pair) -> None:
    vector = torch.zeros(N)
    vector[-1] = torch.nan
    shape = pair.write(0, vector)
    assert not check("b", shape, pair.windows.vector("b", shape))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"slot": TRANSMIT}, f"b announces a vector in slot {TRANSMIT} of its memory, 4000 bytes, which cannot be"),
        ({"slot": 2**32 - 2}, "b announces a vector in slot 4294967294"),
        ({"elements": N + 1}, "4004 bytes, which cannot be read here"),
        ({"elements": 2**60}, "bytes, which cannot be read here"),
    ],
)
def test_what_is_announced_must_be_there(pair: Pair, wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadVector, match=complaint):
        pair.windows.vector("b", pair.write(0, torch.ones(N))._replace(**wrong))


def test_what_lies_there_must_be_what_was_announced(pair: Pair) -> None:
    shape = pair.write(0, torch.ones(N))._replace(sum=7)
    complaint = "vector in the memory of b has checksum [0-9a-f]{16}, announced was 0000000000000007"
    with pytest.raises(BadVector, match=complaint):
        check("b", shape, pair.windows.vector("b", shape))


def test_from_a_peer_whose_memory_is_not_seen_nothing_is_read(pair: Pair) -> None:
    shape = pair.write(0, torch.ones(N))
    pair.windows.close("b")
    for peer in ("b", "c"):
        with pytest.raises(BadVector, match=f"{peer} announces"):
            pair.windows.vector(peer, shape)
        assert peer not in pair.windows


def test_what_is_held_outlives_the_connection_and_the_other_process(pair: Pair) -> None:
    found = pair.windows.vector("b", pair.write(0, torch.ones(N)))
    pair.windows.close("b")
    pair.theirs.close()
    assert torch.equal(found, torch.ones(N))


def test_who_wants_to_share_nothing_sees_nothing_and_is_not_seen(pair: Pair) -> None:
    alone = Windows(pair.mine.fd, 4 * N, wanted=False)
    assert alone.own is None
    assert alone.open("b", sharing.own(pair.theirs.fd)) == "one of the two shares no memory"
    assert pair.windows.open("c", None) == "one of the two shares no memory"
    assert "b" not in alone
    assert "c" not in pair.windows


def test_why_memory_cannot_be_seen_is_told(pair: Pair) -> None:
    memory = sharing.own(pair.theirs.fd)
    assert memory is not None
    assert "another machine" in pair.windows.open("c", memory._replace(machine="elsewhere"))


def test_a_peer_that_is_gone_is_known_to_be(pair: Pair) -> None:
    present = pair.windows.presence("b")
    pair.windows.close("b")
    assert present()
    pair.theirs.close()
    assert not present()
