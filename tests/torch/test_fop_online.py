"""What the theory of learning online promises, kept by the optimizer: linear P's speed, and no step that is lost."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from fop_theory import online
from fop_theory import reference as ref
from fop_torch import FOP
from tests.strategies import seeds

Value = Callable[[Tensor], Tensor]


def wave(seed: int, shape: tuple[int, int] = (2, 3)) -> tuple[Value, float]:
    """A smooth loss of a matrix, not convex, and its smoothness L."""
    rng = np.random.default_rng(seed)
    A = torch.tensor(rng.standard_normal((6, 6)))
    curvature, shift = A @ A.mT / 6, torch.tensor(rng.standard_normal(6))

    def value(w: Tensor) -> Tensor:
        x = w.reshape(-1)
        return (curvature @ x) @ x / 2 + shift @ x + 0.3 * torch.cos(2 * x).sum()

    return value, float(torch.linalg.eigvalsh(curvature)[-1]) + 1.2


def closing(value: Value, p: Tensor, optimizer: Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value(p)
        loss.backward()
        return loss

    return closure


def start(seed: int) -> Tensor:
    return nn.Parameter(torch.tensor(np.random.default_rng(seed + 1).standard_normal((2, 3))))


# ------------------------------------------------------------------------------------------------------ linear P


@given(seed=seeds, share=st.floats(0.1, 1.9), columns=st.integers(1, 3))
def test_linear_p_is_superlinear_on_a_quadratic(seed: int, share: float, columns: int) -> None:
    """`lr = 1/L`, P first: `hyper_lr` is the theorem's rate over `lr`, and one is the best."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    curvatures = np.array([0.2, 0.5, 1.0])
    A, inverse = (axes * curvatures) @ axes.T, (axes / curvatures) @ axes.T
    p = nn.Parameter(torch.tensor(rng.standard_normal((columns, 3))))
    optimizer = FOP([p], 1.0, preconditioner="linear", hyper=SGD, hyper_lr=share, order="m-first")
    value: Value = lambda w: ((w @ torch.tensor(A)) * w).sum() / 2  # noqa: E731
    losses, distances = [], []
    for _ in range(20):
        losses.append(float(optimizer.step(closing(value, p, optimizer)).detach()))
        distances.append(float(np.linalg.norm(optimizer.state[p]["M"].numpy() - inverse)))
    assert all(after <= before + 1e-12 for before, after in pairwise(distances))
    constant = online.linear_constant(distances[0] ** 2, share, 1.0)
    for K in range(1, 20):
        assert losses[K] <= losses[0] * online.superlinear_factor(constant, K) * (1 + 1e-9) + 1e-25 * losses[0]


# ------------------------------------------------------------------------------------------------------ the oracle

FORMS = {"dense": "dense", "linear": "online", "exponential": "exponential"}
BASES: dict[str, tuple[type[Optimizer], dict[str, Any], ref.Optimizer]] = {
    "sgd": (SGD, {}, ref.SGD()),
    "momentum": (SGD, {"momentum": 0.5}, ref.SGD(0.5)),
    "adam": (Adam, {}, ref.Adam()),
}


def looked_ahead(
    state: ref.State, theta: np.ndarray, value: Any, gradient: Any, settings: ref.Settings
) -> tuple[ref.State, np.ndarray, bool]:
    """The step by the oracle: both steps, `online.null_step` between them, and what M learns where P's is given up."""
    grad = gradient(theta)
    moments, change = settings.base.update(state.base, grad, theta, settings.lr)
    after, ahead = ref.step(state, theta, grad, settings)
    # The two are one step while P = I, but for rounding.
    if value(ahead) - value(online.null_step(value, [ahead, theta - change])) < 1e-13:
        return after, ahead, True
    assert after.last is not None
    at = after.last.M if settings.index == "exact" or settings.order == "m-first" else after.M
    slope = ref.oracle_hypergradient(gradient(ahead), after.last, at, after.raw, settings)
    hyper, learned = settings.hyper.update(after.hyper, slope, after.M, settings.hyper_lr)
    return ref.State(after.M - learned, moments, hyper, after.raw), theta - change, False


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("base_name", BASES)
@pytest.mark.parametrize("kind", FORMS)
def test_it_follows_the_oracle(kind: str, base_name: str, order: str) -> None:
    base, options, base_ref = BASES[base_name]
    value, smoothness = wave(3)
    lr = 0.2 if base is Adam else 1.5 / smoothness
    hyper_lr = {"dense": 0.2, "linear": 2.0, "exponential": 1.0}[kind]
    p = start(3)
    optimizer = FOP(
        [p], lr, base=base, hyper=SGD, hyper_lr=hyper_lr, preconditioner=kind, order=order, null_step=True, **options
    )
    settings = ref.Settings(lr, hyper_lr, FORMS[kind], order=order, base=base_ref)  # type: ignore[arg-type]
    theta = p.detach().numpy().T.copy()
    state = ref.initial_state(theta, optimizer.state[p]["M"].numpy().copy())
    slope = torch.func.grad(value)
    kept = set()
    for t in range(20):
        optimizer.step(closing(value, p, optimizer))
        state, theta, ours = looked_ahead(
            state,
            theta,
            lambda x: float(value(torch.tensor(x.T.copy()))),
            lambda x: slope(torch.tensor(x.T.copy())).numpy().T,
            settings,
        )
        kept.add(ours)
        size = max(np.abs(theta).max(), np.abs(state.M).max())
        assert np.abs(p.detach().numpy().T - theta).max() < 1e-10 * size, t
        assert np.abs(optimizer.state[p]["M"].numpy() - state.M).max() < 1e-10 * size, t
    assert kept == {True, False}  # both have happened, or this shows less than it says


