"""The oracle against the closed forms, against Algorithm 1 in exact fractions, and its refusals."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fop_theory import reference as ref
from fop_theory.hypergradient import hypergradient
from tests.strategies import dims, factors, gradient_pairs, seeds

H = np.array([[2.0, 0.5], [0.5, 1.0]])
START = np.array([[1.0], [-2.0]])


def quadratic(theta: np.ndarray) -> np.ndarray:
    return H @ theta


def last_step(G_before: np.ndarray, M: np.ndarray, lr: float) -> ref.LastStep:
    zeros = np.zeros_like(G_before)
    return ref.LastStep(zeros, G_before, M, ref.Moments(zeros, zeros, 0), lr)


@given(st.data())
def test_its_derivative_is_eq_4(data) -> None:
    """Two ways that share no line: the complex step through the forward step, and the closed form."""
    G, before = data.draw(gradient_pairs())
    M = data.draw(factors(G.shape[0]))
    for form in ("dense", "low-rank"):
        settings = ref.Settings(lr=0.3, form=form, through="step")
        ours = ref.oracle_hypergradient(G, last_step(before, M, 0.3), M, before, settings)
        size = np.linalg.norm(G) * np.linalg.norm(before) * np.linalg.norm(M) + 1e-300
        np.testing.assert_allclose(ours / size, hypergradient(G, before, M, 0.3) / size, atol=1e-14)


def algorithm_1_in_fractions(steps: int, order: str, index: str) -> tuple[list, list]:
    """Algorithm 1 line by line for the quadratic above, with loops over entries and no library."""
    A = [[Fraction(2), Fraction(1, 2)], [Fraction(1, 2), Fraction(1)]]
    theta, M = [Fraction(1), Fraction(-2)], [[Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)]]
    lr, hyper_lr = Fraction(1, 8), Fraction(1, 16)
    before, used = None, None
    both = range(2)
    for _ in range(steps):
        g = [sum(A[i][j] * theta[j] for j in both) for i in both]
        if before is not None:
            at = M if (order == "paper" and index == "printed") else used
            S = [[g[i] * before[j] + before[i] * g[j] for j in both] for i in both]
            learned = [[M[i][j] + hyper_lr * lr * sum(S[i][s] * at[s][j] for s in both) for j in both] for i in both]
        else:
            learned = M
        used = learned if order == "m-first" else M
        P = [[sum(used[i][s] * used[j][s] for s in both) for j in both] for i in both]
        theta = [theta[i] - lr * sum(P[i][j] * g[j] for j in both) for i in both]
        M, before = learned, g
    return theta, M


@pytest.mark.parametrize(("order", "index"), [("paper", "printed"), ("paper", "exact"), ("m-first", "exact")])
def test_it_follows_algorithm_1_in_fractions(order: str, index: str) -> None:
    settings = ref.Settings(lr=1 / 8, hyper_lr=1 / 16, order=order, index=index)
    thetas, factors_ = ref.run(quadratic, START, np.eye(2), settings, 6)
    theta, M = algorithm_1_in_fractions(6, order, index)
    np.testing.assert_allclose(thetas[-1].ravel(), [float(x) for x in theta], rtol=1e-13)
    np.testing.assert_allclose(factors_[-1], [[float(x) for x in row] for row in M], rtol=1e-13)


def test_the_three_readings_differ() -> None:
    """So that the test above can fail: the orders and the two indices are different algorithms."""
    ends = {
        (order, index): algorithm_1_in_fractions(6, order, index)
        for order, index in [("paper", "printed"), ("paper", "exact"), ("m-first", "exact")]
    }
    assert len({str(end) for end in ends.values()}) == 3


@given(dims, st.integers(1, 3), seeds)
def test_a_frozen_identity_is_the_base(m: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, gradients = rng.standard_normal((m, n)), rng.standard_normal((5, m, n))
    for base in (ref.SGD(0.9), ref.SGD(0.9, nesterov=True), ref.Adam(), ref.Adam(weight_decay=0.1, decoupled=True)):
        settings = ref.Settings(lr=0.1, base=base)
        state, ours = ref.initial_state(theta, np.eye(m)), theta
        moments, plain = ref.Moments(np.zeros((m, n)), np.zeros((m, n)), 0), theta
        for G in gradients:
            state, ours = ref.step(state, ours, G, settings)
            moments, change = base.update(moments, G, plain, 0.1)
            plain = plain - change
        np.testing.assert_array_equal(ours, plain)


@given(st.data())
def test_the_greedy_derivative_sees_nesterov_and_the_plain_one_does_not(data) -> None:
    """One Nesterov step moves theta by `lr (1 + alpha) P h` plus what M does not touch."""
    G, before = data.draw(gradient_pairs())
    M = data.draw(factors(G.shape[0]))
    base = ref.SGD(0.9, nesterov=True)
    size = np.linalg.norm(G) * np.linalg.norm(before) * np.linalg.norm(M) + 1e-300
    for through, factor in (("step", 1.9), ("plain", 1.0)):
        settings = ref.Settings(lr=0.3, base=base, through=through)
        ours = ref.oracle_hypergradient(G, last_step(before, M, 0.3), M, before, settings)
        np.testing.assert_allclose(ours / size, factor * hypergradient(G, before, M, 0.3) / size, atol=1e-13)


def test_through_the_velocity_uses_the_raw_momentum() -> None:
    settings = ref.Settings(lr=0.1, hyper_lr=0.02, base=ref.SGD(0.9), through="velocity", order="m-first")
    state, theta, raw, M = ref.initial_state(START, np.eye(2)), START, np.zeros((2, 1)), np.eye(2)
    for t in range(5):
        g = quadratic(theta)
        if t:
            M = M - 0.02 * hypergradient(g, raw, M, 0.1)
        raw = 0.9 * raw + g
        state, theta = ref.step(state, theta, g, settings)
        np.testing.assert_allclose(state.M, M, rtol=1e-13)


def test_a_schedule_reaches_the_hypergradient_with_the_rate_of_the_last_step() -> None:
    settings = ref.Settings(lr=1.0, hyper_lr=0.1, order="m-first")
    state, theta = ref.step(ref.initial_state(START, np.eye(2)), START, quadratic(START), settings, lr=0.25)
    g = quadratic(theta)
    state, _ = ref.step(state, theta, g, settings, lr=0.125)
    np.testing.assert_allclose(state.M, np.eye(2) - 0.1 * hypergradient(g, quadratic(START), np.eye(2), 0.25))


@pytest.mark.parametrize(
    ("form", "M", "slope"),
    [
        ("s-hd", [[2.0]], lambda g, h, M: [[np.sum(g * h)]]),
        ("pp-hd", [[2.0], [3.0]], lambda g, h, M: g * h),
        ("diagonal", [[2.0], [3.0]], lambda g, h, M: 2 * g * h * M),
        ("square", [[1.0, 2.0], [3.0, 4.0]], lambda g, h, M: g @ h.T @ M.T + M.T @ g @ h.T),
    ],
)
def test_the_other_forms(form, M, slope) -> None:
    g, h, M = np.array([[1.0], [-3.0]]), np.array([[2.0], [5.0]]), np.array(M)
    settings = ref.Settings(lr=0.5, form=form)
    ours = ref.oracle_hypergradient(g, last_step(h, M, 0.5), M, h, settings)
    np.testing.assert_allclose(ours, -0.5 * np.asarray(slope(g, h, M)), rtol=1e-14)


@given(st.data())
def test_through_the_norm_it_is_orthogonal_to_m_and_else_it_is_not(data) -> None:
    G, before = data.draw(gradient_pairs())
    M = data.draw(factors(G.shape[0]))
    settings = ref.Settings(lr=0.3, normalize=True)
    last = last_step(before, M, 0.3)
    true = ref.oracle_hypergradient(G, last, M, before, settings)
    size = np.linalg.norm(G) * np.linalg.norm(before) + 1e-300
    assert abs(np.sum(true * M)) <= 1e-13 * size * G.shape[0]
    P = M @ M.T
    constant = ref.oracle_hypergradient(G, last, M, before, replace(settings, through_norm=False))
    printed = hypergradient(G, before, M, 0.3) * np.sqrt(G.shape[0]) / np.linalg.norm(P)
    np.testing.assert_allclose(constant / size, printed / size, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr: expected a number in"),
        ({"lr": float("nan")}, "lr: expected a finite number, got nan"),
        ({"hyper_lr": -1.0}, "hyper_lr: expected a number in"),
        ({"form": "kron"}, "form: expected one of dense, low-rank, .* got 'kron'"),
        ({"order": "last"}, "order: expected one of paper, m-first, got 'last'"),
        ({"normalize": True, "form": "s-hd"}, "normalize: expected a matrix form .* got form 's-hd'"),
        ({"through": "velocity", "base": ref.Adam()}, "through: 'velocity' needs SGD as the base"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        ref.Settings(**{"lr": 0.1, **changes})


def test_bad_gradients_are_refused_before_anything_changes() -> None:
    state = ref.initial_state(START, np.eye(2))
    with pytest.raises(ValueError, match=r"grad: expected shape \(2, 1\), got \(2, 2\)"):
        ref.step(state, START, np.eye(2), ref.Settings(lr=0.1))
    with pytest.raises(ValueError, match="grad: expected finite numbers"):
        ref.step(state, START, np.array([[np.nan], [1.0]]), ref.Settings(lr=0.1))
    assert state.last is None
    np.testing.assert_array_equal(state.M, np.eye(2))


def test_without_a_rate_m_never_learns() -> None:
    settings = ref.Settings(lr=0.1, hyper_lr=0.5)
    _, learned = ref.run(quadratic, START, np.eye(2), settings, 4)
    _, still = ref.run(quadratic, START, np.eye(2), replace(settings, hyper_lr=0.0), 4)
    assert np.abs(learned[-1] - np.eye(2)).max() > 0.01
    np.testing.assert_array_equal(still[-1], np.eye(2))
