"""FOP under momentum, Nesterov's too, and weight decay: Eqs. (5)-(7) and the text around them."""

from __future__ import annotations

from fractions import Fraction

import numdifftools as nd
import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import hypergradient as hg
from fop_theory import momentum
from fop_theory import reference as oracle
from fop_theory.reference import complex_step_gradient
from tests.helpers import column, symbols
from tests.strategies import factors, gradient_pairs, scales, seeds

decays = st.floats(0, 0.99)


def unrolled(gradients, factors_, v, decay):
    """All velocities, by Eq. (5)."""
    velocities = []
    for G, M in zip(gradients, factors_, strict=True):
        v = momentum.velocity(v, M, G, decay)
        velocities.append(v)
    return velocities


# ---------------------------------------------------------------------------------------
# Eqs. (5)-(7)


@pytest.mark.claim("eq-5", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 1), (2, 2, 3)])
def test_eq_5_sums_the_preconditioned_gradients(m: int, n: int, k: int) -> None:
    """Three steps: the velocity is the sum of `alpha^(t-s) M_s M_s^T g_s`, entry by entry."""
    alpha = sp.Symbol("alpha")
    Gs = [symbols(f"g{s}_", m, n) for s in range(3)]
    Ms = [symbols(f"m{s}_", m, k) for s in range(3)]
    v = unrolled(Gs, Ms, sp.zeros(m, n), alpha)[-1]
    direct = sp.Matrix(m, n, lambda i, j: sum(
        alpha ** (2 - s) * sum(Ms[s][i, a] * Ms[s][b, a] * Gs[s][b, j] for a in range(k) for b in range(m))
        for s in range(3)
    ))  # fmt: skip
    assert (v - direct).expand() == sp.zeros(m, n)


@pytest.mark.claim("eq-5", shows="holds", by="property")
@given(st.data())
def test_eq_5_is_the_oracle_s_velocity(data) -> None:
    """Against gradient descent with momentum that is handed P G."""
    G, v = data.draw(gradient_pairs())
    M, decay = data.draw(factors(len(G))), data.draw(decays)
    P = sum(np.outer(column, column) for column in M.T)
    state, _ = oracle.SGD(momentum=decay).update(oracle.Moments(v, 0 * v, 3), P @ G, 0 * v, 1.0)
    size = np.linalg.norm(v) + np.linalg.norm(G) * np.sum(M**2) + 1e-300
    np.testing.assert_allclose(momentum.velocity(v, M, G, decay) / size, state.first / size, atol=1e-14)


@pytest.mark.claim("eq-6", shows="fails", by="exact")
def test_eq_6_as_printed_has_no_learning_rate() -> None:
    """J = theta, M = 1, alpha = 0, epsilon = 1/10: Eq. (2) and Eq. (7) step by 1/10, printed (5) and (6) by 1."""
    zero, one, lr = column(0), column(1), Fraction(1, 10)
    v = momentum.velocity(zero, one, one, 0)
    printed = momentum.velocity_step_as_printed(zero, v)
    assert printed[0, 0] == -1
    assert hg.factored_step(zero, one, one, lr) == momentum.momentum_step(zero, zero, one, one, 0, lr) == -lr
    assert momentum.velocity_step(zero, v, lr)[0, 0] == -lr


@pytest.mark.claim("eq-6", shows="corrected", by="symbolic")
@pytest.mark.claim("eq-7", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 1), (2, 2, 3)])
def test_eq_7_is_eq_5_in_eq_6_with_a_learning_rate(m: int, n: int, k: int) -> None:
    theta, v, G, M = symbols("t", m, n), symbols("v", m, n), symbols("g", m, n), symbols("m", m, k)
    alpha, lr = sp.symbols("alpha epsilon")
    full = momentum.momentum_step(theta, v, M, G, alpha, lr)
    composed = momentum.velocity_step(theta, momentum.velocity(v, M, G, alpha), lr)
    assert (full - composed).expand() == sp.zeros(m, n)
    printed = momentum.velocity_step_as_printed(theta, momentum.velocity(v, M, G, alpha))
    assert (full - printed).expand() != sp.zeros(m, n)
    assert (full - printed).subs(lr, 1).expand() == sp.zeros(m, n)


