"""Appendix A.4: `P = I + M M^T`, where it starts and what it can't do."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
import scipy.linalg
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import angles, low_rank, reference
from fop_theory import hypergradient as hg
from fop_theory.algebra import inner
from tests.helpers import Counted, counted, counterexample, fractions, identity, interval, same, symbols, whole
from tests.strategies import dims, factors, gradient_pairs, scales, seeds

#: Sizes for exact arithmetic, which costs more an operation.
small = st.integers(1, 3)


# ---------------------------------------------------------------------------------------
# Eq. (23)


@pytest.mark.claim("eq-23", shows="holds", by="symbolic")
def test_eq_23_in_any_dimension() -> None:
    """Sizes are symbols. The thin products apply the symmetric matrix `I + M M^T`."""
    m, n, k = sp.symbols("m n k", integer=True, positive=True)
    M, G, theta = sp.MatrixSymbol("M", m, k), sp.MatrixSymbol("G", m, n), sp.MatrixSymbol("theta", m, n)
    P, lr = low_rank.preconditioner(M), sp.Symbol("epsilon")
    zero = sp.ZeroMatrix(m, n)
    assert (P - sp.Identity(m) - M * M.T).doit() == sp.ZeroMatrix(m, m)
    assert (low_rank.precondition(M, G) - P * G).doit().expand().doit() == zero
    step = low_rank.low_rank_step(theta, M, G, lr) - hg.preconditioned_step(theta, P, G, lr)
    assert step.doit().expand().doit() == zero
    assert (P.T - P).doit() == sp.ZeroMatrix(m, m)


@pytest.mark.claim("eq-23", shows="holds", by="exact")
@given(small, st.integers(1, 2), small, seeds)
def test_eq_23_is_eq_2_with_the_identity_beside_m(m: int, n: int, k: int, seed: int) -> None:
    """`I + M M^T = [I M][I M]^T`: Eq. (2) with m more columns, which are never updated. In fractions."""
    rng = np.random.default_rng(seed)
    theta, M, G, lr = whole(rng, m, n), whole(rng, m, k), whole(rng, m, n), Fraction(int(rng.integers(1, 9)), 8)
    wide = np.hstack([identity(m), M])
    assert same(low_rank.preconditioner(M), wide @ wide.T)
    assert same(low_rank.low_rank_step(theta, M, G, lr), hg.factored_step(theta, wide, G, lr))


@pytest.mark.claim("eq-23", shows="holds", by="property")
@given(st.data())
def test_eq_23_by_the_oracle_and_its_spectrum(data) -> None:
    G, _ = data.draw(gradient_pairs())
    M = data.draw(factors(len(G)))
    P = low_rank.preconditioner(M)
    size = (1 + np.linalg.norm(M) ** 2) * np.linalg.norm(G)
    oracle = reference.precondition(M, G, reference.Settings(lr=1.0, form="low-rank"))
    # Rounding: sums of at most 36 products, each relative to its size.
    np.testing.assert_allclose(low_rank.precondition(M, G) / size, oracle / size, atol=1e-14)
    np.testing.assert_allclose(low_rank.precondition(M, G) / size, P @ G / size, atol=1e-14)
    direct = np.linalg.eigvalsh(P)
    np.testing.assert_allclose(low_rank.eigenvalues(M), direct, atol=1e-13 * direct[-1])
    unseen = np.sum(np.abs(low_rank.eigenvalues(M) - 1) <= 1e-12 * direct[-1])
    assert unseen >= len(M) - np.linalg.matrix_rank(M)


@pytest.mark.claim("ours-low-rank-hypergradient", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 2), (1, 2, 1), (2, 1, 1)])
def test_the_identity_changes_nothing_in_the_hypergradient(m: int, n: int, k: int) -> None:
    """By components: the loss after the step of Eq. (23), differentiated by every entry of M."""
    A = sp.Matrix(m, m, lambda i, j: sp.Symbol(f"a{min(i, j)}{max(i, j)}"))
    theta, M, lr = symbols("t", m, n), symbols("m", m, k), sp.Symbol("epsilon")
    H = A * theta
    after = low_rank.low_rank_step(theta, M, H, lr)
    loss = (after.T * A * after).trace() / 2
    slope = M.applyfunc(lambda entry: sp.diff(loss, entry))
    assert (slope - hg.hypergradient(A * after, H, M, lr)).expand() == sp.zeros(m, k)


@pytest.mark.claim("ours-low-rank-hypergradient", shows="holds", by="property")
@given(st.data())
def test_the_hypergradient_of_eq_23_by_the_oracle(data) -> None:
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(len(G))), data.draw(scales)
    last = reference.LastStep(0 * G, H, M, reference.Moments(0 * G, 0 * G, 0), lr)
    oracle = reference.oracle_hypergradient(G, last, M, H, reference.Settings(lr=lr, form="low-rank"))
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    np.testing.assert_allclose(hg.hypergradient(G, H, M, lr) / size, oracle / size, atol=1e-13)


# ---------------------------------------------------------------------------------------
# Shapes and cost


@pytest.mark.claim("text-a4-full-rank-size", shows="fails", by="exact")
def test_full_rank_does_not_need_a_square_m() -> None:
    """Two columns for one row, three for two: M M^T is invertible, and M isn't m x m."""
    assert (fractions([[1, 1]]) @ fractions([[1], [1]]))[0, 0] == 2
    M = sp.Matrix([[1, 0, 1], [0, 1, 1]])
    assert M.rank() == 2
    assert (M * M.T).det() == 3


