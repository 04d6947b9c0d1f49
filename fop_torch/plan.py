"""What a study would cost: its steps counted without a device, and set against what a device can do; or timed here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fop_torch.studies import cost
from fop_torch.studies.study import Study

#: Share of the peak that products reach.
EFFICIENCY = 0.5
#: Seconds that PyTorch takes to call and launch one operation from Python.
LAUNCH = 8e-6


@dataclass(frozen=True)
class Device:
    """What a maker promises.

    Attributes:
        title: The card.
        bf16: Products a second with dense matrices of bfloat16, each of two floating-point operations counted.
        tf32: Likewise, of float32 rounded to TF32.
        fp32: Likewise, of float32 as it is.
        bandwidth: Bytes a second.
        memory: Bytes.
    """

    title: str
    bf16: float
    tf32: float
    fp32: float
    bandwidth: float
    memory: float


#: As NVIDIA's data sheets state them, without sparsity, which doubles the tensor cores' numbers; RTX 4090: accumulated
#: in float32. Held against pages that repeat the sheets, not against the sheets themselves. L40S: mullet.se; A100:
#: glennklockwood.com/garden/processors/A100, bandwidth thundercompute.com; H100 and H200, whose products are the same:
#: itkb.uw.cz, hmc-tech.com/gpu; L4: fpsbench.com, grokipedia.com, store.sourcecode.com; RTX 4090: waredb.com/processor.
DEVICES = {
    "h200": Device("H200 SXM", 989e12, 494e12, 67e12, 4.8e12, 141e9),
    "h100": Device("H100 SXM", 989e12, 494e12, 67e12, 3.35e12, 80e9),
    "a100": Device("A100 SXM, 80 GB", 312e12, 156e12, 19.5e12, 2.039e12, 80e9),
    "l40s": Device("L40S", 362e12, 183e12, 91.6e12, 0.864e12, 48e9),
    "l4": Device("L4", 121e12, 60e12, 30.3e12, 0.3e12, 24e9),
    "rtx4090": Device("GeForce RTX 4090", 165.2e12, 82.6e12, 82.6e12, 1.008e12, 24e9),
}
PRECISIONS = ("fp32", "tf32", "bf16")


def known_device(name: str) -> Device:
    """The device of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in DEVICES:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    return DEVICES[name]


# ---------------------------------------------------------------------------------------
# Counted


@dataclass(frozen=True)
class Work:
    """What a part of a step does.

    Attributes:
        flops: Floating-point operations of matrix products and convolutions.
        words: Entries of tensors read and written, each operation on its own.
        operations: Calls that reach the device.
    """

    flops: int
    words: int
    operations: int


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        learn: Forward and backward.
        update: The optimizer's step.
        memory: Bytes of `parameters`, `gradients`, `activations`, and of the optimizer's states by their names.
    """

    learn: Work
    update: Work
    memory: dict[str, int]


class _Answers(TorchDispatchMode):
    """Answers what only numbers could; torch does not know how to fake all fused optimizers, which return nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return 1.0
        return None if name.startswith("_fused_") else func(*args, **(kwargs or {}))


class _Kernels(cost.Traffic):
    """Counts what reaches a device: not the questions that tensors without numbers answer through the dispatcher."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten" or func.overloadpacket.__name__ == "promote_types":
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def _watch(call: Callable[[], Any]) -> Work:
    flops = FlopCounterMode(display=False)
    with flops, _Kernels() as traffic:
        call()
    return Work(flops.get_total_flops(), traffic.reads + traffic.writes, traffic.calls)


def count(study: Study, config: Any) -> Step:
    """Count one step as a GPU runs it, on tensors that have a shape and a device but no numbers.

    Args:
        study: The study.
        config: Of one of its runs.
    """
    with FakeTensorMode(), _Answers():
        # Autograd asks a GPU for its context even for tensors without numbers; operations are the same on a processor.
        model, _, inputs, targets = study.step(config, "cpu")
        x, y = _example(inputs, targets, "cpu")
        learn, activations = cost.learn(model, x, y, _watch)

        model, optimizer, _, _ = study.step(config, "cuda")
        for group in optimizer.param_groups:
            if "foreach" in group and not group.get("fused"):
                group["foreach"] = True  # as torch does on a GPU, but for tensors without numbers
        parameters = list(model.parameters())
        for p in parameters:
            p.grad = torch.zeros_like(p)
        for _ in range(3):  # the first two make the states, the third the count of skipped steps
            optimizer.step()
        update = _watch(optimizer.step)
    size = sum(p.numel() * p.element_size() for p in parameters)
    memory = {"parameters": size, "gradients": size, **_state(optimizer), "activations": activations}
    return Step(learn, update, memory)


def _example(inputs: tuple[int, ...], targets: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    return torch.randn(inputs, device=device), torch.zeros(targets, dtype=torch.int64, device=device)


def _learn(model: nn.Module, x: Tensor, y: Tensor) -> None:
    nn.functional.cross_entropy(model(x), y).backward()


def _state(optimizer: Optimizer) -> dict[str, int]:
    """Bytes of the optimizer's states: FOP knows its own by name."""
    if hasattr(optimizer, "memory_usage"):
        return optimizer.memory_usage()
    states = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]
    return {"base": sum(each.numel() * each.element_size() for each in states)}


