"""The safe step keeps P definite, `max_norm` bounds it, and both do so at every scale."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam

from fop_theory.online import linear_step, mirror_step, project
from fop_torch import FOP
from fop_torch.preconditioners import FORMS, norm_from_above, safe_factor
from tests.strategies import dims, factors, gradient_pairs, scales, seeds

NORMALISED = [kind for kind in FORMS if FORMS[kind].normalised]
POSITIVE = [kind for kind in FORMS if FORMS[kind].positive and kind not in ("low_rank", *NORMALISED)]


def shaped(kind: str, rows: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    """A gradient `[m, n]` of the theory as the parameter's: transposed, as kernels of m x 1 for the spatial form."""
    G = torch.tensor(rows.T, dtype=dtype).contiguous()
    return G.reshape(len(G), 1, -1, 1) if kind == "spatial" else G


def first_factor(kind: str, shape: torch.Size, seed: int) -> Tensor:
    """An M that is well away from singular, and not the identity."""
    rng = np.random.default_rng(seed)
    size = FORMS[kind].factor_shape(shape, None)
    M = rng.uniform(0.5, 2, size) * rng.choice([-1, 1], size)
    if kind in ("dense", "spatial"):
        M = np.linalg.qr(rng.standard_normal(size))[0] * rng.uniform(0.5, 2, size[-1])
    return torch.tensor(M, dtype=torch.float64)


def singular(M: Tensor) -> tuple[float, float]:
    """The roots of the smallest and of the largest eigenvalue of M M^T."""
    values = torch.linalg.svdvals(M.double()) if M.dim() == 2 and len(M) == len(M.T) else M.double().abs()
    return float(values.min()), float(values.max())


def smallest_and_largest(kind: str, M: Tensor) -> tuple[float, float]:
    return singular(M if kind in ("dense", "spatial") else M.reshape(-1))


#: Three gradients in a row, the first M's seed, learning rate, hypergradient learning rate.
runs = st.tuples(gradient_pairs(), st.sampled_from([-1.0, 1.0, -3.0]), seeds, scales, scales)
taus = st.floats(0.01, 0.99)


def ratios(kind: str, run: Any, dtype: torch.dtype = torch.float64, **options: Any) -> list[tuple[float, float]]:
    """For each step: the smallest root eigenvalue over the one before, and how much of it may be rounding."""
    (G, H), turn, seed, lr, hyper_lr = run
    grads = [shaped(kind, each, dtype) for each in (H, G, turn * H)]
    p = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = FOP([p], lr, preconditioner=kind, hyper=SGD, hyper_lr=hyper_lr, **options)
    M = optimizer.state[p]["M"]
    M.copy_(first_factor(kind, p.shape, seed))
    found = []
    for grad in grads:
        before, _ = smallest_and_largest(kind, M)
        p.grad = grad
        optimizer.step()
        after, largest = smallest_and_largest(kind, M)
        # Rounding moves a singular value by eps times the largest, in the update and in the decomposition.
        found.append((after / before, 100 * torch.finfo(dtype).eps * max(largest, before) / before))
    assert optimizer.skipped_steps == 0
    return found


@pytest.mark.parametrize("kind", POSITIVE)
@given(
    run=runs, tau=taus, options=st.sampled_from([{}, {"order": "m-first"}, {"through": "velocity", "momentum": 0.9}])
)
def test_no_eigenvalue_falls_below_its_share(kind: str, run: Any, tau: float, options: dict[str, Any]) -> None:
    for ratio, rounding in ratios(kind, run, safe=tau, **options):
        assert ratio >= 1 - tau - rounding


@pytest.mark.parametrize("kind", POSITIVE)
def test_without_the_safe_step_it_does(kind: str) -> None:
    def breaks(run: Any) -> bool:
        return any(ratio < 0.9 - rounding for ratio, rounding in ratios(kind, run))

    # Without shrinking, which costs seconds and is of no use here.
    only = settings(max_examples=300, database=None, phases=[Phase.generate])
    run = find(runs, breaks, settings=only, random=random.Random(0))
    assert all(ratio >= 0.9 - rounding for ratio, rounding in ratios(kind, run, safe=0.1))


