"""The table of capabilities, cell by cell: what it calls possible works, what it refuses raises the error it names."""

from __future__ import annotations

import copy
import datetime
import inspect
import io
import math
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer, lr_scheduler

import fop_torch
from fop_torch.capabilities import CAPABILITIES, OPTIMIZERS, Capability
from fop_torch.preconditioners import FORMS
from tests.torch import test_fop_cuda

Build = type[fop_torch.FOP]
CLASSES: dict[str, Build] = {name: getattr(fop_torch, name) for name in OPTIMIZERS}
SHAPES = ((3, 2, 3, 3), (4, 5), (2, 130), (4,))
LR, HYPER_LR = 0.1, 0.01

# ------------------------------------------------------------------------------------------ what the checks are made of


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes or SHAPES]


def gradients(params: list[Tensor], step: int) -> list[Tensor]:
    """The same numbers in every dtype: those of bfloat16."""
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator).bfloat16().to(p.dtype) for p in params]


def feed(params: list[Tensor], step: int, factor: float = 1.0) -> None:
    for p, grad in zip(params, gradients(params, step), strict=True):
        p.grad = factor * grad


def train(params: list[Tensor], optimizer: Optimizer, steps: range = range(4), factor: float = 1.0) -> list[Tensor]:
    for step in steps:
        feed(params, step, factor)
        optimizer.step()
    return params


def build(optimizer_class: Build, params: Any, **options: Any) -> fop_torch.FOP:
    return optimizer_class(params, **{"lr": LR, "hyper_lr": HYPER_LR, **options})


def trained(optimizer_class: Build, **options: Any) -> list[Tensor]:
    params = parameters()
    return train(params, build(optimizer_class, params, **options))


def factors(params: list[Tensor], optimizer: fop_torch.FOP) -> list[Tensor]:
    return [optimizer.state[p]["M"] for p in params if "M" in optimizer.state.get(p, {})]


def contents(params: list[Tensor], optimizer: Optimizer) -> list[Tensor]:
    states = optimizer.state_dict()["state"]
    held = [value for i in sorted(states) for _, value in sorted(states[i].items())]
    return [copy.deepcopy(each) for each in [*(p.detach() for p in params), *held]]


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    """To the bit."""
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def assert_close(a: list[Tensor], b: list[Tensor]) -> None:
    """Sums may be taken in another order."""
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.detach(), y.detach(), rtol=1e-5, atol=1e-6)


def assert_unequal(a: list[Tensor], b: list[Tensor]) -> None:
    assert not any(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -------------------------------------------------------------------------------------------------------- the checks

CHECKS: dict[str, Callable[[Build], None]] = {}


def check(name: str) -> Callable[[Callable[[Build], None]], Callable[[Build], None]]:
    """Registers what shows that a row holds; where the row says no, it must meet the error."""

    def register(function: Callable[[Build], None]) -> Callable[[Build], None]:
        assert name not in CHECKS
        CHECKS[name] = function
        return function

    return register


def check_dtype(optimizer_class: Build, dtype: torch.dtype) -> None:
    """Against the same run in float64."""
    params, exact = parameters(dtype=dtype), [nn.Parameter(p.detach().double()) for p in parameters(dtype=dtype)]
    optimizer, double = build(optimizer_class, params), build(optimizer_class, exact)
    start = [M.clone() for M in factors(params, optimizer)]
    train(params, optimizer)
    train(exact, double)
    for p, q in zip(params, exact, strict=True):
        assert p.dtype == dtype
        # Four steps round the parameter, of size up to 4, and the step, each by half a unit.
        torch.testing.assert_close(p.double(), q, rtol=0, atol=8 * 4 * torch.finfo(dtype).eps)
    Ms, exact_Ms = factors(params, optimizer), factors(exact, double)
    assert_unequal(Ms, start)
    for M, N in zip(Ms, exact_Ms, strict=True):
        assert M.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # Adam's quotients of what rounds to 1e-7; its steps are of size HYPER_LR.
        torch.testing.assert_close(M.double(), N, rtol=0, atol=1e-4 * HYPER_LR)


check("float64")(partial(check_dtype, dtype=torch.float64))
check("float32")(partial(check_dtype, dtype=torch.float32))
check("bfloat16")(partial(check_dtype, dtype=torch.bfloat16))


@check("float16")
def _(optimizer_class: Build) -> None:
    check_dtype(optimizer_class, torch.float16)
    params = [nn.Parameter(torch.ones(2, 3, dtype=torch.float16))]
    optimizer = build(optimizer_class, params)
    optimizer.state[params[0]]["M"].fill_(3)
    params[0].grad = torch.full_like(params[0], 3e4)  # at least tripled: the largest number is 65504
    optimizer.step()
    assert_equal(params, [torch.full((2, 3), 1 - LR * 65504).half()])


@check("complex")
def _(optimizer_class: Build) -> None:
    train(params := [nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))], build(optimizer_class, params))


