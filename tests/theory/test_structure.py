"""The algebra of one update: spectrum, determinant, rank, definiteness, fixed points, symmetries."""

from __future__ import annotations

import itertools
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy as sp
from hypothesis import assume, given
from hypothesis import strategies as st

from fop_theory import objectives, structure
from fop_theory.algebra import inner
from fop_theory.hypergradient import hypergradient, m_first_step, symmetric_product
from fop_theory.reference import Adam, Moments
from tests.helpers import fractions, same, symbols
from tests.strategies import definite, dims, factors, gradient_pairs, scales, seeds

F = Fraction
TURN = [[F(3, 5), F(-4, 5)], [F(4, 5), F(3, 5)]]


@st.composite
def updates(draw, max_columns: int = 1, low: float = 0.05, high: float = 4.0):
    """`(G, H, rate)`: a gradient pair and a rate of which the negative part takes any share from low to high."""
    G, H = draw(gradient_pairs(max_columns))
    size = np.linalg.norm(G) * np.linalg.norm(H)
    share = draw(st.floats(low, high))
    s = structure.negative_part(G, H)
    return G, H, share / s if s > 1e-3 * size else share / (size + 1e-30)


# ---------------------------------------------------------------------------------------
# Spectrum and determinant


@pytest.mark.claim("ours-update-spectrum", shows="holds", by="symbolic")
def test_spectrum_in_any_dimension() -> None:
    """In the coordinates of span(g, h), S is a 2x2 matrix of inner products: no dimension enters."""
    gg, hh, gh = sp.symbols("gg hh gh", real=True)
    # S (x g + y h) = (x g.h + y h.h) g + (x g.g + y g.h) h.
    on_span = sp.Matrix([[gh, hh], [gg, gh]])
    # Two vectors with these inner products stand for all others.
    u, v = sp.symbols("u v", positive=True)
    low, high = structure.eigenvalues(sp.Matrix([u, 0]), sp.Matrix([gh / u, sp.sqrt(v**2 - gh**2 / u**2)]))
    for value in (low, high):
        left = on_span.charpoly().as_expr().subs({on_span.charpoly().gen: value})
        assert sp.simplify(left.subs({gg: u**2, hh: v**2})) == 0
    for sign, value in ((-1, low), (1, high)):
        vector = sp.Matrix([v, sign * u])
        assert sp.simplify((on_span * vector).subs({gg: u**2, hh: v**2}) - value * vector) == sp.zeros(2, 1)


@pytest.mark.claim("ours-update-spectrum", shows="holds", by="property")
@given(gradient_pairs(max_columns=1))
def test_spectrum_against_lapack(pair) -> None:
    g, h = pair
    size = np.linalg.norm(g) * np.linalg.norm(h) + 1e-300
    low, high = structure.eigenvalues(g, h)
    ours = np.sort([low, high] + [0.0] * (len(g) - 2)) if len(g) > 1 else np.array([low + high])
    found = np.linalg.eigvalsh(symmetric_product(g, h) / size)
    np.testing.assert_allclose(found, ours / size, atol=1e-13)
    assert low <= 1e-15 * size
    assert high >= -1e-15 * size


@pytest.mark.claim("ours-determinant-law", shows="holds", by="symbolic")
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_determinant_by_components(m: int) -> None:
    g, h, a = symbols("g", m), symbols("h", m), sp.Symbol("a")
    direct = structure.multiplier(g, h, a).det(method="berkowitz")
    assert sp.expand(direct - structure.determinant_law(g, h, a)) == 0


@pytest.mark.claim("ours-determinant-law", shows="holds", by="symbolic")
def test_determinant_in_any_dimension() -> None:
    """Sylvester: `I + U V^T` and `I + V^T U` are the corners of one factorisation, in symbolic size."""
    n = sp.Symbol("n", integer=True, positive=True)
    U, V = sp.MatrixSymbol("U", n, 2), sp.MatrixSymbol("V", n, 2)
    eye, two, zero = sp.Identity(n), sp.Identity(2), sp.ZeroMatrix
    lower = sp.BlockMatrix([[eye, zero(n, 2)], [V.T, two]])
    middle = sp.BlockMatrix([[eye + U * V.T, U], [zero(2, n), two]])
    undo = sp.BlockMatrix([[eye, zero(n, 2)], [-V.T, two]])
    product = sp.block_collapse(lower * middle * undo)
    assert product.blocks[0, 0].doit().expand() == eye
    assert product.blocks[0, 1] == U
    assert product.blocks[1, 0].doit().expand() == zero(2, n)
    assert (product.blocks[1, 1] - two - V.T * U).doit() == zero(2, 2)
    # With U = a (g, h) and V = (h, g) the small corner is made of inner products alone.
    gg, hh, gh, a = sp.symbols("gg hh gh a")
    small = sp.eye(2) + a * sp.Matrix([[gh, hh], [gg, gh]])
    g, h = symbols("g", 3), symbols("h", 3)
    products = {gg: inner(g, g), hh: inner(h, h), gh: inner(g, h)}
    assert sp.expand(small.det().subs(products) - structure.determinant_law(g, h, a)) == 0


