"""Theorem 1B under noise: what fails at constant rates, and what holds when rates fall or steps are shortened.

A gradient is `g_t = grad J(theta_t) + xi_t` with E[xi_t | past] = 0, and `second_moment` is G^2, which bounds
E[|g_t|^2 | past]. Otherwise as in `fop_theory.unmodified`: P = identity I + M M^T, a = rho epsilon,
T = `trace` = identity + |M|_F^2, `gap` = J(theta_0) - inf J. In a batch of runs every array has one more axis in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fop_theory import checks
from fop_theory.algebra import root
from fop_theory.convergence import Order, check_order

# ---------------------------------------------------------------------------------------
# Many runs at once


class NoisyStep(NamedTuple):
    """One step of all runs: theta, the slope `grad J` there, the noisy gradient, the M that was used, the length."""

    theta: Any
    slope: Any
    gradient: Any
    M: Any
    lr: Any


def squared(X: Any) -> Any:
    """`|X|_F^2` of each run: `[runs, m, n]` to `[runs, 1, 1]`."""
    return (X * X).sum((1, 2), keepdims=True)


def learn_in_noise(
    slope: Callable[[Any], Any],
    noise: Any,
    theta: Any,
    M: Any,
    length: Callable[[int, Any], Any],
    move: Callable[[int, Any], Any],
    order: Order,
    identity: int = 0,
) -> Iterator[NoisyStep]:
    """FOP along many sequences of noise; exact on fractions.

    The hypergradient is `-epsilon S M`, epsilon the length of the last step (M first), or of this one (Algorithm 1's
    order). What `move` makes of it is added to M, from the second gradient on.

    Args:
        slope: The gradient of J, from `[runs, n, 1]` to the same.
        noise: `[steps, runs, n, 1]`, added to it.
        theta: First parameters `[n, 1]`.
        M: First factor `[n, k]`.
        length: From the number of the step and the traces T `[runs, 1, 1]` of its P to its epsilon.
        move: From the number of the update, from 1, and the hypergradients `[runs, n, k]` to what is added to M.
        order: `"m-first"` or `"paper"`.
        identity: 0 for `P = M M^T`, 1 for `P = I + M M^T`.

    Yields:
        Each step.

    Raises:
        ValueError: If a shape does not fit, a number is not finite or the order is unknown.
    """
    first = check_order(order) == "m-first"
    theta = checks.matrix("theta", theta, shape=(None, 1))
    M = checks.matrix("M", M, shape=(theta.shape[0], None))
    runs = noise.shape[1]
    theta, M = (np.broadcast_to(x, (runs, *x.shape)) for x in (theta, M))
    h, lr = 0 * theta, 0
    for t, xi in enumerate(noise):
        true = slope(theta)
        g = true + xi
        now = lr if first else length(t, identity + squared(M))
        turned = M + move(t, -now * (g @ (h.mT @ M) + h @ (g.mT @ M))) if t else M
        used = turned if first else M
        lr = length(t, identity + squared(used))
        yield NoisyStep(theta, true, g, used, lr)
        theta = theta - lr * (identity * g + used @ (used.mT @ g))
        M, h = turned, g


def plain(hyper_lr: Callable[[int], Any]) -> Callable[[int, Any], Any]:
    """Plain steps on M, for `learn_in_noise`: from the number of the update to rho."""
    return lambda t, hypergradient: -hyper_lr(t) * hypergradient


def shortened(lr: Any, trace_now: Any, trace: Any) -> Any:
    """A learning rate that makes up for the growth of P: `e min(1, T_0 / T)`, so that `epsilon |P| <= e T_0`.

    Args:
        lr: e, the learning rate for the first P.
        trace_now: T of this step's P, positive; a number or an array.
        trace: T_0.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(lr=lr, trace_now=trace_now, trace=trace)
    return lr * np.minimum(1, trace / trace_now)


# ---------------------------------------------------------------------------------------
# Constant rates fail


def growth_exponent(values: Sequence[Any], chances: Sequence[Any], rate: Any) -> float:
    """`E log |1 + 2 a g h|` for independent g, h: what one update adds to `log |M|` in one dimension, in the mean.

    Args:
        values: What a gradient may be.
        chances: How likely each is.
        rate: a, the paper's rho epsilon.

    Returns:
        The mean; minus infinity if an update can make M zero.

    Raises:
        ValueError: If a number is not finite.
    """
    v, p = (np.array([float(checks.scalar(name, x)) for x in numbers]) for name, numbers in (
        ("values", values), ("chances", chances)))  # fmt: skip
    factors = np.abs(1 + 2 * float(checks.scalar("rate", rate)) * np.outer(v, v))
    with np.errstate(divide="ignore"):
        return float(p @ np.log(factors) @ p)


