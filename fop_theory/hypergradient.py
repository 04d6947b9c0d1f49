"""The hypergradient of a learned preconditioner: Eqs. (1)-(4), (8)-(10) and Algorithm 1.

Notation: `G` is the gradient at step t, `H` the gradient at step t-1, both `[m, n]`
(a parameter vector is `[m, 1]`), `M: [m, k]` for any k, `P = M M^T: [m, m]`.
Every function is one equation. It runs on floats, fractions, mpmath numbers and sympy
matrices alike, so that the derivation and the numeric check read the same line.
"""

from __future__ import annotations

from typing import Any

from fop_theory import checks


def preconditioned_step(theta: Any, P: Any, G: Any, lr: Any) -> Any:
    """Gradient step with a preconditioner, Eq. (1): `theta - lr P G`.

    Args:
        theta: Parameters `[m, n]`.
        P: Preconditioner `[m, m]`.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The next parameters `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    m, n = theta.shape
    P = checks.matrix("P", P, shape=(m, m))
    G = checks.matrix("G", G, shape=(m, n))
    lr = checks.scalar("lr", lr)
    return theta - lr * (P @ G)


def factored_step(theta: Any, M: Any, G: Any, lr: Any) -> Any:
    """Gradient step with `P = M M^T`, Eq. (2) and Eq. (8): `theta - lr M M^T G`.

    Args:
        theta: Parameters `[m, n]`.
        M: Factor `[m, k]`, any k.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The next parameters `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    m, n = theta.shape
    M = checks.matrix("M", M, shape=(m, None))
    G = checks.matrix("G", G, shape=(m, n))
    lr = checks.scalar("lr", lr)
    return theta - lr * (M @ (M.T @ G))


def hypergradient(G: Any, H: Any, M: Any, lr: Any) -> Any:
    """Gradient of the loss at step t with respect to the factor of step t-1, Eq. (4) corrected.

    `-lr (G H^T + H G^T) M` with `M = M^(t-1)`; the paper prints `M^(t)`.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`, any k.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The hypergradient `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    M = checks.matrix("M", M, shape=(G.shape[0], None))
    lr = checks.scalar("lr", lr)
    return -lr * ((G @ H.T + H @ G.T) @ M)
