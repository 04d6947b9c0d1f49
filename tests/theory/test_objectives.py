"""Test functions: gradients, Hessians and the constants that they claim."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import objectives
from tests.helpers import column
from tests.strategies import pl_problems, seeds

TOYS = [
    (objectives.booth, objectives.booth_gradient, lambda x: sp.Matrix(objectives.booth_hessian()).applyfunc(int)),
    (objectives.himmelblau, objectives.himmelblau_gradient, objectives.himmelblau_hessian),
]


@pytest.mark.parametrize(("value", "gradient", "hessian"), TOYS)
def test_toy_gradients_by_sympy(value, gradient, hessian) -> None:
    x = sp.Matrix(sp.symbols("a b"))
    ours, second = gradient(x), hessian(x)
    assert ours.shape == (2, 1)
    assert all((sp.diff(value(x), x[i]) - ours[i]).expand() == 0 for i in range(2))
    assert all((sp.diff(value(x), x[i], x[j]) - second[i, j]).expand() == 0 for i in range(2) for j in range(2))


@pytest.mark.parametrize(("value", "gradient"), [toy[:2] for toy in TOYS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3, 4)])
def test_toys_keep_shape_and_dtype(value, gradient, dtype, shape) -> None:
    x = np.ones(shape, dtype)
    assert value(x).shape == shape[1:]
    assert gradient(x).shape == shape
    assert value(x).dtype == gradient(x).dtype == dtype


def test_toy_minima() -> None:
    assert objectives.booth([1, 3]) == 0
    assert objectives.himmelblau([3, 2]) == 0
    assert objectives.himmelblau(np.array([3.584428, -1.848126])) < 1e-10


@pytest.mark.parametrize("toy", [objectives.booth, objectives.himmelblau_gradient, objectives.himmelblau_hessian])
def test_toys_refuse_bad_points(toy) -> None:
    with pytest.raises(ValueError, match=r"x: expected two coordinates \[2\] or \[2, \.\.\.\], got shape \(3,\)"):
        toy([1, 2, 3])
    with pytest.raises(ValueError, match=r"x: expected two coordinates, got shape \(3, 1\)"):
        toy(sp.Matrix([1, 2, 3]))
    with pytest.raises(ValueError, match="x: expected numbers"):
        toy(np.array([np.nan, 1]))


@given(pl_problems())
def test_drawn_gradients_by_central_differences(problem) -> None:
    objective, theta = problem
    size = 1e-5 * max(1.0, float(np.abs(theta).max()))
    for i, slope in enumerate(objective.gradient(theta).ravel()):
        along = size * np.eye(objective.dim)[:, [i]]
        difference = (objective.value(theta + along) - objective.value(theta - along)) / (2 * size)
        # The third derivative is at most 4 L here (sin^2 has 4); the values carry rounding.
        reach = float(np.linalg.norm(theta)) + 1
        error = 40 * objective.smoothness * reach * size**2 + 1e-14 * objective.smoothness * reach**2 / size
        assert abs(difference - slope) <= error + 1e-14 * abs(objective.value(theta)) / size


@given(pl_problems(), seeds, st.floats(-3, 1))
def test_drawn_gradients_are_l_lipschitz(problem, seed, log_length) -> None:
    objective, theta = problem
    move = np.random.default_rng(seed).standard_normal(theta.shape) * 10.0**log_length
    change = np.linalg.norm(objective.gradient(theta + move) - objective.gradient(theta))
    reach = np.linalg.norm(theta) + np.linalg.norm(move)
    assert change <= objective.smoothness * (np.linalg.norm(move) + 1e-13 * (1 + reach))


def test_constants_of_x2_plus_3_sin2() -> None:
    """`|f'|^2 >= f / 3`, that is mu = 1/6, and `-4 <= f'' <= 8`, for every x: by hand at the ends, intervals between.

    On (0, pi/2] `sin 2x >= 0` and `sin x <= x` give `f'^2 / (2 f) >= 1/2`. From x = 4 on `(2x - 3)^2 / (2 (x^2 + 3))`
    rises and is above 1/6 at 4. Between, interval arithmetic halves until every piece is proved; f is even.
    """
    assert Fraction((2 * 4 - 3) ** 2, 2 * (4**2 + 3)) > Fraction(1, 6)
    x = sp.Symbol("x", positive=True)
    rising = sp.diff((2 * x - 3) ** 2 / (x**2 + 3), x)
    assert sp.factor(rising) == sp.factor(12 * (x + 2) * (2 * x - 3) / (2 * (x**2 + 3)) ** 2 * 2)
    todo, proved = [mpmath.iv.mpf([1.5, 4])], 0
    while todo:
        piece = todo.pop()
        slack = (2 * piece + 3 * mpmath.iv.sin(2 * piece)) ** 2 - (piece**2 + 3 * mpmath.iv.sin(piece) ** 2) / 3
        if slack.a > 0:
            proved += 1
            continue
        assert piece.delta > 1e-6, f"not proved near {piece.mid}"
        middle = piece.mid
        todo += [mpmath.iv.mpf([piece.a, middle]), mpmath.iv.mpf([middle, piece.b])]
    assert proved > 10
    f = x**2 + 3 * sp.sin(x) ** 2
    assert sp.simplify(sp.diff(f, x, 2) - (2 + 6 * sp.cos(2 * x))) == 0
    wavy = objectives.wavy([1.0])
    assert (wavy.smoothness, wavy.pl, wavy.convex) == (8, 1 / 6, False)
    best = min(
        wavy.gradient(np.array([[y]])).item() ** 2 / (2 * wavy.value(np.array([[y]]))) for y in np.linspace(2, 2.4, 401)
    )
    assert 1 / 6 < best < 0.1756


def test_huber_is_exact_and_lipschitz() -> None:
    huber = objectives.huber(2)
    theta = column(Fraction(1, 2), -3)
    assert huber.value(theta) == Fraction(1, 8) + Fraction(5, 2)
    assert (huber.gradient(theta) == column(Fraction(1, 2), -1)).all()
    assert huber.pl is None
    assert objectives.huber().slope == 1


def test_constants_of_compositions() -> None:
    A = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    f = objectives.composed(objectives.diagonal_quadratic([1.0, 1.0]), A)
    assert f.dim == 3
    np.testing.assert_allclose([f.smoothness, f.pl], [9, 4], rtol=1e-14)
    assert objectives.composed(objectives.huber(2), A).pl is None
    assert objectives.composed(objectives.huber(2), A).slope == pytest.approx(3 * np.sqrt(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objectives.diagonal_quadratic([1, 0]), r"curvatures: expected a number in \(0, inf\), got 0"),
        (lambda: objectives.quadratic([[1, 2], [2, 1]]), "A: expected a positive semidefinite matrix"),
        (lambda: objectives.quadratic([[0, 0], [0, 0]]), "A: expected a matrix that is not zero"),
        (lambda: objectives.logistic([[1.0], [2.0]], [1, 0], 0.1), "y: expected 2 labels"),
        (lambda: objectives.logistic([[1.0], [2.0]], [1, -1], 0.0), "ridge: expected a number in"),
        (lambda: objectives.wavy([1.0, -1.0]), "weights: expected a number in"),
        (lambda: objectives.composed(objectives.huber(2), [[1.0, 1.0], [1.0, 1.0]]), "A: expected full row rank 2"),
        (lambda: objectives.huber(2).value([[1.0]]), r"theta: expected shape \(2, 1\)"),
    ],
)
def test_objectives_refuse_bad_input(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
