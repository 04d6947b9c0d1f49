"""Section 6: Theorem 1 step by step, and what holds in its place."""

from __future__ import annotations

import itertools
from fractions import Fraction as F  # noqa: N817

import numpy as np
import pytest
import sympy as sp

from fop_theory import angles, convergence, descent, objectives
from fop_theory.convergence import ORDERS
from fop_theory.structure import multiplier
from tests.helpers import column, counterexample, fractions
from tests.strategies import any_scale, any_seed, drawn, factor, number, one_of, pl_problem, problems

both_orders = pytest.mark.parametrize("order", ORDERS)
each_scale = pytest.mark.parametrize("scale", [F(1), F(10), F(1000)])

T = sp.Symbol("t", positive=True)
PP, DELTA, LIMIT = sp.symbols("P delta p", positive=True)


def decay(t: int) -> F:
    """delta(t) = 1/(t + 1)^2: 1 at the start, and t delta(t) -> 0."""
    return F(1, (t + 1) ** 2)


def rescaled(limit):
    """Section 6: P is rescaled to the norm gamma(t), and the step has no other length."""

    def length(t, P):
        norm = convergence.spectral_norm(P)
        return convergence.effective_norm(norm, decay(t), limit) / norm

    return length


def huber_slope(scale=1):
    """Gradient of `scale * sum huber(theta_i)`, exact: L = scale, and in one dimension K = scale."""
    return lambda theta: scale * objectives.huber(len(theta)).gradient(theta)


def preconditioners(steps):
    return [(s.M @ s.M.T) for s in steps]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": np.ones((2, 2))}, "theta: expected shape"),
        ({"M": np.ones((3, 1))}, "M: expected shape"),
        ({"rate": np.nan}, "rate: expected a finite number"),
        ({"order": "both"}, "order: expected one of m-first, paper"),
    ],
)
def test_the_run_refuses_bad_arguments(change, message) -> None:
    good = {"theta": np.ones((2, 1)), "M": np.ones((2, 2)), "rate": 0.1, "order": "paper"}
    with pytest.raises(ValueError, match=message):
        list(convergence.learn(huber_slope(), **{**good, **change}, length=lambda t, P: 0.1, steps=3))


# ---------------------------------------------------------------------------------------
# The bound on |P(t)|


@pytest.mark.claim("thm-1-bound-on-norm", shows="fails", by="exact")
@pytest.mark.claim("ours-growth-bound", shows="holds", by="exact")
@pytest.mark.claim("thm-1-gamma-limit", shows="fails", by="exact")
@both_orders
@each_scale
def test_the_norm_grows_geometrically(order, scale) -> None:
    """Far out on `scale * huber`, with a K^2 = 1/2: P(t) = 4^t P(0), along the rescaled run itself, for every rho.

    It passes every line of the paper's bound, and takes delta(t) |P(t)| along although t delta(t) -> 0.
    """
    rho, limit = 1 / (2 * scale**2), 1 / (2 * scale)
    start = column(F(4**40))
    M = column(1)
    run = list(convergence.learn(huber_slope(scale), start, M, rho, rescaled(limit), 40, order))
    norms = [P[0, 0] for P in preconditioners(run)]
    updates = [t if order == "m-first" else max(t - 1, 0) for t in range(40)]
    assert all(step.theta[0, 0] >= 1 for step in run)
    assert norms == [4**n for n in updates]
    for t in range(5, 40):
        seen = [step.gradient for step in run[: updates[t] + 1]]
        assert norms[t] > convergence.claimed_norm(norms[0], seen, rho)
        assert norms[t] > convergence.claimed_norm_bound(norms[0], scale, rho, updates[t])
        assert norms[t] == convergence.norm_bound(norms[0], scale, rho, updates[t])
    products = [decay(t) * norm for t, norm in enumerate(norms)]
    assert all(after > before for before, after in itertools.pairwise(products[3:]))
    assert products[-1] > 10**18


@pytest.mark.claim("thm-1-gamma-limit", shows="fails", by="symbolic")
def test_a_geometric_norm_beats_the_decay() -> None:
    """`t / (t + 1)^2 -> 0` and `4^t / (t + 1)^2 -> oo`, and gamma with it."""
    delta = 1 / (T + 1) ** 2
    assert sp.limit(T * delta, T, sp.oo) == 0
    assert sp.limit(delta * 4**T, T, sp.oo) == sp.oo
    assert sp.limit(convergence.effective_norm(4**T, delta, LIMIT), T, sp.oo) == sp.oo


