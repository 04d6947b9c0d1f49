"""How far a preconditioner turns the gradient: the angle of Figure A.1 and what bounds it.

A matrix gradient `G: [m, n]` is one long vector here: lengths are Frobenius norms and
`<A, B> = tr A^T B`, so that `P G` and `vec(G)` under `I_n (x) P` have the same angle.
`kappa` is the condition number of P, its largest eigenvalue over its smallest.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import sympy as sp

from fop_theory import checks
from fop_theory.algebra import inner, root


def squared_cosine(A: Any, B: Any) -> Any:
    """`cos^2` of the angle between two matrices, exact in fractions.

    Args:
        A: `[m, n]`, not zero.
        B: `[m, n]`, not zero.

    Returns:
        `<A, B>^2 / (|A|^2 |B|^2)`.

    Raises:
        ValueError: If a shape does not fit, a number is not finite, or a matrix is zero.
    """
    A = checks.matrix("A", A)
    B = checks.matrix("B", B, shape=A.shape)
    sizes = inner(A, A), inner(B, B)
    for name, size in zip("AB", sizes, strict=True):
        if size == 0:
            raise ValueError(f"{name}: expected a matrix that is not zero; zero has no direction")
    return inner(A, B) ** 2 / (sizes[0] * sizes[1])


def angle(A: Any, B: Any) -> float:
    """The angle between two matrices in degrees, as in Figure A.1.

    It's twice the arc tangent of `|a - b| / |a + b|` for the unit vectors a, b (Kahan): the arc
    cosine would lose half the digits of a small angle.

    Args:
        A: `[m, n]`, not zero.
        B: `[m, n]`, not zero.

    Returns:
        Degrees in [0, 180].

    Raises:
        ValueError: If a shape does not fit, a number is not finite, or a matrix is zero.
    """
    A = np.asarray(checks.matrix("A", A), dtype=float)
    B = np.asarray(checks.matrix("B", B, shape=A.shape), dtype=float)
    sizes = np.linalg.norm(A), np.linalg.norm(B)
    for name, size in zip("AB", sizes, strict=True):
        if size == 0:
            raise ValueError(f"{name}: expected a matrix that is not zero; zero has no direction")
    a, b = A / sizes[0], B / sizes[1]
    return math.degrees(2 * math.atan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))


def least_cosine(kappa: Any) -> Any:
    """Wielandt's bound: `cos angle(G, P G) >= 2 sqrt(kappa) / (1 + kappa)` for every G, and some G attains it.

    Args:
        kappa: Condition number of P, at least one.

    Returns:
        The smallest cosine over all gradients.

    Raises:
        ValueError: If `kappa` is below one or not finite.
    """
    kappa = checks.scalar("kappa", kappa, low=1)
    return 2 * root(kappa) / (1 + kappa)


def widest_angle(kappa: float) -> float:
    """The largest angle between G and P G in degrees: `arcsin (kappa - 1) / (kappa + 1)`.

    Args:
        kappa: Condition number of P, at least one.

    Returns:
        Degrees in [0, 90).

    Raises:
        ValueError: If `kappa` is below one or not finite.
    """
    kappa = checks.scalar("kappa", kappa, low=1)
    return math.degrees(math.asin((kappa - 1) / (kappa + 1)))


def least_condition(degrees: Any) -> Any:
    """The condition number that an observed angle forces: `(1 + sin) / (1 - sin) = tan^2(45 + angle/2)`.

    The inverse of `widest_angle`: no P of smaller condition number turns any gradient that far.

    Args:
        degrees: Angle between G and P G, in [0, 90); a float, an mpmath number or a sympy number.

    Returns:
        The smallest condition number, of the argument's kind.

    Raises:
        ValueError: If the angle is not in [0, 90).
    """
    degrees = checks.scalar("degrees", degrees, low=0, high=90)
    if degrees == 90:
        raise ValueError("degrees: expected an angle below 90; no positive definite P turns a gradient that far")
    if isinstance(degrees, sp.Expr):
        sine = sp.sin(degrees * sp.pi / 180)
    else:
        sine = (mpmath if hasattr(degrees, "_mpf_") else math).sin(degrees * _radian(degrees))
    return (1 + sine) / (1 - sine)


def _radian(kind: Any) -> Any:
    """One degree, at the precision of `kind`."""
    return mpmath.pi / 180 if hasattr(kind, "_mpf_") else math.pi / 180


def most_turned(low: Any, high: Any, low_vector: Any, high_vector: Any) -> Any:
    """A gradient that attains the bound: `sqrt(high) v_low + sqrt(low) v_high`.

    Args:
        low: Smallest eigenvalue of P, positive.
        high: Largest eigenvalue of P.
        low_vector: Unit eigenvector of `low`, `[m, 1]`.
        high_vector: Unit eigenvector of `high`, orthogonal to `low_vector`, `[m, 1]`.

    Returns:
        `[m, 1]`.

    Raises:
        ValueError: If an eigenvalue is not positive or a shape does not fit.
    """
    low = checks.scalar("low", low, low=0, strict=True)
    high = checks.scalar("high", high, low=0, strict=True)
    low_vector = checks.matrix("low_vector", low_vector, shape=(None, 1))
    high_vector = checks.matrix("high_vector", high_vector, shape=low_vector.shape)
    return root(high) * low_vector + root(low) * high_vector
