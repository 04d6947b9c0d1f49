"""Theorem 1B under noise: constant rates fail, falling rates and shortened steps do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction as F  # noqa: N817
from typing import Any, NamedTuple

import numpy as np
import pytest
import sympy as sp

from fop_theory import convergence, stochastic
from fop_theory.convergence import ORDERS
from fop_theory.structure import multiplier
from tests.helpers import column, fractions, interval
from tests.strategies import any_seed, factor, gradient_pair, number, one_of, problems, smooth_problem

each_order = pytest.mark.parametrize("order", ORDERS)
each_form = pytest.mark.parametrize("identity", [0, 1])


def coins(steps: int, *sizes: Any) -> np.ndarray:
    """All sequences of signs, one coin for each coordinate: `[steps, runs, n, 1]`, with these sizes."""
    n = len(sizes)
    sequences = list(itertools.product((F(1), F(-1)), repeat=steps * n))
    signs = np.array(sequences, dtype=object).reshape(len(sequences), steps, n, 1)
    return np.moveaxis(signs, 1, 0) * column(*sizes)


def constant(lr: Any) -> Callable[[int, Any], Any]:
    return lambda t, trace: lr


def huber_slope(theta: Any) -> Any:
    return np.minimum(1, np.maximum(-1, theta))


def huber_value(theta: Any) -> Any:
    """Of each run, `[runs, 1, 1]`; exact on fractions."""
    inner = huber_slope(theta)
    return (inner * theta - inner * inner / 2).sum(1, keepdims=True)


def norms(X: Any) -> np.ndarray:
    """Largest singular value of each run, as floats."""
    return np.linalg.norm(np.asarray(X, dtype=float), 2, axis=(1, 2))


@problems(one_of(*ORDERS), smooth_problem, any_seed)
def test_without_noise_the_batch_is_the_single_run(order, problem, seed) -> None:
    """One run of many is what `convergence.learn` does, in both orders."""
    f, theta = problem
    rng = np.random.default_rng(seed)
    M, identity = rng.standard_normal((f.dim, 2)), int(rng.integers(2))
    lr, rho = 0.1 / f.smoothness, 10.0 ** rng.uniform(-3, -1)
    single = convergence.learn(f.gradient, theta, M, rho * lr, lambda *_: lr, 4, order, identity)
    slope = lambda batch: np.stack([f.gradient(x) for x in batch])  # noqa: E731
    many = stochastic.learn_in_noise(
        slope, np.zeros((4, 2, f.dim, 1)), theta, M, constant(lr), stochastic.plain(lambda t: rho), order, identity
    )
    for one, batch in zip(single, many, strict=True):
        for x, y in ((one.theta, batch.theta), (one.gradient, batch.gradient), (one.M, batch.M)):
            assert np.allclose(y, x, rtol=1e-9, atol=1e-12 * (1 + np.abs(x).max()))


# ---------------------------------------------------------------------------------------
# Constant rates fail


@pytest.mark.claim("ours-noise-stops", shows="holds", by="exact")
def test_the_moments_of_coin_noise() -> None:
    """All sequences of six coins: the mean of |M|, and of the logarithm, from the formulas."""
    a, slope, noise = F(1, 400), F(1), F(10)
    runs = list(
        stochastic.learn_in_noise(
            lambda x: 0 * x + slope, coins(6, noise), column(0), column(1), constant(a), stochastic.plain(lambda t: 1),
            "m-first",
        )
    )  # fmt: skip
    Q = stochastic.moment_matrix(slope, noise, a, 1)
    moment = fractions([[1], [1]])
    for step in runs:
        assert np.mean(abs(step.M)) == moment.sum() / 2
        moment = Q @ moment
    grown = np.log(np.abs(runs[-1].M.astype(float))).mean() / 5
    assert grown == pytest.approx(stochastic.growth_exponent([slope + noise, slope - noise], [0.5, 0.5], a), rel=1e-12)
    # The four factors: M falls almost surely if their product is below one, although its mean rises.
    product = np.prod(2 * Q)
    assert product < 1 < float(np.linalg.eigvals(Q.astype(float)).max())


@pytest.mark.claim("ours-noise-stops", shows="holds", by="symbolic")
def test_pure_coin_noise_lowers_the_root_of_m() -> None:
    """`(sqrt(1 + x) + sqrt(1 - x))^2 = 2 + 2 sqrt(1 - x^2) < 4` for 0 < x <= 1; a small slope changes little."""
    x = sp.Symbol("x", positive=True)
    mean = (sp.sqrt(1 + x) + sp.sqrt(1 - x)) / 2
    assert sp.simplify(mean**2 - (1 + sp.sqrt(1 - x**2)) / 2) == 0
    # With x = 2 a s^2 this is the one eigenvalue of the moments' matrix that is not zero for slope 0.
    for rate in (0.5, 0.1, 1e-3):
        Q = stochastic.moment_matrix(0.0, 1.0, rate, 0.5)
        assert sorted(np.linalg.eigvals(Q))[1] == pytest.approx(float(mean.subs(x, 2 * rate)), rel=1e-12)
        assert stochastic.moment_sum(1e-6, 1.0, rate, 0.5) < 1.1 / (1 - float(mean.subs(x, 2 * rate)))
    with pytest.raises(ValueError, match="power: expected one whose moments fall"):
        stochastic.moment_sum(0.0, 1.0, 0.1, 2)


@pytest.mark.claim("ours-noise-stops", shows="holds", by="numeric")
def test_the_chance_of_being_stuck_from_its_parts() -> None:
    """The sum of moments against all sequences of twelve coins, and what Markov's inequality makes of it."""
    a, slope = 0.45, 0.01
    noise = coins(12, F(1)).astype(float)
    run = stochastic.learn_in_noise(
        lambda x: 0 * x + slope,
        noise,
        np.zeros((1, 1)),
        np.eye(1),
        constant(a),
        stochastic.plain(lambda t: 1.0),
        "m-first",
    )
    parts = [np.sqrt(np.abs(step.M)).mean() for step in run]
    total = stochastic.moment_sum(slope, 1.0, a, 0.5)
    assert sum(parts) < total < sum(parts) + 2 * parts[-1] / (1 - parts[-1] / parts[-2])
    path = slope * 1e-3 * 1.01 * 4.0 / 0.5  # what of the drop a path of length P_0 makes
    assert stochastic.stuck_chance(slope, 1.0, a, 1e-3, 4.0, 0.5) == pytest.approx(1 - path**0.25 * (1 + total))


