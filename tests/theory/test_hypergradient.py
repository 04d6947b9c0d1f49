"""Eqs. (1)-(4), (8)-(10) and Algorithm 1."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, permutations, product

import mpmath
import numdifftools as nd
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import hypergradient as hg
from fop_theory import reference
from tests.helpers import fractions, same, symbols, whole
from tests.strategies import definite, dims, factors, gradient_pairs, scales, seeds

# ---------------------------------------------------------------------------------------
# What the derivations share: matrices of symbolic size, by components, in fractions


def any_size() -> dict[str, sp.MatrixSymbol]:
    """Parameters, gradients and a factor whose sizes are symbols."""
    m, n, k = sp.symbols("m n k", integer=True, positive=True)
    found = {name: sp.MatrixSymbol(name, m, n) for name in ("theta", "G", "H", "F")}
    return found | {name: sp.MatrixSymbol(name, m, k) for name in ("M", "D")}


def quadratic(m: int) -> sp.Matrix:
    """A symmetric matrix of symbols, the Hessian of a quadratic loss."""
    return sp.Matrix(m, m, lambda i, j: sp.Symbol(f"a{min(i, j)}{max(i, j)}"))


def by_entries(loss: sp.Expr, M: sp.Matrix) -> sp.Matrix:
    return M.applyfunc(lambda entry: sp.diff(loss, entry))


def log_cosh(A: np.ndarray, theta: np.ndarray) -> tuple:
    """A loss that's no quadratic, analytic for the complex step, and its gradient."""
    return np.sum(np.log(np.cosh(A @ theta))), A.T @ np.tanh(A @ theta)


# ---------------------------------------------------------------------------------------
# Eqs. (1), (2) and (8): the step


@pytest.mark.claim("eq-1", shows="holds", by="symbolic")
def test_eq_1_is_the_least_of_a_quadratic_model() -> None:
    """The step minimises `<g, d> + d^T P^-1 d / (2 lr)`: steepest descent when lengths are measured by P^-1."""
    g, lr = symbols("g", 3, 1), sp.Symbol("epsilon", positive=True)
    L = sp.Matrix(3, 3, lambda i, j: sp.Symbol(f"l{i}{j}", positive=True) if j <= i else 0)
    P, inverse = L * L.T, (L.inv().T * L.inv()).applyfunc(sp.cancel)
    move = hg.preconditioned_step(sp.zeros(3, 1), P, g, lr)
    slope = g + inverse * move / lr  # the model's gradient; its Hessian P^-1 / lr is positive definite
    assert slope.applyfunc(sp.cancel) == sp.zeros(3, 1)


@pytest.mark.claim("eq-1", shows="holds", by="exact")
@given(dims, st.integers(1, 3), seeds)
def test_eq_1_entry_by_entry(m: int, n: int, seed: int) -> None:
    """In fractions, with loops, for any P, symmetric or not."""
    rng = np.random.default_rng(seed)
    theta, P, G, lr = whole(rng, m, n), whole(rng, m, m), whole(rng, m, n), Fraction(int(rng.integers(1, 9)), 8)
    ours = hg.preconditioned_step(theta, P, G, lr)
    for i, c in np.ndindex(m, n):
        assert ours[i, c] == theta[i, c] - lr * sum(P[i, j] * G[j, c] for j in range(m))


@pytest.mark.claim("eq-2", shows="holds", by="symbolic")
@pytest.mark.claim("eq-8", shows="holds", by="symbolic")
def test_eq_2_is_eq_1_with_m_m_transpose_in_any_dimension() -> None:
    s, lr = any_size(), sp.Symbol("epsilon")
    step = hg.factored_step(s["theta"], s["M"], s["G"], lr)
    plain = hg.preconditioned_step(s["theta"], s["M"] * s["M"].T, s["G"], lr)
    assert (step - plain).doit() == sp.ZeroMatrix(*s["theta"].shape)


@pytest.mark.claim("eq-2", shows="holds", by="property")
@pytest.mark.claim("eq-8", shows="holds", by="property")
@given(st.data())
def test_eq_2_is_gradient_descent_in_the_coordinates_of_m(data) -> None:
    """With `theta = theta_0 + M phi`, one plain step on phi moves theta by Eq. (2), for any number of columns k."""
    G, theta = data.draw(gradient_pairs())
    M, lr = data.draw(factors(len(G))), data.draw(scales)
    slope = np.stack([(G * (M @ unit.reshape(-1, G.shape[1]))).sum() for unit in np.eye(M.shape[1] * G.shape[1])])
    moved = theta - lr * M @ slope.reshape(-1, G.shape[1])
    # Rounding: each of the two products sums at most 36 terms of size |M|^2 |G|.
    size = np.linalg.norm(theta) + lr * np.linalg.norm(M) ** 2 * np.linalg.norm(G) + 1e-300
    np.testing.assert_allclose(hg.factored_step(theta, M, G, lr) / size, moved / size, atol=1e-14)


