"""Pure noise: the determinant collapses, the spectrum spreads, a stationary run loses trace."""

from __future__ import annotations

import itertools
import runpy
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import hypergradient as hg
from fop_theory import noise, structure
from fop_theory.ledger import WITNESSES
from tests.helpers import fractions, interval
from tests.strategies import definite, seeds

F = Fraction


# ---------------------------------------------------------------------------------------
# The determinant


@pytest.mark.claim("ours-noise-determinant", shows="holds", by="exact")
@pytest.mark.parametrize(
    "points",
    [
        list(itertools.product((-1, 1), repeat=1)),
        list(itertools.product((-1, 1), repeat=2)),
        list(itertools.product((-1, 1), repeat=3)),
        [(2, 0), (-2, 0), (0, 1), (0, -1)],  # not isotropic
        [(1, 0, 0), (0, 2, 0), (1, 1, -1)],  # with a mean
        [(F(1, 2), 3), (-1, F(2, 3)), (0, -1), (4, 1), (1, 1)],
    ],
)
def test_expected_determinant_by_enumeration(points) -> None:
    """Every pair (g, h) of a finite distribution, in fractions."""
    vectors = [fractions([[x] for x in point]) for point in points]
    share = F(1, len(vectors))
    R = sum(share * (g @ g.T) for g in vectors)
    mean = sum(share * g for g in vectors)
    for a in (F(1, 10), F(3)):
        matrices = (structure.multiplier(g, h, a) for g, h in itertools.product(vectors, repeat=2))
        direct = sum(share**2 * F(str(sp.Matrix(A.tolist()).det())) for A in matrices)
        assert direct == noise.expected_determinant(R, mean, a)


@pytest.mark.claim("ours-noise-determinant", shows="holds", by="symbolic")
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_expected_determinant_from_the_moments(n: int) -> None:
    """Expand the determinant law and replace each monomial in g, and in h, by its moment."""
    g, h = sp.symbols(f"g:{n}"), sp.symbols(f"h:{n}")
    a, s = sp.symbols("a s", positive=True)
    law = sp.Poly(sp.expand(structure.determinant_law(sp.Matrix(g), sp.Matrix(h), a)), *g, *h)

    def moment(powers: tuple[int, ...]) -> sp.Expr:
        if any(p % 2 for p in powers) and sum(powers) in (1, 2):
            return sp.Integer(0)
        return {0: sp.Integer(1), 2: s**2}[sum(powers)]

    direct = sum(c * moment(powers[:n]) * moment(powers[n:]) for powers, c in law.terms())
    ours = noise.expected_determinant(s**2 * sp.eye(n), sp.zeros(n, 1), a)
    assert sp.expand(direct - ours) == 0
    assert sp.expand(ours - (1 - a**2 * n * (n - 1) * s**4)) == 0


@pytest.mark.claim("ours-noise-determinant", shows="holds", by="property")
@given(st.data())
def test_spread_always_lowers_the_expectation(data) -> None:
    """The second-order term is never positive; a signal helps exactly when `2 |m|^2 > a ((tr R)^2 - tr R^2)`."""
    n = data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(seeds))
    B, mean = rng.standard_normal((n, n)), rng.standard_normal((n, 1)) * data.draw(st.floats(0, 2))
    R, a = B @ B.T + mean @ mean.T, data.draw(st.floats(0.001, 1))
    size = np.trace(R) ** 2
    assert noise.expected_determinant(R, 0 * mean, a) <= 1 + 1e-12 * a**2 * size
    gap = 2 * np.sum(mean**2) - a * (np.trace(R) ** 2 - np.sum(R * R))
    expected = noise.expected_determinant(R, mean, a)
    assert (expected - 1) == pytest.approx(a * gap, rel=1e-9, abs=1e-12 * (1 + a * size))


@pytest.mark.claim("ours-noise-collapse", shows="holds", by="exact")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_drift_by_enumeration(n: int) -> None:
    """`E log det(I + a S)` over all pairs of coin vectors, against the sum of n + 1 terms; below Jensen's bound."""
    vectors = [np.array(x, dtype=float)[:, None] for x in itertools.product((-1, 1), repeat=n)]
    for a in (0.01, 0.1):
        logs = [np.linalg.slogdet(structure.multiplier(g, h, a)) for g in vectors for h in vectors]
        assert all(sign == 1 for sign, _ in logs)
        drift = noise.sign_noise_drift(n, a)
        assert np.mean([size for _, size in logs]) == pytest.approx(drift, rel=1e-12)
        assert drift < np.log(1 - a**2 * n * (n - 1))


@pytest.mark.claim("ours-noise-collapse", shows="holds", by="symbolic")
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_drift_to_second_order(n: int) -> None:
    """`log((1 + a k)^2 - a^2 n^2) = 2 a k - a^2 (k^2 + n^2) + ...`, and a coin sum has `E k^2 = n`."""
    a, k = sp.symbols("a k")
    second = sp.series(sp.log((1 + a * k) ** 2 - (a * n) ** 2), a, 0, 3).removeO().coeff(a, 2)
    expected = sum(sp.Rational(sp.binomial(n, i), 2**n) * second.subs(k, 2 * i - n) for i in range(n + 1))
    assert expected == -n * (n + 1)
    assert sum(noise.growth_exponents(n, sp.Integer(1))) == expected
    rates = np.array([1e-3, 5e-4]) / n
    gaps = [noise.sign_noise_drift(n, rate) / (rate**2 * n * (n + 1)) + 1 for rate in rates]
    assert np.all(np.abs(gaps) < 1e-5)


