"""Several nodes' membership in virtual time: links that can be cut, delayed and lossy, and trainers that do as told."""

import dataclasses
import heapq
import itertools
import random
from collections.abc import Callable

from hypothesis import strategies as st

from shoal.membership import Membership
from shoal.roster import Action, Installed, Pause, Send
from shoal.v1.node_pb2 import (
    PHASE_AVERAGED,
    PHASE_FINISHED,
    PHASE_READY,
    PHASE_RUNNING,
    PHASE_UNSPECIFIED,
    PURPOSE_FINISH,
    PURPOSE_TRAIN,
    Control,
    Identity,
    View,
)

TICK_S = 0.1
SUSPECT_S = 5.0


@dataclasses.dataclass
class Node:
    """A daemon with a trainer that does what its views say."""

    members: Membership
    log: list[tuple[float, Action]] = dataclasses.field(default_factory=list)
    running: bool = True
    round: int = 0  # that is to come, in a synchronous run
    model_round: int = 0  # that its own model stands at, while it lacks another's
    model_from: str = ""
    model: object = "x0"  # equal where replicas are
    paused: bool = False
    lacks_model: bool = False
    frozen: bool = False

    def all(self, kind: type[Action]) -> list[Action]:
        return [action for _, action in self.log if isinstance(action, kind)]

    @property
    def view(self) -> View | None:
        return self.members.view

    @property
    def ids(self) -> str:
        """Members of its view, as one word: all nodes here have one letter."""
        return "" if self.view is None else "".join(m.node_id for m in self.view.members)


