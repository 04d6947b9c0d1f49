"""Figure 1: gradient descent, Adam and FOP on Booth's and Himmelblau's functions.

SGD and Adam are torch's own. FOP takes its hypergradient from autograd through one unrolled step,
the way Section 2.1 describes it, so no formula for it is used here; `tests/torch/test_toy.py` runs
the closed form beside it. Every run is a batch: one tensor holds many starts or many settings, and
each column is a run of its own, since all three methods act on the columns independently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fop_theory import objectives

#: A run has converged when the loss falls below this (inferred: it gives all six counts).
THRESHOLD = 1e-6
#: Hypergradient learning rate (inferred, like the learning rates and the starts below).
HYPER_LR = 0.01


@dataclass(frozen=True)
class Surface:
    """A loss of two variables with the settings that give the paper's counts."""

    name: str
    loss: Callable
    hessian: Callable
    start: tuple[float, float]
    lr: float
    minima: tuple[tuple[float, float], ...]


BOOTH = Surface("Booth", objectives.booth, lambda x: objectives.booth_hessian(), (-6.0, 2.0), 0.005, ((1.0, 3.0),))
HIMMELBLAU = Surface(
    "Himmelblau",
    objectives.himmelblau,
    objectives.himmelblau_hessian,
    (0.0, -1.0),
    0.001,
    ((3.0, 2.0), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)),
)

#: How P comes from M: the paper's Eq. (2), its words ("the product of a matrix M with itself"), and the other order.
PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "MMT": lambda M: M @ M.mT,
    "MM": lambda M: M @ M,
    "MTM": lambda M: M.mT @ M,
}
#: When M is updated, and at which M the hypergradient is taken: Algorithm 1 as printed, with the M of the
#: step that is differentiated, or before the step (then both coincide).
ORDERS = ("printed", "exact", "m-first")


@dataclass(frozen=True)
class Run:
    """What a batch of N runs did.

    Attributes:
        counts: Steps until the loss first fell below the threshold, `[N]`; -1 where it never did.
        points: The parameters after each step, `[steps + 1, 2, N]`, or `None` when not recorded.
        factors: M before each step, `[steps + 1, N, 2, 2]`, or `None` when not recorded or not FOP.
        ends: The parameters at convergence (or at the end), `[2, N]`.
    """

    counts: np.ndarray
    ends: np.ndarray
    points: np.ndarray | None = None
    factors: np.ndarray | None = None


class _Watch:
    """Notes when each column converges, and where it was then."""

    def __init__(self, columns: int, record: bool) -> None:
        self.counts = np.full(columns, -1)
        self.ends = np.full((2, columns), np.nan, dtype=np.float32)
        self.points: list[np.ndarray] | None = [] if record else None
        self.factors: list[np.ndarray] = []

    def all_done(self, step: int, theta: Tensor, loss: Tensor, M: Tensor | None = None) -> bool:
        here = theta.detach().numpy().copy()
        if self.points is not None:
            self.points.append(here)
            if M is not None:
                self.factors.append(M.detach().numpy().copy())
        running = self.counts < 0
        self.ends[:, running] = here[:, running]
        self.counts[running & (loss.detach().numpy() < THRESHOLD)] = step
        # A run that has left the numbers does not come back.
        return bool(((self.counts >= 0) | ~np.isfinite(here).all(axis=0)).all())

    def result(self) -> Run:
        points = None if self.points is None else np.stack(self.points)
        return Run(self.counts, self.ends, points, np.stack(self.factors) if self.factors else None)


def _columns(start: ArrayLike, dtype: torch.dtype) -> Tensor:
    theta = torch.as_tensor(np.asarray(start, dtype=float), dtype=dtype)
    theta = theta[:, None] if theta.ndim == 1 else theta
    if theta.ndim != 2 or theta.shape[0] != 2:
        raise ValueError(f"start: expected [2] or [2, N], got shape {tuple(theta.shape)}")
    return theta.clone()


