"""The gradient before, kept without a copy where it is dropped anyway: nothing that anyone writes reaches the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fop_torch import FOP, bucket

#: What a user may do with a gradient after the step. The next one is then added to what is there, or made anew.
HABITS: dict[str, Callable[[nn.Parameter], Any]] = {
    "drop": lambda p: setattr(p, "grad", None),
    "set to zero": lambda p: p.grad.zero_(),
    "go on adding": lambda p: None,
    "scale": lambda p: p.grad.mul_(0.5),
    "clip": lambda p: nn.utils.clip_grad_norm_([p], 0.1),
    "write through an array": lambda p: p.grad.numpy().fill(0.25),
    "write through another library": lambda p: np.from_dlpack(p.grad.detach()).__setitem__(..., 0.25),
    "write through a view": lambda p: p.grad.view(-1)[::2].zero_(),
    "write its data": lambda p: p.grad.data.zero_(),
    "share": lambda p: p.grad.share_memory_().zero_(),
    "free": lambda p: (p.grad.untyped_storage().resize_(0), setattr(p, "grad", None)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "torch's calls": {"foreach": True},
    "as it comes": {},
    "fused": {"fused": True},
    "m-first": {"order": "m-first"},
    "exact": {"index": "exact"},
    "diagonal": {"preconditioner": "diagonal"},
}
SHAPES = [(7,), (80, 90), (40, 20, 3, 3), (30, 30, 1, 1), (20, 300)]  # in a buffer the kernels are not the first


def train(habit: Callable[[nn.Parameter], Any], **options: Any) -> list[Tensor]:
    """Parameters, factors and gradients after six steps; in every one FOP must leave the gradient as it was."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]
    optimizer = FOP(params, 0.01, momentum=0.9, hyper_lr=1e-2, **options)
    for _ in range(6):
        for p in params:
            new = torch.randn(p.shape, generator=generator) + p.detach()
            p.grad = new if p.grad is None else p.grad.add_(new)
        given = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, was) for p, was in zip(params, given, strict=True))
        for p, was in zip(params, given, strict=True):
            habit(p)
            if "prev_grad" in optimizer.state[p]:
                assert torch.equal(optimizer.state[p]["prev_grad"], was)
    states = [optimizer.state[p] for p in params]
    return [p.detach() for p in params] + [state["M"] for state in states if state]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("habit", HABITS.values(), ids=HABITS)
def test_as_with_a_copy_whatever_is_done_to_the_gradient(
    habit: Callable[[nn.Parameter], Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit."""
    found = train(habit, **options)
    monkeypatch.setattr(bucket, "copied_on_write", lambda tensor: None)
    assert all(torch.equal(a, b) for a, b in zip(found, train(habit, **options), strict=True))


def test_a_gradient_that_somebody_holds_stays_as_it_was() -> None:
    p = nn.Parameter(torch.randn(40, 20, 3, 3))
    optimizer = FOP([p], 0.01, momentum=0.9)
    held, copies = [], []
    for _ in range(4):
        p.grad = torch.randn_like(p)
        held.append(p.grad)
        copies.append(p.grad.clone())
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_dropped_is_not_copied(options: dict[str, Any]) -> None:
    """After the first step, which makes all states."""
    p = nn.Parameter(torch.randn(40, 20, 3, 3))
    optimizer = FOP([p], 0.01, momentum=0.9, **options)
    for number in range(4):
        p.grad = torch.randn_like(p)
        there = torch._C._data_address(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert number == 0 or torch._C._data_address(optimizer.state[p]["prev_grad"]) == there


#: Ways to look at a gradient's memory before the step, and to write there after it.
LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "array": lambda grad: grad.numpy(),
    "array of the detached": lambda grad: grad.detach().numpy(),
    "array of its data": lambda grad: np.asarray(grad.data),
    "another library's": lambda grad: np.from_dlpack(grad.detach()),
    "array of a tensor of an array": lambda grad: torch.from_numpy(grad.numpy()).numpy(),
    "a view's array": lambda grad: grad.view(-1)[3:].numpy(),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_who_looks_at_the_memory_before_the_step_writes_to_the_gradient_alone(
    look: Callable[[Tensor], Any], options: dict[str, Any]
) -> None:
    """Such writes are unseen by torch; the memory must stay the gradient's, and not be the kept one's too."""
    p = nn.Parameter(torch.randn(40, 20, 3, 3))
    optimizer = FOP([p], 0.01, momentum=0.9, **options)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        array = look(p.grad)
        was = p.grad.clone()
        optimizer.step()
        array[...] = 7.0
        assert torch.equal(optimizer.state[p]["prev_grad"], was)
        assert (p.grad == 7).sum() >= p.numel() - 3


def test_a_gradient_filled_through_an_array_for_ever() -> None:
    """As with torch's own optimizer, clipping in place between."""
    trained = []
    for make in (lambda ps: FOP(ps, 0.1, hyper_lr=0.0, preconditioner="spatial"), lambda ps: torch.optim.SGD(ps, 0.1)):
        p = nn.Parameter(torch.ones(20, 40, 3, 3))
        p.grad = torch.zeros_like(p)
        array, optimizer = p.grad.numpy(), make([p])
        for _ in range(10):
            array[...] = p.detach().numpy() - 3
            nn.utils.clip_grad_norm_([p], 5.0)
            optimizer.step()
        trained.append(p.detach())
    assert torch.equal(*trained)


def test_a_capsule_that_another_library_opens_after_the_step() -> None:
    p = nn.Parameter(torch.randn(40, 20, 3, 3))
    optimizer = FOP([p], 0.01, momentum=0.9)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        capsule, was = torch.utils.dlpack.to_dlpack(p.grad), p.grad.clone()
        optimizer.step()
        torch.utils.dlpack.from_dlpack(capsule).fill_(7.0)
        assert torch.equal(optimizer.state[p]["prev_grad"], was)


def in_a_buffer(gradients: list[Tensor]) -> list[Tensor]:
    """As DistributedDataParallel keeps them."""
    buffer = torch.cat([grad.flatten() for grad in gradients])
    sizes = [grad.numel() for grad in gradients]
    return [part.view_as(grad) for part, grad in zip(buffer.split(sizes), gradients, strict=True)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "place",
    [in_a_buffer, lambda gs: [torch.from_numpy(g.numpy()) for g in gs], lambda gs: [g.share_memory_() for g in gs]],
    ids=["a buffer", "an array", "shared memory"],
)
def test_gradients_in_memory_of_others(place: Callable[[list[Tensor]], list[Tensor]], options: dict[str, Any]) -> None:
    trained = []
    for lay in (place, lambda gradients: gradients):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]
        optimizer = FOP(params, 0.01, momentum=0.9, hyper_lr=1e-2, **options)
        for _ in range(5):
            gradients = lay([torch.randn(p.shape, generator=generator) for p in params])
            for p, grad in zip(params, gradients, strict=True):
                p.grad = grad
            optimizer.step()
            for grad in gradients:
                grad.fill_(7.0)  # the next round of communication
        trained.append([p.detach() for p in params])
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # memory that isn't aligned is summed otherwise