@pytest.mark.claim("ours-growth-bound", shows="holds", by="symbolic")
def test_the_growth_bound_is_attained() -> None:
    """One dimension, equal gradients of size K: each update multiplies P by `(1 + 2 a K^2)^2`, the largest factor."""
    a, K, m = sp.symbols("a K m", positive=True)
    g = sp.Matrix([K])
    M = m
    for t in range(1, 4):
        M = M + a * 2 * K**2 * M
        assert sp.simplify(M**2 - convergence.norm_bound(m**2, K, a, t)) == 0
    assert sp.simplify(sp.sqrt(convergence.growth_factor(g, g, a)) - (1 + 2 * a * K**2)) == 0


def gradient_run(chance):
    """`(gradients, M, rate, K)`: vectors of at most K, in a row; also all equal, or of alternating sign."""
    n, count = chance.whole(1, 5), chance.whole(2, 8)
    kind = chance.one_of("generic", "equal", "alternating")
    g = chance.rng.standard_normal((count, n, 1))
    if kind != "generic":
        g[:] = g[0] if kind == "equal" else g[0] * np.resize([1, -1], count)[:, None, None]
    return list(g), factor(chance, n), any_scale(chance), float(max(np.linalg.norm(x) for x in g))


def last_norm(situation) -> float:
    """`|P|` after all updates."""
    gradients, M, rate, _ = situation
    for h, g in itertools.pairwise(gradients):
        M = M + rate * (g @ (h.T @ M) + h @ (g.T @ M))
    return float(np.linalg.norm(M, 2)) ** 2


@pytest.mark.claim("ours-growth-bound", shows="holds", by="property")
@problems(gradient_run)
def test_the_growth_bound(situation) -> None:
    """Any gradients, any P(0), any rate: each update by its own factor, and all of them by K."""
    gradients, M, rate, K = situation
    norm, steps = float(np.linalg.norm(M, 2)) ** 2, len(gradients) - 1
    product = norm
    for h, g in itertools.pairwise(gradients):
        product *= convergence.growth_factor(g, h, rate)
    assert last_norm(situation) <= product * (1 + 1e-9)
    assert product <= convergence.norm_bound(norm, K, rate, steps) * (1 + 1e-9)


@pytest.mark.claim("thm-1-bound-on-norm", shows="fails", by="property")
def test_the_same_search_refutes_the_papers_bound() -> None:
    """... in both of its forms, with rho = a: the search would notice a false bound."""
    norm = lambda s: float(np.linalg.norm(s[1], 2)) ** 2  # noqa: E731
    runs = drawn(gradient_run)()
    counterexample(runs, lambda s: last_norm(s) > 1.01 * convergence.claimed_norm_bound(norm(s), s[3], s[2], len(s[0])))
    counterexample(runs, lambda s: last_norm(s) > 1.01 * convergence.claimed_norm(norm(s), s[0], s[2]) > 0)


@pytest.mark.claim("text-6-extends-baydin", shows="fails", by="exact")
def test_the_bound_is_the_one_of_additive_updates() -> None:
    """What is bounded is hypergradient descent's scalar, `alpha += rho g.h`; FOP's P is moved by multiplication.

    Same loss, same gradients: the scalar meets the paper's first line with equality, P breaks the last one.
    """
    rho, gradients = F(1, 2), [column(1)] * 12
    alpha = P = F(1)
    for t, (h, g) in enumerate(itertools.pairwise(gradients), start=1):
        alpha += rho * (g.T @ h)[0, 0]
        P *= convergence.growth_factor(g, h, rho)
        assert alpha == convergence.claimed_norm(F(1), gradients[: t + 1], rho)
        assert alpha <= convergence.claimed_norm_bound(F(1), 1, rho, t) < P


# ---------------------------------------------------------------------------------------
# The norm gamma(t)


@pytest.mark.claim("text-6-gamma", shows="under", by="symbolic")
def test_gamma_between_its_two_ends() -> None:
    """It is |P| where delta is 1, and `gamma - p = delta (|P| - p)`: it tends to p if delta |P| tends to 0."""
    gamma = convergence.effective_norm(PP, DELTA, LIMIT)
    assert gamma.subs(DELTA, 1) == PP
    assert sp.expand(gamma - LIMIT - DELTA * (PP - LIMIT)) == 0
    assert sp.limit(convergence.effective_norm(PP, 1 / T**2, LIMIT), T, sp.oo) == LIMIT


