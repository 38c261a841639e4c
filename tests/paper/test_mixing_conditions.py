"""What W must satisfy, tried on the recursions themselves: D-PSGD (1705.09056) and D2 (1803.07068, algorithm 1).

D2's assumption that W's smallest eigenvalue lies above -1/3 is cited from memory and not compared with the paper. What
these tests hold is the limit of stability, derived anew: on an eigenvector of W with eigenvalue l, where every loss
has curvature h and a = step size x h, the recursion's roots satisfy

    mu^2 - l (2 - a) mu + l (1 - a) = 0,

and the lower one passes -1 at l = -1/(3 - 2 a). Numbers for noise (table below) are this project's, not the paper's.
"""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shoal.errors import TopologyError
from shoal.mixing import check, mixing, uniform
from shoal.topology import Matrix, graph

LR = 0.05
BOUND = -1 / 3


def d2(W: Matrix, targets: Matrix, *, curvature: float, steps: int, noise: float = 0.0) -> Matrix:
    """x_i after `steps` of D2 as the paper writes it, (n, d), from 0. Node i's gradient is curvature x - targets_i."""
    rng = np.random.default_rng(0)

    def gradient(x: Matrix) -> Matrix:
        return curvature * x - targets + noise * rng.standard_normal(x.shape)

    before = np.zeros_like(targets)
    g = gradient(before)
    x = W @ (before - LR * g)
    for _ in range(steps - 1):
        fresh = gradient(x)
        x, before, g = W @ (2 * x - before - LR * (fresh - g)), x, fresh
    return x


def disagreement(x: Matrix) -> float:
    """Mean square distance of a coordinate from the nodes' mean, in units of the step size squared."""
    return float(np.mean((x - x.mean(axis=0)) ** 2)) / LR**2


def skewed(n: int, d: int = 4) -> Matrix:
    """Targets that differ from node to node, as label-skewed data do."""
    return np.random.default_rng(1).standard_normal((n, d))


# --- D2 -----------------------------------------------------------------------------------------------------------


def test_d2_diverges_on_a_hypercube_of_eight_with_weights_a_quarter() -> None:
    W = uniform(graph("hypercube", 8), 0.25)  # lambda_n = -.5; the lower root is -1.37 without curvature
    assert disagreement(d2(W, skewed(8), curvature=1, steps=50)) > 1e6


@pytest.mark.parametrize(
    ("spec", "n", "lazy"), [("hypercube", 8, "always"), ("ring", 5, "never"), ("torus", 16, "auto")]
)
def test_d2_reaches_the_common_optimum_on_skewed_data_where_w_allows_it(spec: str, n: int, lazy: str) -> None:
    """Every node, not only the mean: the optimum of the sum of the losses is the mean of the targets."""
    weights = "uniform:0.25" if spec == "hypercube" else "metropolis"
    W = mixing(graph(spec, n), weights=weights, lazy=lazy, algorithm="d2").W
    targets = skewed(n)
    x = d2(W, targets, curvature=1, steps=1500)
    np.testing.assert_allclose(x, np.broadcast_to(targets.mean(axis=0), x.shape), atol=1e-9)


def test_d_psgd_stays_off_the_optimum_on_skewed_data_where_d2_does_not() -> None:
    """Why D2 is worth its condition: D-PSGD's nodes rest where mixing and unlike gradients balance."""
    W, targets = mixing(graph("ring", 5)).W, skewed(5)
    x = np.zeros_like(targets)
    for _ in range(1500):
        x = W @ x - LR * (x - targets)
    assert disagreement(x) > 0.1
    assert disagreement(d2(W, targets, curvature=1, steps=1500)) < 1e-9


@given(
    spec=st.sampled_from(["ring", "exponential", "star", "complete", "hypercube", "random:3", "torus"]),
    n=st.sampled_from([4, 6, 8, 12, 16]),
    part=st.floats(0.1, 1),
)
def test_the_check_tells_apart_where_d2_diverges_without_curvature_and_where_not(
    spec: str, n: int, part: float
) -> None:
    """On any graph, with any weight that its nodes can afford, but for a strip around the limit."""
    assume(spec != "hypercube" or n.bit_count() == 1)
    g = graph(spec, n)
    W = uniform(g, part / max(map(len, g.neighbours)))
    values = np.linalg.eigvalsh(W)
    assume(abs(values[0] - BOUND) > 0.03 and values[-2] < 0.999)
    allowed, reason = check(W, bound=BOUND)
    stays_near = disagreement(d2(W, skewed(n), curvature=0, steps=200)) < 1e4
    assert stays_near == allowed, reason


@pytest.mark.parametrize("a", [0.0, 0.1, 0.5, -0.05])
def test_curvature_moves_the_limit_to_minus_one_over_three_minus_twice_the_step_times_it(a: float) -> None:
    """Positive curvature helps; the negative curvature of networks makes -1/3 itself unstable, hence the margin."""
    limit = -1 / (3 - 2 * a)
    for eigenvalue, stable in ((limit + 0.01, True), (limit - 0.01, False)):
        pair = np.array([[1 + eigenvalue, 1 - eigenvalue], [1 - eigenvalue, 1 + eigenvalue]]) / 2
        targets = np.array([[1.0], [-1.0]])  # no mean, so all that moves is the disagreement
        early, late = (disagreement(d2(pair, targets, curvature=a / LR, steps=steps)) for steps in (200, 400))
        assert (late < early) == stable