@pytest.mark.claim("text-2-1-product-with-itself", shows="fails", by="exact")
def test_a_product_with_itself_can_reverse_the_gradient() -> None:
    M, g = fractions([[0, 1], [-1, 0]]), fractions([[3], [5]])
    assert same(hg.product_step(0 * g, M, g, 1), g)  # P = M M = -I: a step up the gradient
    assert (g.T @ M @ M @ g)[0, 0] < 0


@pytest.mark.claim("text-2-1-product-with-itself", shows="corrected", by="exact")
@pytest.mark.claim("text-2-1-no-reversal", shows="holds", by="exact")
@given(dims, dims, seeds)
def test_m_m_transpose_never_reverses(m: int, k: int, seed: int) -> None:
    """`g^T M M^T g = |M^T g|^2`, so that no multiple of -g is `P g`; in fractions."""
    rng = np.random.default_rng(seed)
    M, g = whole(rng, m, k), whole(rng, m, 1)
    Pg = -hg.factored_step(0 * g, M, g, 1)
    along = (g.T @ Pg)[0, 0]
    assert along == sum(x**2 for x in (M.T @ g).ravel()) >= 0


@pytest.mark.claim("text-2-1-no-reversal", shows="holds", by="property")
@given(st.data())
def test_no_semidefinite_p_reverses(data) -> None:
    """Also for P that are given by their eigenvalues, some of them zero."""
    P, _, high = data.draw(definite())
    rng = np.random.default_rng(data.draw(seeds))
    values, vectors = np.linalg.eigh(P)
    values[: data.draw(st.integers(0, len(P)))] = 0
    g = rng.standard_normal((len(P), 1))
    Pg = -hg.preconditioned_step(0 * g, vectors * values @ vectors.T, g, 1.0)
    assert float((g.T @ Pg).item()) >= -1e-13 * high * float((g.T @ g).item())


@pytest.mark.claim("ours-no-reversal-is-no-descent", shows="holds", by="exact")
def test_not_reversed_is_not_descending() -> None:
    stuck = hg.factored_step(fractions([[0], [7]]), fractions([[1], [0]]), fractions([[0], [7]]), 1)
    assert same(stuck, fractions([[0], [7]]))  # J = |theta|^2/2, its gradient isn't zero, and nothing moves
    far = hg.factored_step(fractions([[1]]), fractions([[1]]), fractions([[1]]), 3)
    assert far[0, 0] ** 2 / 2 == 2 > Fraction(1, 2)  # and a step of length 3 raises J


# ---------------------------------------------------------------------------------------
# Eqs. (3), (4) and (10): the hypergradient


@pytest.mark.claim("eq-3", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 2), (3, 1, 2), (2, 1, 3), (2, 2, 2)])
def test_eq_3_by_components(m: int, n: int, k: int) -> None:
    """The tensor `m x n x m x k`, entry by entry, and its contraction against the loss differentiated directly."""
    A, M, theta, lr = quadratic(m), symbols("m", m, k), symbols("t", m, n), sp.Symbol("epsilon")
    H = A * theta
    after = hg.factored_step(theta, M, H, lr)
    tensor = hg.step_jacobian(H, M, lr)
    assert tensor.shape == (m, n, m, k)
    for i, c, p, q in np.ndindex(tensor.shape):
        assert sp.expand(tensor[i, c, p, q] - sp.diff(after[i, c], M[p, q])) == 0
    loss = (after.T * A * after).trace() / 2
    direct = by_entries(loss, M)
    assert (direct - sp.Matrix(hg.chain_rule(A * after, tensor))).expand() == sp.zeros(m, k)


@pytest.mark.claim("eq-3", shows="holds", by="property")
@given(st.data())
def test_eq_3_gives_eq_4(data) -> None:
    """The contraction is the closed form of Eq. (4) corrected, for every shape and rank."""
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(len(G))), data.draw(scales)
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    contracted = hg.chain_rule(G, hg.step_jacobian(H, M, lr))
    np.testing.assert_allclose(contracted / size, hg.hypergradient(G, H, M, lr) / size, atol=1e-14)


@pytest.mark.claim("eq-4", shows="corrected", by="symbolic")
@pytest.mark.claim("eq-10", shows="corrected", by="symbolic")
@pytest.mark.parametrize("identity", [0, 1])
def test_eq_4_in_any_dimension(identity: int) -> None:
    """Sizes are symbols. By the chain rule the loss may be replaced by `tr G^T theta`; P is M M^T or I + M M^T."""
    s, lr = any_size(), sp.Symbol("epsilon")
    step = hg.factored_step(s["theta"] - lr * identity * s["H"], s["M"], s["H"], lr)
    derivative = sp.Trace(s["G"].T * step).diff(s["M"])
    ours = hg.hypergradient(s["G"], s["H"], s["M"], lr)
    assert (derivative - ours).doit().expand().doit() == sp.ZeroMatrix(*s["M"].shape)


def traces(expression: sp.MatrixExpr) -> dict:
    """The trace of a sum of products: coefficient of each product, which may be rotated and transposed."""
    found: dict = {}
    for term in sp.Add.make_args(expression.doit().expand().doit()):
        number, matrix = term.as_coeff_mmul()
        parts = list(matrix.args)
        turned = [x.T.doit() for x in reversed(parts)]
        ways = [tuple(word[i:] + word[:i]) for word in (parts, turned) for i in range(len(parts))]
        word = min(ways, key=str)
        found[word] = sp.expand(found.get(word, 0) + number)
    return {word: number for word, number in found.items() if number != 0}


