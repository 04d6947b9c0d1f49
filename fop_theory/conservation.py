"""What the trace of P pays for: the exact identity of one step, and the conservation law of its flow.

Everything here uses the true hypergradient and plain gradient steps on M (M before theta).
`rho` is called `hyper_lr`, `epsilon` is called `lr`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import sympy as sp
from scipy.integrate import solve_ivp

from fop_theory import checks
from fop_theory.algebra import inner
from fop_theory.hypergradient import symmetric_product


def trace_gain(G: Any, H: Any, M: Any, lr: Any, hyper_lr: Any) -> tuple[Any, Any]:
    """What one update adds to `tr M M^T`: `4 rho <G, theta_(t-1) - theta_t>` and `a^2 |S M|_F^2`.

    The first term is paid by the last step, `theta_(t-1) - theta_t = lr M M^T H`; the second is never negative.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor that made step t-1, `[m, k]`.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        Both terms; their sum is `tr P_t - tr P_(t-1)`, exactly.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    S = symmetric_product(G, H)
    M = checks.matrix("M", M, shape=(G.shape[0], None))
    lr, hyper_lr = checks.scalar("lr", lr), checks.scalar("hyper_lr", hyper_lr)
    moved = lr * (M @ (M.T @ H))
    change = (hyper_lr * lr) * (S @ M)
    return 4 * hyper_lr * inner(G, moved), inner(change, change)


def homogeneous_gain(degree: int, G: Any, moved: Any, slope: Any, hyper_lr: Any) -> Any:
    """What one update adds to `|phi|^2` when `P(phi)` is homogeneous of degree d in its parameters phi.

    `2 d rho <G, theta_(t-1) - theta_t> + rho^2 |slope|^2`, by Euler's `phi . grad P = d P`.

    Args:
        degree: d: 2 for `M M^T` and squared diagonals, 1 for linear P, 0 for a normalised P.
        G: Gradient at step t, `[m, n]`.
        moved: `theta_(t-1) - theta_t`, `[m, n]`.
        slope: Hypergradient, in the shape of phi.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        `|phi_t|^2 - |phi_(t-1)|^2`, exactly.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    degree = checks.scalar("degree", degree, low=0)
    G = checks.matrix("G", G)
    moved = checks.matrix("moved", moved, shape=G.shape)
    slope = checks.matrix("slope", slope)
    hyper_lr = checks.scalar("hyper_lr", hyper_lr)
    return 2 * degree * hyper_lr * inner(G, moved) + hyper_lr**2 * inner(slope, slope)


def flow(M: Any, G: Any, hyper_lr: Any, identity: int = 0) -> tuple[Any, Any]:
    """FOP's continuous limit for small steps: `theta' = -P G`, `M' = 2 rho G G^T M`.

    Args:
        M: Factor `[m, k]`.
        G: Gradient `[m, n]`.
        hyper_lr: Hypergradient learning rate, the paper's rho.
        identity: 0 for `P = M M^T`, 1 for Eq. (23), `P = I + M M^T`.

    Returns:
        `theta'` and `M'`, by the time `t = steps times lr`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    M = checks.matrix("M", M, shape=(G.shape[0], None))
    hyper_lr = checks.scalar("hyper_lr", hyper_lr)
    identity = checks.scalar("identity", identity, low=0, high=1)
    return -(identity * G + M @ (M.T @ G)), 2 * hyper_lr * (G @ (G.T @ M))


def conserved(M: Any, loss: Any, hyper_lr: Any) -> Any:
    """`tr M M^T + 4 rho J`: constant along the flow of `P = M M^T`.

    Args:
        M: Factor `[m, k]`.
        loss: J at the parameters that belong to it.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        The conserved number.

    Raises:
        ValueError: If a number is not finite.
    """
    M = checks.matrix("M", M)
    loss, hyper_lr = checks.scalar("loss", loss), checks.scalar("hyper_lr", hyper_lr)
    return inner(M, M) + 4 * hyper_lr * loss


