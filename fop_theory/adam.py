"""FOP with Adam as the base optimizer: the map p -> u, its Jacobian D, and what Eq. (4) becomes.

Adam (Kingma and Ba 2015) is fed the preconditioned gradient `p = P H` and moves the parameters by
`-lr u`. It treats every coordinate on its own, so the Jacobian `du/dp` is diagonal. `m` and `v` are
its two moments before the step, not yet corrected for their start at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from fop_theory import checks
from fop_theory.algebra import elementwise, root
from fop_theory.hypergradient import hypergradient

BETA1, BETA2 = Fraction(9, 10), Fraction(999, 1000)


def _like(array: np.ndarray, number: Any) -> Any:
    # Fractions mix neither with numpy's arrays of floats nor, under a division, with mpmath's numbers.
    if not isinstance(number, Fraction):
        return number
    if array.dtype != object:
        return float(number)
    sample = array.flat[0]
    return type(sample)(number.numerator) / number.denominator if hasattr(sample, "_mpf_") else number


def _ratio(p: Any, s: Any) -> Any:
    # A coordinate that has seen only zeros, as behind a dead unit, has p = s = 0 and the slope of m_hat alone.
    if isinstance(s, np.ndarray):
        return np.divide(p, s, out=np.zeros_like(p + s), where=s != 0)
    return p / s if s != 0 else 0 * p


def _arguments(p: Any, m: Any, v: Any, step: Any, beta1: Any, beta2: Any, damping: Any) -> tuple[Any, ...]:
    p = checks.matrix("p", p)
    m, v = checks.matrix("m", m, shape=p.shape), checks.matrix("v", v, shape=p.shape)
    step = checks.scalar("step", step, low=1)
    beta1, beta2 = (checks.scalar(name, beta, low=0, high=1) for name, beta in (("beta1", beta1), ("beta2", beta2)))
    damping = checks.scalar("damping", damping, low=0)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if beta == 1:
            raise ValueError(f"{name}: expected a number below 1, got {beta!r}")
    if not isinstance(p, sp.MatrixBase) and damping == 0 and bool(np.any((v == 0) & (p == 0))):
        raise ValueError("damping: expected a positive number where p and v are both zero, got 0")
    if not isinstance(p, sp.MatrixBase):
        beta1, beta2 = _like(p, beta1), _like(p, beta2)
    return p, m, v, step, beta1, beta2, damping


def adam_direction(p: Any, m: Any, v: Any, step: Any, beta1: Any = BETA1, beta2: Any = BETA2, damping: Any = 0) -> Any:
    """Adam's step direction: `u = m_hat / (sqrt(v_hat) + damping)`.

    Args:
        p: What Adam takes for the gradient, here `P H`, `[m, n]`.
        m: First moment before the step, `[m, n]`.
        v: Second moment before the step, `[m, n]`, at least zero.
        step: Number of the step, from 1.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        damping: Adam's epsilon, at least zero.

    Returns:
        The direction u, `[m, n]`; the parameters become `theta - lr u`.

    Raises:
        ValueError: If a shape does not fit, a number is not finite, or the map is 0/0.
    """
    p, m, v, step, beta1, beta2, damping = _arguments(p, m, v, step, beta1, beta2, damping)

    def direction(p: Any, m: Any, v: Any) -> Any:
        m_hat = (beta1 * m + (1 - beta1) * p) / (1 - beta1**step)
        v_hat = (beta2 * v + (1 - beta2) * p**2) / (1 - beta2**step)
        return m_hat / (root(v_hat) + damping)

    return elementwise(direction, p, m, v)


def adam_jacobian(p: Any, m: Any, v: Any, step: Any, beta1: Any = BETA1, beta2: Any = BETA2, damping: Any = 0) -> Any:
    """Diagonal of the Jacobian of Adam's map: `D = du/dp`, entry by entry.

    With `c1 = (1-beta1)/(1-beta1^t)`, `c2 = (1-beta2)/(1-beta2^t)` and `s = sqrt(v_hat)`:
    `D = c1/(s + damping) - m_hat c2 p / (s (s + damping)^2)`.

    Args:
        p: What Adam takes for the gradient, `[m, n]`.
        m: First moment before the step, `[m, n]`.
        v: Second moment before the step, `[m, n]`, at least zero.
        step: Number of the step, from 1.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        damping: Adam's epsilon, at least zero.

    Returns:
        `D: [m, n]`, of either sign.

    Raises:
        ValueError: If a shape does not fit, a number is not finite, the map is 0/0, or it has a kink there
            (p and v zero, m not, which no history leaves).
    """
    p, m, v, step, beta1, beta2, damping = _arguments(p, m, v, step, beta1, beta2, damping)
    if not isinstance(p, sp.MatrixBase) and bool(np.any((v == 0) & (p == 0) & (m != 0))):
        raise ValueError("m: expected zero where p and v are both zero")

    def slope(p: Any, m: Any, v: Any) -> Any:
        c1, c2 = (1 - beta1) / (1 - beta1**step), (1 - beta2) / (1 - beta2**step)
        m_hat = (beta1 * m + (1 - beta1) * p) / (1 - beta1**step)
        s = root((beta2 * v + (1 - beta2) * p**2) / (1 - beta2**step))
        return c1 / (s + damping) - m_hat * c2 * _ratio(p, s) / (s + damping) ** 2

    return elementwise(slope, p, m, v)


def jacobian_sign(p: Any, m: Any, v: Any, beta1: Any = BETA1, beta2: Any = BETA2) -> Any:
    """A number with the sign of D when Adam's epsilon is 0: `(1-beta1) beta2 v - beta1 (1-beta2) m p`.

    It needs no square root, so fractions decide it. D < 0 says: a larger p makes a *smaller* u.

    Args:
        p: What Adam takes for the gradient, `[m, n]`.
        m: First moment before the step, `[m, n]`.
        v: Second moment before the step, `[m, n]`, at least zero.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    p, m, v, _, beta1, beta2, _ = _arguments(p, m, v, 1, beta1, beta2, 1)
    return elementwise(lambda p, m, v: (1 - beta1) * beta2 * v - beta1 * (1 - beta2) * m * p, p, m, v)


