"""Theorem 1B carried on to momentum.

Notation as in `fop_theory.unmodified`. `momentum` is the paper's alpha, `share` is eta in
`lr L |P| <= eta (1 - alpha)^2`; M is updated first throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

from fop_theory import checks
from fop_theory.convergence import Step
from fop_theory.structure import multiplier

Through = Literal["plain", "velocity"]


# ---------------------------------------------------------------------------------------
# Momentum


def learn_with_momentum(
    gradient: Callable[[Any], Any],
    theta: Any,
    M: Any,
    lr: Any,
    hyper_lr: Any,
    momentum: Any,
    steps: int,
    through: Through,
    identity: int = 0,
) -> Iterator[Step]:
    """FOP with momentum, M first: `v = alpha v + P g`, `theta <- theta - lr v`, Eqs. (5) and (6) with lr.

    M moves by `S = g w^T + w g^T`. The paper takes the last gradient for w (`"plain"`); `"velocity"` takes the sum
    `q = alpha q + h` of all gradients so far, whose hypergradient is that of the whole velocity.

    Args:
        gradient: From parameters `[n, 1]` to the gradient `[n, 1]`.
        theta: First parameters `[n, 1]`.
        M: First factor `[n, k]`.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: The paper's rho.
        momentum: The paper's alpha.
        steps: Number of steps.
        through: `"plain"` or `"velocity"`.
        identity: 0 for `P = M M^T`, 1 for `P = I + M M^T`.

    Yields:
        Each step.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta, shape=(None, 1))
    M = checks.matrix("M", M, shape=(theta.shape[0], None))
    v, w = 0 * theta, 0 * theta
    for _ in range(steps):
        g = gradient(theta)
        M = multiplier(g, w, hyper_lr * lr) @ M
        yield Step(theta, g, M)
        v = momentum * v + identity * g + M @ (M.T @ g)
        theta = theta - lr * v
        w = g if through == "plain" else momentum * w + g


def momentum_margin(share: Any, momentum: Any) -> Any:
    """kappa, the part of the descent that is left: `1 - eta (1 + alpha) / 2`; at least 1/2 for eta = 1/2.

    Args:
        share: eta, in (0, 1).
        momentum: alpha, in [0, 1).

    Raises:
        ValueError: If a number is out of range.
    """
    share = checks.scalar("share", share, low=0, high=1, strict=True)
    momentum = checks.scalar("momentum", momentum, low=0, high=1)
    return 1 - share * (1 + momentum) / 2


def momentum_slope(share: Any, momentum: Any) -> Any:
    """Gamma in `|g_t|^2 <= Gamma L gap`: `(sqrt(2) + alpha sqrt(eta / (kappa (1 + alpha))))^2`.

    Args:
        share: eta.
        momentum: alpha.

    Raises:
        ValueError: If a number is out of range.
    """
    kappa = momentum_margin(share, momentum)
    return (math.sqrt(2) + momentum * math.sqrt(share / (kappa * (1 + momentum)))) ** 2


def momentum_constant(share: Any, momentum: Any) -> float:
    """K of the theorem with momentum: the positive root of `K = F + X eta (1 - alpha) / K`; 4 in the limit eta = 0.

    `F = 4 (1 + (1 - alpha) eta)(1 + alpha eta) / kappa` and `X = (2 + eta)^2 Gamma / kappa`.

    Args:
        share: eta.
        momentum: alpha.

    Raises:
        ValueError: If a number is out of range.
    """
    kappa = momentum_margin(share, momentum)
    first = 4 * (1 + (1 - momentum) * share) * (1 + momentum * share) / kappa
    second = (2 + share) ** 2 * momentum_slope(share, momentum) / kappa
    return first / 2 + math.sqrt(first**2 / 4 + second * share * (1 - momentum))


def momentum_growth(share: Any, momentum: Any, through: Through) -> float:
    """What `tr M M^T` grows by at most, in units of `rho gap`: K, and `(1 - alpha) K` with the paper's hypergradient.

    Args:
        share: eta.
        momentum: alpha.
        through: `"plain"` or `"velocity"`.

    Raises:
        ValueError: If a number is out of range or `through` is unknown.
    """
    if through not in ("plain", "velocity"):
        raise ValueError(f"through: expected plain or velocity, got {through!r}")
    return momentum_constant(share, momentum) * ((1 - momentum) if through == "plain" else 1)


def momentum_lr(trace: Any, gap: Any, smoothness: Any, hyper_lr: Any, share: Any, momentum: Any, growth: Any) -> Any:
    """Learning rate up to which the theorem speaks: `eta (1 - alpha)^2 / (L (trace + growth rho gap))`.

    Args:
        trace: `identity + |M_0|_F^2`.
        gap: J(theta_0) - inf J.
        smoothness: L.
        hyper_lr: The paper's rho.
        share: eta.
        momentum: alpha.
        growth: `momentum_growth`.

    Raises:
        ValueError: If a number is not finite or L is not positive.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    checks.finite(trace=trace, gap=gap, hyper_lr=hyper_lr, share=share, momentum=momentum, growth=growth)
    return share * (1 - momentum) ** 2 / (smoothness * (trace + growth * hyper_lr * gap))


def momentum_floor(share: Any, momentum: Any) -> Any:
    """Part of the smallest eigenvalue of `M_0 M_0^T` that stays: `(1 - eta^2 (1 + alpha) / (2 kappa K))^2`.

    Args:
        share: eta.
        momentum: alpha.

    Raises:
        ValueError: If a number is out of range.
    """
    constant, kappa = momentum_constant(share, momentum), momentum_margin(share, momentum)
    return (1 - share**2 * (1 + momentum) / (2 * kappa * constant)) ** 2
