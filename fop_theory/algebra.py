"""What the formulas share: inner products, roots, identities and entrywise functions, for every kind of number.

Numpy and sympy spell these differently, and a root of a fraction must stay exact. Everything else
in a formula (`@`, `.T`, `*`, `+`) reads the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from fop_theory import checks


def inner(A: Any, B: Any) -> Any:
    """`<A, B> = tr A^T B`, the Frobenius inner product; for vectors the dot product.

    Args:
        A: `[m, n]`.
        B: `[m, n]`.

    Returns:
        One number; for matrices of symbolic size, its trace unevaluated.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    A = checks.matrix("A", A)
    B = checks.matrix("B", B, shape=A.shape)
    if isinstance(A, sp.MatrixExpr) or isinstance(B, sp.MatrixExpr):
        return sp.Trace(A.T * B)
    if isinstance(A, sp.MatrixBase):
        return (A.T * B).trace()
    return (A * B).sum()


def root(x: Any) -> Any:
    """Square root that stays in the argument's kind; of a fraction, an exact algebraic number.

    Args:
        x: A number, an expression or an array of floats, at least zero.
    """
    if isinstance(x, Fraction):
        exact = sp.sqrt(sp.Rational(x.numerator, x.denominator))
        return Fraction(int(exact.p), int(exact.q)) if exact.is_Rational else exact
    return sp.sqrt(x) if isinstance(x, sp.Basic) else x**0.5


def identity_beside(A: Any) -> Any:
    """The identity that can be added to a square matrix, of its size and kind; whole numbers for arrays.

    Args:
        A: `[m, m]`.

    Raises:
        ValueError: If `A` is not a finite square matrix.
    """
    m = checks.matrix("A", A).shape[0]
    A = checks.matrix("A", A, shape=(m, m))
    if isinstance(A, sp.MatrixExpr):
        return sp.Identity(m)
    return sp.eye(m) if isinstance(A, sp.MatrixBase) else np.eye(m, dtype=int)


def elementwise(function: Callable[..., Any], *matrices: Any) -> Any:
    """Apply a function of numbers entry by entry to matrices of one shape.

    Arrays of floats go through whole, since numpy's arithmetic is entrywise already; sympy's `*` is not,
    and a root of exact numbers is taken one by one.

    Args:
        function: From as many numbers as there are matrices to a number.
        *matrices: Each `[m, n]`.

    Returns:
        `[m, n]`.
    """
    first = matrices[0]
    if isinstance(first, sp.MatrixBase):
        return sp.Matrix(*first.shape, lambda i, j: function(*(matrix[i, j] for matrix in matrices)))
    if any(matrix.dtype == object for matrix in matrices):
        return np.frompyfunc(function, len(matrices), 1)(*matrices)
    return function(*matrices)
