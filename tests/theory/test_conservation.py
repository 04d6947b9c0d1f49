"""The exact trace identity, and what the flow conserves and never shrinks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import conservation, objectives, reference, structure
from fop_theory.algebra import inner
from fop_theory.hypergradient import m_first_step
from tests.helpers import symbols
from tests.strategies import dims, factors, gradient_pairs, scales, seeds

F = Fraction


def trace(M: np.ndarray):
    return inner(M, M)


# ---------------------------------------------------------------------------------------
# One step, exactly


@pytest.mark.claim("ours-trace-identity", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 3), (3, 1, 2), (2, 2, 2)])
def test_trace_identity_by_components(m: int, n: int, k: int) -> None:
    G, H, M = symbols("g", m, n), symbols("h", m, n), symbols("m", m, k)
    lr, rho = sp.symbols("epsilon rho")
    after = structure.multiplier(G, H, lr * rho) * M
    assert sp.expand(trace(after) - trace(M) - sum(conservation.trace_gain(G, H, M, lr, rho))) == 0


@pytest.mark.claim("ours-trace-identity", shows="holds", by="exact")
def test_trace_identity_along_a_run_in_fractions() -> None:
    """Along FOP on a parabola in two dimensions; with the loss: the two terms of second order."""
    bowl = objectives.diagonal_quadratic([F(1), F(3)])
    theta, M = np.array([[F(2)], [F(-1)]]), np.array([[F(1), F(0)], [F(1, 3), F(1)]])
    lr, rho = F(1, 8), F(1, 16)
    thetas, factors_ = structure.trajectory(bowl.gradient, theta, M, lr, rho, 5)
    curvature = np.array([[F(1)], [F(3)]])
    for t in range(1, 5):
        G, H = bowl.gradient(thetas[t]), bowl.gradient(thetas[t - 1])
        paid, extra = conservation.trace_gain(G, H, factors_[t - 1], lr, rho)
        assert trace(factors_[t]) - trace(factors_[t - 1]) == paid + extra
        step = thetas[t - 1] - thetas[t]
        assert paid == 4 * rho * inner(G, step)
        energy = inner(step, curvature * step)
        now = conservation.conserved(factors_[t], bowl.value(thetas[t]), rho)
        before = conservation.conserved(factors_[t - 1], bowl.value(thetas[t - 1]), rho)
        assert now - before == extra - 2 * rho * energy


@pytest.mark.claim("ours-trace-identity", shows="holds", by="property")
@given(st.data())
def test_trace_identity(data) -> None:
    G, H = data.draw(gradient_pairs())
    M = data.draw(factors(len(G)))
    lr, rho = data.draw(scales), data.draw(scales)
    a = lr * rho
    after = structure.multiplier(G, H, a) @ M
    gain = conservation.trace_gain(G, H, M, lr, rho)
    size = trace(M) * (1 + a * np.linalg.norm(G) * np.linalg.norm(H)) ** 2
    assert abs(trace(after) - trace(M) - sum(gain)) <= 1e-12 * size
    assert gain[1] >= 0


@pytest.mark.claim("ours-trace-budget", shows="holds", by="symbolic")
def test_what_convexity_gives_on_a_quadratic() -> None:
    """For `J = |A theta|^2 / 2` the budget's slack is a square, `2 rho |A (theta - theta')|^2`."""
    A, before, M = symbols("a", 2, 2), symbols("t", 2), symbols("m", 2, 2)
    lr, rho = sp.symbols("epsilon rho")
    H = A.T * A * before
    now = before - lr * M * M.T * H
    paid, _ = conservation.trace_gain(A.T * A * now, H, M, lr, rho)
    losses = [inner(A * x, A * x) / 2 for x in (before, now)]
    square = 2 * rho * inner(A * (before - now), A * (before - now))
    assert sp.expand(4 * rho * (losses[0] - losses[1]) - paid - square) == 0


@st.composite
def convex_problems(draw):
    """A convex function and a point: a quadratic, a logistic loss or a sum of Huber functions."""
    n = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["quadratic", "logistic", "huber"]))
    if kind == "quadratic":
        A = rng.standard_normal((n, n))
        found = objectives.quadratic(A @ A.T / n + 1e-3 * np.eye(n))
    elif kind == "logistic":
        found = objectives.logistic(rng.standard_normal((6, n)), rng.choice([-1, 1], 6), 0.01)
    else:
        found = objectives.huber(n)
    return found, rng.standard_normal((n, 1)) * 10.0 ** draw(st.floats(-1, 1))


@pytest.mark.claim("ours-trace-budget", shows="holds", by="property")
@given(convex_problems(), st.data())
def test_the_trace_budget_of_a_convex_loss(problem, data) -> None:
    """Whatever the last step did to the present loss: 4 rho times its gain, plus the second-order term."""
    objective, before = problem
    M, rho = data.draw(factors(len(before))), 10.0 ** data.draw(st.floats(-3, 1))
    # From steps far too short to steps that jump to the other side of the valley.
    lr = 10.0 ** data.draw(st.floats(-2, 0.7)) / (objective.smoothness * np.linalg.norm(M, 2) ** 2 + 1e-12)
    thetas, factors_ = structure.trajectory(objective.gradient, before, M, lr, rho, 2)
    G, H = objective.gradient(thetas[1]), objective.gradient(thetas[0])
    paid, extra = conservation.trace_gain(G, H, M, lr, rho)
    losses = objective.value(thetas[0]), objective.value(thetas[1])
    size = 4 * rho * (abs(losses[0]) + abs(losses[1]) + np.linalg.norm(G) * np.linalg.norm(thetas[1] - thetas[0]))
    assert paid <= 4 * rho * (losses[0] - losses[1]) + 1e-12 * size
    rounding = 1e-12 * (size + extra + trace(factors_[1]))
    assert trace(factors_[1]) - trace(M) <= 4 * rho * (losses[0] - losses[1]) + extra + rounding


DEGREES = {"dense": 2, "diagonal": 2, "square": 2, "pp-hd": 1, "s-hd": 1}


@pytest.mark.claim("ours-homogeneous-identity", shows="holds", by="property")
@given(st.sampled_from([*DEGREES, "normalised"]), st.data())
def test_homogeneous_identity_through_the_oracle(form: str, data) -> None:
    """For every parametrisation, with a hypergradient by complex step that knows no formula of ours."""
    G, H = data.draw(gradient_pairs())
    m, n = G.shape
    shape = {"diagonal": (m, 1), "pp-hd": (m, n), "s-hd": (1, 1)}.get(form, (m, m))
    rng = np.random.default_rng(data.draw(seeds))
    phi = rng.standard_normal(shape)
    G, H = G / (1e-300 + np.linalg.norm(G)), H / (1e-300 + np.linalg.norm(H))
    lr, rho = 0.3, data.draw(st.floats(0.01, 10))
    normalised = form == "normalised"
    settings = reference.Settings(lr, rho, form="dense" if normalised else form, normalize=normalised, order="m-first")
    state, theta = reference.step(reference.initial_state(0 * G, phi), 0 * G, H, settings)
    state, _ = reference.step(state, theta, G, settings)
    slope = (phi - state.M) / rho
    ours = conservation.homogeneous_gain(0 if normalised else DEGREES[form], G, -theta, slope, rho)
    size = (np.linalg.norm(phi) + rho * np.linalg.norm(slope)) ** 2 + rho * np.linalg.norm(theta)
    assert abs(trace(state.M) - trace(phi) - ours) <= 1e-13 * size


@pytest.mark.claim("ours-homogeneous-identity", shows="holds", by="symbolic")
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_homogeneous_identity_by_euler(degree: int) -> None:
    """P a matrix of homogeneous polynomials in two parameters, chosen freely."""
    p, q = sp.symbols("p q")
    lr, rho = sp.symbols("epsilon rho")
    G, H, phi = symbols("g", 2), symbols("h", 2), sp.Matrix([p, q])
    monomials = [p**i * q ** (degree - i) for i in range(degree + 1)]
    P = sp.Matrix(2, 2, lambda i, j: sum((i + 2 * j + s + 1) * x for s, x in enumerate(monomials)))
    overlap = inner(G, P * H)
    slope = -lr * sp.Matrix([sp.diff(overlap, x) for x in phi])
    after = phi - rho * slope
    ours = conservation.homogeneous_gain(degree, G, lr * P * H, slope, rho)
    assert sp.expand(inner(after, after) - inner(phi, phi) - ours) == 0


# ---------------------------------------------------------------------------------------
# The flow


@pytest.mark.claim("ours-flow-conservation", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 3), (3, 1, 2), (2, 2, 2)])
def test_the_flow_conserves_by_components(m: int, n: int, k: int) -> None:
    """`(tr M M^T)' + 4 rho <G, theta'>` is zero for any G; for I + M M^T it's `-4 rho |G|^2`."""
    G, M, rho = symbols("g", m, n), symbols("m", m, k), sp.Symbol("rho")
    loss = sp.Symbol("J")
    for identity in (0, 1):
        theta_rate, M_rate = conservation.flow(M, G, rho, identity)
        charge = conservation.conserved(M, loss, rho)
        rate = sum(sp.diff(charge, x) * y for x, y in zip(M, M_rate, strict=True))
        rate += sp.diff(charge, loss) * inner(G, theta_rate)
        assert sp.expand(rate + identity * 4 * rho * inner(G, G)) == 0


def test_the_flow_is_the_limit_of_the_steps() -> None:
    """One step of size lr from (theta, M), M first, with g at both ends equal to order lr."""
    g, M = symbols("g", 2), symbols("m", 2, 2)
    lr, rho = sp.symbols("epsilon rho")
    theta = symbols("t", 2)
    theta_after, M_after = m_first_step(theta, M, g, g, lr, rho)
    theta_rate, M_rate = conservation.flow(M, g, rho)
    for after, before, rate in ((theta_after, theta, theta_rate), (M_after, M, M_rate)):
        slope = ((after - before) / lr).applyfunc(lambda x: sp.limit(sp.expand(x), lr, 0))
        assert (slope - rate).expand() == sp.zeros(*rate.shape)


PROBLEMS = {
    "Booth": (objectives.booth, objectives.booth_gradient, [[-2.0], [2.0]], 0.01, 0.3),
    "Himmelblau, not convex": (objectives.himmelblau, objectives.himmelblau_gradient, [[0.0], [-1.0]], 0.01, 0.1),
}


@pytest.mark.claim("ours-flow-conservation", shows="holds", by="numeric")
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_flow_conserves_along_solutions(name: str, columns: int) -> None:
    value, gradient, start, rho, end = PROBLEMS[name]
    M = np.random.default_rng(columns).standard_normal((2, columns))
    solved = conservation.solve_flow(gradient, np.array(start), M, rho, np.linspace(0, end, 8))
    charges = [conservation.conserved(M, value(theta).item(), rho) for theta, M in zip(*solved[1:], strict=True)]
    np.testing.assert_allclose(charges, charges[0], rtol=1e-9)
    # So that it can fail: both parts change by far more than that.
    assert trace(solved.factors[-1]) > 1.05 * trace(solved.factors[0])


@pytest.mark.claim("ours-flow-conservation", shows="holds", by="numeric")
def test_discrete_runs_leave_the_law_at_first_order() -> None:
    """Half the step, half the distance from the flow's constant."""
    gaps = []
    for halvings in range(3):
        lr, steps = 0.004 / 2**halvings, 50 * 2**halvings
        thetas, factors_ = structure.trajectory(
            objectives.booth_gradient, np.array([[-2.0], [2.0]]), np.eye(2), lr, 0.01, steps + 1
        )
        charge = conservation.conserved(factors_[steps], objectives.booth(thetas[steps]).item(), 0.01)
        gaps.append(charge - conservation.conserved(np.eye(2), objectives.booth(thetas[0]).item(), 0.01))
    ratios = np.array(gaps[:-1]) / np.array(gaps[1:])
    assert np.all(np.abs(ratios - 2) < 0.25)


def test_with_the_identity_the_charge_falls() -> None:
    solved = conservation.solve_flow(
        objectives.booth_gradient, np.array([[-2.0], [2.0]]), np.eye(2) / 2, 0.01, np.linspace(0, 0.3, 9), identity=1
    )
    charges = [
        conservation.conserved(M, objectives.booth(theta).item(), 0.01) for theta, M in zip(*solved[1:], strict=True)
    ]
    assert np.all(np.diff(charges) < 0)


@pytest.mark.claim("ours-flow-eigenvalues", shows="holds", by="symbolic")
def test_the_flow_raises_every_eigenvalue() -> None:
    """First-order perturbation: `v^T P' v` for P diagonal and simple; its sum is `4 rho |g|^2`."""
    rho = sp.Symbol("rho", positive=True)
    roots = sp.symbols("r0:3", positive=True)
    M, g = sp.diag(*roots), symbols("g", 3)
    _, M_rate = conservation.flow(M, g, rho)
    P_rate = M_rate * M.T + M * M_rate.T
    for i, root in enumerate(roots):
        assert sp.expand(P_rate[i, i] / root**2 - 4 * rho * g[i] ** 2) == 0
    log_det_rate = ((M * M.T).inv() * P_rate).trace()
    assert sp.expand(log_det_rate - 4 * rho * inner(g, g)) == 0
    # The whole P need not rise: its derivative is indefinite for g = (1, -1, 0), P = diag(1, 4, 1).
    there = P_rate.subs(dict(zip([*roots, *g], [1, 2, 1, 1, -1, 0], strict=True))) / rho
    assert there[:2, :2].det() < 0