@pytest.mark.claim("ours-determinant-law", shows="holds", by="property")
@given(updates())
def test_determinant_against_lapack(update) -> None:
    g, h, a = update
    size = (1 + a * np.linalg.norm(g) * np.linalg.norm(h)) ** 2
    found = np.linalg.det(structure.multiplier(g, h, a))
    assert abs(found - structure.determinant_law(g, h, a)) <= 1e-12 * size


@given(updates(max_columns=4))
def test_determinant_for_matrix_gradients(update) -> None:
    """Sylvester's 2n x 2n matrix: the law for parameters with n columns."""
    G, H, a = update
    big, small = structure.multiplier(G, H, a), structure.small_determinant(G, H, a)
    size = np.prod(np.linalg.svd(big)[1] + 1) * np.linalg.norm(small, 2)
    assert abs(np.linalg.det(big) - np.linalg.det(small)) <= 1e-11 * size


# ---------------------------------------------------------------------------------------
# Rank and null space


@pytest.mark.claim("ours-rank-never-rises", shows="holds", by="exact")
def test_rank_never_rises_in_fractions() -> None:
    """Every M_0 of entries -1, 0, 1 and rank one, and three rational updates that generate turns and losses."""
    gradients = [sp.Matrix(g) for g in ([1, 2, 0], [2, -1, 1], [-3, 0, 2], [1, 1, 1])]
    for left, right in itertools.product(itertools.product((-1, 0, 1), repeat=3), repeat=2):
        M = sp.Matrix(left) * sp.Matrix(right).T
        after = structure.factor_after(M, gradients, sp.Rational(1, 3))
        assert after.rank() <= M.rank()
        for vector in M.nullspace():
            assert after * vector == sp.zeros(3, 1)


@pytest.mark.claim("ours-rank-never-rises", shows="holds", by="exact")
def test_steps_on_m_multiply_it_from_the_left() -> None:
    """The product `A_t ... A_1 M_0` is what FOP's gradient steps on M make, along a run in fractions."""
    M, lr, rho = fractions([[1, 0, 2], [-1, 1, 0]]), F(1, 8), F(1, 16)
    thetas, factors_ = structure.trajectory(BOWL.gradient, START, M, lr, rho, 5)
    gradients = [BOWL.gradient(theta) for theta in thetas]
    for t, factor in enumerate(factors_, start=1):
        assert same(structure.factor_after(M, gradients[:t], lr * rho), factor)
    assert not same(factors_[-1], M)


@pytest.mark.claim("ours-rank-never-rises", shows="holds", by="property")
@given(st.data())
def test_null_space_is_kept(data) -> None:
    m = data.draw(st.integers(2, 6))
    rank = data.draw(st.integers(1, m - 1))
    rng = np.random.default_rng(data.draw(seeds))
    M = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, m))
    gradients = list(rng.standard_normal((4, m, 1)))
    after = structure.factor_after(M, gradients, data.draw(st.floats(0.01, 0.3)))
    null = np.linalg.svd(M)[2][rank:].T
    size = np.linalg.norm(after) + np.linalg.norm(M)
    assert np.linalg.norm(after @ null) <= 1e-10 * size
    assert np.linalg.svd(after)[1][rank:].max() <= 1e-10 * size


@pytest.mark.claim("ours-rank-never-rises", shows="holds", by="exact")
def test_the_range_may_turn() -> None:
    """Singular P can turn: from the span of (1, 0) to that of (3, 1)."""
    g, h = fractions([[1], [0]]), fractions([[1], [1]])
    assert structure.factor_after(fractions([[1], [0]]), [h, g], F(1)).tolist() == [[3], [1]]


