"""Convergence with a fixed preconditioner: Appendix A.3, Eqs. (12)-(22), and the theorem that holds.

Notation: `P: [n, n]` symmetric with eigenvalues between `low` and `high` (the paper's lambda_min, lambda_max),
f has an L-Lipschitz gradient (`smoothness` = L) and satisfies the PL inequality with constant `mu`;
`gap` is `f(theta) - f*`. The paper's rho is `claimed_step`; its proof uses the step 1/L instead.
Every function is one equation and runs on floats, fractions and sympy expressions alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fop_theory import checks
from fop_theory.algebra import inner, root
from fop_theory.hypergradient import preconditioned_step


def pl_slack(g: Any, gap: Any, mu: Any) -> Any:
    """What the PL inequality, Eq. (12), leaves: `|g|^2 / 2 - mu (f - f*)`; it holds where this is not negative.

    Args:
        g: Gradient `[n, 1]`.
        gap: f - f*.
        mu: PL constant.

    Returns:
        The slack.

    Raises:
        ValueError: If g is not a finite column.
    """
    g = checks.matrix("g", g, shape=(None, 1))
    checks.finite(gap=gap, mu=mu)
    return inner(g, g) / 2 - mu * gap


def claimed_step(low: Any, high: Any, smoothness: Any) -> Any:
    """The step of Theorem 2: `rho = (2 low - high^2) / L`.

    Args:
        low: Smallest eigenvalue of P.
        high: Largest eigenvalue of P.
        smoothness: L.

    Returns:
        rho; negative when `high^2 > 2 low`.

    Raises:
        ValueError: If L is not positive.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    checks.finite(low=low, high=high)
    return (2 * low - high**2) / smoothness


def step(theta: Any, P: Any, g: Any, size: Any) -> Any:
    """Gradient step with a preconditioner and a step size, Eq. (13): `theta - size P g`.

    Args:
        theta: Parameters `[n, 1]`.
        P: Symmetric preconditioner `[n, n]`.
        g: Gradient `[n, 1]`.
        size: Step size; the paper's rho, or any other.

    Returns:
        The next parameters `[n, 1]`.

    Raises:
        ValueError: If a shape does not fit, P is not symmetric or a number is not finite.
    """
    theta = checks.matrix("theta", theta, shape=(None, 1))
    n = theta.shape[0]
    P = checks.matrix("P", P, shape=(n, n), symmetric=True)
    g = checks.matrix("g", g, shape=(n, 1))
    size = checks.scalar("size", size)
    return preconditioned_step(theta, P, g, size)


def claimed_gap(gap: Any, mu: Any, rho: Any, steps: int) -> Any:
    """Bound on `f(theta_k) - f*` after k steps, Eqs. (14) and (22): `(1 - mu rho)^k (f(theta_0) - f*)`.

    Args:
        gap: f(theta_0) - f*.
        mu: PL constant.
        rho: `claimed_step`.
        steps: k.

    Returns:
        The bound; Eq. (21) is the case k = 1.

    Raises:
        ValueError: If k is negative.
    """
    steps = checks.scalar("steps", steps, low=0)
    checks.finite(gap=gap, mu=mu, rho=rho)
    return (1 - mu * rho) ** steps * gap


def smooth_change(g: Any, move: Any, smoothness: Any) -> Any:
    """Bound on `f(theta + move) - f(theta)` for an L-Lipschitz gradient: `<g, move> + L |move|^2 / 2`.

    Args:
        g: Gradient at theta, `[n, 1]`.
        move: `[n, 1]`.
        smoothness: L.

    Returns:
        The bound.

    Raises:
        ValueError: If a shape does not fit.
    """
    g = checks.matrix("g", g, shape=(None, 1))
    move = checks.matrix("move", move, shape=(g.shape[0], 1))
    checks.finite(smoothness=smoothness)
    return inner(g, move) + smoothness * inner(move, move) / 2