@check("autocast")
def _(optimizer_class: Build) -> None:
    params = parameters()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(params, build(optimizer_class, params))
    assert_equal(params, trained(optimizer_class))


@check("GradScaler")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))  # sets it up
    for step, factor in ((0, 1.0), (1, 1.0), (7, math.inf), (2, 1.0), (3, 1.0)):
        feed(params, step, factor * scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert_equal(params, trained(optimizer_class))


@check("sparse")
def _(optimizer_class: Build) -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = build(optimizer_class, embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    before = embedding.weight.detach().clone()
    try:
        optimizer.step()
    finally:
        assert torch.equal(embedding.weight, before)


@check("closure")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(
            ((p * grad).sum() for p, grad in zip(params, gradients(params, len(calls)), strict=True)), torch.zeros(())
        )
        loss.backward()
        calls.append(loss)
        return loss

    for _ in range(4):
        assert optimizer.step(closure) is calls[-1]
    assert len(calls) == 4
    assert_equal(params, trained(optimizer_class))


@check("accumulation")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params)
    for step in range(4):
        optimizer.zero_grad()
        for p, grad in zip(params, gradients(params, step), strict=True):
            for part in (0.25, 0.75):
                (p * (part * grad)).sum().backward()
        optimizer.step()
    # A quarter and three quarters of a number of eight bits, and their sum, are exact.
    assert_equal(params, trained(optimizer_class))


@check("clipping")
def _(optimizer_class: Build) -> None:
    params, twins = parameters(), parameters()
    optimizer, twin = build(optimizer_class, params), build(optimizer_class, twins)
    for step in range(4):
        feed(params, step)
        feed(twins, step)
        norm = nn.utils.clip_grad_norm_(params, 0.5)
        assert norm > 0.5
        for p, q in zip(params, twins, strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone()
        optimizer.step()
        twin.step()
    assert_equal(contents(params, optimizer), contents(twins, twin))
    assert_unequal(params, trained(optimizer_class))


@check("p.grad kept")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params)
    for step in range(3):
        feed(params, step)
        grads = [p.grad for p in params]
        optimizer.step()
        assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))
        assert_equal([p.grad for p in params if p.grad is not None], gradients(params, step))


@check("p.grad is None")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params)
    train(params, optimizer, range(2))
    before = contents(params[1:2], optimizer)[0], factors(params[1:2], optimizer)[0].clone()
    feed(params, 7)
    params[1].grad = None
    optimizer.step()
    assert_equal(list(before), [params[1].detach(), factors(params[1:2], optimizer)[0]])
    # And for this parameter it is as if there had been no such step.
    train(params, optimizer, range(2, 4))
    assert_equal(params[1:2], trained(optimizer_class)[1:2])
    assert_unequal(params[:1], trained(optimizer_class)[:1])


@check("not finite")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params)
    train(params, optimizer, range(2))
    with pytest.warns(RuntimeWarning, match="skipped a step"):
        train(params, optimizer, range(7, 8), factor=math.nan)
    assert optimizer.skipped_steps == 1
    train(params, optimizer, range(2, 4))
    assert_equal(params, trained(optimizer_class))


