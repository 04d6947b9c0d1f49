"""What a step costs: words of memory and products, counted from the operations torch runs; and recorded times."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from fop_torch.studies.study import Study

#: Operations that write a tensor without reading what it held.
OVERWRITE = ("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_")
#: Operations that move nothing: `_lazy_clone` copies when somebody writes, if ever.
FREE = ("detach", "empty", "empty_like", "_lazy_clone", "_local_scalar_dense", "item")
PACKAGE = Path(__file__).parents[1]
#: The modules of the package that a step runs.
STEP = ("assign", "baselines", "bucket", "fop", "guard", "kernels", "options", "preconditioners")


class Traffic(TorchDispatchMode):
    """Counts the entries that operations read and write, each operation on its own, as if nothing stayed in a cache.

    Attributes:
        reads: Entries read.
        writes: Entries written.
        calls: Operations.
        made: Shapes of the tensors that were made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.writes = self.calls = 0
        self.made: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name in FREE:
            return found
        self.calls += 1
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        written = set()
        for argument in func._schema.arguments:
            tensors = [each for each in tree_leaves(given.get(argument.name)) if isinstance(each, Tensor)]
            size = sum(map(_entries, tensors))
            # Fused optimizers declare their gradients as written, for loss scaling, and only read them.
            if argument.alias_info is not None and argument.alias_info.is_write and argument.name != "grads":
                self.writes += size
                written |= {id(each) for each in tensors}
                if argument.kwarg_only or name in OVERWRITE:
                    continue
            self.reads += size
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and id(each) not in written:
                self.writes += each.numel()
                self.made.append(tuple(each.shape))
        return found


def _entries(tensor: Tensor) -> int:
    """Entries in memory: an expanded tensor has fewer than it seems."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())


def watch(step: Callable[[], Any]) -> tuple[Traffic, int]:
    """Count one call.

    Args:
        step: What to run.

    Returns:
        The traffic, and the floating-point operations of matrix products and convolutions.
    """
    flops = FlopCounterMode(display=False)
    with flops, Traffic() as traffic:
        step()
    return traffic, flops.get_total_flops()


def words(optimizer: Optimizer) -> float:
    """Words of memory that a step reads and writes for each parameter, after two steps that set it up.

    Each finds its gradients where a backward pass leaves them, in memory of their own.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    entries = sum(p.numel() for p in params)
    for _ in range(3):
        for p in params:
            p.grad = None if p.grad is None else p.grad.clone()
        traffic, _ = watch(optimizer.step)
    return (traffic.reads + traffic.writes) / entries


def with_gradients(shapes: Iterable[Sequence[int]], seed: int = 0) -> list[Tensor]:
    """Parameters of these shapes that have gradients, as an optimizer finds them."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for shape in shapes:
        p = torch.nn.Parameter(torch.randn(*shape, generator=generator))
        p.grad = 0.01 * torch.randn(*shape, generator=generator)
        found.append(p)
    return found


def low_rank_flops(m: int, n: int, k: int) -> int:
    """Floating-point operations of a low-rank step on an `[n, m]` layer: `10 m n k`.

    Four products of `2 m n k` make the hypergradient, `G M` among them; `(G M) M^T` is the fifth.
    """
    return 10 * m * n * k


def layer_flops(m: int, n: int, batch: int) -> int:
    """Floating-point operations of forward and backward through an `[n, m]` layer: `6 m n` for each example."""
    return 6 * m * n * batch


class Added(NamedTuple):
    """What an optimizer adds to a step of training, as shares of what momentum's takes; counted, not timed.

    Attributes:
        products: Floating-point operations of matrix products and convolutions.
        memory: Bytes held: parameters, gradients, the optimizer's state, what the forward pass keeps for the backward.
    """

    products: float
    memory: float


def added(study: Study, config: Any) -> Added:
    """Count what the method of a run adds to momentum.

    Forward and backward pass are counted on two inputs of the run's size, and scaled to its batch. `plan.count` counts
    the same on tensors without numbers, at the run's own batch.

    Args:
        study: A study on images.
        config: Of one of its runs.
    """
    model, optimizer, inputs, targets = study.step(replace(config, batch=2), "cpu")
    times = config.batch / 2
    (_, learned), activations = learn(model, torch.randn(inputs), torch.zeros(targets, dtype=torch.int64), watch)
    for _ in range(2):  # the states are made
        optimizer.step()
    _, stepped = watch(optimizer.step)
    state = optimizer.memory_usage()  # type: ignore[attr-defined]
    plain = 2 * sum(p.nbytes for p in model.parameters()) + state["base"] + times * activations
    return Added(stepped / (times * learned), (sum(state.values()) - state["base"]) / plain)


def learn(model: nn.Module, x: Tensor, y: Tensor, count: Callable[[Callable[[], Any]], Any]) -> tuple[Any, int]:
    """Go forward and backward through a network.

    Args:
        model: The network.
        x: Inputs.
        y: Classes.
        count: What counts while it is called; see `watch`.

    Returns:
        What `count` found, and the bytes that the forward pass keeps for the backward, without the parameters.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = count(lambda: nn.functional.cross_entropy(model(x), y).backward())
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    return found, sum(each.untyped_storage().nbytes() for key, each in kept.items() if key not in own)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of the power law through the points, by least squares on logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# ------------------------------------------------------------------------------------------- recorded measurements


def digest() -> str:
    """Digest of the files that a step runs; a record made with other code shows another."""
    whole = hashlib.sha256()
    for name in STEP:
        whole.update((PACKAGE / f"{name}.py").read_bytes())
    return whole.hexdigest()[:16]


def load(path: str | Path) -> dict[str, Any]:
    """Read a record of `make bench`.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no recorded benchmark; `make bench` measures and writes it (15 minutes)")
    return json.loads(path.read_text(encoding="utf-8"))


def rows(record: dict[str, Any], section: str, **fields: Any) -> list[dict[str, Any]]:
    """The rows of one section whose fields have these values, in the order they were measured."""
    wanted = {"section": section, **fields}
    return [row for row in record["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def row(record: dict[str, Any], section: str, **fields: Any) -> dict[str, Any]:
    """The one row of a section whose fields have these values.

    Raises:
        LookupError: If none fits, or more than one.
    """
    found = rows(record, section, **fields)
    if len(found) != 1:
        raise LookupError(f"{section}: {len(found)} rows with {fields}, expected one; is the record of this version?")
    return found[0]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Text in columns, the first to the left, the others to the right."""
    everything = [list(head), *map(list, lines)]
    widths = [max(len(line[i]) for line in everything) for i in range(len(head))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in everything
    )


def spread(entry: dict[str, Any], digits: int = 2) -> str:
    """`value [low, high]`."""
    if entry["value"] is None or not math.isfinite(entry["value"]):
        return entry.get("note", "none")
    return "{value:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(**entry, d=digits)


def median_curve(curves: Sequence[Sequence[float]]) -> Iterator[tuple[float, float, float]]:
    """Median, least and greatest of several seeds' curves, point by point."""
    for values in zip(*curves, strict=True):
        yield float(np.median(values)), min(values), max(values)