@pytest.mark.parametrize("kind", ["dense", "spatial"])
@given(m=dims, seed=seeds, tau=taus)
def test_the_bound_is_reached(kind: str, m: int, seed: int, tau: float) -> None:
    """Opposite gradients of one row: S has one eigenvalue, and the bound on it is exact."""
    h = np.random.default_rng(seed).standard_normal((m, 1))
    p = nn.Parameter(torch.zeros_like(shaped(kind, h)))
    far = 1e3 / np.sum(h**2)  # so a s is 2,000, however small h was drawn: the update is always shortened
    optimizer = FOP([p], 1.0, preconditioner=kind, hyper=SGD, hyper_lr=far, safe=tau)
    for grad in (shaped(kind, h), shaped(kind, -h)):
        p.grad = grad
        optimizer.step()
    smallest, largest = smallest_and_largest(kind, optimizer.state[p]["M"])
    assert smallest == pytest.approx(1 - tau, rel=1e-12)
    assert largest == pytest.approx(1 if m > 1 else 1 - tau, rel=1e-12)


@pytest.mark.parametrize("kind", POSITIVE)
@given(pair=gradient_pairs(), seed=seeds)
def test_a_short_update_is_not_shortened(kind: str, pair: Any, seed: int) -> None:
    G, H = pair
    hyper_lr = 0.2 / max(np.linalg.norm(G) * np.linalg.norm(H), 1e-12)  # so a s is at most 0.4
    moved = []
    for safe in (0.5, None):
        p = nn.Parameter(torch.zeros_like(shaped(kind, G)))
        optimizer = FOP([p], 1.0, preconditioner=kind, hyper=SGD, hyper_lr=hyper_lr, safe=safe)
        optimizer.state[p]["M"].copy_(first_factor(kind, p.shape, seed))
        for grad in (H, G):
            p.grad = shaped(kind, grad)
            optimizer.step()
        moved.append(optimizer.state[p]["M"])
    assert torch.equal(*moved)


@given(pair=gradient_pairs())
def test_what_the_safe_step_divides_by_bounds_the_most_negative_curvature(pair: Any) -> None:
    G, H = (torch.tensor(each.T, dtype=torch.float64) for each in pair)
    a = torch.tensor(1e6, dtype=torch.float64)
    factor = float(safe_factor(G, H, a, 0.5))
    lowest = float(torch.linalg.eigvalsh(G.T @ H + H.T @ G).min())
    assert factor <= 1
    # Rounding: of the difference |G| |H| - <G, H>.
    assert float(a) * factor * -lowest <= 0.5 + 1e-14 * float(a * factor * G.norm() * H.norm())


@pytest.mark.parametrize("kind", POSITIVE)
@given(run=runs, scale=st.floats(-20, 18).map(lambda exponent: 10.0**exponent))
def test_the_safe_step_holds_in_float32_at_every_scale(kind: str, run: Any, scale: float) -> None:
    (G, H), turn, seed, lr, hyper_lr = run
    # The larger of the gradients has the scale; what its square exceeds, a small learning rate takes back.
    size = max(np.abs(G).max(), 3 * np.abs(H).max())
    lr = lr / scale if scale > 1 else lr
    scaled = ((scale * G / size, scale * H / size), turn, seed, lr, hyper_lr / max(scale, 1))
    for ratio, rounding in ratios(kind, scaled, torch.float32, safe=0.5):
        assert ratio >= 0.5 - rounding


# ------------------------------------------------------------------------------------------------------ a bound on P


