"""The figures of the ImageNet study, in the paper's form: each function draws on axes that it is given."""

from __future__ import annotations

from functools import cache, partial

from fop_torch.studies import drawing, vision
from fop_torch.studies.imagenet.summary import HALF
from fop_torch.studies.imagenet.train import Config, setup

training, leads = partial(drawing.training, HALF), partial(drawing.leads, HALF)
evolution, agreement, common = (partial(d, HALF) for d in (drawing.evolution, drawing.agreement, drawing.common))


@cache
def ninth() -> int:
    """The place among the weights, from 1, of the ninth layer from the image: the one that Figure 5 (a) shows.

    Shortcuts are not counted: counted in the order of the modules, the ninth weight is a projection of one position.
    """
    model, *_ = setup(Config("FOP", 0), "meta")
    names = list(vision.kernels(model))
    along = [name for name in names if "downsample" not in name]
    return names.index(along[8]) + 1
