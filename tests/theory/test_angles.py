"""The angle between the gradient and the preconditioned gradient: Figure A.1 and Wielandt's bound."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import angles, low_rank
from fop_theory.algebra import inner
from tests.helpers import counterexample, fractions, not_zero
from tests.strategies import definite, factors, gradient_pairs, seeds

# ---------------------------------------------------------------------------------------
# Wielandt's bound


@pytest.mark.claim("ours-angle-bound", shows="holds", by="symbolic")
def test_the_bound_is_two_squares() -> None:
    """`(a + b)^2 <G, PG>^2 - 4 a b |PG|^2 |G|^2` is a product of two numbers that aren't negative, plus a square.

    Sizes are symbols. The one matrix that must be semidefinite is `(P - aI)(bI - P)`, for `a <= P <= b`.
    """
    a, b, q, s, r = sp.symbols("a b q s r")  # q = <G, PG>, s = |PG|^2, r = |G|^2
    gap = (a + b) * q - s - a * b * r
    squares = gap * ((a + b) * q + s + a * b * r) + (s - a * b * r) ** 2
    assert sp.expand((a + b) ** 2 * q**2 - 4 * a * b * s * r - squares) == 0
    m, n = sp.symbols("m n", integer=True, positive=True)
    G, P, eye = sp.MatrixSymbol("G", m, n), sp.MatrixSymbol("P", m, m), sp.Identity(m)
    product = ((P - a * eye) * (b * eye - P)).expand().doit()
    assert (product - ((a + b) * P - P * P - a * b * eye)).expand().doit() == sp.ZeroMatrix(m, m)
    # For symmetric P, <G, product G> is `gap`: the three traces it's made of are q, s and r.
    form = sp.expand(inner(G, product * G).doit().expand().doit())
    words = {sp.Trace(G.T * P * G): q, sp.Trace(G.T * P**2 * G): s, sp.Trace(G.T * G): r}
    assert sp.expand(form.subs(words) - gap) == 0
    # (a + b)^2 / (4 a b) with b = kappa a is the inverse square of the bound.
    kappa = sp.Symbol("kappa", positive=True)
    ratio = ((a + b) ** 2 / (4 * a * b)).subs(b, kappa * a)
    assert sp.simplify(ratio * angles.least_cosine(kappa) ** 2) == 1


@pytest.mark.claim("ours-angle-bound", shows="holds", by="exact")
@given(st.lists(st.fractions(Fraction(1, 50), 50), min_size=1, max_size=6), st.integers(1, 3), seeds)
def test_the_bound_in_fractions(spectrum: list[Fraction], n: int, seed: int) -> None:
    """For rational eigenvalues `cos^2 >= 4 kappa / (1 + kappa)^2` without rounding, for matrix gradients too."""
    G = not_zero(np.random.default_rng(seed), len(spectrum), n)
    PG = np.array(spectrum, dtype=object)[:, None] * G
    kappa = max(spectrum) / min(spectrum)
    least = 4 * kappa / (1 + kappa) ** 2
    assert angles.squared_cosine(G, PG) >= least
    assert abs(float(angles.least_cosine(kappa)) ** 2 - float(least)) <= 1e-14


@pytest.mark.claim("ours-angle-bound", shows="holds", by="property")
@given(st.data())
def test_the_bound_for_drawn_preconditioners(data) -> None:
    P, low, high = data.draw(definite())
    G = np.random.default_rng(data.draw(seeds)).standard_normal((len(P), data.draw(st.integers(1, 4))))
    kappa = high / low
    # P is rounded to 1e-15 of its largest eigenvalue, which turns PG by at most 1e-15 high |G| / |PG| <= 1e-15 kappa.
    slack = math.degrees(1e-13 * kappa)
    assert angles.angle(G, P @ G) <= angles.widest_angle(kappa) + slack
    assert abs(math.cos(math.radians(angles.widest_angle(kappa))) - angles.least_cosine(kappa)) <= 1e-14


@pytest.mark.claim("ours-angle-bound", shows="holds", by="exact")
def test_the_bound_is_attained_by_one_and_four() -> None:
    """diag(1, 4) and g = (2, 1): cos = 4/5, exactly the bound."""
    e1, e2 = fractions([[1], [0]]), fractions([[0], [1]])
    g = angles.most_turned(Fraction(1), Fraction(4), e1, e2)
    assert np.array_equal(g, fractions([[2], [1]]))
    Pg = fractions([[1, 0], [0, 4]]) @ g
    assert angles.squared_cosine(g, Pg) == Fraction(4, 5) ** 2
    assert angles.least_cosine(Fraction(4)) == Fraction(4, 5)


@pytest.mark.claim("ours-angle-bound", shows="holds", by="property")
@given(st.data())
def test_the_bound_is_attained_by_every_p(data) -> None:
    P, low, high = data.draw(definite(max_log_condition=3))
    values, vectors = np.linalg.eigh(P)
    if len(P) == 1:
        return
    g = angles.most_turned(low, high, vectors[:, :1], vectors[:, -1:])
    cosine = math.sqrt(angles.squared_cosine(g, P @ g))
    # The eigenvectors are exact to 1e-15 over the gap, and the bound is stationary there.
    assert abs(cosine - angles.least_cosine(high / low)) <= 1e-9, values


@pytest.mark.claim("ours-angle-45", shows="holds", by="symbolic")
def test_45_degrees_belong_to_three_plus_two_roots_of_two() -> None:
    root = sp.Symbol("r", positive=True)  # the square root of kappa
    edge = sp.sqrt(2) / 2
    assert sp.simplify(angles.least_cosine(3 + 2 * sp.sqrt(2)) - edge) == 0
    # cos >= 1/sqrt(2) is r^2 - 2 sqrt(2) r + 1 <= 0, between the roots sqrt(2) -+ 1, and r >= 1.
    gap = sp.numer(sp.together(angles.least_cosine(root**2) - edge))
    assert set(sp.solve(gap, root)) == {sp.sqrt(2) - 1, sp.sqrt(2) + 1}
    assert angles.least_cosine(sp.Integer(1)) - edge > 0 > angles.least_cosine(sp.Integer(9)) - edge


@pytest.mark.claim("ours-angle-45", shows="holds", by="property")
@given(st.data())
def test_below_45_degrees_for_every_gradient(data) -> None:
    """At most 45° up to that condition number; beyond it, one gradient of P turns further."""
    P, low, high = data.draw(definite(max_log_condition=1.5))
    G = np.random.default_rng(data.draw(seeds)).standard_normal((len(P), 2))
    _, vectors = np.linalg.eigh(P)
    worst = angles.most_turned(low, high, vectors[:, :1], vectors[:, -1:])
    edge = 3 + 2 * math.sqrt(2)
    if high / low <= edge:
        assert angles.angle(G, P @ G) <= 45 + 1e-10
    elif high / low > edge * (1 + 1e-9):
        assert angles.angle(worst, P @ worst) > 45


# ---------------------------------------------------------------------------------------
# What an observed angle says about P


@pytest.mark.claim("ours-angle-forces", shows="holds", by="symbolic")
def test_the_forced_condition_number_inverts_the_bound() -> None:
    """`(1 + sin) / (1 - sin)` with `cos = 2 sqrt(kappa)/(1 + kappa)`; and it's `tan^2(45° + angle/2)`."""
    kappa, phi = sp.symbols("kappa phi", positive=True)
    sine = (kappa - 1) / (kappa + 1)
    assert sp.simplify(sine**2 + angles.least_cosine(kappa) ** 2) == 1
    assert sp.simplify((1 + sine) / (1 - sine) - kappa) == 0
    assert angles.least_condition(sp.Integer(30)) == 3
    forced = angles.least_condition(phi * 180 / sp.pi)
    half = sp.tan(sp.pi / 4 + phi / 2) ** 2
    assert sp.simplify((forced - half).rewrite(sp.exp)) == 0


