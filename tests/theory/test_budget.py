"""How far a budget for the trace carries: over schedules and mini-batches; not over noise, not over Adam on M."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from fop_theory import budget, conservation, exponential, hypergradient, objectives, structure
from fop_theory.algebra import inner
from tests.helpers import column, fractions, identity
from tests.strategies import any_scale, any_seed, number, problems, situation

F = Fraction


def batches(curvatures: list, centres: list) -> list:
    """Loss and gradient of several parabolas in the plane, exact on fractions."""
    losses = [
        lambda x, h=h, c=c: sum(a * (y - z) ** 2 / 2 for a, y, z in zip(h, x.ravel(), c, strict=True))
        for h, c in zip(curvatures, centres, strict=True)
    ]
    gradients = [
        lambda x, h=h, c=c: column(*(a * (y - z) for a, y, z in zip(h, x.ravel(), c, strict=True)))
        for h, c in zip(curvatures, centres, strict=True)
    ]
    return list(zip(losses, gradients, strict=True))


@pytest.mark.claim("ours-budget-batches", shows="holds", by="exact")
@pytest.mark.parametrize("rates", [[F(1, 8)] * 4, [F(1, 4), F(1, 8), F(1, 3), F(1, 16)], [F(1), F(0), F(2), F(1, 9)]])
def test_the_account_of_mini_batches_in_fractions(rates) -> None:
    """Mean over all sequences of batches: work is paid by the loss that was removed, whatever the schedule."""
    drawn = batches([(F(1), F(3)), (F(2), F(1))], [(F(2), F(-1)), (F(-1), F(0))])
    rho = F(1, 5)
    account = budget.batch_account(drawn, column(3, 2), identity(2), rates, rho)
    assert account.growth == account.work + account.bonus
    assert account.work <= 4 * rho * account.removed
    assert account.bonus > 0


@pytest.mark.claim("ours-budget-batches", shows="holds", by="property")
@problems(any_seed, any_scale, lambda chance: [chance.number(0, 1) for _ in range(chance.whole(2, 3))])
def test_the_account_of_drawn_batches(seed: int, rho: float, rates: list[float]) -> None:
    """Quadratics with a common minimum or none, in two or three dimensions."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(2, 4))
    A = [(B @ B.T) / m for B in rng.standard_normal((2, m, m))]
    centres = rng.standard_normal((2, m, 1)) * rng.integers(0, 2)
    losses = [lambda x, a=a, c=c: float(((x - c).T @ a @ (x - c)).item()) / 2 for a, c in zip(A, centres, strict=True)]
    gradients = [lambda x, a=a, c=c: a @ (x - c) for a, c in zip(A, centres, strict=True)]
    # Kept near one by the rate: what grows without bound here is the bonus.
    drawn = list(zip(losses, gradients, strict=True))
    found = budget.batch_account(drawn, rng.standard_normal((m, 1)), np.eye(m), rates, min(rho, 1) / 10)
    size = 1 + abs(found.growth) + abs(found.bonus) + abs(found.removed)
    assert abs(found.growth - found.work - found.bonus) <= 1e-10 * size
    assert found.work <= 4 * (min(rho, 1) / 10) * found.removed + 1e-10 * size


@pytest.mark.claim("ours-budget-batches", shows="holds", by="numeric")
def test_the_rate_keeps_the_budget_of_the_flow() -> None:
    """Booth's function from far away, short steps: tr P ends at the budget, and the trace is all the budget says."""
    start = np.array([[-6.0], [2.0]])
    loss = objectives.booth(start).item()
    for wanted in (1.5, 2.0, 10.0):
        rho = budget.rate_for_budget(wanted, 2, loss)
        solved = conservation.solve_flow(
            objectives.booth_gradient, start, np.eye(2), rho, np.linspace(0, 10 / wanted**0.5, 3)
        )
        end = inner(solved.factors[-1], solved.factors[-1])
        assert end == pytest.approx(2 * wanted, rel=1e-6)


