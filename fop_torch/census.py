"""What the image sets hold, counted once where they are, so that a page can say it where they are not.

`python -m fop_torch.census` counts the sets that are to be had here and writes `book/results/data.json`.
"""

from __future__ import annotations

import json
from typing import Any

from fop_torch import data, results
from fop_torch.data import Images


def census(images: Images) -> dict[str, Any]:
    """Counts of a set.

    Returns:
        `digest`, as in the records of runs; `train` and `test`: number of images; `shape`: channels, height, width;
        `classes`: number of labels; `each`: training images a class, the fewest and the most.
    """
    (pixels, labels), (test_pixels, _) = images.train, images.test
    each = labels.bincount()
    return {
        "digest": images.digest,
        "train": len(pixels),
        "test": len(test_pixels),
        "shape": list(pixels.shape[1:]),
        "classes": len(images.classes),
        "each": [int(each.min()), int(each.max())],
    }


def main() -> None:
    """Count every set that is here and write it down."""
    found = {}
    for name in data.NAMES:
        try:
            found[name] = census(data.load(name))
        except data.UnavailableError as error:
            print(f"{name}: not counted ({error})")
    path = results.store().root / "data.json"
    results.write_whole(path, lambda partial: _write(partial, found))
    print(f"{', '.join(found)}: counted, {path}")


def _write(path: Any, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
