"""The hypergradient of a learned preconditioner: Eqs. (1)-(4), (8)-(10) and Algorithm 1.

Notation: `G` is the gradient at step t, `H` the gradient at step t-1, both `[m, n]`
(a parameter vector is `[m, 1]`), `M: [m, k]` for any k, `P = M M^T: [m, m]`.
Every function is one equation. It runs on floats, fractions, mpmath numbers and sympy
matrices alike, so that the derivation and the numeric check read the same line.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fop_theory import checks


def preconditioned_step(theta: Any, P: Any, G: Any, lr: Any) -> Any:
    """Gradient step with a preconditioner, Eq. (1): `theta - lr P G`.

    Args:
        theta: Parameters `[m, n]`.
        P: Preconditioner `[m, m]`.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The next parameters `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    m, n = theta.shape
    P = checks.matrix("P", P, shape=(m, m))
    G = checks.matrix("G", G, shape=(m, n))
    lr = checks.scalar("lr", lr)
    return theta - lr * (P @ G)


def factored_step(theta: Any, M: Any, G: Any, lr: Any) -> Any:
    """Gradient step with `P = M M^T`, Eq. (2) and Eq. (8): `theta - lr M M^T G`.

    Args:
        theta: Parameters `[m, n]`.
        M: Factor `[m, k]`, any k.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The next parameters `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    m, n = theta.shape
    M = checks.matrix("M", M, shape=(m, None))
    G = checks.matrix("G", G, shape=(m, n))
    lr = checks.scalar("lr", lr)
    return theta - lr * (M @ (M.T @ G))


def symmetric_product(G: Any, H: Any) -> Any:
    """`S = G H^T + H G^T`, the matrix of Eq. (4).

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.

    Returns:
        `[m, m]`, symmetric.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    return G @ H.T + H @ G.T


def hypergradient(G: Any, H: Any, M: Any, lr: Any) -> Any:
    """Gradient of the loss at step t with respect to the factor of step t-1, Eqs. (4), (10) corrected.

    `-lr (G H^T + H G^T) M` with `M = M^(t-1)`; the paper prints `M^(t)`. It's the same for
    `P = I + M M^T`, whose differential is that of `M M^T`.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`, any k.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The hypergradient `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    S = symmetric_product(G, H)
    M = checks.matrix("M", M, shape=(S.shape[0], None))
    lr = checks.scalar("lr", lr)
    return -lr * (S @ M)


def hypergradient_as_printed(G: Any, H: Any, M_now: Any, lr: Any) -> Any:
    """Eq. (4) as the paper prints it: `-lr (G H^T + H G^T) M^(t)`, with the factor of the step to come.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M_now: Factor of step t, `[m, k]`; the step t-1 that is differentiated didn't use it.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The printed right side `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    M_now = checks.matrix("M_now", M_now, shape=(G.shape[0], None))
    return hypergradient(G, H, M_now, lr)


def eq_10_as_printed(G: Any, H: Any, M_now: Any) -> Any:
    """Eq. (10) as the paper prints it: Eq. (4) as printed, without the learning rate.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M_now: Factor of step t, `[m, k]`.

    Returns:
        The printed right side `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    return hypergradient_as_printed(G, H, M_now, 1)


def step_jacobian(H: Any, M: Any, lr: Any) -> np.ndarray:
    """Derivative of the parameters of step t by the factor of step t-1, the last factor of Eq. (3).

    For a parameter vector it's an `m x m x k` tensor, `-lr (delta_ip (M^T h)_q + M_iq h_p)` at (i, p, q).

    Args:
        H: Gradient at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        `[m, n, m, k]`: entry (i, c, p, q) is the derivative of `theta[i, c]` by `M[p, q]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    H = np.asarray(checks.matrix("H", H))
    M = np.asarray(checks.matrix("M", M, shape=(H.shape[0], None)))
    lr = checks.scalar("lr", lr)
    through_the_left = np.multiply.outer(np.eye(len(H), dtype=int), M.T @ H).transpose(0, 3, 1, 2)
    through_the_right = np.multiply.outer(M, H).transpose(0, 3, 2, 1)
    return -lr * (through_the_left + through_the_right)


def chain_rule(G: Any, jacobian: np.ndarray) -> np.ndarray:
    """Eq. (3): contract the gradient at step t with the derivative of the step.

    Args:
        G: Gradient at step t, `[m, n]`.
        jacobian: `[m, n, m, k]`, from `step_jacobian`.

    Returns:
        The hypergradient `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    jacobian = np.asarray(jacobian)
    if jacobian.ndim != 4:
        raise ValueError(f"jacobian: expected [m, n, m, k], got shape {jacobian.shape}")
    checks.finite(jacobian=jacobian)
    G = np.asarray(checks.matrix("G", G, shape=jacobian.shape[:2]))
    return np.tensordot(G, jacobian, axes=2)


def eq_9_terms_as_printed(G: Any, H: Any, M: Any) -> tuple[Any, Any]:
    """Both terms of Eq. (9) as the paper prints it, without their sum, which doesn't exist.

    Args:
        G: Gradient at step t, a vector `[m, 1]`.
        H: Gradient at step t-1, `[m, 1]`.
        M: Factor of step t-1, square `[m, m]`; otherwise neither product exists.

    Returns:
        `G^T (-M H): [1, 1]` and `G (-H^T M^T): [m, m]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G, shape=(None, 1))
    H = checks.matrix("H", H, shape=G.shape)
    M = checks.matrix("M", M, shape=(G.shape[0], G.shape[0]))
    return G.T @ (-(M @ H)), G @ -(H.T @ M.T)


def eq_9(G: Any, H: Any, M: Any, lr: Any) -> Any:
    """Eq. (9) corrected: by the product rule, `-lr (H G^T M + G H^T M)`, with `M = M^(t-1)`.

    Moving the right factor gives `<G, M dM^T H> = <H G^T M, dM>`, the first term; moving the left
    one gives `<G, dM M^T H> = <G H^T M, dM>`, the second.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Factor used at step t-1, `[m, k]`, any k.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The hypergradient `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    M = checks.matrix("M", M, shape=(G.shape[0], None))
    lr = checks.scalar("lr", lr)
    return -lr * (H @ (G.T @ M) + G @ (H.T @ M))


