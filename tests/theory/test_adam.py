"""Adam as the base optimizer: its Jacobian D, and where Eq. (4) without D has the wrong sign."""

from __future__ import annotations

import runpy
from fractions import Fraction

import mpmath
import numdifftools as nd
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import adam, ledger
from fop_theory import hypergradient as hg
from fop_theory import reference as oracle
from fop_theory.reference import complex_step_gradient
from tests.helpers import column
from tests.strategies import factors, gradient_pairs, scales, seeds


@st.composite
def states(draw, shape: tuple[int, ...]):
    """`(m, v, step, beta1, beta2)`: moments that some history of inputs can leave."""
    rng = np.random.default_rng(draw(seeds))
    beta1, beta2 = draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]))
    m = v = np.zeros(shape)
    past = draw(st.integers(0, 4))
    for _ in range(past):
        m, v = adam.moments(rng.standard_normal(shape) * 10 ** rng.uniform(-1, 1), m, v, beta1, beta2)
    return m, v, past + 1, beta1, beta2


# ---------------------------------------------------------------------------------------
# The Jacobian and the hypergradient


@pytest.mark.claim("ours-adam-hypergradient", shows="holds", by="symbolic")
@pytest.mark.parametrize("step", [1, 2])
def test_the_jacobian_is_the_derivative_of_the_map(step: int) -> None:
    """All of Adam's numbers free symbols, the damping too."""
    p, m = sp.symbols("p m", real=True)
    v, b1, b2, damping = sp.symbols("v beta1 beta2 delta", positive=True)
    arguments = [sp.Matrix([x]) for x in (p, m, v)]
    direct = sp.diff(adam.adam_direction(*arguments, step, b1, b2, damping)[0], p)
    ours = adam.adam_jacobian(*arguments, step, b1, b2, damping)[0]
    s = sp.Symbol("s", positive=True)
    v_hat = (b2 * v + (1 - b2) * p**2) / (1 - b2**step)
    difference = (direct - ours).subs(sp.sqrt(v_hat), s)
    assert sp.simplify(difference.subs(v, (s**2 * (1 - b2**step) - (1 - b2) * p**2) / b2)) == 0


@pytest.mark.claim("ours-adam-hypergradient", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 2), (2, 2, 1)])
def test_any_entrywise_optimizer_puts_its_slopes_on_g(m: int, n: int, k: int) -> None:
    """An arbitrary function of each entry: the chain rule gives Eq. (4) with D * G for G."""
    G, H, M = (sp.Matrix(r, c, sp.symbols(f"{x}:{r * c}")) for x, r, c in (("g", m, n), ("h", m, n), ("m", m, k)))
    lr, x = sp.symbols("epsilon x")
    u = sp.Function("u")
    p = M @ M.T @ H
    loss = sum(-lr * G[i] * u(p[i]) for i in range(m * n))
    D = p.applyfunc(lambda entry: sp.diff(u(x), x).subs(x, entry))
    direct = M.applyfunc(lambda entry: sp.diff(loss, entry).doit())
    assert (direct - adam.adam_hypergradient(G, H, M, D, lr)).doit().expand() == sp.zeros(m, k)


@pytest.mark.claim("ours-adam-hypergradient", shows="holds", by="property")
@given(st.data())
def test_the_jacobian_by_complex_step(data) -> None:
    """The map itself is the oracle's Adam; its slope is the formula's."""
    p, _ = data.draw(gradient_pairs())
    m, v, step, beta1, beta2 = data.draw(states(p.shape))
    damping = data.draw(st.sampled_from([1e-8, 1e-3, 1.0]))
    base = oracle.Adam(betas=(beta1, beta2), eps=damping)
    moments = oracle.Moments(m, v, step - 1)
    ours = adam.adam_direction(p, m, v, step, beta1, beta2, damping)
    np.testing.assert_allclose(base.update(moments, p, 0 * p, 1.0)[1], ours, rtol=1e-13, atol=1e-15)
    direct = complex_step_gradient(lambda p: np.sum(adam.adam_direction(p, m, v, step, beta1, beta2, damping)), p)
    D = adam.adam_jacobian(p, m, v, step, beta1, beta2, damping)
    # D is a difference of two terms of this size.
    v_hat = (beta2 * v + (1 - beta2) * p**2) / (1 - beta2**step)
    size = (1 - beta1) / (1 - beta1**step) / (np.sqrt(v_hat) + damping) + np.abs(ours / p)
    np.testing.assert_allclose(direct / size, D / size, atol=1e-12)


