"""The exponential form of FOP's update, `M <- exp(a S) M`: it agrees to first order and can't overshoot.

For vectors it has a closed form as cheap as the plain update, whatever the rate; P stays definite, and the
logarithm of its determinant follows scalar hypergradient descent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from fop_theory import checks
from fop_theory.algebra import inner


def exponential_step(g: Any, h: Any, M: Any, rate: float) -> np.ndarray:
    """`exp(a S) M` in O(mk), from the two eigenvectors `w = g/|g| +- h/|h|` of `S = g h^T + h g^T`.

    Their eigenvalues are `+- |g||h| |w|^2 / 2`; written so, nothing cancels for nearly parallel gradients.

    Args:
        g: Gradient at step t, `[m, 1]`.
        h: Gradient at step t-1, `[m, 1]`.
        M: Factor that made step t-1, `[m, k]`.
        rate: a, the paper's rho epsilon.

    Returns:
        The next factor `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    g = checks.matrix("g", g, shape=(None, 1))
    h = checks.matrix("h", h, shape=g.shape)
    M = checks.matrix("M", M, shape=(g.shape[0], None))
    rate = checks.scalar("rate", rate)
    size_g, size_h = np.linalg.norm(g), np.linalg.norm(h)
    if size_g == 0 or size_h == 0:
        return M
    after = M
    for sign in (1, -1):
        w = g / size_g + sign * h / size_h
        length = inner(w, w)
        if length > 0:
            after = after + np.expm1(sign * rate * size_g * size_h * length / 2) / length * (w @ (w.T @ M))
    return after


def log_determinant_gain(g: Any, h: Any, rate: Any) -> Any:
    """`log det exp(a S) = a tr S = 2 a g.h`: the volume follows scalar hypergradient descent, in logarithms.

    Args:
        g: Gradient at step t, `[m, 1]`.
        h: Gradient at step t-1, `[m, 1]`.
        rate: a, the paper's rho epsilon.

    Returns:
        Change of `log |det M|`; `log det P` changes by twice that.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    g = checks.matrix("g", g, shape=(None, 1))
    h = checks.matrix("h", h, shape=g.shape)
    return 2 * checks.scalar("rate", rate) * inner(g, h)


def shared_exponential_step(G: Any, H: Any, M: Any, rate: float) -> np.ndarray:
    """`exp(a S) M` for a parameter with n columns, in O(mnk + mn^2 + n^3): no `[m, m]` matrix is formed.

    `S = W C W^T` with `W = [G, H]` and C the swap of both halves, so every power of S is W, a small matrix, `W^T`:
    `exp(a S) = I + a W phi(a C W^T W) C W^T` with `phi(x) = (e^x - 1) / x`.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor that made step t-1, `[m, k]`.
        rate: a, the paper's rho epsilon.

    Returns:
        The next factor `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    M = checks.matrix("M", M, shape=(G.shape[0], None))
    rate = checks.scalar("rate", rate)
    W, swapped = np.hstack([G, H]), np.vstack([H.T, G.T])
    small = rate * (swapped @ W)
    size = len(small)
    # phi without a division: the upper right block of the exponential of [[x, I], [0, 0]].
    blocks = np.block([[small, np.eye(size)], [np.zeros((size, 2 * size))]])
    return M + rate * (W @ (scipy.linalg.expm(blocks)[:size, size:] @ (swapped @ M)))


def normalised_run(p: float, rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """FOP on a parabola, M first, with `M <- exp(c S / |g||h|) M`: what is left of theta, and the step's scale.

    In one dimension `S / |g||h|` is twice the sign of g h, so P is multiplied by `e^(+-4c)`. With
    `p = lr curvature P` a step leaves `1 - p` of theta, and the sign is that of `1 - p`: nothing else matters.

    Args:
        p: First scale, lr times curvature times P, positive.
        rate: c, positive.
        steps: Number of steps, at least zero.

    Returns:
        `theta_t / theta_0`, `[steps + 1]`, and the p that made each step, `[steps]`.

    Raises:
        ValueError: If a number is not finite or out of range.
    """
    p = checks.scalar("p", p, low=0, strict=True)
    rate = checks.scalar("rate", rate, low=0, strict=True)
    checks.scalar("steps", steps, low=0)
    left, scales = [1.0], []
    for _ in range(steps):
        scales.append(p)
        left.append((1 - p) * left[-1])
        p = p * np.exp(4 * rate * np.sign(1 - p))
    return np.array(left), np.array(scales)


def two_step_factor(p: Any, growth: Any) -> Any:
    """What two steps of a cycle leave of theta: `(1 - p) (1 - p e)`, with e the growth of P in one step.

    Args:
        p: The smaller scale of the cycle, at most 1.
        growth: `e^(4c)`, at least 1.

    Returns:
        Minus a number of at most `sinh(2c)^2`, which it is for `p = (1 + e) / (2 e)`.

    Raises:
        ValueError: If a number is not finite.
    """
    p, growth = checks.scalar("p", p), checks.scalar("growth", growth)
    return (1 - p) * (1 - p * growth)