@pytest.mark.claim("eq-6", shows="corrected", by="property")
@pytest.mark.claim("eq-7", shows="holds", by="property")
@pytest.mark.claim("text-2-1-passed-to-optimizer", shows="corrected", by="property")
@given(st.data())
def test_eq_7_is_the_oracle_s_momentum(data) -> None:
    """Without momentum it is Eq. (2); with it, gradient descent with momentum that is handed P G."""
    G, v = data.draw(gradient_pairs())
    M, decay, lr = data.draw(factors(len(G))), data.draw(decays), data.draw(scales)
    P = sum(np.outer(column, column) for column in M.T)
    theta = np.random.default_rng(data.draw(seeds)).standard_normal(G.shape)
    _, change = oracle.SGD(momentum=decay).update(oracle.Moments(v, 0 * v, 3), P @ G, theta, lr)
    size = lr * (np.linalg.norm(v) + np.linalg.norm(G) * np.sum(M**2)) + np.linalg.norm(theta)
    ours = momentum.momentum_step(theta, v, M, G, decay, lr)
    np.testing.assert_allclose(ours / size, (theta - change) / size, atol=1e-14)
    composed = momentum.velocity_step(theta, momentum.velocity(v, M, G, decay), lr)
    np.testing.assert_allclose(composed / size, (theta - change) / size, atol=1e-14)
    plain = momentum.momentum_step(theta, v, M, G, 0.0, lr)
    np.testing.assert_allclose(plain / size, hg.factored_step(theta, M, G, lr) / size, atol=1e-14)


# ---------------------------------------------------------------------------------------
# "the update is the same as for standard gradient descent"


@pytest.mark.claim("text-2-3-same-update", shows="under", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 2), (2, 2, 1)])
def test_the_greedy_gradient_under_momentum_is_eq_4(m: int, n: int, k: int) -> None:
    """A quadratic loss, three steps with three factors: only the last one's gradient is asked for."""
    A = sp.Matrix(m, m, lambda i, j: 1 + i + j if i != j else 5 + i)
    M = symbols("m", m, k)
    alpha, lr = sp.Rational(2, 3), sp.Rational(1, 5)
    theta, v = sp.Matrix(m, n, range(1, m * n + 1)), sp.zeros(m, n)
    for s in range(2):
        earlier = sp.Matrix(m, k, lambda i, j, s=s: i - j + s)
        H = A @ theta
        theta, v = momentum.momentum_step(theta, v, earlier, H, alpha, lr), momentum.velocity(v, earlier, H, alpha)
    H = A @ theta
    after = momentum.momentum_step(theta, v, M, H, alpha, lr)
    loss = (after.T @ A @ after).trace() / 2
    direct = M.applyfunc(lambda entry: sp.diff(loss, entry))
    assert (direct - hg.hypergradient(A @ after, H, M, lr)).expand() == sp.zeros(m, k)


@pytest.mark.claim("text-2-3-same-update", shows="under", by="property")
@given(st.data())
def test_the_greedy_gradient_under_momentum_by_central_differences(data) -> None:
    """`<G, theta>` after a step from any velocity, by Richardson extrapolation."""
    G, H = data.draw(gradient_pairs())
    M, decay, lr = data.draw(factors(len(G))), data.draw(decays), data.draw(scales)
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-30
    # A velocity of the size of the step: a larger one would only add rounding to a constant.
    v = np.random.default_rng(data.draw(seeds)).standard_normal(H.shape) * np.linalg.norm(H)
    linear = nd.Gradient(
        lambda x: np.sum(G * momentum.momentum_step(0 * G, v, x.reshape(M.shape), H, decay, lr)) / size
    )
    ours = hg.hypergradient(G, H, M, lr) / size
    np.testing.assert_allclose(linear(M.ravel()).reshape(M.shape), ours, atol=1e-7)