def check_shapes(optimizer_class: Build, *shapes: tuple[int, ...]) -> None:
    """It steps, its factors move where there are any, and what has no factor steps as the base does."""
    params, plain = parameters(*shapes), parameters(*shapes)
    optimizer = build(optimizer_class, params, momentum=0.9)
    start = [M.clone() for M in factors(params, optimizer)]
    train(params, optimizer)
    train(plain, SGD(plain, lr=LR, momentum=0.9))
    for p, q in zip(params, plain, strict=True):
        assert p.isfinite().all()
        assert torch.equal(p, q) == ("M" not in optimizer.state.get(p, {}) or not p.numel())
    for M, old in zip(factors(params, optimizer), start, strict=True):
        # That of a parameter without entries meets zero hypergradients alone.
        assert not torch.equal(M, old) or 0 in [p.numel() for p in params]


@check("0-d parameters")
def _(optimizer_class: Build) -> None:
    check_shapes(optimizer_class, (), (3, 2), ())


@check("1-d parameters")
def _(optimizer_class: Build) -> None:
    check_shapes(optimizer_class, (5,), (3, 2), (1,))


@check("empty parameters")
def _(optimizer_class: Build) -> None:
    check_shapes(optimizer_class, (0,), (3, 2), (0, 4), (4, 0))


@check("convolutions")
def _(optimizer_class: Build) -> None:
    nets: list[tuple[nn.Module, tuple[int, ...]]] = [
        (nn.Conv1d(2, 3, 3), (2, 2, 6)),
        (nn.Conv2d(2, 3, 3, stride=2), (2, 2, 6, 6)),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
        (nn.Conv2d(4, 4, (3, 5), groups=4), (2, 4, 6, 6)),
        (nn.ConvTranspose2d(2, 3, 3), (2, 2, 4, 4)),
        (nn.Conv3d(2, 2, 3), (2, 2, 4, 4, 4)),
        (nn.Conv2d(2, 3, 1), (2, 2, 4, 4)),
    ]
    for module, shape in nets:
        check_module(optimizer_class, module, torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def check_module(optimizer_class: Build, module: nn.Module, x: Tensor) -> None:
    """The first parameter's hypergradient is the central difference of the loss that the next batch meets."""
    module = module.double()
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(1)))
    p = next(module.parameters())
    optimizer = build(optimizer_class, module.parameters(), hyper=SGD, hyper_lr=1.0)
    first, before = optimizer.state[p]["M"].clone(), p.detach().clone()

    def loss() -> Tensor:
        return module(x if x.dtype == torch.long else x.double()).square().mean()

    loss().backward()
    assert p.grad is not None
    H = p.grad.clone()
    optimizer.step()
    optimizer.zero_grad()
    after = [each.detach().clone() for each in module.parameters()]
    loss().backward()
    optimizer.step()
    slope = first - optimizer.state[p]["M"]
    form = FORMS[optimizer.param_groups[0]["forms"][0]]

    @torch.no_grad()
    def reached(M: Tensor) -> float:
        for each, value in zip(module.parameters(), after, strict=True):
            each.copy_(value)
        p.copy_(before - LR * form.precondition([M], [H])[0])
        return float(loss())

    size = 1e-5 / float(slope.norm())
    difference = (reached(first + size * slope) - reached(first - size * slope)) / (2 * size)
    # Right to the square of the step, 1e-5, and to rounding over it.
    assert difference == pytest.approx(float(slope.square().sum()), rel=1e-6)


@check("embeddings and tied weights")
def _(optimizer_class: Build) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.embedding(x))
            return found

    check_module(optimizer_class, Tied(), torch.tensor([0, 3, 3, 6]))
    model = Tied()
    assert len(build(optimizer_class, model.parameters()).preconditioners()) == 1


@check("channels_last")
def _(optimizer_class: Build) -> None:
    params = [
        nn.Parameter(p.detach().to(memory_format=torch.channels_last)) for p in parameters((4, 3, 3, 3), (5, 4, 3, 3))
    ]
    optimizer = build(optimizer_class, params)
    for step in range(4):
        for p, grad in zip(params, gradients(params, step), strict=True):
            p.grad = grad.to(memory_format=torch.channels_last)
        optimizer.step()
    assert all(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in params)
    usual = parameters((4, 3, 3, 3), (5, 4, 3, 3))
    assert_close(params, train(usual, build(optimizer_class, usual)))