@pytest.mark.claim("ours-adam-hypergradient", shows="holds", by="numeric")
@pytest.mark.parametrize("seed", range(3))
def test_the_jacobian_by_central_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, m = rng.standard_normal((2, 3, 1))
    v = rng.uniform(0.5, 2, (3, 1))
    slopes = nd.Derivative(lambda x: adam.adam_direction(x.reshape(3, 1), m, v, 5, damping=1e-8).ravel())
    np.testing.assert_allclose(slopes(p.ravel()), adam.adam_jacobian(p, m, v, 5, damping=1e-8).ravel(), rtol=1e-9)


@pytest.mark.claim("ours-adam-hypergradient", shows="holds", by="property")
@pytest.mark.claim("text-2-3-any-optimizer", shows="under", by="property")
@pytest.mark.claim("text-3-with-any-optimizer", shows="under", by="property")
@given(st.data())
def test_the_hypergradient_under_adam_is_the_oracle_s(data) -> None:
    """The oracle differentiates FOP's whole step with Adam in it; the corrected Eq. (4) agrees, any shape and rank."""
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(len(G))), data.draw(scales)
    m, v, step, beta1, beta2 = data.draw(states(G.shape))
    damping = data.draw(st.sampled_from([1e-3, 1.0]))
    p = M @ (M.T @ H)
    D = adam.adam_jacobian(p, m, v, step, beta1, beta2, damping)
    ours = adam.adam_hypergradient(G, H, M, D, lr)
    base = oracle.Adam(betas=(beta1, beta2), eps=damping)
    last = oracle.LastStep(0 * G, H, M, oracle.Moments(m, v, step - 1), lr)
    direct = oracle.oracle_hypergradient(G, last, M, H, oracle.Settings(lr=lr, through="step", base=base))
    terms = 2 / (1 - beta1) / damping  # bounds both terms of D
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) * terms + 1e-300
    np.testing.assert_allclose(direct / size, ours / size, atol=1e-12)


@pytest.mark.claim("text-2-3-any-optimizer", shows="under", by="symbolic")
@pytest.mark.claim("text-3-with-any-optimizer", shows="under", by="symbolic")
def test_any_differentiable_optimizer_puts_its_jacobian_on_g() -> None:
    """Two coordinates mixed by an arbitrary map (u1, u2): Eq. (4) with J^T g for g, J the map's Jacobian."""
    g, h, M = (sp.Matrix(2, 1, sp.symbols(f"{x}:2")) for x in "ghm")
    x, y, lr = sp.symbols("x y epsilon")
    maps = [sp.Function(name)(x, y) for name in ("u1", "u2")]
    p = M @ M.T @ h
    at = {x: p[0], y: p[1]}
    loss = sum(-lr * g[i] * maps[i].subs(at, simultaneous=True) for i in range(2))
    jacobian = sp.Matrix(2, 2, lambda i, j: sp.diff(maps[i], (x, y)[j]).subs(at, simultaneous=True).doit())
    direct = M.applyfunc(lambda entry: sp.diff(loss, entry).doit())
    assert (direct - hg.hypergradient(jacobian.T @ g, h, M, lr)).doit().expand() == sp.zeros(2, 1)


@pytest.mark.claim("ours-precondition-after-adam", shows="holds", by="property")
@given(st.data())
def test_after_adam_eq_4_needs_no_jacobian(data) -> None:
    """The step theta - lr M M^T u, with u Adam's direction for the raw gradient: Eq. (4) with u for h."""
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(len(G))), data.draw(scales)
    m, v, step, beta1, beta2 = data.draw(states(G.shape))
    u = adam.adam_direction(H, m, v, step, beta1, beta2, 1e-3)
    direct = complex_step_gradient(lambda M: np.sum(G * hg.factored_step(0 * G, M, u, lr)), M)
    size = lr * np.linalg.norm(G) * np.linalg.norm(u) * np.linalg.norm(M) + 1e-300
    np.testing.assert_allclose(direct / size, hg.hypergradient(G, u, M, lr) / size, atol=1e-13)