@pytest.mark.claim("text-a4-full-rank-size", shows="corrected", by="exact")
@given(small, small, seeds)
def test_full_rank_needs_at_least_m_columns(m: int, k: int, seed: int) -> None:
    """In whole numbers: the rank of M M^T is that of M, at most k; and k = m is enough."""
    M = sp.Matrix(m, k, [int(x) for x in np.random.default_rng(seed).integers(-3, 4, m * k)])
    assert (M * M.T).rank() == M.rank() <= min(m, k)
    assert sp.eye(m).rank() == m


@pytest.mark.claim("text-a4-full-rank-size", shows="corrected", by="property")
@given(st.data())
def test_m_columns_lose_nothing(data) -> None:
    """A wide M and the square factor of the same P: the same P again after a step of Algorithm 1."""
    G, H = data.draw(gradient_pairs())
    m = len(G)
    M = np.random.default_rng(data.draw(seeds)).standard_normal((m, m + data.draw(st.integers(1, 4))))
    upper = np.linalg.qr(M.T, mode="r")
    N = upper.T
    assert N.shape == (m, m)
    rate = 1 / (np.linalg.norm(G) * np.linalg.norm(H) + 1e-300)
    moved = [X - hg.hypergradient(G, H, X, rate) for X in (M, N)]
    # |I + rate S| <= 3, and M has at most 60 entries of size one.
    for wide, square in ((M, N), moved):
        np.testing.assert_allclose(square @ square.T, wide @ wide.T, atol=1e-11)


@pytest.mark.claim("text-a4-rank-k", shows="holds", by="exact")
@pytest.mark.claim("text-2-2-low-rank-saves", shows="holds", by="exact")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (4, 3, 2), (6, 2, 1), (3, 5, 3)])
def test_the_cost_of_rank_k_by_counting(m: int, n: int, k: int) -> None:
    """Numbers that count their own multiplications go through Eq. (23), with rank k and with a square M."""
    wanted = low_rank.multiplications(m, n, k)
    for name, columns in (("low rank", k), ("full", m)):
        Counted.products = 0
        low_rank.precondition(counted(m, columns), counted(m, n))
        assert Counted.products == wanted[name]
    Counted.products = 0
    assert (counted(m, m) @ counted(m, n)).shape == (m, n)
    assert Counted.products == wanted["formed"]


