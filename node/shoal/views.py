"""Which view should hold, by what one node knows: the numbered member list of a run, and later of its end. Pure.

A view is wanted when a run can start, when an asynchronous run has a newcomer, when all have finished, and when a
member is lost while the mean is formed. What follows a view of a synchronous run, `succession` says. The deciders here
return (members or None, reason); `agreement` acts on them.
"""

from collections.abc import Iterable, Mapping

from shoal.documents import fingerprint
from shoal.errors import BadFrame
from shoal.messages import PeerId
from shoal.roster import Member, Roster, State
from shoal.succession import Pair, Succession
from shoal.v1.node_pb2 import (
    PHASE_AVERAGED,
    PHASE_FINISHED,
    PHASE_READY,
    PHASE_RUNNING,
    PURPOSE_FINISH,
    PURPOSE_TRAIN,
    Edge,
    Identity,
    Phase,
    Purpose,
    View,
    ViewAnswer,
)

MEMBERS_LIMIT = 10_000
"""Members that a node knows at most."""
NUMBERS = 1 << 63
"""Views are numbered below this: the next number must fit, too."""
PATIENCE_S = 3.0
"""How long the others leave a newcomer to the lowest id, which may not hear it."""


class Views:
    """The view that holds here, and the one that should."""

    def __init__(
        self, roster: Roster, *, min_nodes: int, synchronous: bool, on_partition: str, settle_s: float
    ) -> None:
        self.roster = roster
        self.succession = Succession(roster, on_partition=on_partition)
        self.min_nodes, self.synchronous, self.settle_s = min_nodes, synchronous, settle_s
        self.view: View | None = None
        self.most = 0  # members of the largest view of this run: a side of a split run does not want fewer gradients
        self.open = False  # a proposal is made or accepted, and not settled
        self._members: frozenset[tuple[PeerId, int]] = frozenset()  # of the view
        self._first_beat = 0  # number of the first heartbeat after the view was installed
        self._since: float | None = None  # since when enough nodes are ready, or somebody waits to be taken in

    def saw(self, view: View) -> None:
        """A view of this run holds somewhere, whether this node is in it or not."""
        self.most = max(self.most, view.most, len(view.members))

    def install(self, view: View) -> None:
        """The view holds from now on. A mean of an earlier one is none any more."""
        self.saw(view)
        self.view, self._since = view, None
        if self.roster.mine.phase == PHASE_AVERAGED:
            self.roster.mine.phase = PHASE_FINISHED
        if self.synchronous and view.purpose == PURPOSE_TRAIN and self.roster.mine.phase > PHASE_RUNNING:
            self.roster.mine.phase = PHASE_RUNNING  # until its trainer says again that it is done
        self.succession.install(view)
        self._members = frozenset((m.node_id, m.incarnation) for m in view.members)
        self._first_beat = self.roster.number + 1

    @property
    def phase(self) -> Phase.ValueType:
        """This node's phase for the others: what the trainer said, seen in the light of the view."""
        said = self.roster.mine.phase
        if said == PHASE_READY and self.view is not None:
            return PHASE_RUNNING
        if said == PHASE_AVERAGED and (self.open or not self.finishing):
            return PHASE_FINISHED
        return said

    @property
    def finishing(self) -> bool:
        """Whether the view that holds is for forming the mean model."""
        return self.view is not None and self.view.purpose == PURPOSE_FINISH

    def done(self, now: float) -> bool:
        """Whether this node and every member of the run still alive hold the mean model: this node may leave."""
        mates = (m for m in self.mates() if m.judge(now, self.roster.patience_s(m))[0] is not State.GONE)
        return self.finishing and self.phase == PHASE_AVERAGED and all(map(self._averaged, mates))

    def mates(self) -> list[Member]:
        """Live members of this run, by id. Where nodes do not wait for each other, whoever runs it is one of them."""
        anyone = not self.synchronous
        return [m for m in self.roster.live() if self._has(m) or (anyone and m.phase >= PHASE_RUNNING)]

    def ready(self, now: float) -> list[Member]:
        """Members to start with, by id."""
        return [m for m in self.roster.connected(now) if m.phase == PHASE_READY]

    def behind(self) -> list[Member]:
        """Linked members that act as if they did not know the view."""
        late = [m for m in self.roster.live() if m.linked]
        if self.synchronous and self.view is not None:
            number, mine = self.view.number, self.view.id
            return [m for m in late if self._has(m) and m.beat.view != mine and m.beat.view_number <= number]
        return [m for m in late if m.phase <= PHASE_READY or (self.finishing and m.phase == PHASE_FINISHED)]

    # --- which view is wanted -----------------------------------------------------------------------------------

    def start(self, now: float) -> tuple[list[Member] | None, str]:
        """The members to start with, or None and why not yet."""
        live, ready = self.roster.live(), self.ready(now)
        enough = self.phase == PHASE_READY and 1 + len(ready) >= self.min_nodes
        self._since = (now if self._since is None else self._since) if enough else None
        if self.phase != PHASE_READY:
            return None, "this node is still loading its model and data"
        if running := self._running():
            return None, running
        if self._since is None:
            return None, f"{1 + len(ready)} of {self.min_nodes} nodes are ready and linked"
        late = [m.id for m in live if m not in ready]
        if now - self._since < self.settle_s:
            if late:
                return None, f"{late[0]} is known and not ready yet"
            if not live:  # a run may be going on, and would be joined; who starts alone brings it an untrained model
                return None, "nobody else is known yet"
        if ready and ready[0].id < self.roster.me.node_id:
            return None, f"{ready[0].id} has the lowest id and proposes"
        return ready, "enough nodes are ready"

    def extension(self, now: float) -> tuple[list[Member] | None, str]:
        """The members of a longer train view, or None and why there is none. Asynchronous runs only."""
        mates = self.mates()
        new = [m for m in self.roster.connected(now) if m.phase >= PHASE_READY and not self._has(m)]
        if not new:
            self._since = None
            return None, "everybody is in"
        self._since = now if self._since is None else self._since
        lowest = self._lowest(mates)
        if lowest != self.roster.me.node_id and now - self._since < PATIENCE_S:
            return None, f"{lowest} has the lowest id and takes {new[0].id} in"
        return [*mates, *(m for m in new if m not in mates)], f"{new[0].id} is new"

    def finish(self, now: float) -> tuple[list[Member] | None, str]:
        """The members of the finish view, or None and why not (yet)."""
        assert self.view is not None
        mates = self.mates()
        if self.finishing:
            left = {m.id for m in map(self.roster.find, self.view.members) if m is not None and m.finished}
            if {self.roster.me.node_id, *(m.id for m in mates)} == {m.node_id for m in self.view.members} - left:
                return None, "the finish view stands"
            if self.done(now):
                return None, "everybody who is left holds the mean model"
        if why := self.training(mates):
            return None, why
        if cut := [m.id for m in mates if not self.roster.hears(m, now)]:
            return None, f"{cut[0]} is not linked"
        if (lowest := self._lowest(mates)) != self.roster.me.node_id:
            return None, f"{lowest} has the lowest id and proposes"
        return mates, "everybody has finished"

    def training(self, mates: list[Member]) -> str:
        """Who of this node and `mates` is not done with its part; empty when all are."""
        if self.phase < PHASE_FINISHED:
            return "this node is still training"
        late = [m.id for m in mates if m.phase < PHASE_FINISHED]
        return f"{late[0]} is still training" if late else ""

    def judge(self, view: View, issuer: PeerId, now: float) -> tuple[str, list[PeerId]]:
        """(why this node cannot agree to a view that is proposed to it, which members it does not reach); an empty
        reason agrees."""
        finish = view.purpose == PURPOSE_FINISH
        if self.synchronous and self.view is not None:
            late = self.training([]) if finish else ""
            return (late, []) if late else self.succession.judge(view, now)
        if reason := self._against_finish(view) if finish else self._against_start(view):
            return reason, []
        if not view.parent or finish:
            lowest = self._lowest(self.mates() if finish else self.ready(now))
            if lowest < issuer:
                return f"not the lowest id here, {lowest} is", []
        for identity in view.members:
            member = self.roster.find(identity)
            if not self.roster.is_me(identity) and (member is None or not self.roster.hears(member, now)):
                return f"not linked with {identity.node_id}", [self.roster.me.node_id]
        return "", []

    def _against_start(self, view: View) -> str:
        if self.view is not None:
            return f"already in view {self.view.id}"
        if self.phase != PHASE_READY:
            return "still loading"
        if view.parent:
            return "" if self.synchronous else "nobody votes on newcomers of such a run"
        if len(view.members) < self.min_nodes:
            return f"it has {len(view.members)} members, this node waits for {self.min_nodes}"
        return self._running()

    def _against_finish(self, view: View) -> str:
        if self.view is None or self.phase < PHASE_FINISHED:
            return "still training"
        proposed = {m.node_id for m in view.members}
        forgotten = [m.id for m in self.mates() if m.id not in proposed]
        return f"{forgotten[0]} is alive and not in it" if forgotten else ""

    def _running(self) -> str:
        running = [m.id for m in self.roster.live() if m.phase >= PHASE_RUNNING]
        return f"{running[0]} is in a run already" if running else ""

    def _lowest(self, others: list[Member]) -> PeerId:
        return min([self.roster.me.node_id, *(m.id for m in others)])

    def _has(self, member: Member) -> bool:
        return (member.id, member.identity.incarnation) in self._members

    def _averaged(self, member: Member) -> bool:
        """Whether the member holds the mean of *this* view.

        Its word counts once it has answered a heartbeat that was sent after the view was installed here: until then
        it may be the word of a time when another finish view held.
        """
        return member.phase == PHASE_AVERAGED and member.acknowledged >= self._first_beat