def kinds(study: Study, configs: Sequence[Any]) -> list[list[Any]]:
    """Runs whose steps cost the same, together: of one network, one batch, one optimizer with the same options.

    A number such as a learning rate costs nothing, but whether it is zero may.

    Args:
        study: The study.
        configs: Runs.
    """
    found: dict[str, list[Any]] = {}
    known: dict[Any, str] = {}
    for config in configs:
        # To build a network takes time: once for all seeds.
        alike = replace(config, seed=0, iterations=1)
        if alike not in known:
            with FakeTensorMode():
                model, optimizer, inputs, targets = study.step(config, "cpu")
            options = [
                {key: bool(value) if isinstance(value, float) else value for key, value in group.items()}
                | {"params": [tuple(p.shape) for p in group["params"]]}
                for group in optimizer.param_groups
            ]
            known[alike] = repr((str(model), type(optimizer), options, inputs, targets))
        found.setdefault(known[alike], []).append(config)
    return list(found.values())


# ---------------------------------------------------------------------------------------
# Set against a device


def seconds(step: Step, device: Device, precision: str = "fp32") -> dict[str, float]:
    """Three bounds of a step's time; it takes about as long as the greatest.

    Args:
        step: As counted.
        device: See `Device`.
        precision: Of forward and backward; FOP steps in float32 always, rounded to TF32 if that is allowed.

    Returns:
        Seconds: `products` = FLOPs / peak / `EFFICIENCY`, `memory` = bytes / bandwidth, `launches` = operations times
        `LAUNCH`.
    """
    peak, peak_update = getattr(device, precision), device.tf32 if precision == "tf32" else device.fp32
    moved = (2 if precision == "bf16" else 4) * step.learn.words + 4 * step.update.words
    return {
        "products": (step.learn.flops / peak + step.update.flops / peak_update) / EFFICIENCY,
        "memory": moved / device.bandwidth,
        "launches": LAUNCH * (step.learn.operations + step.update.operations),
    }


def held(step: Step, precision: str = "fp32") -> int:
    """Bytes that a step holds; in bfloat16 the activations are half as large."""
    halved = step.memory["activations"] // 2 if precision == "bf16" else 0
    return sum(step.memory.values()) - halved