def adam_hypergradient(G: Any, H: Any, M: Any, D: Any, lr: Any) -> Any:
    """Hypergradient of FOP's factor under Adam: Eq. (4) with `D * G` for G.

    The same form serves any base optimizer whose map is entrywise; with `D = 1` it is Eq. (4).

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`.
        D: Slopes of the base optimizer's map at step t-1, `[m, n]` (`adam_jacobian`).
        lr: Learning rate, the paper's epsilon.

    Returns:
        `-lr ((D * G) H^T + H (D * G)^T) M`, `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    D = checks.matrix("D", D, shape=G.shape)
    return hypergradient(elementwise(lambda d, g: d * g, D, G), H, M, lr)


def moments(p: Any, m: Any, v: Any, beta1: Any = BETA1, beta2: Any = BETA2) -> tuple[Any, Any]:
    """Adam's two moments after it has seen p.

    Args:
        p: What Adam takes for the gradient, `[m, n]`.
        m: First moment before the step, `[m, n]`.
        v: Second moment before the step, `[m, n]`.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    p, m, v, _, beta1, beta2, _ = _arguments(p, m, v, 1, beta1, beta2, 1)
    return beta1 * m + (1 - beta1) * p, elementwise(lambda p, v: beta2 * v + (1 - beta2) * p**2, p, v)


def adam_directions(ps: Sequence[Any], beta1: Any = BETA1, beta2: Any = BETA2, damping: Any = 0) -> list[Any]:
    """Adam's directions for a whole sequence, from moments at zero.

    Args:
        ps: What Adam takes for the gradients of steps 1, 2, ..., each `[m, n]`.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        damping: Adam's epsilon, at least zero.

    Raises:
        ValueError: If there is none, a shape does not fit, a number is not finite, or the map is 0/0.
    """
    if not len(ps):
        raise ValueError("ps: expected at least one")
    shape = checks.matrix("ps", ps[0]).shape
    ps = [checks.matrix("ps", p, shape=shape) for p in ps]
    m = v = 0 * ps[0]
    directions = []
    for step, p in enumerate(ps, start=1):
        directions.append(adam_direction(p, m, v, step, beta1, beta2, damping))
        m, v = moments(p, m, v, beta1, beta2)
    return directions
