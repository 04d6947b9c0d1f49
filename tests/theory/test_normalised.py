"""Appendix A.2: normalised FOP, what its square root of n does, and the hypergradient that the paper leaves out."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product

import mpmath
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import angles, normalised, reference
from fop_theory import hypergradient as hg
from fop_theory.algebra import inner
from tests.helpers import counterexample, fractions, not_zero, same, symbols
from tests.strategies import factors, gradient_pairs, scales, seeds

#: Sizes for exact arithmetic, which costs more an operation.
small = st.integers(1, 3)


def factors_of(matrix: sp.MatrixExpr) -> list[sp.MatrixExpr]:
    """The factors of a product, powers written out."""
    if isinstance(matrix, sp.MatPow):
        return factors_of(matrix.base) * int(matrix.exp)
    return [x for part in matrix.args for x in factors_of(part)] if isinstance(matrix, sp.MatMul) else [matrix]


def in_traces(expression: sp.Expr) -> sp.Expr:
    """The expression with one symbol for each trace of a product, which may be rotated and transposed."""

    def named(trace: sp.Trace) -> sp.Expr:
        total = sp.S.Zero
        for term in sp.Add.make_args(trace.arg.doit().expand().doit()):
            number, parts = sp.S.One, []
            for x in factors_of(term):
                if isinstance(x, sp.MatrixExpr):
                    parts.append(x)
                else:
                    number *= x
            turned = [x.T.doit() for x in reversed(parts)]
            ways = [tuple(word[i:] + word[:i]) for word in (parts, turned) for i in range(len(parts))]
            total += number * sp.Symbol(f"tr {min(ways, key=str)}", positive=True)
        return total

    return expression.doit().expand().doit().replace(lambda e: isinstance(e, sp.Trace), named)


def any_size() -> tuple[sp.Expr, ...]:
    """`m`, then `M` and a direction `D` for it, then two gradients; sizes are symbols."""
    m, n, k = sp.symbols("m n k", integer=True, positive=True)
    return m, *(sp.MatrixSymbol(x, m, k) for x in "MD"), *(sp.MatrixSymbol(x, m, n) for x in "GH")


@st.composite
def situations(draw):
    """`(M, G, H)`: a factor of any rank and two gradients that fit it."""
    G, H = draw(gradient_pairs())
    return draw(factors(len(G))), G, H


#: `M M^T = diag(1, 7)`, whose normalised form is `diag(1/5, 7/5)`: `sqrt(2) / sqrt(50) = 1/5`.
ONE_AND_SEVEN = fractions([[1, 0, 0, 0, 0], [0, 2, 1, 1, 1]])


# ---------------------------------------------------------------------------------------
# Eq. (11)


@pytest.mark.claim("eq-11", shows="under", by="symbolic")
@pytest.mark.parametrize(("m", "k"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_eq_11_by_components(m: int, k: int) -> None:
    """Symbols: the preconditioner has norm sqrt(m); the step is Eq. (1) with it; the size of M doesn't matter."""
    M, G, theta = symbols("m", m, k), symbols("g", m, 1), symbols("t", m, 1)
    lr, c = sp.symbols("epsilon c", positive=True)
    P = M * M.T
    hat = normalised.normalised_preconditioner(M)
    square = sp.factor(sum(x**2 for x in P))
    assert (hat - sp.sqrt(m) * P / sp.sqrt(square)).applyfunc(sp.simplify) == sp.zeros(m, m)
    assert sp.simplify((hat.T * hat).trace()) == m
    step = normalised.normalised_step(theta, M, G, lr)
    assert (step - hg.preconditioned_step(theta, hat, G, lr)).applyfunc(sp.simplify) == sp.zeros(m, 1)
    assert (normalised.normalised_preconditioner(c * M) - hat).applyfunc(sp.simplify) == sp.zeros(m, m)