@pytest.mark.claim("text-6-gamma", shows="fails", by="exact")
def test_gamma_need_not_come_near_its_limit() -> None:
    """With delta = 1/t^2, as in the text, and `P(t) = 4^t`: gamma(t) > 10^20 p at t = 50."""
    assert convergence.effective_norm(F(4) ** 50, F(1, 50**2), F(1, 2)) > 10**20


@pytest.mark.claim("thm-1-gamma-interval", shows="fails", by="exact")
@both_orders
@pytest.mark.parametrize("limit", [F(1, 4), F(1, 100), F(0)])
def test_gamma_may_settle_below_the_interval(order, limit) -> None:
    """huber, L = 1, rho = 1/10: |P| stays below 2, gamma falls to p and leaves (1/2, 1) for ever."""
    run = list(convergence.learn(huber_slope(), column(1), column(1), F(1, 10), rescaled(limit), 12, order))
    norms = [P[0, 0] for P in preconditioners(run)]
    assert max(norms) < 2
    gammas = [convergence.effective_norm(norm, decay(t), limit) for t, norm in enumerate(norms)]
    assert all(limit <= gamma < F(1, 2) for gamma in gammas[3:])


# ---------------------------------------------------------------------------------------
# The conclusion


def alternates(step, before, gamma) -> bool:
    """The state from which theta diverges: see the next test. `before` is the step before."""
    theta, last = step.theta[0, 0], before.theta[0, 0]
    return bool(theta * last < 0 and min(abs(theta), abs(last)) >= 1 and gamma >= abs(theta) + 1)


@pytest.mark.claim("thm-1", shows="fails", by="symbolic")
def test_once_it_alternates_it_diverges() -> None:
    """In that state the next one is the same: the induction behind the next test, in both orders.

    Both slopes are 1 with opposite signs, so a = 2 multiplies M by 1 - 4 and P by 9, and gamma does not fall:
    its growth times (t+1)^2 (t+2)^2, for P >= p, is a sum of positive terms. theta_(t+1) has the other sign and
    size gamma - |theta|, at least 1; `gamma(t+1) - |theta_(t+1)| >= gamma - (gamma - |theta|) = |theta| >= 1`.
    """
    surplus = sp.Symbol("surplus", nonnegative=True)  # P - p
    P = LIMIT + surplus
    now = convergence.effective_norm(P, 1 / (T + 1) ** 2, LIMIT)
    then = convergence.effective_norm(9 * P, 1 / (T + 2) ** 2, LIMIT)
    growth = sp.Poly(sp.cancel((then - now) * (T + 1) ** 2 * (T + 2) ** 2), T, LIMIT, surplus)
    assert growth.coeffs()
    assert min(growth.coeffs()) > 0
    theta, gamma = sp.symbols("theta gamma", positive=True)
    after = theta - gamma  # from theta > 0
    assert sp.expand(gamma - (-after) - theta) == 0


@pytest.mark.claim("thm-1", shows="fails", by="exact")
@both_orders
@each_scale
def test_theorem_1_diverges(order, scale) -> None:
    """P(t) > 0 and theta diverges, for every rho: `scale * huber`, `a K^2 = 2`, p_inf = 1/(2L) < 1/L.

    scale = d^2 keeps P(0) = 1/scale a square; the coordinates are those of scale 1.
    """
    d = scale
    L = d**2
    rho, limit = 2 / L**2, 1 / (2 * L)
    start = F(2) if order == "m-first" else F(3)
    run = list(convergence.learn(huber_slope(L), column(start), column(1 / d), rho, rescaled(limit), 25, order))
    norms = [P[0, 0] for P in preconditioners(run)]
    assert min(norms) > 0
    # The step is gamma times a slope of L, so L gamma is what it is for scale 1.
    gammas = [L * convergence.effective_norm(norm, decay(t), limit) for t, norm in enumerate(norms)]
    states = [alternates(now, before, gamma) for before, now, gamma in zip(run, run[1:], gammas[1:], strict=False)]
    first = states.index(True)
    assert first < 15
    assert all(states[first:])
    assert norms[-1] == 9 ** (len(run) - 2 - first) * norms[first + 1]
    assert abs(run[-1].theta[0, 0]) > 10**6


