"""The algebra of one update: what `M <- (I + a S) M`, `S = G H^T + H G^T`, does to M and to P.

`a` is the paper's rho times epsilon and is called `rate` here. `G` is the gradient at step t, `H` the
gradient at step t-1. Where a function asks for vectors, `g` and `h` are `[m, 1]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fop_theory import checks
from fop_theory.algebra import identity_beside, inner, root
from fop_theory.hypergradient import m_first_step, symmetric_product


def _pair(G: Any, H: Any, columns: int | None = None) -> tuple[Any, Any]:
    names = ("g", "h") if columns == 1 else ("G", "H")
    G = checks.matrix(names[0], G, shape=(None, columns))
    return G, checks.matrix(names[1], H, shape=G.shape)


def multiplier(G: Any, H: Any, rate: Any) -> Any:
    """`A = I + a S`: one update multiplies M by it from the left, and P on both sides.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        rate: a, the paper's rho epsilon.

    Returns:
        `[m, m]`, symmetric.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    S = symmetric_product(G, H)
    rate = checks.scalar("rate", rate)
    return identity_beside(S) + rate * S


def factor_after(M: Any, gradients: Sequence[Any], rate: Any) -> Any:
    """`M_t = A_t ... A_1 M_0` for a sequence of gradients; the first pair makes `A_1`.

    Args:
        M: First factor `[m, k]`.
        gradients: Gradients `[m, n]` in the order in which they came.
        rate: a, the paper's rho epsilon.

    Returns:
        The last factor `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    M = checks.matrix("M", M)
    gradients = [checks.matrix("gradients", g, shape=(M.shape[0], None)) for g in gradients]
    for H, G in itertools.pairwise(gradients):
        M = multiplier(G, H, rate) @ M
    return M


def eigenvalues(g: Any, h: Any) -> tuple[Any, Any]:
    """The two eigenvalues of S that need not vanish, `g.h - |g||h|` and `g.h + |g||h|`; all others are 0.

    Eigenvectors are `|h| g - |g| h` and `|h| g + |g| h`. In one dimension there is one eigenvalue, `2 g h`:
    it is the low one if `g h < 0`, else the high one, and the other is 0.

    Args:
        g: Gradient at step t, `[m, 1]`.
        h: Gradient at step t-1, `[m, 1]`.

    Returns:
        The low one (never positive) and the high one (never negative).

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    g, h = _pair(g, h, columns=1)
    dot, size = inner(g, h), root(inner(g, g) * inner(h, h))
    return dot - size, dot + size


