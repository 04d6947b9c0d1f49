"""Images a second that the loader of the ImageNet study gives, by the number of its worker processes.

`python -m tests.benchmarks.loader` prints a line for each number; the images are those of
`fop_torch.studies.imagenet.loader`.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fop_torch import imagefolder
from fop_torch.studies.imagenet.loader import photographs
from fop_torch.studies.imagenet.train import Config
from fop_torch.training import device_name

#: Side of what the network sees; images a batch; batches that are timed, and those before the clock runs.
SIDE, BATCH, TIMED, WARM = Config.side, 32, 16, 4


def rate(files: imagefolder.Files, workers: int) -> float:
    """Images a second, with so many worker processes; none: this process decodes."""
    images = imagefolder.Decoded(files, imagefolder.for_training(SIDE), 0)
    # Without an end, so that the workers are as far ahead when the clock stops as when it starts.
    keys = ([(step, place % 2) for place in range(BATCH)] for step in itertools.count())
    batches = imagefolder.load(images, keys, torch.device("cpu"), workers)
    for _ in range(WARM):
        next(batches)
    started = time.perf_counter()
    for _ in range(TIMED):
        next(batches)
    return BATCH * TIMED / (time.perf_counter() - started)


def run() -> Iterator[dict[str, float]]:
    """A row for each number of workers, up to one a processor."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder))
        size = np.mean([files.path(index).stat().st_size for index in range(len(files))])
        for workers in range(imagefolder.processors() + 1):
            yield {"workers": workers, "images_a_second": rate(files, workers), "bytes_an_image": float(size)}


if __name__ == "__main__":
    print(f"{device_name(torch.device('cpu'))}, {SIDE} x {SIDE}")
    for row in run():
        print("{workers} workers: {images_a_second:.0f} images a second of {bytes_an_image:,.0f} bytes".format(**row))
