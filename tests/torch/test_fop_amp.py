"""Mixed precision: autocast, parameters in half precision, and the scaler of losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from fop_torch import FOP, PPHD, SHD, Recorder
from fop_torch.preconditioners import FORMS

STEPS = 6
OPTIMIZERS: dict[str, Callable[[Any], FOP]] = {
    "momentum": lambda params: FOP(params, 0.05, momentum=0.9, hyper_lr=0.01),
    "M first": lambda params: FOP(params, 0.05, order="m-first", hyper_lr=0.01),
    "exact": lambda params: FOP(params, 0.05, index="exact", hyper=SGD, hyper_lr=0.01),
    "Adam": lambda params: FOP(params, 0.01, base=Adam, hyper_lr=0.01),
    "Adam, fused": lambda params: FOP(params, 0.01, base=Adam, fused=True, hyper_lr=0.01),
    "Adam, its step": lambda params: FOP(
        params, 0.01, base=Adam, through="step", index="exact", hyper_lr=0.01, nonfinite="ignore"
    ),
    "normalize": lambda params: FOP(params, 0.05, preconditioner="dense", normalize=True, hyper_lr=0.01),
    "max_norm": lambda params: FOP(params, 0.05, max_norm=1.05, hyper_lr=0.1),
    "safe": lambda params: FOP(params, 0.05, safe=0.5, hyper=SGD, hyper_lr=10.0),
    "diagonal": lambda params: FOP(params, 0.05, preconditioner="diagonal", hyper_lr=0.01),
    "scalar": lambda params: FOP(params, 0.05, preconditioner="scalar", hyper_lr=0.01),
    "S-HD": lambda params: SHD(params, 0.05, hyper_lr=0.01),
    "PP-HD": lambda params: PPHD(params, 0.05, hyper_lr=0.01),
}


def network() -> nn.Module:
    """3 x 3 kernels, a wide layer, a narrow one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(3, (16,), generator=generator)


def loss_of(model: nn.Module, number: int) -> Tensor:
    x, y = batch(number)
    return nn.functional.cross_entropy(model(x).float(), y)


def contents(model: nn.Module, optimizer: FOP) -> list[Tensor]:
    """All numbers of the model and the optimizer, in memory of their own."""
    states = optimizer.state_dict()["state"]
    entries = [value for i in sorted(states) for _, value in sorted(states[i].items())]
    return [copy.deepcopy(each) for each in [*(p.detach() for p in model.parameters()), *entries]]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_inside_autocast_is_the_step_outside(name: str, dtype: torch.dtype) -> None:
    """Else its products would be taken in half precision."""
    ends = []
    for inside in (True, False):
        model = network()
        optimizer = OPTIMIZERS[name](model.parameters())
        for number in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = loss_of(model, number)
            loss.backward()
            with torch.autocast("cpu", dtype=dtype, enabled=inside):
                optimizer.step()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        ends.append(contents(model, optimizer))
    assert equal(*ends)
    assert {each.dtype for each in ends[0]} == {torch.float32}


def test_a_closure_runs_in_the_callers_autocast() -> None:
    model = network()
    optimizer = FOP(model.parameters(), 0.05)
    seen = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        x, y = batch(0)
        outputs = model(x)
        seen.append(outputs.dtype)
        loss = nn.functional.cross_entropy(outputs.float(), y)
        loss.backward()
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step(closure)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # and it is left as it was
    assert seen == [torch.bfloat16]


def test_reports_inside_autocast_are_those_outside() -> None:
    model = network()
    optimizer = FOP(model.parameters(), 0.05, hyper_lr=0.1)
    recorder = Recorder(optimizer, every=1)
    for number in range(3):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = optimizer.preconditioners()
    for row in recorder.rows()[-len(inside) :]:
        seen = inside[row["parameter"]]
        assert row["gain"] == seen.gain
    for name, outside in optimizer.preconditioners().items():
        assert equal([inside[name].P], [outside.P])
        assert inside[name][4:] == outside[4:]


