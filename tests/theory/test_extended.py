"""Theorem 1B with momentum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sympy as sp

from fop_theory import extended
from tests.helpers import squared
from tests.strategies import one_of, problems, smooth_problem


def situation(chance):
    """A problem, M, beta, rho from 1e-3 to 1e4, eta, alpha up to 0.95, and which hypergradient."""
    objective, theta = smooth_problem(chance)
    M = chance.rng.standard_normal((objective.dim, chance.whole(1, 3))) * 10.0 ** chance.number(-2, 1)
    return (
        objective, theta, M, chance.whole(0, 1), 10.0 ** chance.number(-3, 4), chance.number(0.02, 0.5),
        chance.number(0, 0.95), chance.one_of("plain", "velocity"),
    )  # fmt: skip


@pytest.mark.claim("ours-theorem-1b-momentum", shows="holds", by="property")
@problems(situation, one_of(10, 40))
def test_theorem_1b_with_momentum(drawn, steps) -> None:
    """The trace, the smallest eigenvalue, the slopes and their sum, along the run at the longest learning rate."""
    f, theta, M, identity, rho, share, alpha, through = drawn
    gap, trace = f.value(theta) - f.minimum, identity + squared(M)
    growth = extended.momentum_growth(share, alpha, through)
    lr = extended.momentum_lr(trace, gap, f.smoothness, rho, share, alpha, growth)
    run = list(extended.learn_with_momentum(f.gradient, theta, M, lr, rho, alpha, steps, through, identity))
    limit, kappa = trace + growth * rho * gap, extended.momentum_margin(share, alpha)
    start = float(np.linalg.eigvalsh(M @ M.T)[0])
    floor = extended.momentum_floor(share, alpha) * start
    rounding = 1e-12 * f.smoothness * max(squared(step.theta) for step in run) + 1e-13 * abs(f.minimum)
    total = 0.0
    for step in run:
        assert identity + squared(step.M) <= limit * (1 + 1e-9)
        assert float(np.linalg.eigvalsh(step.M @ step.M.T)[0]) >= floor - 1e-9 * limit
        slope = extended.momentum_slope(share, alpha) * f.smoothness * (gap + rounding)
        assert squared(step.gradient) <= slope * (1 + 1e-9)
        total += identity * squared(step.gradient) + squared(step.M.T @ step.gradient)
    assert total <= (1 - alpha) * (gap + rounding * len(run)) / (lr * kappa) * (1 + 1e-9)


@pytest.mark.claim("ours-theorem-1b-momentum", shows="holds", by="symbolic")
def test_the_auxiliary_point_takes_plain_steps() -> None:
    """`z_t = theta_t + alpha (theta_t - theta_(t-1)) / (1 - alpha)` moves by `-lr P g / (1 - alpha)`, exactly."""
    alpha, lr, theta, v, Pg = sp.symbols("alpha epsilon theta v Pg")
    after = alpha * v + Pg
    z = theta + alpha * (-lr * v) / (1 - alpha)
    z_after = theta - lr * after + alpha * (-lr * after) / (1 - alpha)
    assert sp.simplify(z_after - z + lr * Pg / (1 - alpha)) == 0


@pytest.mark.claim("ours-theorem-1b-momentum", shows="holds", by="symbolic")
def test_the_constants_of_the_theorem_with_momentum() -> None:
    """The margin from its two losses with `c = eta (1 - alpha)^2`; K closes the induction and tends to 4."""
    eta, alpha = sp.symbols("eta alpha", positive=True)
    c = eta * (1 - alpha) ** 2
    margin = 1 - alpha * c / (1 - alpha) ** 2 - c / (2 * (1 - alpha))
    assert sp.simplify(margin - (1 - eta * (1 + alpha) / 2)) == 0
    for share, momentum in itertools.product((0.5, 0.1, 1e-6), (0.0, 0.5, 0.9)):
        kappa = extended.momentum_margin(share, momentum)
        assert kappa == pytest.approx(float(margin.subs({eta: share, alpha: momentum})), rel=1e-12)
        K = extended.momentum_constant(share, momentum)
        slope = (np.sqrt(2) + momentum * np.sqrt(share / (kappa * (1 + momentum)))) ** 2
        first = 4 * (1 + (1 - momentum) * share) * (1 + momentum * share) / kappa
        second = (2 + share) ** 2 * slope / kappa
        assert first + second * share * (1 - momentum) / K == pytest.approx(K, rel=1e-12)
    assert extended.momentum_constant(1e-9, 0.9) == pytest.approx(4, abs=1e-6)
    assert extended.momentum_growth(0.5, 0.9, "plain") == pytest.approx(0.1 * extended.momentum_constant(0.5, 0.9))
    with pytest.raises(ValueError, match="through: expected plain or velocity"):
        extended.momentum_growth(0.5, 0.9, "both")