def descend(
    surface: Surface,
    optimizer: Callable[..., torch.optim.Optimizer],
    *,
    start: ArrayLike | None = None,
    lr: float | None = None,
    noise: ArrayLike = 0.0,
    seed: int = 0,
    limit: int = 10_000,
    record: bool = False,
    **options: Any,
) -> Run:
    """Minimise with one of torch's optimizers, full gradient, float32.

    Args:
        surface: What to minimise.
        optimizer: A class of `torch.optim`.
        start: `[2]` or `[2, N]`; the surface's own when left out.
        lr: Learning rate; the surface's own when left out.
        noise: Standard deviation of Gaussian noise added to each entry of the gradient, a number or `[N]`.
        seed: Seed of the noise.
        limit: Give up after so many steps.
        record: Keep every point.
        options: Further arguments of the optimizer.
    """
    scale = torch.as_tensor(np.atleast_1d(noise), dtype=torch.float32)
    theta = _columns(surface.start if start is None else start, torch.float32)
    theta = theta.expand(2, max(theta.shape[1], len(scale))).clone().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    opt = optimizer([theta], lr=surface.lr if lr is None else lr, **options)
    watch = _Watch(theta.shape[1], record)
    for step in range(limit + 1):
        loss = surface.loss(theta)
        if watch.all_done(step, theta, loss):
            break
        (theta.grad,) = torch.autograd.grad(loss.sum(), theta)
        if scale.any():
            theta.grad += scale * torch.randn(theta.shape, generator=generator)
        opt.step()
    return watch.result()