@pytest.mark.claim("text-2-3-same-update", shows="fails", by="exact")
def test_with_one_m_for_all_steps_the_greedy_gradient_is_half_of_it() -> None:
    """J = theta, alpha = 1/2: after many steps the derivative of one step by M is twice Eq. (4)."""
    M, alpha = sp.Symbol("M"), sp.Rational(1, 2)
    one, t = sp.Matrix([1]), 30
    v = unrolled([one] * t, [sp.Matrix([M])] * t, sp.zeros(1, 1), alpha)[-1]
    last_step = momentum.velocity_step(sp.zeros(1, 1), v, 1)[0]
    ratio = sp.diff(last_step, M) / hg.hypergradient(one, one, sp.Matrix([M]), 1)[0]
    assert sp.simplify(ratio) == 2 - sp.Rational(1, 2**29)


@pytest.mark.claim("text-2-3-backpropagate-through-v", shows="holds", by="symbolic")
def test_a_shared_m_reaches_the_loss_through_v_as_well() -> None:
    """Two steps with one M on J = theta^2/2: Eq. (4) misses terms, and with alpha the part through v."""
    M, alpha, lr = sp.symbols("M alpha epsilon")
    theta0 = theta = sp.Matrix([1])
    v, m = sp.zeros(1, 1), sp.Matrix([M])
    for _ in range(2):
        H = theta
        theta, v = momentum.momentum_step(theta, v, m, H, alpha, lr), momentum.velocity(v, m, H, alpha)
    whole = sp.diff(theta[0] ** 2 / 2, M)
    greedy = hg.hypergradient(theta, H, m, lr)[0]
    first = hg.factored_step(theta0, m, theta0, lr)[0]
    through_theta = theta[0] * (1 - lr * M**2) * sp.diff(first, M)
    through_v = theta[0] * (-lr * alpha) * sp.diff(M**2, M) * theta0[0]
    assert sp.expand(whole - greedy - through_theta - through_v) == 0
    assert sp.expand(through_v.subs(alpha, 0)) == 0
    assert sp.expand(through_v) != 0


@pytest.mark.claim("text-2-3-backpropagate-through-v", shows="holds", by="property")
@given(st.integers(1, 8), st.floats(0.1, 0.99), seeds)
def test_the_part_through_v_is_what_eq_4_misses_on_a_linear_loss(steps: int, decay: float, seed: int) -> None:
    """M updated after `steps` steps, constant gradient c: the whole derivative counts (1-a^j)/(1-a) for each step."""
    rng = np.random.default_rng(seed)
    c, M = rng.standard_normal((3, 1)), rng.standard_normal((3, 2))

    def loss(M):
        theta = v = 0 * c
        for _ in range(steps):
            theta, v = momentum.momentum_step(theta, v, M, c, decay, 1.0), momentum.velocity(v, M, c, decay)
        return np.sum(c * theta)

    counted = sum(momentum.lasting_influence(decay, j) for j in range(1, steps + 1))
    ours = counted * hg.hypergradient(c, c, M, 1.0)
    np.testing.assert_allclose(complex_step_gradient(loss, M), ours, rtol=1e-10, atol=1e-12 * counted)
    assert counted > steps or steps == 1


# ---------------------------------------------------------------------------------------
# Through the velocity


@pytest.mark.claim("ours-velocity-hypergradient", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 1), (2, 1, 2)])
def test_one_m_for_three_steps(m: int, n: int, k: int) -> None:
    """The iterates fixed, one M in all velocities: v = M M^T q, and the last step's derivative is Eq. (4) with q."""
    alpha, lr = sp.symbols("alpha epsilon")
    Hs, G, M = [symbols(f"h{s}_", m, n) for s in range(3)], symbols("g", m, n), symbols("m", m, k)
    v = unrolled(Hs, [M] * 3, sp.zeros(m, n), alpha)[-1]
    q = sp.zeros(m, n)
    for H in Hs:
        q = momentum.raw_momentum(q, H, alpha)
    assert (v - M @ M.T @ q).expand() == sp.zeros(m, n)
    linear = (G.T @ momentum.velocity_step(sp.zeros(m, n), v, lr)).trace()
    direct = M.applyfunc(lambda entry: sp.diff(linear, entry))
    assert (direct - momentum.velocity_hypergradient(G, q, M, lr)).expand() == sp.zeros(m, k)