@pytest.mark.claim("ours-noise-stops", shows="holds", by="numeric")
@each_order
def test_runs_that_stop_on_the_slope(order) -> None:
    """L = 1, gap 1, P_0 = 1, epsilon = 1/10 as Theorem 1B would allow: nearly all runs keep nearly all of the loss."""
    mu, lr, a, runs, steps = 1e-9, 0.1, 0.25, 2_000, 300
    start = 1 / mu + mu / 2
    noise = np.random.default_rng(0).choice([-1.0, 1.0], (steps, runs, 1, 1))
    slope = lambda x: np.clip(x, -mu, mu)  # noqa: E731
    *_, last = stochastic.learn_in_noise(
        slope, noise, np.array([[start]]), np.eye(1), constant(lr), stochastic.plain(lambda t: a / lr), order
    )
    left = mu * last.theta - mu**2 / 2
    chance = stochastic.stuck_chance(mu, 1.0, a, lr, 1.0, 0.1)
    assert 0.8 < chance <= (left > 0.9).mean()
    assert np.quantile(last.M**2, 0.99) < 1e-6
    # The same noise without learning: the loss is gone, but for the noise.
    frozen = 1.0
    for xi in noise[:, 0, 0, 0]:
        frozen -= lr * (mu + xi)
    assert abs(frozen) < 100
    assert stochastic.growth_exponent([mu + 1, mu - 1], [0.5, 0.5], a) < 0


@pytest.mark.claim("ours-noise-explodes", shows="holds", by="property")
@problems(number(-3, 3), number(0.05, 0.5), any_seed)
def test_what_an_update_multiplies_m_by_at_the_least(scale, chance, seed) -> None:
    """Two kicks in a row, of equal or of opposite sign, and all other pairs: each logarithm of the bound."""
    rng = np.random.default_rng(seed)
    a, kick = 10.0**scale, np.sqrt(10.0**-scale)  # so that 4 a^2 kick^4 = 4
    slope = 1e-3 * kick * rng.random()
    one, other = rng.uniform(-slope, slope, 2)
    same = np.log(np.abs(1 + 2 * a * (kick + one) * (kick + other)))
    turned = np.log(np.abs(1 + 2 * a * (kick + one) * (other - kick)))
    both = 2 * stochastic.explosive_growth(slope, kick, 0.5, a)  # every pair is one of kicks
    assert same + turned >= both - 1e-12
    calm = min(np.log(1 + 2 * a * x * y) for x in (one, other) for y in (one, other, kick + one, other - kick))
    bound = stochastic.explosive_growth(slope, kick, chance, a)
    assert 4 * chance**2 * (same + turned) / 2 + (1 - 4 * chance**2) * calm >= bound - 1e-12
    assert bound > 0


@pytest.mark.claim("ours-noise-explodes", shows="holds", by="exact")
@pytest.mark.parametrize("rate", [F(1), F(1, 10), F(1, 1000)])
def test_rare_kicks_serve_for_every_rate(rate) -> None:
    """Variance 1 and any a: kicks with `a kick^2 = 1`, of chance a/2 each; the bound at slope 0."""
    kick, chance = float(1 / rate) ** 0.5, rate / 2
    assert 2 * chance / rate == 1  # the variance, 2 chance kick^2
    assert stochastic.explosive_growth(0, kick, chance, rate) == pytest.approx(2 * float(chance) ** 2 * np.log(3))
    assert stochastic.explosive_growth(1e-6, kick, chance, rate) > 0
    # M is multiplied by 3 or by -1, never by less than 1 in size.
    assert [abs(1 + 2 * rate * sign / rate) for sign in (1, -1)] == [3, 1]
    with pytest.raises(ValueError, match="slope: expected a number so small"):
        stochastic.explosive_growth(kick, kick, chance, rate)


