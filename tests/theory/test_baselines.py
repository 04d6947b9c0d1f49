"""S-HD, PP-HD and diagonal FOP (Section 4), and whether diagonal preconditioners turn a gradient (Section 3)."""

from __future__ import annotations

import runpy
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from hypothesis import assume, given
from hypothesis import strategies as st

from fop_theory import baselines, ledger
from fop_theory import hypergradient as hg
from fop_theory.adam import adam_direction
from fop_theory.angles import least_cosine, most_turned, squared_cosine
from fop_theory.reference import complex_step_gradient
from tests.helpers import column, fractions, symbols
from tests.strategies import dims, factors, gradient_pairs, scales, seeds

# ---------------------------------------------------------------------------------------
# The three hypergradients


@pytest.mark.claim("ours-s-hd", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 2)])
def test_s_hd_by_components(m: int, n: int) -> None:
    G, H, theta, lr, rate = symbols("g", m, n), symbols("h", m, n), symbols("t", m, n), *sp.symbols("epsilon a")
    linear = sum(G.multiply_elementwise(baselines.scalar_step(theta, rate, H, lr)))
    assert sp.expand(sp.diff(linear, rate) - baselines.scalar_hypergradient(G, H, lr)) == 0


@pytest.mark.claim("ours-s-hd", shows="holds", by="property")
@given(gradient_pairs(), scales, st.floats(-3, 3))
def test_s_hd_by_a_difference(pair, lr: float, rate: float) -> None:
    """The step is linear in the rate: a difference quotient of any width is the derivative, up to rounding."""
    G, H = pair
    wider, narrower = (baselines.scalar_step(0 * G, rate + half, H, lr) for half in (0.5, -0.5))
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) + 1e-300
    difference = (np.sum(G * wider) - np.sum(G * narrower)) / size
    assert abs(difference - baselines.scalar_hypergradient(G, H, lr) / size) <= 1e-13 * (1 + abs(rate))


@pytest.mark.claim("ours-pp-hd", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 2)])
def test_pp_hd_by_components(m: int, n: int) -> None:
    G, H, theta, rates = (symbols(name, m, n) for name in "ghta")
    lr = sp.Symbol("epsilon")
    linear = sum(G.multiply_elementwise(baselines.per_parameter_step(theta, rates, H, lr)))
    direct = rates.applyfunc(lambda entry: sp.diff(linear, entry))
    assert (direct - baselines.per_parameter_hypergradient(G, H, lr)).expand() == sp.zeros(m, n)


@pytest.mark.claim("ours-pp-hd", shows="holds", by="property")
@given(gradient_pairs(), scales, seeds)
def test_pp_hd_complex_step(pair, lr: float, seed: int) -> None:
    G, H = pair
    rates = np.random.default_rng(seed).standard_normal(G.shape)
    direct = complex_step_gradient(lambda a: np.sum(G * baselines.per_parameter_step(0 * G, a, H, lr)), rates)
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) + 1e-300
    np.testing.assert_allclose(direct / size, baselines.per_parameter_hypergradient(G, H, lr) / size, atol=1e-13)


@pytest.mark.claim("ours-diagonal-fop", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (3, 1)])
def test_a_diagonal_factor_is_the_diagonal_of_eq_4(m: int, n: int) -> None:
    """Eq. (4) at M = diag(d), and the derivative of the step by d itself."""
    G, H, d, lr = symbols("g", m, n), symbols("h", m, n), symbols("d", m, 1), sp.Symbol("epsilon")
    ours = baselines.diagonal_hypergradient(G, H, d, lr)
    M = sp.diag(*d)
    assert (hg.hypergradient(G, H, M, lr).diagonal().T - ours).expand() == sp.zeros(m, 1)
    linear = sum(G.multiply_elementwise(hg.factored_step(0 * G, M, H, lr)))
    assert (d.applyfunc(lambda entry: sp.diff(linear, entry)) - ours).expand() == sp.zeros(m, 1)