def determinant_law(g: Any, h: Any, rate: Any) -> Any:
    """`det(I + a S) = (1 + a g.h)^2 - a^2 |g|^2 |h|^2`, in any dimension.

    Args:
        g: Gradient at step t, `[m, 1]`.
        h: Gradient at step t-1, `[m, 1]`.
        rate: a, the paper's rho epsilon.

    Returns:
        The factor by which one update multiplies `det M`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    g, h = _pair(g, h, columns=1)
    rate = checks.scalar("rate", rate)
    return (1 + rate * inner(g, h)) ** 2 - rate**2 * inner(g, g) * inner(h, h)


def small_determinant(G: Any, H: Any, rate: Any) -> Any:
    """The `2n x 2n` matrix with the determinant of `I + a S` (Sylvester), for matrix gradients.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        rate: a, the paper's rho epsilon.

    Returns:
        `I + a [[H^T G, H^T H], [G^T G, G^T H]]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G, H = (np.asarray(x) for x in _pair(G, H))
    rate = checks.scalar("rate", rate)
    return np.eye(2 * G.shape[1], dtype=int) + rate * np.block([[H.T @ G, H.T @ H], [G.T @ G, G.T @ H]])


def negative_part(G: Any, H: Any) -> Any:
    """`s = |G||H| - <G, H>`: for vectors, minus the lowest eigenvalue of S; for matrices, a bound on it.

    It is computed as `|G||H| / 2` times the squared distance of the two directions: the difference would
    lose its digits when the gradients are nearly parallel, and that is where training spends its time.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.

    Returns:
        s, at least 0 and at most `|G - H|^2 / 2`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G, H = _pair(G, H)
    size_g, size_h = root(inner(G, G)), root(inner(H, H))
    if size_g == 0 or size_h == 0:
        return size_g * size_h
    apart = G / size_g - H / size_h
    return size_g * size_h * inner(apart, apart) / 2


def safe_rate(G: Any, H: Any, rate: float, tau: float) -> float:
    """The largest rate up to `rate` with `a s <= tau`: it keeps `lambda_min(P)` above `(1 - tau)^2` of itself.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        rate: The rate that is wanted, the paper's rho epsilon, not negative.
        tau: Fraction in (0, 1) that a step may take from the smallest singular value of M.

    Returns:
        `min(rate, tau / s)`; it costs O(mn).

    Raises:
        ValueError: If a shape does not fit, a number is not finite or tau is outside (0, 1).
    """
    s = negative_part(G, H)
    rate = checks.scalar("rate", rate, low=0)
    tau = checks.scalar("tau", tau, low=0, high=1, strict=True)
    return rate if rate * s <= tau else tau / s


def squared_hypergradient_norm(g: Any, h: Any, P: Any, lr: Any) -> Any:
    """`|grad_M J|_F^2 = lr^2 (|g|^2 h^T P h + |h|^2 g^T P g + 2 (g.h) g^T P h)`: P is enough, M isn't needed.

    Args:
        g: Gradient at step t, `[m, 1]`.
        h: Gradient at step t-1, `[m, 1]`.
        P: Preconditioner `M M^T` of step t-1, `[m, m]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The squared norm.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    g, h = _pair(g, h, columns=1)
    P = checks.matrix("P", P, shape=(g.shape[0], g.shape[0]))
    lr = checks.scalar("lr", lr)
    own = inner(g, g) * inner(h, P @ h) + inner(h, h) * inner(g, P @ g)
    return lr**2 * (own + 2 * inner(g, h) * inner(g, P @ h))


def hypergradient_bound(g: Any, h: Any, highest: float, lr: float) -> float:
    """Upper bound of the hypergradient's norm, `2 lr |g||h| sqrt(lambda_max(P))`.

    Args:
        g: Gradient at step t, `[m, 1]`.
        h: Gradient at step t-1, `[m, 1]`.
        highest: Largest eigenvalue of P, not negative.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The bound; it's attained for parallel g, h along the top eigenvector.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    g, h = _pair(g, h, columns=1)
    highest = checks.scalar("highest", highest, low=0)
    lr = checks.scalar("lr", lr, low=0)
    return 2 * lr * root(inner(g, g) * inner(h, h) * highest)


def sign_step(M: Any, slope: Any, hyper_lr: Any) -> Any:
    """Adam's first step on M, in the limit of a vanishing Adam epsilon: `M - hyper_lr sign(slope)`.

    Args:
        M: Factor `[m, k]`.
        slope: Hypergradient `[m, k]`.
        hyper_lr: Adam's learning rate for M.

    Returns:
        The next factor `[m, k]`, in the numbers of `M`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    M = checks.matrix("M", M)
    slope = checks.matrix("slope", slope, shape=M.shape)
    hyper_lr = checks.scalar("hyper_lr", hyper_lr)
    signs = np.array([[(x > 0) - (x < 0) for x in row] for row in slope.tolist()], dtype=int)
    return M - hyper_lr * signs


def trajectory(
    gradient: Callable[[Any], Any], theta: Any, M: Any, lr: Any, hyper_lr: Any, steps: int
) -> tuple[list[Any], list[Any]]:
    """FOP with plain steps on M, M before theta; exact on fractions.

    Args:
        gradient: From parameters `[m, n]` to the gradient `[m, n]`.
        theta: First parameters `[m, n]`.
        M: First factor `[m, k]`.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: Hypergradient learning rate, the paper's rho.
        steps: Number of steps, at least zero.

    Returns:
        `steps + 1` parameters, and the `steps` factors that made the steps.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    checks.scalar("steps", steps, low=0)
    theta, M = checks.matrix("theta", theta), checks.matrix("M", M)
    thetas, factors, H = [theta], [], 0 * theta
    for _ in range(steps):
        G = gradient(theta)
        theta, M = m_first_step(theta, M, G, H, lr, hyper_lr)
        H = G
        thetas.append(theta)
        factors.append(M)
    return thetas, factors
