"""FOP as it is converges: the unmodified algorithm, with a learning rate that knows rho and the loss to remove.

Notation as in `fop_theory.convergence`: P = identity I + M M^T, a = rho epsilon, L = `smoothness`,
`gap` = J(theta_0) - inf J, `trace` = identity + |M_0|_F^2. `share` is c in (0, 1]: the most that `lr L |P|`
may become. One step has g, h (the gradients after and before it), `q = h^T P h`, and `drop`, by which J fell.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fop_theory import checks
from fop_theory.algebra import root
from fop_theory.convergence import Order, check_order


def _share(share: Any) -> Any:
    share = checks.scalar("share", share, high=1)
    return checks.scalar("share", share, low=0, strict=True)


# ---------------------------------------------------------------------------------------
# The lemmas: one step that does not exceed lr L |P| <= c


def least_drop(q: Any, lr: Any, share: Any) -> Any:
    """The loss falls by at least `lr (1 - c/2) q`.

    Args:
        q: `h^T P h` of the step.
        lr: Learning rate.
        share: c, at least `lr L |P|`.

    Raises:
        ValueError: If a number is not finite or the share is not in (0, 1].
    """
    checks.finite(q=q, lr=lr)
    return lr * (1 - _share(share) / 2) * q


def drop_given_work(work: Any, share: Any, convex: bool) -> Any:
    """The least drop per `lr q`, when the new gradient works along the step: `work = <g, lr P h> / (lr q)`.

    Convex: `u + (1 - u)^2 / (2 c)`. Else `(1 + u)/2 + (1 - u)^2 / (4 c) - c/4`.

    Args:
        work: u; 1 where the gradient did not change, 0 where the step ended at the bottom of its line.
        share: c, at least `lr L |P|`.
        convex: Whether J is convex.

    Raises:
        ValueError: If a number is not finite or the share is not in (0, 1].
    """
    checks.finite(work=work)
    c = _share(share)
    if convex:
        return work + (1 - work) ** 2 / (2 * c)
    return (1 + work) / 2 + (1 - work) ** 2 / (4 * c) - c / 4


def price(share: Any, convex: bool) -> tuple[Any, Any, Any]:
    """`(A, B, C)` with `4 u + s <= (A + B s + C s^2) drop_given_work(u)` for every u and every s >= 0.

    Convex: `(4, 1, c/8)`. Else, with `k = 1 + 2 c - c^2`:
    `A = 4 (sqrt(k) + 1 - c) / (2 - c)`, `B = (1 + (1 - c)/sqrt(k)) / (2 - c)`, `C = c / (4 k^(3/2))`.

    Args:
        share: c, at least `lr L |P|`.
        convex: Whether J is convex.

    Raises:
        ValueError: If the share is not in (0, 1].
    """
    c = _share(share)
    if convex:
        return 4, 1, c / 8
    k = 1 + 2 * c - c**2
    return 4 * (root(k) + 1 - c) / (2 - c), (1 + (1 - c) / root(k)) / (2 - c), c / (4 * k * root(k))


def second_order(share: Any, convex: bool) -> Any:
    """Factor f in `a^2 |S M|_F^2 <= rho lr q s`, `s = f rho lr L (gap + gap before)`: 4, or `2 (1 + (1 + c)^2)`.

    A step of gradient descent on a convex function makes no gradient longer, so `|M^T g| <= sqrt(q)`; else
    `|M^T g| <= (1 + c) sqrt(q)`.

    Args:
        share: c, at least `lr L |P|`.
        convex: Whether J is convex.

    Raises:
        ValueError: If the share is not in (0, 1].
    """
    c = _share(share)
    return 4 if convex else 2 * (1 + (1 + c) ** 2)


# ---------------------------------------------------------------------------------------
# The theorem


def growth_constant(share: float, order: Order, convex: bool) -> float:
    """K in `|P_t| <= trace + K rho gap`, for `lr L (trace + K rho gap) <= c`; it tends to 4 as c does to 0.

    M first: the positive root of `K = A + B f c / K + (4/3) C f^2 c^2 / K^2`.
    Algorithm 1's order, convex or not: that of `K = 8 (1 + c) / (2 - c) + 4 (2 + c)^2 / (2 - c) c / K`.

    Args:
        share: c.
        order: `"m-first"` or `"paper"`.
        convex: Whether J is convex.

    Raises:
        ValueError: If the share is not in (0, 1] or the order is unknown.
    """
    c = _share(share)
    if check_order(order) == "paper":
        first, second, third = 8 * (1 + c) / (2 - c), 4 * (2 + c) ** 2 / (2 - c), 0.0
    else:
        first, second, third = price(c, convex)
        extra = second_order(c, convex)
        second, third = second * extra, 4 / 3 * third * extra**2
    roots = np.roots([1.0, -first, -second * c, -third * c**2])
    return float(roots.real.max())


def trace_limit(trace: Any, gap: Any, hyper_lr: Any, constant: Any) -> Any:
    """B, the bound on `identity + |M_t|_F^2`, and so on `|P_t|`: `trace + K rho gap`.

    Args:
        trace: `identity + |M_0|_F^2`.
        gap: J(theta_0) - inf J.
        hyper_lr: The paper's rho.
        constant: K.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(trace=trace, gap=gap, hyper_lr=hyper_lr, constant=constant)
    return trace + constant * hyper_lr * gap


