"""How the step of one layer's preconditioner grows with its inputs m, its outputs n and its rank k."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch

from fop_torch import FOP
from fop_torch.studies import cost
from tests.benchmarks.networks import RATE
from tests.benchmarks.timer import interleave, quartiles

#: What is varied, and what each point is: inputs, outputs, rank (None: dense).
SWEEPS: dict[str, list[tuple[int, int, int | None]]] = {
    "rank": [(1024, 1024, k) for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)],
    "m": [(m, 512, 64) for m in (128, 256, 512, 1024, 2048, 4096)],
    "n": [(1024, n, 64) for n in (64, 128, 256, 512, 1024, 2048, 4096)],
    "m, dense": [(m, 256, None) for m in (64, 128, 256, 512, 1024, 1536)],
}


def run(quick: bool) -> Iterator[dict[str, Any]]:
    """All rows; the points of a sweep are timed in turns."""
    for sweep, points in SWEEPS.items():
        optimizers = {}
        for m, n, k in points:
            (p,) = cost.with_gradients([(n, m)])
            form = {"preconditioner": "dense"} if k is None else {"preconditioner": "low_rank", "rank": k}
            # hyper=SGD: Adam's own traffic on M is no part of what is asked.
            optimizers[m, n, k] = FOP([p], RATE, hyper=torch.optim.SGD, momentum=0.9, foreach=True, **form)
        steps = {str(point): optimizer.step for point, optimizer in optimizers.items()}
        found = interleave(steps, 5 if quick else 30)
        for (m, n, k), each in zip(points, found.values(), strict=True):
            _, flops = cost.watch(optimizers[m, n, k].step)
            yield {
                "section": "scaling", "name": sweep, "unit": "s", "m": m, "n": n, "rank": k,
                **quartiles(each), "seconds": statistics.median(each), "flops": flops,
            }  # fmt: skip
