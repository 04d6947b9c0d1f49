"""Preconditioners that learn with a guarantee: linear P, P = exp(X), and the step that is not taken.

The gain of a step, divided by the squared gradient, is a convex function of P if the loss is convex:
`phi(P) = (f(x - lr P g) - f*) / (lr |g|^2)`. It is not convex in M with `P = M M^T`. So P itself can be learned
online, with the regret bounds of online convex optimization (Zinkevich 2003): by gradient steps
(Gao, Chu, Ye and Udell 2024, here with symmetric P that columns share), or by mirror steps on the logarithm of P
(Tsuda, Raetsch and Warmuth 2005), which keep it definite.

`G` is the gradient at step t, `H` the gradient at step t-1, at which the last step was taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fop_theory import checks
from fop_theory.algebra import inner
from fop_theory.hypergradient import symmetric_product


def normalised_slope(G: Any, H: Any) -> Any:
    """Derivative of phi by a symmetric P, at the P that made the last step: `-S / (2 |H|^2)`, S = G H^T + H G^T.

    The step cancels, and the loss's scale; the paper's hypergradient keeps both.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`, not zero.

    Returns:
        `[m, m]`, symmetric.

    Raises:
        ValueError: If a shape does not fit, a number is not finite or H is zero.
    """
    S = symmetric_product(G, H)
    size = inner(H, H)
    if size == 0:
        raise ValueError("H: expected a gradient that is not zero")
    return -S / (2 * size)


def damping_weight(G: Any, H: Any) -> float:
    """`min(1, |H| / |G|)`: with it no slope is longer than one, however far the last step overshot.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.

    Returns:
        The weight, 1 where G is zero.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    size_g, size_h = float(np.linalg.norm(G)), float(np.linalg.norm(H))
    return 1.0 if size_g <= size_h else size_h / size_g


def linear_step(P: Any, G: Any, H: Any, rate: Any) -> Any:
    """Gradient step on P itself: `P + rate S / (2 |H|^2)`.

    Args:
        P: Symmetric preconditioner that made step t-1, `[m, m]`.
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`, not zero.
        rate: eta.

    Returns:
        The next P, symmetric, not necessarily definite.

    Raises:
        ValueError: If a shape does not fit, a number is not finite or H is zero.
    """
    slope = normalised_slope(G, H)
    P = checks.matrix("P", P, shape=slope.shape)
    return P - checks.scalar("rate", rate) * slope


def project(P: Any, budget: float) -> np.ndarray:
    """The nearest matrix whose eigenvalues lie between `1 / budget` and `budget`: P's own, clipped.

    That set is convex, so no P in it is farther from the projection than from P: the regret's proof stands.

    Args:
        P: Symmetric `[m, m]`, such as `linear_step` gives.
        budget: Largest eigenvalue of P and of its inverse, above 1.

    Returns:
        `[m, m]`, symmetric positive definite.

    Raises:
        ValueError: If P is not a finite symmetric matrix or the budget is out of range.
    """
    P = checks.matrix("P", P, symmetric=True)
    budget = checks.scalar("budget", budget, low=1, strict=True)
    values, vectors = np.linalg.eigh(P)
    return (vectors * np.clip(values, 1 / budget, budget)) @ vectors.T


def exponential(X: Any) -> np.ndarray:
    """`exp(X)` of a symmetric matrix, by its eigenvectors.

    Args:
        X: Symmetric `[m, m]`.

    Returns:
        `[m, m]`, symmetric positive definite.

    Raises:
        ValueError: If X is not a finite symmetric matrix.
    """
    X = checks.matrix("X", X, symmetric=True)
    values, vectors = np.linalg.eigh(X)
    return (vectors * np.exp(values)) @ vectors.T


def mirror_step(X: Any, G: Any, H: Any, rate: float, budget: float = math.inf) -> np.ndarray:
    """Mirror step on `P = exp(X)`: `X + rate w S / (2 |H|^2)`, eigenvalues then clipped to `+-log budget`.

    w is `damping_weight`, so X moves by at most `rate`. The clipping keeps P between `I / budget` and `budget I`,
    and is the projection in the geometry of the entropy `tr P log P`.

    Args:
        X: Symmetric logarithm of the P that made step t-1, `[m, m]`.
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`, not zero.
        rate: eta.
        budget: Largest eigenvalue of P and of its inverse, above 1.

    Returns:
        The next X, symmetric.

    Raises:
        ValueError: If a shape does not fit, a number is not finite or out of range, or H is zero.
    """
    slope = normalised_slope(G, H)
    X = checks.matrix("X", X, shape=slope.shape, symmetric=True)
    rate = checks.scalar("rate", rate)
    moved = X - rate * damping_weight(G, H) * slope
    if budget == math.inf:
        return moved
    bound = math.log(checks.scalar("budget", budget, low=1, strict=True))
    values, vectors = np.linalg.eigh(moved)
    return (vectors * np.clip(values, -bound, bound)) @ vectors.T


def relative_entropy(P: Any, Q: Any) -> float:
    """Von Neumann's `tr(P log P - P log Q - P + Q)`: how far Q is from P for a mirror step.

    Args:
        P: Symmetric positive definite `[m, m]`.
        Q: Symmetric positive definite `[m, m]`.

    Returns:
        At least `|P - Q|_F^2 / (2 b)` for eigenvalues of at most b.

    Raises:
        ValueError: If one of them is not symmetric positive definite.
    """
    P = checks.matrix("P", P, symmetric=True, positive="definite")
    Q = checks.matrix("Q", Q, shape=P.shape, symmetric=True, positive="definite")
    logs = []
    for A in (P, Q):
        values, vectors = np.linalg.eigh(A)
        logs.append((vectors * np.log(values)) @ vectors.T)
    return float(np.trace(P @ (logs[0] - logs[1]) - P + Q))


def linear_regret(distance: Any, theirs: Any, rate: Any, smoothness: Any) -> Any:
    """Bound on the summed gains phi of linear P, lr = 1: `(D^2 / (2 eta) + theirs) / (1 - eta L)`.

    Args:
        distance: D^2, squared Frobenius distance of the first P from the one compared with.
        theirs: Sum of phi for that fixed P, at the same points.
        rate: eta, below 1/L.
        smoothness: L.

    Returns:
        The bound.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(distance=distance, theirs=theirs, rate=rate, smoothness=smoothness)
    return (distance / (2 * rate) + theirs) / (1 - rate * smoothness)


def mirror_regret(entropy: Any, theirs: Any, rate: Any, smoothness: Any, lr: Any, budget: Any) -> Any:
    """Bound on the summed `w phi` of `P = exp(X)`: `(entropy / eta + theirs) / (1 - eta b lr L)`.

    Args:
        entropy: `relative_entropy` from the P compared with to the first.
        theirs: Sum of `w phi` for that fixed P, at the same points.
        rate: eta, below `1 / (b lr L)`.
        smoothness: L.
        lr: Learning rate.
        budget: b.

    Returns:
        The bound.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(entropy=entropy, theirs=theirs, rate=rate, smoothness=smoothness, lr=lr, budget=budget)
    return (entropy / rate + theirs) / (1 - rate * budget * lr * smoothness)


def linear_constant(distance: Any, rate: Any, smoothness: Any) -> Any:
    """C of the superlinear bound for linear P on a quadratic: `L D^2 / (eta (2 - eta L))`, lr = 1.

    Args:
        distance: D^2, squared Frobenius distance of the first P from the inverse Hessian.
        rate: eta, below 2/L; `1/L` is best and gives `L^2 D^2`.
        smoothness: L.

    Returns:
        C: after K steps at most `(C/K)^K` of the gap is left.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(distance=distance, rate=rate, smoothness=smoothness)
    return smoothness * distance / (rate * (2 - rate * smoothness))


def mirror_constant(entropy: Any, rate: Any, smoothness: Any, lr: Any, budget: Any) -> Any:
    """C of the superlinear bound for `P = exp(X)` on a quadratic: `2 L lr D / (eta (2 - eta b lr L))`.

    Args:
        entropy: D, `relative_entropy` from `(lr A)^-1`, A the Hessian, to the first P.
        rate: eta, below `2 / (b lr L)`.
        smoothness: L.
        lr: Learning rate.
        budget: b; `(lr A)^-1` must keep it.

    Returns:
        C: after K steps at most `exp(C/e) (C/K)^K` of the gap is left.

    Raises:
        ValueError: If a number is not finite.
    """
    checks.finite(entropy=entropy, rate=rate, smoothness=smoothness, lr=lr, budget=budget)
    return 2 * smoothness * lr * entropy / (rate * (2 - rate * budget * lr * smoothness))


def superlinear_factor(constant: float, steps: int) -> float:
    """`(C/K)^K`: what is left of the gap after K steps, of a product whose factors have the sum C at most.

    Args:
        constant: C, not negative.
        steps: K, at least one.

    Returns:
        The factor.

    Raises:
        ValueError: If a number is not finite or out of range.
    """
    constant = checks.scalar("constant", constant, low=0)
    steps = checks.scalar("steps", steps, low=1)
    return (constant / steps) ** steps


def null_step(value: Callable[[Any], Any], candidates: list[Any]) -> Any:
    """Look ahead: of several next points the one with the least loss; the first of those that are equal.

    Args:
        value: From parameters `[m, n]` to the loss.
        candidates: Points, such as `theta` (then nothing is ever lost), `theta - lr G` (then nothing is lost
            against gradient descent's own bound), `theta - lr P G`.

    Returns:
        One of them.

    Raises:
        ValueError: If there is none, or one of them is not a finite matrix.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one point, got none")
    points = [checks.matrix("candidates", each) for each in candidates]
    return min(points, key=value)