def moment_matrix(slope: Any, noise: Any, rate: Any, power: Any) -> np.ndarray:
    """`E |M_t / M_0|^power` for gradients `slope +- noise` by a coin is `(1/2, 1/2) Q^t (1, 1)^T` with this Q `[2, 2]`.

    `Q_ij = |1 + 2 a v_i v_j|^power / 2`.

    Args:
        slope: The mean gradient.
        noise: Half the difference of the two gradients.
        rate: a, the paper's rho epsilon.
        power: Which moment.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(slope=slope, noise=noise, rate=rate, power=power)
    v = np.array([slope + noise, slope - noise])
    return np.abs(1 + 2 * rate * np.outer(v, v)) ** power / 2


def moment_sum(slope: Any, noise: Any, rate: Any, power: Any) -> float:
    """`E sum |M_t / M_0|^power` over all t from 0 on: `(1/2, 1/2) (I - Q)^-1 (1, 1)^T` with Q = `moment_matrix`.

    Args:
        slope: The mean gradient.
        noise: Half the difference of the two gradients.
        rate: a, the paper's rho epsilon.
        power: Which moment, one that falls.

    Raises:
        ValueError: If a number is not finite, or the moments of that order don't fall.
    """
    Q = moment_matrix(slope, noise, rate, power)
    if not np.abs(np.linalg.eigvals(Q)).max() < 1:
        raise ValueError(f"power: expected one whose moments fall, got {power!r}")
    return float(np.linalg.solve(np.eye(2) - Q, np.ones(2)).mean())


def stuck_chance(slope: Any, noise: Any, rate: Any, lr: Any, trace: Any, drop: Any) -> float:
    """A chance, at the least, that a run on a line of this slope never lowers the loss by `drop`: in either order.

    `1 - (slope epsilon (slope + noise) P_0 / drop)^(1/4) (1 + E sum |M_t / M_0|^(1/2))`: Markov's inequality for
    `(sum P_t)^(1/4) <= sum P_t^(1/4)`, P = M^2. The 1 is for Algorithm 1's order, which uses P_0 twice.

    Args:
        slope: The mean gradient, positive.
        noise: The coin's part of the gradient, above the slope.
        rate: a, the paper's rho epsilon.
        lr: Learning rate, the paper's epsilon.
        trace: P_0.
        drop: Positive.

    Returns:
        The chance; if it is not positive, nothing is known.

    Raises:
        ValueError: If a number is not finite, or the moments don't fall.
    """
    checks.finite(lr=lr, trace=trace)
    drop = checks.scalar("drop", drop, low=0, strict=True)
    total = 1 + moment_sum(slope, noise, rate, 0.5)
    return float(1 - (slope * lr * (slope + noise) * trace / drop) ** 0.25 * total)


def explosive_growth(slope: Any, kick: Any, chance: Any, rate: Any) -> float:
    """A lower bound on `E log |M_t / M_(t-1)|` when the noise is `+-kick`, each with this chance, and 0 otherwise.

    No slope exceeds `slope`. With c = chance:
    `2 c^2 log(4 a^2 (kick - slope)^4 - 1) + (1 - 4 c^2) log(1 - 2 a slope (kick + slope))`.

    Args:
        slope: Bound on |grad J|, so small that both logarithms exist.
        kick: Size of the noise where it is not 0.
        chance: c, at most 1/2.
        rate: a, the paper's rho epsilon.

    Raises:
        ValueError: If a number is not finite, the chance is out of range or a logarithm doesn't exist.
    """
    checks.finite(slope=slope, kick=kick, rate=rate)
    chance = checks.scalar("chance", chance, low=0, high=0.5)
    both, other = 4 * rate**2 * (kick - slope) ** 4 - 1, 1 - 2 * rate * slope * (kick + slope)
    if not (both > 0 and other > 0 and slope < kick):
        raise ValueError(f"slope: expected a number so small that both logarithms exist, got {slope!r}")
    return float(2 * chance**2 * np.log(float(both)) + (1 - 4 * chance**2) * np.log(float(other)))


# ---------------------------------------------------------------------------------------
# One update, against u = a |g| |h|


def per_product(cap: Any, factor: Any) -> Any:
    """The least c with `min(cap, factor (u + u^2)) <= c u` for every u >= 0: `factor (1 + sqrt(1 + 4 cap/factor)) / 2`.

    One update changes P by at most `4 (u + u^2) |M M^T|`, u = a |g| |h|, and T by as much of |M|_F^2. So, of what it
    was, at most min(2, ...) where both P are bounded, and min(1, 8 (u + u^2)) for P shortened to the first trace.

    Args:
        cap: Bound for large u, positive.
        factor: Slope at zero, positive.

    Raises:
        ValueError: If a number is not finite or not positive.
    """
    cap = checks.scalar("cap", cap, low=0, strict=True)
    factor = checks.scalar("factor", factor, low=0, strict=True)
    return factor * (1 + root(1 + 4 * cap / factor)) / 2


#: P itself where no P exceeds a bound; the factor `min(1, T_0/T)`; P times that factor.
SEEN, SCALED, SHORTENED = per_product(2.0, 4.0), per_product(1.0, 4.0), per_product(1.0, 8.0)


def log_determinant_floor(dot: Any, product: Any) -> Any:
    """Lower bound on `log det(I + a S)`: `2 x - 4 u^2`, x = a g.h and u = a |g| |h| <= 1/4.

    Args:
        dot: x; a number or an array.
        product: u.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(dot=dot, product=product)
    return 2 * dot - 4 * product**2