# ---------------------------------------------------------------------------------------
# Definiteness and the safe step


@pytest.mark.claim("ours-definiteness", shows="holds", by="symbolic")
def test_definiteness_by_the_factors_of_the_determinant() -> None:
    """`det A = (1 + a s+)(1 - a s-)`, and the first factor is at least one."""
    g, h, a = symbols("g", 3), symbols("h", 3), sp.Symbol("a", positive=True)
    low, high = structure.eigenvalues(g, h)
    assert sp.expand((1 + a * high) * (1 + a * low) - structure.determinant_law(g, h, a)) == 0


@pytest.mark.claim("ours-definiteness", shows="holds", by="exact")
@pytest.mark.parametrize(
    ("rate", "sign", "ranks"), [(F(1, 5), 1, 2), (F(1, 4), 0, 1), (F(1, 3), -1, 2), (F(1, 2), -1, 2), (F(1), -1, 2)]
)
def test_the_regions_of_one_update(rate, sign, ranks) -> None:
    """With g = (-2, 0), h = (1, 0), s- = 4. Below 1/4, at it, above it, at and beyond 1/2."""
    g, h = fractions([[-2], [0]]), fractions([[1], [0]])
    assert structure.negative_part(g, h) == 4
    A = sp.Matrix(structure.multiplier(g, h, rate).tolist())
    M = sp.Matrix([[1, 2], [0, 1]])
    after = A * M
    P = after * after.T
    assert sp.sign(after.det()) == sign
    assert P.rank() == ranks
    assert P.is_positive_definite == (sign != 0)  # also beyond the flip: P forgets the sign of det M
    assert A.is_positive_definite == (rate * 4 < 1)
    before = (M * M.T)[0, 0]
    # Along g - h the quadratic form is multiplied by (1 - a s-)^2: it grows when a s- > 2.
    assert P[0, 0] == (1 - 4 * sp.Rational(str(rate))) ** 2 * before
    assert (P[0, 0] > before) == (rate * 4 > 2)


@pytest.mark.claim("ours-definiteness", shows="holds", by="exact")
def test_opposed_gradients_can_triple_m() -> None:
    """With a = 1, g = -2, h = 1 the gradients disagree, and M goes to -3 M instead of shrinking."""
    assert structure.factor_after(fractions([[1]]), [fractions([[1]]), fractions([[-2]])], F(1)).tolist() == [[-3]]


@pytest.mark.claim("ours-definiteness", shows="holds", by="exact")
def test_a_lost_rank_is_lost_for_ever() -> None:
    gradients = [sp.Matrix(g) for g in ([1, 0], [-2, 0], [3, 1], [1, 5], [-1, 2])]
    ranks = [structure.factor_after(sp.eye(2), gradients[:t], sp.Rational(1, 4)).rank() for t in range(1, 6)]
    assert ranks == [2, 1, 1, 1, 1]


@pytest.mark.claim("ours-definiteness", shows="holds", by="property")
@given(updates(), st.data())
def test_definiteness_as_a_property(update, data) -> None:
    g, h, a = update
    share = a * structure.negative_part(g, h)
    # A share within rounding of 1 says nothing in floats; the exact test above stands there.
    assume(abs(share - 1) > 1e-6)
    A = structure.multiplier(g, h, a)
    assert (np.linalg.eigvalsh(A)[0] > 0) == (share < 1)
    P, _, high = data.draw(definite(len(g), max_log_condition=2.0))
    sign, _ = np.linalg.slogdet(A)
    assert sign == (1 if share < 1 else -1)
    if structure.negative_part(g, h) > 1e-3 * np.linalg.norm(g) * np.linalg.norm(h):
        along = g / np.linalg.norm(g) - h / np.linalg.norm(h)
        before, after = (along.T @ P @ along).item(), (along.T @ A @ P @ A @ along).item()
        size = high * (along.T @ along).item() * (1 + np.linalg.norm(A - np.eye(len(g)))) ** 2
        assert abs(after - (1 - share) ** 2 * before) <= 1e-11 * size


@pytest.mark.claim("ours-safe-step", shows="holds", by="symbolic")
def test_the_negative_part_is_below_half_the_squared_change() -> None:
    """`s = |g - h|^2 / 2 - (|g| - |h|)^2 / 2`, so s is at most the first term."""
    g, h = symbols("g", 3), symbols("h", 3)
    change = inner(g - h, g - h)
    norms = [sp.sqrt(inner(x, x)) for x in (g, h)]
    gap = structure.negative_part(g, h) - change / 2 + (norms[0] - norms[1]) ** 2 / 2
    assert sp.simplify(sp.expand(gap)) == 0