@pytest.mark.claim("ours-velocity-hypergradient", shows="holds", by="property")
@given(st.data())
def test_one_m_for_many_steps_complex_step(data) -> None:
    """1 to 6 drawn gradients, any rank; also against the oracle, which differentiates the velocity its own way."""
    G, H = data.draw(gradient_pairs())
    M, decay, lr = data.draw(factors(len(G))), data.draw(decays), data.draw(scales)
    rng = np.random.default_rng(data.draw(seeds))
    past = [rng.standard_normal(H.shape) * np.linalg.norm(H) for _ in range(data.draw(st.integers(0, 5)))]
    q = 0 * H
    for gradient in (*past, H):
        q = momentum.raw_momentum(q, gradient, decay)
    weight = sum(np.linalg.norm(gradient) for gradient in (*past, H))
    size = lr * np.linalg.norm(G) * weight * np.linalg.norm(M) + 1e-300
    velocity = lambda M: unrolled([*past, H], [M] * (len(past) + 1), 0 * H, decay)[-1]  # noqa: E731
    direct = complex_step_gradient(lambda M: np.sum(G * momentum.velocity_step(0 * G, velocity(M), lr)), M)
    ours = momentum.velocity_hypergradient(G, q, M, lr)
    np.testing.assert_allclose(direct / size, ours / size, atol=1e-13)
    settings = oracle.Settings(lr=lr, through="velocity", base=oracle.SGD(momentum=decay))
    last = oracle.LastStep(0 * G, H, M, oracle.Moments(0 * G, 0 * G, 0), lr)
    np.testing.assert_allclose(oracle.oracle_hypergradient(G, last, M, q, settings) / size, ours / size, atol=1e-13)


@pytest.mark.claim("ours-lasting-influence", shows="holds", by="symbolic")
def test_influence_is_a_geometric_sum() -> None:
    """The derivative of theta_T by the M of step s alone, constant gradients, T - s + 1 = 1 ... 5 steps later."""
    alpha, x = sp.symbols("alpha x")
    one = sp.Matrix([1])
    for steps in range(1, 6):
        theta, v = sp.zeros(1, 1), sp.zeros(1, 1)
        for s in range(steps):
            M = sp.Matrix([x]) if s == 0 else sp.Matrix([sp.Symbol(f"m{s}")])
            theta, v = momentum.momentum_step(theta, v, M, one, alpha, 1), momentum.velocity(v, M, one, alpha)
        greedy = hg.hypergradient(one, one, sp.Matrix([x]), 1)[0]
        ratio = sp.cancel(sp.diff(theta[0], x) / greedy)
        assert sp.cancel(ratio - momentum.lasting_influence(alpha, steps)) == 0
    a, T = sp.Symbol("a", positive=True), sp.Symbol("T", integer=True, positive=True)
    below_one = 1 / (1 + a)
    limit = sp.limit(momentum.lasting_influence(below_one, T), T, sp.oo)
    assert sp.simplify(limit - 1 / (1 - below_one)) == 0


@pytest.mark.claim("ours-lasting-influence", shows="holds", by="property")
@given(st.data())
def test_influence_of_each_m_on_a_linear_loss(data) -> None:
    """Any shape and rank, another M at every step: each one's whole influence by complex step."""
    c, _ = data.draw(gradient_pairs())
    decay, steps = data.draw(decays), data.draw(st.integers(1, 5))
    Ms = [data.draw(factors(len(c))) for _ in range(steps)]
    s = data.draw(st.integers(0, steps - 1))

    def loss(M):
        theta = v = 0 * c
        for i, other in enumerate(Ms):
            used = M if i == s else other
            theta, v = momentum.momentum_step(theta, v, used, c, decay, 1.0), momentum.velocity(v, used, c, decay)
        return np.sum(c * theta)

    ours = momentum.lasting_influence(decay, steps - s) * hg.hypergradient(c, c, Ms[s], 1.0)
    size = np.linalg.norm(c) ** 2 * max(np.sum(M**2) for M in Ms) * steps + 1e-300
    np.testing.assert_allclose(complex_step_gradient(loss, Ms[s]) / size, ours / size, atol=1e-12)


