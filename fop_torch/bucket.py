"""Parameters that take a step together: the hypergradients, the preconditioned gradients, what is remembered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from fop_torch import kernels
from fop_torch.guard import SMALL
from fop_torch.preconditioners import Dense, Form, safe_factor


def gradient(p: Tensor) -> Tensor:
    """The gradient of a parameter that is known to have one."""
    assert p.grad is not None
    return p.grad


def in_autocast(device: torch.device) -> bool:
    """Would a product on this device be taken in half precision?"""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


@dataclass(eq=False)
class Bucket:
    """Parameters of one group and form that take this step together; the lists are in the same order."""

    group: dict[str, Any]
    form: Form
    seen: bool  # is there a gradient of an earlier step?
    params: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    Ms: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)  # as autograd left them
    Gs: list[Tensor] = field(default_factory=list)  # in M's precision
    projected: Any = None
    slopes: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    velocities: list[Tensor] | None = None  # of the base, where its step and the product are one pass
    joint: Tensor | None = None  # P of all layers then

    def look_back(self) -> None:
        """Form the hypergradients, from this gradient, the one before and M as it is."""
        group, form = self.group, self.form
        paper = group["order"] == "paper"
        if paper:
            self.projected = form.project(self.Ms, self.Gs)
        if not self.seen or group["hyper_lr"] == 0:
            return
        at, Gs, projected = self.Ms, self.Gs, self.projected
        if paper and group["index"] == "exact":
            at, projected = [state["prev_M"] for state in self.states], None
        if group["through"] == "step" and "sensitivity" in self.states[0]:
            Gs = list(torch._foreach_mul(Gs, [state["sensitivity"] for state in self.states]))
        kept = [state["prev_grad"] for state in self.states]
        Hs = [H if H.dtype == M.dtype else H.to(M.dtype) for H, M in zip(kept, at, strict=True)]
        slopes = form.slopes(at, Gs, Hs, projected)
        if group["normalize"] and isinstance(form, Dense):
            scales = form.scales(at)
            if group["through_norm"]:
                slopes = form.norm_slopes(at, Gs, Hs, slopes, scales)
            else:
                slopes = list(torch._foreach_mul(slopes, scales))
        lrs = [state["prev_lr"] for state in self.states]
        if group["safe"] is not None:
            shortened = [
                safe_factor(G, H, group["hyper_lr"] * lr, group["safe"]) for G, H, lr in zip(Gs, Hs, lrs, strict=True)
            ]
            slopes = list(torch._foreach_mul(slopes, shortened))
        if form.normalised:
            self.slopes = list(torch._foreach_neg(slopes))
        else:
            alike = all(lr is lrs[0] for lr in lrs)
            torch._foreach_mul_(slopes, -lrs[0] if alike else list(torch._foreach_neg(lrs)))
            self.slopes = slopes

    def precondition(self, base: Optimizer, in_place: bool = True) -> None:
        """Form what the base optimizer will take for the gradient, or P alone where `move` does all the rest.

        Args:
            base: The base optimizer.
            in_place: Write it into the memory of the gradient before, which is no longer needed.
        """
        self.velocities = self._in_one_pass(base)
        if self.velocities is not None:
            self.joint = kernels.SPATIAL.joint(self.Ms)
            if self.group["normalize"]:
                self.joint *= torch.stack(kernels.SPATIAL.scales(self.Ms))[:, None, None]
            return
        olds: list[Tensor] | None = None
        if in_place and self.group["through"] != "velocity":
            if not self.seen:
                for p, state in zip(self.params, self.states, strict=True):
                    state["prev_grad"] = torch.empty_like(gradient(p))
            olds = [state["prev_grad"] for state in self.states]
            alike = all(
                old.dtype == G.dtype and old.stride() == G.stride() and old.is_contiguous()
                for old, G in zip(olds, self.Gs, strict=True)
            )
            olds = olds if alike else None
        self.steps = self.form.precondition(self.Ms, self.Gs, self.projected, olds)
        if self.group["normalize"] and isinstance(self.form, Dense):
            torch._foreach_mul_(self.steps, self.form.scales(self.Ms))

    def _in_one_pass(self, base: Optimizer) -> list[Tensor] | None:
        """May the library take the product and the base's step together? SGD's, as most use it.

        Returns:
            SGD's momentum buffers, none without momentum; or None.
        """
        group = self.group
        if self.form is not kernels.SPATIAL or type(base) is not SGD or group["dampening"] != 0 or group["maximize"]:
            return None
        velocities: list[Tensor] = []
        if group["momentum"] != 0:
            found = [base.state[p].get("momentum_buffer") for p in self.params if p in base.state]
            velocities = [velocity for velocity in found if velocity is not None]
            if len(velocities) < len(self.params):  # the first step makes them
                return None
        taken = kernels.takes(self.Ms[0].shape[-1], [*self.Gs, *self.params, *velocities])
        return velocities if taken else None

    def move(self) -> None:
        """Take the base's step for these parameters, along the gradient times P."""
        assert self.joint is not None
        assert self.velocities is not None
        options = {name: self.group[name] for name in ("momentum", "weight_decay", "nesterov")}
        kernels.sgd(self.Gs, self.joint, self.velocities, self.params, lr=float(self.group["lr"]), **options)

    def remember(self) -> None:
        """Keep this step's gradient and learning rate for the next hypergradient."""
        lr, momentum = self.group["lr"], self.group.get("momentum", 0)
        if self.group["through"] == "step" and self.group.get("nesterov"):
            lr = lr * (1 + momentum)  # Nesterov's step is lr (p + momentum v), and v holds p once more
        M = self.Ms[0]
        if isinstance(lr, Tensor) and lr.device != M.device and not torch.compiler.is_compiling():
            lr = float(lr)  # from the host: a copy to the device would make the host wait for it
        used = lr.to(M, copy=True) if isinstance(lr, Tensor) else torch.full((), lr, dtype=M.dtype, device=M.device)
        captured = self.group.get("capturable") or self.group["hyper_options"].get("capturable")
        for p, state in zip(self.params, self.states, strict=True):
            if captured and self.seen:
                state["prev_lr"].copy_(used)  # a CUDA graph finds at its replay what lies in the same memory
            else:
                state["prev_lr"] = used.clone() if captured else used
            if not self.seen:
                state["prev_grad"] = gradient(p).clone()
        if not self.seen:
            return
        if self.group["through"] == "velocity":
            kept = [state["prev_grad"] for state in self.states]
            torch._foreach_mul_(kept, momentum)
            torch._foreach_add_(kept, [gradient(p) for p in self.params])
            return
        olds, news = [], []
        for p, state in zip(self.params, self.states, strict=True):
            later = None if captured else copied_on_write(gradient(p))
            if later is not None:
                state["prev_grad"] = later
                continue
            olds.append(state["prev_grad"])
            news.append(gradient(p))
        if olds:
            torch._foreach_copy_(olds, news)


