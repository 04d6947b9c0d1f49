"""Adam on M: how far it reaches, that no loss pays for it, and what moves of known size allow."""

from __future__ import annotations

import itertools
from fractions import Fraction as F  # noqa: N817

import numpy as np
import pytest
import sympy as sp

from fop_theory import adam, adaptive, stochastic
from fop_theory.convergence import ORDERS
from tests.helpers import fractions
from tests.strategies import any_seed, number, one_of, problems, smooth_problem, whole
from tests.theory.test_stochastic import PLANES, below, coins, constant, huber_slope, huber_value, norms, tree

each_order = pytest.mark.parametrize("order", ORDERS)


# ---------------------------------------------------------------------------------------
# How far Adam can reach


@pytest.mark.claim("ours-adam-reach", shows="holds", by="exact")
@pytest.mark.parametrize(("beta1", "beta2"), [(adam.BETA1, adam.BETA2), (F(1, 2), F(1, 3)), (F(1, 10), F(99, 100))])
def test_the_reach_is_attained_and_rises(beta1, beta2) -> None:
    """Inputs in proportion to `(beta1/beta2)^age`: the squared direction equals the bound, in fractions."""
    last = F(0)
    for step in (1, 2, 3, 7, 20):
        m = v = fractions([[0]])
        for age in reversed(range(step)):
            m, v = adam.moments(fractions([[(beta1 / beta2) ** age]]), m, v, beta1, beta2)
        attained = (m.item() / (1 - beta1**step)) ** 2 / (v.item() / (1 - beta2**step))
        assert attained == adaptive.squared_reach(step, beta1, beta2)
        assert last < attained < adaptive.squared_reach_limit(beta1, beta2)
        last = attained
    far = adaptive.squared_reach(20_000, float(beta1), float(beta2))
    assert far == pytest.approx(float(adaptive.squared_reach_limit(beta1, beta2)), rel=1e-6)


@pytest.mark.claim("ours-adam-reach", shows="holds", by="property")
@problems(any_seed, whole(1, 60), number(0, 6), number(0.05, 0.95), number(0.05, 0.95), one_of(False, True))
def test_no_sequence_reaches_further(seed, steps, spread, beta1, fraction, usual) -> None:
    """Inputs of any sign over many decades; the usual betas or others."""
    beta2 = beta1**2 + (1 - beta1**2) * fraction
    betas = (0.9, 0.999) if usual else (beta1, beta2)
    rng = np.random.default_rng(seed)
    ps = [p * 10.0 ** rng.uniform(-spread, spread) for p in rng.standard_normal((steps, 3, 1))]
    for step, u in enumerate(adam.adam_directions(ps, *betas), start=1):
        assert np.abs(u).max() <= adaptive.squared_reach(step, *betas) ** 0.5 * (1 + 1e-9)


@pytest.mark.claim("ours-adam-reach", shows="holds", by="symbolic")
def test_why_the_reach_rises() -> None:
    """The logarithm of `1 + x + ... + x^(t-1)` is convex in that of x, more so for larger t.

    Its second derivative is `1/(4 sinh^2(s/2)) - t^2/(4 sinh^2(ts/2))`, and z / sinh z falls.
    """
    s, t, z = sp.symbols("s t z", positive=True)
    second = sp.diff(sp.log((1 - sp.exp(s * t)) / (1 - sp.exp(s))), s, 2)
    stated = 1 / (4 * sp.sinh(s / 2) ** 2) - t**2 / (4 * sp.sinh(t * s / 2) ** 2)
    assert sp.simplify((second - stated).rewrite(sp.exp)) == 0
    # The numerator of the slope of z / sinh z is 0 at 0, and falls from there.
    numerator = sp.simplify(sp.diff(z / sp.sinh(z), z) * sp.sinh(z) ** 2)
    assert sp.simplify((numerator - (sp.sinh(z) - z * sp.cosh(z))).rewrite(sp.exp)) == 0
    assert sp.simplify(sp.diff(sp.sinh(z) - z * sp.cosh(z), z) + z * sp.sinh(z)) == 0
    with pytest.raises(ValueError, match="beta1: expected a number whose square is below beta2"):
        adaptive.squared_reach(3, F(9, 10), F(1, 2))


# ---------------------------------------------------------------------------------------
# The loss pays for nothing