@pytest.mark.claim("ours-flow-eigenvalues", shows="holds", by="property")
@given(st.data())
def test_eigenvalues_never_shrink_for_a_frozen_gradient(data) -> None:
    """The flow with a constant G is `exp(2 rho t G G^T)`, exactly: Ostrowski's bound and the rates."""
    m, n = data.draw(dims), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(seeds))
    M, G = rng.standard_normal((m, data.draw(dims))), rng.standard_normal((m, n))
    P, rho, time = M @ M.T, 0.5, data.draw(st.floats(0.01, 2.0))
    G /= np.linalg.norm(G, 2)  # beyond, ‖A‖² times rounding would hide the small eigenvalues
    A = scipy.linalg.expm(2 * rho * time * G @ G.T)
    highest = np.linalg.norm(A, 2) ** 2
    before, after = np.linalg.eigvalsh(P), np.linalg.eigvalsh(A @ P @ A.T)
    rounding = 1e-13 * highest * before[-1]
    assert np.all(after >= before - rounding)
    assert np.all(after <= highest * before + rounding)


@pytest.mark.claim("ours-flow-eigenvalues", shows="holds", by="numeric")
def test_eigenvalue_rates_along_a_solution() -> None:
    """Slopes of the eigenvalues' logarithms along Himmelblau's flow, by central differences; log det too."""
    rho, width, end = 0.01, 1e-5, 0.05
    times = np.array([0, end - width, end, end + width])
    M = np.diag([1.0, 0.7])
    solved = conservation.solve_flow(objectives.himmelblau_gradient, np.array([[0.0], [-1.0]]), M, rho, times)
    logs = [np.log(np.linalg.eigvalsh(M @ M.T)) for M in solved.factors]
    at, factor = solved.thetas[2], solved.factors[2]
    gradient = objectives.himmelblau_gradient(at)
    values, rates = conservation.log_eigenvalue_rates(factor @ factor.T, gradient, rho)
    np.testing.assert_allclose(np.exp(logs[2]), values, rtol=1e-9)
    np.testing.assert_allclose((logs[3] - logs[1]) / (2 * width), rates, rtol=1e-5)
    assert rates.sum() == pytest.approx(4 * rho * np.sum(gradient**2), rel=1e-12)
    assert np.all(rates > 0)