def norm(kind: str, M: Tensor) -> float:
    """The spectral norm of P."""
    M = M.double()
    if kind == "exponential":  # of P or of its inverse, which is bounded too
        return float(torch.linalg.matrix_norm(M, 2).exp())
    if kind == "linear":
        return float(torch.linalg.matrix_norm(M, 2))
    if kind in ("dense", "spatial", "low_rank"):
        return float(torch.linalg.matrix_norm(M, 2) ** 2) + (kind == "low_rank")
    return float(M.abs().max()) if kind in ("pp-hd", "s-hd") else float(M.square().max())


@pytest.mark.parametrize("kind", FORMS)
@given(
    seed=seeds,
    bound=st.floats(0.1, 100),
    hyper_lr=scales,
    options=st.sampled_from([{}, {"order": "m-first"}, {"hyper": SGD}]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_norm_never_exceeds_its_bound(
    kind: str, seed: int, bound: float, hyper_lr: float, options: dict[str, Any], dtype: torch.dtype
) -> None:
    bound = bound + (kind in ("low_rank", *NORMALISED))
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 2, 3, 1) if kind == "spatial" else (2, 3)
    p = nn.Parameter(torch.zeros(shape, dtype=dtype))
    # Low rank starts small by default; here it may start too large.
    options = options | ({"rank": 2} if kind == "low_rank" else {})
    optimizer = FOP([p], 0.1, preconditioner=kind, hyper_lr=hyper_lr, max_norm=bound, scale=3.0, **options)
    reached = []
    for _ in range(5):
        p.grad = torch.randn(shape, generator=generator, dtype=dtype)
        optimizer.step()
        reached.append(norm(kind, optimizer.state[p]["M"]))
    # Rounding: M^T M and its six squarings, by m eps each, of which half, a quarter, ... counts; logarithms up to 5.
    assert max(reached) <= bound * (1 + 50 * torch.finfo(dtype).eps)
    if kind == "linear":  # and its inverse, as far as eigenvalues next to one of the bound's size are known
        smallest = float(torch.linalg.eigvalsh(optimizer.state[p]["M"].double())[0])
        assert smallest >= 1 / bound - 50 * torch.finfo(dtype).eps * bound


@pytest.mark.parametrize("kind", FORMS)
def test_without_a_bound_it_does(kind: str) -> None:
    p = nn.Parameter(torch.zeros((2, 2, 3, 1) if kind == "spatial" else (2, 3)))
    optimizer = FOP([p], 0.1, preconditioner=kind, hyper_lr=1.0)
    for _ in range(5):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert norm(kind, optimizer.state[p]["M"]) > 4


@pytest.mark.parametrize("kind", [kind for kind in FORMS if kind not in NORMALISED])
@given(seed=seeds, bound=st.floats(0.1, 100), share=st.floats(0, 1))
def test_below_the_bound_nothing_is_touched(kind: str, seed: int, bound: float, share: float) -> None:
    bound = bound + (kind == "low_rank")
    m = 4
    rng = np.random.default_rng(seed)
    size = {"low_rank": (m, 2), "scalar": (), "s-hd": (), "diagonal": (2, m), "pp-hd": (2, m)}.get(kind, (m, m))
    M = torch.tensor(rng.standard_normal(size))
    # The bound on the norm from above is loose by m^(1/64); rounding in its six squarings and logarithms on top.
    below = share * (bound / m ** (1 / 64)) * (1 - 1e-12)
    wanted = max(below - 1, 0) if kind == "low_rank" else below
    square = kind not in ("pp-hd", "s-hd")
    M *= (wanted / (norm(kind, M) - (kind == "low_rank"))) ** (0.5 if square else 1)
    kept = M.clone()
    FORMS[kind].limit([M], bound)
    assert torch.equal(M, kept)


@given(seed=seeds, share=st.floats(1.1, 1e6))
def test_beyond_the_bound_the_size_changes_and_nothing_else(seed: int, share: float) -> None:
    M = torch.tensor(np.random.default_rng(seed).standard_normal((4, 4)))
    kept = M.clone()
    bound = norm("dense", M) / share
    FORMS["dense"].limit([M], bound)
    ratio = M / kept
    torch.testing.assert_close(ratio, ratio[0, 0].expand(4, 4), rtol=1e-14, atol=0)
    # Scaled to the bound, within what the norm from above is loose.
    assert bound / 4 ** (1 / 64) * (1 - 1e-12) <= norm("dense", M) <= bound * (1 + 1e-12)


@given(seed=seeds, bound=st.floats(1.001, 100), share=st.floats(0, 3))
def test_the_exponential_form_is_clipped_as_the_theory_clips(seed: int, bound: float, share: float) -> None:
    """Against `mirror_step` with a rate of zero; within the budget no bit is changed."""
    draw = np.random.default_rng(seed).standard_normal((4, 4))
    X = (draw + draw.T) / np.linalg.norm(draw + draw.T) * share * math.log(bound)
    M = torch.tensor(X)
    FORMS["exponential"].limit([M], bound)
    clipped = mirror_step(X, np.ones((4, 1)), np.ones((4, 1)), 0.0, bound)
    np.testing.assert_allclose(M.numpy(), clipped, rtol=0, atol=1e-14 * math.log(bound))
    if share <= 0.99:
        assert torch.equal(M, torch.tensor(X))


@given(pair=gradient_pairs(), rate=scales, bound=st.floats(1.01, 100))
def test_a_step_of_the_exponential_form_is_the_mirror_step(pair: Any, rate: float, bound: float) -> None:
    G, H = pair
    X = np.zeros((len(G), len(G)))
    p = nn.Parameter(torch.zeros_like(shaped("dense", G)))
    optimizer = FOP([p], 0.1, preconditioner="exponential", hyper=SGD, hyper_lr=rate, max_norm=bound)
    for grad in (H, G):
        p.grad = shaped("dense", grad)
        optimizer.step()
    if np.any(H):
        X = mirror_step(X, G, H, rate, bound)
    np.testing.assert_allclose(optimizer.state[p]["M"].numpy(), X, rtol=0, atol=1e-13 * (rate + 1))


@given(seed=seeds, bound=st.floats(1.001, 100), share=st.floats(0, 3))
def test_linear_p_is_projected_as_the_theory_projects(seed: int, bound: float, share: float) -> None:
    """Within the bound no bit is changed."""
    draw = np.random.default_rng(seed).standard_normal((4, 4))
    P = np.eye(4) + (draw + draw.T) / np.linalg.norm(draw + draw.T) * share * (1 - 1 / bound)
    M = torch.tensor(P)
    FORMS["linear"].limit([M], bound)
    np.testing.assert_allclose(M.numpy(), project(P, bound), rtol=0, atol=1e-14 * bound)
    if share <= 0.99:
        assert torch.equal(M, torch.tensor(P))


@given(pair=gradient_pairs(), rate=scales, bound=st.one_of(st.none(), st.floats(1.01, 100)))
def test_a_step_of_linear_p_is_the_gradient_step(pair: Any, rate: float, bound: float | None) -> None:
    G, H = pair
    p = nn.Parameter(torch.zeros_like(shaped("dense", G)))
    optimizer = FOP([p], 0.1, preconditioner="linear", hyper=SGD, hyper_lr=rate, max_norm=bound, nonfinite="ignore")
    for grad in (H, G):
        p.grad = shaped("dense", grad)
        optimizer.step()
    P = linear_step(np.eye(len(G)), G, H, rate) if np.any(H) else np.eye(len(G))
    P = P if bound is None else project(P, bound)
    np.testing.assert_allclose(optimizer.state[p]["M"].numpy(), P, rtol=0, atol=1e-13 * (np.abs(P).max() + rate))


@pytest.mark.parametrize("kind", NORMALISED)
def test_layers_that_share_calls_learn_as_they_would_alone(kind: str) -> None:
    """Of three widths, and of one entry; bounded, so that some are clipped and some not."""
    shapes = [(5, 3, 3, 3), (4, 5), (3, 2, 3, 3), (7, 5), (6, 200), (3,)]
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(6, 3000, generator=generator, dtype=torch.float64)
    options: dict[str, Any] = {"preconditioner": kind, "hyper": SGD, "hyper_lr": 1.0, "max_norm": 1.5}

    def trained(chosen: list[int]) -> list[Tensor]:
        params = [nn.Parameter(torch.zeros(shapes[i], dtype=torch.float64)) for i in chosen]
        optimizer = FOP(params, 0.1, **options)
        for row in grads:
            for i, p in zip(chosen, params, strict=True):
                p.grad = row[200 * i : 200 * i + p.numel()].reshape(p.shape) + 0.3
            optimizer.step()
        return [*params, *(optimizer.state[p]["M"] for p in params)]

    together = trained(list(range(len(shapes))))
    for i in range(len(shapes)):
        p, M = trained([i])
        torch.testing.assert_close(together[i].detach(), p.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(together[len(shapes) + i], M, rtol=1e-12, atol=1e-13)
        assert not torch.equal(M, FORMS[kind].start(p.shape, None, 0.0, generator).double())


def test_a_bound_that_is_never_reached_changes_no_bit() -> None:
    outcomes = []
    for bound in (None, 50.0):
        p = nn.Parameter(torch.ones(3, 4))
        optimizer = FOP([p], 0.1, hyper_lr=0.01, max_norm=bound)
        for _ in range(10):
            p.grad = p.detach().clone()
            optimizer.step()
        outcomes.append((p.detach(), optimizer.state[p]["M"]))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(M=st.integers(1, 6).flatmap(factors), exponent=st.floats(-37, 36))
def test_the_norm_from_above_at_every_scale(dtype: torch.dtype, M: np.ndarray, exponent: float) -> None:
    K = torch.tensor(M @ M.T / np.linalg.norm(M @ M.T, 2) * 10.0**exponent, dtype=dtype)
    true = float(torch.linalg.matrix_norm(K.double(), 2))
    found = float(norm_from_above(K))
    # In float32 the logarithm of 1e-37 is exact to 85 eps / 2; six squarings add a few more.
    rounding = 200 * torch.finfo(dtype).eps
    assert true * (1 - rounding) <= found <= true * len(K) ** (1 / 64) * (1 + rounding)


@pytest.mark.parametrize("m", [1, 2, 9, 100])
def test_the_norm_from_above_is_loose_by_the_64th_root_of_the_dimension(m: int) -> None:
    """For multiples of the identity, and never more."""
    found = float(norm_from_above(3 * torch.eye(m, dtype=torch.float64)))
    assert found == pytest.approx(3 * m ** (1 / 64), rel=1e-12)


def test_the_norm_from_above_of_zero_is_zero() -> None:
    assert float(norm_from_above(torch.zeros(3, 3))) == 0
    M = torch.zeros(3, 3)
    FORMS["dense"].limit([M], 2.0)
    assert torch.equal(M, torch.zeros(3, 3))


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("base", [SGD, Adam])
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1.0, 1e9, 1e18])
@pytest.mark.parametrize("kind", FORMS)
def test_training_at_extreme_scales(kind: str, scale: float, base: type[torch.optim.Optimizer], order: str) -> None:
    shape = (2, 2, 3, 1) if kind == "spatial" else (2, 3)
    p = nn.Parameter(torch.zeros(shape))
    optimizer = FOP([p], 0.01, preconditioner=kind, base=base, order=order, hyper_lr=0.1, max_norm=2.0)
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(10):
            p.grad = scale * torch.randn(shape, generator=generator) / math.sqrt(p.numel())
            optimizer.step()
            assert norm(kind, optimizer.state[p]["M"]) <= 2 * (1 + 1e-5)
    assert p.isfinite().all()
    assert optimizer.state[p]["M"].isfinite().all()
    # A hypergradient of 1e36 has a square that float32, and the hyper-optimizer, cannot hold.
    assert optimizer.skipped_steps == 0 or scale == 1e18
