"""Vectors on their way to the daemon: copied into a slot, or lent one; each slot is used again, and none too early."""

import os
from typing import Any

import pytest
import torch

from shoal.link import TRANSMIT, Segment
from shoal.messages import Kind, Message
from shoal.trainer.outbox import LENT, READ, Outbox
from shoal.wire import Shape, decode
from shoal.words import words_of

N = 1000


class Channel:
    """In place of the socket: keeps what would go over it."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, kind: str, /, body: bytes = b"", **fields: Any) -> None:
        assert kind == "send"
        message, shape = decode(body)
        self.sent.append({"message": message, "shape": shape, **fields})

    def slots(self) -> list[int]:
        return [packet["slot"] for packet in self.sent]


class Made:
    """An outbox over real shared memory."""

    def __init__(self) -> None:
        self.segment = Segment.create()
        self.segment.size(4 * N, TRANSMIT)
        self.channel = Channel()
        self.outbox = Outbox(self.channel, self.segment)  # type: ignore[arg-type]

    def send(self, vector: torch.Tensor | None, kind: Kind = Kind.VALUES, seq: int = 1) -> None:
        self.outbox.send("b", 1, Message(kind, seq=seq, vector=vector))

    def in_slot(self, slot: int) -> torch.Tensor:
        """As the daemon finds it."""
        return torch.frombuffer(self.segment.slot(slot), dtype=torch.float32)


@pytest.fixture
def made() -> Made:
    return Made()


def test_a_vector_is_copied_into_the_lowest_slot_and_that_is_used_again(made: Made) -> None:
    vector = torch.randn(N)
    for _ in range(3):
        made.send(vector)
        assert torch.equal(made.in_slot(0), vector)
        made.outbox.sent(0)
    assert made.channel.slots() == [0, 0, 0]


def test_more_vectors_than_slots_wait_and_keep_their_order(made: Made) -> None:
    for seq in range(TRANSMIT + 2):
        made.send(torch.full((N,), float(seq)), seq=seq)
    made.send(None, Kind.COMMIT, seq=99)
    assert made.channel.slots() == list(range(TRANSMIT))
    made.outbox.sent(2)
    made.outbox.sent(0)
    assert [packet["message"].seq for packet in made.channel.sent] == [*range(TRANSMIT + 2), 99]
    assert made.channel.slots() == [0, 1, 2, 3, 2, 0, -1]


def test_what_was_lent_is_sent_from_where_it_lies(made: Made) -> None:
    lent = made.outbox.lend(N, torch.float32)
    assert lent is not None
    made.send(lent)
    assert made.in_slot(made.channel.slots()[0]).data_ptr() == lent.data_ptr()


@pytest.mark.parametrize("first", ["it was sent", "nobody holds it"])
def test_a_lent_slot_is_free_when_it_was_sent_and_nobody_holds_it_any_more(made: Made, first: str) -> None:
    held = [made.outbox.lend(N, torch.float32)]
    made.send(held[0])
    taken = made.channel.slots()[0]
    made.channel.sent.clear()
    steps = [lambda: made.outbox.sent(taken), held.clear]
    for step in steps if first == "it was sent" else reversed(steps):
        for _ in range(TRANSMIT - 1):
            made.send(torch.zeros(N))
        assert taken not in made.channel.slots()
        for slot in made.channel.slots():
            made.outbox.sent(slot)
        made.channel.sent.clear()
        step()
    made.send(torch.zeros(N))
    assert made.channel.slots() == [taken]


def test_what_was_lent_and_never_sent_is_free_when_nobody_holds_it(made: Made) -> None:
    for _ in range(10):
        assert made.outbox.lend(N, torch.float32) is not None
    made.send(torch.zeros(N))
    assert made.channel.slots() == [0]


def test_some_slots_are_never_lent(made: Made) -> None:
    held = [made.outbox.lend(N, torch.float32) for _ in range(TRANSMIT)]
    assert [tensor is not None for tensor in held] == [True] * LENT + [False] * (TRANSMIT - LENT)
    made.send(torch.zeros(N), Kind.MODEL)
    assert made.channel.slots()[0] >= 0


def test_shared_memory_is_gone_with_its_last_holder(made: Made) -> None:
    number = made.segment.fd
    made.segment.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


# --- nodes of the same machine --------------------------------------------------------------------------------------


class Reader(Made):
    """An outbox whose slots `b` sees, and that process."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = True
        self.outbox.read_by("b", lambda: self.alive)

    def lent(self, vector: torch.Tensor) -> torch.Tensor:
        """It, in a slot."""
        lent = self.outbox.lend(len(vector), vector.dtype)
        assert lent is not None
        return lent.copy_(vector)

    def announced(self) -> list[Shape]:
        """Of what was sent so far, and forgotten by that."""
        shapes = [packet["shape"] for packet in self.channel.sent]
        self.channel.sent.clear()
        return shapes


def sum_of(vector: torch.Tensor) -> int:
    return words_of(memoryview(vector.numpy()).cast("B")) % 2**64


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_a_reader_is_told_where_the_vector_lies_and_the_daemon_moves_nothing(reader: Reader) -> None:
    vector = torch.randn(N)
    reader.send(vector)
    assert reader.channel.slots() == [-1]
    (shape,) = reader.announced()
    assert shape.slot is not None
    assert torch.equal(reader.in_slot(shape.slot), vector)
    assert shape.sum == words_of(memoryview(vector.numpy()).cast("B")) % 2**64
    assert reader.outbox.shared_bytes == vector.nbytes