@pytest.mark.claim("thm-1", shows="fails", by="exact")
@pytest.mark.claim("thm-1-sgd-converges-so-fop", shows="fails", by="exact")
@pytest.mark.claim("ours-stuck", shows="holds", by="exact")
@both_orders
@each_scale
def test_from_the_identity_fop_stops_where_the_gradient_is_not_zero(order, scale) -> None:
    """P(0) = I (over d^2 for d^2 times the loss), `a L^2 = 1/2`: P becomes diag(0, 1), and P g = 0.

    Gradient descent with the same gamma(t) converges. `a s = 1`: the update takes a rank away, for ever.
    """
    L = 2 * scale**2
    gradient, rho, length = huber_slope(L), 1 / (2 * L**2), rescaled(1 / (2 * L))
    plain, M = column(1, 0), fractions([[1 / scale, 0], [0, 1 / scale]])
    run = list(convergence.learn(gradient, plain, M, rho, length, 12, order))
    stuck = F(-1) if order == "m-first" else F(-1, 8)
    for t, step in enumerate(run):
        P = step.M @ step.M.T
        if t >= 2:
            assert (step.theta == column(stuck, 0)).all()
            assert step.gradient.any()
            assert not (P @ step.gradient).any()
        plain = plain - length(t, P) * convergence.spectral_norm(P) * gradient(plain)
    assert abs(plain[0, 0]) < F(1, 1000)


@pytest.mark.claim("ours-stuck", shows="holds", by="symbolic")
def test_an_update_with_as_equal_to_one_loses_a_rank() -> None:
    """`g = -c h`: s = 2 |g||h|, and at a s = 1 the update maps h to zero: M^T g = 0 ever after along h."""
    h, c = sp.Matrix(sp.symbols("h:3", real=True)), sp.Symbol("c", positive=True)
    g, squared = -c * h, (h.T @ h)[0]
    rate = 1 / (2 * c * squared)
    A = sp.eye(3) + rate * (g @ h.T + h @ g.T)
    assert (A @ h).applyfunc(sp.simplify) == sp.zeros(3, 1)
    assert (h.T @ A).applyfunc(sp.simplify) == sp.zeros(1, 3)


@pytest.mark.claim("thm-1-psd-does-not-prevent", shows="fails", by="exact")
@pytest.mark.claim("thm-1", shows="fails", by="exact")
@both_orders
@pytest.mark.parametrize("rho", [F(1, 1000), F(1), F(1000)])
def test_a_singular_preconditioner_stays_where_it_is(order, rho) -> None:
    """P(0) = diag(1, 0) is positive semidefinite, the gradient (0, 1) is in its kernel, and S M = 0 for every rho."""
    start = column(0, 1)
    run = list(convergence.learn(huber_slope(), start, fractions([[1], [0]]), rho, rescaled(F(1, 2)), 12, order))
    assert all((step.theta == start).all() and step.gradient.any() for step in run)


@pytest.mark.claim("thm-1", shows="fails", by="exact")
def test_a_limit_of_zero_is_allowed_and_stops_everything() -> None:
    """p_inf = 0 < 1/L and delta(t) = 0 for t > 0: the first step is the last, whatever P does."""
    length = lambda t, P: convergence.effective_norm(convergence.spectral_norm(P), F(t == 0), F(0))  # noqa: E731
    run = list(convergence.learn(huber_slope(), column(3), column(1), F(1, 4), length, 10, "m-first"))
    assert [step.theta[0, 0] for step in run] == [3, *[2] * 9]
    assert run[-1].gradient[0, 0] == 1


# ---------------------------------------------------------------------------------------
# Angles, and gradient descent


@pytest.mark.claim("thm-1-angle-below-90", shows="fails", by="exact")
def test_fop_turns_a_gradient_as_near_to_90_degrees_as_one_likes() -> None:
    """P = M M^T from P(0) = I after one update with g = -h, `2 a |h|^2 = 1 - x`, is diag(x^2, 1).

    The squared cosine of the gradient (1/x, 1) is `4 x^2 / (1 + x^2)^2` and tends to 0 with x.
    """
    for left in (F(1, 100), F(1, 10**6)):
        h, g = column(1, 0), column(-1, 0)
        A = fractions([[1, 0], [0, 1]]) + (1 - left) / 2 * (g @ h.T + h @ g.T)
        P = A @ A.T
        assert (fractions([[left**2, 0], [0, 1]]) == P).all()
        turned = column(1 / left, 1)
        cosine = angles.squared_cosine(turned, P @ turned)
        assert cosine == 4 * left**2 / (1 + left**2) ** 2 < 4 * left**2


