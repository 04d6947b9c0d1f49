"""Normalised FOP, Appendix A.2: `sqrt(m) M M^T / |M M^T|` as the preconditioner, and its hypergradient.

The paper's n, "the first dimension of M", is `m` here, the number of rows. The norm is Frobenius's,
the one for which `|I| = sqrt(m)`. The paper gives no hypergradient for this form.
"""

from __future__ import annotations

from typing import Any

from fop_theory import checks
from fop_theory.algebra import inner, root
from fop_theory.hypergradient import factored_step, hypergradient


def _rate(M: Any) -> Any:
    """`sqrt(m) / |M M^T|_F`, from the k x k matrix `M^T M`, which has the same norm."""
    gram = M.T @ M
    square = inner(gram, gram)
    if square == 0:
        raise ValueError("M: expected a factor that is not zero; M M^T = 0 can't be normalised")
    return root(M.shape[0] / square)


def normalised_preconditioner(M: Any) -> Any:
    """The preconditioner of Eq. (11), `sqrt(m) M M^T / |M M^T|_F: [m, m]`.

    Args:
        M: Factor `[m, k]`, not zero; any k.

    Returns:
        `[m, m]`, of Frobenius norm `sqrt(m)`.

    Raises:
        ValueError: If `M` is zero or not a finite matrix.
    """
    M = checks.matrix("M", M)
    return _rate(M) * (M @ M.T)


def normalised_step(theta: Any, M: Any, G: Any, lr: Any) -> Any:
    """Gradient step of normalised FOP, Eq. (11): `theta - lr sqrt(m) M M^T G / |M M^T|_F`.

    Args:
        theta: Parameters `[m, n]`.
        M: Factor `[m, k]`, not zero; any k.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The next parameters `[m, n]`.

    Raises:
        ValueError: If `M` is zero, a shape does not fit or a number is not finite.
    """
    M, lr = checks.matrix("M", M), checks.scalar("lr", lr)
    return factored_step(theta, M, G, lr * _rate(M))


def normalised_hypergradient(G: Any, H: Any, M: Any, lr: Any) -> Any:
    """Hypergradient of normalised FOP, through the norm; the paper doesn't give it.

    `-lr sqrt(m)/|P| (S - <S, P>/|P|^2 P) M` with `P = M M^T`, `S = G H^T + H G^T`, `M = M^(t-1)`.
    The bracket is S without its component along P, hence the result is orthogonal to M.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`, not zero.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The hypergradient `[m, k]`.

    Raises:
        ValueError: If `M` is zero, a shape does not fit or a number is not finite.
    """
    held = hypergradient_at_constant_norm(G, H, M, lr)
    M = checks.matrix("M", M)
    gram = M.T @ M
    share = inner(held, M) / inner(gram, gram)
    return held - share * (M @ gram)


def hypergradient_at_constant_norm(G: Any, H: Any, M: Any, lr: Any) -> Any:
    """What follows when `|M M^T|` is held constant: `-lr sqrt(m)/|P| S M`, Algorithm 1's direction.

    Algorithm 1 itself has `-lr S M`, the same up to the positive factor.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`, not zero.
        lr: Learning rate, the paper's epsilon.

    Returns:
        `[m, k]`, not orthogonal to M.

    Raises:
        ValueError: If `M` is zero, a shape does not fit or a number is not finite.
    """
    return _rate(checks.matrix("M", M)) * hypergradient(G, H, M, lr)


def squared_gain(P: Any, G: Any) -> Any:
    """`|P G|^2 / |G|^2`: the squared step length against gradient descent's, exact in fractions.

    Args:
        P: Preconditioner `[m, m]`.
        G: Gradient `[m, n]`, not zero.

    Raises:
        ValueError: If `G` is zero, a shape does not fit or a number is not finite.
    """
    P = checks.matrix("P", P)
    G = checks.matrix("G", G, shape=(P.shape[0], None))
    size = inner(G, G)
    if size == 0:
        raise ValueError("G: expected a gradient that is not zero")
    moved = P @ G
    return inner(moved, moved) / size


def mean_squared_gain(P: Any) -> Any:
    """`E |P g|^2 / E |g|^2 = |P|_F^2 / m` for isotropic g, one with `E g g^T = s I`; one for `P` of Eq. (11).

    Args:
        P: Preconditioner `[m, m]`.

    Raises:
        ValueError: If `P` is not a finite square matrix.
    """
    P = checks.matrix("P", P)
    P = checks.matrix("P", P, shape=(P.shape[0], P.shape[0]))
    return inner(P, P) / P.shape[0]
