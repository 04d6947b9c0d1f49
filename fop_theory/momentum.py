"""FOP under momentum and weight decay: Eqs. (5)-(7) and what their hypergradient is.

Notation as in `fop_theory.hypergradient`; `decay` is the paper's momentum parameter alpha,
`v` the velocity, `lr` the paper's epsilon.
"""

from __future__ import annotations

from typing import Any

from fop_theory import checks
from fop_theory.hypergradient import factored_step, hypergradient


def velocity(v: Any, M: Any, G: Any, decay: Any) -> Any:
    """Velocity after a gradient, Eq. (5): `decay v + M M^T G`.

    Args:
        v: Velocity `[m, n]`.
        M: Factor `[m, k]`, any k.
        G: Gradient `[m, n]`.
        decay: Momentum parameter, the paper's alpha.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    v = checks.matrix("v", v)
    M = checks.matrix("M", M, shape=(v.shape[0], None))
    G = checks.matrix("G", G, shape=v.shape)
    decay = checks.scalar("decay", decay)
    return decay * v + M @ (M.T @ G)


def velocity_step(theta: Any, v_next: Any, lr: Any) -> Any:
    """Parameters after the velocity, Eq. (6) corrected: `theta - lr v_next`.

    Args:
        theta: Parameters `[m, n]`.
        v_next: Velocity of Eq. (5), `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    v_next = checks.matrix("v_next", v_next, shape=theta.shape)
    lr = checks.scalar("lr", lr)
    return theta - lr * v_next


def velocity_step_as_printed(theta: Any, v_next: Any) -> Any:
    """Eq. (6) as the paper prints it, without a learning rate: `theta - v_next`.

    Args:
        theta: Parameters `[m, n]`.
        v_next: Velocity of Eq. (5), `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    return velocity_step(theta, v_next, 1)


def momentum_step(theta: Any, v: Any, M: Any, G: Any, decay: Any, lr: Any) -> Any:
    """The full momentum update, Eq. (7): `theta - lr decay v - lr M M^T G`.

    Args:
        theta: Parameters `[m, n]`.
        v: Velocity before the step, `[m, n]`.
        M: Factor `[m, k]`, any k.
        G: Gradient `[m, n]`.
        decay: Momentum parameter, the paper's alpha.
        lr: Learning rate, the paper's epsilon.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    v = checks.matrix("v", v, shape=theta.shape)
    M = checks.matrix("M", M, shape=(theta.shape[0], None))
    G = checks.matrix("G", G, shape=theta.shape)
    decay, lr = checks.scalar("decay", decay), checks.scalar("lr", lr)
    return theta - lr * decay * v - lr * (M @ (M.T @ G))


def nesterov_step(theta: Any, v: Any, M: Any, G: Any, decay: Any, lr: Any) -> Any:
    """Nesterov's variant as `torch.optim.SGD` defines it: `theta - lr (M M^T G + decay v_next)`.

    Args:
        theta: Parameters `[m, n]`.
        v: Velocity before the step, `[m, n]`.
        M: Factor `[m, k]`, any k.
        G: Gradient `[m, n]`.
        decay: Momentum parameter, the paper's alpha.
        lr: Learning rate, the paper's epsilon.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    v_next = velocity(v, M, G, decay)
    theta = checks.matrix("theta", theta, shape=v_next.shape)
    lr = checks.scalar("lr", lr)
    return theta - lr * (M @ (M.T @ G) + decay * v_next)


def nesterov_hypergradient(G: Any, H: Any, M: Any, decay: Any, lr: Any) -> Any:
    """Greedy hypergradient under Nesterov's variant: `(1 + decay)` times Eq. (4).

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`.
        decay: Momentum parameter, the paper's alpha.
        lr: Learning rate, the paper's epsilon.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    return (1 + checks.scalar("decay", decay)) * hypergradient(G, H, M, lr)


# ---------------------------------------------------------------------------------------
# Through the velocity


def raw_momentum(q: Any, H: Any, decay: Any) -> Any:
    """Momentum of the gradients before preconditioning: `decay q + H`.

    With one M for all time, the velocity of Eq. (5) is `M M^T q`.

    Args:
        q: Raw momentum so far, `[m, n]`.
        H: Gradient, `[m, n]`.
        decay: Momentum parameter, the paper's alpha.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    q = checks.matrix("q", q)
    H = checks.matrix("H", H, shape=q.shape)
    return checks.scalar("decay", decay) * q + H