@pytest.mark.claim("eq-11", shows="under", by="property")
@given(situations(), scales)
def test_eq_11_by_the_oracle(situation, lr: float) -> None:
    M, G, _ = situation
    settings_ = reference.Settings(lr=lr, form="dense", normalize=True)
    wanted = -lr * reference.precondition(M, G, settings_)
    size = lr * math.sqrt(len(G)) * np.linalg.norm(G)
    # Rounding: sums of at most 36 products, each relative to the size of the step.
    np.testing.assert_allclose(normalised.normalised_step(0 * G, M, G, lr) / size, wanted / size, atol=1e-13)
    hat = normalised.normalised_preconditioner(M)
    assert abs(np.linalg.norm(hat) - math.sqrt(len(G))) <= 1e-13 * len(G)


@pytest.mark.claim("eq-11", shows="under", by="exact")
def test_eq_11_needs_a_factor_that_is_not_zero() -> None:
    with pytest.raises(ValueError, match="M: expected a factor that is not zero"):
        normalised.normalised_step(np.ones((2, 1)), np.zeros((2, 1)), np.ones((2, 1)), 1.0)
    # M M^T is zero only where M is: its trace is the sum of the squares of M.
    M = symbols("m", 3, 2)
    assert sp.expand((M * M.T).trace() - sum(x**2 for x in M)) == 0


@pytest.mark.claim("text-a2-identity-norm", shows="under", by="exact")
def test_the_norm_of_the_identity() -> None:
    """Frobenius's is sqrt(n), in any dimension; the spectral norm of Section 6 would give one."""
    for n in range(1, 60):
        eye = np.array([[Fraction(int(i == j)) for j in range(n)] for i in range(n)], dtype=object)
        assert inner(eye, eye) == n
        if n <= 3:
            assert max(sp.eye(n).singular_values()) == 1
    n = sp.Symbol("n", integer=True, positive=True)
    assert inner(sp.Identity(n), sp.Identity(n)).doit() == n


# ---------------------------------------------------------------------------------------
# What sqrt(n) guarantees, and what it doesn't


@pytest.mark.claim("text-a2-norm-matches", shows="fails", by="exact")
@pytest.mark.claim("text-a2-controls-scaling", shows="fails", by="exact")
@pytest.mark.claim("text-4-norm-avoids-lr-effect", shows="fails", by="exact")
def test_normalised_steps_have_another_length() -> None:
    """diag(1, 7) becomes diag(1/5, 7/5): gradient descent's direction on both axes, at 1/5 and 7/5 of its length."""
    hat = normalised.normalised_preconditioner(ONE_AND_SEVEN)
    assert same(hat, fractions([[Fraction(1, 5), 0], [0, Fraction(7, 5)]]))
    for axis, gain in (([[1], [0]], Fraction(1, 5)), ([[0], [1]], Fraction(7, 5))):
        g = fractions(axis)
        assert angles.squared_cosine(g, hat @ g) == 1
        assert normalised.squared_gain(hat, g) == gain**2
    # On J = 3/4 y^2 with learning rate 1 gradient descent converges; this P makes it diverge.
    L, y = Fraction(3, 2), fractions([[0], [1]])
    assert abs(1 - L) < 1 < abs(normalised.normalised_step(y, ONE_AND_SEVEN, L * y, 1)[1, 0])


@pytest.mark.claim("text-a2-norm-matches", shows="fails", by="property")
def test_hypothesis_finds_steps_of_another_length() -> None:
    """The printed statement as a property; in the mean over all directions the same property holds below."""

    def breaks(situation) -> bool:
        M, G, _ = situation
        return abs(normalised.squared_gain(normalised.normalised_preconditioner(M), G) - 1) > 0.5

    M, G, _ = counterexample(situations(), breaks)
    assert breaks((M, G, 0 * G))