@pytest.mark.claim("ours-noise-explodes", shows="holds", by="numeric")
@each_order
@each_form
def test_runs_that_explode(order, identity) -> None:
    """Huber's loss, slope at most 1/1000, started at the minimum: log|M| grows as the bound says, steps follow P."""
    mu, rate, chance, runs, steps = 1e-3, 1.0, 0.25, 400, 400
    kick = 1.1
    noise = np.random.default_rng(1).choice([-kick, 0.0, kick], (steps, runs, 1, 1), p=[chance, 1 - 2 * chance, chance])
    lr = 1e-3
    *_, last = stochastic.learn_in_noise(
        lambda x: np.clip(x, -mu, mu), noise, np.zeros((1, 1)), np.eye(1), constant(lr),
        stochastic.plain(lambda t: rate / lr), order, identity,
    )  # fmt: skip
    updates = steps - 1 if order == "m-first" else steps - 2
    grown = np.log(np.abs(last.M[:, 0, 0])) / updates
    low, high = interval(grown)
    bound = stochastic.explosive_growth(mu, kick, chance, rate)
    expected = stochastic.growth_exponent([-kick, 0.0, kick], [chance, 1 - 2 * chance, chance], rate)
    assert low < expected < high
    assert 0.8 * expected < bound < high
    assert (last.M**2).min() > 1e6
    assert np.abs(last.theta).min() > 1e3


# ---------------------------------------------------------------------------------------
# One update


@pytest.mark.claim("ours-theorem-1c", shows="holds", by="symbolic")
@pytest.mark.claim("ours-theorem-1d", shows="holds", by="symbolic")
def test_the_least_constant_per_product() -> None:
    """At the kink both sides are equal: `factor (u + u^2) = cap = c u`. Before it the curve is convex, then level."""
    cap, factor = sp.symbols("C f", positive=True)
    c = stochastic.per_product(cap, factor)
    u = cap / c
    assert sp.simplify(factor * (u + u**2) - cap) == 0
    assert stochastic.per_product(sp.Integer(2), sp.Integer(4)) == 2 + 2 * sp.sqrt(3)
    known = (
        (stochastic.SEEN, 2 + 2 * 3**0.5),
        (stochastic.SCALED, 2 + 2 * 2**0.5),
        (stochastic.SHORTENED, 4 + 24**0.5),
    )
    for found, expected in known:
        assert found == pytest.approx(expected, rel=1e-12)


def updates(chance):
    """M, a, g, h, and M after the update: products a |g| |h| from tiny to huge."""
    g, h = gradient_pair(chance, max_columns=1)
    M = factor(chance, len(g))
    a = 10.0 ** chance.number(-3, 1) / max(np.linalg.norm(g) * np.linalg.norm(h), 1e-300)
    return M, a, g, h, multiplier(g, h, a) @ M


@pytest.mark.claim("ours-theorem-1c", shows="holds", by="property")
@pytest.mark.claim("ours-theorem-1d", shows="holds", by="property")
@problems(updates, one_of(0, 1), number(-1, 1))
def test_how_much_an_update_changes(update, identity, scale) -> None:
    """P, |M|, T, the factor that shortens, P times that factor, the determinant: all against u = a |g| |h|."""
    M, a, g, h, turned = update
    u, dot = a * float(np.linalg.norm(g) * np.linalg.norm(h)), a * float((g * h).sum())
    before, after = (identity * np.eye(len(g)) + x @ x.T for x in (M, turned))
    size, rounding = float(np.linalg.norm(M, 2)), 1e-9 * (1 + u) ** 2
    assert np.linalg.norm(turned, 2) <= (1 + 2 * u) * size * (1 + 1e-9)
    assert np.linalg.norm(after - before, 2) <= (4 * (u + u * u) + rounding) * size**2
    traces = [identity + float((x * x).sum()) for x in (M, turned)]
    assert abs(traces[1] - traces[0]) <= (4 * (u + u * u) + rounding) * traces[0]
    first = traces[0] * 10.0**scale
    short = [float(stochastic.shortened(1.0, T, first)) for T in traces]
    assert abs(short[1] - short[0]) <= stochastic.SCALED * u + rounding
    scaled = np.linalg.norm(short[1] * after - short[0] * before, 2)
    assert scaled <= (stochastic.SHORTENED * u + rounding) * first
    learned = np.linalg.norm(short[1] * turned @ turned.T - short[0] * M @ M.T, 2)  # without the identity
    assert learned <= (stochastic.SHORTENED * u + rounding) * first
    if u <= 0.25:
        log = np.linalg.slogdet(multiplier(g, h, a))
        assert log[0] > 0
        assert log[1] >= stochastic.log_determinant_floor(dot, u) - 1e-9