def test_what_was_lent_is_read_from_where_it_lies(reader: Reader) -> None:
    lent = reader.lent(torch.randn(N))
    reader.send(lent)
    (shape,) = reader.announced()
    assert shape.slot is not None
    assert reader.in_slot(shape.slot).data_ptr() == lent.data_ptr()
    assert shape.sum == sum_of(lent)


def test_a_sum_that_is_known_is_believed_until_torch_changes_what_was_lent(reader: Reader) -> None:
    lent = reader.lent(torch.randn(N))
    reader.outbox.summed(lent, 2**64 + 7)
    reader.send(lent)
    lent[:5].add_(1)
    reader.send(lent)
    assert [shape.sum for shape in reader.announced()] == [7, sum_of(lent)]


def test_a_sum_is_that_of_as_much_as_is_sent(reader: Reader) -> None:
    """A piece of what was lent may begin where it begins."""
    lent = reader.lent(torch.randn(N))
    for part in (lent, lent[: N // 2], lent):
        reader.send(part)
        (shape,) = reader.announced()
        assert (shape.elements, shape.sum) == (len(part), sum_of(part))
        reader.outbox.taken("b", shape.ticket)


def test_a_slot_that_is_lent_again_has_no_sum_from_before(reader: Reader) -> None:
    reader.outbox.summed(reader.lent(torch.randn(N)), 7)
    lent = reader.outbox.lend(N, torch.float32)
    assert lent is not None
    lent.numpy()[:] = 3.0  # which torch does not count
    reader.send(lent)
    assert [shape.sum for shape in reader.announced()] == [sum_of(lent)]


def test_what_was_lent_is_read_until_its_readers_are_done(reader: Reader) -> None:
    lent = reader.lent(torch.zeros(N))
    assert not reader.outbox.is_read(lent)
    reader.send(lent)
    reader.outbox.send("c", 1, Message(Kind.VALUES, seq=1, vector=lent))  # travels
    shared, sent = reader.channel.sent
    assert reader.outbox.is_read(lent)
    reader.outbox.sent(sent["slot"])
    assert reader.outbox.is_read(lent)
    reader.outbox.taken("b", shared["shape"].ticket)
    assert not reader.outbox.is_read(lent)


def test_what_was_not_lent_is_read_by_nobody(reader: Reader) -> None:
    vector = torch.zeros(N)
    reader.send(vector)
    assert not reader.outbox.is_read(vector)


def test_a_slot_is_used_again_when_its_reader_has_taken_it(reader: Reader) -> None:
    reader.send(torch.zeros(N))
    reader.send(torch.ones(N))
    first, second = reader.announced()
    assert (first.slot, second.slot) == (0, 1)
    reader.outbox.taken("b", first.ticket)
    reader.send(torch.zeros(N))
    assert [shape.slot for shape in reader.announced()] == [0]


@pytest.mark.parametrize(("who", "ticket"), [("c", 1), ("b", 2), ("b", 0)])
def test_only_the_reader_can_take_what_it_was_given(reader: Reader, who: str, ticket: int) -> None:
    reader.send(torch.zeros(N))
    reader.outbox.taken(who, ticket)
    reader.send(torch.zeros(N))
    assert [shape.slot for shape in reader.announced()] == [0, 1]


def test_a_ticket_counts_once(reader: Reader) -> None:
    reader.send(torch.zeros(N))
    (shape,) = reader.announced()
    for _ in range(2):
        reader.outbox.taken("b", shape.ticket)
    for _ in range(TRANSMIT):
        reader.send(torch.zeros(N), Kind.MODEL)
    slots = [packet["shape"].slot if packet["slot"] < 0 else packet["slot"] for packet in reader.channel.sent]
    assert sorted(slots) == list(range(TRANSMIT))  # none of them twice


def test_a_reader_that_hangs_does_not_keep_all_slots(reader: Reader) -> None:
    """What goes to it beyond that travels."""
    for _ in range(READ + 1):
        reader.send(torch.zeros(N))
    assert [packet["slot"] for packet in reader.channel.sent] == [-1] * READ + [READ]


def test_what_a_reader_had_when_the_connection_broke_stays_as_it_is_until_it_is_back(reader: Reader) -> None:
    """It may be adding it to its model just now."""
    for k in range(READ):
        reader.send(torch.full((N,), float(k)))
    reader.outbox.unread_by("b")
    for _ in range(TRANSMIT - READ + 1):
        reader.send(torch.full((N,), 9.0))
    assert [float(reader.in_slot(k)[0]) for k in range(READ)] == [float(k) for k in range(READ)]
    assert len(reader.channel.sent) == TRANSMIT  # one waits
    reader.outbox.read_by("b", lambda: True)
    assert len(reader.channel.sent) == TRANSMIT + 1


def test_what_a_reader_had_is_free_when_its_process_is_gone(reader: Reader) -> None:
    for _ in range(READ):
        reader.send(torch.zeros(N))
    reader.outbox.unread_by("b")
    reader.outbox.read_by("c", lambda: True)
    reader.channel.sent.clear()
    for alive in (True, False):
        reader.alive = alive
        reader.outbox.send("c", 1, Message(Kind.VALUES, seq=1, vector=torch.zeros(N)))
    assert [packet["slot"] < 0 for packet in reader.channel.sent] == [False, True]


def test_a_lent_slot_that_is_read_is_free_only_when_both_are_done(reader: Reader) -> None:
    lent = reader.outbox.lend(N, torch.float32)
    reader.send(lent)
    (shape,) = reader.announced()
    del lent
    reader.send(torch.ones(N))
    assert [s.slot for s in reader.announced()] == [1]
    reader.outbox.taken("b", shape.ticket)
    reader.send(torch.ones(N))
    assert [s.slot for s in reader.announced()] == [0]
