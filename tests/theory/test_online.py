"""Linear P and P = exp(X): regret, superlinear convergence, and steps that are not taken."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from hypothesis import assume

from fop_theory import hypergradient as hg
from fop_theory import objectives, online, reference
from fop_theory.algebra import inner
from tests.helpers import column, counterexample, symbols
from tests.strategies import (
    any_scale,
    any_seed,
    definite_matrix,
    drawn,
    gradient_pair,
    number,
    one_of,
    problems,
    smooth_problem,
)

F = Fraction
EPS = np.finfo(float).eps


# ---------------------------------------------------------------------------------------
# The normalised slope


@pytest.mark.claim("ours-normalised-slope", shows="holds", by="symbolic")
def test_the_slope_of_the_normalised_gain() -> None:
    """Of a quadratic with free Hessian, by the entries of a symmetric P; and the learning rate cancels."""
    a, p = sp.symbols("a:3"), sp.symbols("p:3")
    A, P = (sp.Matrix([[x[0], x[1]], [x[1], x[2]]]) for x in (a, p))
    x, lr = symbols("x", 2), sp.Symbol("epsilon", positive=True)
    H = A * x
    after = x - lr * P * H
    size, slope = inner(H, H), online.normalised_slope(A * after, H)
    phi = inner(after, A * after) / 2 / lr  # times |H|^2, which doesn't depend on P
    # d phi = <slope, dP>: the entry off the diagonal stands in P twice.
    for entry, wanted in zip(p, (slope[0, 0], 2 * slope[0, 1], slope[1, 1]), strict=True):
        assert sp.expand(2 * sp.diff(phi, entry) - wanted * (2 * size)) == 0


@pytest.mark.claim("ours-normalised-slope", shows="holds", by="property")
@problems(gradient_pair, any_scale, any_scale)
def test_the_slope_forgets_scale_and_never_exceeds_one_when_damped(pair, loss_scale, lr) -> None:
    """Against the oracle's hypergradient of linear P: the same direction, `lr |H|^2` times as long."""
    G, H = pair
    assume(np.any(H))
    slope = online.normalised_slope(G, H)
    size = np.linalg.norm(G) / np.linalg.norm(H)
    np.testing.assert_allclose(
        online.normalised_slope(loss_scale * G, loss_scale * H), slope, atol=1e-14 * size, rtol=0
    )
    by_entries = reference.complex_step_gradient(lambda P: np.sum(G * (0 - lr * (P @ H))), np.eye(len(G)))
    found = (by_entries + by_entries.T) / (2 * lr * np.sum(H * H))
    np.testing.assert_allclose(found, slope, atol=1e-14 * size, rtol=0)
    assert online.damping_weight(G, H) * np.linalg.norm(slope) <= 1 + 10 * EPS


# ---------------------------------------------------------------------------------------
# Linear P


def bowl_of(chance, columns: int = 3):
    """`(A, L, start)`: a definite Hessian that n columns share, its largest eigenvalue, a start."""
    A, _, high = definite_matrix(chance, chance.whole(1, 4), max_log_condition=1.5)
    start = chance.rng.standard_normal((len(A), chance.whole(1, columns)))
    return A, high, start * chance.number(0.1, 10)


def gap(A: np.ndarray, x: np.ndarray) -> float:
    return float(np.sum(x * (A @ x)) / 2)


def linear_run(A: np.ndarray, start: np.ndarray, P: np.ndarray, rate: float, steps: int):
    """Points and preconditioners of linear P with lr = 1, P first; it ends where the gradient vanishes."""
    xs, Ps, H = [start], [P], None
    for _ in range(steps):
        G = A @ xs[-1]
        # Below that the gradient is what rounding has left of the start's.
        if np.linalg.norm(G) <= 1e-12 * np.linalg.norm(A @ start):
            break
        if H is not None:
            Ps.append(online.linear_step(Ps[-1], G, H, rate))
        xs.append(xs[-1] - Ps[-1] @ G)
        H = G
    return xs, Ps