def velocity_hypergradient(G: Any, q: Any, M: Any, lr: Any) -> Any:
    """Hypergradient through the whole velocity, for one M shared by all steps: Eq. (4) with q for H.

    Args:
        G: Gradient at step t, `[m, n]`.
        q: Raw momentum of the steps up to t-1 (`raw_momentum`), `[m, n]`.
        M: The shared factor, `[m, k]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        `-lr (G q^T + q G^T) M`, `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    q = checks.matrix("q", q)
    return hypergradient(checks.matrix("G", G, shape=q.shape), q, M, lr)


def lasting_influence(decay: Any, steps: int) -> Any:
    """What one M contributes to the parameters `steps` steps later, over what Eq. (4) counts.

    For constant gradients: `1 + decay + ... + decay^(steps-1) = (1 - decay^steps) / (1 - decay)`.

    Args:
        decay: Momentum parameter, the paper's alpha, below one.
        steps: Number of steps, the one that used M included.

    Raises:
        ValueError: If `decay` is not below one or `steps` not positive.
    """
    decay = checks.scalar("decay", decay)
    checks.scalar("steps", steps, low=1)
    if not (hasattr(decay, "free_symbols") and decay.free_symbols) and not -1 < decay < 1:
        raise ValueError(f"decay: expected a number in (-1, 1), got {decay!r}")
    return (1 - decay**steps) / (1 - decay)


# ---------------------------------------------------------------------------------------
# Weight decay


def coupled_decay_step(theta: Any, M: Any, H: Any, lr: Any, weight_decay: Any) -> Any:
    """Step on the loss plus `weight_decay |theta|^2 / 2`; P multiplies both: `theta - lr M M^T (H + w theta)`.

    Args:
        theta: Parameters `[m, n]`.
        M: Factor `[m, k]`.
        H: Gradient of the loss alone, `[m, n]`.
        lr: Learning rate, the paper's epsilon.
        weight_decay: The factor w, at least zero.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    H = checks.matrix("H", H, shape=theta.shape)
    weight_decay = checks.scalar("weight_decay", weight_decay, low=0)
    return factored_step(theta, M, H + weight_decay * theta, lr)


def decoupled_decay_step(theta: Any, M: Any, H: Any, lr: Any, weight_decay: Any) -> Any:
    """Step with weight decay beside P (Loshchilov and Hutter 2019): `(1 - lr w) theta - lr M M^T H`.

    Args:
        theta: Parameters `[m, n]`.
        M: Factor `[m, k]`.
        H: Gradient of the loss alone, `[m, n]`.
        lr: Learning rate, the paper's epsilon.
        weight_decay: The factor w, at least zero.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    H = checks.matrix("H", H, shape=theta.shape)
    lr, weight_decay = checks.scalar("lr", lr), checks.scalar("weight_decay", weight_decay, low=0)
    return factored_step((1 - lr * weight_decay) * theta, M, H, lr)


def coupled_decay_hypergradient(G: Any, H: Any, theta: Any, M: Any, lr: Any, weight_decay: Any) -> Any:
    """Hypergradient of the coupled step: Eq. (4) with `H + w theta` for H.

    `G` is the gradient, after the step, of whichever loss the factor is to lower: with or without
    its own `w theta`. For the decoupled step Eq. (4) stands as it is, with H.

    Args:
        G: Gradient at step t of the loss that M is judged by, `[m, n]`.
        H: Gradient at step t-1 of the loss alone, `[m, n]`.
        theta: Parameters at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`.
        lr: Learning rate, the paper's epsilon.
        weight_decay: The factor w, at least zero.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    H = checks.matrix("H", H, shape=theta.shape)
    weight_decay = checks.scalar("weight_decay", weight_decay, low=0)
    return hypergradient(G, H + weight_decay * theta, M, lr)