def test_on_the_limit_noise_adds_up_for_ever_and_a_lazy_matrix_forgets_it() -> None:
    """Ring of 16 with weights 1/3, lambda_n = -1/3 exactly: the disagreement grows in proportion to the steps."""
    flat = np.zeros((16, 64))
    ring, lazy = mixing(graph("ring", 16)).W, mixing(graph("ring", 16), algorithm="d2").W

    def after(W: Matrix, steps: int) -> float:
        return disagreement(d2(W, flat, curvature=0, steps=steps, noise=1))

    assert 2.5 < after(ring, 8000) / after(ring, 2000) < 6
    assert after(ring, 8000) > 60
    assert after(lazy, 2000) < 6
    assert after(lazy, 8000) < 6


# --- D2 while the step size grows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [1.0, 1.1, 1.5, 2.0])
def test_a_step_size_that_grows_by_r_moves_the_limit_to_minus_one_over_one_plus_two_r(growth: float) -> None:
    """The correction in gradient units (derived here, not the paper's): y = x - lr (g - h), x' = W y, h += (x' - y)/lr.

    One eigenvector without curvature, while lr grows by r in every step.
    """
    limit = -1 / (1 + 2 * growth)
    for eigenvalue, stable in ((limit + 0.01, True), (limit - 0.01, False)):
        x, missing, lr, sizes = 0.0, 1.0, 1.0, []  # missing: g - h
        for _ in range(300):
            y = x - lr * missing
            x = eigenvalue * y
            missing -= (x - y) / lr
            lr *= growth
            sizes.append(math.hypot(x, lr * missing))
        assert (sizes[-1] < sizes[20]) == stable


# --- D2 while the step size falls ---------------------------------------------------------------------------------


def error_of_mean(sizes: Matrix, *, naive: bool) -> float:
    """Root mean square, over the last quarter, of the distance between the nodes' mean and the common optimum, with
    noise in the gradients. `sizes`: (steps,), the step size of each. naive: the paper's recursion with the newest lr
    before both gradients; otherwise the form in gradient units, as in `algorithms/d2.py`."""
    rng, targets, W = np.random.default_rng(0), skewed(5), mixing(graph("ring", 5)).W
    x, h = np.zeros_like(targets), np.zeros_like(targets)
    before = before_g = None
    errors = []
    for lr in sizes:
        g = x - targets + rng.standard_normal(x.shape)
        if not naive:
            y = x - lr * (g - h)
        elif before is None or before_g is None:
            y = x - lr * g
        else:
            y = 2 * x - before - lr * (g - before_g)
        before, before_g, x = x, g, W @ y
        h += (x - y) / lr
        errors.append(np.mean((x - targets).mean(axis=0) ** 2))
    return float(np.mean(errors[-len(errors) // 4 :]) ** 0.5)


def test_a_step_size_that_falls_once_makes_the_naive_form_drift_and_ours_exact() -> None:
    """The naive mean goes on moving by (lr_t - lr_{t-1}) times the mean gradient of that one moment, in every later
    step. In gradient units the mean is that of SGD with the smaller step (derived here, not the paper's)."""
    falling, small = np.repeat([0.1, 0.01], 1000), np.full(2000, 0.01)
    assert error_of_mean(falling, naive=False) < 1.2 * error_of_mean(small, naive=False)
    assert error_of_mean(falling, naive=True) > 5 * error_of_mean(falling, naive=False)


def test_with_a_constant_step_size_the_two_forms_are_one() -> None:
    constant = np.full(500, 0.05)
    assert error_of_mean(constant, naive=True) == pytest.approx(error_of_mean(constant, naive=False), rel=1e-9)


# --- any mixing ---------------------------------------------------------------------------------------------------


def test_nodes_agree_only_if_no_eigenvalue_but_one_has_size_one() -> None:
    """rho = max(|lambda_2|, |lambda_n|) < 1, which D-PSGD and AD-PSGD assume: -1 swaps for ever, 1 never meets."""
    x = skewed(8)
    swapping, apart = uniform(graph("ring", 8), 0.5), np.kron(np.eye(2), np.full((4, 4), 0.25))
    for W, complaint in ((swapping, "lambda_n = -1"), (apart, "not connected")):
        ok, reason = check(W, bound=-1)
        assert not ok
        assert complaint in reason
        assert disagreement(np.linalg.matrix_power(W, 1001) @ x) > 1
    with pytest.raises(TopologyError):
        mixing(graph("ring", 8), weights="uniform:0.5")
    assert disagreement(np.linalg.matrix_power(mixing(graph("ring", 8)).W, 1001) @ x) < 1e-20