def copied_on_write(tensor: Tensor) -> Tensor | None:
    """A tensor that keeps these numbers: torch copies them when either is written, and not if one is gone by then.

    So a gradient that `zero_grad` drops need not be copied at all.

    Returns:
        None where a copy is cheap, where torch can't, off the CPU, and where somebody else looks at the same memory.
    """
    if tensor.numel() <= SMALL or not tensor.is_cpu or torch.compiler.is_compiling():
        return None
    try:
        storage = tensor.untyped_storage()
        # An array over this memory would be written unseen by torch, and a view would make it copy more than this.
        uses = tensor._use_count(), torch._C._storage_Use_Count(storage._cdata)  # type: ignore[attr-defined]
        return torch._lazy_clone(tensor) if uses == (2, 2) and storage.nbytes() == tensor.nbytes else None
    except (RuntimeError, AttributeError):  # memory of an array or of several processes; another version of torch
        return None


def adam_sensitivity(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """How Adam's next change moves with its gradient: the diagonal `du/dp`, per unit of learning rate.

    `u = m_hat / (sqrt(v_hat) + eps)`, so `du/dp = c1 / (sqrt(v_hat) + eps) - m_hat c2 p / (sqrt(v_hat) (...)^2)`
    with `c = (1 - beta) / (1 - beta^t)`. The paper leaves it out; `fop_theory.adam` derives it.

    Args:
        p: Parameter whose `grad` is what Adam will be fed.
        state: Adam's state before the step.
        group: Adam's options.

    Returns:
        Of the parameter's shape.
    """
    grad = gradient(p)
    if group["maximize"]:
        grad = -grad
    if group["weight_decay"] and not group["decoupled_weight_decay"]:
        grad = grad + group["weight_decay"] * p
    b1, b2 = group["betas"]
    step = state.get("step", 0)
    # A count kept on the host is a float32 tensor: as a number it costs no wait, and no digits of beta^t.
    on_host = isinstance(step, Tensor) and step.device.type == "cpu" and not torch.compiler.is_compiling()
    t = 1 + (step.item() if on_host else step)
    first = b1 * state["exp_avg"] + (1 - b1) * grad if state else (1 - b1) * grad
    second = b2 * state["exp_avg_sq"] + (1 - b2) * grad.square() if state else (1 - b2) * grad.square()
    root = (second / (1 - b2**t)).sqrt()
    size = root + group["eps"]
    # Where all gradients were zero, the quotient is 0/0 and its limit, with m = 0, is zero.
    bend = torch.where(root > 0, first * grad / root, 0) / (1 - b1**t) * ((1 - b2) / (1 - b2**t))
    return (1 - b1) / (1 - b1**t) / size - bend / size.square()