@pytest.mark.claim("ours-adam-no-bound", shows="holds", by="exact")
@each_order
@pytest.mark.parametrize("identity", [0, 1])
def test_m_does_not_see_the_scale_of_the_loss(order, identity) -> None:
    """J times 2^-40 and epsilon times 2^40: the same M and theta to the last bit, noise scaled with J."""
    noise, M = np.random.default_rng(0).standard_normal((30, 3, 2, 1)), np.array([[1.0, 0.3], [0.0, -0.7]])
    runs = []
    for scale in (1.0, 2.0**-40):
        plane = lambda x, s=scale: s * PLANES["cosine"].slope(x)  # noqa: E731
        runs.append(
            list(
                stochastic.learn_in_noise(
                    plane, scale * noise, np.array([[3.0], [-1.0]]), M, constant(0.01 / scale),
                    adaptive.adam_moves(lambda t: 0.1), order, identity,
                )
            )
        )  # fmt: skip
    for one, other in zip(*runs, strict=True):
        assert np.array_equal(one.M, other.M)
        assert np.array_equal(one.theta, other.theta)
    assert norms(one.M - M).min() > 0.5  # M did move
    # With Adam's epsilon, or with plain steps, M does see it.
    for move in (adaptive.adam_moves(lambda t: 0.1, 1e-8), stochastic.plain(lambda t: 0.1)):
        *_, seen = stochastic.learn_in_noise(
            plane, scale * noise, np.array([[3.0], [-1.0]]), M, constant(0.01 / scale), move, order, identity
        )
        assert not np.allclose(seen.M, other.M, rtol=1e-3)


@pytest.mark.claim("ours-adam-no-bound", shows="holds", by="property")
@problems(number(-3, 3), number(-3, 1), number(-6, 6))
def test_the_run_up_on_a_line(size, scale, steepness) -> None:
    """M from FOP's own run on lines of any slope is the same, and grows at least as fast as stated."""
    M, eta, slope = 10.0**size, 10.0 ** (size + scale), 10.0**steepness
    factors = adaptive.run_up(M, eta, 20)
    run = stochastic.learn_in_noise(
        lambda x: 0 * x + slope, np.zeros((21, 1, 1, 1)), np.zeros((1, 1)), np.array([[M]]), constant(0.1),
        adaptive.adam_moves(lambda t: eta), "m-first",
    )  # fmt: skip
    assert np.allclose([step.M.item() for step in run], factors, rtol=1e-9)
    for t, found in enumerate(factors):
        assert found >= adaptive.least_run_up(M, eta, t) * (1 - 1e-12)
    assert adaptive.least_run_up(M, eta, 1) > M + 0.09 * eta


@pytest.mark.claim("ours-adam-no-bound", shows="holds", by="exact")
@pytest.mark.parametrize("slope", [F(1), F(1, 1000)])
def test_the_overshoot_at_the_kink(slope) -> None:
    """In fractions, for lengths of steps that grow: where they end, and the loss there over the first."""
    L, lengths = F(2), [F(1), F(3), F(10), F(40)]
    x = adaptive.cliff_start(lengths, slope)
    first = adaptive.cliff_gap(x, slope, L)
    for length in lengths:
        assert x > 0
        assert adaptive.cliff_slope(x, slope, L) == slope
        x -= length * slope
    assert x == -lengths[-1] * slope / 2
    assert adaptive.cliff_gap(x, slope, L) / first == adaptive.overshoot(lengths, L) > 1
    # Convex, with this gradient, this minimum, and a gradient that is L-Lipschitz.
    y = sp.Symbol("y", negative=True)
    assert sp.expand(adaptive.cliff_gap(-slope / L, slope, L)) == 0
    left = sp.sympify(slope) * y + L * y**2 / 2
    assert sp.expand(sp.diff(left, y) - slope - L * y) == 0
    assert adaptive.cliff_slope(F(-3), slope, L) - adaptive.cliff_slope(F(-1), slope, L) == -2 * L
    assert adaptive.cliff_gap(F(-3), slope, L) == left.subs(y, -3) + slope**2 / (2 * L)


@pytest.mark.claim("ours-adam-no-bound", shows="holds", by="numeric")
@pytest.mark.parametrize("identity", [0, 1])
@pytest.mark.parametrize(("steps", "least"), [(60, 1), (600, 10)])
def test_adam_overshoots_by_any_factor(identity, steps, least) -> None:
    """FOP's own run, gap 1, L = 1, P_0 = 1 or 2, epsilon = 1/10: the loss rises to many times what it was at first."""
    lr, eta = 0.1, 1.0
    lengths = list(lr * (identity + adaptive.run_up(1.0, eta, steps) ** 2))
    slope = 1 / (adaptive.cliff_start(lengths, 1.0) + 0.5) ** 0.5
    start = adaptive.cliff_start(lengths, slope)
    assert adaptive.cliff_gap(start, slope, 1.0) == pytest.approx(1)
    run = stochastic.learn_in_noise(
        lambda x: adaptive.cliff_slope(x, slope, 1.0), np.zeros((steps + 2, 1, 1, 1)), np.array([[start]]), np.eye(1),
        constant(lr), adaptive.adam_moves(lambda t: eta), "m-first", identity,
    )  # fmt: skip
    gaps = [adaptive.cliff_gap(step.theta.item(), slope, 1.0) for step in run]
    assert gaps[-1] == pytest.approx(adaptive.overshoot(lengths, 1.0), rel=1e-6)
    assert gaps[-1] > least
    # The lower bound in the proof, from lengths that rise.
    assert lengths[-1] >= 4
    assert gaps[-1] >= lengths[-1] / (32 * (steps + 1))


