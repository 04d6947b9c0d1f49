"""What pure noise does to M: the determinant collapses, and a stationary run pays for it in trace.

Gradients without any signal are independent of each other and have mean zero. `rate` is a, the
paper's rho epsilon; `A = I + a (g h^T + h g^T)` multiplies M.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg

from fop_theory import checks


def expected_determinant(second_moment: Any, mean: Any, rate: Any) -> Any:
    """`E det(I + a S) = 1 + 2 a |m|^2 + a^2 (tr R^2 - (tr R)^2)` for independent g, h of one distribution.

    Without a mean and with `R = s^2 I` it's `1 - a^2 n (n-1) s^4`: noise only ever lowers it.

    Args:
        second_moment: `R = E g g^T`, `[n, n]`; it contains the mean.
        mean: `m = E g`, `[n, 1]`.
        rate: a, the paper's rho epsilon.

    Returns:
        The expected factor of `det M`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    R = checks.matrix("second_moment", second_moment, symmetric=True)
    mean = checks.matrix("mean", mean, shape=(R.shape[0], 1))
    rate = checks.scalar("rate", rate)
    spread = (R @ R).trace() - R.trace() ** 2
    return 1 + 2 * rate * (mean.T @ mean).trace() + rate**2 * spread


def sign_noise_drift(n: int, rate: float) -> float:
    """`E log det(I + a S)` when each entry of g and h is a fair coin's 1 or -1: a sum of n + 1 terms.

    `|g|^2 = n` and `g.h` is a sum of n coins, so the determinant is `(1 + a k)^2 - a^2 n^2` with binomial k.

    Args:
        n: Dimension, at least 1.
        rate: a, the paper's rho epsilon, in (0, 1/(2n)), so that no step reaches a zero determinant.

    Returns:
        Expected change of `log |det M|` per step; `log det P` changes by twice that.

    Raises:
        ValueError: If n or the rate is out of range.
    """
    n = checks.scalar("n", n, low=1)
    rate = checks.scalar("rate", rate, low=0, high=1 / (2 * n), strict=True)
    total = 0.0
    for heads in range(n + 1):
        dot = 2 * heads - n
        total += math.comb(n, heads) / 2**n * math.log((1 + rate * dot) ** 2 - (rate * n) ** 2)
    return total


def growth_exponents(n: int, rate: Any, variance: Any = 1) -> list[Any]:
    """Growth of M's singular values under isotropic noise, to second order in a: `a^2 s^4 (n + 1 - 4 i)`.

    `log sigma_i(M_t) / t` tends to the i-th of these for small a (i = 1, ..., n from the largest).
    Three quarters of them are negative for large n; they add up to `-a^2 s^4 n (n+1)`.

    Args:
        n: Dimension, at least 1.
        rate: a, the paper's rho epsilon.
        variance: s^2, where `E g g^T = s^2 I`.

    Returns:
        The n exponents, largest first.

    Raises:
        ValueError: If a number is out of range.
    """
    n = checks.scalar("n", n, low=1)
    rate, variance = checks.scalar("rate", rate), checks.scalar("variance", variance)
    return [rate**2 * variance**2 * (n + 1 - 4 * i) for i in range(1, n + 1)]


def sign_noise_run(n: int, rate: float, steps: int, runs: int, seed: int) -> np.ndarray:
    """Logarithms of M's singular values under coin noise, from `M_0 = I`.

    Args:
        n: Dimension.
        rate: a, the paper's rho epsilon.
        steps: Number of updates.
        runs: Number of independent runs.
        seed: Seed of the generator.

    Returns:
        `[runs, steps + 1, n]`: estimates whose sum over the last axis is `log |det M_t|` to rounding.
            M is kept as an orthogonal matrix times a triangular one, so that nothing under- or overflows.

    Raises:
        ValueError: If a number is out of range.
    """
    checks.sizes(n=n, steps=steps, runs=runs)
    checks.scalar("rate", rate)
    rng = np.random.default_rng(seed)
    logs = np.zeros((runs, steps + 1, n))
    frame = np.broadcast_to(np.eye(n), (runs, n, n))
    h = rng.choice([-1.0, 1.0], (runs, n, 1))
    for t in range(1, steps + 1):
        g = rng.choice([-1.0, 1.0], (runs, n, 1))
        moved = frame + rate * (g @ (h.mT @ frame) + h @ (g.mT @ frame))
        frame, triangle = np.linalg.qr(moved)
        logs[:, t] = logs[:, t - 1] + np.log(np.abs(np.diagonal(triangle, axis1=1, axis2=2)))
        h = g
    return logs


