"""The optimizer's step alone, beside torch's; state; and the narrow products of which a spatial step consists."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam

from fop_torch import FOP, kernels
from fop_torch.preconditioners import grams, times
from fop_torch.studies import cost
from tests.benchmarks.networks import (
    FIGURE_2,
    MOMENTUM,
    RATE,
    REPAIRED,
    ActorCritic,
    all_cnn_c,
    backward,
    gradients,
    resnet18,
    spatial,
)
from tests.benchmarks.networks import state_tensors as bytes_of
from tests.benchmarks.timer import interleave, quartiles, ratios

BASELINE = "momentum, foreach"


def run(quick: bool) -> Iterator[dict[str, Any]]:
    """All rows, the small network's first: the process is then as one that trains nothing else."""
    rounds = 10 if quick else 40
    yield from small_net(rounds)
    for network, build in (("All-CNN-C", all_cnn_c), ("ResNet-18", resnet18)):
        yield from against_momentum(network, build, rounds)
    yield from narrow_products(rounds)


def against_momentum(network: str, build: Callable[[], nn.Module], rounds: int) -> Iterator[dict[str, Any]]:
    """Step over `SGD(momentum=0.9, foreach=True)`'s, caches cold, gradients as a backward pass leaves them."""
    makers: dict[str, Callable[[nn.Module], Any]] = {
        f"{method}, {flag}": lambda net, make=make, flag=flag: make(net, **{flag: True})
        for method, make in FIGURE_2.items()
        for flag in ("foreach", "fused")
    }
    librarys = set()
    if kernels.library is not None:
        librarys = {"FOP, kernel", "FOP, fused", "FOP-norm, fused"}
        makers["FOP, kernel"] = FIGURE_2["FOP"]  # as it comes: without foreach=True much is the library's
    makers |= {
        f"{form}, {flag}": lambda net, form=form, flag=flag: FOP(
            spatial(net, form), RATE, momentum=0.9, **REPAIRED[form], **{flag: True}
        )
        for form in REPAIRED
        for flag in ("foreach", "fused")
    }
    channels_last = {
        f"{method}, fused, channels last": lambda net, make=FIGURE_2[method]: make(net, fused=True)
        for method in (MOMENTUM, "FOP")
    }
    compiled = {
        f"{method}, compiled": lambda net, make=FIGURE_2[method]: make(net, foreach=True)
        for method in (MOMENTUM, "FOP")
    }
    makers |= channels_last | compiled
    layout = {name: {"memory_format": torch.channels_last} for name in channels_last}
    nets = {name: gradients(build().to(**layout.get(name, {}))) for name in makers}
    optimizers = {name: make(nets[name]) for name, make in makers.items()}
    torch._dynamo.reset()
    steps = {
        name: torch.compile(optimizer.step, dynamic=False) if name in compiled else optimizer.step
        for name, optimizer in optimizers.items()
    }
    times_ = interleave(steps, rounds, before={name: partial(backward, net) for name, net in nets.items()})
    for name, each in times_.items():
        optimizer, count = optimizers[name], sum(p.numel() for p in build().parameters())
        parts = [optimizer, optimizer.base, optimizer.hyper] if isinstance(optimizer, FOP) else [optimizer]
        yield {
            "section": "step", "network": network, "name": name, "baseline": BASELINE, "unit": "ratio",
            **quartiles(ratios(each, times_[BASELINE])), "seconds": quartiles(each)["value"], "parameters": count,
            # What a compiled step moves, or the library, cannot be counted from outside.
            "words": None if name in compiled or name in librarys else cost.words(optimizer),
            "state_bytes": bytes_of([part.state for part in parts], set()) / count,
        }  # fmt: skip