# ---------------------------------------------------------------------------------------
# What moves of known size allow


def any_moves(rng: np.random.Generator, sizes: np.ndarray):
    """Moves of M that nothing decides but chance, each entry by at most so much."""
    return lambda t, hypergradient: sizes[t] * rng.uniform(-1, 1, hypergradient.shape)


@pytest.mark.claim("ours-theorem-1e", shows="holds", by="property")
@problems(smooth_problem, any_seed, number(-2, 2), number(0.05, 1), one_of(*ORDERS), one_of(False, True))
def test_theorem_1e_without_noise(problem, seed, scale, share, order, with_adam) -> None:
    """Adam's moves, or any others of the same size: |P|, the slopes' sum, and the loss that never rises."""
    f, theta = problem
    rng, steps, k = np.random.default_rng(seed), 12, 2
    M = rng.standard_normal((f.dim, k))
    sizes = 10.0**scale / np.sqrt(1 + np.arange(steps))
    reach = float(adaptive.squared_reach_limit()) ** 0.5 if with_adam else 1.0
    move = adaptive.adam_moves(lambda t: sizes[t], 1e-30) if with_adam else any_moves(rng, sizes)
    total = np.concatenate([[0], np.cumsum(sizes[1:])])  # of the updates before and at each step
    high = [adaptive.high_limit(np.linalg.norm(M), f.dim * k, reach, x, 1) for x in total]
    slope = lambda batch: np.stack([f.gradient(x) for x in batch])  # noqa: E731
    run = list(
        stochastic.learn_in_noise(
            slope,
            np.zeros((steps, 1, f.dim, 1)),
            theta,
            M,
            lambda t, T: share / (f.smoothness * high[t]),
            move,
            order,
            1,
        )
    )
    losses = [f.value(step.theta[0]) for step in run]
    rounding = 1e-11 * (1 + max(map(abs, losses)) + f.smoothness * max(norms(step.theta).item() ** 2 for step in run))
    assert all(norms(step.M).item() ** 2 + 1 <= bound * (1 + 1e-9) for step, bound in zip(run, high, strict=True))
    assert all(after <= before + rounding for before, after in itertools.pairwise(losses))
    found = sum(norms(step.slope).item() ** 2 / bound for step, bound in zip(run, high, strict=True))
    limit = adaptive.weighted_slopes(losses[0] - f.minimum, f.smoothness, share)
    assert found <= limit + f.smoothness * rounding / share


@pytest.mark.claim("ours-theorem-1e", shows="holds", by="exact")
@pytest.mark.parametrize("share", [F(1), F(1, 3)])
def test_theorem_1e_is_attained(share) -> None:
    """P = I, a parabola of curvature L: the sum of all squared slopes is the bound. So is one noisy step."""
    L, x = F(3), F(2)
    whole = L**2 * x**2 / (1 - (1 - share) ** 2)
    assert whole == adaptive.weighted_slopes(L * x**2 / 2, L, share)
    M, lr, s = fractions([[0]]), share / 2, F(1, 3)
    run = stochastic.learn_in_noise(
        huber_slope,
        coins(2, s),
        fractions([[0]]),
        M,
        constant(lr),
        lambda t, hypergradient: 0 * hypergradient,
        "paper",
        1,
    )
    *_, last = run
    bound = adaptive.weighted_slopes_in_noise(0, 1, s**2, lr**2 * adaptive.high_limit(F(0), F(1), 1, F(0), 1) ** 2)
    assert 2 * np.mean(huber_value(last.theta)) == bound


@pytest.mark.claim("ours-theorem-1e", shows="holds", by="exact")
def test_theorem_1e_in_noise() -> None:
    """All sequences of five coins and a sign step on M, in fractions: slopes and the loss that is left."""
    lrs, eta, M, s = [F(1, 4), F(1, 8), F(1, 8), F(1, 16), F(1, 20)], F(1, 4), fractions([[F(1, 2), F(-1, 2)]]), F(1)
    signs = lambda t, slope: -eta * ((slope > 0).astype(int) - (slope < 0).astype(int))  # noqa: E731
    run = stochastic.learn_in_noise(
        huber_slope, coins(5, s), fractions([[2]]), M, lambda t, T: lrs[t] + 0 * T, signs, "paper", 1
    )
    total, squares = F(0), F(0)
    norm = F(7072, 10_000)  # a little above |M_0|_F = sqrt(1/2)
    for t, step in enumerate(run):
        left = np.mean(huber_value(step.theta))
        assert total + 2 * left <= adaptive.weighted_slopes_in_noise(F(3, 2), 1, s**2, squares)
        # sqrt(2) entries, from above; Algorithm 1's order has made t - 1 updates before step t.
        high = adaptive.high_limit(norm, F(20_000, 9_999) ** 2 / 2, 1, eta * max(t - 1, 0), 1)
        assert (1 + stochastic.squared(step.M)).max() <= high
        assert lrs[t] * high <= 1
        total += lrs[t] * np.mean(stochastic.squared(step.slope))
        squares += lrs[t] ** 2 * high**2