@pytest.mark.claim("ours-nesterov", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 2), (2, 2, 1)])
def test_nesterov_by_components(m: int, n: int, k: int) -> None:
    G, H, v, M = symbols("g", m, n), symbols("h", m, n), symbols("v", m, n), symbols("m", m, k)
    alpha, lr = sp.symbols("alpha epsilon")
    linear = (G.T @ momentum.nesterov_step(sp.zeros(m, n), v, M, H, alpha, lr)).trace()
    direct = M.applyfunc(lambda entry: sp.diff(linear, entry))
    assert (direct - momentum.nesterov_hypergradient(G, H, M, alpha, lr)).expand() == sp.zeros(m, k)


@pytest.mark.claim("ours-nesterov", shows="holds", by="property")
@given(st.data())
def test_nesterov_is_the_oracle_s(data) -> None:
    G, H = data.draw(gradient_pairs())
    M, decay, lr = data.draw(factors(len(G))), data.draw(decays), data.draw(scales)
    v = np.random.default_rng(data.draw(seeds)).standard_normal(H.shape)
    base = oracle.SGD(momentum=decay, nesterov=True)
    last = oracle.LastStep(0 * G, H, M, oracle.Moments(v, 0 * v, 2), lr)
    direct = oracle.oracle_hypergradient(G, last, M, v, oracle.Settings(lr=lr, through="step", base=base))
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    np.testing.assert_allclose(
        direct / size, momentum.nesterov_hypergradient(G, H, M, decay, lr) / size, atol=1e-13
    )  # fmt: skip
    _, change = base.update(last.moments, M @ (M.T @ H), 0 * G, lr)
    size = lr * (np.linalg.norm(v) + np.linalg.norm(H) * np.sum(M**2)) + 1e-300
    np.testing.assert_allclose(-change / size, momentum.nesterov_step(0 * G, v, M, H, decay, lr) / size, atol=1e-14)


# ---------------------------------------------------------------------------------------
# Weight decay


@pytest.mark.claim("ours-weight-decay-coupled", shows="holds", by="symbolic")
@pytest.mark.parametrize("meta", ["loss", "loss and penalty"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 1), (2, 2, 1)])
def test_coupled_weight_decay_by_components(m: int, n: int, k: int, meta: str) -> None:
    """A quadratic loss; M is judged by the loss alone, or by the loss with its penalty: G is that one's gradient."""
    A = sp.Matrix(m, m, lambda i, j: 1 + i + j if i != j else 5 + i)
    theta, M, w, lr = sp.Matrix(m, n, range(1, m * n + 1)), symbols("m", m, k), *sp.symbols("w epsilon")
    after = momentum.coupled_decay_step(theta, M, A @ theta, lr, w)
    judge = A if meta == "loss" else A + w * sp.eye(m)
    loss = (after.T @ judge @ after).trace() / 2
    direct = M.applyfunc(lambda entry: sp.diff(loss, entry))
    ours = momentum.coupled_decay_hypergradient(judge @ after, A @ theta, theta, M, lr, w)
    assert (direct - ours).expand() == sp.zeros(m, k)


@pytest.mark.claim("ours-weight-decay-coupled", shows="holds", by="property")
@given(st.data())
def test_coupled_weight_decay_central_differences(data) -> None:
    G, H = data.draw(gradient_pairs())
    M, lr, w = data.draw(factors(len(G))), data.draw(scales), data.draw(st.floats(0, 1))
    theta = np.random.default_rng(data.draw(seeds)).standard_normal(G.shape)
    size = lr * np.linalg.norm(G) * (np.linalg.norm(H) + w * np.linalg.norm(theta)) * np.linalg.norm(M) + 1e-30
    moved = lambda M: (momentum.coupled_decay_step(theta, M, H, lr, w) - theta) / size  # noqa: E731
    linear = nd.Gradient(lambda x: np.sum(G * moved(x.reshape(M.shape))))
    ours = momentum.coupled_decay_hypergradient(G, H, theta, M, lr, w) / size
    # The difference `step - theta` carries theta's rounding, 1e-16 |theta| |G| / size, which matters for tiny steps.
    noise = 1e-9 * np.linalg.norm(G) * np.linalg.norm(theta) / size
    np.testing.assert_allclose(linear(M.ravel()).reshape(M.shape), ours, atol=1e-7 + noise)