@pytest.mark.claim("ours-linear-superlinear", shows="holds", by="property")
@problems(bowl_of, number(0.1, 1.9), number(0, 2))
def test_linear_p_nears_the_inverse_and_is_superlinear(bowl, share, first) -> None:
    """Also for eta up to 2/L, from any multiple of the identity; every step and the product of all."""
    A, high, start = bowl
    inverse, rate, P = np.linalg.inv(A), share / high, first / high * np.eye(len(A))
    xs, Ps = linear_run(A, start, P, rate, 25)
    distances = [np.linalg.norm(each - inverse) for each in Ps]
    # The inverse is known to its condition number's share of rounding, about 30 eps of its size.
    rounding = 1e-12 * (np.linalg.norm(inverse) + max(distances)) * (1 + distances[0])
    assert all(after <= before + rounding for before, after in itertools.pairwise(distances))
    constant = online.linear_constant(distances[0] ** 2, rate, high)
    ratios = [gap(A, after) / gap(A, before) for before, after in itertools.pairwise(xs)]
    assert sum(ratios) <= constant * (1 + 1e-9) + 1e-9
    steps = len(ratios)
    assume(steps > 0)
    left = gap(A, xs[-1]) / gap(A, start)
    assert left <= online.superlinear_factor(constant, steps) * (1 + 1e-6) + 1e-20


@pytest.mark.claim("ours-linear-superlinear", shows="holds", by="exact")
def test_each_step_pays_for_its_gain_exactly() -> None:
    """In fractions: the squared distance from the inverse falls by `eta (4 phi - eta |slope|^2)`, no more, no less."""
    A = np.array([[F(2), F(1)], [F(1), F(3)]])
    inverse = np.array([[F(3), F(-1)], [F(-1), F(2)]]) / 5
    x, P, rate, H = column(1, -2), np.array([[F(1, 5), F(0)], [F(0), F(1, 7)]]), F(1, 4), None
    for _ in range(4):
        G = A @ x
        if H is not None:
            after, phi = online.linear_step(P, G, H, rate), inner(x, A @ x) / 2 / inner(H, H)
            slope = online.normalised_slope(G, H)
            fall = inner(P - inverse, P - inverse) - inner(after - inverse, after - inverse)
            assert fall == rate * (4 * phi - rate * inner(slope, slope))
            assert fall > 0
            P = after
        x, H = x - P @ G, G


@pytest.mark.claim("ours-linear-superlinear", shows="holds", by="symbolic")
def test_the_gain_is_a_square_about_the_inverse() -> None:
    """`phi = |A^(1/2) (P - A^-1) g|^2 / 2 |g|^2`, hence `<slope, P - A^-1> = 2 phi`, in A's own axes, for a free P."""
    a, p = sp.symbols("a:2"), sp.symbols("p:3")
    A, P, x = sp.diag(*a), sp.Matrix([[p[0], p[1]], [p[1], p[2]]]), symbols("x", 2)
    H = A * x
    after = x - P * H
    # Both sides times |H|^2; and x = A^-1 H, so P H - x stands for (P - A^-1) H.
    size, phi = inner(H, H), inner(after, A * after) / 2
    assert sp.expand(phi - inner(P * H - x, A * (P * H - x)) / 2) == 0
    slope = (online.normalised_slope(A * after, H) * (2 * size)).expand()
    paired = inner(slope, P) / 2 + inner(A * after, x)
    assert sp.expand(paired - 2 * phi) == 0


def test_with_the_factors_gradient_the_bound_is_lost() -> None:
    """So that the property can fail: twice the largest rate, and the distance grows."""

    def breaks(case) -> bool:
        A, high, start = case
        _, Ps = linear_run(A, start, np.zeros_like(A), 4 / high, 10)
        inverse = np.linalg.inv(A)
        return np.linalg.norm(Ps[-1] - inverse) > np.linalg.norm(Ps[0] - inverse) + 1e-6

    counterexample(drawn(bowl_of)(), breaks)


def smooth_convex(chance):
    """A convex function with its minimum, and a start."""
    n, rng = chance.whole(1, 3), chance.rng
    kind = chance.one_of("quadratic", "logistic", "huber")
    if kind == "huber":
        found = objectives.huber(n)
    elif kind == "quadratic":
        B = rng.standard_normal((n, n))
        found = objectives.quadratic(B @ B.T + 0.1 * np.eye(n))
    else:
        found = objectives.logistic(rng.standard_normal((6, n)), rng.choice([-1, 1], 6), 0.1)
    return found, rng.standard_normal((n, 1)) * chance.number(0.5, 5)