def unit_step_change(P: Any, g: Any, smoothness: Any) -> Any:
    """The same bound for the step 1/L, Eq. (15): `-g^T P g / L + |P g|^2 / (2 L)`.

    Args:
        P: Symmetric `[n, n]`.
        g: Gradient `[n, 1]`.
        smoothness: L.

    Returns:
        The bound on `f(theta - P g / L) - f(theta)`.

    Raises:
        ValueError: If a shape does not fit or P is not symmetric.
    """
    return first_term(P, g, smoothness) + second_term(P, g, smoothness)


def first_term(P: Any, g: Any, smoothness: Any) -> Any:
    """First term of Eq. (15): `-g^T P g / L`.

    Args:
        P: Symmetric `[n, n]`.
        g: Gradient `[n, 1]`.
        smoothness: L.

    Raises:
        ValueError: If a shape does not fit, P is not symmetric or a number is not finite.
    """
    g = checks.matrix("g", g, shape=(None, 1))
    P = checks.matrix("P", P, shape=(g.shape[0], g.shape[0]), symmetric=True)
    checks.finite(smoothness=smoothness)
    return -inner(g, P @ g) / smoothness


def second_term(P: Any, g: Any, smoothness: Any) -> Any:
    """Second term of Eq. (15): `|P g|^2 / (2 L)`.

    Args:
        P: Symmetric `[n, n]`.
        g: Gradient `[n, 1]`.
        smoothness: L.

    Raises:
        ValueError: If a shape does not fit, P is not symmetric or a number is not finite.
    """
    g = checks.matrix("g", g, shape=(None, 1))
    P = checks.matrix("P", P, shape=(g.shape[0], g.shape[0]), symmetric=True)
    checks.finite(smoothness=smoothness)
    image = P @ g
    return inner(image, image) / (2 * smoothness)


def first_term_bound(low: Any, squared_norm: Any, smoothness: Any) -> Any:
    """Right-hand side of Eq. (16): `-low |G|^2 / L`, with G the gradient in the eigenbasis of P.

    Args:
        low: Smallest eigenvalue of P.
        squared_norm: `|G|^2`.
        smoothness: L.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(low=low, squared_norm=squared_norm, smoothness=smoothness)
    return -low * squared_norm / smoothness


def second_term_bound(high: Any, squared_norm: Any, smoothness: Any) -> Any:
    """Right-hand side of Eq. (17): `high^2 |G|^2 / (2 L)`.

    Args:
        high: Largest eigenvalue of P.
        squared_norm: `|G|^2`.
        smoothness: L.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(high=high, squared_norm=squared_norm, smoothness=smoothness)
    return high**2 * squared_norm / (2 * smoothness)


def split_bound(low: Any, high: Any, squared_norm: Any, smoothness: Any) -> Any:
    """Right-hand side of Eqs. (18) and (19): `-(low - high^2 / 2) |G|^2 / L`; the two bounds added.

    Args:
        low: Smallest eigenvalue of P.
        high: Largest eigenvalue of P.
        squared_norm: `|G|^2`.
        smoothness: L.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(low=low, high=high, squared_norm=squared_norm, smoothness=smoothness)
    return -(low - high**2 / 2) * squared_norm / smoothness


def pl_change(low: Any, high: Any, mu: Any, gap: Any, smoothness: Any) -> Any:
    """Right-hand side of Eq. (20): `-(mu / L) (2 low - high^2) (f - f*)`.

    It bounds `f(theta - P g / L) - f(theta)` only where `2 low >= high^2`: the PL inequality bounds `|g|^2`
    from below, and a negative factor turns that around.

    Args:
        low: Smallest eigenvalue of P.
        high: Largest eigenvalue of P.
        mu: PL constant.
        gap: f(theta) - f*.
        smoothness: L.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(low=low, high=high, mu=mu, gap=gap, smoothness=smoothness)
    return -mu * (2 * low - high**2) * gap / smoothness


# ---------------------------------------------------------------------------------------
# The theorem that holds