def largest_lr(trace: Any, gap: Any, smoothness: Any, hyper_lr: Any, share: Any, constant: Any) -> Any:
    """The learning rate up to which the theorem speaks: `c / (L (trace + K rho gap))`.

    Args:
        trace: `identity + |M_0|_F^2`.
        gap: J(theta_0) - inf J.
        smoothness: L.
        hyper_lr: The paper's rho.
        share: c.
        constant: K of that c.

    Raises:
        ValueError: If a number is not finite or L is not positive.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    return _share(share) / (smoothness * trace_limit(trace, gap, hyper_lr, constant))


def eigenvalue_floor(share: Any, constant: Any) -> Any:
    """What is left of the smallest eigenvalue of `M_0 M_0^T`, at the least: `(1 - c^2 / ((2 - c) K))^2` of it.

    Args:
        share: c.
        constant: K of that c.

    Raises:
        ValueError: If a number is not finite or the share is not in (0, 1].
    """
    checks.finite(constant=constant)
    c = _share(share)
    return (1 - c**2 / ((2 - c) * constant)) ** 2


def squared_gradients(gap: Any, lr: Any, low: Any, share: Any) -> Any:
    """Bound on `sum_t |g_t|^2`, convex or not: `gap / (lr low (1 - c/2))`.

    Args:
        gap: J(theta_0) - inf J.
        lr: Learning rate.
        low: The least eigenvalue that any P_t has, positive.
        share: c.

    Raises:
        ValueError: If a number is not finite, or `low` is not positive.
    """
    checks.finite(gap=gap, lr=lr)
    low = checks.scalar("low", low, low=0, strict=True)
    return gap / (lr * low * (1 - _share(share) / 2))


def convex_gap(steps: int, lr: Any, low: Any, share: Any, radius: Any) -> Any:
    """Bound on the gap of a convex J after some steps: `D^2 / (steps lr low (1 - c/2))`.

    Args:
        steps: Number of steps, at least one.
        lr: Learning rate.
        low: The least eigenvalue that any P_t has, positive.
        share: c.
        radius: D, which bounds the distance of the parameters to the set of minimizers.

    Raises:
        ValueError: If a number is not finite or not positive.
    """
    steps = checks.scalar("steps", steps, low=1)
    radius = checks.scalar("radius", radius, low=0, strict=True)
    return squared_gradients(radius**2, lr, low, share) / steps


def pl_factor(lr: Any, low: Any, share: Any, mu: Any) -> Any:
    """Contraction of the gap in one step under the PL inequality: `1 - 2 mu lr low (1 - c/2)`.

    Args:
        lr: Learning rate.
        low: The least eigenvalue that any P_t has.
        share: c.
        mu: PL constant.

    Raises:
        ValueError: If a number is not finite or the share is not in (0, 1].
    """
    checks.finite(lr=lr, low=low, mu=mu)
    return 1 - 2 * mu * lr * low * (1 - _share(share) / 2)


# ---------------------------------------------------------------------------------------
# On a parabola: everything depends on two numbers


def parabola_step(z: Any, w: Any, w_last: Any, order: Order) -> tuple[Any, Any]:
    """One step on `J = h x^2 / 2` in `z = lr h P` and `w = sqrt(a) g`: the next z and w, exactly.

    `w' = (1 - z) w`, and M is multiplied by `1 + 2 w' w` (M first) or by `1 + 2 w w_last` (Algorithm 1's order).
    At the start `z = lr L trace` and `w^2 = 2 rho lr L gap`.

    Args:
        z: Step length over the one that reaches the minimum.
        w: Gradient, in units of `1 / sqrt(a)`.
        w_last: The gradient before that; 0 at the start.
        order: `"m-first"` or `"paper"`.

    Raises:
        ValueError: If a number is not finite or the order is unknown.
    """
    checks.finite(z=z, w=w, w_last=w_last)
    after = (1 - z) * w
    pair = after * w if check_order(order) == "m-first" else w * w_last
    return z * (1 + 2 * pair) ** 2, after


def parabola_diverges(z: Any, w: Any, w_last: Any, order: Order) -> Any:
    """Whether a state never comes to the minimum: z >= 3 and w^2 >= 1/2, and in Algorithm 1's order w w_last <= -1.

    There `|w'| >= 2 |w|`, the signs turn and z does not fall, so the next state is one too.

    Args:
        z: Step length over the one that reaches the minimum.
        w: Gradient, in units of `1 / sqrt(a)`.
        w_last: The gradient before that.
        order: `"m-first"` or `"paper"`.

    Returns:
        A boolean, or an array of them.

    Raises:
        ValueError: If a number is not finite or the order is unknown.
    """
    checks.finite(z=z, w=w, w_last=w_last)
    late = check_order(order) == "paper"
    return (z >= 3) & (2 * w * w >= 1) & ((w * w_last <= -1) | (not late))


def parabola_settles(z: Any, w: Any, w_last: Any) -> Any:
    """Whether a state comes to the minimum in either order: `w^2, |w w_last| <= r (2 - z) / 100`, `r = min(z, 2 - z)`.

    While z is within r/2 of where it was, each step leaves at most `1 - r/2` of w, so the products of neighbours add
    up to 7/3 of the largest over r. With that, z changes by less than r/2.

    Args:
        z: Step length over the one that reaches the minimum.
        w: Gradient, in units of `1 / sqrt(a)`.
        w_last: The gradient before that.

    Returns:
        A boolean, or an array of them.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(z=z, w=w, w_last=w_last)
    r = np.minimum(z, 2 - z)
    return (r > 0) & (100 * np.maximum(w * w, abs(w * w_last)) <= r * (2 - z))


def parabola_fate(z: Any, w: Any, order: Order, steps: int = 100_000) -> np.ndarray:
    """Follow parabolas until their fate is certain: 1 converges, -1 diverges, 0 not known after so many steps.

    Args:
        z: `lr L trace` at the start, a number or an array.
        w: Root of `2 rho lr L gap` at the start, a number or an array.
        order: `"m-first"` or `"paper"`.
        steps: Number of steps at most.

    Raises:
        ValueError: If a number is not finite or the order is unknown.
    """
    checks.finite(z=z, w=w)
    checks.sizes(steps=steps)
    z, w = (x.ravel() for x in np.broadcast_arrays(np.asarray(z, dtype=float), np.asarray(w, dtype=float)))
    fate, left, w_last = np.zeros(z.size, dtype=int), np.arange(z.size), 0 * w
    for _ in range(steps):
        settled, lost = parabola_settles(z, w, w_last), parabola_diverges(z, w, w_last, order)
        fate[left] = settled.astype(int) - lost
        (z, after), w_last = parabola_step(z, w, w_last, order), w
        on = ~(settled | lost)
        left, z, w, w_last = left[on], z[on], after[on], w_last[on]
        if not left.size:
            break
    return fate


def enough_to_diverge(z: Any, order: Order) -> Any:
    """The `2 rho lr L gap` from which the parabola diverges, however short the first steps are: for every z in (0, 1).

    `max((sqrt(3/z) - 1) / (2 (1 - z)), 1 / (2 (1 - z)^p))`, p = 2 for M first and 4 for Algorithm 1's order.

    Args:
        z: `lr L trace` at the start.
        order: `"m-first"` or `"paper"`.

    Raises:
        ValueError: If z is not in (0, 1) or the order is unknown.
    """
    z = checks.scalar("z", z, low=0, high=1, strict=True)
    left = 1 - z
    return max((root(3 / z) - 1) / (2 * left), 1 / (2 * left ** (2 if check_order(order) == "m-first" else 4)))