@pytest.mark.claim("text-a2-norm-matches", shows="corrected", by="symbolic")
def test_the_mean_square_matches_in_any_dimension() -> None:
    """`E |P g|^2 = tr P^T P E g g^T = s |P|_F^2` when `E g g^T = s I`, and `|P|_F^2 = n` for Eq. (11)."""
    n, s = sp.Symbol("n", integer=True, positive=True), sp.Symbol("s", positive=True)
    P, C = sp.MatrixSymbol("P", n, n), sp.MatrixSymbol("C", n, n)
    moved = sp.Trace(P.T * P * C).subs(C, s * sp.Identity(n)).doit()
    plain = sp.Trace(s * sp.Identity(n)).doit()
    gain = normalised.mean_squared_gain(P)
    assert sp.simplify(moved / plain - gain).doit() == 0
    M = symbols("m", 2, 2)
    assert sp.simplify(normalised.mean_squared_gain(normalised.normalised_preconditioner(M))) == 1


@pytest.mark.claim("text-a2-norm-matches", shows="corrected", by="exact")
@given(small, small, seeds)
def test_the_mean_square_matches_over_all_signs(m: int, k: int, seed: int) -> None:
    """All 2^m gradients of entries +-1, one of the isotropic laws: their mean squared gain is one, in fractions."""
    M = not_zero(np.random.default_rng(seed), m, k)
    gains = []
    for signs in product((-1, 1), repeat=m):
        step = normalised.normalised_step(fractions([[0]] * m), M, fractions([[s] for s in signs]), 1)
        gains.append(sum(x * x for x in step.ravel()) / m)
    assert sp.simplify(sum(map(sp.sympify, gains)) / 2**m - 1) == 0


@pytest.mark.claim("text-a2-norm-matches", shows="corrected", by="numeric")
def test_the_mean_square_matches_for_normal_gradients() -> None:
    """20,000 gradients, a rank-three factor: one lies in the 99.9 % interval, the single gains spread widely."""
    rng = np.random.default_rng(5)
    hat = normalised.normalised_preconditioner(rng.standard_normal((9, 3)))
    g = rng.standard_normal((9, 20_000))
    squares = np.sum((hat @ g) ** 2, axis=0) / 9
    half = 3.29 * squares.std(ddof=1) / math.sqrt(len(squares))
    assert abs(squares.mean() - 1) <= half < 0.03
    gains = np.linalg.norm(hat @ g, axis=0) / np.linalg.norm(g, axis=0)
    assert np.quantile(gains, 0.05) < 0.6
    assert np.quantile(gains, 0.95) > 1.3


@pytest.mark.claim("ours-norm-gain", shows="holds", by="property")
@given(situations())
def test_the_gain_lies_between_zero_and_root_n(situation) -> None:
    """And the largest gain over all gradients between sqrt(n/r) and sqrt(n), with r the rank of M."""
    M, G, _ = situation
    n = len(M)
    hat = normalised.normalised_preconditioner(M)
    assert 0 <= normalised.squared_gain(hat, G) <= n * (1 + 1e-12)
    largest, rank = np.linalg.norm(hat, 2), np.linalg.matrix_rank(M)
    assert math.sqrt(n / rank) * (1 - 1e-12) <= largest <= math.sqrt(n) * (1 + 1e-12)
    assert n / rank >= n / min(M.shape)


@pytest.mark.claim("ours-norm-gain", shows="holds", by="exact")
@pytest.mark.parametrize("side", [1, 2, 3, 5, 7])
def test_a_kernel_can_make_the_step_as_many_times_longer_as_it_is_wide(side: int) -> None:
    """N = side^2 and M = e1: `P = side e1 e1^T`. A 3 x 3 kernel gives three times the learning rate, or none at all."""
    n = side**2
    e1 = fractions([[int(i == 0)] for i in range(n)])
    assert same(normalised.normalised_step(0 * e1, e1, e1, 1), -side * e1)
    if n > 1:
        other = fractions([[int(i == 1)] for i in range(n)])
        assert not np.any(normalised.normalised_step(0 * e1, e1, other, 1))
    # With orthonormal columns M M^T is a projection, and its largest gain the least that rank k allows.
    for k in range(1, min(n, 4) + 1):
        M = fractions([[int(i == j) for j in range(k)] for i in range(n)])
        step = normalised.normalised_step(0 * e1, M, e1, 1)
        assert sp.sympify(step[0, 0]) ** 2 == sp.Rational(n, k)