@pytest.mark.claim("ours-diagonal-fop", shows="holds", by="property")
@given(gradient_pairs(), scales, seeds)
def test_a_diagonal_factor_complex_step(pair, lr: float, seed: int) -> None:
    G, H = pair
    d = np.random.default_rng(seed).standard_normal((len(G), 1))
    direct = complex_step_gradient(lambda d: np.sum(-lr * G * d**2 * H), d)
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) + 1e-300
    np.testing.assert_allclose(direct / size, baselines.diagonal_hypergradient(G, H, d, lr) / size, atol=1e-12)
    # A gradient step on d leaves the diagonal that `diagonal_update` predicts.
    rho = 1 / max(size, 1e-3)
    after = (d - rho * baselines.diagonal_hypergradient(G, H, d, lr)) ** 2
    np.testing.assert_allclose(baselines.diagonal_update(d**2, G, H, lr, rho), after, rtol=1e-11, atol=1e-13)


# ---------------------------------------------------------------------------------------
# FOP generalizes them: Abstract


@pytest.mark.claim("text-abstract-generalizes", shows="under", by="symbolic")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (3, 1)])
def test_a_scalar_factor_is_s_hd_on_the_root_of_the_rate(m: int, n: int) -> None:
    """M = x I: the same step as S-HD's with rate x^2, and Eq. (4) projected on I is the chain rule through x^2."""
    G, H, theta, x, lr = symbols("g", m, n), symbols("h", m, n), symbols("t", m, n), *sp.symbols("x epsilon")
    M = x * sp.eye(m)
    assert (hg.factored_step(theta, M, H, lr) - baselines.scalar_step(theta, x**2, H, lr)).expand() == sp.zeros(m, n)
    through = 2 * x * baselines.scalar_hypergradient(G, H, lr)
    assert sp.expand(hg.hypergradient(G, H, M, lr).trace() - through) == 0


@pytest.mark.claim("text-abstract-generalizes", shows="under", by="property")
@given(gradient_pairs(max_columns=1), scales, seeds)
def test_a_diagonal_factor_is_pp_hd_on_the_roots_of_the_rates(pair, lr: float, seed: int) -> None:
    G, H = pair
    d = np.random.default_rng(seed).standard_normal(G.shape)
    M = np.diag(d[:, 0])
    step = lr * np.linalg.norm(H) * 10 + 1e-300
    ours, theirs = hg.factored_step(0 * G, M, H, lr), baselines.per_parameter_step(0 * G, d**2, H, lr)
    np.testing.assert_allclose(ours / step, theirs / step, atol=1e-14)
    size = step * np.linalg.norm(G) + 1e-300
    through = 2 * d * baselines.per_parameter_hypergradient(G, H, lr)
    np.testing.assert_allclose(np.diag(hg.hypergradient(G, H, M, lr)) / size, through[:, 0] / size, atol=1e-13)


@pytest.mark.claim("text-abstract-generalizes", shows="fails", by="exact")
def test_fop_with_one_number_is_not_baydin_s_update() -> None:
    """The same pair of gradients moves the rate 1 to 3/2 by S-HD and to 4 by FOP with a 1 x 1 matrix."""
    g = h = column(1)
    lr, rho = Fraction(1), Fraction(1, 2)
    scalar = 1 - rho * baselines.scalar_hypergradient(g, h, lr)
    factor = g - rho * hg.hypergradient(g, h, g, lr)
    assert (scalar, (factor @ factor.T)[0, 0]) == (Fraction(3, 2), 4)
    # And a step of Eq. (4) that nobody holds back leaves the multiples of the identity, and the diagonals.
    M, both = fractions([[1, 0], [0, 1]]), column(1, 1)
    assert (M - rho * hg.hypergradient(both, both, M, lr)).tolist() == [[2, 1], [1, 2]]
    # To first order in rho the factor four between them is all: x^2 has the slope 2 x, twice.
    rho_ = sp.Symbol("rho")
    p = baselines.diagonal_update(sp.Matrix([1]), sp.Matrix([1]), sp.Matrix([1]), 1, rho_)[0]
    assert sp.diff(p, rho_).subs(rho_, 0) == 4


