"""Refusals name the argument, its value and what was expected; all four kinds of numbers pass."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import checks
from tests.strategies import definite, dims, seeds

PASSING = {
    "floats": [[1.0, 2.0], [2.0, 5.0]],
    "array": np.array([[1.0, 2.0], [2.0, 5.0]]),
    "complex": np.array([[1.0 + 1e-20j]]),
    "fractions": np.array([[Fraction(1, 3), Fraction(2)], [Fraction(2), Fraction(50)]], dtype=object),
    "mpmath": np.array([[mpmath.mpf("0.1"), mpmath.mpf(0)], [mpmath.mpf(0), mpmath.mpf(7)]], dtype=object),
    "symbols in an array": np.array([[sp.Symbol("a")]], dtype=object),
    "sympy matrix": sp.Matrix(2, 2, sp.symbols("a:4")),
    "immutable": sp.ImmutableMatrix([[1, 2]]),
    "symbolic size": sp.MatrixSymbol("M", sp.Symbol("m"), sp.Symbol("k")),
    "expression": sp.MatrixSymbol("M", 3, 2) * sp.MatrixSymbol("N", 2, 4),
}


@pytest.mark.parametrize("value", PASSING.values(), ids=PASSING)
def test_matrices_that_pass(value) -> None:
    passed = checks.matrix("M", value)
    if isinstance(value, (sp.MatrixBase, sp.MatrixExpr)):
        assert passed is value
    else:
        assert passed.ndim == 2
        assert (passed == np.asarray(value)).all()


def test_integers_become_floats() -> None:
    assert checks.matrix("M", [[1, 2]]).dtype == float
    assert checks.matrix("M", np.array([[True]])).dtype == float


def test_symbolic_shapes_are_compared() -> None:
    m, k = sp.symbols("m k")
    M = sp.MatrixSymbol("M", m, k)
    assert checks.matrix("M", M, shape=(m, None)) is M
    assert checks.matrix("M", M, shape=((m * m - m) / (m - 1), k)) is M
    with pytest.raises(ValueError, match=r"^M: expected shape \(k, None\), got \(m, k\)$"):
        checks.matrix("M", M, shape=(k, None))
    with pytest.raises(ValueError, match=r"^M: expected shape \(2, 3\), got \(2, 2\)$"):
        checks.matrix("M", sp.eye(2), shape=(2, 3))


DEFINITE = {"symmetric": True, "positive": "definite"}
SEMIDEFINITE = {"symmetric": True, "positive": "semidefinite"}
REFUSED = {
    "text": ("abc", {}, "P: expected numbers, got 'abc'"),
    "texts": ([["a"]], {}, "P: expected numbers, got [['a']]"),
    "nothing": (None, {}, "P: expected numbers, got None"),
    "nothing inside": ([[None, 1]], {}, "P: expected numbers, got [[None, 1]]"),
    "dates": (np.array([["2020-01-01"]], dtype="datetime64[D]"), {}, "P: expected numbers, got [['2020-01-01']]"),
    "a number": (3.0, {}, "P: expected a matrix [m, n], got shape (): 3.0"),
    "a vector": ([1.0, 2.0], {}, "P: expected a matrix [m, n], got shape (2,): [1.0, 2.0]"),
    "a tensor": (np.zeros((1, 1, 1)), {}, "P: expected a matrix [m, n], got shape (1, 1, 1): [[[0.]]]"),
    "ragged": ([[1, 2], [3]], {}, "P: expected a matrix [m, n], got rows of different lengths: [[1, 2], [3]]"),
    "shape": ([[1.0, 2.0]], {"shape": (2, None)}, "P: expected shape (2, None), got (1, 2): [[1. 2.]]"),
    "nan": ([[np.nan]], {}, "P: expected finite numbers, got [[nan]]"),
    "infinite": ([[1.0, -np.inf]], {}, "P: expected finite numbers, got [[  1. -inf]]"),
    "complex nan": (np.array([[complex(0, np.nan)]]), {}, "P: expected finite numbers, got [[0.+nanj]]"),
    "mpmath nan": (np.array([[mpmath.nan]]), {}, "P: expected finite numbers, got [[mpf('nan')]]"),
    "mpmath infinite": (np.array([[mpmath.inf]]), {}, "P: expected finite numbers, got [[mpf('+inf')]]"),
    "sympy infinite": (np.array([[sp.oo]]), {}, "P: expected finite numbers, got [[oo]]"),
    "not square": ([[1.0, 2.0]], {"symmetric": True}, "P: expected a square matrix, got shape (1, 2)"),
    "asymmetric": (
        [[1.0, 2.0], [0.0, 1.0]], {"symmetric": True},
        "P: expected a symmetric matrix, got [[1. 2.]\n [0. 1.]]",
    ),
    "asymmetric fractions": (
        np.array([[1, Fraction(1, 2)], [Fraction(1, 3), 1]], dtype=object), {"symmetric": True},
        "P: expected a symmetric matrix, got [[1 Fraction(1, 2)]\n [Fraction(1, 3) 1]]",
    ),
    "indefinite": (
        [[1.0, 2.0], [2.0, 1.0]], SEMIDEFINITE,
        "P: expected a positive semidefinite matrix, got smallest eigenvalue -1",
    ),
    "singular": ([[0.0]], DEFINITE, "P: expected a positive definite matrix, got smallest eigenvalue 0"),
    "negative fraction": (
        np.array([[Fraction(-1, 4)]]), DEFINITE,
        "P: expected a positive definite matrix, got smallest eigenvalue -0.25",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("value", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_matrices_that_are_refused(value, options, message: str) -> None:
    with pytest.raises(ValueError, match=r"^P: expected ") as caught:
        checks.matrix("P", value, **options)
    assert str(caught.value) == message


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ValueError, match=r"^P: expected finite") as caught:
        checks.matrix("P", np.full((40, 40), np.nan))
    assert len(str(caught.value)) < 170
    with pytest.raises(ValueError, match=r"^P: expected numbers") as caught:
        checks.matrix("P", "x" * 1000)
    assert len(str(caught.value)) < 170


def test_definiteness_has_its_edges() -> None:
    zero = np.zeros((2, 2))
    assert checks.matrix("P", zero, positive="semidefinite") is zero
    assert checks.matrix("P", np.zeros((0, 0)), positive="definite").shape == (0, 0)
    P = np.diag([1.0, -1e-12])  # rounding's size, not an indefinite matrix
    assert checks.matrix("P", P, positive="semidefinite") is P
    with pytest.raises(ValueError, match="positive definite"):
        checks.matrix("P", P, positive="definite")


@given(definite())
def test_definite_matrices_pass_and_their_negatives_do_not(drawn) -> None:
    P, _, _ = drawn
    assert checks.matrix("P", P, symmetric=True, positive="definite") is P
    with pytest.raises(ValueError, match=r"^P: expected a positive semidefinite matrix"):
        checks.matrix("P", -P, positive="semidefinite")


@given(dims, dims, seeds, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_bad_entry_is_enough(m: int, n: int, seed: int, bad: float) -> None:
    rng = np.random.default_rng(seed)
    G = rng.standard_normal((m, n))
    assert checks.matrix("G", G, shape=(m, n)) is G
    G[rng.integers(m), rng.integers(n)] = bad
    with pytest.raises(ValueError, match=r"^G: expected finite numbers, got "):
        checks.matrix("G", G)


@pytest.mark.parametrize(
    "value",
    [1, 0.5, True, np.float32(2), np.int64(3), np.array(0.25), Fraction(1, 3), mpmath.mpf("0.1"), sp.Rational(1, 3),
     sp.sqrt(2), sp.Symbol("epsilon"), sp.Symbol("L") * 2 + 1],
    ids=repr,
)  # fmt: skip
def test_scalars_that_pass(value) -> None:
    assert checks.scalar("lr", value, low=0) == value


SCALARS = {
    "text": ("0.1", {}, "lr: expected a number, got '0.1'"),
    "nothing": (None, {}, "lr: expected a number, got None"),
    "a list": ([0.1], {}, "lr: expected a number, got [0.1]"),
    "a vector": (np.array([0.1]), {}, "lr: expected a number, got [0.1]"),
    "complex": (1j, {}, "lr: expected a real number, got 1j"),
    "complex sympy": (sp.I, {}, "lr: expected a real number, got I"),
    "complex mpmath": (mpmath.mpc(0, 1), {}, "lr: expected a real number, got mpc(real='0.0', imag='1.0')"),
    "nan": (float("nan"), {}, "lr: expected a finite number, got nan"),
    "infinite": (float("inf"), {}, "lr: expected a finite number, got inf"),
    "mpmath infinite": (mpmath.inf, {}, "lr: expected a finite number, got mpf('+inf')"),
    "sympy infinite": (sp.oo, {}, "lr: expected a finite number, got oo"),
    "sympy nan": (sp.nan, {}, "lr: expected a finite number, got nan"),
    "below": (-0.1, {"low": 0}, "lr: expected a number in [0, inf], got -0.1"),
    "above": (Fraction(3, 2), {"low": 0, "high": 1}, "lr: expected a number in [0, 1], got Fraction(3, 2)"),
    "at the edge": (0, {"low": 0, "strict": True}, "lr: expected a number in (0, inf), got 0"),
    "at the upper edge": (1.0, {"high": 1, "strict": True}, "lr: expected a number in (-inf, 1), got 1.0"),
}


@pytest.mark.parametrize(("value", "options", "message"), SCALARS.values(), ids=SCALARS)
def test_scalars_that_are_refused(value, options, message: str) -> None:
    with pytest.raises(ValueError, match=r"^lr: expected a ") as caught:
        checks.scalar("lr", value, **options)
    assert str(caught.value) == message


def test_sizes_are_at_least_one() -> None:
    checks.sizes(m=1, n=sp.Symbol("n"))
    with pytest.raises(ValueError, match=r"n: expected a number in \[1, inf\], got 0"):
        checks.sizes(m=1, n=0)


def test_edges_belong_to_the_closed_interval() -> None:
    assert checks.scalar("delta", 0, low=0, high=1) == 0
    assert checks.scalar("delta", 1, low=0, high=1) == 1
