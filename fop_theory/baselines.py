"""What FOP is measured against: S-HD, PP-HD, diagonal FOP, Adagrad.

Notation as in `fop_theory.hypergradient`: `G` is the gradient at step t, `H` the gradient at
step t-1, both `[m, n]`; `lr` is the paper's epsilon. A learned rate multiplies `lr`, so that a
rate of one is plain gradient descent, as M = I is for FOP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy as sp

from fop_theory import checks
from fop_theory.algebra import elementwise, inner, root

# ---------------------------------------------------------------------------------------
# One rate for all, one a layer, one a parameter


def scalar_step(theta: Any, rate: Any, G: Any, lr: Any) -> Any:
    """S-HD's step of one layer, Section 4: `theta - lr rate G`, that is P = rate I.

    Args:
        theta: Parameters `[m, n]`.
        rate: The layer's learned rate.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    G = checks.matrix("G", G, shape=theta.shape)
    return theta - checks.scalar("lr", lr) * checks.scalar("rate", rate) * G


def scalar_hypergradient(G: Any, H: Any, lr: Any) -> Any:
    """Derivative of the loss at step t by the rate of step t-1: `-lr <G, H>`.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    return -checks.scalar("lr", lr) * inner(G, H)


def global_hypergradient(Gs: Sequence[Any], Hs: Sequence[Any], lr: Any) -> Any:
    """Derivative by one rate that all layers share, as Baydin et al. (2018) learn it.

    It is the sum of the layers' own derivatives.

    Args:
        Gs: Gradients at step t, one `[m, n]` a layer.
        Hs: Gradients at step t-1, one a layer.
        lr: Learning rate, the paper's epsilon.

    Raises:
        ValueError: If the numbers of layers differ, a shape does not fit or a number is not finite.
    """
    if len(Gs) != len(Hs) or not Gs:
        raise ValueError(f"Hs: expected one gradient a layer, got {len(Hs)} for {len(Gs)} in Gs")
    Gs = [checks.matrix("Gs", G) for G in Gs]
    Hs = [checks.matrix("Hs", H, shape=G.shape) for G, H in zip(Gs, Hs, strict=True)]
    first, *others = (scalar_hypergradient(G, H, lr) for G, H in zip(Gs, Hs, strict=True))
    return sum(others, start=first)


def per_parameter_step(theta: Any, rates: Any, G: Any, lr: Any) -> Any:
    """PP-HD's step, Section 4: `theta - lr rates * G` entry by entry, that is P = diag(rates).

    Args:
        theta: Parameters `[m, n]`.
        rates: One learned rate a parameter, `[m, n]`, of any sign.
        G: Gradient `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    theta = checks.matrix("theta", theta)
    rates = checks.matrix("rates", rates, shape=theta.shape)
    G = checks.matrix("G", G, shape=theta.shape)
    lr = checks.scalar("lr", lr)
    return theta - lr * elementwise(lambda rate, g: rate * g, rates, G)


def per_parameter_hypergradient(G: Any, H: Any, lr: Any) -> Any:
    """Derivative of the loss at step t by PP-HD's rates of step t-1: `-lr G * H` entry by entry.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        One number a parameter, `[m, n]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    lr = checks.scalar("lr", lr)
    return -lr * elementwise(lambda g, h: g * h, G, H)


def diagonal_hypergradient(G: Any, H: Any, d: Any, lr: Any) -> Any:
    """Eq. (4) for a diagonal factor M = diag(d), P = diag(d * d): `-2 lr d_i sum_j G_ij H_ij`.

    Args:
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        d: Diagonal of the factor used at step t-1, `[m, 1]`.
        lr: Learning rate, the paper's epsilon.

    Returns:
        One number a diagonal entry, `[m, 1]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("G", G)
    H = checks.matrix("H", H, shape=G.shape)
    m, n = G.shape
    d = checks.matrix("d", d, shape=(m, 1))
    lr = checks.scalar("lr", lr)
    ones = sp.ones(n, 1) if isinstance(G, sp.MatrixBase) else np.ones((n, 1), dtype=int)
    return -2 * lr * elementwise(lambda x, y: x * y, d, elementwise(lambda g, h: g * h, G, H) @ ones)


def per_parameter_update(rates: Any, G: Any, H: Any, lr: Any, hyper_lr: Any) -> Any:
    """PP-HD's rates after one gradient step on them: `rates + hyper_lr lr G * H`; nothing keeps them positive.

    Args:
        rates: Rates of step t-1, `[m, n]`.
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    rates = checks.matrix("rates", rates)
    G = checks.matrix("G", G, shape=rates.shape)
    return rates - checks.scalar("hyper_lr", hyper_lr) * per_parameter_hypergradient(G, H, lr)


def diagonal_update(p: Any, G: Any, H: Any, lr: Any, hyper_lr: Any) -> Any:
    """Diagonal of P = M M^T after one step of FOP on a diagonal M: `p_i (1 + 2 hyper_lr lr sum_j G_ij H_ij)^2`.

    The square keeps every entry at least zero, and an entry at zero stays there.

    Args:
        p: Diagonal of P at step t-1, `[m, 1]`, at least zero.
        G: Gradient at step t, `[m, n]`.
        H: Gradient at step t-1, `[m, n]`.
        lr: Learning rate, the paper's epsilon.
        hyper_lr: Hypergradient learning rate, the paper's rho.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    p = checks.matrix("p", p)
    ones = sp.ones(*p.shape) if isinstance(p, sp.MatrixBase) else p * 0 + 1
    factor = ones - checks.scalar("hyper_lr", hyper_lr) * diagonal_hypergradient(G, H, ones, lr)
    return elementwise(lambda x, f: x * f**2, p, factor)


def adagrad_direction(gradients: Sequence[Any], damping: Any = 0) -> Any:
    """Adagrad's step direction (Duchi et al. 2011): the last gradient over the root of all summed squares.

    Args:
        gradients: Gradients so far, each `[m, n]`, the last one first in effect.
        damping: Added to the root.

    Raises:
        ValueError: If there is no gradient, a shape does not fit or a number is not finite.
    """
    if not gradients:
        raise ValueError("gradients: expected at least one")
    last = checks.matrix("gradients", gradients[-1])
    past = [checks.matrix("gradients", g, shape=last.shape) for g in gradients]
    damping = checks.scalar("damping", damping, low=0)
    return elementwise(lambda *gs: gs[-1] / (root(sum(g * g for g in gs)) + damping), *past)