# ---------------------------------------------------------------------------------------
# Section 4: "the same method", "equivalent to a strictly diagonal curvature matrix"


@pytest.mark.claim("text-4-s-hd", shows="fails", by="exact")
def test_layer_wise_rates_are_not_one_rate() -> None:
    """Two layers whose gradients disagree: Baydin's one rate stays, S-HD's two rates part."""
    Gs, Hs = [column(1), column(1)], [column(1), column(-1)]
    assert [baselines.scalar_hypergradient(G, H, 1) for G, H in zip(Gs, Hs, strict=True)] == [-1, 1]
    assert baselines.global_hypergradient(Gs, Hs, 1) == 0


@pytest.mark.claim("text-4-s-hd", shows="corrected", by="property")
@given(st.lists(gradient_pairs(), min_size=1, max_size=4), scales)
def test_one_rate_for_all_sums_the_layers(pairs, lr: float) -> None:
    """The derivative by a rate that every layer shares, by complex step, is the sum of the layers' derivatives."""
    Gs, Hs = [G for G, _ in pairs], [H for _, H in pairs]
    shared = complex_step_gradient(
        lambda a: sum(np.sum(G * (-lr * a[0, 0] * H)) for G, H in pairs), np.ones((1, 1))
    )  # fmt: skip
    size = lr * sum(np.linalg.norm(G) * np.linalg.norm(H) for G, H in pairs) + 1e-300
    assert abs(shared[0, 0] - baselines.global_hypergradient(Gs, Hs, lr)) <= 1e-13 * size


@pytest.mark.claim("text-4-s-hd", shows="corrected", by="exact")
def test_with_one_layer_the_two_agree() -> None:
    G, H = fractions([[1, 2], [3, 4]]), fractions([[5, -6], [7, 8]])
    assert baselines.global_hypergradient([G], [H], Fraction(1, 3)) == baselines.scalar_hypergradient(
        G, H, Fraction(1, 3)
    )


@pytest.mark.claim("text-4-pp-hd-diagonal", shows="under", by="symbolic")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (3, 1)])
def test_pp_hd_is_a_diagonal_matrix_that_is_learned_itself(m: int, n: int) -> None:
    """On the vector of all parameters P = diag(a); its hypergradient is the diagonal of the one by a full P."""
    G, H, theta, rates = (symbols(name, m, n) for name in "ghta")
    lr = sp.Symbol("epsilon")
    P = sp.diag(*rates.vec())
    step = hg.preconditioned_step(theta.vec(), P, H.vec(), lr)
    assert (step - baselines.per_parameter_step(theta, rates, H, lr).vec()).expand() == sp.zeros(m * n, 1)
    full = -lr * G.vec() @ H.vec().T
    ours = baselines.per_parameter_hypergradient(G, H, lr).vec()
    assert (full.diagonal().T - ours).expand() == sp.zeros(m * n, 1)
    entry = sp.Matrix(m * n, m * n, lambda i, j: sp.Symbol(f"p{i}_{j}"))
    linear = (G.vec().T @ hg.preconditioned_step(theta.vec(), entry, H.vec(), lr))[0]
    assert (entry.applyfunc(lambda p: sp.diff(linear, p)) - full).expand() == sp.zeros(m * n, m * n)


@pytest.mark.claim("text-4-pp-hd-diagonal", shows="fails", by="exact")
def test_pp_hd_is_not_a_diagonal_m_m_t() -> None:
    """As M M^T the same diagonal moves by the square (1 + 2 rho lr g h)^2 and stays at least zero."""
    one, G, H = column(1), column(2), column(-1)
    linear = baselines.per_parameter_update(one, G, H, 1, 1)[0, 0]
    square = baselines.diagonal_update(one, G, H, 1, 1)[0, 0]
    assert (linear, square) == (-1, 9)