def decrease(eigenvalue: Any, size: Any, smoothness: Any) -> Any:
    """Decrease of f per `|g|^2 / 2` along an eigenvector of P: `size lambda (2 - size L lambda)`.

    Args:
        eigenvalue: lambda of P.
        size: Step size eta.
        smoothness: L.

    Returns:
        The coefficient: `f(theta - eta P g) <= f(theta) - sum_i decrease(lambda_i) g_i^2 / 2` in the eigenbasis.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(eigenvalue=eigenvalue, size=size, smoothness=smoothness)
    return size * eigenvalue * (2 - size * smoothness * eigenvalue)


def factor(low: Any, high: Any, size: Any, smoothness: Any, mu: Any) -> Any:
    """Contraction of `f - f*` in one step of any admissible size (the corrected theorem).

    `1 - mu min{decrease(low), decrease(high)}`, for f with an L-Lipschitz gradient and PL constant mu,
    convex or not, as long as `size L high <= 2`.

    Args:
        low: Smallest eigenvalue of P, positive.
        high: Largest eigenvalue of P.
        size: Step size eta.
        smoothness: L.
        mu: PL constant.

    Returns:
        The factor.

    Raises:
        ValueError: If P is not positive definite or the step is not admissible.
    """
    low, high, size = _admissible(low, high, size, smoothness)
    checks.finite(mu=mu)
    return 1 - mu * min(decrease(low, size, smoothness), decrease(high, size, smoothness))


def _admissible(low: Any, high: Any, size: Any, smoothness: Any) -> tuple[Any, Any, Any]:
    """Refuse what is no spectrum of a positive definite P, and a step of more than `2 / (L high)`."""
    low = checks.scalar("low", low, low=0, strict=True)
    high = checks.scalar("high", high, low=low)
    size = checks.scalar("size", size, low=0)
    checks.scalar("smoothness", smoothness, low=0, strict=True)
    # The best step of P = b I is 1/(L b); rounding may put `2/(L b)` a unit in the last place too high.
    checks.scalar("size * smoothness * high", size * smoothness * high, high=2 * (1 + 1e-12))
    return low, high, size


def best_step(low: Any, high: Any, smoothness: Any) -> Any:
    """The step with the smallest `factor`: `2 / (L (low + high))`.

    Args:
        low: Smallest eigenvalue of P.
        high: Largest eigenvalue of P.
        smoothness: L.

    Raises:
        ValueError: If L is not positive.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    checks.finite(low=low, high=high)
    return 2 / (smoothness * (low + high))


def best_factor(condition: Any, smoothness: Any, mu: Any) -> Any:
    """The factor of the best step: `1 - (mu / L) 4 kappa / (1 + kappa)^2`, kappa = high / low.

    Args:
        condition: kappa, at least 1.
        smoothness: L.
        mu: PL constant.

    Returns:
        The factor.

    Raises:
        ValueError: If kappa is less than 1.
    """
    condition = checks.scalar("condition", condition, low=1)
    checks.finite(smoothness=smoothness, mu=mu)
    return 1 - mu * 4 * condition / (smoothness * (1 + condition) ** 2)


def strongly_convex_factor(low: Any, high: Any, size: Any, smoothness: Any, mu: Any) -> Any:
    """Theorem 2D: contraction of `f - f*` where f is even strongly convex: `max(|1 - eta mu m|, |1 - eta L b|)^2`.

    It is the worst case over all such f and all P, and a quadratic in the plane attains it.

    Args:
        low: Smallest eigenvalue m of P, positive.
        high: Largest eigenvalue b of P.
        size: Step size eta, `eta L b <= 2`.
        smoothness: L.
        mu: Constant of strong convexity.

    Returns:
        The factor.

    Raises:
        ValueError: If P is not positive definite or the step is not admissible.
    """
    low, high, size = _admissible(low, high, size, smoothness)
    checks.finite(mu=mu)
    return max(abs(1 - size * mu * low), abs(1 - size * smoothness * high)) ** 2