def product_step(theta: Any, M: Any, G: Any, lr: Any) -> Any:
    """Gradient step with "the product of a matrix M with itself", taken literally: `theta - lr M M G`.

    Args:
        theta: Parameters `[m, n]`.
        M: Square `[m, m]`.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The next parameters `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    m, n = theta.shape
    M = checks.matrix("M", M, shape=(m, m))
    G = checks.matrix("G", G, shape=(m, n))
    lr = checks.scalar("lr", lr)
    return theta - lr * (M @ (M @ G))


def product_hypergradient(G: Any, H: Any, M: Any, lr: Any) -> Any:
    """Hypergradient for `P = M M`: `-lr (G H^T M^T + M^T G H^T)`. Its first term is the second of Eq. (9).

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        M: Square matrix used at step t-1, `[m, m]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        The hypergradient `[m, m]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    M = checks.matrix("M", M, shape=(G.shape[0], G.shape[0]))
    lr = checks.scalar("lr", lr)
    return -lr * (G @ H.T @ M.T + M.T @ G @ H.T)


def algorithm_1_step(theta: Any, M: Any, G: Any, H: Any, lr: Any, hyper_lr: Any) -> tuple[Any, Any]:
    """Lines 6 and 7 of Algorithm 1 as printed: step with the old M, then move M.

    Args:
        theta: Parameters `[m, n]`.
        M: Factor of step t, `[m, k]`.
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`; zero at the first step, where nothing is cached yet.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        Parameters and factor of step t+1.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    hyper_lr = checks.scalar("hyper_lr", hyper_lr)
    return factored_step(theta, M, G, lr), M - hyper_lr * hypergradient_as_printed(G, H, M, lr)


def algorithm_1_step_corrected(
    theta: Any, M: Any, M_last: Any, G: Any, H: Any, lr: Any, hyper_lr: Any
) -> tuple[Any, Any]:
    """Algorithm 1 in its printed order with the true hypergradient in line 7.

    Args:
        theta: Parameters `[m, n]`.
        M: Factor of step t, `[m, k]`.
        M_last: Factor that made step t-1, `[m, k]`: one more thing to cache.
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`; zero at the first step.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        Parameters and factor of step t+1.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    M_last = checks.matrix("M_last", M_last, shape=checks.matrix("M", M).shape)
    hyper_lr = checks.scalar("hyper_lr", hyper_lr)
    return factored_step(theta, M, G, lr), M - hyper_lr * hypergradient(G, H, M_last, lr)


def m_first_step(theta: Any, M_last: Any, G: Any, H: Any, lr: Any, hyper_lr: Any) -> tuple[Any, Any]:
    """Algorithm 1 with lines 6 and 7 swapped: move M, then step with the new M.

    The factor that line 7 then multiplies is the one that made step t-1: the index is right, and
    nothing is late. Baydin et al. (2018) update their learning rate in this order.

    Args:
        theta: Parameters `[m, n]`.
        M_last: Factor that made step t-1, `[m, k]`.
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`; zero at the first step.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        Parameters of step t+1 and the factor that made this step.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    M_last = checks.matrix("M_last", M_last, shape=(checks.matrix("theta", theta).shape[0], None))
    hyper_lr = checks.scalar("hyper_lr", hyper_lr)
    M = M_last - hyper_lr * hypergradient(G, H, M_last, lr)
    return factored_step(theta, M, G, lr), M


def price_of_the_index(G: Any, H: Any, H_before: Any, M_last: Any, lr: Any, hyper_lr: Any) -> Any:
    """How far the printed Eq. (4) is from the true one along Algorithm 1, exactly.

    With `S_t = G H^T + H G^T` and `S_{t-1} = H H_before^T + H_before H^T` it is
    `-lr^2 hyper_lr S_t S_{t-1} M^(t-1)`: first order in the hypergradient learning rate.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        H_before: Gradient at step t-2, `[m, n]`.
        M_last: Factor used at step t-1, `[m, k]`.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Returns:
        Printed minus true hypergradient, `[m, k]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    H_before = checks.matrix("H_before", H_before, shape=G.shape)
    M_last = checks.matrix("M_last", M_last, shape=(G.shape[0], None))
    lr, hyper_lr = checks.scalar("lr", lr), checks.scalar("hyper_lr", hyper_lr)
    S, S_last = symmetric_product(G, H), symmetric_product(H, H_before)
    return -(lr**2) * hyper_lr * (S @ (S_last @ M_last))