@pytest.mark.claim("ours-flow-eigenvalues", shows="holds", by="numeric")
@pytest.mark.parametrize(("m", "n"), [(3, 1), (4, 2), (6, 1)])
def test_eigenvalue_rates_in_more_dimensions(m: int, n: int) -> None:
    """At the start of the exact flow of a frozen gradient. In the plane a matrix of eigenvectors may be symmetric."""
    rng = np.random.default_rng(m)
    M, G = rng.standard_normal((m, m)), rng.standard_normal((m, n))
    logs = []
    for time in (-1e-5, 1e-5):
        A = scipy.linalg.expm(2 * 0.5 * time * G @ G.T)
        logs.append(np.log(np.linalg.eigvalsh(A @ M @ M.T @ A.T)))
    _, rates = conservation.log_eigenvalue_rates(M @ M.T, G, 0.5)
    np.testing.assert_allclose((logs[1] - logs[0]) / 2e-5, rates, rtol=1e-5, atol=1e-7 * np.linalg.norm(G) ** 2)


@pytest.mark.claim("ours-flow-directions", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "k"), [(2, 2), (3, 2)])
def test_each_direction_pays_for_itself(m: int, k: int) -> None:
    """For `J = sum J_i(theta_i)` the flow keeps `P_ii + 4 rho J_i` for every i, at any rank."""
    M, rho = symbols("m", m, k), sp.Symbol("rho")
    slopes = symbols("j", m)
    theta_rate, M_rate = conservation.flow(M, slopes, rho)
    P_rate = M_rate * M.T + M * M_rate.T
    for i in range(m):
        assert sp.expand(P_rate[i, i] + 4 * rho * slopes[i] * theta_rate[i]) == 0


