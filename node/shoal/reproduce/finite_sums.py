"""Katyusha X's problems, run by its algorithm file in virtual time: linear systems of a sum of non-convex terms, and
the leading eigenvector that a few of them give."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shoal.data.pca import ShiftAndInvert, solution
from shoal.learner import Learner, initial_state
from shoal.settings import Settings
from shoal.simulation import Result, Scenario, simulate


@dataclasses.dataclass(frozen=True)
class System:
    """(shift I - A) x = u with A = (1/n) sum a_i a_i^T. float64."""

    rows: Tensor  # (n, d): the a_i
    shift: float
    u: Tensor  # (d,)

    def suboptimality(self) -> Callable[[Tensor], float]:
        """x -> (F(x) - F*) / (F(0) - F*)."""
        n, d = self.rows.shape
        h = self.shift * torch.eye(d, dtype=torch.float64) - self.rows.T @ self.rows / n
        best = solution(self.rows, self.shift, self.u)
        least = float(best @ h @ best / 2 - self.u @ best)
        return lambda x: (float(x @ h @ x / 2 - self.u @ x) - least) / -least

    def smoothness(self) -> float:
        """L of mean-squared smoothness: (1/n) sum |(shift I - a_i a_i^T) v|^2 <= L^2 |v|^2."""
        n, d = self.rows.shape
        norms = self.rows.square().sum(1)
        second = (self.rows * norms[:, None]).T @ self.rows / n
        first = self.rows.T @ self.rows / n
        square = self.shift**2 * torch.eye(d, dtype=torch.float64) - 2 * self.shift * first + second
        return math.sqrt(float(torch.linalg.eigvalsh(square)[-1]))

    def step(self, b: int) -> float:
        """The theory's largest lr: min(1, sqrt(b/m)) / (2 L), m = n/b."""
        return min(1.0, b / math.sqrt(len(self.rows))) / (2 * self.smoothness())


def tau(system: System, b: int, lr: float, delta: float) -> float:
    """The s-form's coupling, sqrt(m lr delta) / 2, m = n/b, delta the strong convexity."""
    return min(0.5, math.sqrt(len(system.rows) / b * lr * delta) / 2)


def passes(n: int, b: int) -> float:
    """Single gradients of an epoch, in passes over the n samples: the snapshot, and two for each draw."""
    return 1 + 2 * -(-n // b) * b / n


def solve(
    system: System,
    parts: Sequence[Tensor],
    *,
    algorithm: str = "katyusha-x",
    lr: float,
    epochs: int,
    b: int,
    coupling: float | None = None,
    seed: int = 0,
    start: Tensor | None = None,
) -> tuple[Result, list[float]]:
    """(the run, suboptimality before it and after each epoch) with worker k holding the rows of `parts[k]`.

    b must be divisible by the number of workers.
    """
    workers = len(parts)
    settings = Settings(
        algorithm=algorithm,
        lr=lr,
        rounds=epochs,
        batch=b // workers,
        seed=seed,
        hash_every=0,
        partition="iid",
        **({"tau": coupling} if algorithm != "svrg" else {}),  # type: ignore[arg-type]
    )
    task = ShiftAndInvert(system.rows, system.shift, system.u, start)
    model, x0 = initial_state(task, seed, precision=settings.precision)
    learners = [
        Learner(task, task.of(rows), model, batch=settings.batch, seed=seed, shard=k) for k, rows in enumerate(parts)
    ]
    measure, curve = system.suboptimality(), list[float]()

    def evaluate(x: Tensor) -> tuple[float, None]:
        curve.append(measure(x))
        return curve[-1], None

    states = [x0.clone() for _ in parts]
    result = simulate(settings, Scenario(), learners, states, evaluate=evaluate, evaluate_every=workers)
    return result, curve[: epochs + 1]


def leading_eigenvector(parts: Sequence[Tensor], *, gap: float, iterations: int, epochs: int, b: int) -> Tensor:
    """(d,) float64, of unit length: of A over the rows of all parts, by inverse power iteration.

    The shift is (1 + gap) times the Rayleigh quotient of the iterate, from below the largest eigenvalue; each system
    starts where its solution would be if the iterate were the eigenvector already.
    """
    rows = torch.cat(list(parts))
    u = rows.mean(0)
    u = u / u.norm()
    for k in range(iterations):
        largest = float((rows @ u).square().mean())
        system = System(rows, largest * (1 + gap), u)
        lr = 2 * system.step(b)
        run, _ = solve(system, parts, lr=lr, epochs=epochs, b=b, seed=k, start=u / (largest * gap))
        u = run.mean.div(run.mean.norm())
    return u