@pytest.mark.claim("ours-theorem-1d", shows="holds", by="symbolic")
def test_the_floor_of_the_determinant_is_least_at_the_ends() -> None:
    """`log((1 + x)^2 - u^2) - 2x` rises and then falls, so x = -u and x = u decide; for u <= 1/4."""
    x, u = sp.symbols("x u", real=True)
    slope = sp.diff(sp.log((1 + x) ** 2 - u**2) - 2 * x, x)
    assert sp.simplify(slope * ((1 + x) ** 2 - u**2) - 2 * (u**2 - x - x**2)) == 0  # a falling function of x >= -1/2
    for end in (-u, u):
        left = sp.log(sp.factor((1 + end) ** 2 - u**2)) - stochastic.log_determinant_floor(end, u)
        # Zero with zero slope at u = 0 and, at u = 1/4, positive; in between the slope keeps its sign.
        assert left.subs(u, 0) == 0
        assert left.subs(u, F(1, 4)) > 0
        derivative = sp.factor(sp.diff(left, u))
        assert all(not 0 < root < F(1, 4) for root in sp.solve(sp.numer(derivative), u))


# ---------------------------------------------------------------------------------------
# Theorem 1C: rates whose products can be summed


@pytest.mark.claim("ours-theorem-1c", shows="holds", by="numeric")
@each_order
def test_the_norm_of_m_in_the_mean(order) -> None:
    """The mean of the largest `log(|M_t|/|M_0|)` in noise; without noise and for small a the bound is attained."""
    rng = np.random.default_rng(2)
    n, steps, runs = 3, 60, 300
    rates = 0.3 / (1 + np.arange(steps)) ** 1.5
    M = rng.standard_normal((n, 2))
    noise = rng.standard_normal((steps, runs, n, 1)) / np.sqrt(n)
    slope = lambda x: np.sin(x) / np.sqrt(n)  # noqa: E731
    move = stochastic.plain(lambda t: float(rates[t]))
    run = stochastic.learn_in_noise(slope, noise, np.ones((n, 1)), M, constant(1.0), move, order, 1)
    grown = np.max([np.log(norms(step.M) / np.linalg.norm(M, 2)) for step in run], axis=0)
    assert interval(grown)[1] < stochastic.log_norm_in_mean(2.0, rates.sum())
    line = stochastic.learn_in_noise(
        lambda x: 0 * x + 2.0, np.zeros((200, 1, 1, 1)), np.zeros((1, 1)), np.eye(1), constant(1.0),
        stochastic.plain(lambda t: 1e-4), order,
    )  # fmt: skip
    *_, last = line
    updates = 199 if order == "m-first" else 198
    bound = stochastic.log_norm_in_mean(4.0, updates * 1e-4)
    assert 0.999 * bound < np.log(last.M.item()) < bound


class Met(NamedTuple):
    """What is known after some steps, over all sequences of coins: exact means, and G^2 of the points met so far."""

    squares: Any
    pairs: Any
    trace: Any
    gap: Any
    highest: Any
    slopes: Any
    left: Any
    second_moment: Any


def settle(order, identity, rho, lrs, theta, M, sizes, shorten=False, limit=None) -> list[Met]:
    """Huber's loss and coins, in fractions, before each step.

    `slopes` sums `epsilon grad J^T P grad J`; M first takes P and the factor that shortens from before the update.
    With a limit, a run counts while no P that made a step, nor the one that the sum takes, has exceeded that.
    """
    start = identity + (M * M).sum()
    length = lambda t, T: stochastic.shortened(lrs[t], T, start) if shorten else lrs[t] + 0 * T  # noqa: E731
    noise = coins(len(lrs), *sizes)
    run = stochastic.learn_in_noise(
        huber_slope, noise, theta, M, length, stochastic.plain(lambda t: rho), order, identity
    )
    found, on, total, G, highest, squares, pairs = [], F(1), F(0), F(0), start, F(0), F(0)
    used = np.broadcast_to(M, (noise.shape[1], *M.shape))
    for t, step in enumerate(run):
        G = max(G, stochastic.squared(step.slope).max() + sum(x * x for x in sizes))
        highest = np.maximum(highest, T := identity + stochastic.squared(step.M))
        gap = huber_value(step.theta)
        found.append(Met(squares, pairs, np.mean(T), np.mean(gap), highest, np.mean(total), np.mean(on * gap), G))
        kept = on if limit is None else on * (limit >= T)
        used, on = (step.M, kept) if order == "paper" else (used, on)
        work = identity * stochastic.squared(step.slope) + stochastic.squared(used.mT @ step.slope)
        total = total + on * length(t, identity + stochastic.squared(used)) * work
        used, on, squares, pairs = step.M, kept, squares + lrs[t] ** 2, pairs + (rho * lrs[t] * lrs[t - 1] if t else 0)
    return found


RATES = [F(1, 4), F(1, 5), F(1, 2), F(1, 3), F(1, 3)]


@pytest.mark.claim("ours-theorem-1c", shows="holds", by="exact")
@each_order
@each_form
@pytest.mark.parametrize("rho", [F(1, 50), F(1, 2)])
def test_the_slopes_until_p_is_large(order, identity, rho) -> None:
    """All sequences of five coins: slopes, and the loss that is left, of the runs that keep to the limit."""
    M, limit = fractions([[1, F(1, 2)]]), F(5, 2)
    for met in settle(order, identity, rho, RATES, column(2), M, [F(1)], limit=limit):
        pairs = float(met.pairs) if order == "m-first" else 0.0
        bound = stochastic.slopes_until(F(3, 2), 1, met.second_moment, limit, met.squares, pairs)
        assert float(met.slopes + met.left) <= bound * (1 + 1e-12)
    if rho == F(1, 2):
        assert (met.highest > limit).any()
        assert not (met.highest > limit).all()
    # From the minimum, with the limit at P itself, one step attains the bound, for both orders.
    one = settle(order, identity, F(0), RATES, column(0), M, [F(1)])[1]
    P = identity + F(5, 4)
    assert one.slopes + one.left == stochastic.slopes_until(0, 1, F(1), P, one.squares, F(0))


