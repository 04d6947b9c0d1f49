"""Adam on M: it may move each entry of M by so much and no more, whatever the gradients are.

That is a curse and a blessing. No loss pays for the growth of M, so Theorem 1B has no counterpart; but the growth is
known in advance, noise or not. Adam (Kingma and Ba 2015) without weight decay, as torch defines it: `reach` bounds
|u| in `M <- M - eta u`, `hyper_lr` is eta. Otherwise as in `fop_theory.stochastic`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fop_theory import checks
from fop_theory.adam import BETA1, BETA2, adam_direction, moments
from fop_theory.algebra import root

# ---------------------------------------------------------------------------------------
# How far Adam can reach


def _betas(beta1: Any, beta2: Any) -> tuple[Any, Any]:
    beta1 = checks.scalar("beta1", beta1, low=0, high=1, strict=True)
    beta2 = checks.scalar("beta2", beta2, low=0, high=1, strict=True)
    if beta1**2 >= beta2:
        raise ValueError(f"beta1: expected a number whose square is below beta2, got {beta1!r}")
    return beta1, beta2


def squared_reach(step: int, beta1: Any = BETA1, beta2: Any = BETA2) -> Any:
    """The most that the square of an entry of Adam's direction can be at this step: attained, rising with the step.

    `A(beta2) A(beta1^2/beta2) / A(beta1)^2` with `A(x) = 1 + x + ... + x^(step-1)`: Cauchy and Schwarz between the
    weights of the first and of the second moment.

    Args:
        step: Number of the step, from 1.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment, above the square of the other.

    Raises:
        ValueError: If a number is out of range.
    """
    step = checks.scalar("step", step, low=1)
    beta1, beta2 = _betas(beta1, beta2)
    ratio = beta1**2 / beta2
    sums = [(1 - x**step) / (1 - x) for x in (beta2, ratio, beta1)]
    return sums[0] * sums[1] / sums[2] ** 2


def squared_reach_limit(beta1: Any = BETA1, beta2: Any = BETA2) -> Any:
    """C^2, its supremum: `(1 - beta1)^2 / ((1 - beta2)(1 - beta1^2/beta2))`; C < 7.28 at the usual betas.

    Args:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment, above the square of the other.

    Raises:
        ValueError: If a number is out of range.
    """
    beta1, beta2 = _betas(beta1, beta2)
    return (1 - beta1) ** 2 / ((1 - beta2) * (1 - beta1**2 / beta2))


def high_limit(norm: Any, entries: Any, reach: Any, total: Any, identity: int) -> Any:
    """Bound on |P| when no entry of M was moved by more than `reach` times `total`, the sum of all eta.

    `identity + (|M_0|_F + sqrt(entries) reach total)^2`.

    Args:
        norm: |M_0|_F.
        entries: Number of entries of M.
        reach: C.
        total: Sum of eta over the updates so far.
        identity: 0 for `P = M M^T`, 1 for `P = I + M M^T`.

    Raises:
        ValueError: If a number is not finite.
    """
    entries = checks.scalar("entries", entries, low=1)
    checks.finite(norm=norm, reach=reach, total=total, identity=identity)
    return identity + (norm + root(entries) * reach * total) ** 2


def adam_moves(hyper_lr: Callable[[int], float], damping: float = 0.0) -> Callable[[int, Any], Any]:
    """Adam's steps on M, for `stochastic.learn_in_noise`, at the usual betas.

    Args:
        hyper_lr: From the number of the update to eta.
        damping: Adam's epsilon.
    """
    memory: list[Any] = []

    def move(t: int, hypergradient: Any) -> Any:
        flat = hypergradient.reshape(-1, 1)
        m, v = memory or (0 * flat, 0 * flat)
        memory[:] = moments(flat, m, v)
        return -hyper_lr(t) * adam_direction(flat, m, v, t, damping=damping).reshape(hypergradient.shape)

    return move


# ---------------------------------------------------------------------------------------
# The loss pays for nothing


def run_up(M: float, hyper_lr: float, steps: int) -> np.ndarray:
    """M in one dimension along a line, however steep: every hypergradient is `-2 epsilon slope^2 M`.

    Adam, its epsilon zero, sees the ratios of these alone, so neither epsilon nor the slope matters.

    Args:
        M: M_0, positive.
        hyper_lr: eta.
        steps: Number of updates.

    Returns:
        `[steps + 1]`: M_0, M_1, ...
    """
    M = checks.scalar("M", M, low=0, strict=True)
    hyper_lr = checks.scalar("hyper_lr", hyper_lr, low=0)
    checks.sizes(steps=steps)
    factors, m, v = [M], np.zeros((1, 1)), np.zeros((1, 1))
    for t in range(1, steps + 1):
        hypergradient = np.array([[-factors[-1]]])
        factors.append(factors[-1] - hyper_lr * float(adam_direction(hypergradient, m, v, t).item()))
        m, v = moments(hypergradient, m, v)
    return np.array(factors)


def least_run_up(M: Any, hyper_lr: Any, steps: Any, beta1: Any = BETA1) -> Any:
    """Lower bound on the last of `run_up`: `M_0 + (1 - beta1) eta steps`.

    The hypergradients grow, so the newest is the largest: the second moment is at most its square, and the first has
    at least the part 1 - beta1 of it.

    Args:
        M: M_0, positive.
        hyper_lr: eta.
        steps: Number of updates.
        beta1: Decay of the first moment.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(M=M, hyper_lr=hyper_lr, steps=steps, beta1=beta1)
    return M + (1 - beta1) * hyper_lr * steps