@check("strided memory")
def _(optimizer_class: Build) -> None:
    shapes = (4, 5), (2, 3, 3, 3)
    params: list[Tensor] = []
    for p in parameters(*shapes):
        # Every second part of a larger tensor, the last two dimensions swapped.
        room = torch.zeros(2 * p.mT.shape[0], *p.mT.shape[1:])[::2].mT
        params.append(nn.Parameter(room.copy_(p.detach())))
    optimizer = build(optimizer_class, params)
    for step in range(4):
        for p, grad in zip(params, gradients(params, step), strict=True):
            p.grad = grad.mT.contiguous().mT
        optimizer.step()
    assert not any(p.is_contiguous() or (p.grad is not None and p.grad.is_contiguous()) for p in params)
    usual = parameters(*shapes)
    assert_close(params, train(usual, build(optimizer_class, usual)))


@check("maximize")
def _(optimizer_class: Build) -> None:
    params, twins = parameters(), parameters()
    optimizer, twin = build(optimizer_class, params, maximize=True), build(optimizer_class, twins)
    train(params, optimizer)
    train(twins, twin, factor=-1.0)
    assert_equal(params, twins)
    assert_equal(factors(params, optimizer), factors(twins, twin))


@check("foreach")
def _(optimizer_class: Build) -> None:
    seen: list[Any] = []
    for foreach in (True, False):
        params = parameters()
        optimizer = build(optimizer_class, params, momentum=0.9, foreach=foreach)
        assert optimizer.base.param_groups[0]["foreach"] is foreach
        seen.append(train(params, optimizer))
    assert_close(*seen)


@check("fused")
def _(optimizer_class: Build) -> None:
    for base in (SGD, Adam, AdamW):
        params = parameters()
        optimizer = build(optimizer_class, params, base=base, fused=True)
        assert optimizer.base.param_groups[0]["fused"] is True
        # Fused products are rounded otherwise; Adam's quotients grow that where a gradient is small.
        for p, q in zip(train(params, optimizer), trained(optimizer_class, base=base), strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-4, atol=1e-5)


@check("capturable")
def _(optimizer_class: Build) -> None:
    with FakeTensorMode():
        params = test_fop_cuda.parameters(*SHAPES)
        optimizer = build(optimizer_class, params, base=Adam, capturable=True)
        test_fop_cuda.settle_and_watch(params, optimizer)
        assert optimizer.hyper is not None
        assert all(group["capturable"] for group in optimizer.hyper.param_groups)


@check("CUDA without waits")
def _(optimizer_class: Build) -> None:
    with FakeTensorMode():
        params = test_fop_cuda.parameters(*SHAPES)
        test_fop_cuda.settle_and_watch(params, build(optimizer_class, params, momentum=0.9))


@check("differentiable")
def _(optimizer_class: Build) -> None:
    build(optimizer_class, parameters(), differentiable=True)


@check("lr as a tensor")
def _(optimizer_class: Build) -> None:
    params, twins = parameters(), parameters()
    lr = torch.tensor(LR)
    optimizer, twin = build(optimizer_class, params, lr=lr), build(optimizer_class, twins)
    for step in range(4):
        now = LR / (1 + step)
        lr.fill_(now)
        twin.param_groups[0]["lr"] = now
        train(params, optimizer, range(step, step + 1))
        train(twins, twin, range(step, step + 1))
        assert lr == torch.tensor(now)
    assert_close(params, twins)
    assert_unequal(params, trained(optimizer_class))


@check("learning-rate schedules")
def _(optimizer_class: Build) -> None:
    params, twins = parameters(), parameters()
    optimizer, twin = build(optimizer_class, params), build(optimizer_class, twins)
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=4, cycle_momentum=False)
    rates = []
    for step in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        twin.param_groups[0]["lr"] = rates[-1]
        train(params, optimizer, range(step, step + 1))
        train(twins, twin, range(step, step + 1))
        assert optimizer.param_groups[0]["lr"] == rates[-1]
        if step < 3:
            schedule.step()
    assert len(set(rates)) > 2
    assert_equal(params, twins)
    assert_unequal(params, trained(optimizer_class))