@pytest.mark.claim("eq-4", shows="corrected", by="symbolic")
def test_eq_4_by_the_trace_differential() -> None:
    """Move M by `s D` and keep what's linear in s: `tr G^T d(theta) = tr D^T (hypergradient)`, in any dimension."""
    s, lr, t = any_size(), sp.Symbol("epsilon"), sp.Symbol("s")
    moved = hg.factored_step(s["theta"], s["M"] + t * s["D"], s["H"], lr)
    change = traces(s["G"].T * moved)
    linear = {word: number.coeff(t, 1) for word, number in change.items() if number.coeff(t, 1) != 0}
    assert linear == traces(s["D"].T * hg.hypergradient(s["G"], s["H"], s["M"], lr))


@pytest.mark.claim("eq-4", shows="corrected", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 1), (2, 2, 3), (3, 1, 2)])
def test_eq_4_by_components(m: int, n: int, k: int) -> None:
    """For a quadratic loss, differentiate the loss after the step by every entry of M."""
    A, M, theta, lr = quadratic(m), symbols("m", m, k), symbols("t", m, n), sp.Symbol("epsilon")
    H = A @ theta
    after = hg.factored_step(theta, M, H, lr)
    loss = (after.T @ A @ after).trace() / 2
    assert (by_entries(loss, M) - hg.hypergradient(A @ after, H, M, lr)).expand() == sp.zeros(m, k)


@pytest.mark.claim("eq-4", shows="corrected", by="property")
@given(st.data())
def test_eq_4_central_differences(data) -> None:
    """The derivative of `<G, theta - lr M M^T H>` along a drawn direction, by Richardson extrapolation."""
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(G.shape[0])), data.draw(scales)
    D = np.random.default_rng(data.draw(seeds)).standard_normal(M.shape)
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) * np.linalg.norm(D) + 1e-30
    along = nd.Derivative(lambda s: np.sum(G * hg.factored_step(0 * G, M + float(s) * D, H, lr)) / size)
    assert abs(along(0.0) - np.sum(D * hg.hypergradient(G, H, M, lr)) / size) <= 1e-7


@pytest.mark.claim("eq-4", shows="corrected", by="property")
@pytest.mark.claim("eq-10", shows="corrected", by="property")
@given(st.data())
def test_eq_4_complex_step(data) -> None:
    """For a loss that's no quadratic: `Im J(M + i h E) / h`, which subtracts nothing."""
    theta, _ = data.draw(gradient_pairs())
    theta = theta / (1 + np.linalg.norm(theta))
    M, lr = data.draw(factors(len(theta))), data.draw(st.floats(0.01, 0.3))
    A = np.random.default_rng(data.draw(seeds)).standard_normal((3, len(theta)))
    A = A / np.linalg.norm(A)
    _, H = log_cosh(A, theta)
    _, G = log_cosh(A, hg.factored_step(theta, M, H, lr))
    ours = hg.hypergradient(G, H, M, lr)
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    for entry in np.ndindex(M.shape):
        shifted = M.astype(complex)
        shifted[entry] += 1e-40j
        loss, _ = log_cosh(A, hg.factored_step(theta, shifted, H, lr))
        # Rounding of J' is relative to the largest intermediate, |M|^2 <= 36 * 9 times the step.
        assert abs(loss.imag / 1e-40 - ours[entry]) <= 1e-11 * size + 1e-300


@pytest.mark.claim("eq-4", shows="corrected", by="numeric")
def test_eq_4_with_fifty_digits() -> None:
    """Central differences where doubles lose all digits: the step is 1e-12 of the parameters."""
    with mpmath.workdps(50):
        rng = np.random.default_rng(4)
        theta, M, A = (
            np.array([mpmath.mpf(int(x)) / 7 for x in rng.integers(-20, 21, np.prod(shape))]).reshape(shape)
            for shape in [(3, 1), (3, 2), (3, 3)]
        )
        A, lr, h = A.T @ A, mpmath.mpf(10) ** -12, mpmath.mpf(10) ** -12

        def loss(theta: np.ndarray) -> mpmath.mpf:
            return sum(mpmath.log(mpmath.cosh(x)) for x in (A @ theta).ravel())

        def gradient(theta: np.ndarray) -> np.ndarray:
            return A.T @ np.array([[mpmath.tanh(x)] for x in (A @ theta).ravel()])

        H = gradient(theta)
        ours = hg.hypergradient(gradient(hg.factored_step(theta, M, H, lr)), H, M, lr)
        for entry in np.ndindex(M.shape):
            up, down = M.copy(), M.copy()
            up[entry] += h
            down[entry] -= h
            rise = loss(hg.factored_step(theta, up, H, lr)) - loss(hg.factored_step(theta, down, H, lr))
            # The quotient's own error is h^2 times the third derivative: about 1e-24 of the value.
            assert abs(rise / (2 * h) - ours[entry]) < abs(ours[entry]) * mpmath.mpf(10) ** -20


