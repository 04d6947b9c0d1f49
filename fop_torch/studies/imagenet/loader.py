"""How fast images become numbers: what the ImageNet study's loader decodes and crops.

The images are scikit-learn's two photographs, scaled to the size that most of ImageNet's have, at a quality that makes
them about as heavy as those are.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from fop_torch import imagefolder
from fop_torch.studies.imagenet.train import Config

#: Width and height, and Pillow's quality.
SIZE, QUALITY = (500, 375), 97


def photographs(root: Path) -> imagefolder.Files:
    """The two photographs as files."""
    for number, pixels in enumerate(load_sample_images().images):
        Image.fromarray(pixels).resize(SIZE).save(root / f"{number}.JPEG", quality=QUALITY)
    return imagefolder.Files(root, np.array([b"0.JPEG", b"1.JPEG"]), np.zeros(2, np.int64))


def rate(count: int = 40) -> float:
    """Images a second that one processor makes ready for training, by its own clock, which stands still for others.

    Args:
        count: How many to take the time of.
    """
    with tempfile.TemporaryDirectory() as folder:
        images = imagefolder.Decoded(photographs(Path(folder)), imagefolder.for_training(Config.side), 0)
        _ = images[0, 0]  # libraries are loaded before the clock runs
        started = time.process_time()
        for place in range(count):
            _ = images[place, place % 2]
        return count / (time.process_time() - started)