@pytest.mark.claim("ours-precondition-after-adam", shows="holds", by="symbolic")
def test_after_adam_by_components() -> None:
    g, u, M = (sp.Matrix(2, 1, sp.symbols(f"{x}:2")) for x in "gum")
    lr = sp.Symbol("epsilon")
    linear = (g.T @ hg.factored_step(sp.zeros(2, 1), M, u, lr))[0]
    direct = M.applyfunc(lambda entry: sp.diff(linear, entry))
    assert (direct - hg.hypergradient(g, u, M, lr)).expand() == sp.zeros(2, 1)


# ---------------------------------------------------------------------------------------
# First step: no influence at all


@pytest.mark.claim("ours-adam-first-step", shows="holds", by="symbolic")
def test_the_first_direction_is_the_sign_and_its_slope_zero() -> None:
    """For every beta1, beta2 and p, Adam's epsilon zero; with it, D is epsilon/(|p| + epsilon)^2."""
    p, damping = sp.symbols("p delta", positive=True)
    b1, b2 = sp.symbols("beta1 beta2", positive=True)
    zero = sp.zeros(1, 1)
    for signed in (p, -p):
        one = sp.Matrix([signed])
        assert sp.simplify(adam.adam_direction(one, zero, zero, 1, b1, b2)[0] - sp.sign(signed)) == 0
        assert sp.simplify(adam.adam_jacobian(one, zero, zero, 1, b1, b2)[0]) == 0
        damped = adam.adam_jacobian(one, zero, zero, 1, b1, b2, damping)[0]
        assert sp.simplify(damped - damping / (p + damping) ** 2) == 0


@pytest.mark.claim("ours-adam-first-step", shows="holds", by="exact")
def test_eq_4_is_not_zero_at_the_first_step() -> None:
    g = column(1, 2)
    M = np.array([[Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)]], dtype=object)
    D = adam.adam_jacobian(M @ M.T @ g, 0 * g, 0 * g, 1)
    assert (adam.adam_hypergradient(g, g, M, D, 1) == 0).all()
    assert (hg.hypergradient(g, g, M, 1) != 0).all()


# ---------------------------------------------------------------------------------------
# The sign of D


@pytest.mark.claim("ours-adam-sign", shows="holds", by="symbolic")
@pytest.mark.parametrize("step", [1, 3])
def test_the_sign_of_the_jacobian(step: int) -> None:
    """D times v_hat^(3/2) and the two bias corrections is the polynomial; the factors are positive."""
    p, m = sp.symbols("p m", real=True)
    v = sp.Symbol("v", positive=True)
    b1, b2 = sp.symbols("beta1 beta2", positive=True)
    arguments = [sp.Matrix([x]) for x in (p, m, v)]
    v_hat = (b2 * v + (1 - b2) * p**2) / (1 - b2**step)
    s = sp.Symbol("s", positive=True)
    D = adam.adam_jacobian(*arguments, step, b1, b2)[0].subs(sp.sqrt(v_hat), s)
    scaled = (D * s**3).expand().subs(s**2, v_hat) * (1 - b1**step) * (1 - b2**step)
    assert sp.simplify(scaled - adam.jacobian_sign(*arguments, b1, b2)[0]) == 0


@pytest.mark.claim("ours-adam-sign", shows="holds", by="property")
@given(st.data())
def test_the_sign_on_drawn_states(data) -> None:
    p, _ = data.draw(gradient_pairs())
    m, v, step, beta1, beta2 = data.draw(states(p.shape))
    sign = adam.jacobian_sign(p, m, v, beta1, beta2)
    D = adam.adam_jacobian(p, m, v, step, beta1, beta2)
    # Where the two terms of the polynomial cancel to rounding, no sign is asked for.
    clear = np.abs(sign) > 1e-9 * ((1 - beta1) * beta2 * v + np.abs(m * p) + (1 - beta2) * p**2)
    assert (np.sign(D) == np.sign(sign))[clear].all()


@pytest.mark.claim("ours-adam-sign", shows="holds", by="exact")
def test_the_threshold_at_the_usual_betas() -> None:
    """At m = v = 1: zero at p = 111, negative above; a larger p then gives a smaller u, squares compared."""
    one = column(1)
    signs = [adam.jacobian_sign(column(p), one, one)[0, 0] for p in (110, 111, 112)]
    assert signs == [Fraction(9, 10_000), 0, Fraction(-9, 10_000)]
    squares = [adam.adam_direction(column(p), one, one, 5)[0, 0] ** 2 for p in (110, 111, 112, 113)]
    assert squares[0] < squares[1] > squares[2] > squares[3]