@pytest.mark.claim("thm-1-angle-below-90", shows="under", by="symbolic")
def test_the_figures_preconditioner_turns_by_less_than_90_degrees() -> None:
    """`<G, (I + M M^T) G> = |G|^2 + |M^T G|^2`, and kappa <= 1 + |M|^2: the bound is 2 sqrt(1 + s^2) / (2 + s^2)."""
    G, M = sp.Matrix(sp.symbols("g:3", real=True)), sp.Matrix(3, 2, sp.symbols("m:6", real=True))
    inner = (G.T @ (sp.eye(3) + M @ M.T) @ G)[0]
    assert sp.expand(inner - sum(x**2 for x in G) - sum(x**2 for x in M.T @ G)) == 0
    s = sp.Symbol("s", positive=True)
    cosine = angles.least_cosine(1 + s**2)
    assert sp.simplify(cosine - 2 * sp.sqrt(1 + s**2) / (2 + s**2)) == 0
    assert sp.limit(cosine, s, sp.oo) == 0


@pytest.mark.claim("thm-1-angle-below-90", shows="under", by="property")
@problems(gradient_run)
def test_the_angle_along_updates_of_the_figures_preconditioner(situation) -> None:
    """`P = I + M M^T` after any updates: the cosine of the next gradient is at least that of the largest |M|."""
    gradients, M, rate, _ = situation
    for h, g in itertools.pairwise(gradients):
        s2 = float(np.linalg.norm(M, 2)) ** 2
        turned = g + M @ (M.T @ g)
        cosine = float((g * turned).sum() / (np.linalg.norm(g) * np.linalg.norm(turned)))
        assert cosine >= float(angles.least_cosine(1 + s2)) * (1 - 1e-9)
        M = M + min(rate, 1.0) * (g @ (h.T @ M) + h @ (g.T @ M))


@pytest.mark.claim("thm-1-angle-does-not-impede", shows="fails", by="symbolic")
def test_every_angle_needs_a_step_that_suits_it() -> None:
    """`f = L |x|^2 / 2`, the gradient turned by phi, step eta: |x|^2 changes by `eta L (eta L - 2 cos phi)`.

    So for each step there's an angle below 90 degrees that diverges, and for 1/L every angle above 60.
    """
    phi, eta, L = sp.symbols("phi eta L", positive=True)
    x = sp.Matrix(sp.symbols("x:2", real=True))
    turn = sp.Matrix([[sp.cos(phi), -sp.sin(phi)], [sp.sin(phi), sp.cos(phi)]])
    after = x - eta * turn @ (L * x)
    ratio = sp.simplify((after.T @ after)[0] / (x.T @ x)[0])
    assert sp.simplify(ratio - 1 - eta * L * (eta * L - 2 * sp.cos(phi))) == 0
    assert sp.simplify((ratio - 1).subs({eta: 1 / L, phi: sp.pi / 3})) == 0


@pytest.mark.claim("thm-1-angle-does-not-impede", shows="fails", by="exact")
@both_orders
def test_the_angle_is_zero_at_each_step_and_theta_diverges(order) -> None:
    """In one dimension with P > 0 nothing is ever turned: the run of `test_theorem_1_diverges` has angle 0."""
    run = list(convergence.learn(huber_slope(), column(3), column(1), F(2), rescaled(F(1, 2)), 20, order))
    for step in run:
        assert angles.squared_cosine(step.gradient, step.M @ step.M.T @ step.gradient) == 1
    assert abs(run[-1].theta[0, 0]) > 1000


@pytest.mark.claim("thm-1-sgd-converges-so-fop", shows="fails", by="exact")
def test_the_theorem_cited_needs_what_theorem_1_does_not_assume() -> None:
    """Karimi et al. need PL. Huber's loss meets every assumption of Theorem 1 and has no PL constant.

    And no minimum is assumed either: 1/x (a line left of 1) meets them with L = 2, K = 1, and gradient descent
    itself runs off, x^3 growing by more than 3/4 at each step of 1/4.
    """
    huber = objectives.huber()
    for mu in (F(1), F(1, 10**9)):
        far = column(2 / mu)
        assert descent.pl_slack(huber.gradient(far), huber.value(far), mu) < 0
    x = F(1)
    for _ in range(6):
        after = x + F(1, 4) / x**2
        assert after**3 > x**3 + F(3, 4)
        x = after


