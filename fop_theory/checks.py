"""Refuse bad arguments with one sentence that names the argument, its value and what was expected.

The formulas of this package are written once and evaluated on four kinds of numbers:
float arrays, object arrays of `fractions.Fraction` or `mpmath.mpf`, sympy matrices with
symbols in them, and sympy matrix expressions of symbolic size. The checks let all four
pass and judge only what can be judged.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import sympy as sp


def _shown(value: Any) -> str:
    text = np.array2string(value, threshold=8) if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _is_number(value: Any) -> bool:
    # The plain kinds first: to ask an abstract class costs more than most formulas.
    return type(value) in (float, int) or isinstance(value, (numbers.Number, sp.Expr)) or hasattr(value, "_mpf_")


def _is_finite(value: np.ndarray) -> bool:
    if value.dtype == object:
        # Fractions are always finite; mpf, float and sympy entries answer to `x - x == 0`.
        return all(bool(x - x == 0) for x in value.ravel())
    return bool(np.isfinite(value).all())


def matrix(
    name: str,
    value: Any,
    *,
    shape: tuple[int | None, int | None] = (None, None),
    symmetric: bool = False,
    positive: str | None = None,
) -> Any:
    """Return `value` as a matrix, or raise.

    Args:
        name: The argument's name, for the message.
        value: `[m, n]`; a sympy matrix or matrix expression, or anything numpy can read.
        shape: Expected `(m, n)`; `None` leaves a dimension free.
        symmetric: Expect `value` to equal its transpose (to 1e-10 relative for floats).
        positive: `"definite"` or `"semidefinite"`; only numeric matrices are tested.

    Returns:
        A sympy object unchanged, else a two-dimensional array; integers become floats.

    Raises:
        ValueError: Naming the argument, its value and what was expected.
    """
    if isinstance(value, (sp.MatrixBase, sp.MatrixExpr)):
        for have, want in zip(value.shape, shape, strict=True):
            if want is not None and have != want and sp.simplify(have - want) != 0:
                raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name}: expected a matrix [m, n], got rows of different lengths: {_shown(value)}") from None
    if array.dtype.kind in "iub":
        array = array.astype(float)
    if array.dtype.kind not in "fcO" or (array.dtype == object and not all(map(_is_number, array.ravel()))):
        raise ValueError(f"{name}: expected numbers, got {_shown(value)}")
    if array.ndim != 2:
        raise ValueError(f"{name}: expected a matrix [m, n], got shape {array.shape}: {_shown(value)}")
    if any(want is not None and have != want for have, want in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}: {_shown(array)}")
    if not _is_finite(array):
        raise ValueError(f"{name}: expected finite numbers, got {_shown(array)}")
    if symmetric or positive:
        if array.shape[0] != array.shape[1]:
            raise ValueError(f"{name}: expected a square matrix, got shape {array.shape}")
        scale = max((abs(x) for x in array.ravel()), default=0)
        if any(abs(x) > 1e-10 * scale for x in (array - array.T).ravel()):
            raise ValueError(f"{name}: expected a symmetric matrix, got {_shown(array)}")
    if positive:
        smallest = min(np.linalg.eigvalsh(array.astype(float)), default=np.inf)
        floor = 0.0 if positive == "definite" else -1e-10 * float(scale)
        if smallest < floor or (positive == "definite" and smallest == 0):
            raise ValueError(f"{name}: expected a positive {positive} matrix, got smallest eigenvalue {smallest:.3g}")
    return array


def scalar(name: str, value: Any, *, low: float | None = None, high: float | None = None, strict: bool = False) -> Any:
    """Return `value` as a real number within `[low, high]` (open interval when `strict`), or raise.

    Symbols and other sympy expressions without a numeric value pass unchanged.

    Args:
        name: The argument's name, for the message.
        value: A real number of any kind.
        low: Smallest value; `None` leaves this end open.
        high: Largest value.
        strict: Refuse the ends themselves.

    Raises:
        ValueError: Naming the argument, its value and what was expected.
    """
    if isinstance(value, sp.Expr) and not value.is_number:
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not _is_number(value):
        raise ValueError(f"{name}: expected a number, got {_shown(value)}")
    is_complex = not isinstance(value, float) and (
        isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    )
    if is_complex or (isinstance(value, sp.Expr) and value.is_extended_real is False):
        raise ValueError(f"{name}: expected a real number, got {value!r}")
    if not bool(value - value == 0):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    below = low is not None and (value <= low if strict else value < low)
    above = high is not None and (value >= high if strict else value > high)
    if below or above:
        left, right = ("(", ")") if strict else ("[", "]")
        span = f"{left}{'-inf' if low is None else low}, {'inf' if high is None else high}{right}"
        raise ValueError(f"{name}: expected a number in {span}, got {value!r}")
    return value


def sizes(**values: Any) -> None:
    """Refuse a size or a count below one; symbols pass.

    Raises:
        ValueError: Naming the argument, its value and what was expected.
    """
    for name, value in values.items():
        scalar(name, value, low=1)


def finite(**values: Any) -> None:
    """Refuse whatever is not a finite real number, or an array of such; for formulas that take either.

    Raises:
        ValueError: Naming the argument, its value and what was expected.
    """
    for name, value in values.items():
        if not (isinstance(value, np.ndarray) and value.ndim):
            scalar(name, value)
        elif value.dtype.kind not in "fiuO" or not _is_finite(value):
            raise ValueError(f"{name}: expected finite numbers, got {_shown(value)}")