def along_algorithm_1(theta: np.ndarray, M: np.ndarray, gradient, lr, hyper_lr, steps: int) -> list[tuple]:
    """Algorithm 1 as printed: `(theta, M, gradient)` at each step."""
    H, states = 0 * theta, []
    for _ in range(steps):
        G = gradient(theta)
        states.append((theta, M, G))
        theta, M = hg.algorithm_1_step(theta, M, G, H, lr, hyper_lr)
        H = G
    return states


def linear_loss(theta: np.ndarray) -> np.ndarray:
    return 0 * theta + 1


@pytest.mark.claim("eq-4", shows="fails", by="exact")
@pytest.mark.claim("eq-10", shows="fails", by="exact")
@pytest.mark.claim("alg-1-line-7", shows="fails", by="exact")
def test_eq_4_as_printed_is_another_number() -> None:
    """One parameter, `J = theta`, all rates one. The derivative of `theta - M^2` by M at M = 1 is -2."""
    one = fractions([[1]])
    (_, M_last, H), (theta, M, G) = along_algorithm_1(one, one, linear_loss, 1, 1, 3)[1:]
    m = sp.Symbol("m")
    true = sp.diff(-(m**2), m).subs(m, M_last[0, 0])
    assert (M_last[0, 0], M[0, 0]) == (1, 3)
    assert hg.hypergradient(G, H, M_last, 1)[0, 0] == true == -2
    assert hg.hypergradient_as_printed(G, H, M, 1)[0, 0] == hg.eq_10_as_printed(G, H, M)[0, 0] == -6
    _, after = hg.algorithm_1_step(theta, M, G, H, 1, 1)
    assert after[0, 0] - M[0, 0] == 6 != -true


@pytest.mark.claim("eq-10", shows="fails", by="exact")
def test_eq_10_lacks_the_learning_rate() -> None:
    """Even with the right index it's off by the factor 1/lr, which stochastic gradient descent on M feels."""
    one, lr = fractions([[1]]), Fraction(1, 10)
    assert hg.hypergradient(one, one, one, lr)[0, 0] == Fraction(-1, 5)
    assert hg.eq_10_as_printed(one, one, one)[0, 0] == -2


@pytest.mark.claim("ours-price-of-the-index", shows="holds", by="symbolic")
def test_price_of_the_index_in_any_dimension() -> None:
    s, lr, hyper_lr = any_size(), *sp.symbols("epsilon rho")
    _, M_now = hg.algorithm_1_step(s["theta"], s["M"], s["H"], s["F"], lr, hyper_lr)
    printed = hg.hypergradient_as_printed(s["G"], s["H"], M_now, lr)
    price = hg.price_of_the_index(s["G"], s["H"], s["F"], s["M"], lr, hyper_lr)
    gap = printed - hg.hypergradient(s["G"], s["H"], s["M"], lr) - price
    assert gap.doit().expand().doit() == sp.ZeroMatrix(*s["M"].shape)


@pytest.mark.claim("ours-price-of-the-index", shows="holds", by="exact")
@given(dims, dims, seeds)
def test_price_of_the_index_in_fractions(m: int, k: int, seed: int) -> None:
    """Along three steps of the algorithm on a quadratic, and it's linear in the hypergradient learning rate."""
    rng = np.random.default_rng(seed)
    A, theta, M = whole(rng, m, m), whole(rng, m, 1), whole(rng, m, k)
    lr, hyper_lr = Fraction(1, 4), Fraction(int(rng.integers(1, 5)), 8)
    (_, _, F), (_, M_last, H), (_, M_now, G) = along_algorithm_1(theta, M, lambda x: A @ x, lr, hyper_lr, 3)
    gap = hg.hypergradient_as_printed(G, H, M_now, lr) - hg.hypergradient(G, H, M_last, lr)
    assert same(gap, hg.price_of_the_index(G, H, F, M_last, lr, hyper_lr))


@pytest.mark.claim("text-1-any-gradient-based", shows="holds", by="symbolic")
@pytest.mark.parametrize("k", [1, 2])
def test_eq_4_for_any_function(k: int) -> None:
    """J is a function without a formula, and h any vector, not even its gradient: the chain rule needs no more."""
    J, x = sp.Function("J"), sp.symbols("x:2")
    M, theta, h, lr = symbols("m", 2, k), symbols("t", 2), symbols("h", 2), sp.Symbol("epsilon")
    after = hg.factored_step(theta, M, h, lr)
    g = sp.Matrix([sp.diff(J(*x), each) for each in x]).subs(dict(zip(x, after, strict=True)), simultaneous=True)
    gap = by_entries(J(*after), M) - hg.hypergradient(g, h, M, lr)
    assert gap.expand() == sp.zeros(2, k)


#: Problems without a least value, without convexity, and one in which the "loss" is an expected reward, to be raised.
PROBLEMS = {
    "saddle": lambda x: (x[::2] ** 2).sum() - (x[1::2] ** 2).sum(),
    "no lower bound": lambda x: (x**3).sum(),
    "a thousand hills": lambda x: np.sin(7 * x).sum(),
    "reward of a softmax policy": lambda x: -(np.exp(x) * np.arange(len(x))[:, None]).sum() / np.exp(x).sum(),
}