def falling(steps: int, power: float) -> np.ndarray:
    return 1 / (1 + np.arange(steps)) ** power


class Plane(NamedTuple):
    """A loss of two coordinates with a bounded slope: its gradient, itself, L, and |grad J| at most."""

    slope: Callable[[Any], Any]
    value: Callable[[Any], Any]
    smoothness: float
    steepest: float


A = np.array([[1.0, 0.5], [-0.2, 0.6]])
PLANES = {
    "Huber": Plane(
        lambda x: A.T @ huber_slope(A @ x), lambda x: huber_value(A @ x),
        np.linalg.norm(A, 2) ** 2, np.sqrt(2) * np.linalg.norm(A, 2),
    ),
    "cosine": Plane(
        lambda x: A.T @ np.sin(A @ x), lambda x: (1 - np.cos(A @ x)).sum(1, keepdims=True),
        np.linalg.norm(A, 2) ** 2, np.sqrt(2) * np.linalg.norm(A, 2),
    ),
}  # fmt: skip
each_case = pytest.mark.parametrize(("plane", "identity"), [(PLANES["Huber"], 0), (PLANES["cosine"], 1)], ids=PLANES)


@pytest.mark.claim("ours-theorem-1c", shows="holds", by="numeric")
@each_order
@each_case
def test_runs_of_theorem_1c(order, plane, identity) -> None:
    """A thousand noisy steps of 40 runs: M comes to rest, and the slope falls to a small part of the first."""
    steps, runs = 1_000, 40
    noise = np.random.default_rng(3).standard_normal((steps, runs, 2, 1)) / 2
    lrs = falling(steps, 0.7)
    slopes, factors_met = [], []
    for step in stochastic.learn_in_noise(
        plane.slope, noise, np.array([[3.0], [-1.0]]), np.eye(2), lambda t, T: lrs[t],
        stochastic.plain(lambda t: float(falling(t + 1, 0.5)[-1])), order, identity,
    ):  # fmt: skip
        slopes.append(norms(step.slope))
        factors_met.append(step.M)
    moved = [norms(factors_met[end] - factors_met[begin]) for begin, end in ((0, 100), (500, 999))]
    assert np.median(moved[1]) < 0.1 * np.median(moved[0])
    assert np.median(slopes[-100:]) < 0.1 * np.median(slopes[:1])


# ---------------------------------------------------------------------------------------
# Theorem 1D: constant rho, M first


@pytest.mark.claim("ours-theorem-1d", shows="holds", by="property")
@problems(smooth_problem, any_seed, number(-2, 1))
def test_work_on_a_smooth_loss(problem, seed, scale) -> None:
    """For any two points of any smooth loss, convex or not."""
    f, theta = problem
    after = theta + np.random.default_rng(seed).standard_normal(theta.shape) * 10.0**scale
    drop, moved = f.value(theta) - f.value(after), theta - after
    limit = stochastic.work_limit(drop, float((moved * moved).sum()), f.smoothness)
    size = 1 + abs(f.value(theta)) + abs(f.value(after))
    assert float((f.gradient(after) * moved).sum()) <= limit + 1e-11 * size
    # Attained where the curvature is -L.
    assert -F(3) * (F(5) - F(3)) == stochastic.work_limit((F(3) ** 2 - F(5) ** 2) / 2, F(2) ** 2, 1)


@pytest.mark.claim("ours-theorem-1d", shows="holds", by="exact")
@each_order
@each_form
@pytest.mark.parametrize("rho", [F(1, 100), F(1, 2), F(4)])
@pytest.mark.parametrize(("theta", "M", "sizes"), [
    (column(3), fractions([[1, F(1, 2)]]), [F(1)]),
    (column(0), fractions([[1]]), [F(3)]),
    (column(2, F(1, 2)), fractions([[1, 0], [F(1, 2), 1]]), [F(1), F(1, 2)]),
])  # fmt: skip
def test_the_account_in_noise(order, identity, rho, theta, M, sizes) -> None:
    """All sequences of coins, five of one and three of two coordinates: the trace with the loss, and the slopes."""
    trace, gap = identity + (M * M).sum(), huber_value(theta[None]).item()
    lrs = RATES if order == "m-first" else sorted(RATES, reverse=True)
    found = settle(order, identity, rho, lrs if len(theta) == 1 else lrs[:3], theta, M, sizes, shorten=True)
    for met in found:
        G, squares = float(met.second_moment), float(met.squares)
        slopes = stochastic.slopes_in_mean(float(gap), 1, float(rho), G, float(trace), squares, order)
        assert float(met.slopes + met.left) <= slopes * (1 + 1e-12)
    # Algorithm 1's order updates after the step: the trace of the next step goes with the loss of this one.
    for met, later in zip(found, found if order == "m-first" else found[1:], strict=False):
        G, squares = later.second_moment, later.squares
        bound = stochastic.trace_in_mean(trace, gap, 1, rho, G, identity, squares, order)
        assert later.trace + 4 * rho * met.gap <= bound