@pytest.mark.claim("ours-safe-step", shows="holds", by="property")
@given(updates(max_columns=4, high=100.0), st.floats(0.05, 0.95), st.data())
def test_the_safe_step_keeps_the_lowest_eigenvalue(update, tau, data) -> None:
    """For matrix gradients too: there `|G||H| - <G, H>` bounds the lowest eigenvalue of S."""
    G, H, rate = update
    m = len(G)
    a = structure.safe_rate(G, H, rate, tau)
    assert 0 <= a <= rate
    A = structure.multiplier(G, H, a)
    size = 1 + a * np.linalg.norm(G) * np.linalg.norm(H)
    assert np.linalg.eigvalsh(A)[0] >= 1 - tau - 1e-13 * size
    P, low, high = data.draw(definite(m, max_log_condition=3.0))
    assert np.linalg.eigvalsh(A @ P @ A)[0] >= (1 - tau) ** 2 * low - 1e-13 * high * size**2
    # And the clip binds only when it must: it never takes less than the rate allows.
    s = structure.negative_part(G, H)
    assert a == rate or a * s >= tau * (1 - 1e-12)
    # It does bind there, also for a rate that is only a little too large.
    if s > 1e-100:
        assert structure.safe_rate(G, H, 1.5 * tau / s, tau) * s <= tau * (1 + 1e-12)
    if G.shape[1] == 1 and a < rate:
        assert np.linalg.eigvalsh(A)[0] <= 1 - tau + 1e-12 * size


@given(gradient_pairs())
def test_the_negative_part_bounds_the_lowest_eigenvalue(pair) -> None:
    G, H = pair
    size = np.linalg.norm(G) * np.linalg.norm(H)
    s = structure.negative_part(G, H)
    assert np.linalg.eigvalsh(symmetric_product(G, H))[0] >= -s - 1e-13 * size
    assert s <= np.sum((G - H) ** 2) / 2 + 1e-13 * (np.sum(G * G) + np.sum(H * H))


@pytest.mark.claim("ours-safe-step", shows="holds", by="numeric")
def test_the_negative_part_keeps_its_digits() -> None:
    """Nearly parallel gradients, against fifty digits: the plain difference has none left."""
    rng = np.random.default_rng(3)
    g = rng.standard_normal((5, 1))
    h = g + 1e-7 * rng.standard_normal((5, 1))
    with mpmath.workdps(50):
        exact = [np.array([[mpmath.mpf(float(x))] for x in v.ravel()]) for v in (g, h)]
        norms = [mpmath.sqrt(sum(x * x for x in v.ravel())) for v in exact]
        true = norms[0] * norms[1] - sum(x * y for x, y in zip(*(v.ravel() for v in exact), strict=True))
    naive = np.linalg.norm(g) * np.linalg.norm(h) - np.sum(g * h)
    assert abs(structure.negative_part(g, h) / true - 1) < 1e-7
    assert abs(naive / true - 1) > 1e-3


# ---------------------------------------------------------------------------------------
# Fixed points, size of the hypergradient


@pytest.mark.claim("ours-fixed-points", shows="holds", by="exact")
def test_fixed_points_on_a_grid() -> None:
    """All g, h of entries -1, 0, 1 in the plane, and M of every rank: S M = 0 exactly when the rule says so."""
    grid = [sp.Matrix(g) for g in itertools.product((-1, 0, 1), repeat=2)]
    seen = set()
    for rows in ([[0, 0], [0, 0]], [[1, 0], [0, 0]], [[1, 2], [-1, -2]], [[1, 0], [0, 1]], [[1, 1], [2, 3]]):
        M = sp.Matrix(rows)
        for g, h in itertools.product(grid, repeat=2):
            still = hypergradient(g, h, M, 1).is_zero_matrix
            rule = g.is_zero_matrix or h.is_zero_matrix or ((M.T * g).is_zero_matrix and (M.T * h).is_zero_matrix)
            assert still == rule
            seen.add((still, M.rank()))
    assert seen == {(True, 0), (True, 1), (False, 1), (True, 2), (False, 2)}