@pytest.mark.claim("ours-angle-forces", shows="holds", by="numeric")
def test_what_the_means_of_figure_a_1_force() -> None:
    """With 50 digits, taking the rounding of the printed means against us.

    A mean is at most the largest value: at some iteration the angle reaches it.
    """
    with mpmath.workdps(50):
        forced = [angles.least_condition(mpmath.mpf(x) - mpmath.mpf("0.005")) for x in ("43.16", "42.48")]
    assert forced[0] > 5.32
    assert forced[1] > 5.15
    # kappa = (1 + s_max^2) / (1 + s_min^2) <= 1 + s_max^2: the largest eigenvalue of M M^T.
    assert min(forced) - 1 > 4.15


@pytest.mark.claim("ours-angle-forces", shows="holds", by="property")
@given(st.data())
def test_an_observed_angle_forces_a_large_factor(data) -> None:
    G, _ = data.draw(gradient_pairs())
    M = data.draw(factors(len(G)))
    seen = angles.angle(G, low_rank.precondition(M, G))
    spectrum = low_rank.eigenvalues(M)
    forced = angles.least_condition(seen)
    # An angle is exact to 1e-15; tan^2 multiplies that by at most its derivative, 2 sqrt(kappa) (1 + kappa) / 2.
    slack = 1 + 1e-13 * (1 + spectrum[-1])
    assert forced <= spectrum[-1] / spectrum[0] * slack
    assert np.linalg.norm(M, 2) ** 2 >= forced / slack - 1 - 1e-12