@pytest.mark.claim("ours-flow-directions", shows="holds", by="numeric")
def test_the_flow_stretches_the_steep_directions() -> None:
    """On a quadratic the end is known beforehand: `P_ii` gains `2 rho h_i theta_i^2`, most where h is large."""
    h, rho = np.array([[1.0], [10.0]]), 0.05
    theta = np.ones((2, 1))
    solved = conservation.solve_flow(lambda x: h * x, theta, np.eye(2), rho, np.linspace(0, 12, 5))
    P = solved.factors[-1] @ solved.factors[-1].T
    np.testing.assert_allclose(np.diag(P), 1 + 2 * rho * h.ravel(), rtol=1e-8)
    charges = [np.diag(M @ M.T) + 2 * rho * (h * x**2).ravel() for x, M in zip(*solved[1:], strict=True)]
    np.testing.assert_allclose(charges, np.broadcast_to(charges[0], (5, 2)), rtol=1e-9)


@pytest.mark.claim("ours-flow-one-dimension", shows="holds", by="symbolic")
def test_closed_form_in_one_dimension() -> None:
    """It starts at J_0 and solves `J' = -2 h (c - 4 rho J) J`, which the law leaves of the flow."""
    t, h, rho, loss, P = sp.symbols("t h rho J_0 P_0", positive=True)
    J = conservation.one_dimensional_loss(t, loss, P, h, rho)
    c = P + 4 * rho * loss
    assert sp.simplify(J.subs(t, 0) - loss) == 0
    assert sp.simplify(sp.diff(J, t) + 2 * h * (c - 4 * rho * J) * J) == 0
    x, m = sp.symbols("x m", positive=True)
    theta_rate, _ = conservation.flow(sp.Matrix([[m]]), sp.Matrix([[h * x]]), rho)
    assert sp.expand(h * x * theta_rate[0] + 2 * h * m**2 * (h * x**2 / 2)) == 0


