"""Convergence while the preconditioner learns: Theorem 1 of Section 6, and the theorems that hold.

FOP moves M by `M <- (I + a S) M` with `S = g h^T + h g^T`, g and h the gradients of two steps in a row, and
steps by `theta <- theta - lr P g` with `P = identity I + M M^T`. Here a is the paper's rho epsilon (`rate`),
`lr` its epsilon, `hyper_lr` its rho; `identity` is 0 for Eq. (2) and 1 for Eq. (23). The loss J has an
L-Lipschitz gradient (`smoothness` = L); `gap` is `J(theta_0) - inf J` and `trace` is `identity + |M_0|_F^2`,
which bounds the norm of the first P. The order `"m-first"` updates M, then steps; `"paper"`, the order of
Algorithm 1, steps, then updates M.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from fop_theory import checks
from fop_theory.algebra import identity_beside, inner
from fop_theory.structure import eigenvalues, multiplier

Order = Literal["m-first", "paper"]
ORDERS: tuple[Order, ...] = ("m-first", "paper")


def check_order(order: Any) -> Any:
    """Return the order if it is one of the two.

    Args:
        order: `"m-first"` or `"paper"`.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(order, str) or order not in ORDERS:
        raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
    return order


class Step(NamedTuple):
    """One step: where it started, the gradient there, the M that it used."""

    theta: Any
    gradient: Any
    M: Any


def learn(
    gradient: Callable[[Any], Any],
    theta: Any,
    M: Any,
    rate: Any,
    length: Callable[[int, Any], Any],
    steps: int,
    order: Order,
    identity: int = 0,
) -> Iterator[Step]:
    """FOP's steps, one after another; exact on fractions.

    The length of step t is `length(t, P)`: the learning rate, or Section 6's `gamma(t) / |P|`.

    Args:
        gradient: From parameters `[n, 1]` to the gradient `[n, 1]`.
        theta: First parameters `[n, 1]`.
        M: First factor `[n, k]`; it makes the first step in both orders.
        rate: a, the paper's rho epsilon.
        length: From the number of the step, counted from 0, and its P to what multiplies `P g`.
        steps: Number of steps.
        order: `"m-first"` or `"paper"`.
        identity: 0 for `P = M M^T`, 1 for `P = I + M M^T`.

    Yields:
        Each step.

    Raises:
        ValueError: If a shape does not fit, a number is not finite or the order is unknown.
    """
    theta = checks.matrix("theta", theta, shape=(None, 1))
    M = checks.matrix("M", M, shape=(theta.shape[0], None))
    check_order(order)
    last = None
    for t in range(steps):
        g = gradient(theta)
        turned = M if last is None else multiplier(g, last, rate) @ M
        used = turned if order == "m-first" else M
        yield Step(theta, g, used)
        P = used @ used.T
        P = P + identity * identity_beside(P)
        theta = theta - length(t, P) * (P @ g)
        M, last = turned, g


def spectral_norm(P: Any) -> Any:
    """Largest eigenvalue of a positive semidefinite matrix; exact where P is diagonal.

    Args:
        P: Symmetric positive semidefinite `[n, n]`.

    Raises:
        ValueError: If P isn't symmetric or has a number that is not finite.
    """
    P = checks.matrix("P", P, symmetric=True)
    if not (P - np.diag(np.diagonal(P))).any():
        return max(np.diagonal(P))
    return float(np.linalg.eigvalsh(P.astype(float))[-1])


# ---------------------------------------------------------------------------------------
# Theorem 1 as the paper prints it


def effective_norm(norm: Any, decay: Any, limit: Any) -> Any:
    """Norm to which Section 6 rescales P: `gamma(t) = delta(t) |P(t)| + (1 - delta(t)) p_inf`.

    Args:
        norm: `|P(t)|`.
        decay: delta(t).
        limit: p_inf, the constant that gamma shall tend to.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(norm=norm, decay=decay, limit=limit)
    return decay * norm + (1 - decay) * limit


def claimed_norm(norm: Any, gradients: Any, hyper_lr: Any) -> Any:
    """First line of the paper's bound: `|P(0)| + rho sum_i g_(i+1) . g_i`.

    That is how the *scalar* of hypergradient descent grows, which is moved by addition.

    Args:
        norm: `|P(0)|`.
        gradients: The gradients `[n, 1]` in the order in which they came.
        hyper_lr: The paper's rho.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    checks.finite(norm=norm, hyper_lr=hyper_lr)
    gradients = [checks.matrix("gradients", g, shape=(None, 1)) for g in gradients]
    return norm + hyper_lr * sum(inner(g, h) for h, g in itertools.pairwise(gradients))


