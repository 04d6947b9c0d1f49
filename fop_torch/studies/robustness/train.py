"""Figure 3: which runs, and how one is trained.

The caption gives the network (9 layers), CIFAR-10, three runs a setting and Adam with 5e-4 on M. The scan's axes give
the momenta and Adam's learning rates; those of (a) cannot be read, see `LRS`. All else is as for Figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

# Not "from fop_torch.studies": a study that is added there would change the digest of this one's code.
import fop_torch.studies.vision as vision
from fop_torch import FOP
from fop_torch.convnets import all_cnn_c
from fop_torch.data import load
from fop_torch.results import Record, run_key
from fop_torch.studies.study import Study
from fop_torch.training import Session

#: Steps of an epoch: 50,000 images in batches of 128, the rest left out.
EPOCH = 390
#: The momenta of Figure 3 (a).
MOMENTA = (0.1, 0.5, 0.9, 0.99)
#: Ours, since the axis of (a) cannot be read: Figure 2's 0.05, two below, two above, each about three times the last.
LRS = (0.005, 0.015, 0.05, 0.15, 0.5)
#: Of Figure 3 (b), for Adam.
ADAM_LRS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: The methods of each base, the one without FOP first. "matched": steps as long as FOP's along the plain gradient.
#: "corrected": FOP whose hypergradient goes through Adam's step.
METHODS = {"SGD": ("momentum", "FOP", "matched"), "Adam": ("Adam", "FOP", "corrected")}
#: What makes the hypergradient that of the step taken: by the M that made it, through Adam's Jacobian D.
CORRECTED = {"through": "step", "index": "exact"}
SEEDS = range(3)
#: Of the network, with a kernel each.
LAYERS = 9
#: Steps of a run of the laptop profile.
LAPTOP = 400
#: What the smaller profiles reduce.
REDUCED: dict[str, dict[str, Any]] = {
    "smoke": {
        "width": 4, "dropout": False, "batch": 32, "iterations": 40, "drops": (), "tested": 1000, "stand_in": True,
    },
    "laptop": {"width": 8, "dropout": False, "iterations": LAPTOP, "drops": (8 * LAPTOP // 15,)},
}  # fmt: skip


@dataclass(frozen=True)
class Config(vision.VisionConfig):
    """Settings of one run; the defaults are the paper's, and those of the CIFAR-10 study where it leaves things open.

    The weight decay is added to the gradient for Adam too: the loss is then the same for both bases.

    Attributes:
        base: `"SGD"` or `"Adam"`, the optimizer of the weights; `method` is one of its `METHODS`.
        width: Channels of the first three layers.
        dropout: Does the network drop inputs and activations?
        tested: Test images, the first ones of the set.
    """

    hyper_lr: float = 5e-4
    weight_decay: float = 1e-3
    iterations: int = 150 * EPOCH
    drops: tuple[int, ...] = (80 * EPOCH,)
    base: str = "SGD"
    width: int = 96
    dropout: bool = True
    tested: int = 10_000

    @property
    def label(self) -> str:
        """Base, method and the cell of the grid, steps, seed."""
        kind = [self.base.lower(), *([self.method.lower()] if self.method != self.base else [])]
        cell = [f"lr{self.lr:g}", *([f"alpha{self.momentum:g}"] if self.base == "SGD" else [])]
        return "-".join([*kind, *cell, f"n{self.iterations}", f"s{self.seed}"])


def runs(profile: str, records: Sequence[Record] = ()) -> list[Config]:
    """The runs of a profile, as far as they can be named; see `Study.runs`. Seed by seed."""
    base = Config("momentum", 0, **REDUCED.get(profile, {}))
    if profile == "smoke":
        return [
            replace(base, method=method, lr=lr, momentum=momentum)
            for momentum in MOMENTA[1:3]
            for lr in LRS[2:4]
            for method in ("momentum", "FOP")
        ]
    found: list[Config] = []
    for seed in SEEDS:
        each = replace(base, seed=seed)
        cells = [replace(each, lr=lr, momentum=momentum) for momentum in MOMENTA for lr in LRS]
        fop = [replace(cell, method="FOP") for cell in cells]
        found += cells + fop + _matched(fop, records)
        found += [replace(each, base="Adam", method=method, lr=lr) for lr in ADAM_LRS for method in METHODS["Adam"]]
    return found


def _matched(followed: Sequence[Config], records: Sequence[Record]) -> list[Config]:
    """The control of each FOP run that is recorded and can be followed."""
    known = {record.key: record for record in records}
    keys = {config: run_key(STUDY.name, config) for config in followed}
    return [
        replace(config, method="matched", gains=key)
        for config, key in keys.items()
        if key in known and can_be_followed(known[key])
    ]


def can_be_followed(record: Record) -> bool:
    """Has a run gains to repeat, to its end and in every layer? Where a gradient is zero throughout there are none."""
    if record.config["method"] != "FOP" or record.status != "finished":
        return False
    rows = record.metrics
    return set(rows["part"][rows["name"] == "gain"]) == {str(part) for part in range(1, LAYERS + 1)}


# ---------------------------------------------------------------------------------------
# One run


def optimizer(model: nn.Module, config: Config) -> Optimizer:
    """The optimizer of a run: with FOP, a matrix for the positions of each kernel.

    FOP's guard against numbers that are not finite is off: it would leave out steps on which the base without FOP
    breaks, and a grid that asks where training breaks would count them for the preconditioner.

    Raises:
        ValueError: If the base or the method is unknown.
    """
    if config.base not in METHODS:
        raise ValueError(f"base: expected one of {', '.join(METHODS)}, got {config.base!r}")
    if config.method not in METHODS[config.base]:
        known = ", ".join(METHODS[config.base])
        raise ValueError(f"method: expected one of {known} for the base {config.base}, got {config.method!r}")
    if config.method in ("momentum", "matched"):
        return vision.optimizer(model, config)
    own: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "foreach": True}
    if config.method == "Adam":
        return Adam(model.parameters(), **own)
    own |= {"base": SGD, "momentum": config.momentum} if config.base == "SGD" else {"base": Adam}
    own |= CORRECTED if config.method == "corrected" else {}
    weights = vision.kernels(model)
    groups = [
        {"params": [(name, p)], "preconditioner": "spatial" if name in weights else "none"}
        for name, p in model.named_parameters()
    ]
    return FOP(groups, hyper=Adam, hyper_lr=config.hyper_lr, nonfinite="ignore", **own)


def setup(config: Config, device: str) -> tuple[nn.Module, Optimizer, tuple[int, ...], tuple[int, ...]]:
    """See `Study.setup`."""
    torch.manual_seed(config.seed)
    with torch.device(device):
        model = all_cnn_c(config.width, dropout=config.dropout)
    return model, optimizer(model, config), (config.batch, 3, 32, 32), (config.batch,)


def train(config: Config, session: Session, records: Sequence[Record]) -> None:
    """See `Study.train`."""
    images = load("cifar10", stand_in=config.stand_in)
    images = replace(images, test=(images.test[0][: config.tested], images.test[1][: config.tested]))
    model, stepper, *_ = setup(config, str(session.device))
    batch, tested = vision.in_memory(images, config, session)
    # Runs are judged by their end alone; the gain is followed, for the control that repeats it.
    tests, looks = (config.iterations, config.iterations // 20)
    if config.iterations > 10 * EPOCH:
        tests, looks = 10 * EPOCH, EPOCH
    vision.train(config, session, records, model, stepper, batch, tested, tests=tests, looks=looks)


STUDY = Study(
    name="robustness",
    title="Learning rate and momentum with and without FOP, on CIFAR-10",
    shows="Figure 3, Section 4.3",
    data=("cifar10",),
    profiles={
        "smoke": "width 4 instead of 96, 40 steps, 1 seed, 4 settings of SGD; other images where CIFAR-10 is missing",
        "laptop": f"width 8 instead of 96 and {LAPTOP} steps instead of {150 * EPOCH:,}, hence no dropout",
        "paper": "nothing that can be read: width 96, 150 epochs, 3 seeds",
    },
    runs=runs,
    train=train,
    setup=setup,
    module=__name__,
)