@pytest.mark.claim("text-1-any-gradient-based", shows="holds", by="property")
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@given(data=st.data())
def test_eq_4_for_problems_of_many_kinds(problem, data) -> None:
    """Against the complex step, for any step that was made; a gradient at its end is all that the problem gives."""
    H, _ = data.draw(gradient_pairs(max_columns=1))
    M, lr = data.draw(factors(len(H))), 0.01
    H = H / (np.linalg.norm(H) + 1e-300)
    theta = np.random.default_rng(data.draw(seeds)).standard_normal(H.shape)
    G = reference.complex_step_gradient(problem, hg.factored_step(theta, M, H, lr))
    true = reference.complex_step_gradient(lambda M: problem(hg.factored_step(theta, M, H, lr)), M)
    # Rounding: sums of at most 36 products of this size.
    size = lr * (1 + np.linalg.norm(G)) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    np.testing.assert_allclose(hg.hypergradient(G, H, M, lr) / size, true / size, atol=1e-12)


@pytest.mark.claim("text-abstract-first-order", shows="holds", by="exact")
def test_losses_with_the_same_gradients_have_the_same_hypergradient() -> None:
    """`x^2/2` and a polynomial with other second derivatives, equal in slope at both points of one step."""
    x = sp.Symbol("x")
    start, end, lr, M = sp.Integer(1), sp.Rational(1, 2), sp.Rational(1, 2), sp.Integer(1)
    bump = (x - start) ** 2 * (x - end) ** 2
    for loss in (x**2 / 2, x**2 / 2 + 5 * bump):
        m, slope = sp.Symbol("m"), sp.diff(loss, x)
        H, G = slope.subs(x, start), slope.subs(x, end)
        assert start - lr * M**2 * H == end
        true = sp.diff(loss.subs(x, start - lr * m**2 * H), m).subs(m, M)
        assert sp.Matrix([[true]]) == hg.hypergradient(sp.Matrix([[G]]), sp.Matrix([[H]]), sp.Matrix([[M]]), lr)
    assert sp.diff(bump, x, 2).subs(x, start) != 0 != sp.diff(bump, x, 2).subs(x, end)


# ---------------------------------------------------------------------------------------
# Eq. (9)

G9, H9, M9 = np.array([[2], [3]]), np.array([[5], [-7]]), np.array([[1, 4], [-2, 11]])