@pytest.mark.claim("ours-fixed-points", shows="holds", by="property")
@given(st.data())
def test_a_gradient_in_the_null_space_stops_everything(data) -> None:
    """When M^T g = 0 the parameters stand still, the next gradient is the same, and so M stands still too."""
    m, k = data.draw(st.integers(2, 6)), data.draw(dims)
    M = np.random.default_rng(data.draw(seeds)).standard_normal((m, k))
    M[-1] = 0.0  # the null space of M^T is an axis: no rounding, and none that the update could amplify
    g = np.zeros((m, 1))
    g[-1] = data.draw(scales)
    thetas, factors_ = structure.trajectory(lambda theta: theta + g, 0 * g, M, 0.5, 0.3, 3)
    assert not np.any(thetas[-1])
    np.testing.assert_array_equal(factors_[-1], M)
    # From M_0 = I the same problem moves.
    assert np.any(structure.trajectory(lambda theta: theta + g, 0 * g, np.eye(m), 0.5, 0.3, 1)[0][-1])


@pytest.mark.claim("ours-fixed-points", shows="holds", by="exact")
def test_a_gradient_out_of_sight_is_seen_through_the_one_before() -> None:
    """M sees the first axis, g is the second: with h on the first M turns, with h = g it stands still."""
    M, first, second = (fractions(x) for x in ([[1], [0]], [[1], [0]], [[0], [1]]))
    assert structure.factor_after(M, [first, second], F(1, 2)).tolist() == [[1], [F(1, 2)]]
    assert structure.factor_after(M, [second, second], F(1, 2)).tolist() == M.tolist()