def online_run(found: objectives.Objective, x: np.ndarray, lr: float, rate: float, budget: float, steps: int):
    """`(weight, point, gradient, step)` of each step; linear P without a budget, else exp(X)."""
    n, H, rows = len(x), None, []
    P, X = np.eye(n), np.zeros((n, n))
    for _ in range(steps):
        G = np.asarray(found.gradient(x), dtype=float)
        if np.linalg.norm(G) < 1e-6:
            break
        if H is not None and budget == math.inf:
            P = online.linear_step(P, G, H, rate)
        elif H is not None:
            X = online.mirror_step(X, G, H, rate, budget)
            P = online.exponential(X)
        after = x - lr * P @ G
        next_G = np.asarray(found.gradient(after), dtype=float)
        rows.append((1.0 if budget == math.inf else online.damping_weight(next_G, G), x, G, P))
        x, H = after, G
    return rows


def phi(found: objectives.Objective, x: np.ndarray, G: np.ndarray, P: np.ndarray, lr: float) -> float:
    return float(found.value(x - lr * P @ G) - found.minimum) / (lr * np.sum(G * G))


@pytest.mark.claim("ours-linear-regret", shows="holds", by="property")
@problems(smooth_convex, number(0.05, 0.9), number(0.1, 2), any_seed)
def test_the_regret_of_linear_p(problem, share, scale, seed) -> None:
    """Against a drawn symmetric P, on functions that are not quadratic too; steps may raise the loss."""
    found, start = problem
    L, n = float(found.smoothness), len(start)
    rate = share / L
    draw = np.random.default_rng(seed).standard_normal((n, n))
    rival = scale / L * (np.eye(n) + 0.3 * (draw + draw.T))
    # lr = 1: the first P is I, which for L > 2 is far too long a step.
    rows = online_run(found, start, 1.0, rate, math.inf, 12)
    ours = sum(phi(found, x, G, P, 1.0) for _, x, G, P in rows)
    theirs = sum(phi(found, x, G, rival, 1.0) for _, x, G, _ in rows)
    distance = np.sum((np.eye(n) - rival) ** 2)
    # The value at the minimum has an error of rounding, and small gradients magnify it.
    slack = sum(1e-12 * (1 + abs(float(found.value(x)))) / np.sum(G * G) for _, x, G, _ in rows)
    assert ours <= online.linear_regret(distance, theirs, rate, L) * (1 + 1e-9) + slack


@pytest.mark.claim("ours-linear-regret", shows="holds", by="property")
@problems(smooth_convex, number(0.05, 0.9), number(1.1, 10), any_seed)
def test_the_regret_of_linear_p_within_a_budget(problem, share, budget, seed) -> None:
    """Clipped after each step, against a drawn P that keeps the budget too."""
    found, x = problem
    L, n = float(found.smoothness), len(x)
    rng = np.random.default_rng(seed)
    rotation, P, H = np.linalg.qr(rng.standard_normal((n, n)))[0], np.eye(n), None
    rival = (rotation * rng.uniform(1 / budget, budget, n)) @ rotation.T
    distance, ours, theirs, slack = np.sum((P - rival) ** 2), 0.0, 0.0, 0.0
    for _ in range(12):
        G = np.asarray(found.gradient(x), dtype=float)
        if np.linalg.norm(G) < 1e-6:
            break
        if H is not None:
            P = online.project(online.linear_step(P, G, H, share / L), budget)
        assert np.linalg.eigvalsh(P).min() >= (1 - 1e-12) / budget
        ours, theirs = ours + phi(found, x, G, P, 1.0), theirs + phi(found, x, G, rival, 1.0)
        slack += 1e-12 * (1 + abs(float(found.value(x)))) / np.sum(G * G)
        x, H = x - P @ G, G
    assert ours <= online.linear_regret(distance, theirs, share / L, L) * (1 + 1e-9) + slack


@pytest.mark.claim("ours-linear-regret", shows="holds", by="property")
@problems(lambda chance: chance.whole(1, 6), number(1.01, 10), number(0, 3), any_seed)
def test_clipping_is_the_nearest_within_the_budget(m, budget, size, seed) -> None:
    """From the projection onto a convex set all of it lies at an angle of at least 90 degrees to what was projected."""
    rng = np.random.default_rng(seed)
    draw, rotation = rng.standard_normal((m, m)), np.linalg.qr(rng.standard_normal((m, m)))[0]
    P = np.eye(m) + size * (draw + draw.T)
    near, other = online.project(P, budget), (rotation * rng.uniform(1 / budget, budget, m)) @ rotation.T
    # Rounding: of eigenvalues, each relative to the largest.
    rounding = 1e-13 * m * (np.linalg.norm(P) + budget) ** 2
    assert np.sum((P - near) * (other - near)) <= rounding
    assert np.linalg.norm(near - other) ** 2 <= np.linalg.norm(P - other) ** 2 + rounding