def descend_fop(
    surface: Surface,
    *,
    product: str = "MMT",
    order: str = "printed",
    start: ArrayLike | None = None,
    lr: ArrayLike | None = None,
    hyper_lr: ArrayLike = HYPER_LR,
    scalar: bool = False,
    limit: int = 10_000,
    record: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Run:
    """Minimise with FOP, M starting at the identity, plain gradient steps on M.

    Args:
        surface: What to minimise.
        product: A key of `PRODUCTS`.
        order: One of `ORDERS`.
        start: `[2]` or `[2, N]`; the surface's own when left out.
        lr: Learning rate, a number or `[N]`; the surface's own when left out.
        hyper_lr: Hypergradient learning rate, a number or `[N]`.
        scalar: Learn one factor of the learning rate instead of a matrix (S-HD, P = c I).
        limit: Give up after so many steps.
        record: Keep every point and every M.
        dtype: The paper's counts need float32.

    Raises:
        ValueError: On an unknown product or order.
    """
    if product not in PRODUCTS:
        raise ValueError(f"product: expected one of {', '.join(PRODUCTS)}, got {product!r}")
    if order not in ORDERS:
        raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
    rates = torch.as_tensor(np.atleast_1d(surface.lr if lr is None else lr), dtype=dtype)
    hyper = torch.as_tensor(np.atleast_1d(hyper_lr), dtype=dtype)
    theta = _columns(surface.start if start is None else start, dtype)
    runs = max(theta.shape[1], len(rates), len(hyper))
    theta = theta.expand(2, runs).clone()
    M = torch.ones(runs, 1, 1, dtype=dtype) if scalar else torch.eye(2, dtype=dtype).repeat(runs, 1, 1)

    def moved(theta: Tensor, M: Tensor, grad: Tensor) -> Tensor:
        """One step of Eq. (1); a scalar M is the rate itself, as in Baydin et al."""
        P = M if scalar else PRODUCTS[product](M)
        direction = P * grad.T[:, :, None] if scalar else P @ grad.T[:, :, None]
        return theta - rates * direction.squeeze(-1).T

    watch = _Watch(runs, record)
    last: tuple[Tensor, Tensor, Tensor] | None = None
    for step in range(limit + 1):
        theta = theta.detach().requires_grad_()
        loss = surface.loss(theta)
        if watch.all_done(step, theta, loss, M):
            break
        (grad,) = torch.autograd.grad(loss.sum(), theta)
        learned = M
        if last is not None:
            theta_before, M_before, grad_before = last
            at = (M if order == "printed" else M_before).detach().requires_grad_()
            # The loss at step t as a function of the M of step t - 1: chain rule, Eq. (3).
            linear = (grad * moved(theta_before, at, grad_before)).sum()
            (slope,) = torch.autograd.grad(linear, at)
            learned = M - hyper[:, None, None] * slope
        used = learned if order == "m-first" else M
        last = (theta.detach(), used, grad)
        theta = moved(theta.detach(), used, grad)
        M = learned
    return watch.result()


# ---------------------------------------------------------------------------------------
# What is measured on the runs


def steps(run: Run, column: int = 0) -> np.ndarray:
    """The steps of one recorded run until it converged, `[count, 2]`."""
    points = _points(run, column)
    return np.diff(points, axis=0)


def turns(run: Run, column: int = 0) -> np.ndarray:
    """Angle in degrees between each step of a recorded run and the next, `[count - 1]`."""
    taken = steps(run, column).astype(float)
    taken /= np.linalg.norm(taken, axis=1, keepdims=True)
    return np.degrees(np.arccos(np.clip((taken[1:] * taken[:-1]).sum(axis=1), -1, 1)))


def spectra(run: Run, surface: Surface, product: str, column: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of P, and of `P^(1/2) H P^(1/2)`, before each step of a recorded FOP run.

    Returns:
        Two arrays `[count + 1, 2]`, ascending. The second holds the eigenvalues of `sym(P) H`, whose ratio is
        the condition number that the step sees; for `"MM"` the symmetric part of P stands for P.
    """
    if run.factors is None:
        raise ValueError("run: expected a run of descend_fop with record=True, this one kept no M")
    product_of = PRODUCTS[product](torch.as_tensor(run.factors[: run.counts[column] + 1, column]).double())
    P = ((product_of + product_of.mT) / 2).numpy()
    H = np.stack([surface.hessian(x) for x in _points(run, column).astype(float)])
    return np.linalg.eigvalsh(P), np.sort(np.linalg.eigvals(P @ H).real, axis=1)


def _points(run: Run, column: int) -> np.ndarray:
    if run.points is None:
        raise ValueError("run: expected a recorded run, this one kept no points; pass record=True")
    return run.points[: run.counts[column] + 1, :, column]


def fewest_steps(
    surface: Surface, optimizer: Callable[..., torch.optim.Optimizer], lrs: np.ndarray, limit: int = 200
) -> tuple[int, float]:
    """The smallest count over constant learning rates, and the rate that gives it."""
    counts = [int(descend(surface, optimizer, lr=float(lr), limit=limit).counts[0]) for lr in lrs]
    return min((count, float(lr)) for count, lr in zip(counts, lrs, strict=True) if count >= 0)


def fewest_fop_steps(
    surface: Surface, lrs: np.ndarray, hyper_lrs: np.ndarray, limit: int = 200, **options: Any
) -> tuple[int, float, float]:
    """The smallest count over a grid of both rates, and the two rates that give it."""
    grid_lr, grid_hyper = (axis.ravel() for axis in np.meshgrid(lrs, hyper_lrs))
    counts = descend_fop(surface, lr=grid_lr, hyper_lr=grid_hyper, limit=limit, **options).counts
    best = int(np.where(counts >= 0, counts, limit + 1).argmin())
    return int(counts[best]), float(grid_lr[best]), float(grid_hyper[best])


def starts_with_count(
    surface: Surface, optimizer: Callable[..., torch.optim.Optimizer], count: int, starts: np.ndarray
) -> np.ndarray:
    """Those of the starts `[2, N]` from which the optimizer needs exactly `count` steps."""
    run = descend(surface, optimizer, start=starts, limit=count)
    return starts[:, run.counts == count]


def grid(radius: float, spacing: float = 0.1) -> np.ndarray:
    """Every point of the square `[-radius, radius]^2` with that spacing, `[2, N]`."""
    half = round(radius / spacing)
    axis = np.arange(-half, half + 1) * spacing
    return np.stack(np.meshgrid(axis, axis)).reshape(2, -1)


def draw_paths(axis, surface: Surface, runs: dict[str, Run], window: tuple[float, float, float, float]) -> None:
    """Level lines of the loss, and the path of each recorded run in its method's colour."""
    from fop_theory.plots import COLORS

    left, right, bottom, top = window
    x = np.stack(np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200)))
    values = surface.loss(x)
    axis.contour(*x, values, levels=np.geomspace(0.3, values.max(), 14), colors="0.75", linewidths=0.6)
    for name, run in runs.items():
        points = _points(run, 0)
        # Thousands of dots belong into a picture, not into an SVG of one element each.
        many = len(points) > 1000
        axis.plot(*points.T, color=COLORS[name], label=name, lw=1.4, marker=".", markersize=2.5, rasterized=many)
    axis.plot(*surface.start, "o", color="red", markersize=7)
    axis.set(xlim=(left, right), ylim=(bottom, top))
    axis.grid(visible=False)