@pytest.mark.claim("text-a4-rank-k", shows="holds", by="property")
@pytest.mark.claim("text-2-2-low-rank-saves", shows="holds", by="property")
@given(st.integers(2, 10**4), st.integers(1, 10**4), st.data())
def test_rank_k_is_cheaper_in_proportion(m: int, n: int, data) -> None:
    """Against a square M the cost falls to the share k/m; against a P that is there already it falls if k < m/2."""
    k = data.draw(st.integers(1, m - 1))
    cost = low_rank.multiplications(m, n, k)
    assert Fraction(cost["low rank"], cost["full"]) == Fraction(k, m) < 1
    assert (cost["low rank"] < cost["formed"]) == (2 * k < m)


# ---------------------------------------------------------------------------------------
# "A rotation": what I + M M^T can't do


@pytest.mark.claim("text-a4-rotation-word", shows="fails", by="exact")
def test_m_m_transpose_is_not_a_rotation() -> None:
    """M = (1, 0): g = (1, 1) becomes (1, 0), and (0, 1) becomes zero. A rotation keeps lengths."""
    M, g = fractions([[1], [0]]), fractions([[1], [1]])
    Q = low_rank.preconditioner(M) - identity(2)
    assert inner(Q @ g, Q @ g) == 1 != inner(g, g)
    assert not np.any(Q @ fractions([[0], [1]]))


@pytest.mark.claim("text-a4-rotation-word", shows="fails", by="exact")
@given(small, small, seeds)
def test_no_m_m_transpose_but_the_identity_keeps_lengths(m: int, k: int, seed: int) -> None:
    """In fractions: unless M M^T = I, one of the vectors e_i, e_i + e_j changes its length."""
    Q = (M := whole(np.random.default_rng(seed), m, k)) @ M.T
    units = list(identity(m).T[:, :, None])
    probes = units + [a + b for a, b in combinations(units, 2)]
    kept = all(inner(Q @ x, Q @ x) == inner(x, x) for x in probes)
    assert kept == same(Q, identity(m))


@pytest.mark.claim("text-a4-rotation-word", shows="fails", by="symbolic")
def test_a_semidefinite_rotation_is_the_identity() -> None:
    """`Q^T Q = I` with symmetric Q is `(Q - I)(Q + I) = 0` in any dimension, and `Q + I` is invertible."""
    m = sp.Symbol("m", integer=True, positive=True)
    Q, eye = sp.MatrixSymbol("Q", m, m), sp.Identity(m)
    assert ((Q - eye) * (Q + eye) - (Q * Q - eye)).expand().doit() == sp.ZeroMatrix(m, m)
    eigenvalue = sp.Symbol("lambda", nonnegative=True)
    assert sp.solve(eigenvalue**2 - 1, eigenvalue) == [1]


@pytest.mark.claim("text-a4-rotation-word", shows="fails", by="property")
@given(st.data())
def test_the_rotation_in_p_is_the_identity(data) -> None:
    """The polar decomposition, a rotation times a stretch: P = I + M M^T is all stretch."""
    P = low_rank.preconditioner(data.draw(factors(data.draw(dims))))
    rotation, stretch = scipy.linalg.polar(P)
    # P's condition number is its norm, at most 1 + 9 * 36 * 20.
    np.testing.assert_allclose(rotation, np.eye(len(P)), atol=1e-12 * np.linalg.norm(P))
    np.testing.assert_allclose(stretch, P, atol=1e-12 * np.linalg.norm(P) ** 2)


@pytest.mark.claim("ours-only-lengthens", shows="holds", by="symbolic")
def test_how_much_longer_the_step_is_in_any_dimension() -> None:
    """`|P G|^2 - |G|^2 = 2 |M^T G|^2 + |M M^T G|^2`."""
    m, n, k = sp.symbols("m n k", integer=True, positive=True)
    G, M = sp.MatrixSymbol("G", m, n), sp.MatrixSymbol("M", m, k)
    moved = low_rank.precondition(M, G)
    gap = inner(moved, moved) - inner(G, G) - low_rank.added_square(M, G)
    assert sp.expand(gap.doit().expand().doit()) == 0


