"""Section 3: when an outer product of gradients is a curvature, and what FOP's two gradients make of it."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import sympy as sp
from hypothesis import assume, given
from hypothesis import strategies as st

from fop_theory import curvature
from fop_theory import hypergradient as hg
from tests.helpers import column, fractions, same, symbols, whole
from tests.strategies import gradient_pairs, seeds

classes = st.integers(2, 5)


def chances(rng: np.random.Generator, c: int) -> np.ndarray:
    """Probabilities as fractions, none of them zero."""
    parts = [Fraction(int(x)) for x in rng.integers(1, 7, c)]
    return column(*(part / sum(parts) for part in parts))


def minors(A: np.ndarray) -> set:
    """All 2 x 2 determinants: zero alone if the rank is at most one."""
    places = range(len(A) - 1), range(1, len(A)), range(len(A) - 1), range(1, len(A))
    return {A[i, k] * A[j, n] - A[i, n] * A[j, k] for i, j, k, n in product(*places)}


# ---------------------------------------------------------------------------------------
# The outer product of one gradient with itself


@pytest.mark.claim("text-3-outer-product-hessian", shows="under", by="symbolic")
@pytest.mark.parametrize("c", [2, 3])
def test_for_labels_of_the_model_the_mean_is_the_hessian(c: int) -> None:
    """Both sides from the loss, differentiated: `-log softmax(z)_y`, once and twice, for every label."""
    z = symbols("z", c)
    p = z.applyfunc(sp.exp) / sum(z.applyfunc(sp.exp))
    gradients = sp.zeros(c, c)
    for y in range(c):
        loss = -sp.log(p[y])
        gradients[:, y] = sp.Matrix([sp.diff(loss, x) for x in z])
        assert sp.simplify(sp.hessian(loss, list(z)) - curvature.label_hessian(p)) == sp.zeros(c, c)
    assert sp.simplify(gradients - curvature.label_gradients(p)) == sp.zeros(c, c)
    gap = curvature.second_moment(curvature.label_gradients(p), p) - curvature.label_hessian(p)
    assert sp.simplify(gap) == sp.zeros(c, c)


@pytest.mark.claim("text-3-outer-product-hessian", shows="under", by="symbolic")
def test_so_it_is_for_any_model_in_the_mean() -> None:
    """Two parameters, three labels, probabilities that are any functions: the mean of the Hessians themselves."""
    theta = sp.symbols("a b", real=True)
    some = [sp.Function(f"p{y}", positive=True)(*theta) for y in range(2)]
    p = [*some, 1 - sum(some)]
    gradients = sp.Matrix(2, 3, lambda i, y: -sp.diff(sp.log(p[y]), theta[i]))
    moment = curvature.second_moment(gradients, sp.Matrix(p))
    mean = sum((p[y] * sp.hessian(-sp.log(p[y]), theta) for y in range(3)), sp.zeros(2, 2))
    assert (moment - mean).applyfunc(sp.simplify) == sp.zeros(2, 2)


@pytest.mark.claim("text-3-outer-product-hessian", shows="under", by="property")
@given(classes, st.integers(1, 4), seeds)
def test_in_the_parameters_it_is_the_gauss_newton_matrix(c: int, m: int, seed: int) -> None:
    """In fractions: for any Jacobian of the outputs, `E (Z^T g) (Z^T g)^T = Z^T (diag p - p p^T) Z`; not for others."""
    rng = np.random.default_rng(seed)
    p, Z = chances(rng, c), whole(rng, c, m)
    gauss_newton = Z.T @ curvature.label_hessian(p) @ Z
    gradients = Z.T @ curvature.label_gradients(p)
    assert same(curvature.second_moment(gradients, p), gauss_newton)
    # With other labels the moment is another matrix; but for a coin, whose two gradients have one outer product.
    q = chances(rng, c)
    assume(not same(p, q) and (c > 2 or p[0, 0] != Fraction(1, 2)))
    whole_rank = curvature.second_moment(curvature.label_gradients(p), q)
    assert not same(whole_rank, curvature.label_hessian(p))


@pytest.mark.claim("text-3-outer-product-hessian", shows="under", by="property")
@given(st.integers(1, 5), st.integers(1, 3), seeds)
def test_so_it_is_for_squares_whose_residuals_have_the_variance_of_the_model(m: int, n: int, seed: int) -> None:
    """`r^2/2` with `r = 1` or `-1`: the mean, and for one output each single outer product, is `Z^T Z`."""
    Z = whole(np.random.default_rng(seed), n, m)
    ways = np.array(list(product((1, -1), repeat=n))).T
    even = column(*([Fraction(1, ways.shape[1])] * ways.shape[1]))
    assert same(curvature.second_moment(Z.T @ ways, even), Z.T @ Z)
    if n == 1:
        assert same(hg.symmetric_product(Z.T, Z.T), 2 * (Z.T @ Z))


# ---------------------------------------------------------------------------------------
# FOP's two gradients


@pytest.mark.claim("ours-outer-product-of-two-steps", shows="holds", by="symbolic")
def test_of_two_steps_the_mean_is_that_of_the_mean_gradient() -> None:
    """Every pair of labels, one for each step, with symbols for the gradients and the chances."""
    G, q = symbols("g", 2, 3), sp.Matrix(sp.symbols("q:3", positive=True))
    total = sp.zeros(2, 2)
    for y, other in product(range(3), repeat=2):
        total += q[y] * q[other] * hg.symmetric_product(G[:, y], G[:, other])
    assert (total - curvature.mean_of_two_steps(G, q)).expand() == sp.zeros(2, 2)
    assert sp.expand(curvature.mean_of_two_steps(G, q).det()) == 0


@pytest.mark.claim("ours-outer-product-of-two-steps", shows="holds", by="exact")
@given(classes, st.integers(1, 4), seeds)
def test_and_vanishes_where_the_gradient_does(c: int, m: int, seed: int) -> None:
    """In fractions, by all pairs. With the model's labels the loss is at its least and the Hessian is not zero."""
    rng = np.random.default_rng(seed)
    p, q, Z = chances(rng, c), chances(rng, c), whole(rng, c, m)
    for weights in (p, q):
        G = Z.T @ curvature.label_gradients(p)
        total = fractions([[0] * m] * m)
        for y, other in product(range(c), repeat=2):
            total = total + weights[y] * weights[other] * hg.symmetric_product(G[:, [y]], G[:, [other]])
        assert same(total, curvature.mean_of_two_steps(G, weights))
        assert minors(total) <= {0}
    zero = curvature.mean_of_two_steps(curvature.label_gradients(p), p)
    assert not zero.any()
    assert curvature.label_hessian(p).any()


