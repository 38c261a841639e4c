"""Every setting of a node and of a run: one frozen, validated table.

Each field carries a sentence: meaning, unit, effect of more and of less. `scope` says who must agree: a *run*
setting belongs to the run's document, which all members compare in Hello; a *node* setting is this machine's
own business.
"""

import dataclasses
import difflib
from typing import Any

from shoal.errors import SettingsError
from shoal.fields import checked, matches, parse_address, parse_name, parse_rate, parse_share, setting
from shoal.fitting import check_fit
from shoal.traits import ALGORITHMS, BOTH, CODECS, DIFFERENCES, Traits

PROTOCOL_VERSION = 4
"""Raised when a node could no longer talk to an older one; Hello refuses another number."""

USUAL = {"lr": 0.1, "momentum": 0.0, "precision": "f32", "hash_every": 100}
"""What settings are that neither the user nor the algorithm's traits give."""

EXCLUSIVE = ("rounds", "gradients")
"""Two ways to say one thing: at most one may be given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings with their defaults. SettingsError when a value is out of range or two contradict."""

    # --- the run: the same on every member, compared in Hello ---------------------------------------------
    algorithm: str = setting(
        "ad-psgd",
        "How the nodes train together.",
        "run",
        choices=tuple(ALGORITHMS),
    )
    over: str = setting(
        None,
        "Through whom: peers, or a coordinator. If not given: coordinator where one is named or needed, else peers.",
        "run",
        choices=BOTH,
    )
    lr: float = setting(
        None,
        "Step size; 0.1 if not given, 0.003 where signs are voted on. More learns faster until it diverges.",
        "run",
        above=0,
        below=1e6,
    )
    schedule: str = setting(
        "constant",
        "How the step size moves over the run: constant, linear, cosine, or step:FACTOR@P1,P2 (P: part done, 0 to 1).",
        "run",
    )
    warmup: float = setting(
        0.0,
        "Part of the run, 0 to 1, over which the step size grows from 0 to its full value.",
        "run",
        low=0,
        below=1,
    )
    momentum: float = setting(
        None,
        "Local heavy-ball momentum; it is never sent. 0 is off and the default, except .9 for signum.",
        "run",
        low=0,
        below=1,
    )
    weight_decay: float = setting(
        0.0,
        "Pull of every weight towards 0, added to the gradient. More regularises more.",
        "run",
        low=0,
        below=1e3,
    )
    batch: int = setting(
        16,
        "Samples a gradient and a node. More is less noise and more work a step.",
        "run",
        low=1,
        high=1 << 20,
    )
    rounds: int | None = setting(
        None,
        "Length of the run in rounds: gradients a node (on average, where nodes do not wait).",
        "run",
        low=1,
    )
    gradients: int | None = setting(
        None, "Length of the run in gradients of all nodes together; instead of rounds.", "run", low=1
    )
    overlap: int = setting(
        0,
        "ad-psgd: local steps allowed beyond one finished average a gradient. More hides a slow link, mixes less.",
        "run",
        low=0,
        high=1000,
    )
    exchange_every: int = setting(
        1,
        "ad-psgd, d-psgd: gradients to each exchange. More sends less, and the models drift further apart.",
        "run",
        low=1,
        high=100_000,
    )
    correction: str = setting(
        "none",
        "ad-psgd: pairwise takes away the weight that fast nodes have where labels are skewed, by a dual variable.",
        "run",
        choices=("none", "pairwise"),
    )
    correction_step: float = setting(
        0.2,
        "Of the pairwise correction, at most; less while one node is far slower than the mean. More follows sooner.",
        "run",
        above=0,
        high=10,
    )
    topology: str = setting(
        "complete",
        "Who talks to whom: complete, ring, exponential, torus, hypercube, random:DEGREE, star, file:PATH.",
        "run",
        form=matches(
            r"complete|ring|exponential|torus|hypercube|star|random:\d{1,6}|file:.+",
            "complete, ring, exponential, torus, hypercube, star, random:DEGREE or file:PATH",
        ),
    )
    mixing: str = setting(
        "metropolis",
        "Weights of the edges: metropolis, uniform:W (every edge W), or file (taken from file:PATH).",
        "run",
        form=matches(r"metropolis|uniform:[\d.e-]+|file", "metropolis, uniform:W (such as uniform:0.25) or file"),
    )
    lazy: str = setting(
        "auto",
        "Replace W by (I+W)/2: auto (d2 only), always, never. Slower mixing, stable for any graph.",
        "run",
        choices=("auto", "always", "never"),
    )
    weight: str = setting(
        "nodes",
        "What counts the same in the loss: each of the nodes, or each of their samples.",
        "run",
        choices=("nodes", "samples"),
    )
    partition: str = setting(
        "labels:2",
        "How a shipped data set is divided: iid, shared, labels:K, dirichlet:ALPHA, quantity:ALPHA, folder.",
        "run",
    )
    hash_every: int = setting(
        None,
        "Rounds between comparisons of a hash of models that must be equal: 100, or 10 epochs; 0 never.",
        "run",
        low=0,
    )
    seed: int = setting(
        0, "Seeds the first model, the partition and every random choice.", "run", low=0, high=2**63 - 1
    )
    precision: str = setting(
        None,
        "Of the model's numbers: f32, or f64, twice the bytes. f32 if not given; f64 for katyusha-x and svrg.",
        "run",
        choices=("f32", "f64"),
    )
    tau: float | None = setting(
        None,
        "katyusha-x: coupling for strongly convex losses, up to .5, which is SVRG. Not given: the rule for others.",
        "run",
        above=0,
        high=0.5,
    )
    prox: str = setting(
        "none",
        "katyusha-x, svrg: a regulariser that is not differentiated but solved for: none, l1:STRENGTH, l2:STRENGTH.",
        "run",
        form=matches(
            r"none|l[12]:(\d+\.?\d*|\.\d+)(e-?\d{1,3})?", "none, l1:STRENGTH or l2:STRENGTH, such as l1:0.001"
        ),
    )
    staleness_aware: bool = setting(
        False, "a-psgd: divide the step size by the age of a gradient, counted in models.", "run"
    )
    codec: str = setting(
        "f32",
        "How models travel, from 32 bits a coordinate to 1. ad-psgd: a wish of this node; pairs take the smaller one.",
        "run",
        choices=CODECS,
    )

    clip_distance: float = setting(
        0.0,
        "ad-psgd: a model further away than this, by Euclid's distance, pulls no harder than one just so far away; 0: "
        "off. Less holds a hostile member back more, and keeps honest ones apart longer.",
        "run",
        low=0.0,
    )

    # --- this node ----------------------------------------------------------------------------------------
    task: str = setting(
        "digits",
        "What is learnt: digits, mnist, fashion-mnist, cifar10, quadratic, FILE.py:CLASS or package.module:CLASS.",
        "node",
    )
    shoal: str = setting(
        "default",
        "Name of the shoal; nodes of another name are refused.",
        "node",
        form=matches(r"[A-Za-z0-9._-]{1,64}", "1 to 64 letters, digits, -, _ or ."),
    )
    name: str = setting(
        "",
        "This node's name in tables and logs; letters, digits, - and _. Empty: the host name.",
        "node",
        form=matches(r"[A-Za-z0-9_-]{1,56}", "1 to 56 letters, digits, - or _"),
    )
    state_dir: str = setting(
        "shoal-state", "Folder of the node id, history, checkpoints and models; {name} in it is the node's.", "node"
    )
    shard: str = setting(
        "0/1",
        "Which part of a shipped data set is this node's: K/N, K from 0; or auto/N, by the number in the host's name.",
        "node",
        form=parse_share,
    )
    data_dir: str = setting("data", "Folder of the data sets, and of `folder` partitions.", "node")
    download: bool = setting(False, "Let torchvision download a missing data set.", "node")
    device: str = setting(
        "auto",
        "auto, cpu, or cuda:N. Several nodes may share one GPU.",
        "node",
        form=matches(r"auto|cpu|cuda:\d{1,3}", "auto, cpu or cuda:N"),
    )
    threads: int = setting(
        1,
        "CPU threads of the trainer. More is faster alone, slower where nodes share cores.",
        "node",
        low=1,
        high=1024,
    )
    listen: str = setting("127.0.0.1:0", "HOST:PORT of gRPC; port 0 takes a free one.", "node", form=parse_address)
    advertise: str = setting(
        "", "HOST:PORT that peers should dial, if not the one listened on.", "node", form=parse_address
    )
    http: str = setting(
        "127.0.0.1:0", "HOST:PORT of /metrics, /healthz, /readyz, /v1/status.", "node", form=parse_address
    )
    tls: str = setting(
        "",
        "Folder of this member's certificate, from `shoal certs`; then gRPC speaks TLS with members alone.",
        "node",
    )
    insecure: bool = setting(
        False, "Allow listening beyond loopback without TLS. Anyone who reaches the port can join.", "node"
    )
    share_memory: bool = setting(
        True, "Let other nodes of this machine and user read vectors in memory, and read theirs.", "node"
    )
    discovery: str = setting(
        "mdns,static,dns",
        "How peers are found, joined by commas: mdns, static, dns.",
        "node",
        form=matches(r"(mdns|static|dns)(,(mdns|static|dns))*", "mdns, static, dns, or some of them joined by commas"),
    )
    peers: tuple[str, ...] = setting(
        (), "HOST:PORT of known peers, for static discovery; one is enough.", "node", form=parse_address
    )
    dns: tuple[str, ...] = setting(
        (),
        "HOST:PORT whose addresses are all nodes, or _SERVICE._tcp.DOMAIN of SRV records, for dns discovery.",
        "node",
        form=parse_name,
    )
    coordinator: str = setting(
        "", "HOST:PORT of the coordinator, which also knows the other nodes.", "node", form=parse_address
    )
    max_rate: str = setting(
        "",
        "What this node sends at most, to all peers together, a second: 10Mbit, 1.5MB. Empty or 0: no limit.",
        "node",
        form=parse_rate,
    )
    min_nodes: int = setting(
        1, "Training starts when so many nodes are ready, all together.", "node", low=1, high=100_000
    )
    resume: bool = setting(False, "Go on from the checkpoint in the state folder.", "node")
    auto_resume: bool = setting(
        False, "Go on from the checkpoint in the state folder if there is one: for service managers.", "node"
    )
    checkpoint_every: int = setting(500, "Steps between checkpoints; 0 writes only when stopped.", "node", low=0)
    eval_every: int = setting(
        100, "Steps between evaluations on this node's held-out data; 0 is only at the end.", "node", low=0
    )
    heartbeat_s: float = setting(
        0.5,
        "Seconds between heartbeats. Less notices a death sooner, for more traffic.",
        "node",
        low=0.05,
        high=60,
    )
    on_partition: str = setting(
        "continue",
        "What the smaller side of a split synchronous run does: continue, as a run of its own until the sides meet "
        "again, or pause. Replicas then take the model of the larger side.",
        "node",
        choices=("continue", "pause"),
    )
    max_distance: float = setting(
        0.0,
        "Models that are further apart than this, by Euclid's distance, are not averaged but refused and counted; 0: "
        "however far. Too small a bound keeps honest nodes apart.",
        "node",
        low=0.0,
    )
    suspect_after_s: float = setting(
        5.0,
        "Seconds of silence after which a member counts as gone; more for one whose heartbeats come irregularly.",
        "node",
        low=0.5,
        high=3600,
    )
    quorum: int | None = setting(
        None,
        "coordinator: answers with which a round may close without the rest. Fewer wait less, and leave more out.",
        "node",
        low=1,
        high=100_000,
    )
    deadline_s: float = setting(
        1.0,
        "coordinator: seconds after a round's first answer for which a quorum waits for the rest.",
        "node",
        low=0,
        high=3600,
    )
    log: str = setting(
        "auto",
        "Log lines: human, json, or auto (human on a terminal).",
        "node",
        choices=("auto", "human", "json"),
    )
    log_level: str = setting(
        "info", "Least severe line that is shown.", "node", choices=("debug", "info", "warning", "error")
    )
    emulate_compute_s: float = setting(
        0.0,
        "Emulated: sleep so many seconds beside each gradient, to try out a slow machine.",
        "node",
        low=0,
        high=3600,
    )

    emulate_attack: float = setting(
        1.0,
        "Emulated: multiply each gradient by this, to try out a broken or hostile node. -1 flips its sign.",
        "node",
        low=-1e6,
        high=1e6,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        for name, value in {**USUAL, **self.traits.usual}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.over is None:
            named = "coordinator" if self.coordinator and "coordinator" in self.traits.over else self.traits.over[0]
            object.__setattr__(self, "over", named)
        if all(getattr(self, name) is not None for name in EXCLUSIVE):
            raise SettingsError("give rounds or gradients, not both: each alone says how long the run is")
        check_fit(self)

    @property
    def traits(self) -> Traits:
        """Of the algorithm."""
        return ALGORITHMS[self.algorithm]

    @property
    def max_bytes_a_second(self) -> float:
        """`max_rate` as a number; 0: no limit."""
        return parse_rate(self.max_rate)

    @property
    def packed(self) -> str:
        """The codec, where rounds send differences by it; else empty."""
        return self.codec if self.traits.mixes and self.codec in DIFFERENCES else ""

    @property
    def corrected(self) -> bool:
        """Whether pairs of averages are corrected."""
        return self.correction == "pairwise"

    @property
    def decay_in_gradient(self) -> float:
        """Weight decay that is part of the gradient: none where a vote would lose its size."""
        return 0.0 if self.traits.votes else self.weight_decay

    @property
    def synchronous(self) -> bool:
        """Whether the algorithm proceeds in rounds."""
        return self.traits.rounds

    @property
    def fixed_view(self) -> bool:
        """Whether the run cannot go on without one of its members."""
        return self.synchronous and (self.over == "peers" or self.traits.finite_sum)

    def total_rounds(self, nodes: int) -> int:
        """Rounds of a synchronous run, or gradients a node on average: at least 1."""
        if self.gradients is not None:
            return max(1, -(-self.gradients // nodes))
        return 1000 if self.rounds is None else self.rounds

    def total_gradients(self, nodes: int) -> int:
        """Gradients of all `nodes` together."""
        return self.total_rounds(nodes) * nodes if self.gradients is None else self.gradients

    def run_document(self) -> dict[str, Any]:
        """What all members must agree on, as plain values. Pairs agree on a codec by themselves."""
        names = [f.name for f in dataclasses.fields(self) if f.metadata["scope"] == "run"]
        return {name: getattr(self, name) for name in names if not (name == "codec" and self.traits.pairs)}


def field(name: str) -> dataclasses.Field[Any]:
    """The field of that name. Raises SettingsError, naming near ones, when there is none."""
    fields = {f.name: f for f in dataclasses.fields(Settings)}
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `shoal config show` lists them"
        raise SettingsError(f"unknown setting {name!r}{hint}")
    return fields[name]
