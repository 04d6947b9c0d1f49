"""FOP beside other optimizers on one small network: time, state, and what the loss is after equal steps and times.

Each gets the same number of learning rates to choose from, no weight decay, and its package's defaults otherwise. The
final runs of all optimizers go in turns, so that their times are comparable.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # read when heavyball is imported

import heavyball
import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW

from fop_torch import FOP, PPHD, SHD
from fop_torch.studies.repair import peers as others
from tests.benchmarks.networks import cifar10, state_tensors
from tests.benchmarks.timer import clock, quartiles, ratios, turns

heavyball.utils.compile_mode = None

#: Learning rates tried: so many times the middle one.
GRID = (1 / 9, 1 / 3, 1, 3, 9)
SEEDS = (1, 2, 3)
STEPS, BLOCK, BATCH = 200, 20, 64
BASELINE = "momentum"


def network(channels: int) -> nn.Module:
    """Two strided convolutions and two linear layers: about 36,000 parameters on CIFAR-10."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


#: Name -> middle learning rate, constructor.
PEERS: dict[str, tuple[float, Callable[[nn.Module, float], Any]]] = {
    BASELINE: (0.1, lambda net, lr: SGD(net.parameters(), lr, momentum=0.9, foreach=True)),
    "FOP": (0.1, lambda net, lr: FOP(net.parameters(), lr, momentum=0.9, foreach=True)),
    "S-HD": (0.1, lambda net, lr: SHD(net.parameters(), lr, momentum=0.9, foreach=True)),
    "PP-HD": (0.1, lambda net, lr: PPHD(net.parameters(), lr, momentum=0.9, foreach=True)),
    "AdamW": (3e-3, lambda net, lr: AdamW(net.parameters(), lr, weight_decay=0, foreach=True)),
    "FOP on AdamW": (3e-3, lambda net, lr: FOP(net.parameters(), lr, base=AdamW, weight_decay=0, foreach=True)),
    "Muon (torch)": (others.PEERS["Muon"], lambda net, lr: others.build("Muon", list(net.parameters()), lr)),
    "SOAP (heavyball)": (3e-3, lambda net, lr: heavyball.SOAP(net.parameters(), lr=lr, weight_decay=0)),
    "PSGDKron (heavyball)": (3e-3, lambda net, lr: heavyball.PSGDKron(net.parameters(), lr=lr, weight_decay=0)),
    "PSGDLRA (heavyball)": (3e-3, lambda net, lr: heavyball.PSGDLRA(net.parameters(), lr=lr, rank=4, weight_decay=0)),
    **{
        f"{name} ({others.PACKAGE})": (
            others.PEERS[name], lambda net, lr, name=name: others.build(name, list(net.parameters()), lr)
        )
        for name in ("Shampoo", "SOAP", "Kron")
    },
    "gdtuo": (0.1, lambda net, lr: gdtuo.SGD(lr, mu=0.9, optimizer=gdtuo.SGD(1e-3))),
}  # fmt: skip


