"""The low-rank preconditioner `P = I + M M^T` of Appendix A.4, Eq. (23), and where it starts.

`M: [m, k]` has k < m columns as a rule, but every function takes any k. At the start of training
its entries are independent and normal with standard deviation `sigma`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import sympy as sp

from fop_theory import checks
from fop_theory.algebra import identity_beside, inner


def preconditioner(M: Any) -> Any:
    """The matrix of Eq. (23), `I + M M^T: [m, m]`. Only small examples need it: see `precondition`.

    Args:
        M: Factor `[m, k]`.

    Returns:
        `[m, m]`.

    Raises:
        ValueError: If `M` is not a finite matrix.
    """
    M = checks.matrix("M", M)
    product = M @ M.T
    return identity_beside(product) + product


def precondition(M: Any, G: Any) -> Any:
    """`(I + M M^T) G` by two thin products, `G + M (M^T G)`: nothing of size `m x m` is formed.

    Args:
        M: Factor `[m, k]`.
        G: Gradient `[m, n]`.

    Returns:
        The preconditioned gradient `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    M = checks.matrix("M", M)
    G = checks.matrix("G", G, shape=(M.shape[0], None))
    return G + M @ (M.T @ G)


def low_rank_step(theta: Any, M: Any, G: Any, lr: Any) -> Any:
    """Gradient step with the preconditioner of Eq. (23).

    Args:
        theta: Parameters `[m, n]`.
        M: Factor `[m, k]`.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The next parameters `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    G = checks.matrix("G", G, shape=theta.shape)
    return theta - checks.scalar("lr", lr) * precondition(M, G)


def added_square(M: Any, G: Any) -> Any:
    """How much longer the step is: `|P G|^2 - |G|^2 = 2 |M^T G|^2 + |M M^T G|^2`, never negative.

    Args:
        M: Factor `[m, k]`.
        G: Gradient `[m, n]`.

    Returns:
        The difference of the squared lengths; zero exactly where `M^T G = 0`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    M = checks.matrix("M", M)
    G = checks.matrix("G", G, shape=(M.shape[0], None))
    within = M.T @ G
    turned = M @ within
    return 2 * inner(within, within) + inner(turned, turned)


def eigenvalues(M: Any) -> np.ndarray:
    """Eigenvalues of `I + M M^T` in ascending order, from the k singular values of M.

    They're `1 + s^2`, and one for each of the `m - k` directions that M can't see.

    Args:
        M: Factor `[m, k]`, floats.

    Returns:
        `[m]`.

    Raises:
        ValueError: If `M` is not a finite matrix.
    """
    M = np.asarray(checks.matrix("M", M), dtype=float)
    values = np.ones(M.shape[0])
    singular = np.linalg.svd(M, compute_uv=False)
    values[: len(singular)] += singular**2
    return np.sort(values)


def multiplications(m: int, n: int, k: int) -> dict[str, int]:
    """Multiplications to apply a preconditioner to a gradient `[m, n]`, in three ways.

    Args:
        m: Rows of the gradient.
        n: Columns of the gradient.
        k: Columns of M.

    Returns:
        `"formed"`: P is there already, `m^2 n`. `"full"`: `M (M^T G)` with a square M, `2 m^2 n`.
        `"low rank"`: the same with `M: [m, k]`, `2 m k n`.

    Raises:
        ValueError: If a size is below one.
    """
    checks.sizes(m=m, n=n, k=k)
    return {"formed": m * m * n, "full": 2 * m * m * n, "low rank": 2 * m * k * n}


# ---------------------------------------------------------------------------------------
# The untrained preconditioner


def untrained(rng: np.random.Generator, m: int, k: int, sigma: float) -> np.ndarray:
    """The factor as A.4 initialises it: `[m, k]` with independent entries from N(0, sigma^2).

    Args:
        rng: Where the numbers come from.
        m: Rows.
        k: Columns.
        sigma: Standard deviation of an entry.

    Raises:
        ValueError: If a size is below one, or `sigma` negative or not finite.
    """
    _check_layer(m, k, sigma)
    return sigma * rng.standard_normal((m, k))


def _check_layer(m: Any, k: Any, sigma: Any) -> None:
    """Refuse sizes below one and a standard deviation that isn't one."""
    checks.sizes(m=m, k=k)
    checks.scalar("sigma", sigma, low=0)


def mean_trace(m: Any, k: Any, sigma: Any) -> Any:
    """`E tr M M^T = sigma^2 m k`: on average M M^T is `sigma^2 k I`.

    Args:
        m: Rows of M.
        k: Columns of M.
        sigma: Standard deviation of an entry.

    Raises:
        ValueError: If a size is below one, or `sigma` negative or not finite.
    """
    _check_layer(m, k, sigma)
    return sigma**2 * m * k


def mean_square(m: Any, k: Any, sigma: Any) -> Any:
    """`E |M M^T|_F^2 = sigma^4 m k (m + k + 1)`: the squared distance of P from the identity.

    Args:
        m: Rows of M.
        k: Columns of M.
        sigma: Standard deviation of an entry.

    Raises:
        ValueError: If a size is below one, or `sigma` negative or not finite.
    """
    _check_layer(m, k, sigma)
    return sigma**4 * m * k * (m + k + 1)


def largest_mean_distance(m: int, k: int, sigma: float) -> float:
    """Upper bound of `E |P - I|_2 = E |M|_2^2`: `sigma^2 ((sqrt(m) + sqrt(k))^2 + 1)`.

    `E |M|_2 <= sigma (sqrt(m) + sqrt(k))` (Davidson and Szarek 2001), and the norm of a normal matrix
    is 1-Lipschitz, so that its variance is at most `sigma^2` (Poincaré's inequality).

    Args:
        m: Rows of M.
        k: Columns of M.
        sigma: Standard deviation of an entry.

    Raises:
        ValueError: If a size is below one, or `sigma` negative or not finite.
    """
    _check_layer(m, k, sigma)
    return sigma**2 * ((math.sqrt(m) + math.sqrt(k)) ** 2 + 1)


def typical_tangent(m: Any, k: Any, sigma: Any) -> Any:
    """Tangent of the angle by which an untrained P turns a gradient: `sigma^2 sqrt(k (m - 1)) / (1 + sigma^2 k)`.

    For a gradient g of length one, `P g` has the mean `1 + sigma^2 k` along g, and its part across g the
    root mean square `sigma^2 sqrt(k (m - 1))`. Their quotient is where the tangent concentrates for large m and k.

    Args:
        m: Rows of M.
        k: Columns of M.
        sigma: Standard deviation of an entry.

    Raises:
        ValueError: If a size is below one, or `sigma` negative or not finite.
    """
    _check_layer(m, k, sigma)
    across = sp.sqrt(k * (m - 1)) if isinstance(m + k, sp.Expr) else math.sqrt(k * (m - 1))
    return sigma**2 * across / (1 + sigma**2 * k)


def typical_gain(m: Any, k: Any, sigma: Any) -> Any:
    """Root mean square of `|P g| / |g|` for an untrained P: `sqrt((1 + sigma^2 k)^2 + sigma^4 k (m + 1))`.

    Args:
        m: Rows of M.
        k: Columns of M.
        sigma: Standard deviation of an entry.

    Raises:
        ValueError: If a size is below one, or `sigma` negative or not finite.
    """
    _check_layer(m, k, sigma)
    square = (1 + sigma**2 * k) ** 2 + sigma**4 * k * (m + 1)
    return sp.sqrt(square) if isinstance(square, sp.Expr) else math.sqrt(square)