def small_net(rounds: int) -> Iterator[dict[str, Any]]:
    """PPO's network: step over Adam's; all fits the caches, and calls cost more than what they compute."""
    makers = {
        "Adam, foreach": lambda net: Adam(net.parameters(), RATE, foreach=True),
        "momentum, foreach": lambda net: SGD(net.parameters(), RATE, momentum=0.9, foreach=True),
        "FOP on Adam, dense": lambda net: FOP(net.parameters(), RATE, base=Adam, foreach=True),
        "FOP on momentum, dense": lambda net: FOP(net.parameters(), RATE, momentum=0.9, foreach=True),
        "FOP on momentum, dense, fused": lambda net: FOP(net.parameters(), RATE, momentum=0.9, fused=True),
        "FOP on momentum, dense, M frozen": lambda net: FOP(
            net.parameters(), RATE, momentum=0.9, foreach=True, hyper_lr=0
        ),
        "FOP on momentum, dense, unchecked": lambda net: FOP(
            net.parameters(), RATE, momentum=0.9, foreach=True, nonfinite="ignore"
        ),
        **{
            f"FOP on momentum, {form}": lambda net, form=form: FOP(
                net.parameters(), RATE, momentum=0.9, foreach=True, preconditioner=form, **REPAIRED[form]
            )
            for form in REPAIRED
        },
    }
    every = torch.get_num_threads()
    for threads, cold in itertools.product(sorted({1, every}), (False, True)):
        torch.set_num_threads(threads)
        optimizers = {name: make(gradients(ActorCritic())) for name, make in makers.items()}
        net = gradients(ActorCritic())
        groups = [
            {"params": [p for p in net.parameters() if p.dim() == 2], "preconditioner": "low_rank", "rank": 4},
            {"params": [p for p in net.parameters() if p.dim() == 1], "preconditioner": "none"},
        ]
        optimizers["FOP on momentum, low rank 4"] = FOP(groups, RATE, momentum=0.9, foreach=True)
        steps = {name: optimizer.step for name, optimizer in optimizers.items()}
        found = interleave(steps, rounds, calls=1 if cold else 30, cold=cold, warm_up=20)
        for name, each in found.items():
            yield {
                "section": "small net", "network": "24-40-40-4 and a value head", "name": name,
                "baseline": "Adam, foreach", "unit": "ratio", "caches": "cold" if cold else "warm",
                "threads": threads,
                **quartiles(ratios(each, found["Adam, foreach"])), "seconds": quartiles(each)["value"],
            }  # fmt: skip
    torch.set_num_threads(every)


def narrow_products(rounds: int) -> Iterator[dict[str, Any]]:
    """The two products of a spatial step on a 192 x 192 kernel, naive, in pairs and in fours of rows, over a copy."""
    generator = torch.Generator().manual_seed(0)
    G, H, out = (torch.randn(192 * 192, 9, generator=generator) for _ in range(3))
    P = torch.eye(9)
    fours = torch.block_diag(*[P] * 4)
    candidates: dict[str, Callable[[], Any]] = {
        "copy": lambda: out.copy_(G),
        "product, row by row": lambda: torch.mm(G, P, out=out),
        "product, pairs of rows": lambda: times([G], P[None], [out]),
        "product, fours of rows": lambda: torch.mm(G.view(-1, 36), fours, out=out.view(-1, 36)),
        "gram, row by row": lambda: G.mT @ H,
        "gram, pairs and chunks": lambda: grams([G], [H]),
        "gram, fours of rows": lambda: G.view(-1, 36).mT @ H.view(-1, 36),
    }  # fmt: skip
    if kernels.library is not None:
        candidates["product, kernel"] = lambda: kernels.times([G], P[None], [out])
        candidates["gram, kernel"] = lambda: kernels.slopes([G], [H], [P])
    found = interleave(candidates, 2 * rounds)
    for name, each in found.items():
        yield {
            "section": "narrow", "network": "one kernel [192, 192, 3, 3]", "name": name, "baseline": "copy",
            "unit": "ratio", **quartiles(ratios(each, found["copy"])), "seconds": quartiles(each)["value"],
        }  # fmt: skip
