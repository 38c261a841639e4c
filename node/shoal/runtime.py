"""One worker at work: the words of `algorithms/worker.py` over the settlement and the rounds.

The trainer process drives it with gRPC behind `Host.send`, the simulator with links of virtual time; neither the
algorithm nor anything in this file can tell which. X has one owner, the event loop that runs this file: what must be
atomic is a plain function on that loop.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from shoal.algorithms import BY_NAME
from shoal.algorithms.descent import Schedule, largest_growth, schedule
from shoal.carrier import Host, View
from shoal.collective import Collective, check
from shoal.coordinated import Behind, Coordinated
from shoal.counting import Counting
from shoal.delta import Delta
from shoal.element_codecs import pair_codecs
from shoal.errors import MemberLost, TopologyError
from shoal.exchange import Settlement
from shoal.gradients import Gradients
from shoal.handover import Handover, Model
from shoal.learner import Counts, Learner
from shoal.messages import AVERAGES, Kind, Message, PeerId
from shoal.mixer import Mixer, noise
from shoal.mixing import Mixing, mixing
from shoal.pairing import Pairing
from shoal.replicas import agreed, fingerprint
from shoal.rounding import HALVES
from shoal.rounds import Rounds
from shoal.settings import Settings
from shoal.settling import Outcome
from shoal.state import Halfway, State
from shoal.stopwatch import Begun, Stopwatch
from shoal.topology import Graph, graph, what_is_left

T = TypeVar("T")


class Runtime:
    """A worker. Its state is (d+b,): d parameters, which algorithms see as `x`, and b float buffers, averaged with them
    but never corrected. Raises TaskError for a task that is none for the algorithm."""

    def __init__(
        self, me: PeerId, incarnation: int, learner: Learner, state: Tensor, settings: Settings, host: Host
    ) -> None:
        self.me, self.learner, self.settings, self.host = me, learner, settings, host
        self._state = State(state, room=host.room, is_read=host.is_read)
        self.rng = random.Random(f"{settings.seed}/{me}")
        self.momentum, self.overlap, self.weight_decay = settings.momentum, settings.overlap, settings.weight_decay
        self.exchange_every = settings.exchange_every
        self.full_lr, self.correction = settings.lr, settings.correction_step if settings.corrected else 0.0
        self.batch, self.seed, self.tau, self.prox = settings.batch, settings.seed, settings.tau, settings.prox
        self.memory: dict[str, Tensor] = {}
        self.kept_corrections = True
        self.view: View | None = None
        self.mixing: Mixing | None = None
        self.round = self.steps = self.gradients = 0
        self.took_over = False  # what is about to be counted holds no gradient of this worker
        self.stopwatch = Stopwatch(host.clock)
        self.computed = Gradients(learner, self._state, host, self.stopwatch, batch=settings.batch)
        self.packed, draw = settings.packed, noise(settings.seed, me)
        self.pairing = Pairing(
            me,
            incarnation,
            snapshot=self._state.snapshot,
            state=lambda: self.state,
            add=self.stopwatch.around("apply", self._add),
            send=host.send,
            clock=host.clock,
            rng=self.rng,
            record=host.record,
            codecs=pair_codecs(settings.codec, state.numel(), draw, host.room, lattices=not settings.clip_distance)
            if state.dtype == torch.float32
            else None,
            max_distance=settings.max_distance or math.inf,
            clip_distance=settings.clip_distance or math.inf,
            least_s=state.nbytes / rate if (rate := settings.max_bytes_a_second) else 0.0,
        )
        self.collective = Collective(me, send=host.send, clock=host.clock)
        self.mixer = Mixer(self.collective, draw)
        layout = learner.model.layout
        segments = [place.stop - place.start for _, place, _ in layout.slices() if place.stop <= layout.d]
        self._counting = Counting(self.collective, segments=segments, seed=settings.seed, memory=self.memory)
        self.coordinated: Coordinated | None = None
        if settings.over == "coordinator":
            self.coordinated = Coordinated(
                me,
                incarnation,
                segments=segments,
                carried=layout.b,
                dtype=state.dtype,
                seed=settings.seed,
                send=host.send,
                clock=host.clock,
            )
        self._began: View | None = None  # the first view
        self._joined = False  # a run that others had begun
        self._handover = Handover(snapshot=self._model, send=host.send)
        if settings.traits.finite_sum:
            learner.check_finite_sum(state)
        self._factor: Schedule = schedule(settings.schedule, settings.warmup)
        self._budget, self._rounds = settings.total_gradients(1), settings.total_rounds(1)
        self._up: set[PeerId] = set()
        self._graph_neighbours: list[PeerId] = []
        self._reachable: list[PeerId] | None = None  # the neighbours that are up; None: to be found again
        self._beside: set[asyncio.Task[Any]] = set()  # what the algorithm has begun
        self.lacks_model = False  # it waits for another's
        self._model_round = 0  # where its own stands meanwhile

    @property
    def state(self) -> Tensor:
        """(d+b,), for reading."""
        return self._state.now

    def put(self, state: Tensor) -> None:
        """(d+b,): go on from there."""
        self._state.changing().copy_(state)

    def meet(self, theirs: Tensor) -> Halfway | None:
        """A neighbour's model that has come, before it is looked at (`State.meet`)."""
        return self._state.meet(theirs)

    @property
    def x(self) -> Tensor:
        """(d,): the parameters, for changing them; they may lie elsewhere after the next await."""
        return self._state.changing()[: self.learner.model.layout.d]

    @property
    def _buffers(self) -> Tensor:
        return self._state.changing()[self.learner.model.layout.d :]

    @property
    def settlement(self) -> Settlement:
        """Of the averages of pairs."""
        return self.pairing.settlement

    @property
    def post(self) -> Rounds:
        """What travels between the members of a view."""
        return self.collective.post

    # --- the run ------------------------------------------------------------------------------------------------

    def install(self, view: View) -> None:
        """Take part in a view: its members, graph, mixing weights and first round. Raises TopologyError, and MemberLost
        where the run cannot go on in other company."""
        s, n = self.settings, len(view.members)
        if view.parent and s.fixed_view and self.coordinated is not None:
            there = ", ".join(view.members)
            what = f"the members are {there} now, and {s.algorithm} over a coordinator needs those it began with"
            raise MemberLost(f"{what}; over peers it goes on")
        self._began = self._began or view
        if n == 1 and s.traits.votes:
            self.host.warn("this node is alone: nobody else votes, so its own signs decide")
        self.view = view
        rank = view.members.index(self.me)
        if s.weight == "samples" and not s.traits.finite_sum:  # whose sum is over samples anyway
            self.learner.weight = n * view.samples[rank] / max(1, sum(view.samples))
        drawn = self._graph_of(view)
        if s.traits.mixes:
            self.mixing = self._mixing_on(drawn, n, later=bool(view.parent))
            self.mixer.enter({view.members[j]: w for j, w in self.mixing.row(rank).items()})
        if s.fixed_view:
            if view.round != self.round:
                self.computed.forget()
            if not self.lacks_model:
                self._model_round = self.round
            self.lacks_model = False  # of an earlier view; in this one it is the host that says so
            self.round = view.round
            self.kept_corrections = view.same_round
        self._budget, self._rounds = s.total_gradients(max(n, view.most)), s.total_rounds(n)
        self._graph_neighbours = [view.members[j] for j in drawn.neighbours[rank]]
        self._reachable = None
        self.collective.enter(view.id, view.members, self._exchange(view.round))
        self._counting.enter()

    def _graph_of(self, view: View) -> Graph:
        s, n, rank = self.settings, len(view.members), {member: k for k, member in enumerate(view.members)}
        if not view.parent:
            return graph(s.topology, n, s.seed)
        drawn = what_is_left(s.topology, n, s.seed, [(rank[a], rank[b]) for a, b in view.cut])
        if drawn.spec != s.topology:
            self.host.warn(f"{s.topology} cannot be had on what is left of {n} nodes: the graph is {drawn.spec}")
        return drawn

    def _mixing_on(self, drawn: Graph, n: int, *, later: bool) -> Mixing:
        """In a later view W is lazy where it would not do otherwise: a run does not end because of its graph."""
        s = self.settings
        growth = largest_growth(self._factor, s.total_rounds(n))
        try:
            return mixing(drawn, weights=s.mixing, lazy=s.lazy, algorithm=s.algorithm, growth=growth)
        except TopologyError as error:
            if not later:
                raise
            self.host.warn(f"{error}; in this view W is lazy, with Metropolis weights")
            return mixing(drawn, lazy="always", algorithm=s.algorithm, growth=growth)

    def pause(self) -> int:
        """The view has fallen, and the algorithm was cancelled: take no more part in it. Returns the round that is to
        come by its model; the gradient that was taken for it is kept."""
        for task in self._beside:
            task.cancel()
        self._handover.end()
        return self._model_round if self.lacks_model else self.round

    def peers_in_view(self) -> Sequence[PeerId]:
        """The neighbours by the graph, reachable or not."""
        return self._graph_neighbours

    async def run(self) -> None:
        """The algorithm, from here to its end."""
        self._handover.begin()
        with self.stopwatch.at("apply"):
            while True:
                self._enrol()
                try:
                    await BY_NAME[self.settings.algorithm](self)
                except Behind as behind:
                    self.host.record("event", what="behind", round=self.round, model_from=behind.peer)
                    self._handover.end()
                    with self.stopwatch.at("wait"):
                        await self.fetch_model(behind.peer)
                    self._handover.begin()
                else:
                    return

    def _enrol(self) -> None:
        """With the coordinator, if there is one."""
        view = self._began
        if self.coordinated is not None and view is not None:
            start = "" if self._joined else view.id
            round = self.round if self.settings.synchronous else 0
            self.coordinated.begin(round, start=start, first=view.round, members=view.members)

    def retire(self) -> None:
        """Begin no average any more, neither offered nor served; what is promised can still be settled."""
        for task in self._beside:
            task.cancel()
        self._handover.end()
        self.settlement.withdraw()

    async def form_mean(self, view: View) -> tuple[Tensor, Counts]:
        """The mean state of the members of `view`, and its held-out counts summed over them. x stays as it is."""
        self.collective.enter(view.id, view.members, 0)
        await self.pairing.settled(view.members)
        n = len(view.members)
        total = await self.collective.sum("final mean", self.state)
        mean = total.div_(n)
        mine = await self.host.compute(lambda: self.learner.evaluate(mean))
        known = 0.0 if mine.right is None else 1.0
        counts = torch.tensor([mine.right or 0, mine.total, mine.loss_sum, known], dtype=torch.float32)
        summed = (await self.collective.sum("counts", counts)).tolist()
        right = round(summed[0]) if summed[3] == n else None
        return mean, Counts(right=right, total=round(summed[1]), loss_sum=summed[2])

    async def fetch_model(self, peer: PeerId) -> None:
        """Take the model of `peer`, or of another member, as a latecomer does before its first step. Where the round is
        shared and no view says which it is, go on at the one that it belongs to."""
        self.lacks_model = True
        model = await self._handover.fetch(peer)
        self.lacks_model, self._joined = False, True
        self.computed.forget()
        for mine, part in zip(self._shared(), model.parts, strict=False):
            mine.copy_(part[: mine.numel()])
        if self.settings.synchronous and not self.settings.fixed_view:
            self.round = model.round

    def _shared(self) -> list[Tensor]:
        """What is a member's model: its state, and what its algorithm keeps that belongs to it."""
        return [self._state.changing(), *map(self.keep, self.settings.traits.shared)]

    def _model(self) -> Model:
        parts = [torch.zeros_like(self.state) for _ in self._shared()]
        for part, mine in zip(parts, self._shared(), strict=True):
            part[: mine.numel()].copy_(mine)
        return Model(self.round if self.settings.synchronous else 0, parts)

    # --- events, from the host ----------------------------------------------------------------------------------

    def up(self, peer: PeerId, *, coordinates: bool = False) -> None:
        """A connection to `peer` stands; `coordinates`: it is no worker, but the coordinator."""
        if coordinates:
            if self.coordinated is not None:
                self.coordinated.up(peer)
            return
        self._up.add(peer)
        self._reachable = None
        self.pairing.up(peer)
        self.post.up(peer)
        self._handover.up(peer)

    def down(self, peer: PeerId) -> None:
        """The connection to `peer` broke: nothing of it will arrive until `up`."""
        if self.coordinated is not None and peer == self.coordinated.peer:
            self.coordinated.down(peer)
            return
        self._up.discard(peer)
        self._reachable = None
        self.pairing.down(peer)
        self.post.down(peer)
        self._handover.down(peer)

    def received(self, peer: PeerId, message: Message) -> None:
        """One message of `peer`. Raises PeerError, with nothing changed, for one that cannot be right."""
        kind = message.kind
        if self.coordinated is not None and peer == self.coordinated.peer:
            self.coordinated.received(peer, message)
            return
        if message.vector is not None:
            self._check_length(peer, message)
        if kind in (Kind.POST, Kind.RECEIVED):
            self.post.received(peer, message)
        elif self._handover.serves(kind):
            self._handover.received(peer, message)
        else:
            self.pairing.received(peer, message)

    def _check_length(self, peer: PeerId, message: Message) -> None:
        assert message.vector is not None
        if message.kind is Kind.POST and message.tag is not None and message.tag.purpose != "mix":
            return  # pieces, each checked where it is expected
        if message.vector.dtype == torch.uint8 and message.kind in AVERAGES:
            return  # the codec knows
        check(message.vector, self.state.numel(), self.state.dtype, peer, f"vector (task {self.settings.task})")

    # --- the words of an algorithm ------------------------------------------------------------------------------

    @property
    def neighbours(self) -> Sequence[PeerId]:
        """Sorted; those that can be reached now."""
        if self._reachable is None:
            self._reachable = [peer for peer in self._graph_neighbours if peer in self._up]
        return self._reachable

    @property
    def progress(self) -> float:
        """Part of the run that is done, 0 to 1."""
        if self.settings.synchronous:
            return self.round / self._rounds
        return self.host.total_gradients() / self._budget

    @property
    def loss(self) -> float:
        """A running mean over recent minibatches; NaN before the first."""
        return self.computed.loss

    @property
    def lr(self) -> float:
        """The step size now."""
        return self.settings.lr * self._factor(self.progress)

    @property
    def members(self) -> int:
        """Of the view."""
        return len(self.collective.members)

    @property
    def rows(self) -> tuple[int, int, int]:
        """(first, own, all)."""
        assert self.view is not None
        before = self.view.samples[: self.view.members.index(self.me)]
        return sum(before), self.learner.samples, sum(self.view.samples)

    def more(self) -> bool:
        """Whether the shoal, or the parameter server, still wants gradients."""
        if self.coordinated is not None:
            return not self.coordinated.over
        return self.host.total_gradients() < self._budget

    def rounds(self) -> Iterator[int]:
        """The rounds that are left."""
        while self.round < self._rounds:
            self.post.begin(self._exchange(self.round))
            yield self.round

    def _exchange(self, t: int) -> int:
        """Which exchange round t belongs to: posts are numbered by it, for a neighbour may be one of them ahead, and so
        many rounds as it takes alone between two."""
        return t // self.exchange_every

    def keep(self, name: str) -> Tensor:
        """(d,) of zeros at first; goes into checkpoints."""
        if name not in self.memory:
            self.memory[name] = torch.zeros_like(self.state[: self.learner.model.layout.d])
        return self.memory[name]

    def count(self) -> None:
        """One gradient has been applied, or the answer of a round that was missed."""
        self.gradients += not self.took_over
        self.took_over = False
        self.computed.forget()
        self.steps += 1
        self.stopwatch.steps += 1
        if self.settings.synchronous:
            self.round += 1
        self.host.counted()

    def gradient(self) -> Awaitable[Tensor]:
        """(d,): the next minibatch's gradient at x as it is now; it holds until the next one is asked for."""
        return self.computed.minibatch(keep=self.settings.fixed_view)

    def full_gradient(self, x: Tensor) -> Awaitable[Tensor]:
        """(d,): the mean over all own samples. Its loss is the worker's from here on."""
        return self.computed.full(x)

    def change(self, w: Tensor, x: Tensor, rows: Tensor) -> Awaitable[Tensor]:
        """(d,): sum over `rows` of grad f_r(w) - grad f_r(x)."""
        return self.computed.change(w, x, rows)

    def mix(self, t: int, y: Tensor) -> Awaitable[Tensor]:
        """(d,): sum_j W_ij y_j, in the order of the ids; posted at once. Buffers are mixed beside it."""
        payload, codec, k = torch.cat((y, self._buffers)), self.settings.codec, self._exchange(t)
        mixing = self.mixer.rounded(k, payload, codec) if codec in HALVES else self.mixer.full(k, payload)
        return self.begin(self._mixed(mixing))

    async def _mixed(self, mixing: Awaitable[Tensor]) -> Tensor:
        with self.stopwatch.beside("exchange"):
            total = await mixing
        return self._taken_apart(total)

    async def mix_packed(self, t: int, z: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """(sum_j W_ij q_j, own q), q = z in 1, 2, 4 or 8 bits a coordinate. Buffers are mixed beside it, in full."""
        total, q = await self._waited(self.mixer.packed(t, z, bits, self._buffers))
        return self._taken_apart(total), q

    async def mean(self, t: int, y: Tensor, step: int = 0) -> Tensor:
        """(d,): the mean of all members' y; buffers are averaged beside it."""
        payload = torch.cat((y, self._buffers))
        if self.coordinated is not None:
            mean, _ = await self._waited(self.coordinated.combine("mean", payload, round=t, step=step))
        else:
            total = await self._waited(self.collective.sum("mean", payload, round=t, step=step))
            mean = total.div_(len(self.collective.members))
        return self._taken_apart(mean)

    async def vote(self, t: int, y: Tensor) -> Tensor:
        """(d,) of +1 and -1: the majority."""
        answer, _ = await self._combined("vote", t, y)
        return answer

    async def compressed_mean(self, t: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, own y as the others got it), each (d,)."""
        return await self._combined("ef-mean", t, y)

    async def _combined(self, purpose: str, t: int, y: Tensor) -> tuple[Tensor, Tensor]:
        return await self._waited((self.coordinated or self._counting).combine(purpose, y, round=t))

    async def _waited(self, work: Awaitable[T]) -> T:
        """What others take part in, and the algorithm waits for from its beginning to its end."""
        with self.stopwatch.at("wait"), self.stopwatch.beside("exchange"):
            return await work

    def missed(self, purpose: str, t: int) -> Tensor | None:
        """Among peers always None: nobody goes on without this worker."""
        answer = None if self.coordinated is None else self.coordinated.missed(purpose, t)
        if answer is None:
            return None
        self.took_over = True
        answer = answer.to(self.state)
        return self._taken_apart(answer) if purpose == "mean" else answer

    async def agree(self, t: int, *kept: Tensor) -> None:
        """Every `hash_every`-th round, and first after a resume at unequal rounds. Tells the host who was wrong."""
        every = self.settings.hash_every
        assert self.view is not None
        if (every and t and t % every == 0) or (t == self.view.round and not self.kept_corrections):
            if self.coordinated is not None:
                source, wrong = await self._waited(self.coordinated.compare(fingerprint(self.x, *kept), t))
            else:
                source, wrong = await self._waited(agreed(self.collective, (self.x, *kept), t))
            if wrong:
                self.host.record("event", what="replicas differed", round=t, right=source, wrong=wrong)
                self.host.warn(f"round {t}: the model of {', '.join(wrong)} differed; that of {source} counts")
            if self.coordinated is not None and self.me in wrong:
                raise Behind(source)

    async def ask(self, u: Tensor | None) -> Tensor:
        """(d,): the parameter server's model, after it has taken a step of -lr u; buffers come beside it."""
        assert self.coordinated is not None
        payload = None if u is None else torch.cat((u, self._buffers))
        x, applied = await self._waited(self.coordinated.ask(self.state.clone(), payload))
        self.took_over = not applied
        return self._taken_apart(x)

    def _taken_apart(self, together: Tensor) -> Tensor:
        d = self.x.numel()
        self._buffers.copy_(together[d:])
        return together[:d]

    async def average(self, peer: PeerId) -> Outcome:
        """Average the state with `peer`, settled on both ends or on neither."""
        if peer not in self._up:
            return Outcome.GONE
        return await self.pairing.average(peer)

    @property
    def moved(self) -> Tensor:
        """(d,): the sum of all that averages have moved x by; goes into checkpoints."""
        return self.keep("moved")

    @property
    def evenness(self) -> float:
        """Gradients of the slowest member over the mean of all: 1 if all are alike fast, 0 while one has none."""
        counts = [self.host.gradients_of(member) for member in self.collective.members]
        return len(counts) * min(counts) / max(1, sum(counts))

    def begin(self, work: Awaitable[T]) -> Begun[T]:
        """Start `work` beside the caller."""

        async def started() -> T:
            return await work

        task = asyncio.get_running_loop().create_task(started(), name=f"{self.me}: {self.settings.algorithm}")
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return Begun(task, self.stopwatch)

    def back_off(self, tries: int) -> Awaitable[None]:
        """Wait a random while, longer after more tries."""
        return self.pairing.back_off(tries)

    # --- status -------------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> dict[str, float]:
        """Of this process, by what they were spent on: `stopwatch.py` says what the four phases are."""
        spent = self.stopwatch.seconds
        return {**spent, "exchange": spent["exchange"] + self.pairing.seconds}

    def take_durations(self) -> list[float]:
        """Seconds of the own averages that were done since the last call."""
        return self.pairing.take_durations()

    def waits(self) -> list[dict[str, Any]]:
        """For whom this worker waits, how long and why, the longest first."""
        coordinated = self.coordinated.waits() if self.coordinated is not None else []
        return sorted(self.collective.waits() + self.pairing.waits() + coordinated, key=lambda wait: -wait["seconds"])

    def _add(self, delta: Delta) -> None:
        if self.settings.corrected:  # also what is settled after a resume, before the algorithm begins
            delta.add_to(self.moved)
        self._state.add(delta)  # after which the delta is of no use