@pytest.mark.claim("ours-theorem-1d", shows="holds", by="exact")
def test_the_account_is_attained() -> None:
    """Each term of the bounds without the identity: pure noise, curvature -L, and the loss of one noisy step."""
    lr, rho, s = F(1, 1000), F(3), F(2)
    for bend in (F(0), F(-1)):
        run = list(
            stochastic.learn_in_noise(
                lambda x, bend=bend: bend * x, coins(2, s), column(0), column(F(3, 2)), constant(lr),
                stochastic.plain(lambda t: rho), "m-first",
            )
        )  # fmt: skip
        grown = np.mean(stochastic.squared(run[1].M)) + 4 * rho * np.mean(bend * run[1].theta ** 2 / 2) - F(9, 4)
        bound = stochastic.trace_in_mean(F(9, 4), 0, abs(bend), rho, s * s, 0, lr**2, "m-first") - F(9, 4)
        # With a curvature, the slope after the step is not zero: its square is of order lr^2.
        assert grown == bound if bend == 0 else F(999, 1000) * bound < grown < F(1001, 1000) * bound
    for order in ORDERS:
        one = settle(order, 0, F(0), [lr, lr], column(0), column(F(3, 2)), [s], shorten=True)[1]
        bound = stochastic.slopes_in_mean(0.0, 1, 0.0, float(s * s), 2.25, float(lr) ** 2, order)
        assert float(one.slopes + one.left) == pytest.approx(bound, rel=1e-12)
    assert stochastic.shortened(lr, F(9), F(3)) == lr / 3
    assert stochastic.shortened(lr, F(3), F(9)) == lr


@pytest.mark.claim("ours-theorem-1d", shows="holds", by="numeric")
@each_order
@each_case
def test_runs_of_theorem_1d(order, plane, identity) -> None:
    """Steps shortened by the trace, rho constant: the mean trace at all times, and the slope at the end."""
    steps, runs, rho, start = 1_000, 40, 0.3, np.array([[3.0], [-1.0]])
    noise = np.random.default_rng(4).standard_normal((steps, runs, 2, 1)) / 2
    trace, gap = identity + 2.0, plane.value(start[None]).item()
    lrs = falling(steps, 0.6) / trace
    slopes, traces = [], []
    for step in stochastic.learn_in_noise(
        plane.slope, noise, start, np.eye(2), lambda t, T: stochastic.shortened(lrs[t], T, trace),
        stochastic.plain(lambda t: rho), order, identity,
    ):  # fmt: skip
        slopes.append(norms(step.slope))
        traces.append(identity + stochastic.squared(step.M).ravel())
    G = plane.steepest**2 + 0.5
    squares = np.concatenate([[0], np.cumsum(lrs**2)[:-1]])
    bound = stochastic.trace_in_mean(trace, gap, plane.smoothness, rho, G, identity, squares, order)
    means = np.mean(traces, axis=1)
    assert (means <= bound * (1 + 1e-12)).all()
    assert means.max() > 1.01 * trace  # P did learn
    assert np.median(slopes[-100:]) < 0.2 * np.median(slopes[:1])
    assert np.abs(np.linalg.det(step.M)).min() > 0.01


@pytest.mark.claim("ours-theorem-1d", shows="holds", by="numeric")
@each_order
@pytest.mark.parametrize("steps", [4, 64, 1024])
def test_the_slope_in_the_mean_over_a_horizon(steps, order) -> None:
    """P = I + M M^T and one learning rate for all steps, over the root of their number."""
    plane, start, rho, runs = PLANES["Huber"], np.array([[3.0], [-1.0]]), 0.05, 40
    noise = np.random.default_rng(5).standard_normal((steps, runs, 2, 1)) / 2
    trace, gap, G = 3.0, plane.value(start[None]).item(), plane.steepest**2 + 0.5
    lr = 0.3 / steps**0.5
    run = stochastic.learn_in_noise(
        plane.slope, noise, start, np.eye(2), lambda t, T: stochastic.shortened(lr, T, trace),
        stochastic.plain(lambda t: rho), order, 1,
    )  # fmt: skip
    found = np.mean([norms(step.slope).mean() ** 2 for step in run])
    slopes = stochastic.slopes_in_mean(gap, plane.smoothness, rho, G, trace, steps * lr**2, order)
    high = stochastic.trace_in_mean(trace, gap, plane.smoothness, rho, G, 1, steps * lr**2, order)
    bound = stochastic.mean_slope(slopes, high, trace, lr, steps)
    assert found <= bound
    assert bound == pytest.approx((1 + high / trace) * slopes / 0.3 / steps**0.5)