@pytest.mark.claim("ours-linear-regret", shows="holds", by="exact")
def test_the_regret_on_one_step_in_fractions() -> None:
    """Huber's function, one dimension: two steps far out, where the gradient is one, settle it by hand."""
    rate, L = F(1, 2), 1
    x, P = F(5), F(1)
    total, rival_total, rival = F(0), F(0), F(3)
    for _ in range(2):
        value = lambda y: y * y / 2 if abs(y) <= 1 else abs(y) - F(1, 2)  # noqa: E731
        total, rival_total = total + value(x - P), rival_total + value(x - rival)
        x, P = x - P, P + rate / 2 * 2
    assert total <= online.linear_regret((rival - 1) ** 2, rival_total, rate, L)
    # Half the bound would not do.
    assert total > online.linear_regret((rival - 1) ** 2, rival_total, rate, L) / 4


# ---------------------------------------------------------------------------------------
# The mirror step


@pytest.mark.claim("ours-mirror-step", shows="holds", by="property")
@problems(gradient_pair, any_scale, number(1.01, 100), any_seed)
def test_a_mirror_step_stays_definite_and_within_its_budget(pair, rate, budget, seed) -> None:
    """Whatever the gradients and the rate; without the budget, log det P moves by a tr S / 2|H|^2 exactly."""
    G, H = pair
    assume(np.any(H))
    m = len(G)
    draw = np.random.default_rng(seed).standard_normal((m, m))
    X = (draw + draw.T) / (2 + 2 * np.linalg.norm(draw)) * math.log(budget)
    after = online.mirror_step(X, G, H, rate, budget)
    values = np.linalg.eigvalsh(online.exponential(after))
    assert values.min() >= (1 - 1e-10) / budget
    assert values.max() <= budget * (1 + 1e-10)
    free = online.mirror_step(X, G, H, rate)
    assert np.linalg.norm(free - X, 2) <= rate * (1 + 100 * EPS) + 100 * EPS
    moved = rate * online.damping_weight(G, H) * inner(G, H) / inner(H, H)
    assert abs(np.trace(free - X) - moved) <= 1e-13 * m * (rate + math.log(budget))


@pytest.mark.claim("ours-mirror-step", shows="holds", by="numeric")
def test_it_minimises_slope_and_entropy_within_the_budget() -> None:
    """The definition of a mirror step, by trial: no other P within the budget has a smaller sum."""
    rng = np.random.default_rng(3)
    for budget in (1.3, 2.0, 10.0):
        G, H, draw = rng.standard_normal((3, 2)), rng.standard_normal((3, 2)), rng.standard_normal((3, 3))
        X = np.clip(np.linalg.eigvalsh(draw + draw.T), -math.log(budget), math.log(budget)) * np.eye(3)
        slope, rate = online.damping_weight(G, H) * online.normalised_slope(G, H), 3.0
        before, best = online.exponential(X), online.exponential(online.mirror_step(X, G, H, rate, budget))

        def cost(P: np.ndarray, before: np.ndarray = before, slope: np.ndarray = slope) -> float:
            return rate * np.sum(slope * P) + online.relative_entropy(P, before)  # noqa: B023

        for _ in range(200):
            turn = rng.standard_normal((3, 3)) * 10.0 ** rng.uniform(-3, 0)
            values, vectors = np.linalg.eigh(best + turn + turn.T)
            other = (vectors * np.clip(values, 1 / budget, budget)) @ vectors.T
            assert cost(other) >= cost(best) - 1e-12


@pytest.mark.claim("ours-mirror-regret", shows="holds", by="property")
@problems(lambda chance: definite_matrix(chance, max_log_condition=2.0), any_seed)
def test_the_entropy_is_strongly_convex_below_the_budget(drawn, seed) -> None:
    P, _, high = drawn
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal(P.shape))
    other = (Q * rng.uniform(0.01 * high, high, len(P))) @ Q.T
    other = (other + other.T) / 2
    entropy = online.relative_entropy(P, other)
    assert entropy >= np.sum((P - other) ** 2) / (2 * high) - 1e-12 * len(P) * high