def test_training_in_autocast_follows_training_in_full_precision() -> None:
    losses = []
    for enabled in (True, False):
        model = network()
        optimizer = FOP(model.parameters(), 0.05, momentum=0.9, hyper_lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                loss = loss_of(model, 0)
            loss.backward()
            optimizer.step()
        losses.append([loss_of(network(), 0).item(), loss.item()])
    start, end = losses[1]
    assert end < 0.2 * start
    # Each of the forward's numbers is rounded to 8 bits.
    assert losses[0][1] == pytest.approx(end, abs=0.02 * start)


# ------------------------------------------------------------------------------------- parameters in half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", FORMS)
def test_half_precision_rounds_the_step_once(kind: str, dtype: torch.dtype) -> None:
    """M and its hypergradient are those of the same gradients in float32; the preconditioned gradient is rounded."""
    shape = (4, 2, 3, 3)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator).to(dtype)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.float())
    options: dict[str, Any] = {"lr": 0.25, "preconditioner": kind, "hyper_lr": 0.03, "scale": 0.2}
    half, full = FOP([p], **options), FOP([q], **options)
    for _ in range(4):
        grad = torch.randn(shape, generator=generator).to(dtype)
        before = p.detach().clone()
        p.grad, q.grad = grad, grad.float()
        M = full.state[q]["M"].clone()
        half.step()
        full.step()
        assert p.grad is grad
        assert half.state[p]["M"].dtype == torch.float32
        assert half.state[p]["prev_grad"].dtype == dtype
        # lr and so lr times G are the same numbers in all three precisions.
        assert torch.equal(half.state[p]["M"], full.state[q]["M"])
        step = FORMS[kind].precondition([M], [grad.float()])[0].to(dtype)
        assert torch.equal(p, before - 0.25 * step)


def test_small_steps_of_a_factor_are_not_lost() -> None:
    p = nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    optimizer = FOP([p], 0.1, preconditioner="dense", hyper_lr=1e-4)
    for _ in range(4):
        p.grad = torch.ones_like(p)
        optimizer.step()
    change = optimizer.state[p]["M"].diagonal() - 1
    # Adam's steps are of size hyper_lr, three of them; beside 1, bfloat16 has no number closer than 2^-8.
    torch.testing.assert_close(change, torch.full((2,), 3e-4), rtol=1e-2, atol=0)
    assert change.abs().max() < 2**-9


def test_a_network_in_half_precision_learns() -> None:
    model = network().to(torch.bfloat16)
    optimizer = FOP(model.parameters(), 0.05, momentum=0.9, hyper_lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        x, y = batch(0)
        loss = nn.functional.cross_entropy(model(x.to(torch.bfloat16)).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# ------------------------------------------------------------------------------------------------------- the scaler


def scaled(
    name: str,
    scale: float | None,
    unscale: bool,
    bad: set[int] = frozenset(),
    leave_out: set[int] = frozenset(),  # type: ignore[assignment]
) -> tuple[list[Tensor], FOP, list[float]]:
    """Train with a scaler, or without one; in bad steps the loss overflows."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    # The scale changes during the run: after two good steps, and after a bad one.
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=2, enabled=scale is not None)
    scales = []
    for number in range(STEPS):
        if number in leave_out:
            continue
        optimizer.zero_grad()
        loss = loss_of(model, number)
        scaler.scale(loss * math.inf if number in bad else loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return contents(model, optimizer), optimizer, scales


@pytest.mark.parametrize("unscale", [True, False], ids=["unscaled, clipped", "unscaled by the scaler"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_scale_of_the_loss_changes_nothing(name: str, unscale: bool) -> None:
    """To the bit, as scales are powers of two: the hypergradient sees gradients that are unscaled, and clipped."""
    with_scaler, _, scales = scaled(name, 2.0**16, unscale)
    without, _, _ = scaled(name, None, unscale)
    assert len(set(scales)) > 2
    assert equal(with_scaler, without)


@pytest.mark.filterwarnings("ignore:The total norm of order 2.0 for gradients:UserWarning")
@pytest.mark.parametrize("unscale", [True, False], ids=["unscaled, clipped", "unscaled by the scaler"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_scaler_skips_never_happened(name: str, unscale: bool) -> None:
    bad = {0, 3}
    ended, optimizer, scales = scaled(name, 2.0**16, unscale, bad=bad)
    again, _, _ = scaled(name, 2.0**16, unscale, leave_out=bad)
    assert scales[0] < 2.0**16
    assert equal(ended, again)
    assert optimizer.skipped_steps == 0  # it was not even called


def test_half_precision_forward_with_a_scaler_learns() -> None:
    """The whole recipe: float16 in the forward pass, scaled losses, float32 parameters."""
    model = network()
    optimizer = FOP(model.parameters(), 0.05, momentum=0.9, hyper_lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # so large that the first steps overflow
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(model, 0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[1] == losses[0]
    assert scaler.get_scale() < 2.0**40
    assert losses[-1] < 0.2 * losses[0]
