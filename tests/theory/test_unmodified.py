"""Theorem 1B: FOP as it is, with a learning rate that knows rho and the loss to remove."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from fractions import Fraction as F  # noqa: N817
from typing import Any, NamedTuple

import numpy as np
import pytest
import sympy as sp
from hypothesis import assume

from fop_theory import conservation, convergence, objectives, structure, unmodified
from fop_theory.convergence import ORDERS
from fop_theory.hypergradient import symmetric_product
from tests.helpers import counterexample, squared
from tests.strategies import any_seed, drawn, number, one_of, problems, smooth_problem, whole

C, U, S = sp.symbols("c u s", positive=True)
each_order = pytest.mark.parametrize("order", ORDERS)


@dataclass(frozen=True)
class Situation:
    """A problem, a start, and settings that the theorem admits: its learning rate at the limit."""

    objective: objectives.Objective
    theta: Any
    M: Any
    identity: int
    order: str
    hyper_lr: float
    share: float

    @functools.cached_property
    def gap(self) -> float:
        return self.objective.value(self.theta) - self.objective.minimum

    @functools.cached_property
    def trace(self) -> float:
        return self.identity + float((self.M * self.M).sum())

    @functools.cached_property
    def constant(self) -> float:
        return unmodified.growth_constant(self.share, self.order, self.objective.convex)

    @functools.cached_property
    def lr(self) -> float:
        return unmodified.largest_lr(
            self.trace, self.gap, self.objective.smoothness, self.hyper_lr, self.share, self.constant
        )

    @functools.cached_property
    def limit(self) -> float:
        return unmodified.trace_limit(self.trace, self.gap, self.hyper_lr, self.constant)


def situation_of(orders=ORDERS, convex=None):
    """Hyper learning rates from 1e-3 to 1e4, P of any rank from 1e-4 to 1e2, beta 0 and 1, both orders."""

    def situation(chance) -> Situation:
        objective, theta = smooth_problem(chance)
        assume(convex in (None, objective.convex))
        M = chance.rng.standard_normal((objective.dim, chance.whole(1, 4))) * 10.0 ** chance.number(-2, 1)
        return Situation(
            objective, theta, M, chance.whole(0, 1), chance.one_of(*orders),
            10.0 ** chance.number(-3, 4), chance.number(0.02, 1),
        )  # fmt: skip

    return situation


class Pair(NamedTuple):
    """Two steps in a row: g and h after and before, M that made the step between them, where to, the gaps, q."""

    g: Any
    h: Any
    M: Any
    rate: float
    theta: Any
    before: float
    after: float
    q: float
    move: Any
    rounding: float

    @property
    def drop(self) -> float:
        return self.before - self.after

    @property
    def turned(self) -> Any:
        """The M that the update makes of `M` out of g and h."""
        return structure.multiplier(self.g, self.h, self.rate) @ self.M


def length(vector) -> float:
    return float(np.sqrt((vector * vector).sum()))


def follow(situation: Situation, steps: int = 12) -> list[Pair]:
    """The run, step by step."""
    f, lr, rate = situation.objective, situation.lr, situation.hyper_lr * situation.lr
    run = convergence.learn(
        f.gradient, situation.theta, situation.M, rate, lambda t, P: lr, steps, situation.order, situation.identity
    )
    pairs, before = [], situation.gap
    for last, now in itertools.pairwise(run):
        after, h = f.value(now.theta) - f.minimum, last.gradient
        image = situation.identity * h + last.M @ (last.M.T @ h)
        # Not the difference of two thetas: far out it would lose the digits of a short step.
        q, move = float((h * image).sum()), lr * image
        reach = length(now.theta) + length(move)
        if min(length(h), length(now.gradient)) < 1e-8 * (f.smoothness * reach + f.smoothness**0.5):
            break  # A gradient so small is rounding in good part.
        rounding = 1e-13 * (abs(before + f.minimum) + abs(f.minimum) + f.smoothness * reach**2)
        pairs.append(Pair(now.gradient, h, last.M, rate, now.theta, before, after, q, move, rounding))
        before = after
    return pairs


# ---------------------------------------------------------------------------------------
# The lemmas


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@pytest.mark.claim("ours-theorem-1b-paper-order", shows="holds", by="property")
@problems(situation_of())
def test_every_step_descends(situation) -> None:
    """(ii): the loss falls by at least `lr (1 - c/2) q`."""
    for pair in follow(situation):
        assert pair.drop >= unmodified.least_drop(pair.q, situation.lr, situation.share) - pair.rounding


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@problems(situation_of())
def test_the_drop_for_the_work_that_the_new_gradient_does(situation) -> None:
    """The first lemma, for both kinds of J."""
    for pair in follow(situation):
        if pair.q * situation.lr <= 1e3 * pair.rounding:
            continue
        work = float((pair.g * pair.move).sum()) / (situation.lr * pair.q)
        least = unmodified.drop_given_work(work, situation.share, situation.objective.convex)
        assert pair.drop >= situation.lr * pair.q * least - pair.rounding


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="symbolic")
def test_the_first_lemma_from_the_interpolation_inequalities() -> None:
    """With x = lr q = 1, e = L |d|^2 <= c and |g - h|^2 >= L (1 - u)^2 / e (Cauchy and Schwarz).

    Convex: `drop >= u + |g - h|^2 / (2L)`. Else `drop >= (1 + u)/2 + |g - h|^2 / (4L) - e/4`. Both fall in e.
    """
    e = sp.Symbol("e", positive=True)
    change = (1 - U) ** 2 / e  # |g - h|^2 / L at the least
    for convex, drop in ((True, U + change / 2), (False, (1 + U) / 2 + change / 4 - e / 4)):
        assert sp.simplify(drop.subs(e, C) - unmodified.drop_given_work(U, C, convex)) == 0
        slope = sp.simplify(-sp.diff(drop, e) * 4 * e**2)
        assert sp.simplify(slope - (2 * (1 - U) ** 2 if convex else (1 - U) ** 2 + e**2)) == 0


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="exact")
@pytest.mark.parametrize("c", [F(1), F(1, 2), F(1, 10)])
def test_the_first_lemma_is_attained(c) -> None:
    """Curvature L everywhere: u = 1 - c. Curvature -L (nonconvex): u = 1 + c. In units L = h = 1, lr P = c."""
    for curvature, kinds in ((1, (True, False)), (-1, (False,))):
        g, move = 1 - curvature * c, c
        drop = c - curvature * move**2 / 2
        for convex in kinds:
            assert drop == c * unmodified.drop_given_work(g, c, convex)
    assert unmodified.drop_given_work(1 - c, c, True) == 1 - c / 2


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="symbolic")
def test_the_price_of_a_step_for_convex_losses() -> None:
    """`(A + B s + C s^2) drop(u) - 4 u - s` is a parabola in u that opens upward and has no negative value.

    Four times its leading and its last coefficient, less the middle one's square: two terms that aren't negative.
    """
    first, second, third = unmodified.price(C, True)
    paid = (first + second * S + third * S**2) * unmodified.drop_given_work(U, C, True) - 4 * U - S
    a2, a1, a0 = sp.Poly(sp.expand(paid), U).all_coeffs()
    assert sp.simplify(a2 - (first + second * S + third * S**2) / (2 * C)) == 0
    free = S**3 * (1 - C) / 4 + S**4 * C * (2 - C) / 64
    assert sp.simplify(4 * a2 * a0 - a1**2 - free) == 0


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="symbolic")
def test_the_price_of_a_step_for_other_losses() -> None:
    """The same with `r = sqrt(1 + 2 c - c^2)`; the parabola's discriminant, in w = s + 4 (1 - c).

    A price Phi serves from `(2 - c) Phi = w + sqrt(w^2 + 32 c (2 - c))` on, and our A + B s + C s^2 lies above that:
    the square of `(2 - c)(A + B s + C s^2) - w` exceeds that by two terms.
    """
    r, phi = sp.symbols("r Phi", positive=True)
    k = 1 + 2 * C - C**2
    drop = unmodified.drop_given_work(U, C, False)
    a2, a1, a0 = sp.Poly(sp.expand(phi * drop - 4 * U - S), U).all_coeffs()
    w = S + 4 * (1 - C)
    # 4 a2 a0 - a1^2 >= 0 exactly where Phi is at least the root.
    least = ((2 - C) * phi - w) ** 2 - (w**2 + 32 * C * (2 - C))
    assert sp.simplify(4 * a2 * a0 - a1**2 - least / (2 * C * (2 - C))) == 0
    price = [sp.sympify(x).subs(sp.sqrt(k), r) for x in unmodified.price(C, False)]
    price[2] = C / (4 * r**3)
    assert sp.simplify(unmodified.price(C, False)[2] - price[2].subs(r, sp.sqrt(k))) == 0
    above = (2 - C) * (price[0] + price[1] * S + price[2] * S**2) - w
    rest = above**2 - w**2 - 32 * C * (2 - C)
    free = S**3 * (1 - C) * (2 - C) * C / (2 * r**4) + S**4 * ((2 - C) * C / (4 * r**3)) ** 2
    assert sp.rem(sp.numer(sp.together(rest - free)), r**2 - k, r) == 0


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@problems(number(0.01, 1), number(0, 50), number(-1, 2), one_of(False, True))
def test_the_price_of_a_step_in_numbers(c, s, u, convex) -> None:
    first, second, third = unmodified.price(c, convex)
    paid = (first + second * s + third * s**2) * unmodified.drop_given_work(u, c, convex)
    assert paid >= (4 * u + s) * (1 - 1e-12) - 1e-12


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@problems(situation_of())
def test_no_gradient_grows_in_the_metric_of_the_step(situation) -> None:
    """`|M^T g| <= sqrt(q)` for convex J, else (1 + c) sqrt(q): M is the one that made the step."""
    factor = 1 if situation.objective.convex else 1 + situation.share
    for pair in follow(situation):
        size = np.sqrt(squared(pair.M.T @ pair.g))
        assert size <= factor * np.sqrt(max(pair.q, 0)) + 1e-9 * np.linalg.norm(pair.M) * np.linalg.norm(pair.h)


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@problems(situation_of(("m-first",)))
def test_what_one_update_adds_to_the_trace(situation) -> None:
    """The second lemma, and both together: at most `rho drop (A + B s + C s^2)`."""
    f, lr, rho, c = situation.objective, situation.lr, situation.hyper_lr, situation.share
    first, second, third = unmodified.price(c, f.convex)
    for pair in follow(situation):
        s = unmodified.second_order(c, f.convex) * rho * lr * f.smoothness * (pair.before + pair.after)
        change = (rho * lr) ** 2 * squared(symmetric_product(pair.g, pair.h) @ pair.M)
        slack = 1e-9 * rho * pair.rounding + 1e-9 * change
        assert change <= rho * lr * pair.q * s + slack + 1e-12 * situation.limit
        added = squared(pair.turned) - squared(pair.M)
        price = first + second * s + third * s**2
        assert added <= rho * pair.drop * price + rho * pair.rounding * price + 1e-12 * situation.limit


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="symbolic")
def test_the_factor_of_the_second_order() -> None:
    """`|S M|_F <= |g||p| + |h||r|` with p = M^T h, r = M^T g; Cauchy and Schwarz, `|g|^2 <= 2 L gap`, |r| <= f |p|.

    f = 1 for convex J, else 1 + c, and curvature -L attains that: `M^T g = (1 + c) M^T h`.
    """
    a, rho, lr, L, x, y, q = sp.symbols("a rho epsilon L x y q", positive=True)
    for convex, f in ((True, 1), (False, 1 + C)):
        bound = a**2 * 2 * L * (x + y) * (1 + f**2) * q
        s = unmodified.second_order(C, convex) * rho * lr * L * (x + y)
        assert sp.simplify(bound.subs(a, rho * lr) - rho * lr * q * s) == 0
    g, h, p, r = sp.symbols("g h p r", positive=True)
    assert sp.expand((g**2 + h**2) * (p**2 + r**2) - (g * p + h * r) ** 2 - (g * r - h * p) ** 2) == 0


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="symbolic")
def test_the_sums_telescope() -> None:
    """`(x - y)(x + y) = x^2 - y^2`, and `(x - y)(x + y)^2 <= (4/3)(x^3 - y^3)` for x >= y: a cube is left."""
    x, y = sp.symbols("x y")
    assert sp.expand((x - y) * (x + y) - (x**2 - y**2)) == 0
    assert sp.expand(sp.Rational(4, 3) * (x**3 - y**3) - (x - y) * (x + y) ** 2 - (x - y) ** 3 / 3) == 0


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@pytest.mark.claim("ours-theorem-1b-paper-order", shows="holds", by="property")
@problems(situation_of())
def test_the_negative_eigenvalue_of_an_update(situation) -> None:
    """`s <= |g - h|^2 / 2 <= c L lr q / 2`: what an update can take from the smallest eigenvalue."""
    f = situation.objective
    for pair in follow(situation):
        s = structure.negative_part(pair.g, pair.h)
        bound = situation.share * f.smoothness * situation.lr * pair.q / 2
        assert s <= bound * (1 + 1e-9) + 1e-12 * np.linalg.norm(pair.g) * np.linalg.norm(pair.h)


# ---------------------------------------------------------------------------------------
# The theorem


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="symbolic")
@pytest.mark.claim("ours-theorem-1b-paper-order", shows="holds", by="symbolic")
def test_the_constant_closes_the_induction() -> None:
    """K is where what is added, in units of rho gap and with `rho lr L gap <= c / K`, is K itself."""
    for c in (1.0, 0.5, 0.01):
        for convex in (True, False):
            first, second, third = unmodified.price(c, convex)
            factor = unmodified.second_order(c, convex)
            K = unmodified.growth_constant(c, "m-first", convex)
            added = first + second * factor * c / K + 4 / 3 * third * (factor * c / K) ** 2
            assert added == pytest.approx(K, rel=1e-12)
            K = unmodified.growth_constant(c, "paper", convex)
            added = 8 * (1 + c) / (2 - c) + 4 * (2 + c) ** 2 / (2 - c) * c / K
            assert added == pytest.approx(K, rel=1e-12)
    # The paper's order with c = 1: 16 + 36/K = K.
    assert unmodified.growth_constant(1.0, "paper", convex=True) == pytest.approx(18, rel=1e-14)
    assert unmodified.growth_constant(1.0, "m-first", convex=True) < 4.93
    assert unmodified.growth_constant(1.0, "m-first", convex=False) < 7.26
    limit = [sp.limit(x, C, 0) for x in unmodified.price(C, False)]
    assert limit == [4, 1, 0]
    assert sp.limit(8 * (1 + C) / (2 - C), C, 0) == 4


@pytest.mark.claim("ours-theorem-1b-paper-order", shows="holds", by="symbolic")
def test_the_two_terms_of_algorithm_1s_order() -> None:
    """With N^2 = sum lr q <= gap / (1 - c/2): work at most (1 + c) N^2; |S M|^2 sums to 2 L gap (2 + c)^2 N^2 / lr."""
    N2 = 1 / (1 - C / 2)
    assert sp.simplify(4 * (1 + C) * N2 - 8 * (1 + C) / (2 - C)) == 0
    assert sp.simplify(2 * (2 + C) ** 2 * N2 - 4 * (2 + C) ** 2 / (2 - C)) == 0


@pytest.mark.claim("ours-theorem-1b-paper-order", shows="holds", by="property")
@problems(situation_of(("paper",)))
def test_what_algorithm_1s_order_adds_to_the_trace(situation) -> None:
    """Each term by its own bound: the work with the step to come, and the second order."""
    f, lr, c = situation.objective, situation.lr, situation.share
    pairs = follow(situation)
    for last, now in itertools.pairwise(pairs):
        # M_t made `now`; the update of M_t uses the gradients before and after `last`.
        g, h, M = last.g, last.h, now.M
        tiny = 1e-9 * squared(M) * np.linalg.norm(g) * np.linalg.norm(h)
        work = float((h * now.move).sum())
        q_last, q = max(last.q, 0.0), max(now.q, 0.0)
        assert work <= lr * (q + c * (q + q_last) / 2) + lr * tiny
        assert float(((M.T @ g) * (M.T @ h)).sum()) * lr <= work + lr * tiny
        slope = np.sqrt(2 * f.smoothness * (situation.gap + pairs[0].rounding))
        size = np.sqrt(squared(symmetric_product(g, h) @ M))
        assert size <= slope * (2 * np.sqrt(q) + c * np.sqrt(q_last)) + np.sqrt(tiny) * slope * 1e-3 + 1e-9 * size


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@pytest.mark.claim("ours-theorem-1b-paper-order", shows="holds", by="property")
@problems(situation_of(), one_of(8, 40))
def test_theorem_1b(situation, steps) -> None:
    """(i) the trace and (iii) the smallest eigenvalue, along the whole run; (iv) the gradients; the rates."""
    f, lr, c, K = situation.objective, situation.lr, situation.share, situation.constant
    pairs = follow(situation, steps)
    start = float(np.linalg.eigvalsh(situation.M @ situation.M.T)[0])
    floor = unmodified.eigenvalue_floor(c, K) * start
    spread = 1e-9 * situation.limit
    for pair in pairs:
        assert situation.identity + squared(pair.M) <= situation.limit * (1 + 1e-9)
        assert float(np.linalg.eigvalsh(pair.M @ pair.M.T)[0]) >= floor - spread
    low = situation.identity + floor
    if low <= 1e-6 * situation.limit:
        return
    total = sum(squared(pair.h) for pair in pairs)
    noise = sum(pair.rounding for pair in pairs)
    assert total <= unmodified.squared_gradients(situation.gap + noise, lr, low, c) * (1 + 1e-9)
    if f.pl is not None and pairs:
        last = pairs[-1]
        bound = unmodified.pl_factor(lr, low, c, f.pl) ** len(pairs) * situation.gap
        assert last.after <= bound * (1 + 1e-9) + noise


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@pytest.mark.claim("ours-theorem-1b-paper-order", shows="holds", by="property")
@problems(whole(1, 3), any_seed, one_of(False, True), number(-3, 4), number(0.05, 1), one_of(*ORDERS))
def test_theorem_1b_for_convex_losses(n, seed, quadratic, log_rho, share, order) -> None:
    """(v): the gap falls as 1 / steps. The only minimizer is 0, so its distance is known."""
    rng = np.random.default_rng(seed)
    f = objectives.diagonal_quadratic((10.0 ** rng.uniform(-2, 0, n)).tolist()) if quadratic else objectives.huber(n)
    theta = rng.standard_normal((n, 1)) * 10.0 ** rng.uniform(-1, 1)
    situation = Situation(f, theta, rng.standard_normal((n, n)), 0, order, 10.0**log_rho, share)
    pairs = follow(situation, 25)
    start = float(np.linalg.eigvalsh(situation.M @ situation.M.T)[0])
    low = unmodified.eigenvalue_floor(share, situation.constant) * start
    radius = max(map(length, (theta, *(pair.theta for pair in pairs))))
    for steps, pair in enumerate(pairs, start=1):
        assert pair.after <= unmodified.convex_gap(steps, situation.lr, low, share, radius) * (1 + 1e-9) + pair.rounding


def test_the_search_finds_smaller_constants_false() -> None:
    """With a bound of `trace + 3.8 rho gap` hypothesis finds a run that breaks it: the properties can fail."""

    def grows_more(situation) -> bool:
        limit = unmodified.trace_limit(situation.trace, situation.gap, situation.hyper_lr, 3.8)
        return squared(follow(situation, 150)[-1].M) > limit

    found = drawn(situation_of(convex=True))()
    counterexample(found.map(lambda s: replace(s, share=0.1, M=s.M * 0.01, identity=0, hyper_lr=10.0)), grows_more)


@pytest.mark.claim("ours-growth-limit", shows="holds", by="symbolic")
def test_the_constant_cannot_be_less_than_four() -> None:
    """The flow, which short steps follow: `tr P + 4 rho J` is constant and J falls to its least value.

    On a parabola J tends to 0, so the trace gains exactly 4 rho gap; for every P_0 > 0, rho and curvature.
    """
    t, J, P, h, rho = sp.symbols("t J P h rho", positive=True)
    loss = conservation.one_dimensional_loss(t, J, P, h, rho)
    assert sp.limit(loss, t, sp.oo) == 0
    gained = conservation.conserved(sp.Matrix([sp.sqrt(P)]), J, rho) - conservation.conserved(sp.zeros(1, 1), loss, rho)
    assert sp.limit(gained - P, t, sp.oo) == 4 * rho * J


@pytest.mark.claim("ours-growth-limit", shows="holds", by="numeric")
@each_order
def test_short_steps_approach_four(order) -> None:
    """The share c from 1/10 to 1/1000, a parabola with P_0 = 1/1000: the growth tends to 4 and K(c) closes in on it."""
    f, theta = objectives.diagonal_quadratic([1.0]), np.array([[1.0]])
    gaps = []
    for share in (0.1, 0.01, 0.001):
        situation = Situation(f, theta, np.array([[0.03]]), 0, order, 1.0, share)
        last = follow(situation, round(8 / share))[-1].turned
        growth = (squared(last) - squared(situation.M)) / (situation.hyper_lr * situation.gap)
        assert growth <= situation.constant
        gaps.append((abs(growth - 4), situation.constant - 4))
    assert all(max(gap) < 9 * share for gap, share in zip(gaps, (0.1, 0.01, 0.001), strict=True))


# ---------------------------------------------------------------------------------------
# The term with rho gap is needed


@pytest.mark.claim("ours-rho-gap-needed", shows="holds", by="symbolic")
@each_order
def test_the_parabola_in_two_numbers(order) -> None:
    """One step of FOP on `h x^2 / 2` is `parabola_step` in `z = lr h P`, `w = sqrt(a) h x`."""
    x, x_last, M, h, lr, rho = sp.symbols("x x_last M h epsilon rho", positive=True)
    a, root = rho * lr, sp.sqrt(rho * lr)
    after = x - lr * M**2 * h * x
    pair = h * after * h * x if order == "m-first" else h * x * h * x_last
    turned = (1 + 2 * a * pair) * M
    z, w = unmodified.parabola_step(lr * h * M**2, root * h * x, root * h * x_last, order)
    assert sp.simplify(w - root * h * after) == 0
    assert sp.simplify(z - lr * h * turned**2) == 0


@pytest.mark.claim("ours-rho-gap-needed", shows="holds", by="symbolic")
@each_order
def test_the_diverging_states_reproduce_themselves(order) -> None:
    """With z = 3 + y, w^2 = 1/2 + v: |w'| >= 2 |w|, `w' w <= -1`, and |1 + 2 pair| >= 1, so that z does not fall."""
    y, v = sp.symbols("y v", nonnegative=True)
    z, w = 3 + y, sp.sqrt(sp.Rational(1, 2) + v)
    _, after = unmodified.parabola_step(z, w, -1 / w, order)
    assert sp.expand(after + (2 + y) * w) == 0
    assert sp.expand(-(after * w) - 1 - (y / 2 + 2 * v + y * v)) == 0
    # In M-first order the pair is w' w <= -1; in the other it is w w_last <= -1 by assumption.
    pair = sp.Symbol("pair", positive=True)
    assert sp.expand((1 - 2 * (1 + pair)) ** 2 - 1 - 4 * pair * (1 + pair)) == 0


@pytest.mark.claim("ours-rho-gap-needed", shows="holds", by="property")
@problems(number(0.5, 5), number(-3, 3), number(-3, 3), one_of(*ORDERS))
def test_states_that_are_said_to_diverge_do(z, w, w_last, order) -> None:
    state = z, w, w_last
    if unmodified.parabola_diverges(*state, order):
        for _ in range(4):
            after = unmodified.parabola_step(*state, order)
            assert abs(after[1]) >= 2 * abs(state[1])
            assert after[0] >= state[0]
            state = (*after, state[1])


@pytest.mark.claim("ours-stability-edge", shows="holds", by="property")
@problems(number(0.05, 3.95), number(-1, 1), number(-1, 1), one_of(*ORDERS))
def test_states_that_are_said_to_settle_do(z, w, w_last, order) -> None:
    """Drawn around the edge of the settled states; z stays within half its distance to 0 and 2, w goes to 0."""
    reach = min(z, abs(2 - z), abs(4 - z))
    assume(reach > 0.02)  # else it takes too many steps to see
    state = z, reach * w * abs(w), reach * w_last * abs(w_last)
    if unmodified.parabola_settles(*state):
        for _ in range(round(40 / reach)):
            state = (*unmodified.parabola_step(*state, order), state[1])
            assert abs(state[0] - z) <= min(z, 2 - z) / 2
        assert abs(state[1]) < 1e-6


@pytest.mark.claim("ours-rho-gap-needed", shows="holds", by="exact")
@each_order
@pytest.mark.parametrize("z", [F(1, 12), F(1, 3), F(1, 2), F(3, 4)])
def test_a_large_gap_makes_every_learning_rate_diverge(order, z) -> None:
    """Exact, from w = 5 and any z: it reaches a diverging state within three steps once w^2 passes the threshold."""
    threshold = unmodified.enough_to_diverge(z, order)
    w = F(5 if z < F(3, 4) else 20)
    assert w**2 >= float(threshold)
    state: tuple = (z, w, F(0))
    for _ in range(4):
        if unmodified.parabola_diverges(*state, order):
            break
        after = unmodified.parabola_step(*state, order)
        state = (*after, state[1])
    assert unmodified.parabola_diverges(*state, order)
    for _ in range(3):
        after = unmodified.parabola_step(*state, order)
        assert abs(after[1]) >= 2 * abs(state[1])
        state = (*after, state[1])
        assert unmodified.parabola_diverges(*state, order)


@pytest.mark.claim("ours-rho-gap-needed", shows="holds", by="property")
@problems(number(-3, -0.03), number(0, 2), one_of(*ORDERS))
def test_the_threshold_suffices(log_z, log_excess, order) -> None:
    z = 10.0**log_z
    w = float(np.sqrt(unmodified.enough_to_diverge(z, order) * 10.0**log_excess)) * (1 + 1e-9)
    assert unmodified.parabola_fate(z, w, order, steps=5) == [-1]


@pytest.mark.claim("ours-theorem-1b", shows="holds", by="property")
@pytest.mark.claim("ours-theorem-1b-paper-order", shows="holds", by="property")
@problems(number(-3, 2.5), number(0.2, 1), one_of(*ORDERS))
def test_the_theorem_never_admits_a_diverging_parabola(log_ratio, share, order) -> None:
    """The map's fate is certain at every admitted point: it converges."""
    ratio = 10.0**log_ratio  # rho gap over the first trace
    K = unmodified.growth_constant(share, order, convex=True)
    z = unmodified.largest_lr(1.0, ratio, 1.0, 1.0, share, K)
    assert unmodified.parabola_fate(z, np.sqrt(2 * ratio * z), order) == [1]


@pytest.mark.claim("ours-stability-edge", shows="holds", by="numeric")
def test_where_the_parabola_stops_converging() -> None:
    """With `lr L (trace + 4 rho gap) = C`: M first converges at every C up to 2.7, and Algorithm 1's order up to 1.05.

    And at each of 251 ratios M first diverges for some C below 5, the other order for some C below 1.5.
    """
    ratio = 10.0 ** np.arange(1, 6.001, 0.02)[:, None]

    def fates(order, low, high):
        z = np.arange(low, high, 0.01) / (1 + 4 * ratio)
        return unmodified.parabola_fate(z, np.sqrt(2 * ratio * z), order).reshape(z.shape)

    assert len(ratio) == 251
    assert (fates("m-first", 0.1, 2.701) == 1).all()
    assert (fates("paper", 0.1, 1.051) == 1).all()
    assert (fates("m-first", 2.7, 5) == -1).any(axis=1).all()
    assert (fates("paper", 1.05, 1.5) == -1).any(axis=1).all()


@pytest.mark.claim("ours-stability-edge", shows="holds", by="symbolic")
def test_the_numbers_behind_the_settled_states() -> None:
    """With y the largest product: neighbours add up to `y + y / (1 - (1 - r/2)^2)`, and z moves by less than r/2.

    The logarithm of `(1 + 2 p)^2` is at most `4 |p| / (1 - 2 |p|)`; `z (2 - z) <= 2 r`; `exp(x) - 1 <= 1.12 x` to 0.21.
    """
    r, y = sp.symbols("r y", positive=True)
    # r <= 1, so the series is at most 4 y / (3 r), and all together at most 7 y / (3 r).
    assert sp.simplify(1 - (1 - r / 2) ** 2 - r * (1 - r / 4)) == 0
    pairs = F(7, 3) * F(1, 100)  # times 2 - z <= 2
    logarithm = 4 * pairs / (1 - 2 * pairs * 2)  # times 2 - z
    assert float(sp.exp(2 * logarithm)) - 1 <= 1.12 * 2 * float(logarithm)
    assert 2 * 1.12 * logarithm < F(1, 2)
    assert sp.simplify(7 * y / (3 * r) - (y + 4 * y / (3 * r)) - y * (1 / r - 1)) == 0