# --- a view by itself -------------------------------------------------------------------------------------------


Entry = tuple[Identity, int, int]
"""A member to be: who, its training samples, the round at which it stands."""


def entry(member: Member) -> Entry:
    """By its own word."""
    return member.identity, member.samples, member.beat.step


def draft(
    roster: Roster, others: Iterable[Entry], number: int, parent: str, purpose: Purpose.ValueType, cut: Iterable[Pair]
) -> View:
    """The view that this node would issue, over itself and `others`; it starts where the furthest of them stands."""
    me = roster.me, roster.samples, roster.mine.step
    nodes = sorted((me, *others), key=lambda node: node[0].node_id)
    steps = [step for _, _, step in nodes]
    view = View(
        number=number,
        issuer=roster.me.node_id,
        issuer_incarnation=roster.me.incarnation,
        parent=parent,
        members=[identity for identity, _, _ in nodes],
        samples=[samples for _, samples, _ in nodes],
        purpose=purpose,
        round=max(steps),
        same_round=len(set(steps)) == 1,
        cut=[Edge(a=a, b=b) for a, b in cut],
    )
    view.id = view_id(view)
    return view


def settle(view: View, answers: Mapping[PeerId, ViewAnswer], *, replicas: bool) -> None:
    """Writes into a successor where it starts and whose model counts, by where its members stand.

    Replicas must be equal: the round and the model are those of the largest group that shares a view and a round, and
    the others take them. Otherwise all keep their models, and go on in the round of the furthest; only who held no
    view takes a model. Where nobody has one that counts more than his own, all go on with what they have, and replicas
    with the model of the furthest, the lowest id of these.
    """
    standing: dict[tuple[int, int, str], list[PeerId]] = {}
    for node in sorted(answers):
        answer = answers[node]
        if answer.held:
            place = (answer.size, answer.round, answer.held) if replicas else (0, answer.round, "")
            standing.setdefault(place, []).append(node)
    if not standing:
        round = max(answer.round for answer in answers.values())
        furthest = sorted(node for node, answer in answers.items() if answer.round == round)
        standing[0, round, ""] = furthest[:1] if replicas else sorted(answers)
    best = max(standing)
    keep = standing[best] if replicas else [node for nodes in standing.values() for node in nodes]
    view.round, view.same_round, view.source = best[1], False, standing[best][0]
    view.behind[:] = sorted(set(answers) - set(keep))