@pytest.mark.claim("ours-norm-gain", shows="holds", by="symbolic")
def test_the_largest_eigenvalue_of_a_normalised_matrix() -> None:
    """`sum x_i^2 = n` with r of them not zero: `max^2 <= n <= r max^2`; `max = 1` only for the identity."""
    n, r, top = sp.symbols("n r top", positive=True)
    spread = sp.symbols("d0:4", nonnegative=True)  # max^2 - x_i^2
    others = [top**2 - d for d in spread]
    assert sp.expand(4 * top**2 - sum(others) - sum(spread)) == 0
    assert sum(spread).is_nonnegative
    assert sp.solve(sp.Eq(r * top**2, n), top) == [sp.sqrt(n) / sp.sqrt(r)]


# ---------------------------------------------------------------------------------------
# The hypergradient through the norm


@pytest.mark.claim("ours-norm-hypergradient", shows="holds", by="symbolic")
def test_the_hypergradient_in_any_dimension() -> None:
    """Move M by `t D` and differentiate `-lr sqrt(m) <G, P H> / |P|` by t: it's `<D, hypergradient>`."""
    m, M, D, G, H = any_size()
    lr, t = sp.symbols("epsilon t")
    X = M + t * D
    square = in_traces(sp.Trace(X * X.T * X * X.T))
    loss = -lr * sp.sqrt(m) * in_traces(sp.Trace(G.T * X * X.T * H)) / sp.sqrt(square)
    ours = in_traces(inner(D, normalised.normalised_hypergradient(G, H, M, lr)))
    assert sp.simplify(sp.diff(loss, t).subs(t, 0) - ours) == 0


@pytest.mark.claim("ours-norm-hypergradient", shows="holds", by="property")
@given(situations(), scales)
def test_the_hypergradient_by_the_oracle(situation, lr: float) -> None:
    """The oracle differentiates the step by complex step; it has no formula for this."""
    M, G, H = situation
    last = reference.LastStep(0 * G, H, M, reference.Moments(0 * G, 0 * G, 0), lr)
    oracle = reference.oracle_hypergradient(G, last, M, H, reference.Settings(lr=lr, normalize=True))
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) / np.linalg.norm(M) + 1e-300
    ours = normalised.normalised_hypergradient(G, H, M, lr)
    # |S M| / |P| is at most 2 sqrt(k) |G| |H| |M| / |M|^2, and k is at most six.
    np.testing.assert_allclose(ours / size, oracle / size, atol=1e-12)


@pytest.mark.claim("ours-norm-hypergradient", shows="holds", by="property")
@given(situations(), seeds)
def test_the_hypergradient_by_central_differences(situation, seed: int) -> None:
    """Along a drawn direction, extrapolated once: the error is of the order `step^4`."""
    M, G, H = situation
    G, H, M = G / np.linalg.norm(G), H / max(np.linalg.norm(H), 1e-300), M / np.linalg.norm(M)
    D = np.random.default_rng(seed).standard_normal(M.shape)
    D = D / np.linalg.norm(D)

    def loss(t: float) -> float:
        return float(np.sum(G * normalised.normalised_step(0 * G, M + t * D, H, 1.0)))

    step = 1e-3
    near, far = (loss(step) - loss(-step)) / (2 * step), (loss(2 * step) - loss(-2 * step)) / (4 * step)
    # With six rows and |M| = 1, |P| >= 1/sqrt(6): the fifth derivative is below 1e5. Rounding: 1e-16 / step.
    slope = np.sum(D * normalised.normalised_hypergradient(G, H, M, 1.0))
    assert abs((4 * near - far) / 3 - slope) <= 1e-7


