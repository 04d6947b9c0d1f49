"""Test functions with their gradients and with honest constants: smoothness L, PL constant, minimum.

Booth's and Himmelblau's functions are the paper's toy problems (Figure 1). The others feed the
convergence theorems: each `Objective` carries constants that are proved, not estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy as sp

from fop_theory import checks


def _pair(x: Any) -> tuple[Any, Any]:
    """The two coordinates of `x`, or a refusal."""
    if isinstance(x, sp.MatrixBase):
        if x.shape not in ((2, 1), (1, 2)):
            raise ValueError(f"x: expected two coordinates, got shape {x.shape}")
        return x[0], x[1]
    if not isinstance(x, (np.ndarray, np.generic, list, tuple, int, float, str)):
        return x[0], x[1]  # tensors of another library: theirs to check
    array = np.asarray(x)
    if array.ndim == 0 or array.shape[0] != 2:
        raise ValueError(f"x: expected two coordinates [2] or [2, ...], got shape {array.shape}")
    if array.dtype.kind in "iub":
        array = array.astype(float)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"x: expected numbers, got {array!r}")
    return array[0], array[1]


def _like(x: Any, parts: list) -> Any:
    """A gradient in the kind and shape of `x`."""
    return sp.Matrix(*x.shape, parts) if isinstance(x, sp.MatrixBase) else np.stack(parts)


def booth(x: Any) -> Any:
    """Booth's function `(a + 2b - 7)^2 + (2a + b - 5)^2`, minimum 0 at (1, 3).

    Args:
        x: `[2]` or `[2, ...]` of any dtype (it is kept), or two sympy expressions.

    Returns:
        The value, of shape `x.shape[1:]`.

    Raises:
        ValueError: If `x` has not two coordinates or holds a NaN.
    """
    a, b = _pair(x)
    return (a + 2 * b - 7) ** 2 + (2 * a + b - 5) ** 2


def booth_gradient(x: Any) -> Any:
    """Gradient of `booth`, in the kind, shape and dtype of `x`.

    Args:
        x: `[2]` or `[2, ...]`, or two sympy expressions.

    Raises:
        ValueError: If `x` has not two coordinates or holds a NaN.
    """
    a, b = _pair(x)
    return _like(x, [10 * a + 8 * b - 34, 8 * a + 10 * b - 38])


def booth_hessian() -> np.ndarray:
    """Hessian of `booth`, the same everywhere: eigenvalues 2 and 18."""
    return np.array([[10.0, 8.0], [8.0, 10.0]])


def himmelblau(x: Any) -> Any:
    """Himmelblau's function `(a^2 + b - 11)^2 + (a + b^2 - 7)^2`, minimum 0 at four points.

    Args:
        x: `[2]` or `[2, ...]` of any dtype (it is kept), or two sympy expressions.

    Returns:
        The value, of shape `x.shape[1:]`.

    Raises:
        ValueError: If `x` has not two coordinates or holds a NaN.
    """
    a, b = _pair(x)
    return (a**2 + b - 11) ** 2 + (a + b**2 - 7) ** 2


def himmelblau_gradient(x: Any) -> Any:
    """Gradient of `himmelblau`, in the kind, shape and dtype of `x`.

    Args:
        x: `[2]` or `[2, ...]`, or two sympy expressions.

    Raises:
        ValueError: If `x` has not two coordinates or holds a NaN.
    """
    a, b = _pair(x)
    u, v = a**2 + b - 11, a + b**2 - 7
    return _like(x, [4 * a * u + 2 * v, 2 * u + 4 * b * v])


def himmelblau_hessian(x: Any) -> Any:
    """Hessian of `himmelblau` at one point: `[2, 2]`, a sympy matrix for a sympy `x`.

    Args:
        x: `[2]`, or two sympy expressions.

    Raises:
        ValueError: If `x` has not two coordinates or holds a NaN.
    """
    a, b = _pair(x)
    rows = [[12 * a**2 + 4 * b - 42, 4 * (a + b)], [4 * (a + b), 4 * a + 12 * b**2 - 26]]
    return sp.Matrix(rows) if isinstance(x, sp.MatrixBase) else np.array(rows)


@dataclass(frozen=True)
class Objective:
    """A function of a parameter vector `theta: [n, 1]` and what is known about it.

    Attributes:
        name: For messages and tables.
        dim: n.
        value: `theta -> f(theta)`.
        gradient: `theta -> [n, 1]`.
        smoothness: L: the gradient is L-Lipschitz.
        pl: A constant mu > 0 with `|gradient|^2 / 2 >= mu (f - minimum)` everywhere; `None` when there is none.
        minimum: f*, the infimum.
        convex: Whether f is convex.
        slope: K: the gradient's norm never exceeds it; `None` when it has no bound.
    """

    name: str
    dim: int
    value: Callable[[Any], Any] = field(repr=False)
    gradient: Callable[[Any], Any] = field(repr=False)
    smoothness: Any
    pl: Any
    minimum: Any
    convex: bool = True
    slope: Any = None


def diagonal_quadratic(curvatures: Any) -> Objective:
    """`f = sum h_i theta_i^2 / 2`, exact on fractions and on symbols: L = max h, mu = min h, f* = 0.

    Args:
        curvatures: The n positive numbers h.

    Raises:
        ValueError: If a curvature is not positive.
    """
    h = [checks.scalar("curvatures", x, low=0, strict=True) for x in curvatures]
    column = np.array(h, dtype=object if any(not isinstance(x, float) for x in h) else float)[:, None]

    def value(theta: Any) -> Any:
        theta = checks.matrix("theta", theta, shape=(len(h), 1))
        return (column * theta * theta).sum() / 2

    def gradient(theta: Any) -> Any:
        return column * checks.matrix("theta", theta, shape=(len(h), 1))

    return Objective(f"quadratic with curvatures {h}", len(h), value, gradient, max(h), min(h), 0)


def quadratic(A: Any) -> Objective:
    """`f = theta^T A theta / 2` in floats; A may be singular: mu is then its smallest positive eigenvalue.

    Args:
        A: Symmetric positive semi-definite `[n, n]`, not zero.

    Raises:
        ValueError: If A is not such a matrix.
    """
    A = checks.matrix("A", A, symmetric=True, positive="semidefinite")
    eigenvalues = np.linalg.eigvalsh(A)
    if not eigenvalues[-1] > 0:
        raise ValueError("A: expected a matrix that is not zero")
    # Below this an eigenvalue is rounding: the direction is flat, and PL does not need it.
    positive = eigenvalues[eigenvalues > 1e-12 * eigenvalues[-1]]
    return Objective(
        "quadratic", len(A), lambda t: float((t.T @ A @ t).item()) / 2, lambda t: A @ t,
        float(positive[-1]), float(positive[0]), 0.0,
    )  # fmt: skip


def logistic(X: Any, y: Any, ridge: float) -> Objective:
    """Mean logistic loss with a ridge: `mean log(1 + exp(-y_i x_i theta)) + ridge |theta|^2 / 2`.

    L = lambda_max(X^T X) / (4 N) + ridge, because the loss has a second derivative of at most 1/4;
    mu = ridge. f* comes from Newton's method, lowered by `|gradient|^2 / (2 ridge)`: a certified lower bound.

    Args:
        X: Features `[N, n]`.
        y: N labels, +1 or -1.
        ridge: Its weight, positive.

    Raises:
        ValueError: If a shape does not fit, a label is not a sign or the ridge is not positive.
    """
    X = checks.matrix("X", X)
    labels = np.asarray(y).ravel().tolist()
    if len(labels) != len(X) or not all(label in (1, -1) for label in labels):
        raise ValueError(f"y: expected {len(X)} labels +1 or -1, got {labels!r}")
    ridge = checks.scalar("ridge", ridge, low=0, strict=True)
    N, n = X.shape
    Z = np.array(labels)[:, None] * X

    def value(theta: Any) -> float:
        return float(np.logaddexp(0, -Z @ theta).mean() + ridge * (theta * theta).sum() / 2)

    def gradient(theta: Any) -> np.ndarray:
        return -Z.T @ _sigmoid(-Z @ theta) / N + ridge * theta

    best = np.zeros((n, 1))
    for _ in range(50):
        slope = gradient(best)
        chance = _sigmoid(Z @ best)
        hessian = (Z * chance * (1 - chance)).T @ Z / N + ridge * np.eye(n)
        step, before = np.linalg.solve(hessian, slope), value(best)
        while value(best - step) > before and np.abs(step).max() > 1e-12:
            step = step / 2
        best = best - step
        if np.abs(step).max() <= 1e-10 * (1 + np.abs(best).max()):
            break
    minimum = value(best) - float((gradient(best) ** 2).sum()) / (2 * ridge)
    smoothness = float(np.linalg.norm(X, 2)) ** 2 / (4 * N) + ridge
    return Objective("logistic loss with a ridge", n, value, gradient, smoothness, ridge, minimum)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def wavy(weights: Any) -> Objective:
    """`f = sum w_i (x_i^2 + 3 sin^2 x_i)`: PL and not convex (Karimi, Nutini and Schmidt 2016).

    They give L = 8 and mu = 1/32 for one coordinate; mu = 1/6 holds too, and is nearly the best constant (0.1755).
    A sum over coordinates keeps `8 max w` and `min w / 6`.

    Args:
        weights: The n positive numbers w.

    Raises:
        ValueError: If a weight is not positive.
    """
    w = [float(checks.scalar("weights", x, low=0, strict=True)) for x in weights]
    column = np.array(w)[:, None]
    return Objective(
        "x^2 + 3 sin^2 x", len(w),
        lambda t: float((column * (t * t + 3 * np.sin(t) ** 2)).sum()),
        lambda t: column * (2 * t + 3 * np.sin(2 * t)),
        8 * max(w), min(w) / 6, 0.0, convex=False,
    )  # fmt: skip


def cosine(weights: Any) -> Objective:
    """`f = sum w_i (1 - cos x_i)`: bounded, nonconvex, with saddle points and maxima, hence without a PL constant.

    L = max w, since `f'' = w cos x`; the gradient is at most `|w|`.

    Args:
        weights: The n positive numbers w.

    Raises:
        ValueError: If a weight is not positive.
    """
    w = [float(checks.scalar("weights", x, low=0, strict=True)) for x in weights]
    column = np.array(w)[:, None]
    # 1 - cos x = 2 sin^2 (x/2) keeps its digits near a minimum.
    return Objective(
        "1 - cos x", len(w), lambda t: float((2 * column * np.sin(t / 2) ** 2).sum()), lambda t: column * np.sin(t),
        max(w), None, 0.0, convex=False, slope=float(np.linalg.norm(column)),
    )  # fmt: skip


def composed(outer: Objective, A: Any) -> Objective:
    """`f(theta) = outer(A theta)` for an A of full row rank; it has flat directions when A is wide.

    L is multiplied by the largest, mu by the smallest squared singular value: `|A^T v| >= sigma_min |v|`.

    Args:
        outer: A function of p coordinates.
        A: `[p, n]` of rank p.

    Raises:
        ValueError: If the shape does not fit or A has not full row rank.
    """
    A = checks.matrix("A", A, shape=(outer.dim, None))
    sigma = np.linalg.svd(A, compute_uv=False)
    if A.shape[1] < A.shape[0] or not sigma[-1] > 1e-12 * sigma[0]:
        raise ValueError(f"A: expected full row rank {A.shape[0]}, got singular values {sigma!r}")
    mu = None if outer.pl is None else outer.pl * float(sigma[-1]) ** 2
    slope = None if outer.slope is None else outer.slope * float(sigma[0])
    return Objective(
        f"{outer.name} of A theta", A.shape[1], lambda t: outer.value(A @ t), lambda t: A.T @ outer.gradient(A @ t),
        outer.smoothness * float(sigma[0]) ** 2, mu, outer.minimum, outer.convex, slope,
    )  # fmt: skip


def huber(n: int = 1) -> Objective:
    """`sum r(theta_i)` with `r = x^2/2` for `|x| <= 1`, else `|x| - 1/2`; exact on fractions.

    Convex and 1-smooth with a gradient of norm at most sqrt(n): no PL constant serves far out.

    Args:
        n: Number of coordinates.

    Raises:
        ValueError: If `n` is below one.
    """
    checks.sizes(n=n)

    def value(theta: Any) -> Any:
        theta = checks.matrix("theta", theta, shape=(n, 1))
        return sum(x * x / 2 if abs(x) <= 1 else (2 * abs(x) - 1) / 2 for x in theta.ravel())

    def gradient(theta: Any) -> Any:
        return np.clip(checks.matrix("theta", theta, shape=(n, 1)), -1, 1)

    return Objective("Huber", n, value, gradient, 1, None, 0, slope=1 if n == 1 else float(np.sqrt(n)))
