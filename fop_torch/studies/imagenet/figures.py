"""The figures of the ImageNet study, in the paper's form: each function draws on axes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from fop_torch.results import Record
from fop_torch.studies import drawing, vision
from fop_torch.studies.cifar10 import learned
from fop_torch.studies.imagenet.summary import HALF
from fop_torch.studies.imagenet.train import Config, setup

training, leads = partial(drawing.training, HALF), partial(drawing.leads, HALF)


@cache
def ninth() -> int:
    """The place among the weights, from 1, of the ninth layer from the image: the one that Figure 5 (a) shows.

    Shortcuts are not counted: counted in the order of the modules, the ninth weight is a projection of one position.
    """
    model, *_ = setup(Config("FOP", 0), "meta")
    names = list(vision.kernels(model))
    along = [name for name in names if "downsample" not in name]
    return names.index(along[8]) + 1


def preconditioner(axis: Any, group: Sequence[Record], layer: int, limit: float) -> None:
    """The last P of one layer, mean over the seeds; see `drawing.tiles`.

    Args:
        axis: Where to draw.
        group: Runs of one method.
        layer: Its place among the weights, with 3 x 3 kernels.
        limit: Entries of P - I at which the colours end.
    """
    ends = learned.last(group)
    drawing.tiles(axis, ends[:, learned.layers(group[0]).index(layer)].mean(axis=0), limit)
    axis.set(xlabel=f"{group[0].config['method']}, {len(group)} runs")
