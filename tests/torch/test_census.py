"""The counts of the image sets on the page: of the images that the runs saw, and what is here now."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fop_torch import census, data
from fop_torch.results import Store

RESULTS = Path(__file__).parents[2] / "book" / "results"
WRITTEN = json.loads((RESULTS / "data.json").read_text())


def test_the_counts_are_of_the_images_that_were_trained_on() -> None:
    """Every record whose images came from the folder of real ones names the digest that was counted."""
    found = {
        (record.facts["data"]["name"], record.facts["data"]["digest"])
        for study in ("mnist", "cifar10")
        for profile in ("laptop", "paper")
        for record in Store(RESULTS).load(study, profile)
        if record.facts["data"]["source"] == "FOP_DATA"
    }
    assert found == {(name, WRITTEN[name]["digest"]) for name in ("mnist", "cifar10")}


@pytest.mark.parametrize("name", data.NAMES)
def test_the_counts_are_those_of_the_images_that_are_here(name: str) -> None:
    if not (Path(os.environ.get("FOP_DATA", "nowhere")) / name).is_dir():
        pytest.skip(f"FOP_DATA has no {name}")
    assert census.census(data.load(name)) == WRITTEN[name]


@pytest.mark.claim("text-4-1-data", shows="holds", by="exact")
def test_cifar_10_is_as_section_4_1_says() -> None:
    found = WRITTEN["cifar10"]
    assert (found["train"], found["test"], found["shape"], found["classes"]) == (50_000, 10_000, [3, 32, 32], 10)
    assert found["each"] == [5_000, 5_000]
