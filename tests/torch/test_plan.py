"""What a study would cost: counts against counting by hand, times against the roofline's three bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fop_torch import plan
from fop_torch.plan import DEVICES, PRECISIONS, Device, Step, Work
from fop_torch.studies.mnist import train as mnist
from fop_torch.studies.mnist.train import Config
from tests.torch import tiny_study

#: Inputs and outputs of the layers of the paper's network, and the units that stand behind each ReLU.
LAYERS = ((784, 100), (100, 100), (100, 100), (100, 10))
WEIGHTS = sum(m * n for m, n in LAYERS)
ENTRIES = WEIGHTS + sum(n for _, n in LAYERS)


@pytest.mark.parametrize("batch", [20, 100])
def test_flops_of_forward_and_backward(batch: int) -> None:
    """Each layer is three products of `2 m n` for each example; the first needs no gradient of its inputs."""
    found = plan.count(mnist.STUDY, Config("momentum", 0, batch=batch))
    assert found.learn.flops == batch * (6 * WEIGHTS - 2 * 784 * 100)
    assert found.update.flops == 0


@pytest.mark.parametrize(("method", "products"), [("FOP", 5), ("frozen", 2)])
@pytest.mark.parametrize("rank", [1, 25, 784])
def test_flops_of_the_optimizers_step(method: str, products: int, rank: int) -> None:
    """Products of `2 m n k`: G M and (G M) M^T, and the hypergradient's three more."""
    found = plan.count(mnist.STUDY, Config(method, 0, rank))
    assert found.update.flops == sum(2 * products * m * n * min(rank, m) for m, n in LAYERS)


def test_words_and_operations_of_momentum() -> None:
    """Three operations on all parameters: the velocity shortened, the gradient added to it, the step taken."""
    found = plan.count(mnist.STUDY, Config("momentum", 0))
    assert (found.update.words, found.update.operations) == (8 * ENTRIES, 3)


@pytest.mark.parametrize("rank", [4, 784])
def test_memory(rank: int) -> None:
    found = plan.count(mnist.STUDY, Config("FOP", 0, rank)).memory
    factors = sum(m * min(rank, m) for m, _ in LAYERS)
    # Saved: each layer's inputs (what a ReLU gives serves it and the layer behind), the probabilities' logarithms and,
    # of 8 bytes each, the labels. The loss divides by the weight of the examples, one number.
    activations = 100 * 4 * (784 + 3 * 100 + 10) + 100 * 8 + 4
    assert found == {
        "parameters": 4 * ENTRIES,
        "gradients": 4 * ENTRIES,
        "base": 4 * ENTRIES,
        "M": 4 * factors,
        "previous": 4 * WEIGHTS,
        "hyper": 4 * (2 * factors + len(LAYERS)),  # two moments, and a count of steps for each layer
        "activations": activations,
    }


@pytest.mark.parametrize("method", ["momentum", "FOP"])
def test_counted_without_numbers_as_with_them(method: str) -> None:
    """The same network, really trained, gives as many FLOPs and takes as much memory."""
    config = tiny_study.Config(method)
    counted = plan.count(tiny_study.STUDY, config)
    model, optimizer, inputs, _ = tiny_study.setup(config, "cpu")
    x, y = torch.randn(inputs), torch.zeros(inputs[0], dtype=torch.int64)
    for _ in range(2):
        plan._learn(model, x, y)
        optimizer.step()
    assert plan._watch(lambda: plan._learn(model, x, y)).flops == counted.learn.flops
    assert plan._watch(optimizer.step).flops == counted.update.flops
    assert plan._state(optimizer).items() <= counted.memory.items()
    assert sum(plan._state(optimizer).values()) > 0


def test_the_counted_step_is_like_all_later_ones() -> None:
    """The first three are not: they make the states and the count of skipped steps."""
    config = tiny_study.Config("FOP")
    with FakeTensorMode(), plan._Answers():
        model, optimizer, _, _ = tiny_study.setup(config, "cuda")
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for group in optimizer.param_groups:
            group["foreach"] = True
        works = [plan._watch(optimizer.step) for _ in range(5)]
    assert works[2] != works[3] == works[4] == plan.count(tiny_study.STUDY, config).update


def test_kinds() -> None:
    same = [Config("FOP", seed, 25, lr=lr, iterations=n) for seed in range(2) for lr in (0.1, 0.01) for n in (5, 9)]
    momentum = [Config("momentum", 0), Config("matched", 3, gains="0123456789ab")]
    others = [replace(same[0], rank=4), replace(same[0], batch=50), replace(same[0], method="frozen")]
    found = plan.kinds(mnist.STUDY, [*same, *momentum, *others])
    assert found == [same, momentum, *[[each] for each in others]]


# ---------------------------------------------------------------------------------------
# The roofline

