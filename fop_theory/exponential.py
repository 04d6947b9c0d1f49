"""The exponential form of FOP's update, `M <- exp(a S) M`: it agrees to first order and can't overshoot.

For vectors it has a closed form as cheap as the plain update, whatever the rate; P stays definite, and the
logarithm of its determinant follows scalar hypergradient descent.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