class Run:
    """One network under one optimizer from one seed."""

    def __init__(self, name: str, lr: float, seed: int, images: Tensor, labels: Tensor) -> None:
        torch.manual_seed(seed)
        self.images, self.labels = images, labels
        self.net = network(images.shape[1])
        made = PEERS[name][1](self.net, lr)
        self.wrapper = gdtuo.ModuleWrapper(self.net, optimizer=made) if name == "gdtuo" else None
        if self.wrapper is not None:
            self.wrapper.initialize()
        self.optimizer = made
        self.order = torch.Generator().manual_seed(seed)
        self.seconds: list[float] = []
        self.step_seconds: list[float] = []
        self.losses = [self.loss()]

    def block(self) -> None:
        """Take `BLOCK` steps, then look at the loss, off the clock."""
        parts = 0.0
        start = clock()
        for _ in range(BLOCK):
            chosen = torch.randint(len(self.labels), (BATCH,), generator=self.order)
            x, y = self.images[chosen], self.labels[chosen]
            if self.wrapper is None:
                self.optimizer.zero_grad()
                cross_entropy(self.net(x), y).backward()
                middle = clock()
                self.optimizer.step()
            else:
                self.wrapper.begin()
                loss = cross_entropy(self.wrapper.forward(x), y)
                self.wrapper.zero_grad()
                loss.backward(create_graph=True)
                middle = clock()
                self.wrapper.step()
            parts += clock() - middle
        self.seconds.append((clock() - start) / BLOCK)
        self.step_seconds.append(parts / BLOCK)
        self.losses.append(self.loss())

    @torch.no_grad()
    def loss(self) -> float:
        """Training loss on the first 1,000 images."""
        return float(cross_entropy(self.net(self.images[:1000]), self.labels[:1000]))

    def state_bytes(self) -> int:
        """Of everything that the optimizer keeps, FOP's two inner optimizers included."""
        if self.wrapper is not None:
            return state_tensors([self.optimizer.state, self.optimizer.parameters], set())
        kept = [self.optimizer.state]
        if isinstance(self.optimizer, FOP):
            kept += [self.optimizer.base.state, self.optimizer.hyper.state]
        return state_tensors(kept, set())


def tune(name: str, blocks: int, images: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """The best of the learning rates, from one seed, by the last training loss."""
    final = []
    for factor in GRID:
        run_ = Run(name, PEERS[name][0] * factor, 0, images, labels)
        try:
            for _ in range(blocks):
                run_.block()
        except torch.linalg.LinAlgError:  # a statistic is no longer finite: this rate was too large
            run_.losses[-1] = math.inf
        final.append(run_.losses[-1] if run_.losses[-1] < 100 else math.inf)
    return PEERS[name][0] * GRID[final.index(min(final))], final


def run(quick: bool) -> Iterator[dict[str, Any]]:
    """All rows."""
    images, labels, data = cifar10(10_000)
    blocks = 2 if quick else STEPS // BLOCK
    rates = {name: tune(name, blocks, images, labels) for name in PEERS}
    runs = {(seed, name): Run(name, rates[name][0], seed, images, labels) for seed in SEEDS for name in PEERS}
    for seed in SEEDS:
        for name in turns(PEERS, blocks):
            runs[seed, name].block()
    count = sum(p.numel() for p in network(images.shape[1]).parameters())
    for name in PEERS:
        ours, theirs = ([runs[seed, each] for seed in SEEDS] for each in (name, BASELINE))
        whole, step = (
            [ratio for a, b in zip(ours, theirs, strict=True) for ratio in ratios(getattr(a, what), getattr(b, what))]
            for what in ("seconds", "step_seconds")
        )
        yield {
            "section": "peers", "network": f"small CNN, {count:,} parameters", "name": name, "baseline": BASELINE,
            "unit": "ratio", **quartiles(step), "whole": quartiles(whole),
            "seconds": statistics.median(s for each in ours for s in each.seconds),
            "lr": rates[name][0], "at_edge": rates[name][0] in (PEERS[name][0] * GRID[0], PEERS[name][0] * GRID[-1]),
            "tuning": [loss if loss < 100 else None for loss in rates[name][1]],
            "state_bytes": ours[0].state_bytes() / count,
            "steps": [BLOCK * i for i in range(blocks + 1)], "losses": [each.losses for each in ours],
            "elapsed": [[BLOCK * sum(each.seconds[:i]) for i in range(blocks + 1)] for each in ours],
            "gains": [gains(each.optimizer) for each in ours],
            "data": data, "batch": BATCH, "seeds": list(SEEDS),
        }  # fmt: skip


def gains(optimizer: Any) -> dict[str, float]:
    """By how much what was learned lengthens the last gradient of each parameter; empty for others than FOP."""
    return {name: each.gain for name, each in optimizer.preconditioners().items()} if isinstance(optimizer, FOP) else {}