# ---------------------------------------------------------------------------------------
# Rates that fall: sum rho epsilon finite


def log_norm_in_mean(second_moment: Any, rates: Any) -> Any:
    """Bound on `E sup_t log(|M_t| / |M_0|)`: `2 G^2 sum a`, because one update multiplies |M| by `1 + 2u` at most.

    Args:
        second_moment: G^2.
        rates: Sum of all a = rho epsilon.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(second_moment=second_moment, rates=rates)
    return 2 * second_moment * rates


def slopes_until(gap: Any, smoothness: Any, second_moment: Any, limit: Any, squares: Any, pairs: Any) -> Any:
    """Bound on `E sum epsilon grad J^T P grad J` over the steps before |P| first exceeds `limit` = B.

    `gap + L B^2 G^2 sum epsilon^2 / 2 + c B G^4 sum epsilon_t a_t`; the last term, c = SEEN, for M first alone: there P
    is the one before the update, since the one after has seen the noise.

    Args:
        gap: J(theta_0) - inf J.
        smoothness: L.
        second_moment: G^2.
        limit: B.
        squares: Sum of all epsilon^2.
        pairs: Sum of all `epsilon_t a_t`; 0 for Algorithm 1's order.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(gap=gap, smoothness=smoothness, second_moment=second_moment)
    checks.finite(limit=limit, squares=squares, pairs=pairs)
    return gap + smoothness * limit**2 * second_moment * squares / 2 + SEEN * limit * second_moment**2 * pairs


# ---------------------------------------------------------------------------------------
# Constant rho