def best_strongly_convex_step(low: Any, high: Any, smoothness: Any, mu: Any) -> Any:
    """The step with the smallest `strongly_convex_factor`: `2 / (L b + mu m)`.

    Args:
        low: Smallest eigenvalue m of P.
        high: Largest eigenvalue b of P.
        smoothness: L.
        mu: Constant of strong convexity.

    Raises:
        ValueError: If L is not positive.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    checks.finite(low=low, high=high, mu=mu)
    return 2 / (smoothness * high + mu * low)


def safe_climb(low: Any, high: Any, size: Any, smoothness: Any) -> Any:
    """How far to climb from theta', by the gradient's length, and stay below f(theta): `c = min(eta m, 2/L - eta b)`.

    `|g - eta L P g| <= (1 - L c) |g|` for this c and every P with this spectrum. So all points within `c |g|` of
    theta' lie within `|g| / L` of `theta - g / L`, and there the parabola that lies above f is at most `f(theta)`.

    Args:
        low: Smallest eigenvalue m of P, positive.
        high: Largest eigenvalue b of P.
        size: Step size eta, `eta L b <= 2`.
        smoothness: L.

    Returns:
        c; it is `eta m` up to the best step.

    Raises:
        ValueError: If P is not positive definite or the step is not admissible.
    """
    low, high, size = _admissible(low, high, size, smoothness)
    return min(size * low, 2 / smoothness - size * high)


def climbed(gap: Any, mu: Any, length: Any) -> Any:
    """The least f - f* at the end of a steepest ascent of this length, by the PL inequality.

    `(sqrt(gap) + sqrt(mu / 2) length)^2`: where PL holds, the root of the gap rises by `sqrt(mu / 2)` a unit of length.

    Args:
        gap: f - f* where it starts, not negative.
        mu: PL constant, not negative.
        length: Of the curve.

    Raises:
        ValueError: If a number is negative or not finite.
    """
    gap, mu = checks.scalar("gap", gap, low=0), checks.scalar("mu", mu, low=0)
    return (root(gap) + root(mu / 2) * checks.scalar("length", length, low=0)) ** 2


def climb_factor(low: Any, high: Any, size: Any, smoothness: Any, mu: Any) -> Any:
    """Theorem 2F: contraction of `f - f*` in one step, f PL, convex or not: `(1 - mu c)^2`, c the `safe_climb`.

    Up to the best step it is `(1 - eta mu m)^2`, the worst case, and the same as under strong convexity: a quadratic
    attains it.

    Args:
        low: Smallest eigenvalue m of P, positive.
        high: Largest eigenvalue b of P.
        size: Step size eta, `eta L b <= 2`.
        smoothness: L.
        mu: PL constant.

    Returns:
        The factor.

    Raises:
        ValueError: If P is not positive definite or the step is not admissible.
    """
    checks.finite(mu=mu)
    return (1 - mu * safe_climb(low, high, size, smoothness)) ** 2


def relative_curvatures(M: Any, A: Any) -> tuple[float, float]:
    """Theorem 2B's constants for `f = theta^T A theta / 2` and `P = M M^T`: the ends of the spectrum of `M^T A M`.

    In the coordinates phi with `theta = M phi` the preconditioned step is the plain one, and this is f's Hessian.

    Args:
        M: Factor of P, `[n, n]`, invertible.
        A: Hessian, positive semi-definite `[n, n]`, not zero.

    Returns:
        `(mu_P, L_P)`: the smallest positive eigenvalue and the largest.

    Raises:
        ValueError: If a matrix is not what it should be.
    """
    A = checks.matrix("A", A, symmetric=True, positive="semidefinite")
    M = checks.matrix("M", M, shape=A.shape)
    eigenvalues = np.linalg.eigvalsh(M.T @ A @ M)
    if not eigenvalues[-1] > 0:
        raise ValueError("A: expected a matrix that is not zero")
    positive = eigenvalues[eigenvalues > 1e-12 * eigenvalues[-1]]
    return float(positive[0]), float(positive[-1])


def changing_factor(conditions: Any, smoothness: Any, mu: Any) -> Any:
    """Theorem 2C: what is left of `f - f*` at most when P changes: the product of `best_factor(kappa_k)`.

    Args:
        conditions: The condition numbers kappa_k of P_k, each stepped with by its own `best_step`.
        smoothness: L.
        mu: PL constant.

    Returns:
        The factor; it tends to zero if and only if the sum of `1 / kappa_k` has no bound.

    Raises:
        ValueError: If a condition number is less than 1.
    """
    checks.finite(smoothness=smoothness, mu=mu)
    product = 1
    for condition in conditions:
        condition = checks.scalar("conditions", condition, low=1)
        product = product * best_factor(condition, smoothness, mu)
    return product


def stalled_factor(conditions: Any, smoothness: Any, mu: Any) -> Any:
    """What is left at least on `(L x^2 + mu y^2) / 2` with `P_k = diag(1, 1 / kappa_k)`, whatever the steps.

    No step up to `2 / (L high)` moves y by more than `2 mu y / (L kappa_k)`.

    Args:
        conditions: The condition numbers kappa_k, each above `2 mu / L`.
        smoothness: L.
        mu: PL constant.

    Returns:
        The product of `(1 - 2 mu / (L kappa_k))^2`, a factor of the part of f that is y's.

    Raises:
        ValueError: If L is not positive or a condition number is at most `2 mu / L`.
    """
    smoothness = checks.scalar("smoothness", smoothness, low=0, strict=True)
    mu = checks.scalar("mu", mu, low=0)
    product = 1
    for condition in conditions:
        condition = checks.scalar("conditions", condition, low=2 * mu / smoothness, strict=True)
        product = product * (1 - 2 * mu / (smoothness * condition)) ** 2
    return product


def lipschitz_radius(slope: Any, gap: Any, mu: Any) -> Any:
    """How far a slope of at most K and the PL inequality go together: `(K - sqrt(2 mu (f - f*))) / mu`.

    Args:
        slope: K, which `|g|` does not exceed in a ball.
        gap: f - f* at its centre.
        mu: PL constant in the ball.

    Returns:
        The largest radius that the ball can have; negative if K is too small for the centre itself.

    Raises:
        ValueError: If mu is not positive or the gap is negative.
    """
    mu = checks.scalar("mu", mu, low=0, strict=True)
    gap = checks.scalar("gap", gap, low=0)
    checks.finite(slope=slope)
    return (slope - root(2 * mu * gap)) / mu


def theorem_2_is_true(low: Any, high: Any) -> bool:
    """Whether Theorem 2 holds for every objective of its class and this spectrum of P.

    With `s = 2 low - high^2`: if and only if s = 0 (no step is taken), or s > 0 and `low (2 - s low) >= 1`;
    that is `high^2 >= (1 - 2 low + 2 low^3) / low^2`, which P must meet by being ill-conditioned where low < 1.

    Args:
        low: Smallest eigenvalue of P, not negative.
        high: Largest eigenvalue of P.

    Raises:
        ValueError: If the eigenvalues are negative or in the wrong order.
    """
    low = checks.scalar("low", low, low=0)
    high = checks.scalar("high", high, low=low)
    s = claimed_step(low, high, 1)
    return bool(s == 0 or (s > 0 and low * (2 - s * low) >= 1))


def share_of_positive_steps(n: int, draws: int, rng: np.random.Generator) -> float:
    """Share of random preconditioners `Z Z^T`, Z Gaussian `[n, n]`, for which the step of Theorem 2 is positive.

    Args:
        n: Size of P.
        draws: How many P are drawn.
        rng: Their source.

    Returns:
        The share, between 0 and 1.

    Raises:
        ValueError: If a number is below one.
    """
    checks.sizes(n=n, draws=draws)
    Z = rng.standard_normal((draws, n, n))
    eigenvalues = np.linalg.eigvalsh(Z @ Z.transpose(0, 2, 1))
    return float(np.mean(claimed_step(eigenvalues[:, 0], eigenvalues[:, -1], 1) > 0))
