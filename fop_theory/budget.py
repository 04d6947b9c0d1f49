"""A budget in place of a rate: how much longer may steps become, and who pays for it.

The trace law (`fop_theory.conservation`) pays tr P out of the loss that was removed, so that a rate follows from
a budget and the loss. Here is how far that carries: over schedules and, in expectation, over mini-batches up to a term
of second order; not over noise, not over Adam on M. What holds everywhere is a bound on the eigenvalues of P.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fop_theory import checks
from fop_theory.algebra import inner
from fop_theory.conservation import trace_gain
from fop_theory.hypergradient import m_first_step


def rate_for_budget(budget: Any, trace: Any, gain: Any) -> Any:
    """The rho for which tr P becomes at most `budget` times what it is when the loss has fallen by `gain`.

    `(budget - 1) tr P_0 / (4 gain)`: the flow's law, solved for rho.

    Args:
        budget: How many times longer steps may become in the mean over directions, at least 1.
        trace: tr P_0.
        gain: The loss that there is to remove, `J(theta_0) - inf J`, positive.

    Returns:
        rho.

    Raises:
        ValueError: If a number is not finite or out of range.
    """
    budget = checks.scalar("budget", budget, low=1)
    trace = checks.scalar("trace", trace, low=0)
    gain = checks.scalar("gain", gain, low=0, strict=True)
    return (budget - 1) * trace / (4 * gain)


class Account(NamedTuple):
    """Means over all sequences of batches: the trace's growth, and by what it was paid.

    Attributes:
        growth: `E tr P_T - tr P_0`.
        work: `4 rho E sum <g_t, theta_(t-1) - theta_t>`.
        bonus: `E sum |change of M|^2`, the second-order term.
        removed: `J(theta_0) - E J` at the last point at which a gradient was taken.
    """

    growth: Any
    work: Any
    bonus: Any
    removed: Any


def batch_account(
    batches: Sequence[tuple[Callable[[Any], Any], Callable[[Any], Any]]],
    theta: Any,
    M: Any,
    rates: Sequence[Any],
    hyper_lr: Any,
) -> Account:
    """Run FOP (plain steps, M first) over every sequence of batches, and settle the account exactly.

    Args:
        batches: Loss and gradient of each; J is the losses' mean.
        theta: First parameters `[m, n]`.
        M: First factor `[m, k]`.
        rates: The learning rate of each step, in order: a schedule.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        The account; on fractions it is exact.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta, M = checks.matrix("theta", theta), checks.matrix("M", M)
    hyper_lr = checks.scalar("hyper_lr", hyper_lr)
    rates = [checks.scalar("rates", lr) for lr in rates]
    count, sums = len(batches) ** len(rates), [0, 0, 0, 0]
    for drawn in itertools.product(batches, repeat=len(rates)):
        at, factor, H, last = theta, M, 0 * theta, 0
        for (_, gradient), lr in zip(drawn, rates, strict=True):
            G, before = gradient(at), at
            work, bonus = trace_gain(G, H, factor, last, hyper_lr)
            # The update of M takes the learning rate of the step that it looks back on.
            _, factor = m_first_step(at, factor, G, H, last, hyper_lr)
            at = at - lr * (factor @ (factor.T @ G))
            H, last = G, lr
            sums[1] += work
            sums[2] += bonus
        sums[0] += inner(factor, factor) - inner(M, M)
        sums[3] += sum(loss(theta) - loss(before) for loss, _ in batches)
    growth, work, bonus, removed = sums
    return Account(growth / count, work / count, bonus / count, removed / (count * len(batches)))


def coin_growth(rate: Any) -> tuple[Any, Any]:
    """Factors by which one step on pure noise multiplies the mean of P: the plain update's, the exponential one's.

    One parameter, no loss at all, gradients +1 or -1 by a coin: P is multiplied by `(1 +- 2a)^2` or by `e^(+-4a)`.

    Args:
        rate: a, the paper's rho epsilon.

    Returns:
        `1 + 4 a^2` and `cosh 4a`.

    Raises:
        ValueError: If the rate is not a finite number.
    """
    rate = checks.scalar("rate", rate)
    return 1 + 4 * rate**2, np.cosh(4 * float(rate))


def mean_move(values: Sequence[Any], chances: Sequence[Any], scale: Callable[[Any, Any], Any]) -> Any:
    """`E P(g, h) g` for independent g, h of one distribution: which way the mean step goes if P has seen g.

    Args:
        values: What a gradient may be.
        chances: How likely each is; they add up to 1.
        scale: P, from the present gradient and the one before.

    Returns:
        The mean of `P g`; its product with `E g` is negative where the mean step climbs.

    Raises:
        ValueError: If a number is not finite or the chances don't add up to one.
    """
    for x, chance in zip(values, chances, strict=True):
        checks.finite(values=x, chances=chance)
    if abs(sum(chances) - 1) > 1e-12:
        raise ValueError(f"chances: expected numbers that add up to 1, got {chances!r}")
    pairs = itertools.product(zip(values, chances, strict=True), repeat=2)
    return sum(p * q * scale(g, h) * g for (g, p), (h, q) in pairs)


def bounded_change(squared_norm: Any, variance: Any, lr: Any, smoothness: Any, budget: Any) -> Any:
    """Bound on `E J_(t+1) - J_t` if `I/b <= P_t <= b I`: `-lr |grad J|^2 / (2b) + L lr^2 b^2 variance / 2`.

    It needs `lr <= 1 / (b L)` and a P_t that has not seen the present batch, as in Algorithm 1's order. How P_t was
    learned doesn't enter.

    Args:
        squared_norm: `|grad J(theta_t)|^2`.
        variance: `E |g - grad J|^2`; 0 for full batches.
        lr: Learning rate, the paper's epsilon.
        smoothness: L.
        budget: b.

    Returns:
        The bound.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(squared_norm=squared_norm, variance=variance, lr=lr, smoothness=smoothness, budget=budget)
    return -lr * squared_norm / (2 * budget) + smoothness * lr**2 * budget**2 * variance / 2