@pytest.mark.claim("ours-mirror-regret", shows="holds", by="property")
@problems(smooth_convex, number(0.05, 0.9), number(0.1, 3), number(1.1, 5), any_seed)
def test_the_regret_of_the_mirror_step(problem, share, reach, budget, seed) -> None:
    found, start = problem
    L, n = float(found.smoothness), len(start)
    lr = reach / L
    rate = share / (budget * lr * L)
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    rival = (Q * np.exp(rng.uniform(-math.log(budget), math.log(budget), n))) @ Q.T
    rival = (rival + rival.T) / 2
    rows = online_run(found, start, lr, rate, budget, 12)
    ours = sum(w * phi(found, x, G, P, lr) for w, x, G, P in rows)
    theirs = sum(w * phi(found, x, G, rival, lr) for w, x, G, _ in rows)
    entropy = online.relative_entropy(rival, np.eye(n))
    slack = sum(1e-12 * (1 + abs(float(found.value(x)))) / (lr * np.sum(G * G)) for _, x, G, _ in rows)
    assert ours <= online.mirror_regret(entropy, theirs, rate, L, lr, budget) * (1 + 1e-9) + slack


@pytest.mark.claim("ours-mirror-regret", shows="holds", by="symbolic")
def test_what_a_mirror_step_costs_at_most() -> None:
    """The largest `eta s d - d^2 / 2b` over all moves d, with `s^2 = 2 L lr phi`; and the sum, solved for phi."""
    eta, s, d, b, L, lr = sp.symbols("eta s d b L epsilon", positive=True)
    gain = eta * s * d - d**2 / (2 * b)
    best = sp.solve(sp.diff(gain, d), d)[0]
    assert sp.expand(gain.subs(d, best) - eta**2 * b * s**2 / 2) == 0
    ours, theirs, entropy = sp.symbols("ours theirs D", positive=True)
    summed = sp.Eq(eta * (ours - theirs), entropy + eta**2 * b * L * lr * ours)
    solved = sp.solve(summed, ours)[0]
    assert sp.simplify(solved - online.mirror_regret(entropy, theirs, eta, L, lr, b)) == 0


@pytest.mark.claim("ours-mirror-superlinear", shows="holds", by="property")
@problems(bowl_of, number(0.3, 3), number(0.1, 1.9), one_of(10, 60))
def test_the_mirror_step_is_superlinear(bowl, reach, share, steps) -> None:
    """From P = I with any learning rate whose inverse Hessian the budget holds; first steps may go far up."""
    A, high, start = bowl
    values = np.linalg.eigvalsh(A)
    lr = reach / math.sqrt(values[0] * values[-1])
    budget = 1.01 * max(lr * values[-1], 1 / (lr * values[0]), 1.01)
    rate = share / (budget * lr * high)
    entropy = online.relative_entropy(np.linalg.inv(lr * A), np.eye(len(A)))
    constant = online.mirror_constant(entropy, rate, high, lr, budget)
    x, X, H, total, ratios = start, np.zeros_like(A), None, 0.0, []
    for _ in range(steps):
        G = A @ x
        if np.linalg.norm(G) <= 1e-9 * np.linalg.norm(A @ start):
            break
        if H is not None:
            X = online.mirror_step(X, G, H, rate, budget)
        after = x - lr * online.exponential(X) @ G
        ratio = gap(A, after) / gap(A, x)
        rises = np.linalg.norm(A @ after) > np.linalg.norm(G)
        total += math.sqrt(ratio) if rises else ratio
        ratios.append(ratio)
        x, H = after, G
    assert total <= constant * (1 + 1e-9) + 1e-9
    if ratios:
        left, taken = sum(map(math.log, np.maximum(ratios, 1e-300))), len(ratios)
        bound = constant / math.e + taken * math.log(max(constant, 1e-300) / taken)
        assert left <= bound + 1e-6 * taken or constant == 0


@pytest.mark.claim("ours-mirror-superlinear", shows="holds", by="symbolic")
def test_what_a_rise_costs_at_most() -> None:
    """`max(1, u) <= e^(u/e)`: its logarithm is `u/e - log u`, least at u = e, where it is zero."""
    u = sp.Symbol("u", positive=True)
    gap_of_logs = u / sp.E - sp.log(u)
    assert sp.solve(sp.diff(gap_of_logs, u), u) == [sp.E]
    assert gap_of_logs.subs(u, sp.E) == 0
    assert sp.diff(gap_of_logs, u, 2).subs(u, sp.E).is_positive
    assert online.mirror_constant(3, sp.Rational(1, 2), 1, 1, 2) == 12