@pytest.mark.claim("ours-flow-one-dimension", shows="holds", by="numeric")
@pytest.mark.parametrize(("h", "rho", "x", "m"), [(1.0, 0.1, 3.0, 1.0), (4.0, 0.5, -1.0, 0.3), (0.2, 2.0, 1.0, 0.1)])
def test_closed_form_against_the_integrator(h: float, rho: float, x: float, m: float) -> None:
    times = np.linspace(0, 2, 6)
    solved = conservation.solve_flow(lambda y: h * y, np.array([[x]]), np.array([[m]]), rho, times)
    ours = conservation.one_dimensional_loss(times, h * x**2 / 2, m**2, h, rho)
    np.testing.assert_allclose(h * solved.thetas[:, 0, 0] ** 2 / 2, ours, rtol=1e-8, atol=1e-11 * h * x**2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conservation.flow(np.ones((3, 1)), np.ones((2, 1)), 1.0), "M: expected shape"),
        (lambda: conservation.flow(np.ones((2, 1)), np.ones((2, 1)), 1.0, 2), "identity: expected a number in"),
        (lambda: conservation.log_eigenvalue_rates([[1, 2], [0, 1]], [[1], [1]], 1.0), "P: expected a symmetric"),
        (lambda: conservation.one_dimensional_loss(0.0, 1.0, 1.0, 0.0, 1.0), "curvature: expected a number in"),
        (lambda: conservation.homogeneous_gain(-1, [[1]], [[1]], [[1]], 1.0), "degree: expected a number in"),
        (lambda: conservation.trace_gain(np.ones((2, 1)), np.ones((2, 1)), np.ones((3, 1)), 1, 1), "M: expected shape"),
    ],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