def work_limit(drop: Any, moved: Any, smoothness: Any) -> Any:
    """Bound on `grad J(after) . (before - after)` for L-smooth J: `J(before) - J(after) + L |moved|^2 / 2`.

    Args:
        drop: By how much J fell.
        moved: `|before - after|^2`.
        smoothness: L.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(drop=drop, moved=moved, smoothness=smoothness)
    return drop + smoothness * moved / 2


def trace_in_mean(
    trace: Any,
    gap: Any,
    smoothness: Any,
    hyper_lr: Any,
    second_moment: Any,
    identity: int,
    squares: Any,
    order: Order,
) -> Any:
    """Bound on `E [T + 4 rho (J(theta_t) - inf J)]` with shortened steps: `T_0 + 4 rho gap + C sum e^2`.

    M first, `C = 2 rho L T_0 (T_0 + 2 identity) G^2 + 4 rho^2 (T_0 + c identity) G^4`, c = SCALED; T is that of step t.
    Algorithm 1's order, `C = 2 rho L T_0 (3 T_0 + 2 identity) G^2 + 4 rho^2 (1 + c) T_0 G^4`, c = SHORTENED; T is that
    of step t + 1, and no e exceeds the one before.

    Args:
        trace: T_0.
        gap: J(theta_0) - inf J.
        smoothness: L.
        hyper_lr: The paper's rho.
        second_moment: G^2.
        identity: 0 for `P = M M^T`, 1 for `P = I + M M^T`.
        squares: Sum of all e^2 of the steps that M has seen.
        order: `"m-first"` or `"paper"`.

    Raises:
        ValueError: If a number is not finite or the order is unknown.
    """
    checks.finite(trace=trace, gap=gap, smoothness=smoothness, hyper_lr=hyper_lr, second_moment=second_moment)
    checks.finite(identity=identity, squares=squares)
    late = check_order(order) == "paper"
    # What has seen the last gradient: M first, the length beside the identity; else, the whole shortened P.
    seen = SHORTENED * trace if late else SCALED if identity else 0
    curved = 2 * hyper_lr * smoothness * trace * ((3 if late else 1) * trace + 2 * identity) * second_moment
    square = 4 * hyper_lr**2 * (trace + seen) * second_moment**2
    return trace + 4 * hyper_lr * gap + (curved + square) * squares


def slopes_in_mean(
    gap: Any, smoothness: Any, hyper_lr: Any, second_moment: Any, trace: Any, squares: Any, order: Order
) -> Any:
    """Bound on `E sum e min(1, T_0/T) grad J^T P grad J` with shortened steps, P and T from before the batch was seen.

    `gap + T_0 G^2 (L T_0 / 2 + c rho G^2) sum e^2`, c = SHORTENED for M first; 0 for Algorithm 1's order.

    Args:
        gap: J(theta_0) - inf J.
        smoothness: L.
        hyper_lr: The paper's rho.
        second_moment: G^2.
        trace: T_0.
        squares: Sum of all e^2.
        order: `"m-first"` or `"paper"`.

    Raises:
        ValueError: If a number is not finite or the order is unknown.
    """
    checks.finite(gap=gap, smoothness=smoothness, hyper_lr=hyper_lr, second_moment=second_moment)
    checks.finite(trace=trace, squares=squares)
    seen = SHORTENED * hyper_lr * second_moment if check_order(order) == "m-first" else 0
    return gap + trace * second_moment * (smoothness * trace / 2 + seen) * squares


def mean_slope(slopes: Any, trace_bound: Any, trace: Any, lr: Any, steps: Any) -> Any:
    """Bound on the mean of `(E |grad J(theta_t)|)^2` over some steps with `P = I + M M^T`.

    `(1 + T_bound / T_0) slopes / (e steps)`: Cauchy and Schwarz for `|grad J| = (|grad J| sqrt(f)) / sqrt(f)` with
    `f = min(1, T_0/T)` and `1/f <= 1 + T/T_0`.

    Args:
        slopes: `slopes_in_mean` for all these steps.
        trace_bound: `trace_in_mean` for all these steps.
        trace: T_0, positive.
        lr: e, the same for all steps, positive.
        steps: Their number.

    Raises:
        ValueError: If a number is not finite or not positive.
    """
    checks.finite(slopes=slopes, trace_bound=trace_bound)
    trace, lr = checks.scalar("trace", trace, low=0, strict=True), checks.scalar("lr", lr, low=0, strict=True)
    steps = checks.scalar("steps", steps, low=1)
    return (1 + trace_bound / trace) * slopes / (lr * steps)


def overshoot_chance(
    limit: Any,
    trace: Any,
    gap: Any,
    smoothness: Any,
    hyper_lr: Any,
    second_moment: Any,
    identity: int,
    squares: Any,
) -> Any:
    """The chance, at the most, that T ever reaches B = `limit` when no step is shortened: FOP as it is, M first.

    `(T_0 + 4 rho gap + C s + 4 rho G^2 identity sqrt(s)) / B`, s = sum epsilon^2 and
    `C = 2 rho L B (B + 2 identity) G^2 + 4 rho^2 B G^4`.

    Args:
        limit: B, positive.
        trace: T_0.
        gap: J(theta_0) - inf J.
        smoothness: L.
        hyper_lr: The paper's rho.
        second_moment: G^2.
        identity: 0 for `P = M M^T`, 1 for `P = I + M M^T`.
        squares: s, the sum of all epsilon^2.

    Raises:
        ValueError: If a number is not finite or B is not positive.
    """
    checks.finite(trace=trace, gap=gap, smoothness=smoothness, hyper_lr=hyper_lr, second_moment=second_moment)
    checks.finite(identity=identity)
    squares, B = checks.scalar("squares", squares, low=0), checks.scalar("limit", limit, low=0, strict=True)
    curved = 2 * hyper_lr * smoothness * B * (B + 2 * identity) * second_moment
    square = 4 * hyper_lr**2 * B * second_moment**2
    crossing = 4 * hyper_lr * second_moment * root(squares) if identity else 0
    return (trace + 4 * hyper_lr * gap + (curved + square) * squares + crossing) / B
