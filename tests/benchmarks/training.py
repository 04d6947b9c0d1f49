"""Whole training steps: forward, backward and the optimizer's step, with and without FOP."""

from __future__ import annotations

import ctypes
import platform
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from fop_torch import FOP, assign
from fop_torch.studies import cost
from tests.benchmarks.networks import FIGURE_2, MOMENTUM, RATE, all_cnn_c, cifar10, mnist_net, resnet18
from tests.benchmarks.timer import clock, confidence, quartiles, ratios, turns

#: Rounds of the two long comparisons; a round takes a step with each method.
ROUNDS = {"All-CNN-C": 13, "ResNet-18": 24}
MNIST_BATCHES = (32, 128, 512)


class Trainer:
    """One network under one optimizer; every step notes its own time and that of the optimizer in it."""

    def __init__(self, build: Callable[[], nn.Module], make: Callable[[nn.Module], Any], batch: tuple[Tensor, Tensor]):
        torch.manual_seed(0)
        self.net = build()
        self.optimizer, self.batch = make(self.net), batch
        self.whole: list[float] = []
        self.part: list[float] = []

    def step(self) -> None:
        """Train on the batch once."""
        start = clock()
        self.optimizer.zero_grad()
        cross_entropy(self.net(self.batch[0]), self.batch[1]).backward()
        middle = clock()
        self.optimizer.step()
        end = clock()
        self.whole.append(end - start)
        self.part.append(end - middle)


def train(trainers: dict[str, Trainer], rounds: int, warm_up: int = 2) -> None:
    """Let all take steps in turns."""
    for each in trainers.values():
        for _ in range(warm_up):
            each.step()
        each.whole.clear()
        each.part.clear()
    for name in turns(trainers, rounds):
        trainers[name].step()


def run(quick: bool) -> Iterator[dict[str, Any]]:
    """All rows."""
    images, labels, source = cifar10(128)
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(64, 3, 64, 64, generator=generator), torch.randint(1000, (64,), generator=generator)
    if images.shape[1] != 3:  # digits are grey and tiny: noise of the right size costs the same
        images, source = torch.randn(128, 3, 32, 32, generator=generator), "noise"
    yield from mnist(6 if quick else 60)
    for section in ("training", "training, pages kept"):
        if section != "training":
            if platform.libc_ver()[0] != "glibc":
                return
            keep_pages()
        for network, build, batch, data in (
            ("All-CNN-C", all_cnn_c, (images, labels), source),
            ("ResNet-18", resnet18, small, "noise"),
        ):
            for name, row in whole_steps(build, batch, 4 if quick else ROUNDS[network]):
                yield {
                    "section": section, "network": network, "name": name, "baseline": MOMENTUM, "unit": "%",
                    "interval": "95 %", **row, "batch": list(batch[0].shape), "data": data,
                }  # fmt: skip


def keep_pages() -> None:
    """Keep memory that was freed, as other allocators do: glibc's gives it back, and asks for it anew.

    How much of it depends on how the heap happens to lie, and every page that comes anew costs a fault.
    """
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)


def whole_steps(
    build: Callable[[], nn.Module], batch: tuple[Tensor, Tensor], rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each method, as it comes, adds to a step of training with momentum; some with torch's flags too."""
    makers = dict(FIGURE_2)
    for method, flag in (("FOP", "foreach"), ("FOP", "fused"), (MOMENTUM, "foreach")):
        makers[f"{method}, {flag}"] = partial(FIGURE_2[method], **{flag: True})
    trainers = {name: Trainer(build, make, batch) for name, make in makers.items()}
    train(trainers, rounds)
    base = trainers[MOMENTUM]
    step, whole = statistics.median(base.part), statistics.median(base.whole)
    for name, each in trainers.items():
        percent = [100 * (ratio - 1) for ratio in ratios(each.whole, base.whole)]
        yield name, {
            **confidence(percent), "seconds": statistics.median(each.whole),
            # The step's own times vary far less than those of a whole step.
            "by_step": quartiles([100 * (part - step) / whole for part in each.part]),
            "share": 100 * statistics.median(each.part) / whole, "rounds": len(each.whole),
        }  # fmt: skip


def mnist(rounds: int) -> Iterator[dict[str, Any]]:
    """Whole iterations of Figure A.2's network at each of its ranks, over momentum's."""
    for size in MNIST_BATCHES:
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(size, 784, generator=generator), torch.randint(10, (size,), generator=generator)
        makers: dict[str, Callable[[nn.Module], Any]] = {
            MOMENTUM: lambda net: SGD(net.parameters(), RATE, momentum=0.9, foreach=True)
        }
        for rank in (1, 4, 25, 100, 784):
            makers[f"rank {rank}"] = lambda net, rank=rank: FOP(ranked(net, rank), RATE, momentum=0.9, foreach=True)
        trainers = {name: Trainer(mnist_net, make, batch) for name, make in makers.items()}
        train(trainers, rounds)
        for name, each in trainers.items():
            traffic, flops = cost.watch(each.step)
            yield {
                "section": "mnist", "network": "784-100-100-100-10", "name": name, "baseline": MOMENTUM,
                "unit": "ratio", "batch": size, **quartiles(ratios(each.whole, trainers[MOMENTUM].whole)),
                "seconds": statistics.median(each.whole), "flops": flops, "words": traffic.reads + traffic.writes,
            }  # fmt: skip


def ranked(net: nn.Module, rank: int) -> list[dict[str, Any]]:
    """Low rank for every weight, at most full: the paper's assignment."""
    rules = {
        name: {"preconditioner": "low_rank", "rank": min(rank, p.shape[1])}
        for name, p in net.named_parameters()
        if p.dim() == 2
    }
    return assign(net, rules, default="none")