@pytest.mark.parametrize("degrees", [0.001, 1.0, 43.16, 89.0])
def test_the_two_directions_agree(degrees: float) -> None:
    back = angles.widest_angle(angles.least_condition(degrees))
    # The angle's sine is rounded to 1e-16, which near 90° moves the angle by 1e-16 / cos.
    assert abs(back - degrees) <= 1e-13 + 1e-13 / math.cos(math.radians(degrees)) ** 2


# ---------------------------------------------------------------------------------------
# I + M M^T is always below 90°, M M^T can be as close to it as one likes


def eq_23_at(M: np.ndarray, g: np.ndarray) -> float:
    return angles.angle(g, low_rank.precondition(M, g))


@pytest.mark.claim("fig-a1-far-from-orthogonal", shows="under", by="symbolic")
def test_below_90_degrees_in_any_dimension() -> None:
    """`<G, (I + M M^T) G> = |G|^2 + |M^T G|^2`, positive for every M and every gradient that isn't zero."""
    m, n, k = sp.symbols("m n k", integer=True, positive=True)
    G, M = sp.MatrixSymbol("G", m, n), sp.MatrixSymbol("M", m, k)
    along = inner(G, low_rank.precondition(M, G)).doit().expand().doit()
    assert along == sp.Trace(G.T * G) + sp.Trace(G.T * M * M.T * G)
    # <M^T G, M^T G> is the second trace: a sum of squares.
    assert inner(M.T * G, M.T * G).doit() == sp.Trace(G.T * M * M.T * G)


@pytest.mark.claim("fig-a1-far-from-orthogonal", shows="under", by="property")
@given(st.data())
def test_far_from_orthogonal_while_m_is_bounded(data) -> None:
    """At most `arcsin s^2 / (2 + s^2)`, with s the largest singular value of M: below 90°, for every M and G."""
    G, _ = data.draw(gradient_pairs())
    M = data.draw(factors(len(G)))
    square = np.linalg.norm(M, 2) ** 2
    limit = math.degrees(math.asin(square / (2 + square)))
    # Rounding of I + M M^T against its smallest eigenvalue, one.
    assert eq_23_at(M, G) <= limit + math.degrees(1e-14 * (1 + square))
    assert limit < 90


@pytest.mark.claim("fig-a1-far-from-orthogonal", shows="fails", by="exact")
def test_without_a_bound_on_m_it_comes_as_close_to_90_degrees_as_one_likes() -> None:
    """M = (c, 0) and g = (1, c): `cos^2 < 5/c^2`. The worst gradient of this M is irrational and little worse."""
    for power in range(1, 20):
        c = Fraction(10) ** power
        M, g = np.array([[c], [Fraction(0)]]), np.array([[Fraction(1)], [c]])
        kappa = 1 + c**2
        assert 4 * kappa / (1 + kappa) ** 2 <= angles.squared_cosine(g, low_rank.precondition(M, g)) < 5 / c**2