@pytest.mark.claim("ours-angle-step", shows="holds", by="symbolic")
def test_the_gain_of_the_step_that_suits_the_angle() -> None:
    """It's what the bound of an L-Lipschitz gradient leaves at the best eta: `cos^2 |g|^2 / (2 L)`."""
    g, d = (sp.Matrix(sp.symbols(f"{name}:3", real=True)) for name in "gd")
    L, eta = sp.symbols("L eta", positive=True)
    best, gain = convergence.step_along(g, d, L)
    change = descent.smooth_change(g, -eta * d, L)
    assert sp.simplify(change - (-gain + L * (d.T @ d)[0] / 2 * (eta - best) ** 2)) == 0
    assert sp.simplify(gain - angles.squared_cosine(g, d) * (g.T @ g)[0] / (2 * L)) == 0


@pytest.mark.claim("ours-angle-step", shows="holds", by="property")
@problems(pl_problem, any_seed, number(0, 1))
def test_a_turned_gradient_descends_with_the_step_that_suits_it(problem, seed, turn) -> None:
    """Gradients turned by anything below 90 degrees, PL problems: the gap falls by `1 - (mu/L) cos^2`."""
    objective, theta = problem
    g = objective.gradient(theta)
    aside = np.random.default_rng(seed).standard_normal(g.shape)
    d = (1 - turn) * g + turn * (aside - g * (g * aside).sum() / max((g * g).sum(), 1e-300))
    if not (d * d).sum() > 1e-20 * (g * g).sum() > 0:
        return
    eta, gain = convergence.step_along(g, d, objective.smoothness)
    before, after = objective.value(theta), objective.value(theta - eta * d)
    rounding = 1e-12 * (abs(before) + objective.smoothness * float((theta * theta).sum())) + 1e-13 * abs(
        objective.minimum
    )
    assert after <= before - gain + rounding
    factor = 1 - objective.pl / objective.smoothness * angles.squared_cosine(g, d)
    assert after - objective.minimum <= factor * (before - objective.minimum) + rounding


# ---------------------------------------------------------------------------------------
# Theorem 1A: the rescaled algorithm, put right


def convex_problem(chance):
    """`(objective, theta)`: a convex function whose only minimizer is 0, flat far out or not; and a point."""
    n = chance.whole(1, 4)
    rng = chance.rng
    curvatures = (10.0 ** rng.uniform(-1.5, 0.5, n)).tolist()
    base = objectives.huber(n) if chance.one_of(False, True) else objectives.diagonal_quadratic(curvatures)
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    stretch = np.diag(10.0 ** rng.uniform(-0.5, 0.5, n)) if base.slope else np.eye(n)
    theta = rng.standard_normal((n, 1)) * 10.0 ** chance.number(-1, 1)
    return objectives.composed(base, stretch @ Q), theta


@pytest.mark.claim("ours-theorem-1a", shows="holds", by="symbolic")
def test_the_reciprocal_of_the_gap_grows() -> None:
    """`Delta' <= Delta - k Delta^2` gives `1/Delta' - 1/Delta >= k`; the difference is `k^2 Delta / (1 - k Delta)`.

    The descent before that: with eigenvalues up to b, `lambda - L lambda^2 / 2 >= lambda (1 - L b / 2)`.
    """
    k, gap, lam, b, low, L, D = sp.symbols("k Delta lambda b m L D", positive=True)
    rest = 1 / (gap - k * gap**2) - 1 / gap - k
    assert sp.simplify(rest - k**2 * gap / (1 - k * gap)) == 0
    kept = descent.decrease(lam, 1, L) / 2
    assert sp.expand(kept - lam * (1 - L * b / 2) - L * lam * (b - lam) / 2) == 0
    # |g| >= Delta / D for convex J; so k is the decrease per |g|^2, over D^2.
    assert sp.simplify(convergence.inverse_gap_gain(low, b, L, D) - low * (1 - L * b / 2) / D**2) == 0