def readings(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every product of one g, one h and one M in any order, each transposed or not, that has the shape of M.

    A product that is one number stands for itself times the identity and for itself in every entry.
    """
    found: dict[str, np.ndarray] = {}
    for order in permutations(named):
        for transposed in product([False, True], repeat=3):
            parts = [named[x].T if t else named[x] for x, t in zip(order, transposed, strict=True)]
            name = " ".join(x + "'" * t for x, t in zip(order, transposed, strict=True))
            value = parts[0]
            for part in parts[1:]:
                if 1 in (value.size, part.size):
                    value = value * part
                elif value.shape[1] == part.shape[0]:
                    value = value @ part
                else:
                    break
            else:
                if value.size == 1:
                    found[f"({name}) I"] = value * np.eye(len(named["M"]), dtype=int)
                    found[f"({name}) in every entry"] = value + 0 * named["M"]
                elif value.shape == named["M"].shape:
                    found[name] = value
    return found


def sums_that_give(target: np.ndarray, keeps) -> list[str]:
    terms = readings({"g": G9, "h": H9, "M": M9})
    return [
        f"{first} + {second}"
        for (first, A), (second, B) in product(terms.items(), repeat=2)
        if keeps(first, second) and (np.array_equal(A + B, target) or np.array_equal(A - B, target))
    ]


@pytest.mark.claim("eq-9", shows="fails", by="exact")
def test_eq_9_adds_a_number_to_a_matrix() -> None:
    """As printed; the two ways to add them anyway give something else than Eq. (4) corrected."""
    g, h, M = fractions([[1], [0]]), fractions([[1], [1]]), fractions([[0, 1], [0, 0]])
    number, matrix = hg.eq_9_terms_as_printed(g, h, M)
    assert (number.shape, matrix.shape) == ((1, 1), (2, 2))
    true = hg.hypergradient(g, h, M, 1)
    assert same(true, fractions([[0, -2], [0, -1]]))
    assert same(number, fractions([[-1]]))
    assert same(matrix, fractions([[-1, 0], [0, 0]]))
    assert not same(number + matrix, true)
    assert not same(number[0, 0] * fractions([[1, 0], [0, 1]]) + matrix, true)


@pytest.mark.claim("eq-9", shows="fails", by="exact")
def test_no_reading_of_eq_9_that_keeps_the_transpose_is_right() -> None:
    """All orders and transposes of both terms. Without the transpose on M exactly the corrected form is found."""
    true = -hg.hypergradient(G9, H9, M9, 1).astype(int)
    assert {"g h' M'", "h g' M", "M' g h'", "(g' M h) I"} <= set(readings({"g": G9, "h": H9, "M": M9}))
    assert sums_that_give(true, lambda first, second: "M'" in second) == []
    assert set(sums_that_give(true, lambda *_: True)) == {"g h' M + h g' M", "h g' M + g h' M"}
    # In the other layout, where the derivative stands transposed, Mᵀ would be right, but as the first factor.
    in_other_layout = sums_that_give(true.T, lambda first, second: "M'" in second)
    assert set(in_other_layout) == {"M' g h' + M' h g'", "M' h g' + M' g h'"}


@pytest.mark.claim("eq-9", shows="corrected", by="symbolic")
def test_eq_9_corrected_in_any_dimension() -> None:
    """Each term is the change by one of the two factors: let only the right, then only the left M move."""
    s, lr = any_size(), sp.Symbol("epsilon")
    G, H, M, D = s["G"], s["H"], s["M"], s["D"]
    by_right, by_left = traces(G.T * (-lr) * M * D.T * H), traces(G.T * (-lr) * D * M.T * H)
    assert traces(D.T * (-lr) * H * G.T * M) == by_right != by_left == traces(D.T * (-lr) * G * H.T * M)
    assert traces(D.T * hg.eq_9(G, H, M, lr)) == by_left | by_right


@pytest.mark.claim("eq-9", shows="corrected", by="property")
@given(st.data())
def test_eq_9_corrected_by_the_oracle(data) -> None:
    """Against the derivative of the step that the oracle takes by complex step."""
    G, H = data.draw(gradient_pairs())
    M, lr = data.draw(factors(len(G))), data.draw(scales)
    nothing = reference.Moments(0 * G, 0 * G, 0)
    last = reference.LastStep(0 * G, H, M, nothing, lr)
    oracle = reference.oracle_hypergradient(G, last, M, H, reference.Settings(lr=lr))
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    np.testing.assert_allclose(hg.eq_9(G, H, M, lr) / size, oracle / size, atol=1e-13)


@pytest.mark.claim("ours-eq-9-second-term", shows="holds", by="symbolic")
def test_the_second_term_of_eq_9_belongs_to_the_product_m_m() -> None:
    s, lr = any_size(), sp.Symbol("epsilon")
    m = s["G"].shape[0]
    G, H, M = s["G"], s["H"], sp.MatrixSymbol("M", m, m)
    derivative = sp.Trace(G.T * hg.product_step(s["theta"], M, H, lr)).diff(M)
    ours = hg.product_hypergradient(G, H, M, lr)
    assert (derivative - ours).doit().expand().doit() == sp.ZeroMatrix(m, m)
    g, h, N = symbols("g", 3, 1), symbols("h", 3, 1), symbols("m", 3, 3)
    _, second = hg.eq_9_terms_as_printed(g, h, N)
    assert (hg.product_hypergradient(g, h, N, 1) - (second - N.T * g * h.T)).expand() == sp.zeros(3, 3)


@pytest.mark.claim("ours-eq-9-second-term", shows="holds", by="property")
@given(st.data())
def test_hypergradient_of_the_product_m_m_by_the_oracle(data) -> None:
    G, H = data.draw(gradient_pairs())
    M = np.random.default_rng(data.draw(seeds)).standard_normal((len(G), len(G)))
    nothing = reference.Moments(0 * G, 0 * G, 0)
    last = reference.LastStep(0 * G, H, M, nothing, 1.0)
    oracle = reference.oracle_hypergradient(G, last, M, H, reference.Settings(lr=1.0, form="square"))
    size = np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    np.testing.assert_allclose(hg.product_hypergradient(G, H, M, 1.0) / size, oracle / size, atol=1e-13)


# ---------------------------------------------------------------------------------------
# Algorithm 1


def differentiated(A: np.ndarray, theta_last: np.ndarray, M: np.ndarray, H: np.ndarray, lr) -> np.ndarray:
    """Derivative of `theta^T A theta / 2` after the step by M, through polynomials in one entry at a time.

    The loss is a polynomial of degree four in one entry: five exact values give its derivative exactly.
    """
    slope = np.empty_like(M)
    for entry in np.ndindex(M.shape):
        values = []
        for shift in (-2, -1, 1, 2):
            moved = M.copy()
            moved[entry] += shift
            after = hg.factored_step(theta_last, moved, H, lr)
            values.append(np.sum(after * (A @ after)) / 2)
        slope[entry] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12
    return slope


@pytest.mark.claim("alg-1-line-7", shows="corrected", by="exact")
@pytest.mark.claim("alg-1", shows="corrected", by="exact")
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_both_repairs_descend_the_true_hypergradient(m: int, k: int, seed: int) -> None:
    """In fractions: `M^(t-1)` in line 7, or lines 6 and 7 swapped, and M moves by `-rho dJ/dM^(t-1)`."""
    rng = np.random.default_rng(seed)
    A = whole(rng, m, m)
    A = A + A.T
    theta_last, M_last, M_now = whole(rng, m, 1), whole(rng, m, k), whole(rng, m, k)
    lr, hyper_lr = Fraction(1, 4), Fraction(1, 8)
    H = A @ theta_last
    theta = hg.factored_step(theta_last, M_last, H, lr)
    G = A @ theta
    wanted = -hyper_lr * differentiated(A, theta_last, M_last, H, lr)
    printed_order, M_next = hg.algorithm_1_step_corrected(theta, M_now, M_last, G, H, lr, hyper_lr)
    assert same(M_next - M_now, wanted)
    assert same(printed_order, hg.factored_step(theta, M_now, G, lr))
    swapped, M_used = hg.m_first_step(theta, M_last, G, H, lr, hyper_lr)
    assert same(M_used - M_last, wanted)
    assert same(swapped, hg.factored_step(theta, M_used, G, lr))


@pytest.mark.claim("alg-1-line-7", shows="corrected", by="symbolic")
@pytest.mark.claim("alg-1", shows="corrected", by="symbolic")
@pytest.mark.parametrize(("m", "k"), [(1, 1), (2, 1), (2, 2)])
def test_both_repairs_by_components(m: int, k: int) -> None:
    A, theta, M, N = quadratic(m), symbols("t", m, 1), symbols("m", m, k), symbols("n", m, k)
    lr, hyper_lr = sp.symbols("epsilon rho")
    H = A * theta
    after = hg.factored_step(theta, M, H, lr)
    wanted = -hyper_lr * by_entries((after.T * A * after).trace() / 2, M)
    _, late = hg.algorithm_1_step_corrected(after, N, M, A * after, H, lr, hyper_lr)
    moved, used = hg.m_first_step(after, M, A * after, H, lr, hyper_lr)
    assert (late - N - wanted).expand() == sp.zeros(m, k)
    assert (used - M - wanted).expand() == sp.zeros(m, k)
    assert moved == hg.factored_step(after, used, A * after, lr)


@pytest.mark.claim("alg-1", shows="fails", by="exact")
def test_algorithm_1_as_printed_steps_with_a_factor_that_is_one_step_late() -> None:
    """`J = theta`, all rates one: each step uses what the ideal order used a step before, and line 7 overshoots."""
    one = fractions([[1]])
    printed = along_algorithm_1(one, one, linear_loss, 1, 1, 4)
    theta, M, H, swapped = one, one, 0 * one, []
    for _ in range(4):
        theta, M = hg.m_first_step(theta, M, one, H, 1, 1)
        H = one
        swapped.append(M[0, 0])
    used = [M[0, 0] for _, M, _ in printed]
    assert used == [1, 1, 3, 9]
    assert swapped == [1, 3, 9, 27]
    # Line 7 at step 3: from 3 to 9, where gradient descent with the derivative at M^(2) = 1 goes to 5.
    (_, M_last, _), (theta, M_now, _) = printed[1:3]
    _, right = hg.algorithm_1_step_corrected(theta, M_now, M_last, one, one, 1, 1)
    assert right[0, 0] == 5 != printed[3][1][0, 0]


@pytest.mark.claim("ours-line-7-online", shows="holds", by="symbolic")
def test_line_7_is_online_gradient_descent_on_a_surrogate() -> None:
    """What the printed line does follow, in any dimension: `psi_t(M) = <G, theta^(t-1) - lr M M^T H>` at `M^(t)`."""
    s, lr, hyper_lr = any_size(), *sp.symbols("epsilon rho")
    surrogate = sp.Trace(s["G"].T * hg.factored_step(s["theta"], s["M"], s["H"], lr))
    _, after = hg.algorithm_1_step(s["theta"], s["M"], s["G"], s["H"], lr, hyper_lr)
    gap = after - (s["M"] - hyper_lr * surrogate.diff(s["M"]))
    assert gap.doit().expand().doit() == sp.ZeroMatrix(*s["M"].shape)


@pytest.mark.claim("ours-line-7-online", shows="holds", by="property")
@given(st.data())
def test_line_7_follows_the_oracle_at_the_present_factor(data) -> None:
    G, H = data.draw(gradient_pairs())
    M = data.draw(factors(len(G)))
    last = reference.LastStep(0 * G, H, M, reference.Moments(0 * G, 0 * G, 0), 1.0)
    slope = reference.oracle_hypergradient(G, last, M, H, reference.Settings(lr=1.0))
    _, after = hg.algorithm_1_step(0 * G, M, G, H, 1.0, 1.0)
    size = np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + np.linalg.norm(M)
    np.testing.assert_allclose((after - M) / size, -slope / size, atol=1e-13)


def losses(order: str, loss, theta: np.ndarray, M: np.ndarray, lr, hyper_lr, steps: int) -> list:
    """Losses along the `"printed"` or the `"m-first"` order, the first one included."""
    H, found = 0 * theta, []
    for _ in range(steps + 1):
        value, G = loss(theta)
        found.append(value)
        step = hg.algorithm_1_step if order == "printed" else hg.m_first_step
        theta, M = step(theta, M, G, H, lr, hyper_lr)
        H = G
    return found


@pytest.mark.claim("text-2-1-smooth-delay", shows="fails", by="exact")
def test_one_step_late_can_diverge_on_the_smoothest_loss() -> None:
    """`x^2/2` in fractions: the same rates, the ideal order converges, the printed one blows up."""
    one, lr, hyper_lr = fractions([[1]]), Fraction(1, 10), 10
    ideal, late = (
        losses(order, lambda x: (x[0, 0] ** 2 / 2, x), one, one, lr, hyper_lr, 7) for order in ("m-first", "printed")
    )
    assert all(after < before for before, after in pairwise(ideal))
    assert ideal[-1] < ideal[0] / 10**6
    assert late[-1] > 10**6 * late[0]


@pytest.mark.claim("text-2-1-smooth-delay", shows="under", by="property")
@given(st.data())
def test_late_is_harmless_when_the_step_is_small_for_the_curvature(data) -> None:
    """`lr L (tr P_0 + 17 rho (J_0 - inf J)) <= 1`: no step raises the loss, in the printed order neither."""
    rng = np.random.default_rng(data.draw(seeds))
    A = rng.standard_normal((data.draw(dims), data.draw(dims)))
    L = np.linalg.norm(A, 2) ** 2
    theta, M = rng.standard_normal((A.shape[1], 1)), data.draw(factors(A.shape[1], max_rank=3))
    hyper_lr = data.draw(scales)
    kinds = {
        "quadratic": lambda x: (np.sum((A @ x) ** 2) / 2, A.T @ (A @ x)),
        "log cosh": lambda x: log_cosh(A, x),
        "not convex": lambda x: (np.sum(1 - np.cos(A @ x)), A.T @ np.sin(A @ x)),
    }
    loss = kinds[data.draw(st.sampled_from(sorted(kinds)))]
    start, _ = loss(theta)  # the least value of each is zero
    lr = 1 / (L * (np.sum(M**2) + 17 * hyper_lr * start))
    for order in ("printed", "m-first"):
        found = losses(order, loss, theta, M, lr, hyper_lr, 12)
        # Rounding: `1 - cos` loses 16 digits below the first loss's size, the others lose them below their own.
        assert all(after <= before * (1 + 1e-12) + 1e-14 * (1 + start) for before, after in pairwise(found))


@pytest.mark.claim("text-2-1-passed-to-optimizer", shows="fails", by="exact")
def test_the_preconditioned_gradient_does_not_fit_m() -> None:
    theta, M, G = fractions([[0], [0]]), fractions([[1, 0], [0, 1]]), fractions([[1], [2]])
    preconditioned = theta - hg.factored_step(theta, M, G, 1)
    assert preconditioned.shape == theta.shape != M.shape == hg.hypergradient(G, G, M, 1).shape


@pytest.mark.claim("text-2-1-passed-to-optimizer", shows="corrected", by="property")
@given(st.data())
def test_any_optimizer_lowers_the_loss_with_the_hypergradient(data) -> None:
    """One small step of SGD, heavy ball, Nesterov or Adam on M, then the last step taken again: the loss is lower."""
    G, H = data.draw(gradient_pairs())
    G, H = G / np.linalg.norm(G), H / max(np.linalg.norm(H), 1e-300)
    M = data.draw(factors(len(G)))
    slope = hg.hypergradient(G, H, M, 1.0)
    optimizers = (reference.SGD(), reference.SGD(0.9), reference.SGD(0.9, nesterov=True), reference.Adam())
    optimizer = data.draw(st.sampled_from(optimizers))
    _, change = optimizer.update(reference.Moments(0 * M, 0 * M, 0), slope, M, 1.0)
    assert change.shape == M.shape
    # phi(M - s change) = phi - s <slope, change> - s^2 <G, change change^T H>: pick s from the formula.
    gain, bend = np.sum(slope * change), abs(np.sum(G * (change @ (change.T @ H))))
    assert gain >= 0
    s = min(1.0, gain / (2 * bend)) if bend > 0 else 1.0
    before = np.sum(G * hg.factored_step(0 * G, M, H, 1.0))
    after = np.sum(G * hg.factored_step(0 * G, M - s * change, H, 1.0))
    size = (np.linalg.norm(M) + np.linalg.norm(change)) ** 2
    assert after <= before - s * gain / 2 + 1e-13 * size


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hg.hypergradient(np.ones((2, 1)), np.ones((3, 1)), np.eye(2), 1.0), r"H: expected shape \(2, 1\)"),
        (lambda: hg.factored_step(np.ones((2, 1)), np.ones((3, 2)), np.ones((2, 1)), 1.0), r"M: expected shape \(2, "),
        (lambda: hg.preconditioned_step(np.ones((2, 1)), np.eye(2), [[1], [np.nan]], 1.0), "G: expected finite"),
        (lambda: hg.eq_9_terms_as_printed(np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 3))), r"M: expected shape"),
        (lambda: hg.product_step(np.ones((2, 1)), np.ones((2, 3)), np.ones((2, 1)), 1.0), r"M: expected shape \(2, 2"),
        (lambda: hg.chain_rule(np.ones((3, 1)), np.ones((2, 1, 2, 2))), r"G: expected shape \(2, 1\)"),
        (lambda: hg.m_first_step(*[np.ones((1, 1))] * 4, 1.0, float("inf")), "hyper_lr: expected a finite"),
    ],
)
def test_bad_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