def plan(study: Study, configs: Sequence[Any], device: str, precision: str = "fp32") -> str:
    """What the runs would cost on a device: in a line, then in tables with what they rest on.

    Args:
        study: The study.
        configs: Its runs.
        device: A name of `DEVICES`.
        precision: Of `PRECISIONS`.

    Raises:
        ValueError: If there is no such device or precision.
    """
    card = known_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    lines, states, total, most = [], [], 0.0, 0
    for kind in kinds(study, configs):
        step = count(study, kind[0])
        bounds = seconds(step, card, precision)
        bound = max(bounds, key=lambda name: bounds[name])
        steps = sum(config.iterations for config in kind)
        name = kind_name(kind)
        total += steps * bounds[bound]
        most = max(most, held(step, precision))
        lines.append((
            name, f"{len(kind)}", f"{steps:,}", f"{step.learn.flops / 1e9:.3g}", f"{step.update.flops / 1e9:.3g}",
            f"{4 * step.update.words / 1e6:.3g}", f"{step.learn.operations + step.update.operations}",
            f"{held(step, precision) / 1e6:.3g}", f"{1e6 * bounds[bound]:.3g}", bound,
            duration(steps / len(kind) * bounds[bound]), duration(steps * bounds[bound]),
        ))  # fmt: skip
        states.append((name, *(f"{step.memory[part] / 1e6:.3g}" if part in step.memory else "" for part in PARTS)))
    head = ("runs such as", "runs", "steps", "GFLOP", "update", "MB moved", "ops", "MB held", "µs/step", "bound by",
            "a run", "all")  # fmt: skip
    fits = "fits" if most <= card.memory else f"DOES NOT FIT into its {card.memory / 1e9:.0f} GB"
    return "\n".join([
        f"{len(configs)} runs take about {duration(total)} on one {card.title} in {precision}, one after the "
        f"other; the largest holds {most / 1e9:.2g} GB: {fits}.",
        "",
        cost.table(head, lines),
        "",
        cost.table(("MB held", *PARTS), states),
        "",
        f"A step takes the longest of: FLOPs / peak / {EFFICIENCY:g}, bytes / bandwidth, {1e6 * LAUNCH:g} µs for each "
        f"operation. Peak {getattr(card, precision) / 1e12:g} TFLOP/s, bandwidth {card.bandwidth / 1e12:g} TB/s.",
        "GFLOP: forward and backward; update, MB moved: of the optimizer's step, each operation reading and writing "
        "memory. Data, a simulator, measurements and temporary memory come on top.",
    ])  # fmt: skip


#: The parts of memory, in the order of the table.
PARTS = ("parameters", "gradients", "base", "M", "previous", "hyper", "activations")


def duration(seconds: float) -> str:
    """A time as people say it, to two digits: `"34 s"`, `"5.2 min"`, `"19 h"`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} s"


def kind_name(kind: Sequence[Any]) -> str:
    """The first run's label, without its seed."""
    return kind[0].label.rsplit("-s", 1)[0]


# ---------------------------------------------------------------------------------------
# Timed here


def products_a_second(device: str) -> float:
    """Floating-point operations a second of a square matrix product, in float32, as measured now."""
    size = 512 if device == "cpu" else 4096
    a = torch.ones(size, size, device=device)
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        _ = (a @ a)[0, 0].item()
        spent.append(time.perf_counter() - started)
    return 2 * size**3 / min(spent)


def time_step(study: Study, config: Any, device: str, budget: float = 0.5) -> float:
    """Seconds of one step on this machine, with random inputs: the median over some.

    Args:
        study: The study.
        config: Of one of its runs.
        device: `"cpu"` or `"cuda"`.
        budget: Seconds to spend; three steps are taken in any case, two of them before the clock runs.
    """
    # FOP draws its factors on the processor and follows the model to the device.
    model, optimizer, inputs, targets = study.step(config, "cpu")
    model.to(device)
    x, y = _example(inputs, targets, device)
    spent: list[float] = []
    started = time.perf_counter()
    while len(spent) < 3 or (len(spent) < 30 and time.perf_counter() - started < budget):
        before = time.perf_counter()
        optimizer.zero_grad()
        _learn(model, x, y)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - before)
    return median(spent[2:])


@contextmanager
def one_thread() -> Iterator[None]:
    """A run of a sweep has one thread of the processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def costs_here(
    study: Study, profiles: Mapping[str, Sequence[Any]], device: str, budget: float = 25.0
) -> dict[str, float]:
    """Seconds that the runs of some profiles would take on this machine, one after the other.

    Each kind of run is timed for a few steps. One whose few steps would take longer than its share of the time is set
    down at its counted FLOPs and the rate of a matrix product here.

    Args:
        study: The study.
        profiles: The runs of each profile.
        device: `"cpu"` or `"cuda"`.
        budget: Seconds to spend, about.

    Returns:
        Seconds of each profile.
    """
    groups = kinds(study, [config for configs in profiles.values() for config in configs])
    share = budget / max(1, len(groups))
    each: dict[Any, float] = {}
    with one_thread():
        rate = products_a_second(device)
        for kind in groups:
            step = count(study, kind[0])
            least = (step.learn.flops + step.update.flops) / rate
            took = least if 4 * least > share else time_step(study, kind[0], device, share / 2)
            each |= dict.fromkeys(kind, took)
    return {
        profile: sum(each[config] * config.iterations for config in configs) for profile, configs in profiles.items()
    }