@pytest.mark.claim("ours-adam-sign", shows="holds", by="numeric")
def test_the_slope_is_negative_to_fifty_digits() -> None:
    """At m = v = 1, p = 112 and 113, by mpmath; the formula against mpmath's own derivative."""
    with mpmath.workdps(50):
        one = np.array([[mpmath.mpf(1)]], dtype=object)
        for p in (112, 113):
            D = adam.adam_jacobian(p * one, one, one, 1000)[0, 0]
            direct = mpmath.diff(lambda x: adam.adam_direction(x * one, one, one, 1000)[0, 0], p)
            assert D < 0
            assert abs(D - direct) < mpmath.mpf(10) ** -20 * abs(D)


@pytest.mark.claim("ours-adam-second-step", shows="holds", by="symbolic")
def test_at_the_second_step_an_eleven_percent_growth_is_enough() -> None:
    """Inputs p1 > 0, then p2: the sign is that of `beta2 p1 - beta1 p2`, for all betas."""
    p1, p2, b1, b2 = sp.symbols("p1 p2 beta1 beta2", positive=True)
    zero = sp.zeros(1, 1)
    m, v = adam.moments(sp.Matrix([p1]), zero, zero, b1, b2)
    sign = adam.jacobian_sign(sp.Matrix([p2]), m, v, b1, b2)[0]
    assert sp.expand(sign - (1 - b1) * (1 - b2) * p1 * (b2 * p1 - b1 * p2)) == 0


@pytest.mark.claim("ours-adam-second-step", shows="holds", by="exact")
@pytest.mark.parametrize(("p2", "sign"), [(Fraction(110, 100), 1), (Fraction(111, 100), 0), (Fraction(112, 100), -1)])
def test_at_the_usual_betas_the_threshold_is_111_hundredths(p2: Fraction, sign: int) -> None:
    m, v = adam.moments(column(1), column(0), column(0))
    assert np.sign(adam.jacobian_sign(column(p2), m, v)[0, 0]) == sign


@pytest.mark.claim("text-2-3-any-optimizer", shows="fails", by="exact")
@pytest.mark.claim("text-3-with-any-optimizer", shows="fails", by="exact")
def test_eq_4_moves_m_the_wrong_way_under_adam() -> None:
    """J = theta: the rule as printed raises M from 1 to 2, and Adam's second step becomes shorter."""
    one, M = column(1), column(1)
    lr, rho = Fraction(1), Fraction(1, 2)
    learned = M - rho * hg.hypergradient(one, one, M, lr)
    assert learned[0, 0] == 2
    m, v = adam.moments(M @ M.T @ one, 0 * one, 0 * one)
    kept, moved = (adam.adam_direction(x @ x.T @ one, m, v, 2)[0, 0] for x in (M, learned))
    assert kept == 1
    assert moved > 0
    assert moved**2 < 1
    # And where it stands now, the true hypergradient has the opposite sign of the printed one.
    D = adam.adam_jacobian(learned @ learned.T @ one, m, v, 2)
    assert adam.adam_hypergradient(one, one, learned, D, lr)[0, 0] > 0 > hg.hypergradient(one, one, learned, lr)[0, 0]


@pytest.mark.claim("text-2-3-any-optimizer", shows="fails", by="exact")
@pytest.mark.claim("text-3-with-any-optimizer", shows="fails", by="exact")
def test_witness_adam_wrong_way() -> None:
    found = runpy.run_path(str(ledger.WITNESSES / "adam_wrong_way.py"))
    assert found["learned"] < found["kept"] == 1
    ours = adam.adam_directions([column(1), column(4)])[1][0, 0]
    assert ours**2 == sp.Rational(found["learned"].numerator, found["learned"].denominator)


# ---------------------------------------------------------------------------------------
# Adam forgets the scale


@pytest.mark.claim("ours-adam-forgets-scale", shows="holds", by="symbolic")
def test_the_slopes_along_the_inputs_cancel() -> None:
    """Euler: three inputs p1, p2, p3 of any sign; the derivative of u_3 along them is zero (Adam's epsilon 0)."""
    ps = sp.symbols("p1:4", real=True)
    p3 = adam.adam_directions([sp.Matrix([p]) for p in ps])[2][0]
    assert sp.simplify(sum(p * sp.diff(p3, p) for p in ps)) == 0