@pytest.mark.claim("ours-product-angle", shows="holds", by="symbolic")
def test_m_m_transpose_alone_is_below_90_degrees_or_stops() -> None:
    """`<G, M M^T G> = |M^T G|^2`: zero exactly where the step is zero."""
    m, n, k = sp.symbols("m n k", integer=True, positive=True)
    G, M = sp.MatrixSymbol("G", m, n), sp.MatrixSymbol("M", m, k)
    assert inner(G, M * M.T * G).doit() == inner(M.T * G, M.T * G).doit()


@pytest.mark.claim("ours-product-angle", shows="holds", by="exact")
@given(st.integers(0, 10**6))
def test_m_m_transpose_alone_has_no_uniform_bound(size: int) -> None:
    """diag(1, 0) and g = (1, N): `cos^2 = 1 / (1 + N^2)`, at |M| = 1."""
    M, g = fractions([[1], [0]]), fractions([[1], [size]])
    assert angles.squared_cosine(g, M @ (M.T @ g)) == Fraction(1, 1 + size**2)
    e2 = fractions([[0], [1]])
    assert not np.any(M @ (M.T @ e2))


@pytest.mark.claim("ours-product-angle", shows="holds", by="property")
def test_the_bound_of_eq_23_fails_for_m_m_transpose() -> None:
    """The same property, run on `M M^T` without the identity, finds a counterexample."""

    @st.composite
    def pairs(draw):
        G, _ = draw(gradient_pairs())
        return draw(factors(len(G))), G

    def breaks(pair) -> bool:
        M, G = pair
        PG, square = M @ (M.T @ G), np.linalg.norm(M, 2) ** 2
        return bool(np.any(PG)) and angles.angle(G, PG) > math.degrees(math.asin(square / (2 + square))) + 1

    M, G = counterexample(pairs(), breaks)
    assert breaks((M, G))


# ---------------------------------------------------------------------------------------
# The angle itself


@given(st.floats(0, 180), st.integers(2, 5), seeds)
def test_the_angle_is_the_angle(degrees: float, m: int, seed: int) -> None:
    """Two vectors are put at a known angle; also angles that the arc cosine can't see."""
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((m, 2)))
    phi = math.radians(degrees)
    a, b = Q[:, :1], math.cos(phi) * Q[:, :1] + math.sin(phi) * Q[:, 1:]
    assert abs(angles.angle(a, 3 * b) - degrees) <= 1e-13
    assert abs(math.sqrt(angles.squared_cosine(a, 3 * b)) - abs(math.cos(phi))) <= 1e-7


@given(st.data())
def test_the_frobenius_angle_is_that_of_the_raveled_gradient(data) -> None:
    G, _ = data.draw(gradient_pairs())
    P, _, _ = data.draw(definite(m=len(G)))
    raveled = np.kron(P, np.eye(G.shape[1])) @ G.reshape(-1, 1)
    assert abs(angles.angle(G, P @ G) - angles.angle(G.reshape(-1, 1), raveled)) <= 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: angles.angle(np.zeros((2, 1)), np.ones((2, 1))), "A: expected a matrix that is not zero"),
        (lambda: angles.squared_cosine(np.ones((2, 1)), np.zeros((2, 1))), "B: expected a matrix that is not zero"),
        (lambda: angles.angle(np.ones((2, 1)), np.ones((3, 1))), r"B: expected shape \(2, 1\)"),
        (lambda: angles.least_cosine(0.5), r"kappa: expected a number in \[1"),
        (lambda: angles.widest_angle(float("inf")), "kappa: expected a finite number"),
        (lambda: angles.least_condition(90.0), "degrees: expected an angle below 90"),
        (lambda: angles.least_condition(-1), r"degrees: expected a number in \[0"),
        (lambda: angles.most_turned(0, 1, np.ones((2, 1)), np.ones((2, 1))), r"low: expected a number in \(0"),
        (lambda: angles.most_turned(1, 1, np.ones((2, 2)), np.ones((2, 1))), r"low_vector: expected shape"),
    ],
)
def test_bad_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