@pytest.mark.claim("ours-pp-hd-indefinite", shows="holds", by="exact")
def test_pp_hd_can_ascend() -> None:
    """One step drives a rate below zero; the next step then climbs."""
    rate = baselines.per_parameter_update(column(1), column(2), column(-1), 1, 1)
    theta, g = column(1), column(2)  # J = theta^2, whose slope at 1 is 2
    after = baselines.per_parameter_step(theta, rate, g, Fraction(1, 4))
    assert rate[0, 0] == -1
    assert after[0, 0] ** 2 > theta[0, 0] ** 2


@pytest.mark.claim("ours-pp-hd-indefinite", shows="holds", by="property")
@given(gradient_pairs(), scales, scales, seeds)
def test_a_diagonal_factor_never_goes_negative_and_pp_hd_does_exactly_when(pair, lr, rho, seed) -> None:
    """Rate a > 0 turns negative exactly when `rho lr g h < -a`; the square never does."""
    G, H = pair
    p = np.random.default_rng(seed).uniform(0.1, 2, (len(G), 1))
    assert (baselines.diagonal_update(p, G, H, lr, rho) >= 0).all()
    rates = np.broadcast_to(p, G.shape)
    move = rho * lr * G * H
    clear = np.abs(move + rates) > 1e-12 * rates
    negative = baselines.per_parameter_update(rates, G, H, lr, rho) < 0
    assert (negative == (move < -rates))[clear].all()


# ---------------------------------------------------------------------------------------
# Which of them turn a gradient: Sections 3 and 4


@pytest.mark.claim("text-3-no-rotation", shows="fails", by="exact")
def test_a_diagonal_matrix_turns() -> None:
    g = column(1, 1)
    assert squared_cosine(g, fractions([[1, 0], [0, 2]]) @ g) == Fraction(9, 10)


@pytest.mark.claim("text-3-no-rotation", shows="fails", by="exact")
@pytest.mark.parametrize("optimizer", ["Adam", "Adagrad"])
def test_the_first_step_of_adam_and_adagrad_turns(optimizer: str) -> None:
    """Both take the signs of the gradient (their epsilon 0): (1, 7) becomes (1, 1), cosine 4/5."""
    g = column(1, 7)
    u = adam_direction(g, 0 * g, 0 * g, 1) if optimizer == "Adam" else baselines.adagrad_direction([g])
    assert (u == 1).all()
    assert squared_cosine(g, u) == Fraction(16, 25)


@pytest.mark.claim("text-3-no-rotation", shows="fails", by="exact")
def test_adagrad_turns_at_a_later_step() -> None:
    """Gradients (3, 5) and then (4, 12): roots of the summed squares 5 and 13, step (4/5, 12/13)."""
    g = column(4, 12)
    u = baselines.adagrad_direction([column(3, 5), g])
    assert u.tolist() == [[Fraction(4, 5)], [Fraction(12, 13)]]
    assert squared_cosine(g, u) < 1


@pytest.mark.claim("text-3-no-rotation", shows="fails", by="property")
@given(dims, seeds, st.booleans())
def test_a_diagonal_matrix_turns_unless_it_is_constant_where_the_gradient_lives(m, seed, constant) -> None:
    """In integers, where equality is equality."""
    rng = np.random.default_rng(seed)
    p = rng.integers(1, 5, m)
    g = rng.integers(-4, 5, m)
    assume(g.any())
    p[:] = p[0] if constant else p
    exact = [np.array([[Fraction(int(x))] for x in vector], dtype=object) for vector in (g, p * g)]
    assert (squared_cosine(*exact) == 1) == (len(set(p[g != 0])) == 1)


@pytest.mark.claim("ours-diagonal-turns-as-far", shows="holds", by="symbolic")
def test_a_diagonal_matrix_reaches_the_widest_angle() -> None:
    """diag(low, high) at its worst gradient, for symbolic eigenvalues: cosine 2 sqrt(kappa)/(1 + kappa)."""
    low, high = sp.symbols("l h", positive=True)
    g = most_turned(low, high, sp.Matrix([1, 0]), sp.Matrix([0, 1]))
    assert sp.simplify(squared_cosine(g, sp.diag(low, high) @ g) - least_cosine(high / low) ** 2) == 0


