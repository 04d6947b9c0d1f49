"""Inner products, roots, identities and entrywise functions give one value in every kind of number."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy as sp

from fop_theory import algebra
from tests.helpers import fractions, identity, same

ROWS, OTHER = [[1, -2], [3, 4], [0, 5]], [[2, 7], [-1, 6], [4, -3]]
KINDS = {
    "floats": lambda rows: np.array(rows, dtype=float),
    "fractions": fractions,
    "mpmath": lambda rows: np.array([[mpmath.mpf(x) for x in row] for row in rows]),
    "sympy": sp.Matrix,
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@each_kind
def test_inner_product(kind) -> None:
    expected = sum(x * y for row, other in zip(ROWS, OTHER, strict=True) for x, y in zip(row, other, strict=True))
    assert algebra.inner(kind(ROWS), kind(OTHER)) == expected


def test_inner_product_of_symbolic_size() -> None:
    A = sp.MatrixSymbol("A", *sp.symbols("m n", positive=True, integer=True))
    assert algebra.inner(A, 2 * A) == sp.Trace(A.T * (2 * A))


def test_roots_stay_exact() -> None:
    assert algebra.root(Fraction(4, 9)) == Fraction(2, 3)
    assert isinstance(algebra.root(Fraction(4, 9)), Fraction)
    assert algebra.root(Fraction(1, 2)) ** 2 == sp.Rational(1, 2)
    assert algebra.root(sp.Integer(8)) == 2 * sp.sqrt(2)
    assert algebra.root(2.25) == 1.5
    assert algebra.root(np.array([4.0, 9.0])).tolist() == [2, 3]
    with mpmath.workdps(40):
        assert abs(algebra.root(mpmath.mpf(2)) ** 2 - 2) < mpmath.mpf(10) ** -38


@each_kind
def test_identity(kind) -> None:
    P = kind([[2, 1], [1, 5]])
    assert (algebra.identity_beside(P) + P).tolist() == [[3, 1], [1, 6]]


def test_identity_of_symbolic_size_and_in_fractions() -> None:
    m = sp.Symbol("m", positive=True, integer=True)
    assert algebra.identity_beside(sp.MatrixSymbol("P", m, m)) == sp.Identity(m)
    third = fractions([[Fraction(1, 3), 0], [0, 0]])
    assert same(algebra.identity_beside(third) + third, identity(2) + third)


@each_kind
def test_entry_by_entry(kind) -> None:
    found = algebra.elementwise(lambda x, y: x * y + 1, kind(ROWS), kind(OTHER))
    expected = [[x * y + 1 for x, y in zip(row, other, strict=True)] for row, other in zip(ROWS, OTHER, strict=True)]
    assert found.tolist() == expected
