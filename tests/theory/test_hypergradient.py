"""Eqs. (1)-(4), (8)-(10) and Algorithm 1."""

from __future__ import annotations

import numdifftools as nd
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import hypergradient as hg
from tests.strategies import factors, gradient_pairs, scales


@pytest.mark.claim("eq-4", shows="corrected", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 1), (2, 2, 3), (3, 1, 2)])
def test_eq_4_by_components(m: int, n: int, k: int) -> None:
    """For a quadratic loss, differentiate the loss after the step by every entry of M."""
    A = sp.Matrix(m, m, lambda i, j: sp.Symbol(f"a{min(i, j)}{max(i, j)}"))
    M = sp.Matrix(m, k, sp.symbols(f"m:{m * k}"))
    theta = sp.Matrix(m, n, sp.symbols(f"t:{m * n}"))
    lr = sp.Symbol("epsilon")
    H = A @ theta
    after = hg.factored_step(theta, M, H, lr)
    loss = (after.T @ A @ after).trace() / 2
    direct = M.applyfunc(lambda entry: sp.diff(loss, entry))
    assert (direct - hg.hypergradient(A @ after, H, M, lr)).expand() == sp.zeros(m, k)


@pytest.mark.claim("eq-4", shows="corrected", by="property")
@given(st.data())
def test_eq_4_central_differences(data) -> None:
    """The derivative of `<G, theta - lr M M^T H>`, by Richardson extrapolation."""
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(G.shape[0])), data.draw(scales)
    linear = nd.Gradient(lambda x: np.sum(G * hg.factored_step(0 * G, x.reshape(M.shape), H, lr)))
    ours = hg.hypergradient(G, H, M, lr)
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-30
    np.testing.assert_allclose(linear(M.ravel()).reshape(M.shape) / size, ours / size, atol=1e-7)