def log_eigenvalue_rates(P: Any, G: Any, hyper_lr: float) -> tuple[np.ndarray, np.ndarray]:
    """How fast the flow moves each eigenvalue of P: `(log lambda_i)' = 4 rho |G^T v_i|^2`, never negative.

    Args:
        P: Symmetric positive semidefinite `[m, m]` with distinct eigenvalues.
        G: Gradient `[m, n]`.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        Eigenvalues in ascending order and the rate of each one's logarithm, both `[m]`.

    Raises:
        ValueError: If a shape does not fit, P isn't symmetric positive semidefinite or a number is not finite.
    """
    P = checks.matrix("P", P, symmetric=True, positive="semidefinite")
    G = checks.matrix("G", G, shape=(P.shape[0], None))
    hyper_lr = checks.scalar("hyper_lr", hyper_lr)
    values, vectors = np.linalg.eigh(P)
    return values, 4 * hyper_lr * np.sum((vectors.T @ G) ** 2, axis=1)


def one_dimensional_loss(time: Any, loss: Any, P: Any, curvature: Any, hyper_lr: Any) -> Any:
    """The flow's loss on a parabola: `c J_0 / (4 rho J_0 + P_0 e^(2 h c t))`, `c = P_0 + 4 rho J_0`.

    Args:
        time: t, steps times the learning rate; a number or an array.
        loss: J_0, not negative.
        P: P_0, not negative.
        curvature: h, positive.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        J at that time.

    Raises:
        ValueError: If a number is not finite or out of its range.
    """
    if isinstance(time, np.ndarray):
        checks.matrix("time", time.reshape(1, -1))
    else:
        time = checks.scalar("time", time)
    loss = checks.scalar("loss", loss, low=0)
    P = checks.scalar("P", P, low=0)
    curvature = checks.scalar("curvature", curvature, low=0, strict=True)
    hyper_lr = checks.scalar("hyper_lr", hyper_lr, low=0)
    c = P + 4 * hyper_lr * loss
    exponent = 2 * curvature * c * time
    grown = sp.exp(exponent) if isinstance(exponent, sp.Basic) else np.exp(exponent)
    return c * loss / (4 * hyper_lr * loss + P * grown)


class Flow(NamedTuple):
    """A solution of the flow: times `[T]`, parameters `[T, m, n]`, factors `[T, m, k]`."""

    times: np.ndarray
    thetas: np.ndarray
    factors: np.ndarray


def solve_flow(
    gradient: Callable[[np.ndarray], np.ndarray], theta: Any, M: Any, hyper_lr: float, times: Any, identity: int = 0
) -> Flow:
    """Integrate the flow with an eighth-order Runge-Kutta method, to about ten digits.

    Args:
        gradient: From parameters `[m, n]` to the gradient `[m, n]`.
        theta: First parameters `[m, n]`.
        M: First factor `[m, k]`.
        hyper_lr: Hypergradient learning rate, the paper's rho.
        times: Times of the answer `[T]`, ascending from the start.
        identity: 0 for `P = M M^T`, 1 for `P = I + M M^T`.

    Returns:
        The solution at `times`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
        ArithmeticError: If the integration fails.
    """
    theta, M = checks.matrix("theta", theta), checks.matrix("M", M)
    times = np.asarray(times)
    if times.ndim != 1:
        raise ValueError(f"times: expected a list of times [T], got {times!r}")
    checks.finite(times=times)

    def derivative(_: float, state: np.ndarray) -> np.ndarray:
        at, factor = state[: theta.size].reshape(theta.shape), state[theta.size :].reshape(M.shape)
        parts = flow(factor, gradient(at), hyper_lr, identity)
        return np.concatenate([part.ravel() for part in parts])

    start = np.concatenate([theta.ravel(), M.ravel()])
    solution = solve_ivp(
        derivative, (times[0], times[-1]), start, method="DOP853", t_eval=times, rtol=1e-11, atol=1e-13
    )
    if not solution.success:
        raise ArithmeticError(solution.message)
    return Flow(
        times,
        solution.y[: theta.size].T.reshape(-1, *theta.shape),
        solution.y[theta.size :].T.reshape(-1, *M.shape),
    )