@pytest.mark.claim("ours-only-lengthens", shows="holds", by="exact")
@given(small, small, st.integers(1, 2), seeds)
def test_eq_23_only_lengthens_steps(m: int, k: int, n: int, seed: int) -> None:
    """In fractions; the length stays exactly on the null space of M^T."""
    rng = np.random.default_rng(seed)
    M, G = whole(rng, m, k), whole(rng, m, n)
    if rng.random() < 0.5:  # Half of the gradients are made invisible to M.
        null = sp.Matrix(M.T).nullspace()
        column = np.array([Fraction(int(x.p), int(x.q)) for x in null[0]]) if null else np.zeros(m, dtype=int)
        G = np.outer(column, [1] * n) * Fraction(1)
    moved = low_rank.precondition(M, G)
    added = inner(moved, moved) - inner(G, G)
    assert added == low_rank.added_square(M, G) >= 0
    assert (added == 0) == (not np.any(M.T @ G)) == same(moved, G)
    assert inner(G, moved) >= inner(G, G)  # P - I is positive semidefinite.


@pytest.mark.claim("ours-only-lengthens", shows="holds", by="property")
def test_m_m_transpose_alone_can_shorten_steps() -> None:
    """The same property without the identity finds a counterexample."""

    @st.composite
    def pairs(draw):
        G, _ = draw(gradient_pairs())
        return draw(factors(len(G))), G

    M, G = counterexample(pairs(), lambda p: np.linalg.norm(p[0] @ (p[0].T @ p[1])) < 0.9 * np.linalg.norm(p[1]))
    longer = np.linalg.norm(low_rank.precondition(M, G))
    # Rounding: with a tiny M both norms are the same number up to a few units in the last place.
    assert np.linalg.norm(M @ (M.T @ G)) < np.linalg.norm(G) <= longer * (1 + 1e-14)


@pytest.mark.claim("ours-low-rank-diverges", shows="holds", by="exact")
@given(st.integers(1, 4), st.integers(1, 3), seeds)
def test_no_m_repairs_a_learning_rate_beyond_two_over_l(m: int, k: int, seed: int) -> None:
    """`J = L |theta|^2 / 2`, any M at each step: `|theta|` grows by at least `lr L - 1 > 1`. In fractions."""
    rng = np.random.default_rng(seed)
    L, theta = Fraction(int(rng.integers(1, 9)), 4), whole(rng, m, 1)
    lr = (2 + Fraction(int(rng.integers(1, 9)), 8)) / L
    for _ in range(4):
        before = inner(theta, theta)
        theta = low_rank.low_rank_step(theta, whole(rng, m, k), L * theta, lr)
        assert inner(theta, theta) >= (lr * L - 1) ** 2 * before
    assert lr * L - 1 > 1


@pytest.mark.claim("ours-low-rank-diverges", shows="holds", by="symbolic")
def test_the_growth_of_every_eigenvalue() -> None:
    """`1 - lr L (1 + s^2)` for a singular value s of M: its distance from zero is at least `lr L - 1`."""
    c, s = sp.symbols("c s", nonnegative=True)  # lr L = 2 + c
    step = low_rank.low_rank_step(sp.Matrix([[1]]), sp.Matrix([[s]]), sp.Matrix([[1]]), 2 + c)[0, 0]
    excess = sp.expand(-step - (1 + c))
    assert sp.expand(excess - (2 + c) * s**2) == 0
    assert excess.is_nonnegative


@pytest.mark.claim("ours-low-rank-diverges", shows="holds", by="exact")
def test_a_small_m_m_transpose_repairs_it() -> None:
    """What is lost with the identity: `P = M M^T = 1/4` makes the same learning rate converge."""
    theta, lr = fractions([[1]]), Fraction(5)
    M = fractions([[Fraction(1, 2)]])
    assert abs(hg.factored_step(theta, M, theta, lr)[0, 0]) == Fraction(1, 4)
    assert abs(low_rank.low_rank_step(theta, M, theta, lr)[0, 0]) == Fraction(21, 4)