@pytest.mark.claim("ours-diagonal-turns-as-far", shows="holds", by="property")
@given(st.integers(2, 6), seeds, st.floats(0, 4))
def test_no_matrix_of_that_condition_turns_further(m: int, seed: int, spread: float) -> None:
    """A full P with the same eigenvalues, at a drawn gradient, stays within the angle of the diagonal one."""
    rng = np.random.default_rng(seed)
    eigenvalues = 10.0 ** rng.uniform(0, spread, m)
    eigenvalues[:2] = 1, 10.0**spread
    Q, _ = np.linalg.qr(rng.standard_normal((m, m)))
    g = rng.standard_normal((m, 1))
    E = np.eye(m)
    worst = most_turned(1.0, 10.0**spread, E[:, :1], E[:, 1:2])
    diagonal = squared_cosine(worst, eigenvalues[:, None] * worst)
    # 1e-12: the rounding of a product with an orthogonal matrix, relative to cosines of at least 1e-4.
    assert squared_cosine(g, (Q * eigenvalues) @ (Q.T @ g)) >= diagonal * (1 - 1e-12) - 1e-13
    assert diagonal == pytest.approx(least_cosine(10.0**spread) ** 2, rel=1e-12)


@pytest.mark.claim("ours-sign-step-angle", shows="holds", by="symbolic")
@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_first_adam_step_turns_by_the_ratio_of_two_norms(m: int) -> None:
    """Cosine of g and sign g is `|g|_1 / (sqrt(m) |g|_2)`; it is `1/sqrt(m)` in the limit of one large entry."""
    g = sp.Matrix(m, 1, sp.symbols(f"g:{m}", positive=True))
    u = adam_direction(g, 0 * g, 0 * g, 1).applyfunc(sp.simplify)
    assert sp.simplify(squared_cosine(g, u) - sum(g) ** 2 / (m * sum(x**2 for x in g))) == 0
    limit = sp.limit(squared_cosine(g, u), g[0], sp.oo)
    assert sp.simplify(limit - sp.Rational(1, m)) == 0


@pytest.mark.claim("ours-sign-step-angle", shows="holds", by="numeric")
def test_a_gaussian_gradient_is_turned_by_37_degrees() -> None:
    """In many dimensions the cosine is the mean of |x|, sqrt(2/pi), to 1/sqrt(m); the integral by sympy."""
    x = sp.Symbol("x", real=True)
    mean = sp.integrate(sp.Abs(x) * sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi), (x, -sp.oo, sp.oo))
    assert sp.simplify(mean - sp.sqrt(2 / sp.pi)) == 0
    g = np.random.default_rng(0).standard_normal((10**6, 1))
    # Five standard deviations of the mean of |x| at a million draws, below 0.0031 + 0.0036 (the norm's share).
    assert np.sqrt(squared_cosine(g, np.sign(g))) == pytest.approx(float(sp.sqrt(2 / sp.pi)), abs=0.007)


@pytest.mark.claim("text-4-isolates-rotation", shows="fails", by="exact")
def test_the_diagonal_turns_where_the_full_matrix_does_not() -> None:
    """At (1, 1): diag(1, 2), a matrix of PP-HD, turns; [[2, 1], [1, 2]], a matrix of FOP, does not."""
    g = column(1, 1)
    M = fractions([[1, 1, 0], [1, 0, 1]])
    P = M @ M.T
    assert P.tolist() == [[2, 1], [1, 2]]
    assert squared_cosine(g, P @ g) == 1
    assert squared_cosine(g, g * column(1, 2)) < 1


@pytest.mark.claim("text-4-isolates-rotation", shows="fails", by="property")
@given(st.integers(2, 6), seeds)
def test_at_a_dense_gradient_a_diagonal_can_copy_any_matrix(m: int, seed: int) -> None:
    """For each gradient without a zero, some diagonal matrix takes exactly the step of a given full P."""
    rng = np.random.default_rng(seed)
    g = rng.integers(1, 5, m) * rng.choice([-1, 1], m)
    M = rng.integers(-3, 4, (m, 3))
    g_, M_ = (np.array([[Fraction(int(x)) for x in row] for row in A], dtype=object) for A in (g[:, None], M))
    step = M_ @ (M_.T @ g_)
    rates = step / g_
    assert (baselines.per_parameter_step(0 * g_, rates, g_, -1) == step).all()


