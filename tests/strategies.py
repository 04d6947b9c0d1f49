"""What hypothesis draws: shapes, gradients, factors and preconditioners of all ranks and conditionings.

Matrices are drawn through a seeded generator, not entry by entry: hypothesis then explores
shapes, ranks, scales and conditioning, and an example costs microseconds.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from fop_theory import objectives

#: Dimension of a parameter, number of its columns, rank of a factor.
dims = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)
#: Orders of magnitude that a learning rate or a gradient may have.
scales = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)


@st.composite
def gradient_pairs(draw, max_columns: int = 4):
    """`(G, H)`: two gradients `[m, n]`, generic, equal, opposite, orthogonal or one of them zero."""
    m, n = draw(dims), draw(st.integers(1, max_columns))
    rng = np.random.default_rng(draw(seeds))
    G, H = rng.standard_normal((m, n)), rng.standard_normal((m, n))
    kind = draw(st.sampled_from(["generic", "generic", "equal", "opposite", "orthogonal", "zero"]))
    if kind in ("equal", "opposite"):
        H = G if kind == "equal" else -G
    elif kind == "orthogonal":
        H = H - G * (np.sum(G * H) / np.sum(G * G))
    elif kind == "zero":
        H = np.zeros((m, n))
    return G * draw(scales), H * draw(scales)


@st.composite
def factors(draw, m: int, max_rank: int = 6):
    """`M: [m, k]` for any k, also k > m, also rank deficient."""
    k = draw(st.integers(1, max_rank))
    rng = np.random.default_rng(draw(seeds))
    M = rng.standard_normal((m, k))
    if draw(st.booleans()) and k > 1:
        M[:, -1] = M[:, 0]
    return M * draw(st.floats(0.1, 3))


@st.composite
def definite(draw, m: int | None = None, max_log_condition: float = 4.0):
    """`(P, low, high)`: symmetric positive definite `[m, m]` and its extreme eigenvalues."""
    m = draw(dims) if m is None else m
    rng = np.random.default_rng(draw(seeds))
    Q, _ = np.linalg.qr(rng.standard_normal((m, m)))
    spread = 10.0 ** -draw(st.floats(0, max_log_condition))
    eigenvalues = np.exp(rng.uniform(np.log(spread), 0, m))
    eigenvalues[0] = 1.0
    if m > 1:
        eigenvalues[-1] = spread
    eigenvalues *= draw(st.floats(0.1, 10))
    P = (Q * eigenvalues) @ Q.T
    return (P + P.T) / 2, float(eigenvalues.min()), float(eigenvalues.max())


@st.composite
def pl_problems(draw, max_dim: int = 4):
    """`(objective, theta)`: a smooth function with a PL constant and a point that is not a minimizer.

    Quadratics (also singular ones), logistic losses with a ridge, and nonconvex functions, also with flat directions.
    """
    n = draw(st.integers(1, max_dim))
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["quadratic", "quadratic", "logistic", "wavy", "wavy of A theta"]))
    if kind == "quadratic":
        low, high = draw(st.floats(-2, 0)), draw(st.floats(-1, 1))
        Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
        curvatures = 10.0**high * 10.0 ** (low * rng.random(n))
        curvatures[1:] *= rng.random(n - 1) > 0.2
        A = (Q * curvatures) @ Q.T
        objective = objectives.quadratic((A + A.T) / 2)
    elif kind == "logistic":
        X = rng.standard_normal((draw(st.integers(2, 12)), n)) * draw(st.floats(0.3, 3))
        objective = objectives.logistic(X, rng.choice([-1, 1], len(X)), 10.0 ** draw(st.floats(-3, 0)))
    elif kind == "wavy":
        objective = objectives.wavy(10.0 ** rng.uniform(-1, 1, n))
    else:
        A = rng.standard_normal((draw(st.integers(1, n)), n))
        objective = objectives.composed(objectives.wavy(10.0 ** rng.uniform(-1, 1, len(A))), A)
    theta = rng.standard_normal((objective.dim, 1)) * 10.0 ** draw(st.floats(-1, 1))
    return objective, theta


@st.composite
def smooth_problems(draw, max_dim: int = 3):
    """`(objective, theta)`: a smooth function bounded below, convex or not, with a PL constant or without."""
    kind = draw(st.sampled_from(["pl", "pl", "huber", "cosine"]))
    if kind == "pl":
        return draw(pl_problems(max_dim))
    n = draw(st.integers(1, max_dim))
    rng = np.random.default_rng(draw(seeds))
    A = np.linalg.qr(rng.standard_normal((n, n)))[0] * 10.0 ** rng.uniform(-1, 0.5, (n, 1))
    outer = objectives.huber(n) if kind == "huber" else objectives.cosine(10.0 ** rng.uniform(-1, 1, n))
    return objectives.composed(outer, A), rng.standard_normal((n, 1)) * 10.0 ** draw(st.floats(-1, 1.5))