def claimed_norm_bound(norm: Any, slope_bound: Any, hyper_lr: Any, steps: int) -> Any:
    """Last line of the paper's bound on `|P(t)|`: `|P(0)| + t rho K^2`.

    Args:
        norm: `|P(0)|`.
        slope_bound: K, which no gradient exceeds.
        hyper_lr: The paper's rho.
        steps: t, the number of updates of M.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(norm=norm, slope_bound=slope_bound, hyper_lr=hyper_lr, steps=steps)
    return norm + steps * hyper_lr * slope_bound**2


# ---------------------------------------------------------------------------------------
# What holds for the rescaled algorithm


def growth_factor(g: Any, h: Any, rate: Any) -> Any:
    """The most by which one update multiplies `|P|`, for `a s <= 2`: `(1 + a (g.h + |g||h|))^2`.

    It is the square of `|I + a S|` unless the negative eigenvalue -s of S is so large that `a s - 1` exceeds it;
    then it's the square of that. Attained by every P whose top eigenvector is the one of S.

    Args:
        g: Gradient at step t, `[n, 1]`.
        h: Gradient at step t-1, `[n, 1]`.
        rate: a, the paper's rho epsilon, not negative.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    low, high = eigenvalues(g, h)
    rate = checks.scalar("rate", rate, low=0)
    return max(1 + rate * high, -1 - rate * low) ** 2


def norm_bound(norm: Any, slope_bound: Any, rate: Any, steps: int) -> Any:
    """The true bound on `|P(t)|` for gradients of at most K: `|P(0)| (1 + 2 a K^2)^(2 t)`, which is attained.

    Args:
        norm: `|P(0)|`.
        slope_bound: K, which no gradient exceeds.
        rate: a, the paper's rho epsilon, not negative.
        steps: t, the number of updates of M.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(norm=norm, slope_bound=slope_bound, steps=steps)
    rate = checks.scalar("rate", rate, low=0)
    return norm * (1 + 2 * rate * slope_bound**2) ** (2 * steps)


def mixed(P: Any, norm: Any, share: Any) -> Any:
    """A rescaled preconditioner that can't get stuck: `norm ((1 - share) P / |P| + share I)`.

    Args:
        P: Symmetric positive semidefinite `[n, n]`, not zero.
        norm: Largest eigenvalue of the result, gamma(t).
        share: Part of the identity, from 0 to 1.

    Returns:
        `[n, n]` with eigenvalues between `share * norm` and `norm`.

    Raises:
        ValueError: If P is not symmetric or zero, or the share is out of range.
    """
    size = spectral_norm(P)
    if not size > 0:
        raise ValueError(f"P: expected a matrix that is not zero, got norm {size!r}")
    checks.finite(norm=norm)
    share = checks.scalar("share", share, low=0, high=1)
    return norm * ((1 - share) / size * P + share * identity_beside(P))


def inverse_gap_gain(low: Any, high: Any, smoothness: Any, radius: Any) -> Any:
    """What one step adds to `1 / (J - J*)` for convex J: `low (1 - L high / 2) / D^2` (Theorem 1A).

    Args:
        low: Smallest eigenvalue of the matrix that multiplies the gradient.
        high: Largest eigenvalue of it.
        smoothness: L.
        radius: D, which bounds the distance of the parameters to the set of minimizers.

    Returns:
        The gain; positive for `0 < low` and `L high < 2`.

    Raises:
        ValueError: If a number is not finite or the radius is not positive.
    """
    checks.finite(low=low, high=high, smoothness=smoothness)
    radius = checks.scalar("radius", radius, low=0, strict=True)
    return low * (1 - smoothness * high / 2) / radius**2


def safe_decay(slope_bound: Any, rate: Any, steps: int) -> Any:
    """A delta(t) that outruns every P(t): `(1 + 2 a K^2)^(-2 t) / (t + 1)`; then `delta |P| <= |P(0)| / (t + 1)`.

    Args:
        slope_bound: K, which no gradient exceeds.
        rate: a, the paper's rho epsilon, not negative.
        steps: t, the number of updates of M.

    Raises:
        ValueError: If a number is not finite.
    """
    return 1 / (norm_bound(1, slope_bound, rate, steps) * (steps + 1))


def step_along(g: Any, d: Any, smoothness: Any) -> tuple[Any, Any]:
    """The step that suits a turned gradient d: `eta = <g, d> / (L |d|^2)`, and what `theta - eta d` is sure to gain.

    The gain is `cos^2 |g|^2 / (2 L)` with the angle between g and d: no angle below 90 degrees impedes this.

    Args:
        g: Gradient `[n, 1]`.
        d: Direction `[n, 1]`, not zero.
        smoothness: L.

    Returns:
        eta, and the least decrease of the loss.

    Raises:
        ValueError: If a shape does not fit, a number is not finite or d is zero.
    """
    g = checks.matrix("g", g, shape=(None, 1))
    d = checks.matrix("d", d, shape=g.shape)
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    work, squared = inner(g, d), inner(d, d)
    if squared == 0:
        raise ValueError(f"d: expected a direction that is not zero, got {d!r}")
    return work / (smoothness * squared), work**2 / (2 * smoothness * squared)