CARD = Device("a card", bf16=400.0, tf32=200.0, fp32=100.0, bandwidth=10.0, memory=1e9)


@pytest.mark.parametrize(
    ("precision", "products", "memory"),
    [
        ("fp32", (1000 / 100 + 300 / 100) / 0.5, (4 * 70 + 4 * 30) / 10),
        ("tf32", (1000 / 200 + 300 / 200) / 0.5, (4 * 70 + 4 * 30) / 10),
        ("bf16", (1000 / 400 + 300 / 100) / 0.5, (2 * 70 + 4 * 30) / 10),  # FOP steps in float32
    ],
)
def test_bounds(precision: str, products: float, memory: float) -> None:
    step = Step(Work(1000, 70, 5), Work(300, 30, 2), {"parameters": 100, "activations": 40})
    found = plan.seconds(step, CARD, precision)
    assert found == {"products": products, "memory": memory, "launches": pytest.approx(7 * plan.LAUNCH)}
    assert plan.held(step, precision) == (120 if precision == "bf16" else 140)


def test_devices_keep_the_order_of_their_precisions() -> None:
    for card in DEVICES.values():
        assert 1e13 < card.fp32 <= card.tf32 < card.bf16 < 1.1e15
        assert 1e11 < card.bandwidth < 1e13
        assert 1e10 < card.memory < 1e12
    assert {field for field in Device.__dataclass_fields__ if field in PRECISIONS} == set(PRECISIONS)


@pytest.mark.parametrize(
    ("change", "bound"),
    [({"fp32": 1e6}, "products"), ({"bandwidth": 1e3}, "memory"), ({}, "launches")],
    ids=["slow products", "slow memory", "fast"],
)
def test_the_bound_is_named(change: dict, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "h100", replace(DEVICES["h100"], **change))
    config = tiny_study.Config("FOP", iterations=1000)
    step = plan.count(tiny_study.STUDY, config)
    expected = plan.seconds(step, DEVICES["h100"])[bound]
    told = plan.plan(tiny_study.STUDY, [config, replace(config, seed=1)], "h100")
    line = next(line for line in told.splitlines() if line.startswith("fop "))
    assert bound in line
    assert line.endswith(f"{plan.duration(1000 * expected)}  {plan.duration(2000 * expected)}")
    assert told.startswith(f"2 runs take about {plan.duration(2000 * expected)} on one H100 SXM in fp32")
    assert "fits" in told


def test_a_step_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "l4", replace(DEVICES["l4"], memory=1000.0))
    assert "DOES NOT FIT" in plan.plan(tiny_study.STUDY, [tiny_study.Config()], "l4")


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"device: expected one of h200, h100, .*, got 'h101'"):
        plan.plan(tiny_study.STUDY, [], "h101")
    with pytest.raises(ValueError, match=r"precision: expected one of fp32, tf32, bf16, got 'fp8'"):
        plan.plan(tiny_study.STUDY, [], "h100", "fp8")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0123, "0.012 s"), (34, "34 s"), (59.9, "60 s"), (90, "1.5 min"), (5400, "1.5 h"), (1e6, "278 h")],
)
def test_durations(seconds: float, told: str) -> None:
    assert plan.duration(seconds) == told


# ---------------------------------------------------------------------------------------
# Timed


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_costs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    original = plan.time_step

    def noted(*args: Any) -> float:
        threads.add(torch.get_num_threads())
        return original(*args)

    monkeypatch.setattr(plan, "time_step", noted)
    few = [tiny_study.Config(method, seed, iterations=100) for method in ("momentum", "FOP") for seed in range(2)]
    more = [replace(config, iterations=1000) for config in few]
    found = plan.costs_here(tiny_study.STUDY, {"few": few, "more": more, "none": []}, "cpu", budget=0.4)
    assert (threads, torch.get_num_threads()) == ({1}, 2)
    assert 1e-3 < found["few"] < 100
    assert found["more"] == pytest.approx(10 * found["few"])
    assert found["none"] == 0


def test_large_steps_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> float:
        raise AssertionError("timed")

    monkeypatch.setattr(plan, "time_step", never)
    monkeypatch.setattr(plan, "products_a_second", lambda device: 2.0)
    config = tiny_study.Config("FOP", iterations=3)
    step = plan.count(tiny_study.STUDY, config)
    found = plan.costs_here(tiny_study.STUDY, {"smoke": [config]}, "cpu", budget=10.0)
    assert found == {"smoke": 3 * (step.learn.flops + step.update.flops) / 2}


def test_a_rate_is_a_rate() -> None:
    assert 1e8 < plan.products_a_second("cpu") < 1e14
    assert math.isfinite(plan.time_step(tiny_study.STUDY, tiny_study.Config("FOP"), "cpu", 0.0))