@pytest.mark.claim("ours-norm-hypergradient", shows="holds", by="numeric")
def test_the_hypergradient_with_fifty_digits() -> None:
    """Central differences for a loss that's no quadratic, with a step of 1e-12."""
    with mpmath.workdps(50):
        rng = np.random.default_rng(11)
        theta, M, A = (
            np.array([mpmath.mpf(int(x)) / 7 for x in rng.integers(-20, 21, np.prod(shape))]).reshape(shape)
            for shape in [(3, 1), (3, 2), (3, 3)]
        )
        lr, h = mpmath.mpf(1) / 50, mpmath.mpf(10) ** -12

        def loss(theta: np.ndarray) -> mpmath.mpf:
            return sum(mpmath.log(mpmath.cosh(x)) for x in (A @ theta).ravel())

        def gradient(theta: np.ndarray) -> np.ndarray:
            return A.T @ np.array([[mpmath.tanh(x)] for x in (A @ theta).ravel()])

        H = gradient(theta)
        ours = normalised.normalised_hypergradient(gradient(normalised.normalised_step(theta, M, H, lr)), H, M, lr)
        for entry in np.ndindex(M.shape):
            up, down = M.copy(), M.copy()
            up[entry] += h
            down[entry] -= h
            rise = loss(normalised.normalised_step(theta, up, H, lr)) - loss(
                normalised.normalised_step(theta, down, H, lr)
            )
            # The quotient's own error is h^2 times the third derivative: about 1e-24.
            assert abs(rise / (2 * h) - ours[entry]) < mpmath.mpf(10) ** -20
        assert abs((ours * M).sum()) < mpmath.mpf(10) ** -45


@pytest.mark.claim("ours-norm-growth", shows="holds", by="symbolic")
def test_it_is_orthogonal_to_m_in_any_dimension() -> None:
    """`<slope, M> = 0`, hence `|M - rho slope|^2 = |M|^2 + rho^2 |slope|^2`; and the slope has degree -1 in M."""
    _, M, D, G, H = any_size()
    lr, c = sp.symbols("epsilon c", positive=True)
    slope = normalised.normalised_hypergradient(G, H, M, lr)
    assert sp.simplify(in_traces(inner(slope, M))) == 0
    scaled = normalised.normalised_hypergradient(G, H, c * M, lr)
    assert sp.simplify(in_traces(inner(D, scaled)) * c - in_traces(inner(D, slope))) == 0


@pytest.mark.claim("ours-norm-growth", shows="holds", by="property")
@given(situations(), scales)
def test_the_norm_of_m_only_grows(situation, hyper_lr: float) -> None:
    M, G, H = situation
    slope = normalised.normalised_hypergradient(G, H, M, 1.0)
    moved = M - hyper_lr * slope
    wanted = np.sum(M**2) + hyper_lr**2 * np.sum(slope**2)
    # The product <slope, M> is zero up to rounding of terms of the size of `radial`.
    radial = math.sqrt(len(M)) * np.linalg.norm(G) * np.linalg.norm(H)
    assert abs(np.sum(moved**2) - wanted) <= 1e-12 * (wanted + hyper_lr * radial)
    # A factor twice as long moves by a quarter of the share of its length.
    # Where the slope vanishes, rounding is that of its two terms, each at most 2 m |G| |H| / |M|.
    terms = 2 * len(M) * np.linalg.norm(G) * np.linalg.norm(H) / np.linalg.norm(M)
    twice = 2 * normalised.normalised_hypergradient(G, H, 2 * M, 1.0)
    np.testing.assert_allclose(twice, slope, rtol=1e-12, atol=1e-14 * terms)


# ---------------------------------------------------------------------------------------
# Algorithm 1's hypergradient isn't that of normalised FOP