@pytest.mark.claim("ours-hypergradient-norm", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "k"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_norm_of_the_hypergradient_by_components(m: int, k: int) -> None:
    g, h, M, lr = symbols("g", m), symbols("h", m), symbols("m", m, k), sp.Symbol("epsilon")
    slope = hypergradient(g, h, M, lr)
    ours = structure.squared_hypergradient_norm(g, h, M * M.T, lr)
    assert sp.expand(inner(slope, slope) - ours) == 0


@pytest.mark.claim("ours-hypergradient-norm", shows="holds", by="property")
@given(st.data())
def test_norm_of_the_hypergradient_and_its_bound(data) -> None:
    g, h = data.draw(gradient_pairs(max_columns=1))
    M, lr = data.draw(factors(len(g))), data.draw(scales)
    P = M @ M.T
    norm = np.linalg.norm(hypergradient(g, h, M, lr))
    highest = max(np.linalg.eigvalsh(P)[-1], 0.0)
    bound = structure.hypergradient_bound(g, h, highest, lr)
    assert abs(norm**2 - structure.squared_hypergradient_norm(g, h, P, lr)) <= 1e-12 * bound**2
    assert norm <= bound * (1 + 1e-12)
    # Attained: parallel gradients along the top eigenvector.
    top = np.linalg.eigh(P)[1][:, -1:]
    assert np.linalg.norm(hypergradient(2 * top, top, M, lr)) == pytest.approx(
        structure.hypergradient_bound(2 * top, top, highest, lr), rel=1e-10
    )
    # Norms of S itself.
    S = symmetric_product(g, h)
    product, dot = np.linalg.norm(g) * np.linalg.norm(h), np.sum(g * h)
    assert np.linalg.norm(S, 2) == pytest.approx(product + abs(dot), rel=1e-12, abs=1e-300)
    assert np.linalg.norm(S) == pytest.approx(np.sqrt(2 * product**2 + 2 * dot**2), rel=1e-12, abs=1e-300)


# ---------------------------------------------------------------------------------------
# Symmetries: gauge, rotation, scale; Adam on M keeps none of the first two


BOWL = objectives.diagonal_quadratic([F(1), F(3)])
START = fractions([[2], [-1]])


def preconditioners(factors_: list) -> list:
    return [(M @ M.T).tolist() for M in factors_]


@pytest.mark.claim("ours-gauge", shows="holds", by="exact")
def test_gauge_in_fractions() -> None:
    """M_0 Q for a rational rotation Q: every later M is M_t Q, every P and every parameter is the same."""
    M, Q = fractions([[1, 2], [0, 1]]), fractions(TURN)
    args = BOWL.gradient, START
    plain = structure.trajectory(*args, M, F(1, 8), F(1, 16), 4)
    turned = structure.trajectory(*args, M @ Q, F(1, 8), F(1, 16), 4)
    assert preconditioners(plain[1]) == preconditioners(turned[1])
    assert [x.tolist() for x in plain[0]] == [x.tolist() for x in turned[0]]
    assert (plain[1][-1] @ Q).tolist() == turned[1][-1].tolist()
    assert plain[1][-1].tolist() != M.tolist()


@pytest.mark.claim("ours-gauge", shows="holds", by="property")
@given(st.data())
def test_gauge_for_any_number_of_columns(data) -> None:
    """Also with Q wide, `Q Q^T = I`: a factor with more columns than it needs gains nothing."""
    m, k = data.draw(dims), data.draw(dims)
    rng = np.random.default_rng(data.draw(seeds))
    wide = k + data.draw(st.integers(0, 3))
    Q = np.linalg.qr(rng.standard_normal((wide, wide)))[0][:k]
    M, theta = rng.standard_normal((m, k)), rng.standard_normal((m, 1))
    A = rng.standard_normal((m, m))
    H = A @ A.T / m
    lr = 0.3 / (1 + np.linalg.norm(H, 2) * np.linalg.norm(M, 2) ** 2)
    runs = [structure.trajectory(lambda x: H @ x, theta, start, lr, 0.05, 4) for start in (M, M @ Q)]
    size = 1 + np.linalg.norm(runs[0][1][-1]) ** 2
    np.testing.assert_allclose(runs[0][1][-1] @ runs[0][1][-1].T, runs[1][1][-1] @ runs[1][1][-1].T, atol=1e-10 * size)
    np.testing.assert_allclose(runs[0][0][-1], runs[1][0][-1], atol=1e-10 * size)


def after_sign_step(M: np.ndarray, g: np.ndarray, h: np.ndarray) -> np.ndarray:
    return structure.sign_step(M, hypergradient(g, h, M, F(1)), F(1))


@pytest.mark.claim("ours-adam-breaks-symmetry", shows="holds", by="exact")
def test_adam_on_m_breaks_the_gauge() -> None:
    g, h, Q, eye = fractions([[1], [0]]), fractions([[1], [1]]), fractions(TURN), fractions([[1, 0], [0, 1]])
    plain, turned = after_sign_step(eye, g, h), after_sign_step(eye @ Q, g, h)
    assert (plain @ plain.T).tolist() == [[5, 3], [3, 2]]
    assert (turned @ turned.T).tolist() == [[F(29, 5), F(18, 5)], [F(18, 5), F(17, 5)]]


@pytest.mark.claim("ours-adam-breaks-symmetry", shows="holds", by="exact")
def test_adam_on_m_breaks_rotation_equivariance() -> None:
    g, h, R, eye = fractions([[1], [0]]), fractions([[1], [1]]), fractions(TURN), fractions([[1, 0], [0, 1]])
    plain, turned = after_sign_step(eye, g, h), after_sign_step(eye, R @ g, R @ h)
    assert (R @ plain @ plain.T @ R.T).tolist() != (turned @ turned.T).tolist()


@pytest.mark.claim("ours-adam-breaks-symmetry", shows="holds", by="exact")
def test_adam_on_m_can_raise_the_rank() -> None:
    M, g, h = fractions([[1, 2], [1, 2]]), fractions([[1], [1]]), fractions([[1], [-1]])
    after = after_sign_step(M, g, h)
    assert sp.Matrix(M.tolist()).rank() == 1
    assert after.tolist() == [[2, 3], [0, 1]]
    assert sp.Matrix(after.tolist()).rank() == 2


@pytest.mark.claim("ours-adam-breaks-symmetry", shows="holds", by="property")
@given(st.data())
def test_adams_first_step_is_the_sign_step(data) -> None:
    """The sign step of the witnesses is Adam's, as the oracle defines Adam, up to its small constant."""
    G, H = data.draw(gradient_pairs())
    M = data.draw(factors(len(G)))
    slope = hypergradient(G, H, M, 0.3)
    zeros = np.zeros_like(slope)
    _, change = Adam(eps=1e-300).update(Moments(zeros, zeros, 0), slope, M, 0.01)
    assume(not np.any((slope != 0) & (abs(slope) < 1e-140)))  # whose square underflows
    assume(np.all(slope != 0) or not np.any(slope))
    if np.any(slope):
        np.testing.assert_allclose(M - change, structure.sign_step(M, slope, 0.01), atol=1e-12)


@pytest.mark.claim("ours-rotation", shows="holds", by="exact")
def test_rotation_equivariance_in_fractions() -> None:
    """The rotated problem from the rotated start, M_0 = I in both: the rotated run."""
    R, eye = fractions(TURN), fractions([[1, 0], [0, 1]])
    plain = structure.trajectory(BOWL.gradient, START, eye, F(1, 8), F(1, 16), 4)
    turned = structure.trajectory(lambda x: R @ BOWL.gradient(R.T @ x), R @ START, eye, F(1, 8), F(1, 16), 4)
    assert [(R @ x).tolist() for x in plain[0]] == [x.tolist() for x in turned[0]]
    P, P_turned = (run[1][-1] @ run[1][-1].T for run in (plain, turned))
    assert (R @ P @ R.T).tolist() == P_turned.tolist()
    assert P.tolist() != P_turned.tolist()


@pytest.mark.claim("ours-rotation", shows="holds", by="property")
@given(st.data())
def test_rotation_equivariance(data) -> None:
    m = data.draw(dims)
    rng = np.random.default_rng(data.draw(seeds))
    R, _ = np.linalg.qr(rng.standard_normal((m, m)))
    A, theta = rng.standard_normal((m, m)), rng.standard_normal((m, 1))
    H = A @ A.T / m
    lr = 0.3 / (1 + np.linalg.norm(H, 2))
    plain = structure.trajectory(lambda x: H @ x + x**2 / 9, theta, np.eye(m), lr, 0.05, 4)
    turned = structure.trajectory(lambda x: R @ (H @ (R.T @ x) + (R.T @ x) ** 2 / 9), R @ theta, np.eye(m), lr, 0.05, 4)
    size = 1 + np.linalg.norm(plain[1][-1]) ** 2
    np.testing.assert_allclose(R @ plain[0][-1], turned[0][-1], atol=1e-10 * size)
    np.testing.assert_allclose(R @ plain[1][-1] @ R.T, turned[1][-1], atol=1e-10 * size)


@pytest.mark.claim("ours-scale", shows="holds", by="exact")
@pytest.mark.parametrize("c", [F(1, 7), F(10)])
def test_scale_in_fractions(c) -> None:
    """The loss c J with lr / c and rho / c takes the same steps; with rho unchanged it doesn't."""
    eye = fractions([[1, 0], [0, 1]])
    plain = structure.trajectory(BOWL.gradient, START, eye, F(1, 8), F(1, 16), 4)
    scaled, kept = (
        structure.trajectory(lambda x: c * BOWL.gradient(x), START, eye, F(1, 8) / c, rho, 4)
        for rho in (F(1, 16) / c, F(1, 16))
    )
    assert [x.tolist() for x in plain[0]] == [x.tolist() for x in scaled[0]]
    assert preconditioners(plain[1]) == preconditioners(scaled[1])
    assert [x.tolist() for x in plain[0]] != [x.tolist() for x in kept[0]]


@pytest.mark.claim("ours-scale", shows="holds", by="symbolic")
def test_scale_of_the_two_updates() -> None:
    """One step of each kind, with symbols: c leaves both, whatever the factor."""
    g, h, M = symbols("g", 2), symbols("h", 2), symbols("m", 2, 2)
    c, lr, rho = sp.symbols("c epsilon rho", positive=True)
    plain = m_first_step(h, M, g, h, lr, rho)
    scaled = m_first_step(h, M, c * g, c * h, lr / c, rho / c)
    for one, other in zip(plain, scaled, strict=True):
        assert (one - other).expand() == sp.zeros(*one.shape)


# ---------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: structure.multiplier(np.ones((2, 1)), np.ones((3, 1)), 1), "H: expected shape"),
        (lambda: structure.eigenvalues(np.ones((2, 2)), np.ones((2, 2))), "g: expected shape"),
        (lambda: structure.safe_rate(np.ones((2, 1)), np.ones((2, 1)), 1.0, 1.0), "tau: expected a number in"),
        (lambda: structure.safe_rate(np.ones((2, 1)), np.ones((2, 1)), -1.0, 0.5), "rate: expected a number in"),
        (lambda: structure.negative_part(np.array([[np.nan]]), np.ones((1, 1))), "G: expected finite numbers"),
        (lambda: structure.sign_step(np.ones((2, 2)), np.ones((2, 1)), 1.0), "slope: expected shape"),
        (lambda: structure.trajectory(lambda x: x, np.ones((1, 1)), np.ones((1, 1)), 1, 1, -1), "steps: expected"),
    ],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
