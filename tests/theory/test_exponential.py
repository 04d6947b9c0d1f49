"""The exponential update: its closed form, its determinant, and that noise doesn't collapse it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import exponential, noise, structure
from fop_theory import hypergradient as hg
from tests.strategies import factors, gradient_pairs


@pytest.mark.claim("ours-exponential-update", shows="holds", by="property")
@given(gradient_pairs(max_columns=1), st.floats(-3, 3), st.data())
def test_closed_form_against_lapack(pair, share, data) -> None:
    """Parallel, opposed, orthogonal and zero gradients included; also what it does to the determinant."""
    g, h = pair
    M = data.draw(factors(len(g)))
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


def test_refusals() -> None:
    with pytest.raises(ValueError, match="M: expected shape"):
        exponential.exponential_step(np.ones((2, 1)), np.ones((2, 1)), np.ones((3, 1)), 0.1)
    with pytest.raises(ValueError, match="h: expected shape"):
        exponential.log_determinant_gain(np.ones((2, 1)), np.ones((3, 1)), 0.1)
