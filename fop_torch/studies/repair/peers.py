"""Optimizers of others, as the suite and the benchmark build them: torch's Muon, and three of another package.

Neither the tests nor the book need that package: it is imported when an optimizer of it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Muon

#: Their middle learning rates.
PEERS: dict[str, float] = {"Muon": 0.03, "SOAP": 3e-3, "Kron": 3e-3, "Shampoo": 0.1}
#: Those that torch doesn't have, and where they are from.
OUTSIDE, PACKAGE = ("SOAP", "Kron", "Shampoo"), "pytorch-optimizer"


class Several:
    """Optimizers as one: Muon takes matrices alone. The closure is evaluated once, whatever they would do with it."""

    def __init__(self, *optimizers: Any) -> None:
        self.optimizers = optimizers
        self.param_groups = [group for each in optimizers for group in each.param_groups]
        self.state = [each.state for each in optimizers]

    def zero_grad(self) -> None:
        """Of all."""
        for each in self.optimizers:
            each.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Of all."""
        if closure is not None:
            closure()
        for each in self.optimizers:
            each.step()


def build(name: str, params: Sequence[Tensor], lr: float) -> Several:
    """One of `PEERS`, without weight decay; Shampoo inverts its roots from the first step on, every ten steps.

    Args:
        name: Key of `PEERS`.
        params: Parameters. Muon takes the matrices; the rest is AdamW's, at a tenth of the rate.
        lr: Learning rate.

    Raises:
        ModuleNotFoundError: If the package is not there; the message says how to get it.
    """
    if name == "Muon":
        matrices, rest = [p for p in params if p.dim() == 2], [p for p in params if p.dim() != 2]
        own = [Muon(matrices, lr=lr, weight_decay=0)] if matrices else []
        return Several(*own, *([AdamW(rest, lr=lr / 10, weight_decay=0, foreach=True)] if rest else []))
    try:
        package = import_module(PACKAGE.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"method: {name} needs {PACKAGE}, which is not installed: pip install -c constraints.txt '.[bench]'"
        ) from error
    if name == "Shampoo":
        return Several(
            package.ScalableShampoo(
                params, lr=lr, weight_decay=0, start_preconditioning_step=1, preconditioning_compute_steps=10,
                shape_interpretation=False, use_svd=True,
            )
        )  # fmt: skip
    return Several({"SOAP": package.SOAP, "Kron": package.Kron}[name](params, lr=lr, weight_decay=0))


def version() -> str:
    """Of the package, with its name."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}"