@pytest.mark.claim("ours-norm-not-algorithm-1", shows="holds", by="exact")
def test_line_7_is_another_vector() -> None:
    """M = I, g = h = (1, 0): Algorithm 1 lengthens M, where no lengthening changes anything."""
    M, g = fractions([[1, 0], [0, 1]]), fractions([[1], [0]])
    paper, true = hg.hypergradient(g, g, M, 1), normalised.normalised_hypergradient(g, g, M, 1)
    assert same(paper, fractions([[-2, 0], [0, 0]]))
    assert same(true, fractions([[-1, 0], [0, 1]]))
    assert inner(true, M) == 0 > inner(paper, M)


@pytest.mark.claim("ours-norm-not-algorithm-1", shows="holds", by="exact")
def test_line_7_can_raise_the_loss_of_a_layer() -> None:
    """M = diag(1, 2), H = I, G = diag(1/2, 1), so S = diag(1, 2): each small step of line 7 raises the next loss."""
    M, H = fractions([[1, 0], [0, 2]]), fractions([[1, 0], [0, 1]])
    G = fractions([[Fraction(1, 2), 0], [0, 1]])
    true, paper = normalised.normalised_hypergradient(G, H, M, 1), hg.hypergradient(G, H, M, 1)
    # Both slopes carry the factor sqrt(2)/sqrt(17); its sign is all that matters here.
    assert sp.sympify(inner(true, paper)) < 0

    def squared_progress(M: np.ndarray) -> Fraction:
        """`<G, P H>^2 / |P|^2`: the square of what the step takes off a linear loss, which it lowers."""
        P = M @ M.T
        assert inner(G, P @ H) > 0
        return inner(G, P @ H) ** 2 / inner(P, P)

    for power in range(8):
        assert squared_progress(M - Fraction(1, 2**power) * paper) < squared_progress(M)
    down = fractions([[Fraction(8, 17), 0], [0, Fraction(-4, 17)]])  # -(S M - <S, P>/|P|^2 P M) without the factor
    assert sp.simplify(sp.Matrix(true) * sp.sqrt(sp.Rational(17, 2)) + sp.Matrix(down)) == sp.zeros(2, 2)
    assert squared_progress(M + Fraction(1, 64) * down) > squared_progress(M)


@pytest.mark.claim("ours-norm-not-algorithm-1", shows="holds", by="property")
@given(situations())
def test_what_separates_the_two(situation) -> None:
    """At constant norm the slope lacks the change of the norm, `<S, P>/|P|^2 P M`; both agree iff `<S, P> = 0`."""
    M, G, H = situation
    P, S = M @ M.T, G @ H.T + H @ G.T
    held = normalised.hypergradient_at_constant_norm(G, H, M, 1.0)
    true = normalised.normalised_hypergradient(G, H, M, 1.0)
    rate = math.sqrt(len(M)) / np.linalg.norm(P)
    size = rate * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    gap = -rate * np.sum(S * P) / np.sum(P * P) * (P @ M)
    np.testing.assert_allclose((held - true) / size, gap / size, atol=1e-13)
    np.testing.assert_allclose(held / size, rate * hg.hypergradient(G, H, M, 1.0) / size, atol=1e-13)
    assert abs(np.sum(held * M) - -2 * rate * np.sum(G * (P @ H))) <= 1e-12 * size * np.linalg.norm(M)
    last = reference.LastStep(0 * G, H, M, reference.Moments(0 * G, 0 * G, 0), 1.0)
    constant = reference.Settings(lr=1.0, normalize=True, through_norm=False)
    np.testing.assert_allclose(held / size, reference.oracle_hypergradient(G, last, M, H, constant) / size, atol=1e-12)


