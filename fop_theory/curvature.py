"""When an outer product of gradients is a curvature, Section 3, and what FOP's own outer product is in the mean.

A loss has several gradients `[m, 1]`, one for each way in which chance may fall; they are the columns of `outcomes`,
`[m, c]`, and `chances` `[c, 1]` add up to one. A network with c outputs z and Jacobian `dz/dtheta = Z: [c, m]` turns
what stands here about outputs into its parameters: gradients `Z^T g`, matrices `Z^T A Z`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fop_theory import checks
from fop_theory.algebra import elementwise, identity_beside
from fop_theory.hypergradient import symmetric_product


def label_gradients(chances: Any) -> Any:
    """Gradients of `-log p_y` by the outputs z, `p = softmax(z)`: column y is `p - e_y`, for label y.

    Args:
        chances: The model's p, `[c, 1]`.

    Returns:
        `[c, c]`.

    Raises:
        ValueError: If it is not a column of finite numbers.
    """
    p = checks.matrix("chances", chances, shape=(None, 1))
    spread = _repeated(p)
    return spread - identity_beside(spread)


def label_hessian(chances: Any) -> Any:
    """Hessian of `-log p_y` by the outputs, the same for every label y: `diag p - p p^T`.

    For parameters, `Z^T (diag p - p p^T) Z` is the Gauss-Newton matrix; the Hessian too where z is linear in them.

    Args:
        chances: The model's p, `[c, 1]`.

    Returns:
        `[c, c]`.

    Raises:
        ValueError: If it is not a column of finite numbers.
    """
    p = checks.matrix("chances", chances, shape=(None, 1))
    return _diagonal(p) - p @ p.T


def second_moment(outcomes: Any, chances: Any) -> Any:
    """`E g g^T`: the outer product of one gradient with itself, in the mean.

    Args:
        outcomes: The gradients, `[m, c]`.
        chances: Of each, `[c, 1]`.

    Returns:
        `[m, m]`.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("outcomes", outcomes)
    return G @ _diagonal(checks.matrix("chances", chances, shape=(G.shape[1], 1))) @ G.T


def mean_of_two_steps(outcomes: Any, chances: Any) -> Any:
    """`E (g h^T + h g^T)` of FOP's two gradients if g and h are drawn independently at one point: `2 E[g] E[g]^T`.

    Args:
        outcomes: The gradients, `[m, c]`.
        chances: Of each, `[c, 1]`.

    Returns:
        `[m, m]`, of rank one or zero.

    Raises:
        ValueError: If a shape does not fit or a number is not finite.
    """
    G = checks.matrix("outcomes", outcomes)
    mean = G @ checks.matrix("chances", chances, shape=(G.shape[1], 1))
    return symmetric_product(mean, mean)


def running_average(gradients: Sequence[Any], decay: Any) -> Any:
    """What a natural gradient method may keep: `F <- decay F + (1 - decay) g g^T`, from zero, over some steps.

    K-FAC (Martens and Grosse 2015) averages its factors so. Each term is of one step.

    Args:
        gradients: One `[m, n]` a step.
        decay: Weight of what stands already.

    Returns:
        `[m, m]`.

    Raises:
        ValueError: If there is no gradient, a shape does not fit or a number is not finite.
    """
    if not len(gradients):
        raise ValueError("gradients: expected at least one")
    decay = checks.scalar("decay", decay)
    first, *others = (checks.matrix("gradients", G) for G in gradients)
    found = (1 - decay) * (first @ first.T)
    for G in others:
        G = checks.matrix("gradients", G, shape=first.shape)
        found = decay * found + (1 - decay) * (G @ G.T)
    return found


def _repeated(p: Any) -> Any:
    """`p 1^T`: the column, once for each of its entries."""
    return p @ elementwise(lambda x: 0 * x + 1, p).T


def _diagonal(p: Any) -> Any:
    """`diag p`."""
    spread = _repeated(p)
    return elementwise(lambda x, y: x * y, spread, identity_beside(spread))