def cliff_slope(x: Any, slope: Any, smoothness: Any) -> Any:
    """Gradient of a convex, L-smooth loss: `slope x` on the right, `slope x + L x^2 / 2` on the left.

    Args:
        x: Parameter, a number or an array.
        slope: Positive.
        smoothness: L.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(x=x, slope=slope, smoothness=smoothness)
    return slope + smoothness * np.minimum(x, 0)


def cliff_gap(x: Any, slope: Any, smoothness: Any) -> Any:
    """That loss above its minimum, which lies at `-slope / L`.

    Args:
        x: Parameter.
        slope: Positive.
        smoothness: L, positive.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(x=x, slope=slope)
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    left = np.minimum(x, 0)
    return slope * x + smoothness * left**2 / 2 + slope**2 / (2 * smoothness)


def cliff_start(lengths: Sequence[Any], slope: Any) -> Any:
    """Where to start on the line so that the last of these steps begins half a step before the kink, at 0.

    Args:
        lengths: `epsilon P` of each step.
        slope: Positive.

    Raises:
        ValueError: If a number is not finite.
    """
    lengths = [checks.scalar("lengths", length) for length in lengths]
    checks.finite(slope=slope)
    return slope * (sum(lengths[:-1]) + lengths[-1] / 2)


def overshoot(lengths: Sequence[Any], smoothness: Any) -> Any:
    """The loss after these steps from `cliff_start`, over that before: `(1 - L l/2)^2 / (1 + 2 L X)`.

    l is the last length, X the sum of the lengths with half of the last. The slope drops out. With `P = M^2` and M as
    in `run_up`, l grows as the square of their number and X as its cube, so this grows without bound.

    Args:
        lengths: `epsilon P` of each step.
        smoothness: L.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(smoothness=smoothness)
    path = cliff_start(lengths, 1)
    return (1 - smoothness * lengths[-1] / 2) ** 2 / (1 + 2 * smoothness * path)


# ---------------------------------------------------------------------------------------
# What moves of known size allow


def weighted_slopes(gap: Any, smoothness: Any, share: Any) -> Any:
    """Bound on `sum |grad J|^2 / b_t` without noise, for `P = I + M M^T`, |P_t| <= b_t and `epsilon = c / (L b_t)`.

    `L gap / (c (1 - c/2))`.

    Args:
        gap: J(theta_0) - inf J.
        smoothness: L.
        share: c, in (0, 1].

    Raises:
        ValueError: If a number is not finite or the share is out of range.
    """
    checks.finite(gap=gap, smoothness=smoothness)
    share = checks.scalar("share", share, high=1)
    share = checks.scalar("share", share, low=0, strict=True)
    return smoothness * gap / (share * (1 - share / 2))


def weighted_slopes_in_noise(gap: Any, smoothness: Any, variance: Any, squares: Any) -> Any:
    """Bound on `sum epsilon_t E |grad J|^2` in noise that P_t has not seen: `2 gap + L sigma^2 sum epsilon_t^2 b_t^2`.

    For `P = I + M M^T`, |P_t| <= b_t and `epsilon_t L b_t <= 1`.

    Args:
        gap: J(theta_0) - inf J.
        smoothness: L.
        variance: sigma^2, which bounds E[|xi_t|^2 | past].
        squares: Sum of all `epsilon_t^2 b_t^2`.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(gap=gap, smoothness=smoothness, variance=variance, squares=squares)
    return 2 * gap + smoothness * variance * squares
