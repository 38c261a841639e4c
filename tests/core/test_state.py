"""A model is sent where it lies: what was sent stays as it was, whatever becomes of the model, and nothing is lost."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from shoal.delta import Between, Made
from shoal.state import State

N = 6


class Memory:
    """What others can read, of which there are so many vectors at most. `read`: those that somebody reads now."""

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.lent: list[weakref.ref[Tensor]] = []
        self.read: set[int] = set()

    def room(self, elements: int, dtype: torch.dtype) -> Tensor | None:
        if self.out >= self.most:
            return None
        memory = torch.full((elements,), torch.nan, dtype=dtype)
        self.lent.append(weakref.ref(memory))
        return memory

    @property
    def out(self) -> int:
        self.lent = [one for one in self.lent if one() is not None]
        return len(self.lent)

    def has(self, memory: Tensor) -> bool:
        return any(one() is memory for one in self.lent)

    def is_read(self, memory: Tensor) -> bool:
        return memory.data_ptr() in self.read


def made(memory: Memory, n: int = N) -> State:
    return State(torch.arange(float(n)), room=memory.room, is_read=memory.is_read)


@pytest.fixture(params=[0, 1, 2, 3])
def memory(request: pytest.FixtureRequest) -> Memory:
    return Memory(request.param)


# --- what was sent --------------------------------------------------------------------------------------------------


def test_what_was_sent_stays_as_it_was_while_it_is_held(memory: Memory) -> None:
    state = made(memory)
    sent = state.snapshot()
    state.changing().add_(1)
    assert sent.tolist() == [0, 1, 2, 3, 4, 5]
    assert state.now.tolist() == [1, 2, 3, 4, 5, 6]


def test_what_was_sent_stays_as_it_was_while_it_is_read_though_nobody_holds_it() -> None:
    memory = Memory(3)
    state = made(memory)
    sent = state.snapshot()
    memory.read.add(sent.data_ptr())
    place = state.now
    del sent
    state.changing().add_(1)
    assert place.tolist() == [0, 1, 2, 3, 4, 5]
    assert state.now.tolist() == [1, 2, 3, 4, 5, 6]


def test_what_nobody_holds_or_reads_is_changed_where_it_lies(memory: Memory) -> None:
    state = made(memory)
    state.snapshot()
    place = state.now.data_ptr()
    state.changing().add_(1)
    assert state.now.data_ptr() == place


def test_it_is_sent_where_it_lies_and_copied_there_once() -> None:
    state = made(Memory(2))
    first = state.snapshot()
    assert first.data_ptr() == state.now.data_ptr() == state.snapshot().data_ptr()
    del first
    assert state.snapshot().data_ptr() == state.now.data_ptr()


def test_the_memory_of_what_was_sent_lives_as_long_as_it_is_held() -> None:
    memory = Memory(3)
    state = made(memory)
    sent = state.snapshot()
    state.changing().add_(1)
    assert memory.out == 2
    assert sent.tolist() == [0, 1, 2, 3, 4, 5]
    del sent
    assert memory.out == 1


def test_without_room_the_model_goes_on_in_memory_of_its_own() -> None:
    memory = Memory(1)
    state = made(memory)
    sent = state.snapshot()
    state.changing().add_(1)
    later = state.snapshot()
    state.changing().add_(1)
    assert [sent[0], later[0], state.now[0]] == [0, 1, 2]
    del sent, later
    assert state.snapshot().tolist() == [2, 3, 4, 5, 6, 7]
    assert memory.out == 1  # and back into what others can read


# --- averages -------------------------------------------------------------------------------------------------------


def test_a_model_that_is_as_it_was_sent_goes_half_the_way(memory: Memory) -> None:
    state, theirs = made(memory), torch.full((N,), 10.0)
    sent = state.snapshot()
    state.add(Between(state.snapshot(), theirs))
    assert state.now.tolist() == [5, 5.5, 6, 6.5, 7, 7.5]
    assert sent.tolist() == [0, 1, 2, 3, 4, 5]  # it is for somebody else
    assert theirs.tolist() == [10.0] * N


@pytest.mark.parametrize("why", ["nobody else", "held", "read", "not placed"])
def test_it_goes_there_in_place_if_nobody_else_has_what_was_sent(why: str) -> None:
    memory = Memory(0 if why == "not placed" else 2)
    state = made(memory)
    delta = Between(state.snapshot(), torch.full((N,), 10.0))
    other = state.snapshot() if why == "held" else None
    place = state.now
    if why == "read":
        memory.read.add(place.data_ptr())
    state.add(delta)
    assert (state.now.data_ptr() == place.data_ptr()) == (why == "nobody else")
    assert why == "nobody else" or place.tolist() == [0, 1, 2, 3, 4, 5]
    assert other is None or other.data_ptr() == place.data_ptr()
    assert state.now.tolist() == [5, 5.5, 6, 6.5, 7, 7.5]


def test_what_has_landed_since_it_was_sent_is_kept(memory: Memory) -> None:
    state = made(memory)
    sent = state.snapshot()
    state.changing().add_(100)
    state.add(Between(sent, torch.full((N,), 10.0)))
    assert state.now.tolist() == [105, 105.5, 106, 106.5, 107, 107.5]


def test_two_averages_of_one_moment_are_both_added(memory: Memory) -> None:
    state = made(memory)
    before = state.now.clone()
    deltas = [Between(state.snapshot(), before + 2), Between(state.snapshot(), before + 4)]
    for delta in deltas:
        state.add(delta)
    assert (state.now - before).tolist() == [3.0] * N


def test_a_delta_that_was_made_is_added(memory: Memory) -> None:
    state = made(memory)
    sent = state.snapshot()
    state.add(Made(torch.ones(N), 0.5))
    assert (state.now - sent).tolist() == [0.5] * N


@given(st.integers(1, 300), st.integers(0, 100))
def test_both_ends_of_an_average_come_to_the_middle(n: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    s, r = torch.randn(n, generator=draw), torch.randn(n, generator=draw)
    ends = [State(x.clone(), room=Memory(2).room, is_read=Memory().is_read) for x in (s, r)]
    ends[0].add(Between(ends[0].snapshot(), r))
    ends[1].add(Between(ends[1].snapshot(), s))
    for end in ends:
        torch.testing.assert_close(end.now, (s + r) / 2, rtol=0, atol=1e-6)


# --- half the way, made while the other's model is looked at --------------------------------------------------------


def meeting(state: State, theirs: Tensor) -> None:
    halfway = state.meet(theirs)
    assert halfway is not None
    for start in range(0, N, 2):
        halfway.make(start, start + 2)


def test_half_the_way_that_is_made_is_where_the_model_goes() -> None:
    state, theirs = made(Memory(2)), torch.full((N,), 10.0)
    sent = state.snapshot()
    meeting(state, theirs)
    assert state.now.tolist() == [0, 1, 2, 3, 4, 5]  # not before it is settled
    theirs_as_it_was = theirs.clone()
    theirs.fill_(torch.nan)  # it is not read again
    state.add(Between(sent, theirs))
    assert torch.equal(state.now, (torch.arange(float(N)) + theirs_as_it_was) / 2)


def test_half_the_way_is_of_no_use_when_a_gradient_has_landed() -> None:
    state, theirs = made(Memory(3)), torch.full((N,), 10.0)
    sent = state.snapshot()
    meeting(state, theirs)
    state.changing().add_(100)
    state.add(Between(sent, theirs))
    assert state.now.tolist() == [105, 105.5, 106, 106.5, 107, 107.5]


def test_half_the_way_to_another_is_of_no_use() -> None:
    state, other = made(Memory(3)), torch.full((N,), 99.0)
    sent = state.snapshot()
    meeting(state, other)
    state.add(Between(sent, torch.full((N,), 10.0)))
    assert state.now.tolist() == [5, 5.5, 6, 6.5, 7, 7.5]


def test_half_the_way_is_of_no_use_to_a_delta_that_goes_less_far() -> None:
    state, theirs = made(Memory(3)), torch.full((N,), 10.0)
    sent = state.snapshot()
    meeting(state, theirs)
    state.add(Between(sent, theirs).shortened(0.5))
    assert state.now.tolist() == [2.5, 3.25, 4, 4.75, 5.5, 6.25]
    assert sent.tolist() == [0, 1, 2, 3, 4, 5]


def test_an_average_that_came_to_nothing_leaves_nothing() -> None:
    memory = Memory(3)
    state = made(memory)
    sent, theirs = state.snapshot(), torch.full((N,), 10.0)
    meeting(state, theirs)
    del sent, theirs
    state.changing().add_(1)
    assert state.now.tolist() == [1, 2, 3, 4, 5, 6]
    assert memory.out == 1


@pytest.mark.parametrize("theirs", [torch.zeros(N - 1), torch.zeros(N, dtype=torch.float64)])
def test_a_vector_of_another_kind_is_not_met(theirs: Tensor) -> None:
    state = made(Memory(3))
    sent = state.snapshot()
    assert state.meet(theirs) is None
    assert sent is not None


def test_nobody_is_met_where_nothing_was_sent_or_no_room_is_left() -> None:
    state = made(Memory(1))
    assert state.meet(torch.zeros(N)) is None
    sent = state.snapshot()
    assert state.meet(torch.zeros(N)) is None
    assert sent is not None


# --- any order ------------------------------------------------------------------------------------------------------


class Histories(RuleBasedStateMachine):
    """The model is the sum of what was added to it, and what is held of it what it was then. All is in halves of small
    numbers, so that sums are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(3)
        self.state = made(self.memory)
        self.expected = self.state.now.tolist()
        self.held: list[tuple[Tensor, list[float]]] = []
        self.read: dict[int, tuple[Tensor, list[float]]] = {}  # by where it lies
        self.come: list[Between] = []

    @rule(by=st.integers(-8, 8))
    def a_gradient_lands(self, by: int) -> None:
        self.state.changing().add_(by)
        self.expected = [x + by for x in self.expected]

    @precondition(lambda self: len(self.held) < 3)
    @rule()
    def it_is_sent(self) -> None:
        self.held.append((self.state.snapshot(), self.expected))

    @precondition(lambda self: len(self.come) < 3)
    @rule(by=st.integers(-8, 8), looked_at=st.booleans())
    def a_model_comes(self, by: int, looked_at: bool) -> None:
        mine = self.state.snapshot()
        theirs = mine + by
        self.come.append(Between(mine, theirs))
        if looked_at and (halfway := self.state.meet(theirs)) is not None:
            halfway.make(0, N)

    @precondition(lambda self: self.come)
    @rule(which=st.integers(0, 2))
    def it_is_settled(self, which: int) -> None:
        delta = self.come.pop(which % len(self.come))
        half = delta.tensor().tolist()
        self.state.add(delta)
        self.expected = [x + h for x, h in zip(self.expected, half, strict=True)]

    @precondition(lambda self: self.come)
    @rule(which=st.integers(0, 2))
    def it_comes_to_nothing(self, which: int) -> None:
        self.come.pop(which % len(self.come))

    @rule(begins=st.booleans())
    def it_is_read(self, begins: bool) -> None:
        """By somebody who does not hold it; who stops, does so for all."""
        if begins and self.memory.has(self.state.now) and self.state.now.data_ptr() not in self.read:
            self.memory.read.add(self.state.now.data_ptr())
            self.read[self.state.now.data_ptr()] = (self.state.now, self.state.now.tolist())
        elif not begins:
            self.memory.read.clear()
            self.read.clear()

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 2))
    def it_is_let_go(self, which: int) -> None:
        self.held.pop(which % len(self.held))

    @invariant()
    def nothing_is_lost_and_nothing_sent_has_changed(self) -> None:
        assert self.state.now.tolist() == self.expected
        for sent, then in (*self.held, *self.read.values()):
            assert sent.tolist() == then


TestHistories = Histories.TestCase