@pytest.mark.claim("ours-budget-noise", shows="holds", by="exact")
@pytest.mark.parametrize("a", [F(1, 10), F(3, 4)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_noise_breaks_the_budget(steps: int, a: Fraction) -> None:
    """All sequences of coins: no loss, and the mean of P grows geometrically; its typical size falls if a^2 < 1/2."""
    plain, logs, exponents = F(0), 0.0, []
    for coins in itertools.product((F(1), F(-1)), repeat=steps + 1):
        M = structure.factor_after(fractions([[1]]), [fractions([[c]]) for c in coins], a).item()
        plain += M * M / 2 ** (steps + 1)
        logs += 2 * math.log(abs(M)) / 2 ** (steps + 1)
        pairs = [np.array([[float(c)]]) for c in coins]
        m = np.eye(1)
        for h, g in itertools.pairwise(pairs):
            m = exponential.exponential_step(g, h, m, float(a))
        exponents.append(m.item() ** 2)
    factor, exponential_factor = budget.coin_growth(a)
    assert plain == factor**steps > 1
    assert logs == pytest.approx(steps * math.log(abs(1 - 4 * a**2)), rel=1e-12)
    assert (logs < 0) == (a**2 < F(1, 2))
    assert np.mean(exponents) == pytest.approx(exponential_factor**steps, rel=1e-12)
    assert abs(np.mean(np.log(exponents))) < 1e-12


@pytest.mark.claim("ours-budget-noise", shows="holds", by="symbolic")
def test_the_mean_factor_over_a_coin() -> None:
    a = sp.Symbol("a", real=True)
    assert sp.expand(((1 + 2 * a) ** 2 + (1 - 2 * a) ** 2) / 2 - (1 + 4 * a**2)) == 0
    assert budget.coin_growth(F(1, 2))[0] == 2


@pytest.mark.claim("ours-budget-adam", shows="holds", by="exact")
@pytest.mark.parametrize("slope", [F(1), F(1, 10), F(1, 1000)])
def test_adam_on_m_is_paid_for_nothing(slope: Fraction) -> None:
    """A linear loss: the smaller its slope, the more trace for each unit of loss, without bound."""
    rho, lr, one = F(1, 10), F(1), fractions([[1]])
    g = fractions([[slope]])
    moved = lr * (one @ (one.T @ g))
    removed = inner(g, moved)
    adam = structure.sign_step(one, hypergradient.hypergradient(g, g, one, lr), rho)
    assert inner(adam, adam) - 1 == (1 + rho) ** 2 - 1
    assert (inner(adam, adam) - 1) / (4 * rho * removed) >= F(1, 2) / slope**2
    # Plain steps: the trace follows the loss, up to the second order.
    plain = one - rho * hypergradient.hypergradient(g, g, one, lr)
    work, bonus = conservation.trace_gain(g, g, one, lr, rho)
    assert inner(plain, plain) - 1 == work + bonus
    assert work == 4 * rho * removed


@pytest.mark.claim("ours-budget-adam", shows="holds", by="symbolic")
def test_adams_step_forgets_the_slope() -> None:
    """`tr P` after Adam's first step doesn't depend on the slope, the loss that was removed does."""
    c, rho, lr = sp.symbols("c rho epsilon", positive=True)
    g, one = sp.Matrix([[c]]), sp.Matrix([[1]])
    slope = hypergradient.hypergradient(g, g, one, lr)
    after = one - rho * slope.applyfunc(sp.sign)
    assert sp.diff(inner(after, after), c) == 0
    assert sp.simplify(inner(g, lr * g) - lr * c**2) == 0


VALUES, CHANCES = [F(-1), F(3)], [F(2, 3), F(1, 3)]  # the mean gradient is 1/3: down is towards minus


@pytest.mark.claim("ours-order-uphill", shows="holds", by="exact")
def test_seeing_the_batch_first_can_climb() -> None:
    """P is b where two gradients agree and 1/b where not: M first climbs for b > 2, the paper's order never."""
    mean = sum(v * c for v, c in zip(VALUES, CHANCES, strict=True))
    for b in (F(3, 2), F(2), F(5, 2), F(10)):
        first = budget.mean_move(VALUES, CHANCES, lambda g, h, b=b: b if g * h > 0 else 1 / b)
        assert first == (4 / b - b) / 9
        assert (first * mean < 0) == (b > 2)
        # The paper's order: P has seen h and the gradient before, and not g.
        scale = sum(
            p * q * (b if g * h > 0 else 1 / b)
            for (g, p), (h, q) in itertools.product(zip(VALUES, CHANCES, strict=True), repeat=2)
        )
        late = budget.mean_move(VALUES, CHANCES, lambda g, h, s=scale: s)
        assert late * mean > 0


@pytest.mark.claim("ours-order-uphill", shows="holds", by="property")
@problems(any_seed, number(1.1, 20))
def test_a_p_that_has_not_seen_the_batch_never_climbs(seed: int, b: float) -> None:
    """For drawn distributions of any mean and any positive scale that the gradients before it decide."""
    rng = np.random.default_rng(seed)
    values, weights = rng.standard_normal(4), rng.dirichlet(np.ones(4))
    mean = float(values @ weights)
    scales_by_h = {float(h): b ** rng.uniform(-1, 1) for h in values}
    late = budget.mean_move(list(values), list(weights), lambda g, h: scales_by_h[float(h)])
    assert late * mean >= -1e-12
    assert abs(late) >= abs(mean) / b - 1e-12


def test_the_uphill_step_is_what_fop_does() -> None:
    """`exponential_step` with a long rate, then the budget: the P of the example, from FOP's own update."""
    for g, h, wanted in ((-1.0, -1.0, 4.0), (-1.0, 3.0, 0.25), (3.0, -1.0, 0.25), (3.0, 3.0, 4.0)):
        M = exponential.exponential_step(np.array([[g]]), np.array([[h]]), np.eye(1), 10.0)
        assert float(np.clip(M.item() ** 2, 0.25, 4.0)) == wanted


@pytest.mark.claim("ours-budget-bound", shows="holds", by="property")
@problems(situation, number(1, 20), number(0.01, 1))
def test_a_bounded_p_descends(problem, b, share) -> None:
    """Any P within the budget, chosen by anyone: full batches, convex or not."""
    found, theta, P, low, high = problem
    L = float(found.smoothness)
    # Its logarithm's range shifted and shrunk into the budget.
    values, vectors = np.linalg.eigh(P)
    logs = np.log(values) - (np.log(low) + np.log(high)) / 2
    logs *= np.log(b) / max(np.abs(logs).max(), np.log(b), 1e-12)
    P = (vectors * np.exp(logs)) @ vectors.T
    lr = share / (b * L)
    g = found.gradient(theta)
    change = float(found.value(theta - lr * P @ g) - found.value(theta))
    bound = budget.bounded_change(float(np.sum(g * g)), 0.0, lr, L, b)
    assert change <= bound + 1e-11 * (1 + abs(float(found.value(theta))))


@pytest.mark.claim("ours-budget-bound", shows="holds", by="exact")
def test_a_bounded_p_descends_in_the_mean_over_batches() -> None:
    """Two batches in fractions, at the longest step allowed, with the P of the budget's corners."""
    h, b = [F(1), F(4)], F(3)
    shift = [column(1, 2), column(-1, -2)]  # the noise: mean zero
    theta, L = column(2, 1), F(4)
    lr = 1 / (b * L)
    value = lambda x: sum(a * y * y / 2 for a, y in zip(h, x.ravel(), strict=True))  # noqa: E731
    g = column(*(a * y for a, y in zip(h, theta.ravel(), strict=True)))
    variance = sum(inner(s, s) for s in shift) / 2
    for corners in itertools.product((b, 1 / b), repeat=2):
        P = fractions([[corners[0], 0], [0, corners[1]]])
        mean = sum(value(theta - lr * P @ (g + s)) for s in shift) / 2
        assert mean - value(theta) <= budget.bounded_change(inner(g, g), variance, lr, L, b)
    # Without the noise's term it would be false.
    theta = column(0, 0)
    mean = sum(value(theta - lr * b * s) for s in shift) / 2
    assert mean > budget.bounded_change(0, 0, lr, L, b)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="chances: expected numbers that add up to 1"):
        budget.mean_move([1, 2], [F(1, 2), F(1, 3)], lambda g, h: 1)
    with pytest.raises(ValueError, match="budget: expected a number in"):
        budget.rate_for_budget(0.5, 1, 1)
