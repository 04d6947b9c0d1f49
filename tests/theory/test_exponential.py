"""The exponential update: its closed form, its determinant, and that noise doesn't collapse it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sympy as sp

from fop_theory import exponential, noise, structure
from fop_theory import hypergradient as hg
from tests.helpers import symbols
from tests.strategies import any_scale, factor, gradient_pair, number, problems, whole


def pair_and_factor(chance, max_columns=4):
    """`(G, H, M)`."""
    G, H = gradient_pair(chance, max_columns)
    return G, H, factor(chance, len(G))


@pytest.mark.claim("ours-exponential-update", shows="holds", by="property")
@problems(lambda chance: pair_and_factor(chance, 1), number(-3, 3))
def test_closed_form_against_lapack(drawn, share) -> None:
    """Parallel, opposed, orthogonal and zero gradients included; also what it does to the determinant."""
    g, h, M = drawn
    a = share / (np.linalg.norm(g) * np.linalg.norm(h) + 1e-300) if np.any(h) else share
    # By LAPACK's eigenvectors: scipy's expm loses four digits on matrices of norm four.
    values, vectors = np.linalg.eigh(a * hg.symmetric_product(g, h))
    full = (vectors * np.exp(values)) @ vectors.T
    rounding = 1e-13 * np.exp(2 * abs(share)) * np.linalg.norm(M)
    np.testing.assert_allclose(exponential.exponential_step(g, h, M, a), full @ M, atol=rounding, rtol=0)
    sign, log = np.linalg.slogdet(exponential.exponential_step(g, h, np.eye(len(g)), a))
    assert sign == 1
    assert abs(log - exponential.log_determinant_gain(g, h, a)) <= 1e-13 * np.exp(2 * abs(share))
    # Definite whatever the rate: the lowest eigenvalue is exp(-a s), never zero.
    lowest = np.exp(min(0.0, -a * structure.negative_part(g, h), a * structure.eigenvalues(g, h)[1]))
    found = np.linalg.eigvalsh(exponential.exponential_step(g, h, np.eye(len(g)), a))[0]
    assert found >= lowest - 1e-13 * np.exp(2 * abs(share))


@pytest.mark.claim("ours-exponential-update", shows="holds", by="symbolic")
def test_log_determinant_is_the_trace() -> None:
    g, h, a = sp.Matrix(sp.symbols("g:3")), sp.Matrix(sp.symbols("h:3")), sp.Symbol("a")
    gain = exponential.log_determinant_gain(g, h, a)
    assert sp.expand(gain - a * sum(structure.eigenvalues(g, h))) == 0
    assert sp.expand(gain - a * hg.symmetric_product(g, h).trace()) == 0


@pytest.mark.claim("ours-exponential-update", shows="holds", by="exact")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_noise_does_not_collapse_it(n: int) -> None:
    """Over all pairs of coin vectors its drift is zero, where that of the plain update is negative."""
    vectors = [sp.Matrix(x) for x in itertools.product((-1, 1), repeat=n)]
    gains = [exponential.log_determinant_gain(g, h, sp.Rational(1, 10)) for g in vectors for h in vectors]
    assert sum(gains) == 0
    assert any(gains)
    assert noise.sign_noise_drift(n, 0.1) < 0


@pytest.mark.claim("ours-exponential-update", shows="holds", by="exact")
def test_opposed_gradients_shrink_it() -> None:
    """The case in which the plain update triples M: here M falls to `exp(-4)` of itself."""
    after = exponential.exponential_step([[-2.0]], [[1.0]], [[1.0]], 1.0)
    assert after.item() == pytest.approx(np.exp(-4), rel=1e-12)
    assert structure.factor_after(np.eye(1), [np.array([[1.0]]), np.array([[-2.0]])], 1.0).item() == -3


# ---------------------------------------------------------------------------------------
# Several columns


@pytest.mark.claim("ours-exponential-shared", shows="holds", by="symbolic")
@pytest.mark.parametrize("power", [1, 2, 3])
def test_powers_pass_through_the_small_matrix(power: int) -> None:
    """`S^j = W (C W^T W)^(j-1) C W^T` for free gradients with two columns: the series follows term by term."""
    G, H = symbols("g", 2, 2), symbols("h", 2, 2)
    W, swapped = sp.Matrix.hstack(G, H), sp.Matrix.vstack(H.T, G.T)
    S = hg.symmetric_product(G, H)
    assert (S**power - W * (swapped * W) ** (power - 1) * swapped).expand() == sp.zeros(2, 2)
    assert sp.expand(S.trace() - exponential_gain(G, H)) == 0


def exponential_gain(G: sp.Matrix, H: sp.Matrix) -> sp.Expr:
    """`2 <G, H>`, column by column: the sum of what `log_determinant_gain` gives for each."""
    return sum(exponential.log_determinant_gain(G[:, j], H[:, j], 1) for j in range(G.shape[1]))


@pytest.mark.claim("ours-exponential-shared", shows="holds", by="property")
@problems(pair_and_factor, number(-2, 2))
def test_several_columns_against_lapack(drawn, share) -> None:
    G, H, M = drawn
    a = share / (np.linalg.norm(G) * np.linalg.norm(H) + 1e-300) if np.any(H) else share
    values, vectors = np.linalg.eigh(a * hg.symmetric_product(G, H))
    full = (vectors * np.exp(values)) @ vectors.T
    with np.errstate(over="ignore", invalid="ignore"):  # what a wrong formula makes may overflow: it is refused below
        found = exponential.shared_exponential_step(G, H, M, a)
    # The small matrix isn't normal: its entries are |G| / |H| and the inverse, and rounding grows with the larger.
    sizes = [np.linalg.norm(G), np.linalg.norm(H)]
    uneven = 1 + (max(sizes) / min(sizes) if min(sizes) > 0 else 0)
    rounding = 1e-12 * uneven * np.exp(2 * abs(share)) * np.linalg.norm(M)
    np.testing.assert_allclose(found, full @ M, atol=rounding, rtol=0)
    if uneven < 1e3:
        sign, log = np.linalg.slogdet(exponential.shared_exponential_step(G, H, np.eye(len(G)), a))
        assert sign == 1
        assert abs(log - 2 * a * np.sum(G * H)) <= 1e-11 * uneven * np.exp(4 * abs(share))


# ---------------------------------------------------------------------------------------
# The normalised rate in one dimension


@pytest.mark.claim("ours-normalised-one-dimension", shows="holds", by="property")
@problems(number(-1, 1), number(0.02, 0.43))
def test_it_converges_from_any_first_step(share: float, rate: float) -> None:
    """From P thousands of times too large or too small: the scale reaches the cycle and theta falls at its pace."""
    # Until P has come down, theta grows by e^(exponent^2 / 8c): no more than floats hold.
    e, exponent = np.exp(4 * rate), share * min(8, np.sqrt(4000 * rate))
    first = np.exp(exponent)
    arrival = int(abs(exponent) / (4 * rate)) + 2
    left, scales = exponential.normalised_run(first, rate, arrival + 40)
    inside = scales[arrival:]
    assert np.all((inside >= (1 - 1e-9) / e) & (inside <= e * (1 + 1e-9)))
    worst = np.sinh(2 * rate) ** 2
    assert worst < 1
    for t in range(arrival, arrival + 36, 2):
        assert abs(left[t + 2]) <= worst * abs(left[t]) * (1 + 1e-6) + 1e-300


@pytest.mark.claim("ours-normalised-one-dimension", shows="holds", by="property")
@problems(number(-2, 2), number(0.05, 0.4), whole(0, 1), any_scale, any_scale)
def test_the_run_is_that_of_the_update(exponent, rate, negative, curvature, lr) -> None:
    """Against `exponential_step` with gradients of a parabola, at any learning rate and curvature."""
    theta = np.array([[-1.0 if negative else 1.0]])
    P = np.exp(exponent) / (lr * curvature)
    M, h = np.array([[np.sqrt(P)]]), None
    left, _ = exponential.normalised_run(np.exp(exponent), rate, 8)
    first = theta.item()
    for t in range(8):
        g = curvature * theta
        if abs(theta.item()) < 1e-9:
            break
        assert theta.item() / first == pytest.approx(left[t], rel=1e-6, abs=1e-9)
        if h is not None:
            M = exponential.exponential_step(g, h, M, rate / (abs(g.item()) * abs(h.item())))
        theta, h = theta - lr * M @ M.T @ g, g


@pytest.mark.claim("ours-normalised-one-dimension", shows="holds", by="symbolic")
def test_the_worst_cycle_and_the_largest_rate() -> None:
    p, c = sp.symbols("p c", positive=True)
    growth = sp.exp(4 * c)
    factor = exponential.two_step_factor(p, growth)
    worst = sp.solve(sp.diff(factor, p), p)
    assert len(worst) == 1
    assert sp.simplify(worst[0] - (1 + growth) / (2 * growth)) == 0
    assert sp.simplify((factor.subs(p, worst[0]) + sp.sinh(2 * c) ** 2).rewrite(sp.exp)) == 0
    # sinh 2c < 1 is the condition, and at the limit the cycle stands still.
    limit = sp.asinh(1) / 2
    assert sp.simplify(sp.sinh(2 * limit).rewrite(sp.exp)) == 1
    left, _ = exponential.normalised_run(float(worst[0].subs(c, limit)), float(limit), 40)
    assert abs(left[40]) == pytest.approx(1, abs=1e-9)
    left, _ = exponential.normalised_run(float(worst[0].subs(c, limit)) * 1.0001, float(limit) * 1.05, 40)
    assert abs(left[40]) > 1.5


def test_refusals() -> None:
    with pytest.raises(ValueError, match="M: expected shape"):
        exponential.exponential_step(np.ones((2, 1)), np.ones((2, 1)), np.ones((3, 1)), 0.1)
    with pytest.raises(ValueError, match="h: expected shape"):
        exponential.log_determinant_gain(np.ones((2, 1)), np.ones((3, 1)), 0.1)