@pytest.mark.claim("ours-weight-decay-coupled", shows="holds", by="exact")
def test_what_leaving_out_the_decay_costs() -> None:
    """With Eq. (4) and H alone, `-lr w (G theta^T + theta G^T) M` is missing; here it is the whole of it."""
    theta, one, zero, lr, w = column(3), column(1), column(0), Fraction(1, 2), Fraction(1, 10)
    assert hg.hypergradient(one, zero, one, lr) == 0
    assert momentum.coupled_decay_hypergradient(one, zero, theta, one, lr, w) == -2 * lr * w * 3


@pytest.mark.claim("ours-weight-decay-decoupled", shows="holds", by="symbolic")
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 1, 1), (2, 2, 1)])
def test_decoupled_weight_decay_leaves_eq_4_alone(m: int, n: int, k: int) -> None:
    A = sp.Matrix(m, m, lambda i, j: 1 + i + j if i != j else 5 + i)
    theta, M, w, lr = sp.Matrix(m, n, range(1, m * n + 1)), symbols("m", m, k), *sp.symbols("w epsilon")
    after = momentum.decoupled_decay_step(theta, M, A @ theta, lr, w)
    loss = (after.T @ A @ after).trace() / 2
    direct = M.applyfunc(lambda entry: sp.diff(loss, entry))
    assert (direct - hg.hypergradient(A @ after, A @ theta, M, lr)).expand() == sp.zeros(m, k)


@pytest.mark.claim("ours-weight-decay-decoupled", shows="holds", by="property")
@given(st.data())
def test_decoupled_weight_decay_is_the_oracle_s(data) -> None:
    """SGD in the oracle adds its decay after P, which is the decoupled form."""
    G, H = data.draw(gradient_pairs())
    M, lr, w = data.draw(factors(len(G))), data.draw(scales), data.draw(st.floats(0, 1))
    theta = np.random.default_rng(data.draw(seeds)).standard_normal(G.shape)
    base = oracle.SGD(weight_decay=w)
    nothing = oracle.Moments(0 * G, 0 * G, 0)
    _, change = base.update(nothing, M @ (M.T @ H), theta, lr)
    size = lr * np.linalg.norm(H) * np.sum(M**2) + np.linalg.norm(theta) * (1 + lr * w)
    ours = momentum.decoupled_decay_step(theta, M, H, lr, w)
    np.testing.assert_allclose((theta - change) / size, ours / size, atol=1e-14)
    last = oracle.LastStep(0 * theta, H, M, nothing, lr)
    direct = oracle.oracle_hypergradient(G, last, M, H, oracle.Settings(lr=lr, through="step", base=base))
    size = lr * np.linalg.norm(G) * np.linalg.norm(H) * np.linalg.norm(M) + 1e-300
    np.testing.assert_allclose(direct / size, hg.hypergradient(G, H, M, lr) / size, atol=1e-13)


def test_bad_arguments_are_named() -> None:
    x, M = np.ones((2, 1)), np.eye(2)
    with pytest.raises(ValueError, match="G: expected shape"):
        momentum.velocity(x, M, x.T, 0.9)
    with pytest.raises(ValueError, match="v_next: expected shape"):
        momentum.velocity_step(x, x.T, 0.1)
    with pytest.raises(ValueError, match="decay: expected a finite number"):
        momentum.momentum_step(x, x, M, x, np.inf, 0.1)
    with pytest.raises(ValueError, match=r"decay: expected a number in \(-1, 1\), got 1"):
        momentum.lasting_influence(1, 3)
    with pytest.raises(ValueError, match="steps: expected"):
        momentum.lasting_influence(0.5, 0)
    with pytest.raises(ValueError, match="weight_decay: expected"):
        momentum.coupled_decay_step(x, M, x, 0.1, -1)
