"""What several test files need: exact matrices, symbols, counterexamples, confidence intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp
from hypothesis import find, settings
from hypothesis.strategies import SearchStrategy
from scipy.stats import t as student


def fractions(rows: Iterable[Iterable]) -> np.ndarray:
    """A matrix of exact numbers."""
    return np.array([[Fraction(x) for x in row] for row in rows], dtype=object)


def column(*entries: int | Fraction) -> np.ndarray:
    """A vector of exact numbers, `[n, 1]`."""
    return fractions([x] for x in entries)


def identity(m: int) -> np.ndarray:
    return fractions(np.eye(m, dtype=int).tolist())


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small whole numbers as fractions: sums and products are exact."""
    return np.array([Fraction(int(x)) for x in rng.integers(-3, 4, np.prod(shape))], dtype=object).reshape(shape)


def not_zero(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """The same, not all of them zero."""
    numbers = whole(rng, *shape)
    numbers.flat[0] = numbers.flat[0] or Fraction(1)
    return numbers


def same(A: np.ndarray, B: np.ndarray) -> bool:
    return A.shape == B.shape and bool(np.all(A == B))


class Counted(Fraction):
    """A number that counts the multiplications in which it takes part."""

    products = 0

    def __mul__(self, other: Fraction) -> Counted:
        Counted.products += 1
        return Counted(super().__mul__(other))

    def __add__(self, other: Fraction) -> Counted:
        return Counted(super().__add__(other))


def counted(*shape: int) -> np.ndarray:
    return np.array([Counted(1) for _ in range(math.prod(shape))], dtype=object).reshape(shape)


def zero(expression: sp.Expr) -> bool:
    return sp.simplify(expression) == 0


def squared(X: Any) -> float:
    """`|X|_F^2`."""
    return float((X * X).sum())


def symbols(name: str, m: int, n: int = 1) -> sp.Matrix:
    """A matrix `[m, n]` of real symbols."""
    return sp.Matrix(m, n, sp.symbols(f"{name}:{m * n}", real=True))


def counterexample(strategy: SearchStrategy, breaks: Callable[[Any], bool]) -> Any:
    """What hypothesis finds; it raises `NoSuchExample` when there's nothing to find."""
    return find(strategy, breaks, settings=settings(max_examples=200, database=None), random=random.Random(0))


def interval(samples: np.ndarray, confidence: float = 0.9999) -> tuple[float, float]:
    """Student's confidence interval of the mean. The seeds are fixed: it's wrong never, or always."""
    half = student.ppf((1 + confidence) / 2, len(samples) - 1) * samples.std(ddof=1) / np.sqrt(len(samples))
    return samples.mean() - half, samples.mean() + half