def view_id(view: View) -> str:
    """16 hex digits over number, issuer and its incarnation, members, cut links, parent and purpose."""
    members = [[m.node_id, m.incarnation] for m in view.members]
    issuer = [view.issuer, view.issuer_incarnation]
    parts = {"number": view.number, "issuer": issuer, "members": members, "parent": view.parent}
    parts["cut"] = [[edge.a, edge.b] for edge in view.cut]
    return fingerprint(parts | {"purpose": int(view.purpose)})


def order(view: View) -> tuple[int, int, str]:
    """Views sort by purpose, number and id: of two, both sides keep the same one."""
    return int(view.purpose), view.number, view.id


def check(view: View, sender: PeerId) -> None:
    """Raises BadFrame unless the view's id is its own, its members are sorted and its parts fit each other."""
    ids = [m.node_id for m in view.members]
    faults = {
        f"has the id {view.id[:32]!r}, expected {view_id(view)}": view.id != view_id(view),
        "has members that are not sorted, or twice the same": ids != sorted(set(ids)),
        f"has {len(view.samples)} counts of samples for {len(ids)} members": len(view.samples) != len(ids),
        f"has the number {view.number}, expected less than {NUMBERS}": view.number >= NUMBERS,
        f"has the unknown purpose {view.purpose}": view.purpose not in (PURPOSE_TRAIN, PURPOSE_FINISH),
        f"is of {view.issuer[:32]!r}, who is no member": view.issuer not in ids,
        "has cut links that are not pairs of members, sorted": not _are_pairs(view, ids),
        "names as source or behind who is no member": not {*view.behind, view.source or view.issuer} <= set(ids),
        "takes its model from one who has none": view.source in view.behind,
        f"says that {view.most} members are the most, expected at most {MEMBERS_LIMIT}": view.most > MEMBERS_LIMIT,
    }
    for fault, true in faults.items():
        if true:
            raise BadFrame(f"view {view.number} from {sender} {fault}")


def _are_pairs(view: View, ids: list[PeerId]) -> bool:
    pairs = [(edge.a, edge.b) for edge in view.cut]
    return pairs == sorted(set(pairs)) and all(a < b and {a, b} <= set(ids) for a, b in pairs)