@pytest.mark.claim("ours-theorem-1d-as-is", shows="holds", by="exact")
@each_form
@pytest.mark.parametrize("rho", [F(1, 100), F(1, 10), F(1)])
def test_the_chance_of_a_large_trace(identity, rho) -> None:
    """All sequences of five coins, no step shortened: how many ever reach B, for many B."""
    theta, M = column(3), fractions([[1, F(1, 2)]])
    trace = identity + F(5, 4)
    met = settle("m-first", identity, rho, [lr / 8 for lr in RATES], theta, M, [F(1)])
    for limit in (trace, trace * F(101, 100), trace * F(3, 2), 2 * trace, 3 * trace):
        for now in met:
            share = np.mean(now.highest >= limit)
            chance = stochastic.overshoot_chance(
                limit, trace, F(5, 2), 1, rho, now.second_moment, identity, now.squares
            )
            assert share <= float(chance)
    # Without any loss or noise the trace stands at B = T_0: certain, and the bound says 1.
    assert stochastic.overshoot_chance(trace, trace, 0, 1, rho, 1, 0, F(0)) == 1


@pytest.mark.claim("ours-theorem-1d-as-is", shows="holds", by="numeric")
def test_the_chance_counts_the_loss() -> None:
    """On a parabola, without noise, short steps gain `4 rho gap` surely: there the bound is not below 1."""
    rho, lr, steps = 1.0, 1e-3, 4_000
    run = stochastic.learn_in_noise(
        huber_slope, np.zeros((steps, 1, 1, 1)), np.ones((1, 1)), np.eye(1), constant(lr),
        stochastic.plain(lambda t: rho), "m-first",
    )  # fmt: skip
    *_, last = run
    reached = last.M.item() ** 2
    assert reached > 0.99 * (1 + 4 * rho * 0.5)
    assert stochastic.overshoot_chance(reached, 1.0, 0.5, 1.0, rho, 1.0, 0, steps * lr**2) >= 1


@pytest.mark.claim("ours-theorem-1d-as-is", shows="holds", by="numeric")
@each_form
def test_runs_that_keep_their_trace(identity) -> None:
    """A horizon for which the bound on the chance says something: fewer runs reach B than it allows."""
    plane, start, rho, runs, steps = PLANES["cosine"], np.array([[3.0], [-1.0]]), 0.1, 100, 200
    trace, gap, G = identity + 2.0, plane.value(start[None]).item(), plane.steepest**2 + 0.5
    limit, lr = 4 * (trace + 4 * rho * gap), 1e-4
    chance = stochastic.overshoot_chance(limit, trace, gap, plane.smoothness, rho, G, identity, steps * lr**2)
    assert 0.25 < chance < 0.5
    noise = np.random.default_rng(6).standard_normal((steps, runs, 2, 1)) / 2
    run = stochastic.learn_in_noise(
        plane.slope, noise, start, np.eye(2), constant(lr), stochastic.plain(lambda t: rho), "m-first", identity
    )
    highest = np.max([identity + stochastic.squared(step.M).ravel() for step in run], axis=0)
    assert (highest >= limit).mean() <= chance


# ---------------------------------------------------------------------------------------
# Noise whose size depends on all that was before


class Tree(NamedTuple):
    """A loss, a start and settings, and all histories of a coin whose size and direction each history decides."""

    plane: Plane
    noise: np.ndarray
    theta: np.ndarray
    M: np.ndarray
    order: Any
    identity: int
    hyper_lr: float
    lrs: np.ndarray

    @property
    def trace(self) -> float:
        return self.identity + float((self.M * self.M).sum())

    @property
    def gap(self) -> float:
        return float(self.plane.value(self.theta[None]).item())

    def run(self, length, move=None) -> list[tuple[stochastic.NoisyStep, float, float]]:
        """Each step, G^2 of the points met so far, and the sum of the squares of the rates before it."""
        move = stochastic.plain(lambda t: self.hyper_lr) if move is None else move
        run = stochastic.learn_in_noise(
            self.plane.slope, self.noise, self.theta, self.M, length, move, self.order, self.identity
        )
        found, G, squares = [], 0.0, 0.0
        for step, xi, lr in zip(run, self.noise, self.lrs, strict=True):
            # A coin has the square of its size for a variance, and a history knows the size.
            G = max(G, float((stochastic.squared(step.slope) + stochastic.squared(xi)).max()))
            found.append((step, G, squares))
            squares += lr**2
        return found


def tree(chance) -> Tree:
    """Losses with bounded slopes, two to four coins, sizes and rates over decades, and kicks that often stay out."""
    rng, n, steps = chance.rng, chance.whole(1, 2), chance.whole(2, 4)
    A = rng.standard_normal((n, n)) * 10.0 ** chance.number(-1, 1)
    wave = chance.one_of(
        (huber_slope, huber_value),
        # 1 - cos y and 1 + cos y, with all of their digits.
        (np.sin, lambda y: 2 * (np.sin(y / 2) ** 2).sum(1, keepdims=True)),
        (lambda y: -np.sin(y), lambda y: 2 * (np.cos(y / 2) ** 2).sum(1, keepdims=True)),
    )
    L = float(np.linalg.norm(A, 2)) ** 2
    plane = Plane(lambda x: A.T @ wave[0](A @ x), lambda x: wave[1](A @ x), L, n**0.5 * L**0.5)
    size, runs = 10.0 ** chance.number(-2, 2), np.arange(2**steps)
    noise = np.zeros((steps, 2**steps, n, 1))
    for t in range(steps):
        past = runs >> (steps - t)
        sizes = size * rng.standard_normal((2**t, n, 1)) * (rng.random((2**t, 1, 1)) < 0.7)
        noise[t] = sizes[past] * (2.0 * (runs >> (steps - t - 1) & 1) - 1)[:, None, None]
    M = rng.standard_normal((n, chance.whole(1, 2))) * 10.0 ** chance.number(-1, 1)
    identity, order = chance.one_of(0, 1), chance.one_of(*ORDERS)
    lrs = 10.0 ** chance.number(-3, 0.5) / (L * (identity + float((M * M).sum()))) * np.sort(rng.random(steps))[::-1]
    theta = rng.standard_normal((n, 1)) * 10.0 ** chance.number(-2, 1) / L**0.5
    return Tree(plane, noise, theta, M, order, identity, 10.0 ** chance.number(-3, 1) / (size**2 * lrs[0]), lrs)