@check("named parameters")
def _(optimizer_class: Build) -> None:
    names = ["first", "second", "third", "fourth"]
    params = parameters()
    optimizer = build(optimizer_class, zip(names, params, strict=True))
    assert_equal(train(params, optimizer), trained(optimizer_class))
    assert all(name in optimizer.describe() for name in names)
    assert set(optimizer.preconditioners()) <= set(names)
    assert {"first", "second", "third"} <= set(optimizer.preconditioners())


@check("options of a group")
def _(optimizer_class: Build) -> None:
    params = parameters()
    other: dict[str, Any] = {"lr": 0.03, "hyper_lr": 0.1, "momentum": 0.5, "order": "m-first"}
    optimizer = build(optimizer_class, [{"params": params[:2]}, {"params": params[2:], **other}])
    train(params, optimizer)
    assert_equal(params[:2], trained(optimizer_class)[:2])
    assert_equal(params[2:], trained(optimizer_class, **other)[2:])


@check("add_param_group")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params[:2])
    train(params, optimizer, range(2))
    kept = [M.clone() for M in factors(params[:2], optimizer)]
    with torch.no_grad():
        for p, start in zip(params[2:], parameters()[2:], strict=True):
            p.copy_(start)
    optimizer.add_param_group({"params": params[2:], "lr": 0.05})
    assert_equal(factors(params[:2], optimizer), kept)
    train(params, optimizer, range(2, 4))
    assert_equal(params[:2], trained(optimizer_class)[:2])
    late = parameters()
    twin = build(optimizer_class, late, lr=0.05)
    assert_equal(params[2:], train(late, twin, range(2, 4))[2:])