@pytest.mark.claim("ours-theorem-1e", shows="holds", by="numeric")
def test_runs_of_theorem_1e() -> None:
    """Adam on M in noise, with rates as in the theorem: every run within its bound on |P|, and the slopes fall."""
    plane, steps, runs = PLANES["cosine"], 1_000, 40
    noise = np.random.default_rng(7).standard_normal((steps, runs, 2, 1)) / 2
    etas, lrs = 0.05 / (1 + np.arange(steps)), 0.25 / (1 + np.arange(steps)) ** 0.7
    reach = float(adaptive.squared_reach_limit()) ** 0.5
    totals = np.concatenate([[0], np.cumsum(etas[1:])])
    slopes = []
    for step, total in zip(
        stochastic.learn_in_noise(
            plane.slope, noise, np.array([[3.0], [-1.0]]), np.eye(2), lambda t, T: lrs[t],
            adaptive.adam_moves(lambda t: etas[t]), "paper", 1,
        ),
        totals, strict=True,
    ):  # fmt: skip
        high = adaptive.high_limit(2**0.5, 4, reach, total, 1)
        assert (1 + norms(step.M) ** 2 <= high).all()
        assert step.lr * plane.smoothness * high <= 1
        slopes.append(norms(step.slope))
    assert norms(step.M - np.eye(2)).min() > 0.03
    assert np.median(slopes[-100:]) < 0.2 * np.median(slopes[0])


@pytest.mark.claim("ours-adam-constant-rate", shows="undecided", by="numeric")
@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_a_constant_rate_with_shortened_steps(eta) -> None:
    """Forty drawn quadratics, without noise: the slopes still fall late in the run. It decides nothing."""
    rng = np.random.default_rng(8)
    steps, runs, n = 600, 40, 3
    turned = np.linalg.qr(rng.standard_normal((runs, n, n)))[0]
    curvatures = 10.0 ** rng.uniform(-1, 0, (runs, n, 1))
    H = (turned * curvatures.mT) @ turned.mT
    L = curvatures.max(1, keepdims=True)
    slopes = [
        norms(step.slope)
        for step in stochastic.learn_in_noise(
            lambda x: H @ x, np.zeros((steps, runs, n, 1)), 10 * np.ones((n, 1)), np.eye(n), lambda t, T: 1 / (L * T),
            adaptive.adam_moves(lambda t: eta, 1e-300), "m-first", 1,
        )
    ]  # fmt: skip
    least = np.minimum.accumulate(slopes, axis=0)
    assert (least[-1] < 0.9 * least[steps // 3]).all()


@pytest.mark.claim("ours-theorem-1e", shows="holds", by="property")
@problems(tree, number(-3, 0))
def test_no_history_breaks_theorem_1e(tree, scale) -> None:
    """Adam on M, noise that depends on all that was before, rates as long as the theorem allows."""
    tree = tree._replace(order="paper", identity=1)
    f, eta = tree.plane, 10.0**scale
    reach = float(adaptive.squared_reach_limit()) ** 0.5
    # In Algorithm 1's order the first update comes after the second step.
    high = [
        adaptive.high_limit(np.linalg.norm(tree.M), tree.M.size, reach, eta * max(t - 1, 0), 1)
        for t in range(len(tree.lrs))
    ]
    lrs, total, squares = [1 / (f.smoothness * bound) for bound in high], 0.0, 0.0
    variance = float(stochastic.squared(tree.noise.reshape(-1, *tree.theta.shape)).max())
    for t, (step, *_) in enumerate(tree.run(lambda t, T: lrs[t], adaptive.adam_moves(lambda t: eta, 1e-300))):
        left = float(f.value(step.theta).mean())
        assert below(total + 2 * left, adaptive.weighted_slopes_in_noise(tree.gap, f.smoothness, variance, squares))
        assert (1 + norms(step.M) ** 2 <= high[t] * (1 + 1e-9)).all()
        total += lrs[t] * float(stochastic.squared(step.slope).mean())
        squares += (lrs[t] * high[t]) ** 2