@pytest.mark.claim("ours-noise-collapse", shows="holds", by="numeric")
@pytest.mark.parametrize(("n", "rate"), [(2, 0.1), (9, 0.02)])
def test_drift_by_simulation(n: int, rate: float) -> None:
    logs = noise.sign_noise_run(n, rate, steps=200, runs=100, seed=n)
    low, high = interval(logs[:, -1].sum(axis=1) / 200)
    jensen = np.log(1 - rate**2 * n * (n - 1))
    assert low <= noise.sign_noise_drift(n, rate) <= high
    assert high < 0.5 * (noise.sign_noise_drift(n, rate) + jensen)


@pytest.mark.claim("ours-noise-collapse", shows="holds", by="numeric")
def test_the_simulated_determinant_is_that_of_the_product() -> None:
    """The running triangular factors against the product itself, short enough not to lose digits."""
    logs = noise.sign_noise_run(3, 0.05, steps=20, runs=4, seed=5)
    rng = np.random.default_rng(5)
    M = np.broadcast_to(np.eye(3), (4, 3, 3))
    before = rng.choice([-1.0, 1.0], (4, 3, 1))
    for t in range(1, 21):
        g = rng.choice([-1.0, 1.0], (4, 3, 1))
        M = np.stack([structure.multiplier(*pair, 0.05) for pair in zip(g, before, strict=True)]) @ M
        before = g
        np.testing.assert_allclose(logs[:, t].sum(axis=1), np.linalg.slogdet(M)[1], rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------------------------
# The spectrum


@pytest.mark.claim("ours-noise-spectrum", shows="holds", by="symbolic")
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_growth_of_a_volume_to_second_order(n: int) -> None:
    """`log vol(A U)` for the first k axes U, expanded to a^2 and averaged: the sum of the first k exponents."""
    g, h, variance = sp.symbols(f"g:{n}"), sp.symbols(f"h:{n}"), sp.Symbol("s2")
    S = hg.symmetric_product(sp.Matrix(g), sp.Matrix(h))
    for k in range(1, n + 1):
        U = sp.eye(n)[:, :k]
        # log det(I + X) / 2 with X = 2 a U^T S U + a^2 U^T S^2 U is tr X / 2 - tr X^2 / 4 + ...
        second = (U.T * S * S * U).trace() / 2 - ((U.T * S * U) ** 2).trace()
        terms = sp.Poly(sp.expand(second), *g, *h).terms()
        # E g_i g_j = variance delta_ij, so that odd powers leave nothing.
        averaged = sum(c * variance ** (sum(powers) // 2) for powers, c in terms if not any(p % 2 for p in powers))
        assert sp.expand(averaged - sum(noise.growth_exponents(n, sp.Integer(1), variance)[:k])) == 0
        assert sp.expand(averaged - k * (n - 1 - 2 * k) * variance**2) == 0


@pytest.mark.claim("ours-noise-spectrum", shows="holds", by="numeric")
@pytest.mark.parametrize("n", [2, 5, 9])
def test_growth_exponents_by_simulation(n: int) -> None:
    """Each exponent within its confidence interval, widened by the order that the formula leaves out."""
    rate, steps = 0.15 / n, 1500
    logs = noise.sign_noise_run(n, rate, steps=steps, runs=40, seed=n)
    start = 300  # the frame needs a while to turn into place
    slopes = (logs[:, -1] - logs[:, start]) / (steps - start)
    left_out = 8 * (n * rate) ** 4
    for i, exponent in enumerate(noise.growth_exponents(n, rate)):
        low, high = interval(slopes[:, i])
        assert low - left_out <= exponent <= high + left_out


def test_noise_lets_the_largest_eigenvalue_grow() -> None:
    """From dimension four on the top exponent is positive: noise shrinks the volume, not the norm."""
    tops = [noise.growth_exponents(n, F(1))[0] for n in range(1, 10)]
    assert tops == [-2, -1, 0, 1, 2, 3, 4, 5, 6]
    assert [sum(x > 0 for x in noise.growth_exponents(9, F(1))), len(noise.growth_exponents(9, F(1)))] == [2, 9]


# ---------------------------------------------------------------------------------------
# A stationary run on a quadratic


@pytest.mark.claim("ours-noise-trace", shows="holds", by="property")
@given(st.data())
def test_stationary_overlap_is_minus_the_step_energy(data) -> None:
    """`E g_t^T P g_(t-1) = -E |step|_H^2 / (2 lr)`, both from the covariance, by different products."""
    n = data.draw(st.integers(1, 5))
    P, H, noise_ = (data.draw(definite(n, max_log_condition=1.5))[0] for _ in range(3))
    lr = data.draw(st.floats(0.1, 1.8)) / np.linalg.eigvals(P @ H).real.max()
    overlap = noise.stationary_correlation(P, H, noise_, lr)
    energy = noise.stationary_step_energy(P, H, noise_, lr)
    assert overlap == pytest.approx(-energy / (2 * lr), rel=1e-8)
    assert overlap < 0


@pytest.mark.claim("ours-noise-trace", shows="holds", by="symbolic")
def test_stationary_overlap_in_one_dimension() -> None:
    """Solve for the variance, then average g g'."""
    P, h, variance, lr, V = sp.symbols("P h s2 epsilon V", positive=True)
    keep = 1 - lr * P * h
    found = sp.solve(sp.Eq(V, keep**2 * V + lr**2 * P**2 * variance), V)[0]
    # g = h x + xi, x' = keep x - lr P xi, g' = h x' + xi', all noises independent of what came before.
    overlap = h * (keep * h * found - lr * P * variance)
    assert sp.simplify(overlap - noise.one_dimensional_correlation(P, h, variance, lr)) == 0


@pytest.mark.claim("ours-noise-trace", shows="holds", by="numeric")
def test_one_dimension_is_the_general_formula() -> None:
    for P, h, variance, lr in ((1.0, 1.0, 1.0, 0.1), (0.5, 4.0, 2.0, 0.9), (3.0, 0.2, 0.1, 1.0)):
        general = noise.stationary_correlation([[P]], [[h]], [[variance]], lr)
        # The general one is E g P g'.
        assert general == pytest.approx(P * noise.one_dimensional_correlation(P, h, variance, lr), rel=1e-10)


@pytest.mark.claim("ours-noise-trace", shows="holds", by="numeric")
def test_stationary_overlap_by_simulation() -> None:
    """Gradient descent with noise, P frozen: average `g_t^T P g_(t-1)` of 2,000 independent runs."""
    P, H, C = np.diag([1.0, 0.5]), np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, 0.3], [0.3, 0.5]])
    lr, root = 0.4, np.linalg.cholesky(C)
    rng = np.random.default_rng(11)
    theta = np.linalg.cholesky(noise.stationary_covariance(P, H, C, lr)) @ rng.standard_normal((2, 2000))
    before = H @ theta + root @ rng.standard_normal((2, 2000))
    totals = np.zeros(2000)
    for _ in range(50):
        theta = theta - lr * P @ before
        gradient = H @ theta + root @ rng.standard_normal((2, 2000))
        totals += np.sum(gradient * (P @ before), axis=0)
        before = gradient
    low, high = interval(totals / 50)
    assert low <= noise.stationary_correlation(P, H, C, lr) <= high
    assert high < 0