@pytest.mark.claim("ours-outer-product-of-two-steps", shows="holds", by="property")
@given(gradient_pairs(max_columns=1))
def test_a_single_one_has_a_negative_eigenvalue_unless_the_gradients_are_parallel(pair) -> None:
    """`<g, h> - |g| |h|` is one; a curvature of Gauss-Newton's kind has none."""
    g, h = pair
    size = np.linalg.norm(g) * np.linalg.norm(h)
    least = np.linalg.eigvalsh(hg.symmetric_product(g, h))[0]
    expected = min(0.0, float((g.T @ h).item()) - size) if len(g) > 1 else 2 * float((g.T @ h).item())
    # The matrix has norm 2 |g| |h| at most, and its eigenvalues come to within rounding of that.
    assert least == pytest.approx(expected, abs=1e-13 * size + 1e-300)


# ---------------------------------------------------------------------------------------
# Across iterations


@pytest.mark.claim("text-3-across-iterations", shows="holds", by="symbolic")
def test_fop_s_hypergradient_is_a_derivative_through_the_step_before() -> None:
    """A quadratic loss after a step, differentiated by the M of the step; both gradients and the rate are in it."""
    A = sp.Matrix(2, 2, sp.symbols("a b b d", real=True))
    M, theta, lr = symbols("m", 2, 2), symbols("t", 2), sp.Symbol("epsilon")
    after = hg.factored_step(theta, M, A * theta, lr)
    loss = (after.T * A * after)[0] / 2
    direct = M.applyfunc(lambda entry: sp.diff(loss, entry))
    ours = hg.hypergradient(A * after, A * theta, M, lr)
    assert (direct - ours).expand() == sp.zeros(2, 2)
    now = symbols("n", 2)  # the point at which the step arrives, taken as given
    moment = curvature.running_average([A * now], 0)
    assert not moment.free_symbols & (theta.free_symbols | M.free_symbols | {lr})
    assert hg.hypergradient(A * now, A * theta, M, lr).free_symbols >= theta.free_symbols | M.free_symbols | {lr}


@pytest.mark.claim("text-3-across-iterations", shows="holds", by="property")
@given(st.data())
def test_an_average_of_outer_products_has_no_product_of_two_steps(data) -> None:
    """Turn round one step's gradient: every average stays as it is, bit by bit, and FOP's S changes its sign."""
    G, H = data.draw(gradient_pairs())
    decay = data.draw(st.floats(0, 0.99))
    pasts = [curvature.running_average([sign * H, H, G], decay) for sign in (1, -1)]
    assert np.array_equal(*pasts)
    assert np.array_equal(hg.symmetric_product(G, -H), -hg.symmetric_product(G, H))


@pytest.mark.claim("text-3-across-iterations", shows="holds", by="exact")
def test_it_goes_back_one_iteration_and_no_further() -> None:
    """On x^2/2, two steps with one M and a rate of one half: through both the derivative is twice that of the last."""
    half, one = Fraction(1, 2), column(1)
    M = sp.Symbol("M")
    theta_1 = sp.Integer(1) - sp.Rational(1, 2) * M**2
    theta_2 = theta_1 - sp.Rational(1, 2) * M**2 * theta_1
    through_both = sp.diff(theta_2**2 / 2, M).subs(M, 1)
    middle = hg.factored_step(one, one, one, half)
    end = hg.factored_step(middle, one, middle, half)
    last_step = hg.hypergradient(end, middle, one, half)[0, 0]
    assert last_step == Fraction(-1, 8)
    assert through_both == sp.Rational(-1, 4)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="chances: expected shape"):
        curvature.label_gradients(np.ones((2, 2)))
    with pytest.raises(ValueError, match="chances: expected shape"):
        curvature.second_moment(np.ones((2, 3)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="gradients: expected at least one"):
        curvature.running_average([], 0.5)
    with pytest.raises(ValueError, match="gradients: expected shape"):
        curvature.running_average([np.ones((2, 1)), np.ones((3, 1))], 0.5)