@pytest.mark.claim("ours-theorem-1a", shows="holds", by="exact")
@both_orders
@pytest.mark.parametrize("rho", [F(1, 100), F(2), F(1000)])
@pytest.mark.parametrize("start", [(3, 0), (0, 3)])
def test_theorem_1a_converges_where_theorem_1_fails(order, rho, start) -> None:
    """Huber's loss, P(0) = diag(1, 0), p_inf = 3/2 < 2/L: the printed theorem diverges from (3, 0), is stuck at (0, 3).

    With the decay that outruns P and half of the identity mixed in, each late step adds its gain, exactly.
    """
    theta, M, last, huber = column(*start), fractions([[1, 0], [0, 0]]), None, objectives.huber(2)
    for t in range(16):
        g = huber.gradient(theta)
        turned = M if last is None else multiplier(g, last, rho) @ M
        P = (turned if order == "m-first" else M) @ (turned if order == "m-first" else M).T
        delta = convergence.safe_decay(1, rho, t)
        assert delta * convergence.spectral_norm(P) <= F(1, t + 1)
        gamma = convergence.effective_norm(convergence.spectral_norm(P), delta, F(3, 2))
        assert t > 0 or gamma == convergence.spectral_norm(P)
        used = convergence.mixed(P, gamma, F(1, 2))
        # The start lies on an axis, so that everything stays diagonal and exact; beside it, eigenvalues.
        along = int(np.argmax(start))
        assert used[along, along] in (gamma, gamma / 2)
        after = theta - used @ g
        gain = convergence.inverse_gap_gain(gamma / 2, gamma, 1, abs(theta[along, 0]))
        assert 1 / huber.value(after) >= 1 / huber.value(theta) + gain
        theta, M, last = after, turned, g
        if huber.value(theta) < F(1, 10):  # fractions become long where the gradient changes
            return
    pytest.fail("the gap has not fallen below 1/10")


@pytest.mark.claim("ours-theorem-1a", shows="holds", by="property")
@problems(convex_problem, any_seed, any_scale, number(0.01, 0.99), number(0.05, 1), one_of(*ORDERS))
def test_theorem_1a(problem, seed, rho, limit, share, order) -> None:
    """Section 6 with a decay that outruns P and a share of the identity: every late step adds its gain to 1/gap."""
    objective, theta = problem
    L, n = objective.smoothness, objective.dim
    slope = objective.slope or L * 10 * float(np.linalg.norm(theta))
    M = np.random.default_rng(seed).standard_normal((n, n))
    rate, p_inf = rho / slope**2, 2 * limit / L

    last = None
    for t in range(12):
        g = objective.gradient(theta)
        turned = M if last is None else multiplier(g, last, rate) @ M
        used = turned if order == "m-first" else M
        norm = convergence.spectral_norm(used @ used.T)
        gamma = convergence.effective_norm(norm, convergence.safe_decay(slope, rate, t), p_inf)
        P = convergence.mixed(used @ used.T, gamma, share)
        low, high = np.linalg.eigvalsh(P)[[0, -1]]
        assert share * gamma * (1 - 1e-9) <= low <= high <= gamma * (1 + 1e-9)
        after = theta - P @ g
        if not L * float((after * after).sum()) < 1e12:
            return  # An early step may be long, and a quadratic has no K: the theorem speaks of late ones.
        gaps = [objective.value(theta) - objective.minimum, objective.value(after) - objective.minimum]
        if min(gaps) <= 1e-12 * L * float((theta * theta).sum()):
            return
        # The only minimizer is 0. A level set would bound the distance once for all; the proof uses it at theta.
        gain = convergence.inverse_gap_gain(low, high, L, float(np.linalg.norm(theta)))
        if L * high < 2:
            assert 1 / gaps[1] >= (1 / gaps[0] + gain) * (1 - 1e-9)
        theta, M, last = after, turned, g


def test_the_property_of_theorem_1a_can_fail() -> None:
    """Twice the gain is too much: the search finds it."""

    def breaks(problem) -> bool:
        objective, theta = problem
        L, D = objective.smoothness, float(np.linalg.norm(theta))
        before, after = objective.value(theta), objective.value(theta - objective.gradient(theta) / L)
        return min(before, after) > 1e-9 and 1 / after < 1 / before + 4 * convergence.inverse_gap_gain(
            1 / L, 1 / L, L, D
        )

    counterexample(drawn(convex_problem)(), breaks)