@pytest.mark.claim("text-4-norm-avoids-lr-effect", shows="fails", by="property")
@pytest.mark.claim("ours-norm-learns-a-rate", shows="holds", by="property")
@given(st.integers(2, 6), seeds, st.floats(0.01, 1))
def test_it_learns_a_longer_step_all_the_same(m: int, seed: int, share: float) -> None:
    """A linear loss, M = I, its own hypergradient: the steps get longer and longer, up to sqrt(n) times."""
    g = np.random.default_rng(seed).standard_normal((m, 1))
    g /= np.linalg.norm(g)
    M, gains = np.eye(m), []
    for _ in range(12):
        gains.append(math.sqrt(normalised.squared_gain(normalised.normalised_preconditioner(M), g)))
        M = M - share * math.sqrt(m - 1) * normalised.normalised_hypergradient(g, g, M, 1.0)
    assert abs(gains[0] - 1) <= 1e-14
    assert gains[1] > 1.001
    # Rounding: once the gain has reached sqrt(n), nothing is left to grow.
    assert all(before <= after * (1 + 1e-13) <= math.sqrt(m) * (1 + 2e-13) for before, after in pairwise(gains))


@pytest.mark.claim("ours-norm-learns-a-rate", shows="holds", by="symbolic")
def test_the_growth_of_the_gain_in_any_dimension() -> None:
    """M = diag(a, b, …, b) with g along the first axis stays of this form; the gain depends on a/b alone and rises."""
    a, b, m, lr = sp.symbols("a b m epsilon", positive=True)
    square = a**4 + (m - 1) * b**4  # |P|^2
    slope_a = -2 * (1 - a**4 / square) * a  # without the positive factor lr sqrt(m) / |P|
    slope_b = 2 * a**2 * b**2 / square * b
    for size in (2, 3):
        M, g = sp.diag(a, *[b] * (size - 1)), sp.Matrix([1] + [0] * (size - 1))
        ours = normalised.normalised_hypergradient(g, g, M, lr) / (lr * normalised._rate(M))
        wanted = sp.diag(slope_a, *[slope_b] * (size - 1)).subs(m, size)
        assert (ours - wanted).applyfunc(sp.cancel) == sp.zeros(size, size)
    assert sp.simplify(slope_a + 2 * (m - 1) * a * b**4 / square) == 0  # negative for m > 1: a grows, b shrinks
    # b is multiplied by 1 - x with x = 2 rho lr |g|^2 sqrt(m) a^2 b^2 / |P|^3. Since 2 sqrt(m - 1) a^2 b^2 <= |P|^2,
    # m |P|^2 >= |M|^4 and |M|^2 >= m, x <= rho lr |g|^2 / sqrt(m - 1), which is to be at most one.
    assert sp.expand(square - 2 * sp.sqrt(m - 1) * a**2 * b**2 - (a**2 - sp.sqrt(m - 1) * b**2) ** 2) == 0
    assert sp.expand(m * square - (a**2 + (m - 1) * b**2) ** 2 - (m - 1) * (a**2 - b**2) ** 2) == 0
    gain = sp.sqrt(m) * a**2 / sp.sqrt(square)
    assert sp.simplify(sp.limit(gain, a, sp.oo) - sp.sqrt(m)) == 0
    assert sp.simplify(gain.subs(a, b)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalised.normalised_preconditioner(np.zeros((2, 2))), "M: expected a factor that is not zero"),
        (lambda: normalised.normalised_step(*[np.ones((2, 1))] * 3, float("nan")), "lr: expected a finite number"),
        (lambda: normalised.normalised_step(np.ones((2, 1)), np.ones((3, 1)), np.ones((2, 1)), 1), "M: expected shape"),
        (lambda: normalised.normalised_hypergradient(np.ones((2, 1)), np.ones((2, 2)), np.eye(2), 1), "H: expected"),
        (lambda: normalised.hypergradient_at_constant_norm(*[np.ones((2, 1))] * 2, np.eye(3), 1), "M: expected shape"),
        (lambda: normalised.squared_gain(np.eye(2), np.zeros((2, 1))), "G: expected a gradient that is not zero"),
        (lambda: normalised.mean_squared_gain(np.ones((2, 3))), r"P: expected shape \(2, 2\)"),
    ],
)
def test_bad_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