# ------------------------------------------------------------------------------------------------------ the theorem


@given(
    seed=seeds,
    hyper_lr=st.floats(0, 3).map(lambda exponent: 10.0**exponent),
    order=st.sampled_from(["paper", "m-first"]),
)
def test_no_step_ends_above_gradient_descents_bound(seed: int, hyper_lr: float, order: str) -> None:
    """`J - |grad|^2 / 2L` for steps of 1/L, whatever P has become: linear P, and rates far too large."""
    value, smoothness = wave(seed)
    p = start(seed)
    optimizer = FOP(
        [p], 1 / smoothness, preconditioner="linear", hyper=SGD, hyper_lr=hyper_lr, order=order, null_step=True,
        nonfinite="ignore",
    )  # fmt: skip
    for _ in range(8):
        before, size = float(value(p).detach()), float(torch.func.grad(value)(p.detach()).square().sum())
        optimizer.step(closing(value, p, optimizer))
        assert float(value(p).detach()) <= before - size / (2 * smoothness) + 1e-12 * (1 + abs(before))


def test_without_it_such_steps_are_lost() -> None:
    value, smoothness = wave(0)
    p = start(0)
    optimizer = FOP([p], 1 / smoothness, preconditioner="linear", hyper=SGD, hyper_lr=100.0)
    losses = [float(optimizer.step(closing(value, p, optimizer)).detach()) for _ in range(8)]
    assert max(losses) > 10 * abs(losses[0])


# ------------------------------------------------------------------------------------------------------ how it is used


def test_it_evaluates_three_times_and_returns_the_first() -> None:
    value, _ = wave(1)
    p = start(1)
    optimizer = FOP([p], 0.1, null_step=True)
    found: list[float] = []

    def closure() -> float:  # a number will do
        optimizer.zero_grad()
        loss = value(p)
        loss.backward()
        found.append(float(loss.detach()))
        return found[-1]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [optimizer.step(closure) for _ in range(3)] == found[::3]
    assert len(found) == 9


def test_a_closure_is_needed_that_returns_the_loss() -> None:
    p = start(0)
    optimizer = FOP([p], 0.1, null_step=True)
    p.grad = torch.ones_like(p)
    kept = p.detach().clone()
    for closure in (None, lambda: None):
        with pytest.raises(ValueError, match="null_step: step needs a closure that evaluates the loss and returns it"):
            optimizer.step(closure)
    assert torch.equal(p, kept)
    with pytest.raises(ValueError, match="null_step: the better of two steps"):
        optimizer.add_param_group({"params": [start(1)], "maximize": True})


def test_a_step_off_the_numbers_is_not_taken() -> None:
    """The loss is infinite where P leads: the base's own step is taken, and M stays as it was."""
    p = nn.Parameter(torch.ones(1, 2, dtype=torch.float64))
    optimizer = FOP([p], 0.1, preconditioner="dense", hyper_lr=0, null_step=True, momentum=0.9)
    optimizer.state[p]["M"].mul_(10)
    optimizer.param_groups[0]["hyper_lr"] = 0.1

    def value(w: Tensor) -> Tensor:
        return torch.where(w.abs().amax() > 1, torch.inf, 1.0) * w.square().sum() / 2

    M, q = optimizer.state[p]["M"].clone(), nn.Parameter(p.detach().clone())
    plain = SGD([q], 0.1, momentum=0.9)
    for _ in range(3):
        optimizer.step(closing(value, p, optimizer))
        plain.step(closing(value, q, plain))
    assert torch.equal(p, q)
    assert torch.equal(optimizer.state[p]["M"], M)
    assert torch.equal(optimizer.base.state[p]["momentum_buffer"], plain.state[q]["momentum_buffer"])


@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
@pytest.mark.parametrize("base_name", BASES)
def test_it_goes_on_to_the_last_bit(base_name: str, how: str) -> None:
    base, options, _ = BASES[base_name]
    value, smoothness = wave(3)
    make: dict[str, Any] = {
        "base": base, "hyper_lr": 0.3, "preconditioner": "linear", "order": "m-first", "null_step": True, **options
    }  # fmt: skip
    for stop in range(6):
        p = start(3)
        optimizer = FOP([p], 0.5 / smoothness, **make)
        for _ in range(stop):
            optimizer.step(closing(value, p, optimizer))
        if how == "deepcopy":
            q, again = copy.deepcopy((p, optimizer))
        else:
            q = nn.Parameter(p.detach().clone())
            again = FOP([q], 1.0, **make)
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            again.load_state_dict(torch.load(file))
        for _ in range(4):
            optimizer.step(closing(value, p, optimizer))
            again.step(closing(value, q, again))
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["M"], again.state[q]["M"])
        assert math.isfinite(float(value(p).detach()))
