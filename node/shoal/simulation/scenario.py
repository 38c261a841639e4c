"""The made-up surroundings of a simulated run: who is slow, who attacks, what breaks and when."""

import dataclasses

from shoal.errors import SettingsError


@dataclasses.dataclass(frozen=True)
class Cut:
    """The link between two workers breaks at `at_s` and stands again after `for_s`; in flight is lost."""

    at_s: float
    a: int
    b: int
    for_s: float


@dataclasses.dataclass(frozen=True)
class Crash:
    """A worker dies at `at_s`, with all it holds."""

    at_s: float
    worker: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """The made-up surroundings. Times are virtual seconds."""

    compute_s: float = 0.01  # a gradient
    jitter: float = 0.0  # a gradient takes compute_s (1 +- jitter), uniformly; 0: all exactly alike
    vector_s: float = 0.0  # a full vector keeps a link busy, one way; less if it is packed, or a piece
    port_s: float = 0.0  # a full vector keeps the ports of sender and receiver busy; what comes next waits
    latency_s: float = 0.0001  # any message on its way
    slow: tuple[tuple[int, float], ...] = ()  # (worker, factor on compute_s)
    slow_links: tuple[tuple[int, int, float], ...] = ()  # (worker, worker, factor on vector_s)
    attackers: tuple[tuple[int, float], ...] = ()  # emulated: (worker, factor on each of its gradients)
    cuts: tuple[Cut, ...] = ()
    crashes: tuple[Crash, ...] = ()

    def check(self, workers: int) -> None:
        """Raises SettingsError when it speaks of a worker that is not there."""
        named = [w for w, _ in self.slow] + [w for a, b, _ in self.slow_links for w in (a, b)]
        named += [w for w, _ in self.attackers]
        named += [w for c in self.cuts for w in (c.a, c.b)] + [c.worker for c in self.crashes]
        if (unknown := max(named, default=0)) >= workers:
            raise SettingsError(f"worker {unknown} is not there: workers are numbered from 0 to {workers - 1}")
