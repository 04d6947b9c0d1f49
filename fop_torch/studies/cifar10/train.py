"""Figure 2, top, and Figure 5: which runs on CIFAR-10, and how one is trained.

The paper gives batch, learning rate and its drop, epochs, momentum as the base and Adam with 1e-4 on M; the network
is "inspired by" All-CNN-C. It leaves open weight decay, dropout, augmentation and the first weights; see `Config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import fop_torch.studies.vision as vision
from fop_torch.convnets import all_cnn_c
from fop_torch.data import load
from fop_torch.results import Record, run_key
from fop_torch.studies.study import Study
from fop_torch.training import Session

#: Steps of an epoch: 50,000 images in batches of 128, the rest left out.
EPOCH = 390
#: The five methods of Figure 2.
MAIN = ("momentum", "S-HD", "PP-HD", "FOP-norm", "FOP")
#: Of plain gradient steps on M: the traces of all layers together can grow by 4 times what the loss loses.
PLAIN_HYPER_LR = 1.0
#: What the smaller profiles reduce.
REDUCED: dict[str, dict[str, Any]] = {
    "smoke": {"width": 8, "dropout": False, "iterations": 120, "drops": (), "stand_in": True},
    "laptop": {"width": 12, "dropout": False, "iterations": 5 * EPOCH, "drops": (8 * EPOCH // 3,)},
}


@dataclass(frozen=True)
class Config(vision.VisionConfig):
    """Settings of one run; the defaults are the paper's, and ours where it leaves something open.

    Springenberg et al. (2015) report 9.08 % error for All-CNN-C without augmentation, which is the paper's baseline,
    and 7.25 % with it. So no augmentation, and their dropout and weight decay.

    Attributes:
        width: Channels of the first three layers.
        dropout: Does the network drop inputs and activations?
    """

    weight_decay: float = 1e-3
    iterations: int = 150 * EPOCH
    drops: tuple[int, ...] = (80 * EPOCH,)
    width: int = 96
    dropout: bool = True


def runs(profile: str, records: Sequence[Record] = ()) -> list[Config]:
    """The runs of a profile, as far as they can be named; see `Study.runs`. Seed by seed, Figure 2's methods first.

    Runs with `hyper_lr=5e-4`, the paper's for its Figure 3, make up for some of a short run: Adam moves an entry of M
    by at most about `hyper_lr` a step.
    """
    if profile == "smoke":
        few = Config("momentum", 0, hyper_lr=1e-3, **REDUCED["smoke"])
        return [replace(few, method=method) for method in ("momentum", "FOP", "flipped")]
    base = Config("momentum", 0, **REDUCED.get(profile, {}))
    found: list[Config] = []
    for seed in range(3):
        each = replace(base, seed=seed)
        main = [replace(each, method=method) for method in (*MAIN, "flipped", "centralised", "frozen")]
        found += main + _matched([c for c in main if c.method == "FOP"], records)
    for seed in range(3):
        each = replace(base, seed=seed, hyper_lr=5e-4)
        found += [replace(each, method=method) for method in ("FOP", "flipped", "FOP-norm")]
    for seed in range(2):
        each = replace(base, seed=seed)
        found += [
            replace(each, method="shuffled"),
            replace(each, method="velocity"),
            replace(each, method="plain M", hyper_lr=PLAIN_HYPER_LR),
        ]
    return found


def _matched(followed: Sequence[Config], records: Sequence[Record]) -> list[Config]:
    """The control of each FOP run that is recorded."""
    known = {record.key for record in records}
    keys = {config: run_key(STUDY.name, config) for config in followed}
    return [replace(c, method="matched", gains=key) for c, key in keys.items() if key in known]


def setup(config: Config, device: str) -> tuple[nn.Module, torch.optim.Optimizer, tuple[int, ...], tuple[int, ...]]:
    """See `Study.setup`."""
    torch.manual_seed(config.seed)
    with torch.device(device):
        model = all_cnn_c(config.width, dropout=config.dropout)
    return model, vision.optimizer(model, config), (config.batch, 3, 32, 32), (config.batch,)


def train(config: Config, session: Session, records: Sequence[Record]) -> None:
    """See `Study.train`."""
    images = load("cifar10", stand_in=config.stand_in)
    model, stepper, *_ = setup(config, str(session.device))
    batch, tested = vision.in_memory(images, config, session, chance=config.method == "shuffled")
    tests, looks = (EPOCH // 2, EPOCH // 10) if config.iterations < 10 * EPOCH else (EPOCH, EPOCH // 2)
    if config.iterations < EPOCH:
        tests, looks = 40, 10
    vision.train(config, session, records, model, stepper, batch, tested, tests=tests, looks=looks)


STUDY = Study(
    name="cifar10",
    title="Figure 2's methods on CIFAR-10, and what they learn",
    shows="Figure 2 (top) and Figure 5, Sections 4.1 and 5",
    data=("cifar10",),
    profiles={
        "smoke": "width 8 instead of 96, 120 steps, 1 seed, 3 methods; other images where CIFAR-10 is missing",
        "laptop": "width 12 instead of 96 and 5 epochs instead of 150, hence no dropout; 3 seeds, all images",
        "paper": "nothing that the paper names: width 96, 150 epochs, 3 seeds",
    },
    runs=runs,
    train=train,
    setup=setup,
    module=__name__,
)