EVERY = [
    each
    for name in dir(torch.optim)
    if isinstance(each := getattr(torch.optim, name), type) and issubclass(each, Optimizer)
    if each not in (Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
]


@check("bases of torch.optim")
def _(optimizer_class: Build) -> None:
    assert len(EVERY) > 10
    shapes = ((4, 5), (3, 2))
    for each in EVERY:
        params, plain = parameters(*shapes), parameters(*shapes)
        frozen = build(optimizer_class, params, base=each, hyper_lr=0)
        assert_equal(train(params, frozen), train(plain, each(plain, lr=LR)))  # type: ignore[call-arg]
        if each is Muon and optimizer_class is fop_torch.SHD:
            continue
        params = parameters(*shapes)
        optimizer = build(optimizer_class, params, hyper=each)
        start = [M.clone() for M in factors(params, optimizer)]
        train(params, optimizer)
        assert isinstance(optimizer.hyper, each)
        assert_unequal(factors(params, optimizer), start)


@check("LBFGS as the base")
def _(optimizer_class: Build) -> None:
    build(optimizer_class, parameters(), base=torch.optim.LBFGS)


@check("SparseAdam as the base")
def _(optimizer_class: Build) -> None:
    build(optimizer_class, parameters(), base=torch.optim.SparseAdam)


@check("normalize")
def _(optimizer_class: Build) -> None:
    params = parameters()[:3]
    optimizer = build(optimizer_class, params, normalize=True, hyper_lr=0.1)
    train(params, optimizer)
    for learned in optimizer.preconditioners().values():
        # Eq. (11): the Frobenius norm of the identity.
        assert learned.P.norm() == pytest.approx(math.sqrt(len(learned.P)), rel=1e-5)
        assert not torch.allclose(learned.P, torch.eye(len(learned.P)), atol=1e-3)


@check("safe")
def _(optimizer_class: Build) -> None:
    bounded = {}
    for safe in (None, 0.5):
        params = parameters((4, 5), (2, 2, 3, 3))
        optimizer = build(optimizer_class, params, hyper=SGD, hyper_lr=100.0, safe=safe)
        train(params, optimizer, range(2))
        bounded[safe] = [float(each.eigenvalues[0]) for each in optimizer.preconditioners().values()]
    # One update so far, of which nothing may shrink by more than half: the eigenvalues of P by a quarter.
    assert all(value > 0.249 for value in bounded[0.5])
    assert bounded[None] != bounded[0.5]


@check("max_norm")
def _(optimizer_class: Build) -> None:
    for bound in (1.5, 1e6):
        params = parameters()[:3]
        optimizer = build(optimizer_class, params, max_norm=bound, hyper_lr=1.0)
        train(params, optimizer)
        norms = [each.eigenvalues.abs().max() for each in optimizer.preconditioners().values()]
        assert all(norm < bound * (1 + 1e-5) for norm in norms)
        assert (max(norms) > 1.6) == (bound == 1e6)


@check("exponential")
def _(optimizer_class: Build) -> None:
    params = parameters()[:3]
    optimizer = build(optimizer_class, params, preconditioner="exponential", hyper=SGD, hyper_lr=3.0)
    train(params, optimizer)
    for learned in optimizer.preconditioners().values():
        assert float(learned.eigenvalues[0]) > 0
        assert (learned.P - learned.P.mT).abs().max() < 1e-3 * learned.P.abs().max()
        assert not torch.allclose(learned.P, torch.eye(len(learned.P)), atol=1e-3)


@check("linear")
def _(optimizer_class: Build) -> None:
    lowest = {}
    for bound in (None, 3.0):
        params = parameters()[:3]
        options = {"max_norm": bound, "hyper_lr": 10.0}
        optimizer = build(optimizer_class, params, preconditioner="linear", hyper=SGD, **options)
        train(params, optimizer)
        found = optimizer.preconditioners().values()
        lowest[bound] = min(float(learned.eigenvalues[0]) for learned in found)
        assert all((learned.P - learned.P.mT).abs().max() < 1e-3 * learned.P.abs().max() for learned in found)
    assert lowest[None] < 0 < 0.999 / 3 < lowest[3.0]


@check("null_step")
def _(optimizer_class: Build) -> None:
    """On a quadratic: never above the base's own step, however wild M is; without it far above."""
    curvatures = [torch.linspace(0.1, 2.0, p.numel()).reshape(p.shape) for p in parameters()]
    losses: dict[bool, list[float]] = {}
    for null_step in (False, True):
        params = parameters()
        options = {"hyper": SGD, "hyper_lr": 10.0, "nonfinite": "ignore"}
        optimizer = build(optimizer_class, params, null_step=null_step, **options)

        def closure(params: list[Tensor] = params, optimizer: Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            terms = [(c * p.square()).sum() / 2 for c, p in zip(curvatures, params, strict=True)]
            loss = sum(terms, torch.zeros(()))
            loss.backward()
            return loss

        losses[null_step] = [float(optimizer.step(closure).detach()) for _ in range(6)]
    assert all(after <= before for before, after in pairwise(losses[True]))
    assert not all(after <= before for before, after in pairwise(losses[False]))


@check("state_dict")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params, momentum=0.9)
    train(params, optimizer, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    twin = build(optimizer_class, twins, momentum=0.5, seed=3)
    twin.load_state_dict(torch.load(file))
    train(params, optimizer, range(2, 4))
    train(twins, twin, range(2, 4))
    assert_equal(contents(params, optimizer), contents(twins, twin))


@check("checkpoint of the base")
def _(optimizer_class: Build) -> None:
    plain, params = parameters(), parameters()
    base = SGD(plain, lr=LR, momentum=0.9)
    train(plain, base, range(2))
    optimizer = build(optimizer_class, params, momentum=0.9, hyper_lr=0)
    for p, q in zip(params, plain, strict=True):
        p.data.copy_(q.data)
    optimizer.load_state_dict(base.state_dict())
    for p, q in zip(params, plain, strict=True):
        assert torch.equal(optimizer.base.state[p]["momentum_buffer"], base.state[q]["momentum_buffer"])
    train(params, optimizer, range(2, 4))
    train(plain, base, range(2, 4))
    # The low rank begins near the identity, not at it.
    close = [0, 1, 3]
    assert_equal([params[i] for i in close], [plain[i] for i in close])


@check("deepcopy and pickle")
def _(optimizer_class: Build) -> None:
    for duplicate in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        params = parameters()
        optimizer = build(optimizer_class, params, momentum=0.9)
        train(params, optimizer, range(2))
        twins, twin = duplicate((params, optimizer))
        train(params, optimizer, range(2, 4))
        train(twins, twin, range(2, 4))
        assert_equal(contents(params, optimizer), contents(twins, twin))
        assert twin.skipped_steps == 0


@check("hooks")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params)
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *args: called.append("before"))
    optimizer.register_step_post_hook(lambda *args: called.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, packed: called.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda _, packed: called.append("loaded"))
    train(params, optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["before", "after", "saved", "loaded"]


@check("torch.compile")
def _(optimizer_class: Build) -> None:
    params = parameters()
    optimizer = build(optimizer_class, params)
    torch._dynamo.reset()
    counters.clear()
    try:
        step = torch.compile(optimizer.step, backend="eager")
        graphs = []
        for number in range(4):
            feed(params, number)
            step()
            graphs.append(counters["stats"]["unique_graphs"])
        assert graphs[0] > 0
        assert graphs[1:] == [graphs[1]] * 3
        assert len({reason.split("\n")[0] for reason in counters["graph_break"]}) == 1
    finally:
        torch._dynamo.reset()
    assert_close(params, trained(optimizer_class))


@contextmanager
def one_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
        distributed.init_process_group(
            "gloo", store=distributed.HashStore(), rank=0, world_size=1, timeout=datetime.timedelta(seconds=20)
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()


def net() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        for p, start in zip(
            module.parameters(), parameters(*(tuple(p.shape) for p in module.parameters())), strict=True
        ):
            p.copy_(start)
    return module


@check("DDP")
def _(optimizer_class: Build) -> None:
    """Of one process; two stand in test_fop_distributed.py."""
    ends = []
    with one_process():
        for wrap in (DistributedDataParallel, lambda module: module):
            module = net()
            wrapped = wrap(module)
            optimizer = build(optimizer_class, module.parameters())
            for step in range(4):
                optimizer.zero_grad()
                wrapped(
                    torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(step))
                ).square().mean().backward()
                optimizer.step()
            ends.append(contents(list(module.parameters()), optimizer))
    assert_equal(*ends)


@check("FSDP2")
def _(optimizer_class: Build) -> None:
    with one_process():
        module = net()
        fully_shard(module)
        build(optimizer_class, module.parameters())


# --------------------------------------------------------------------------------------------------- the table, checked


def confirm(cell: str, run: Callable[[Build], None], optimizer_class: Build) -> None:
    """A cell's word against what happens."""
    if cell == "yes":
        run(optimizer_class)
    else:
        with pytest.raises((TypeError, ValueError), match=re.escape(cell.removeprefix("no: "))):
            run(optimizer_class)


@pytest.mark.filterwarnings("ignore:.*dynamo_pgo.*", "ignore:.*Profiler record function.*")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("row", CAPABILITIES, ids=lambda row: row.name)
def test_a_cell_is_true(row: Capability, optimizer: str) -> None:
    confirm(row.cells[optimizer], CHECKS[row.name], CLASSES[optimizer])


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    names = [row.name for row in CAPABILITIES]
    assert len(set(names)) == len(names)
    assert set(CHECKS) == set(names)


def test_every_optimizer_has_a_column() -> None:
    exported = {
        name
        for name in fop_torch.__all__
        if inspect.isclass(each := getattr(fop_torch, name)) and issubclass(each, Optimizer)
    }
    assert set(OPTIMIZERS) == exported


@pytest.mark.parametrize("row", CAPABILITIES, ids=lambda row: row.name)
def test_a_row_can_be_shown(row: Capability) -> None:
    assert set(row.cells) == set(OPTIMIZERS)
    assert all(cell == "yes" or re.fullmatch(r"no: \S.{9,}", cell) for cell in row.cells.values())
    assert re.fullmatch(r"[A-Z].{10,110}\.", row.sentence)


@pytest.mark.parametrize(
    ("name", "wrong"), [("float32", "no: not supported"), ("complex", "no: another reason"), ("complex", "yes")]
)
def test_a_wrong_cell_is_noticed(name: str, wrong: str) -> None:
    with pytest.raises((AssertionError, TypeError, pytest.fail.Exception)):
        confirm(wrong, CHECKS[name], fop_torch.FOP)