# ---------------------------------------------------------------------------------------
# "P starts out close to the identity"


def gaussian_mean(expression: sp.Expr, variables: list[sp.Symbol]) -> sp.Expr:
    """Expectation of a polynomial in independent standard normal variables: `E x^2 = 1`, `E x^4 = 3`, odd ones 0."""
    moments = [1, 0, 1, 0, 3]
    return sum(c * math.prod(moments[p] for p in powers) for powers, c in sp.Poly(expression, variables).terms())


@pytest.mark.claim("text-a4-close-to-identity", shows="under", by="symbolic")
@pytest.mark.claim("ours-untrained-angle", shows="holds", by="symbolic")
def test_the_moments_of_the_untrained_factor() -> None:
    """All shapes up to 3 x 3, by expanding the polynomials; both moments have degree two at most in m and in k."""
    sigma = sp.Symbol("sigma")
    for m, k in np.ndindex(3, 3):
        Z = symbols("z", m + 1, k + 1)
        product = sigma**2 * Z * Z.T
        names = sorted(Z.free_symbols, key=str)
        first = gaussian_mean(product.trace(), names)
        second = gaussian_mean((product * product).trace(), names)
        assert sp.expand(first - low_rank.mean_trace(m + 1, k + 1, sigma)) == 0
        assert sp.expand(second - low_rank.mean_square(m + 1, k + 1, sigma)) == 0
        g = sp.Matrix([1] + [0] * m)  # No direction is special: M's law doesn't change when it's rotated.
        moved = low_rank.precondition(sigma * Z, g)
        along, length = gaussian_mean(moved[0], names), gaussian_mean((moved.T * moved)[0], names)
        across = gaussian_mean(sum(x**2 for x in moved[1:]), names)
        size = sp.Integer(m + 1), sp.Integer(k + 1)
        assert sp.expand(length - low_rank.typical_gain(*size, sigma) ** 2) == 0
        assert sp.simplify(across - (low_rank.typical_tangent(*size, sigma) * along) ** 2) == 0


def distances(m: int, k: int, sigma: float, draws: int, seed: int) -> np.ndarray:
    """`|P - I|_2 = |M|_2^2` of untrained factors."""
    rng = np.random.default_rng(seed)
    return np.array([np.linalg.norm(low_rank.untrained(rng, m, k, sigma), 2) ** 2 for _ in range(draws)])


@pytest.mark.claim("text-a4-close-to-identity", shows="under", by="numeric")
@pytest.mark.parametrize(("m", "k"), [(100, 100), (100, 4), (784, 1), (784, 25), (10, 100)])
def test_how_far_from_the_identity_it_starts(m: int, k: int) -> None:
    """Between `sigma^2 max(m, k)` and `sigma^2 ((sqrt m + sqrt k)^2 + 1)` on average, at every rank."""
    sigma = 0.01
    low, high = interval(distances(m, k, sigma, 40, 1), 0.999)
    assert sigma**2 * max(m, k) <= high  # With one column this is the mean itself.
    assert low <= low_rank.largest_mean_distance(m, k, sigma)
    assert high - low < 0.2 * low
    assert low_rank.largest_mean_distance(m, k, sigma) < 0.14


@pytest.mark.claim("text-a4-close-to-identity", shows="fails", by="exact")
def test_a_small_variance_alone_is_not_close() -> None:
    """`|P - I|_2` is at least the squared length of a column of M, whose mean is `sigma^2 m`, whatever the rank.

    So for every variance there's a layer where P starts at a mean distance above one hundred.
    """
    z = sp.symbols("z0:3")
    column = sp.Matrix(z)
    e = column / sp.sqrt(sum(x**2 for x in z))
    moved = low_rank.precondition(column, e) - e
    assert sp.simplify((moved.T * moved)[0] - sum(x**2 for x in z) ** 2) == 0  # The column's own direction.
    for variance in (Fraction(1, 10), Fraction(1, 10**4), Fraction(1, 10**8)):
        rows = 101 * variance.denominator
        assert low_rank.mean_trace(rows, 1, sp.sqrt(sp.Rational(variance.numerator, variance.denominator))) > 100


