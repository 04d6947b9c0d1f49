"""FOP as a PyTorch optimizer, its baselines, and the paper's experiments."""

from fop_torch.assign import assign
from fop_torch.baselines import PPHD, SHD
from fop_torch.fop import FOP
from fop_torch.report import Recorder

__all__ = ["FOP", "PPHD", "SHD", "Recorder", "assign"]