class Net:
    """Nodes of one letter each, fully linked unless cut, in virtual time. Links keep the order of what they carry."""

    def __init__(
        self,
        min_nodes: int,
        *,
        synchronous: bool = False,
        replicas: bool = False,
        on_partition: str = "continue",
        seed: int = 0,
        latency_s: float = 0.01,
    ) -> None:
        self.now = 0.0
        self.replicas, self.on_partition = replicas, on_partition
        self.min_nodes, self.synchronous, self.latency_s = min_nodes, synchronous, latency_s
        self.rng = random.Random(seed)
        self.nodes: dict[str, Node] = {}
        self.links: dict[frozenset[str], int] = {}  # pairs that are linked, and the number of the link
        self.loses: Callable[[str, str, Control], bool] = lambda source, target, control: False
        self.delay_s: Callable[[], float] = lambda: self.latency_s
        self.training_s: float | None = None  # None: trains for ever
        self.averaging_s = 0.2
        self.pausing_s = 0.003  # of a trainer that is asked to
        self._count = itertools.count()
        self._arrivals: dict[tuple[str, str], float] = {}
        self._frozen: list[Callable[[], None]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    # --- scripts ------------------------------------------------------------------------------------------------

    def add(self, names: str, *, ready: bool = True, incarnation: int = 1) -> None:
        for name in names:
            identity = Identity(node_id=name, incarnation=incarnation, address=f"{name}:1", name=f"node-{name}")
            membership = Membership(
                identity,
                heartbeat_s=0.5,
                suspect_after_s=SUSPECT_S,
                min_nodes=self.min_nodes,
                synchronous=self.synchronous,
                replicas=self.replicas,
                on_partition=self.on_partition,
                rng=random.Random(f"{self.rng.random()}/{name}"),
            )
            membership.samples = 100 + ord(name)
            node = self.nodes[name] = Node(membership)
            self.phase(name, PHASE_READY if ready else PHASE_UNSPECIFIED)
            self.at(self.now + self.rng.uniform(0, TICK_S), lambda node=node, name=name: self._tick(name, node))

    def phase(self, name: str, phase: int, *, step: int = 0) -> None:
        node = self.nodes[name]
        node.members.mine(phase, step, step, float("nan"), 0, 0)

    def link(self, names: str, others: str = "") -> None:
        pairs = itertools.product(names, others) if others else itertools.combinations(names, 2)
        for a, b in pairs:
            pair = frozenset((a, b))
            if pair in self.links or a == b or not (self.nodes[a].running and self.nodes[b].running):
                continue
            self.links[pair] = next(self._count)
            for one, other in ((a, b), (b, a)):
                members, them = self.nodes[one].members, self.nodes[other].members.roster
                self.act(one, members.met(them.me, them.samples, self.now))
            for one, other in ((a, b), (b, a)):
                self.act(one, self.nodes[one].members.link_up(other, self.now))

    def cut(self, names: str, others: str, reason: str = "connection reset") -> None:
        for a, b in itertools.product(names, others):
            if self.links.pop(frozenset((a, b)), None) is not None:
                for one, other in ((a, b), (b, a)):
                    if self.nodes[one].running:
                        self.act(one, self.nodes[one].members.link_down(other, reason, self.now))

    def kill(self, name: str) -> None:
        self.nodes[name].running = False
        self.cut(name, "".join(self.nodes), "connection refused")

    def freeze(self, name: str) -> None:
        """As SIGSTOP does: links stand, and nothing moves."""
        self.nodes[name].frozen = True

    def thaw(self, name: str) -> None:
        """It goes on with all that came meanwhile."""
        self.nodes[name].frozen = False
        waiting, self._frozen = self._frozen, []
        for what in waiting:
            what()

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), what))

    def run(self, seconds: float = 0.0, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass; True as soon as `until` holds."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, what = heapq.heappop(self._events)
            what()
            if until():
                return True
        self.now = end
        return until()

    # --- machinery ----------------------------------------------------------------------------------------------

    def act(self, name: str, actions: list[Action]) -> None:
        node = self.nodes[name]
        for action in actions:
            if isinstance(action, Send):
                self._carry(name, action.peer_id, action.control)
                continue
            node.log.append((self.now, action))
            if isinstance(action, Installed):
                self._install(node, action)
                self._train(name, node, action.view)
            elif isinstance(action, Pause):
                node.paused = True
                self.at(self.now + self.pausing_s, lambda node=node: self._paused(name, node))

    def _carry(self, source: str, target: str, control: Control) -> None:
        number = self.links.get(frozenset((source, target)))
        if number is None or self.loses(source, target, control):
            return
        arrival = max(self.now + self.delay_s(), self._arrivals.get((source, target), 0.0))
        self._arrivals[source, target] = arrival
        self.at(arrival, lambda: self._arrive(source, target, control, number))

    def _arrive(self, source: str, target: str, control: Control, number: int) -> None:
        node = self.nodes[target]
        if node.frozen:
            self._frozen.append(lambda: self._arrive(source, target, control, number))
        elif node.running and self.links.get(frozenset((source, target))) == number:
            self.act(target, node.members.heard(source, control, self.now))

    def _tick(self, name: str, node: Node) -> None:
        if node.frozen:
            self._frozen.append(lambda: self._tick(name, node))
        elif node.running and self.nodes[name] is node:
            self.act(name, node.members.tick(self.now))
            self._advance(node)
            self.at(self.now + TICK_S, lambda: self._tick(name, node))

    def _train(self, name: str, node: Node, view: View) -> None:
        def become(phase: int) -> None:
            if node.running and node.view is not None and node.view.id == view.id:
                self.phase(name, phase)

        if view.purpose == PURPOSE_FINISH:
            self.at(self.now + self.averaging_s, lambda: become(PHASE_AVERAGED))
        elif node.members.roster.mine.phase < PHASE_FINISHED:
            self.phase(name, PHASE_RUNNING)
            if self.training_s is not None:
                self.at(self.now + self.training_s, lambda: become(PHASE_FINISHED))

    def _paused(self, name: str, node: Node) -> None:
        if node.running:
            round = node.model_round if node.lacks_model else node.round
            self.act(name, node.members.paused(round, self.now, lacks_model=node.lacks_model))

    def _install(self, node: Node, installed: Installed) -> None:
        if installed.view.purpose != PURPOSE_TRAIN or not self.synchronous:
            return
        if not node.lacks_model:
            node.model_round = node.round
        node.paused, node.round = False, installed.view.round
        node.model_from, node.lacks_model = installed.model_from, bool(installed.model_from)
        self._take_model(node, installed.view)

    def _take_model(self, node: Node, view: View) -> None:
        """Of the one that the view names, once that one has it: it cannot go on without this node."""
        source = self.nodes.get(node.model_from)
        if source is None or source.members.roster.me not in view.members:
            return
        if source.running and not source.lacks_model:
            node.model, node.lacks_model = source.model, False

    def _advance(self, node: Node) -> None:
        """A round is done once all members have sent theirs; here all are neighbours."""
        view = node.view
        if not self.synchronous or view is None or view.purpose != PURPOSE_TRAIN or node.paused:
            return
        if node.lacks_model:
            self._take_model(node, view)
        mates = [self.nodes[m.node_id] for m in view.members]
        here = all(mate.view is not None and mate.running and mate.view.id == view.id for mate in mates)
        if here and not any(mate.lacks_model for mate in mates) and node.round <= min(mate.round for mate in mates):
            node.model = (view.id, node.round, node.model)
            node.round += 1

    # --- questions ----------------------------------------------------------------------------------------------

    def in_view(self, names: str, members: str | None = None, purpose: int = PURPOSE_TRAIN) -> bool:
        """Whether these nodes are all in one view, over `members` (themselves, if not given)."""
        views = [self.nodes[name].view for name in names]
        same = {v.id for v in views if v is not None and v.purpose == purpose}
        wanted = "".join(sorted(members or names))
        return None not in views and len(same) == 1 and all(self.nodes[name].ids == wanted for name in names)

    def train_views(self, name: str) -> list[View]:
        installed = [a.view for a in self.nodes[name].all(Installed) if isinstance(a, Installed)]
        return [v for v in installed if v.purpose == PURPOSE_TRAIN]


def shoal(names: str, min_nodes: int | None = None, **options: bool | int | float) -> Net:
    """A net with these nodes ready and linked."""
    net = Net(len(names) if min_nodes is None else min_nodes, **options)  # type: ignore[arg-type]
    net.add(names)
    net.link(names)
    return net


def training(names: str, min_nodes: int | None = None, **options: bool | int | float) -> Net:
    """A net whose nodes are all in one train view."""
    net = shoal(names, min_nodes, **options)
    assert net.run(5, until=lambda: net.in_view(names))
    net.run(1)
    return net


@dataclasses.dataclass(frozen=True)
class Weather:
    """How badly the links do, and which break and heal when."""

    seed: int
    loss: float
    delay_s: float
    flaps: tuple[tuple[float, int, int, float], ...]  # when, pair, for how long


weather = st.builds(
    Weather,
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.5),
    delay_s=st.floats(0.001, 4.0),
    flaps=st.lists(
        st.tuples(st.floats(0, 10), st.integers(0, 4), st.integers(0, 4), st.floats(0.05, 4.0)), max_size=8
    ).map(tuple),
)


def storm(names: str, min_nodes: int, sky: Weather, *, synchronous: bool = False, replicas: bool = False) -> Net:
    """A net in bad weather that has cleared at 14 s."""
    net = Net(min_nodes, synchronous=synchronous, replicas=replicas, seed=sky.seed)
    net.loses = lambda source, target, control: net.now < 12 and net.rng.random() < sky.loss
    net.delay_s = lambda: net.rng.uniform(0.001, min(sky.delay_s, 0.3))
    net.add(names)
    net.link(names)
    for when, i, j, length_s in sky.flaps:
        a, b = names[i % len(names)], names[j % len(names)]
        net.at(when, lambda a=a, b=b: net.cut(a, b))
        net.at(when + length_s, lambda a=a, b=b: net.link(a, b))
    return net