@pytest.mark.claim("text-3-invertibility", shows="holds", by="exact")
def test_fop_can_lose_invertibility_in_one_step() -> None:
    """From M = I, gradients g = -h with 2 rho lr |g|^2 = 1: P is singular, and stays so whatever follows."""
    g, M = column(1, 0), fractions([[1, 0], [0, 1]])
    lr, rho = Fraction(1), Fraction(1, 2)
    M = M - rho * hg.hypergradient(g, -g, M, lr)
    assert (M[0] == 0).all()
    for seed in range(5):
        G, H = (fractions(row) for row in np.random.default_rng(seed).integers(-5, 6, (2, 2, 1)).tolist())
        M = M - rho * hg.hypergradient(G, H, M, lr)
        P = M @ M.T
        assert P[0, 0] * P[1, 1] - P[0, 1] * P[1, 0] == 0


@pytest.mark.claim("text-3-invertibility", shows="holds", by="symbolic")
def test_damping_makes_a_curvature_matrix_invertible() -> None:
    """What K-FAC adds: F F^T of one example in two dimensions is singular, F F^T + lambda I is not."""
    f, lam = sp.Matrix(sp.symbols("a b", real=True)), sp.Symbol("lambda", positive=True)
    assert (f @ f.T).det().expand() == 0
    assert (f @ f.T + lam * sp.eye(2)).det().is_positive


@pytest.mark.claim("text-3-invertibility", shows="holds", by="property")
@given(st.data(), st.floats(0.01, 10))
def test_damping_bounds_the_smallest_eigenvalue(data, damping: float) -> None:
    """For every drawn M the damped matrix has it; FOP's P has a zero one whenever k < m."""
    m = data.draw(dims)
    M = data.draw(factors(m))
    P = M @ M.T
    scale = np.linalg.norm(P)
    assert np.linalg.eigvalsh(P + damping * np.eye(m))[0] >= damping - 1e-13 * (scale + damping)
    if M.shape[1] < m:
        assert abs(np.linalg.eigvalsh(P)[0]) <= 1e-13 * scale


# ---------------------------------------------------------------------------------------
# Witnesses and bad arguments


@pytest.mark.claim("text-3-no-rotation", shows="fails", by="exact")
def test_witness_a_diagonal_turns() -> None:
    found = runpy.run_path(str(ledger.WITNESSES / "diagonal_turns.py"))
    assert found["cosine_squared"] == Fraction(9, 10)


@pytest.mark.claim("text-4-isolates-rotation", shows="fails", by="exact")
def test_witness_rotation_not_isolated() -> None:
    found = runpy.run_path(str(ledger.WITNESSES / "rotation_not_isolated.py"))
    assert (found["full"], found["diagonal"]) == (1, Fraction(9, 10))


def test_bad_arguments_are_named() -> None:
    x = np.ones((2, 1))
    with pytest.raises(ValueError, match="rates: expected shape"):
        baselines.per_parameter_step(x, x.T, x, 1.0)
    with pytest.raises(ValueError, match="H: expected finite"):
        baselines.scalar_hypergradient(x, x * np.nan, 1.0)
    with pytest.raises(ValueError, match="Hs: expected one gradient a layer, got 1 for 2"):
        baselines.global_hypergradient([x, x], [x], 1.0)
    with pytest.raises(ValueError, match="gradients: expected at least one"):
        baselines.adagrad_direction([])
    with pytest.raises(ValueError, match="d: expected shape"):
        baselines.diagonal_hypergradient(x, x, x.T, 1.0)
    with pytest.raises(ValueError, match="damping: expected"):
        baselines.adagrad_direction([x], damping=-1)