# ---------------------------------------------------------------------------------------
# What Section 5 infers from a small determinant


@pytest.mark.claim("text-5-non-invertible", shows="fails", by="exact")
@pytest.mark.claim("fig-5-downward-less-invertible", shows="fails", by="exact")
def test_a_small_determinant_is_no_sign_of_a_singular_matrix() -> None:
    """A tenth of the identity: determinant 1e-9, condition one, and an inverse that loses no digit."""
    said = runpy.run_path(str(WITNESSES / "small_determinant.py"))
    assert said["determinant"] == F(1, 10**9)
    P = sp.eye(9) / 10
    assert P.det() == sp.Rational(1, 10**9)
    assert P * (10 * sp.eye(9)) == sp.eye(9)
    # Shifting a whole spectrum down by a factor leaves the condition number as it was.
    for spectrum in ([1, 2, 9], [F(1, 7), 5, 5]):
        lowered = [F(x) / 100 for x in spectrum]
        assert F(max(lowered)) / min(lowered) == F(max(spectrum)) / F(min(spectrum))
    # And a determinant of one says as little.
    assert np.prod(np.array([F(10**6), F(1, 10**6)], dtype=object)) == 1


@pytest.mark.claim("text-5-uniform-spectrum", shows="fails", by="exact")
def test_a_uniform_spectrum_of_p_says_nothing_about_the_rates() -> None:
    """What must be uniform is the spectrum of P H: the identity is uniform and the rates are a hundredfold apart."""
    said = runpy.run_path(str(WITNESSES / "uniform_spectrum.py"))
    assert said["rates"] == {"uniform P": [F(99, 100), F(0)], "inverse Hessian": [F(1, 2), F(1, 2)]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise.sign_noise_drift(2, 0.25), "rate: expected a number in"),
        (lambda: noise.sign_noise_drift(0, 0.1), "n: expected a number in"),
        (lambda: noise.stationary_covariance([[1]], [[4]], [[1]], 0.5), "lr: expected lr lambda_max"),
        (lambda: noise.stationary_covariance([[1, 2], [2, 1]], np.eye(2), np.eye(2), 0.5), "P: expected a positive"),
        (lambda: noise.expected_determinant(np.eye(2), np.ones((3, 1)), 0.1), "mean: expected shape"),
        (lambda: noise.one_dimensional_correlation(0, 1, 1, 1), "P: expected a number in"),
    ],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