@pytest.mark.claim("ours-mirror-superlinear", shows="holds", by="numeric")
def test_it_becomes_faster_than_any_linear_rate() -> None:
    """Curvatures 1 to 100: gradient descent leaves 1/50 of an error at best; here the factor itself goes to zero."""
    A = np.diag([1.0, 10.0, 100.0])
    x, X, H, lr, losses = np.ones((3, 1)), np.zeros((3, 3)), None, 0.1, []
    for _ in range(700):
        G = A @ x
        losses.append(gap(A, x))
        if losses[-1] < 1e-250:
            break
        if H is not None:
            X = online.mirror_step(X, G, H, 0.02, 11.0)
        x, H = x - lr * online.exponential(X) @ G, G
    factors = [losses[i + 20] / losses[i] for i in range(0, len(losses) - 20, 20)]
    assert factors[-1] < 1e-3 * np.median(factors)
    assert losses[-1] < 1e-200


# ---------------------------------------------------------------------------------------
# The null step


@pytest.mark.claim("ours-null-step", shows="holds", by="property")
@problems(smooth_problem, any_seed, any_scale)
def test_a_null_step_loses_nothing_whatever_p_is(problem, seed, size) -> None:
    """P is drawn at random, not even definite: the loss keeps gradient descent's own bound."""
    found, x = problem
    L, rng = float(found.smoothness), np.random.default_rng(seed)
    before = [float(found.value(x))]
    for _ in range(8):
        G, draw = np.asarray(found.gradient(x), dtype=float), rng.standard_normal((len(x), len(x)))
        plain, wild = x - G / L, x - size * (draw + draw.T) @ G
        x = online.null_step(found.value, [plain, wild])
        value = float(found.value(x))
        rounding = 1e-13 * (1 + abs(before[-1]))
        assert value <= before[-1] - np.sum(G * G) / (2 * L) + rounding
        before.append(value)
    if found.pl is not None:
        bound = (1 - float(found.pl) / L) ** 8 * (before[0] - float(found.minimum))
        assert before[-1] - float(found.minimum) <= bound + 1e-11 * (1 + abs(before[0]))


@pytest.mark.claim("ours-null-step", shows="holds", by="exact")
def test_a_null_step_takes_the_better_point_and_the_first_of_equals() -> None:
    bowl = objectives.diagonal_quadratic([F(1), F(4)])
    points = [column(1, 1), column(F(1, 2), 0), column(0, F(1, 4)), column(F(-1, 2), 0)]
    assert online.null_step(bowl.value, points[:2]) is not points[0]
    assert np.all(online.null_step(bowl.value, points) == points[1])
    assert np.all(online.null_step(bowl.value, points[:1]) == points[0])
    # P = -10 I would climb: staying is what is taken.
    climbing = points[0] + 10 * bowl.gradient(points[0])
    assert np.all(online.null_step(bowl.value, [points[0], climbing]) == points[0])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="H: expected a gradient that is not zero"):
        online.normalised_slope(np.ones((2, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="candidates: expected at least one point"):
        online.null_step(lambda x: x, [])
    with pytest.raises(ValueError, match="budget: expected a number in"):
        online.project(np.eye(1), 1.0)
    with pytest.raises(ValueError, match="budget: expected a number in"):
        online.mirror_step(np.eye(1), np.ones((1, 1)), np.ones((1, 1)), 0.1, 1.0)


def test_it_agrees_with_the_papers_hypergradient_at_the_identity() -> None:
    """For P = I and M = I the normalised slope is the paper's hypergradient, over `2 lr |H|^2`."""
    G, H = np.array([[1.0], [2.0]]), np.array([[3.0], [-1.0]])
    paper = hg.hypergradient(G, H, np.eye(2), 0.1)
    np.testing.assert_allclose(online.normalised_slope(G, H), paper / (2 * 0.1 * 10), rtol=1e-14)


@pytest.mark.parametrize("m", [1, 2, 5])
def test_the_exponential_of_zero(m: int) -> None:
    assert np.array_equal(online.exponential(np.zeros((m, m))), np.eye(m))
