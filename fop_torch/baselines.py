"""The paper's baselines: hypergradient descent on a rate a layer (S-HD) and on a rate a parameter (PP-HD).

Both are FOP with a linear, diagonal P, so they share every option, the safety and the exact resume. Their rates
multiply the gradient and start at one; `lr` stays the user's and the scheduler's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fop_torch.fop import FOP


class SHD(FOP):
    """Scalar hypergradient descent: one learned rate for each parameter tensor (Baydin et al. 2018; Section 4).

    Baydin's method has one rate in all; the paper has one a layer, and so has this. The rate may become negative.

    Args:
        params: As for `FOP`.
        lr: As for `FOP`.
        **options: As for `FOP`, but for `preconditioner`, `rank`, `normalize`, `scale` and `safe`.
    """

    def __init__(self, params: Iterable[Any], lr: float | Tensor, **options: Any) -> None:
        super().__init__(params, lr, preconditioner="s-hd", **options)


class PPHD(FOP):
    """Per-parameter hypergradient descent: one learned rate for each entry (Section 4). It may become negative.

    Args:
        params: As for `FOP`.
        lr: As for `FOP`.
        **options: As for `FOP`, but for `preconditioner`, `rank`, `normalize`, `scale` and `safe`.
    """

    def __init__(self, params: Iterable[Any], lr: float | Tensor, **options: Any) -> None:
        super().__init__(params, lr, preconditioner="pp-hd", **options)