@pytest.mark.claim("ours-adam-forgets-scale", shows="holds", by="property")
@given(st.integers(1, 6), st.integers(1, 8), seeds)
def test_a_constant_diagonal_p_changes_nothing(m: int, steps: int, seed: int) -> None:
    """Any positive diagonal P, the same at all steps: Adam's directions are those without it; a negative one flips."""
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((steps, m, 1))
    p = 10 ** rng.uniform(-3, 3, (m, 1)) * rng.choice([-1, 1], (m, 1))
    with_p, without = adam.adam_directions(p * gradients), adam.adam_directions(gradients)
    np.testing.assert_allclose(with_p, np.sign(p) * without, rtol=1e-12, atol=1e-13)


@pytest.mark.claim("ours-adam-forgets-scale", shows="holds", by="property")
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), seeds)
def test_the_hypergradient_through_adam_s_memory_is_orthogonal_to_m(m: int, k: int, steps: int, seed: int) -> None:
    """One M for all steps, the gradients fixed: the derivative of the last step by M has no part along M."""
    rng = np.random.default_rng(seed)
    gradients, G = rng.standard_normal((steps, m, 1)), rng.standard_normal((m, 1))
    M = rng.standard_normal((m, k))
    slope = complex_step_gradient(
        lambda M: np.sum(-G * adam.adam_directions([M @ (M.T @ H) for H in gradients])[-1]), M
    )  # fmt: skip
    # p = M M^T H can come near zero, where the map is steep: the size of the slope carries that.
    size = np.linalg.norm(slope) * np.linalg.norm(M) + np.linalg.norm(G)
    assert abs(np.sum(slope * M)) <= 1e-10 * size


def test_a_coordinate_that_saw_only_zeros() -> None:
    """Its slope is c1 over the damping, by complex step; in floats and in fractions."""
    zero, eps = np.zeros((1, 1)), 1e-3
    direct = adam.adam_direction(zero + 1e-30j, zero, zero, 3, damping=eps).imag[0, 0] / 1e-30
    assert adam.adam_jacobian(zero, zero, zero, 3, damping=eps)[0, 0] == pytest.approx(direct, rel=1e-12)
    exact = adam.adam_jacobian(column(0), column(0), column(0), 3, damping=Fraction(1, 1000))[0, 0]
    assert exact == Fraction(100_000, 271)


def test_roots_and_numbers_of_every_kind() -> None:
    """Floats, fractions (algebraic where the root is), mpmath: one formula, one value."""
    exact = adam.adam_direction(column(4), column(1), column(1), 3)[0, 0]
    floats = adam.adam_direction(np.array([[4.0]]), np.ones((1, 1)), np.ones((1, 1)), 3)[0, 0]
    assert floats == pytest.approx(float(exact), rel=1e-14)
    with mpmath.workdps(40):
        one = np.array([[mpmath.mpf(1)]], dtype=object)
        precise = adam.adam_direction(4 * one, one, one, 3)[0, 0]
    assert float(precise) == pytest.approx(float(exact), rel=1e-14)


def test_bad_arguments_are_named() -> None:
    x = np.ones((2, 1))
    with pytest.raises(ValueError, match="m: expected shape"):
        adam.adam_direction(x, x.T, x, 1)
    with pytest.raises(ValueError, match="beta1: expected a number below 1, got 1"):
        adam.adam_direction(x, x, x, 1, beta1=1)
    with pytest.raises(ValueError, match="beta2: expected a number in"):
        adam.adam_jacobian(x, x, x, 1, beta2=2)
    with pytest.raises(ValueError, match="step: expected"):
        adam.adam_jacobian(x, x, x, 0)
    with pytest.raises(ValueError, match="damping: expected a positive number where p and v are both zero"):
        adam.adam_direction(0 * x, x, 0 * x, 1)
    with pytest.raises(ValueError, match="m: expected zero where p and v are both zero"):
        adam.adam_jacobian(0 * x, x, 0 * x, 1, damping=1)
    with pytest.raises(ValueError, match="D: expected shape"):
        adam.adam_hypergradient(x, x, np.eye(2), x.T, 0.1)
    with pytest.raises(ValueError, match="ps: expected at least one"):
        adam.adam_directions([])