def below(found: float, bound: float, *sizes: float) -> bool:
    """At most the bound, but for rounding in numbers of these sizes."""
    return found <= bound + 1e-10 * (abs(bound) + sum(map(abs, sizes)))


@pytest.mark.claim("ours-theorem-1d", shows="holds", by="property")
@problems(tree)
def test_no_history_breaks_theorem_1d(tree) -> None:
    """The trace with the loss, and the slopes, in the mean over all histories."""
    f, T0, rho, order, identity = tree.plane, tree.trace, tree.hyper_lr, tree.order, tree.identity
    total, used, last = 0.0, np.broadcast_to(tree.M, (tree.noise.shape[1], *tree.M.shape)), tree.gap
    for t, (step, G, squares) in enumerate(tree.run(lambda t, T: stochastic.shortened(tree.lrs[t], T, T0))):
        gap = float(f.value(step.theta).mean())
        found = identity + float(stochastic.squared(step.M).mean()) + 4 * rho * (gap if order == "m-first" else last)
        assert below(found, stochastic.trace_in_mean(T0, tree.gap, f.smoothness, rho, G, identity, squares, order))
        assert below(total + gap, stochastic.slopes_in_mean(tree.gap, f.smoothness, rho, G, T0, squares, order))
        used, last = step.M if order == "paper" else used, gap
        lr = stochastic.shortened(tree.lrs[t], identity + stochastic.squared(used), T0)
        work = identity * stochastic.squared(step.slope) + stochastic.squared(used.mT @ step.slope)
        total, used = total + float((lr * work).mean()), step.M


@pytest.mark.claim("ours-theorem-1d-as-is", shows="holds", by="property")
@problems(tree)
def test_no_history_breaks_the_chance(tree) -> None:
    """Every trace that some history reaches is a B to try."""
    tree = tree._replace(order="m-first")
    highest = np.full((tree.noise.shape[1], 1, 1), tree.trace)
    for step, G, squares in tree.run(lambda t, T: tree.lrs[t] + 0 * T):
        highest = np.maximum(highest, tree.identity + stochastic.squared(step.M))
        for limit in np.unique(highest):
            chance = stochastic.overshoot_chance(
                limit, tree.trace, tree.gap, tree.plane.smoothness, tree.hyper_lr, G, tree.identity, squares
            )
            assert (highest >= limit).mean() <= chance * (1 + 1e-9)


@pytest.mark.claim("ours-theorem-1c", shows="holds", by="property")
@problems(tree, number(0, 2))
def test_no_history_breaks_theorem_1c(tree, scale) -> None:
    """The slopes until P exceeds a limit, and the mean of the largest `log |M|`."""
    limit, rates, pairs, total, on = tree.trace * 10.0**scale, 0.0, 0.0, 0.0, 1.0
    used = np.broadcast_to(tree.M, (tree.noise.shape[1], *tree.M.shape))
    logs = np.zeros(len(used))
    for t, (step, G, squares) in enumerate(tree.run(lambda t, T: tree.lrs[t] + 0 * T)):
        with np.errstate(divide="ignore"):
            logs = np.maximum(logs, np.log(norms(step.M) / np.linalg.norm(tree.M, 2)))
        assert below(float(logs.mean()), stochastic.log_norm_in_mean(G, rates), 1.0)
        left = float((on * tree.plane.value(step.theta).ravel()).mean())
        seen = pairs if tree.order == "m-first" else 0.0
        bound = stochastic.slopes_until(tree.gap, tree.plane.smoothness, G, limit, squares, seen)
        assert below(total + left, bound)
        kept = on * (tree.identity + norms(step.M) ** 2 <= limit)
        used, on = (step.M, kept) if tree.order == "paper" else (used, on)
        work = tree.identity * stochastic.squared(step.slope) + stochastic.squared(used.mT @ step.slope)
        total += tree.lrs[t] * float((on * work.ravel()).mean())
        used, on = step.M, kept
        # The next update has this step's rate; the order of Algorithm 1 has none after the first step.
        rates += tree.hyper_lr * tree.lrs[t] if tree.order == "m-first" or t else 0.0
        pairs += tree.hyper_lr * tree.lrs[t] * tree.lrs[t - 1] if t else 0.0