def stationary_covariance(P: Any, H: Any, noise: Any, lr: float) -> np.ndarray:
    """Covariance of theta under `theta <- theta - lr P (H theta + xi)` in its stationary state.

    Args:
        P: Preconditioner, frozen, symmetric positive definite `[n, n]`.
        H: Hessian of the quadratic loss, symmetric positive definite `[n, n]`.
        noise: Covariance of xi, symmetric positive semidefinite `[n, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        V, the solution of `V = B V B^T + lr^2 P C P` with `B = I - lr P H`.

    Raises:
        ValueError: If a shape does not fit, or if `lr P H` has an eigenvalue of 2 or more: nothing is stationary then.
    """
    P = checks.matrix("P", P, symmetric=True, positive="definite")
    H = checks.matrix("H", H, shape=P.shape, symmetric=True, positive="definite")
    noise = checks.matrix("noise", noise, shape=P.shape, symmetric=True, positive="semidefinite")
    lr = checks.scalar("lr", lr, low=0, strict=True)
    highest = lr * float(scipy.linalg.eigh(H, np.linalg.inv(P), eigvals_only=True).max())
    if highest >= 2:
        raise ValueError(f"lr: expected lr lambda_max(P H) below 2, got {highest:.3g}")
    B = np.eye(len(P)) - lr * P @ H
    return scipy.linalg.solve_discrete_lyapunov(B, lr**2 * P @ noise @ P)


def stationary_correlation(P: Any, H: Any, noise: Any, lr: float) -> float:
    """`E g_t^T P g_(t-1)` of stationary gradient descent with noise, from its covariance.

    Args:
        P: Preconditioner, frozen, `[n, n]`.
        H: Hessian `[n, n]`.
        noise: Covariance of the gradient's noise `[n, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The expected overlap of two gradients in a row; FOP raises the trace of P by `4 a` times it.

    Raises:
        ValueError: See `stationary_covariance`.
    """
    V = stationary_covariance(P, H, noise, lr)
    P, H, noise = (np.asarray(x, dtype=float) for x in (P, H, noise))
    # theta_t = B theta_(t-1) - lr P xi_(t-1), and g_(t-1) = H theta_(t-1) + xi_(t-1).
    after = (np.eye(len(V)) - lr * P @ H) @ V @ H - lr * P @ noise
    return float(np.trace(H @ after @ P))


def stationary_step_energy(P: Any, H: Any, noise: Any, lr: float) -> float:
    """`E |theta_t - theta_(t-1)|_H^2`, the curvature's price of a stationary step.

    Args:
        P: Preconditioner, frozen, `[n, n]`.
        H: Hessian `[n, n]`.
        noise: Covariance of the gradient's noise `[n, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The expectation; the trace of P drifts by `-2 rho` times it, to first order in rho.

    Raises:
        ValueError: See `stationary_covariance`.
    """
    V = stationary_covariance(P, H, noise, lr)
    P, H, noise = (np.asarray(x, dtype=float) for x in (P, H, noise))
    return float(np.trace(H @ (lr**2 * P @ (H @ V @ H + noise) @ P)))


def one_dimensional_correlation(P: Any, curvature: Any, variance: Any, lr: Any) -> Any:
    """`E g g' = -lr P h s^2 / (2 - lr P h)`: two gradients in a row of a stationary run on a parabola.

    Args:
        P: The step's scale, positive.
        curvature: h, positive.
        variance: s^2, of the gradient's noise.
        lr: Learning rate, the paper's epsilon; `lr P h < 2`.

    Returns:
        The expectation: negative, whatever the noise.

    Raises:
        ValueError: If a number is not finite or not positive.
    """
    P = checks.scalar("P", P, low=0, strict=True)
    curvature = checks.scalar("curvature", curvature, low=0, strict=True)
    variance = checks.scalar("variance", variance, low=0)
    lr = checks.scalar("lr", lr, low=0, strict=True)
    reach = lr * P * curvature
    return -reach * variance / (2 - reach)
