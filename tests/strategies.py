"""What is drawn: shapes, gradients, factors and preconditioners of all ranks and conditionings, and problems.

Each kind of problem is one function of a source of chance, and there are two sources. `Drawn` asks hypothesis for
each number, and what fails is made small. `Chance` makes all of them from one seed, in a thirtieth of the time:
`problems` draws whole batches so. Matrices come from a seeded generator with both, not entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from fop_theory import objectives

#: Problems in a batch. It divides every profile's number: 50 problems are 2 batches, 10,000 are 400.
BATCH = 25

#: Dimension of a parameter, number of its columns, rank of a factor.
dims = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)
#: Orders of magnitude that a learning rate or a gradient may have.
scales = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)


class Chance:
    """Numbers from a seed. In two of five draws a number is near an end of its interval, in one of ten at it."""

    def __init__(self, *seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def number(self, low: float, high: float) -> float:
        kind, share = self.rng.random(2).tolist()
        if kind < 0.5:
            near = 0.0 if kind < 0.1 else 10.0 ** (-4 * share)
            share = near if self.rng.random() < 0.5 else 1 - near
        return min(max(low + share * (high - low), float(low)), float(high))

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def one_of(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def fraction(self, low: float | Fraction, high: float | Fraction) -> Fraction:
        """Denominators up to 10,000, small ones as often as large; near the ends as often as `number`."""
        parts = round(10 ** (4 * self.rng.random()))
        share = Fraction(round(parts * self.number(0, 1)), parts)
        return Fraction(low) + share * (Fraction(high) - Fraction(low))


class Drawn:
    """The same numbers from hypothesis."""

    def __init__(self, draw: Callable[[st.SearchStrategy], Any]) -> None:
        self.draw = draw

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.draw(seeds))

    def number(self, low: float, high: float) -> float:
        return self.draw(st.floats(low, high))

    def whole(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def one_of(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))


def drawn(problem: Callable) -> Callable[..., st.SearchStrategy]:
    """The strategy that hypothesis makes of a function of chance."""
    return st.composite(lambda draw, *args, **kwargs: problem(Drawn(draw), *args, **kwargs))


def number(low: float, high: float) -> Callable:
    return lambda chance: chance.number(low, high)


def whole(low: int, high: int) -> Callable:
    return lambda chance: chance.whole(low, high)


def fraction(low: float | Fraction, high: float | Fraction) -> Callable:
    return lambda chance: chance.fraction(low, high)


def one_of(*options: Any) -> Callable:
    return lambda chance: chance.one_of(*options)


def any_seed(chance: Chance) -> int:
    return chance.whole(0, 2**32 - 1)


def any_scale(chance: Chance) -> float:
    """An order of magnitude that a learning rate or a gradient may have."""
    return 10.0 ** chance.number(-3, 3)


def problems(*draws: Callable) -> Callable:
    """Like `given`, for functions of chance: the profile's number counts problems, and they come in batches.

    A failure names the one problem that fails, with `Chance(seed, number)` that draws it again. A problem that does
    not meet what a test assumes does not count, and another one is drawn.
    """

    def decorate(test: Callable) -> Callable:
        def batch(seed: int) -> None:
            counted = 0
            for tried in range(40 * BATCH):
                chance, problem = Chance(seed, tried), None
                try:
                    problem = [draw(chance) for draw in draws]
                    test(*problem)
                except UnsatisfiedAssumption:
                    continue
                except AssertionError as error:
                    raise AssertionError(f"the problem of Chance({seed}, {tried}): {problem!r}\n{error}") from error
                counted += 1
                if counted == BATCH:
                    return
            pytest.fail(f"of {40 * BATCH} problems of seed {seed}, {counted} meet what the test assumes")

        batch.__name__, batch.__qualname__ = test.__name__, test.__qualname__
        batch.__module__, batch.__doc__ = test.__module__, test.__doc__
        found = settings(max_examples=settings.default.max_examples // BATCH)(given(seeds)(batch))
        found.place_as = test  # pytest looks here for the line where a test stands
        return found

    return decorate


def gradient_pair(chance: Chance | Drawn, max_columns: int = 4):
    """`(G, H)`: two gradients `[m, n]`, generic, equal, opposite, orthogonal or one of them zero."""
    m, n = chance.whole(1, 6), chance.whole(1, max_columns)
    G, H = chance.rng.standard_normal((2, m, n))
    kind = chance.one_of("generic", "generic", "equal", "opposite", "orthogonal", "zero")
    if kind in ("equal", "opposite"):
        H = G if kind == "equal" else -G
    elif kind == "orthogonal":
        H = H - G * (np.sum(G * H) / np.sum(G * G))
    elif kind == "zero":
        H = np.zeros((m, n))
    return G * 10.0 ** chance.number(-3, 3), H * 10.0 ** chance.number(-3, 3)


def factor(chance: Chance | Drawn, m: int, max_rank: int = 6):
    """`M: [m, k]` for any k, also k > m, also rank deficient."""
    k = chance.whole(1, max_rank)
    M = chance.rng.standard_normal((m, k))
    if chance.one_of(False, True) and k > 1:
        M[:, -1] = M[:, 0]
    return M * chance.number(0.1, 3)


def definite_matrix(chance: Chance | Drawn, m: int | None = None, max_log_condition: float = 4.0):
    """`(P, low, high)`: symmetric positive definite `[m, m]` and its extreme eigenvalues."""
    m = chance.whole(1, 6) if m is None else m
    rng = chance.rng
    Q, _ = np.linalg.qr(rng.standard_normal((m, m)))
    spread = 10.0 ** -chance.number(0, max_log_condition)
    eigenvalues = np.exp(rng.uniform(np.log(spread), 0, m))
    eigenvalues[0] = 1.0
    if m > 1:
        eigenvalues[-1] = spread
    eigenvalues *= chance.number(0.1, 10)
    P = (Q * eigenvalues) @ Q.T
    return (P + P.T) / 2, float(eigenvalues.min()), float(eigenvalues.max())


def pl_problem(chance: Chance | Drawn, max_dim: int = 4):
    """`(objective, theta)`: a smooth function with a PL constant and a point that is not a minimizer.

    Quadratics (also singular ones), logistic losses with a ridge, and nonconvex functions, also with flat directions.
    """
    n = chance.whole(1, max_dim)
    rng = chance.rng
    kind = chance.one_of("quadratic", "quadratic", "logistic", "wavy", "wavy of A theta")
    if kind == "quadratic":
        low, high = chance.number(-2, 0), chance.number(-1, 1)
        Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
        curvatures = 10.0**high * 10.0 ** (low * rng.random(n))
        curvatures[1:] *= rng.random(n - 1) > 0.2
        A = (Q * curvatures) @ Q.T
        objective = objectives.quadratic((A + A.T) / 2)
    elif kind == "logistic":
        X = rng.standard_normal((chance.whole(2, 12), n)) * chance.number(0.3, 3)
        objective = objectives.logistic(X, rng.choice([-1, 1], len(X)), 10.0 ** chance.number(-3, 0))
    elif kind == "wavy":
        objective = objectives.wavy(10.0 ** rng.uniform(-1, 1, n))
    else:
        A = rng.standard_normal((chance.whole(1, n), n))
        objective = objectives.composed(objectives.wavy(10.0 ** rng.uniform(-1, 1, len(A))), A)
    theta = rng.standard_normal((objective.dim, 1)) * 10.0 ** chance.number(-1, 1)
    return objective, theta


def situation(chance: Chance | Drawn, max_log_condition: float = 4.0):
    """`(objective, theta, P, low, high)`: a PL problem, a point and a positive definite preconditioner."""
    objective, theta = pl_problem(chance)
    return objective, theta, *definite_matrix(chance, objective.dim, max_log_condition)


def smooth_problem(chance: Chance | Drawn, max_dim: int = 3):
    """`(objective, theta)`: a smooth function bounded below, convex or not, with a PL constant or without."""
    kind = chance.one_of("pl", "pl", "huber", "cosine")
    if kind == "pl":
        return pl_problem(chance, max_dim)
    n = chance.whole(1, max_dim)
    rng = chance.rng
    A = np.linalg.qr(rng.standard_normal((n, n)))[0] * 10.0 ** rng.uniform(-1, 0.5, (n, 1))
    outer = objectives.huber(n) if kind == "huber" else objectives.cosine(10.0 ** rng.uniform(-1, 1, n))
    return objectives.composed(outer, A), rng.standard_normal((n, 1)) * 10.0 ** chance.number(-1, 1.5)


gradient_pairs, factors, definite = drawn(gradient_pair), drawn(factor), drawn(definite_matrix)
pl_problems, smooth_problems = drawn(pl_problem), drawn(smooth_problem)