@pytest.mark.claim("text-a4-close-to-identity", shows="fails", by="numeric")
def test_a_variance_of_a_tenth_is_far_at_the_papers_size() -> None:
    """100 units, full rank, variance 1/10: P is about forty times longer than the identity in its first direction."""
    low, _ = interval(distances(100, 100, math.sqrt(0.1), 40, 2))
    assert low > 35


def untrained_angles(m: int, k: int, sigma: float, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles in degrees and gains `|P g|/|g|` of untrained factors, for a gradient that knows nothing of them."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        g = rng.standard_normal((m, 1))
        moved = low_rank.precondition(low_rank.untrained(rng, m, k, sigma), g)
        found.append((angles.angle(g, moved), np.linalg.norm(moved) / np.linalg.norm(g)))
    turned, gains = np.array(found).T
    return turned, gains


@pytest.mark.claim("ours-untrained-angle", shows="holds", by="numeric")
@pytest.mark.parametrize(
    ("m", "k", "sigma", "degrees", "gain"),
    [
        (100, 100, 0.01, 0.56, 1.01),
        (100, 100, 100**-0.25, 42.1, 14.9),
        (100, 100, 1.0, 44.6, 142.5),
        (100, 4, 0.1, 10.8, 1.06),
    ],
)
def test_the_angle_of_an_untrained_factor(m: int, k: int, sigma: float, degrees: float, gain: float) -> None:
    turned, gains = untrained_angles(m, k, sigma, 400, 3)
    low, high = interval(turned, 0.999)
    predicted = math.degrees(math.atan(low_rank.typical_tangent(m, k, sigma)))
    # A root mean square is predicted: the mean length of k (or m - 1) normal numbers is shorter, by a share 1/(4k).
    slack = 1 / (2 * min(m, k))
    assert low * (1 - slack) <= predicted <= high * (1 + slack)
    assert abs(predicted - degrees) < 0.1
    assert abs(low_rank.typical_gain(m, k, sigma) - gain) < 0.005 * gain
    bottom, top = interval(gains**2, 0.999)
    assert bottom <= low_rank.typical_gain(m, k, sigma) ** 2 <= top
    assert turned.std() < 5


@pytest.mark.claim("ours-untrained-angle", shows="holds", by="symbolic")
def test_an_untrained_square_factor_stays_slightly_below_45_degrees() -> None:
    """For k = m the tangent grows with sigma to `sqrt(1 - 1/m)`: below one for every sigma, and only slightly."""
    m, sigma = sp.symbols("m sigma", positive=True)
    tangent = low_rank.typical_tangent(m, m, sigma)
    rise = sp.simplify(sp.diff(sp.log(tangent), sigma))
    assert sp.simplify(rise - 2 / (sigma * (1 + m * sigma**2))) == 0  # positive
    assert sp.simplify(sp.limit(tangent, sigma, sp.oo) ** 2 - (1 - 1 / m)) == 0
    at_fourth_root = low_rank.typical_tangent(m, m, m ** sp.Rational(-1, 4))
    assert sp.limit(at_fourth_root, m, sp.oo) == 1


def along_eq_23(theta: np.ndarray, M: np.ndarray, curvature: np.ndarray, lr, hyper_lr, steps: int) -> list[tuple]:
    """Algorithm 1 in the exact order with Eq. (23) on a quadratic: `(theta, M)` at each step."""
    states, H = [], 0 * theta
    for _ in range(steps):
        G = curvature @ theta
        M = M - hyper_lr * hg.hypergradient(G, H, M, lr)
        states.append((theta, M))
        theta, H = low_rank.low_rank_step(theta, M, G, lr), G
    return states


@pytest.mark.claim("text-a4-departs-from-sgd", shows="fails", by="exact")
def test_at_the_identity_itself_it_never_departs() -> None:
    """As close as possible to the identity is M = 0, where the hypergradient is zero: gradient descent for ever."""
    A, theta = fractions([[2, 1], [1, 3]]), fractions([[4], [-1]])
    plain = theta
    for there, M in along_eq_23(theta, 0 * A[:, :1], A, Fraction(1, 5), 10, 6):
        assert same(there, plain)
        assert not np.any(M)
        plain = plain - Fraction(1, 5) * A @ plain
    # Adam on M doesn't help: a zero gradient has a zero mean.
    zero = np.zeros((2, 1))
    _, change = reference.Adam().update(reference.Moments(zero, zero, 0), zero, zero, 1.0)
    assert not np.any(change)


@pytest.mark.claim("text-a4-departs-from-sgd", shows="under", by="exact")
def test_near_the_identity_it_departs() -> None:
    """A small M that sees the gradient: nearly gradient descent at first, and P moves away step by step."""
    A, theta, M = fractions([[1, 0], [0, 2]]), fractions([[4], [3]]), fractions([[Fraction(1, 50)], [Fraction(1, 70)]])
    states = along_eq_23(theta, M, A, Fraction(1, 20), Fraction(1, 4), 5)
    sizes = [inner(M, M) for _, M in states]
    assert sizes[0] < Fraction(1, 1000)
    assert all(before < after for before, after in pairwise(sizes))
    assert sizes[-1] > 2 * sizes[0]


@pytest.mark.claim("text-a4-departs-from-sgd", shows="under", by="property")
@given(st.data())
def test_the_first_step_and_the_pace_of_departure(data) -> None:
    """First step: off by `lr M M^T g`, at most `|M|^2` of its length. Then `|M|` grows geometrically at most."""
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(len(G))), data.draw(scales)
    small = M * 10.0 ** -data.draw(st.floats(0, 6))
    square = np.linalg.norm(small, 2) ** 2
    off = np.linalg.norm(low_rank.precondition(small, G) - G)
    # Rounding of a sum next to G's own size.
    assert off <= (square * (1 + 1e-12) + 1e-15) * np.linalg.norm(G)
    moved = small - hg.hypergradient(G, H, small, lr)
    pace = lr * (np.linalg.norm(G) * np.linalg.norm(H) + abs(np.sum(G * H)))
    assert np.linalg.norm(moved) <= (1 + pace) * np.linalg.norm(small) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: low_rank.precondition(np.ones((2, 1)), np.ones((3, 1))), r"G: expected shape \(2, None\)"),
        (lambda: low_rank.preconditioner(np.ones(2)), r"M: expected a matrix \[m, n\]"),
        (lambda: low_rank.low_rank_step(np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 2)), 1), "G: expected shape"),
        (lambda: low_rank.low_rank_step(*[np.ones((2, 1))] * 3, float("nan")), "lr: expected a finite number"),
        (lambda: low_rank.added_square(np.ones((2, 1)), [[1], [np.inf]]), "G: expected finite numbers"),
        (lambda: low_rank.eigenvalues([[np.nan]]), "M: expected finite numbers"),
        (lambda: low_rank.multiplications(0, 1, 1), r"m: expected a number in \[1"),
        (lambda: low_rank.mean_trace(0, 1, 1.0), r"m: expected a number in \[1"),
        (lambda: low_rank.typical_gain(2, 0, 1.0), r"k: expected a number in \[1"),
        (lambda: low_rank.largest_mean_distance(2, 1, float("inf")), "sigma: expected a finite number"),
        (lambda: low_rank.untrained(np.random.default_rng(0), 2, 1, -1.0), r"sigma: expected a number in \[0"),
    ],
)
def test_bad_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
