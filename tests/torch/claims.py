"""What the claims judged on recorded runs share: the runs, whole; what marks say of findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fop_torch.results import Record, Store, run_key
from fop_torch.studies.reading import Finding, told

RESULTS = Path(__file__).parents[2] / "book" / "results"

Verdicts = Mapping[str, tuple[Finding, ...]]


@cache
def records(study: str, profile: str = "laptop") -> list[Record]:
    """The recorded runs of a study."""
    return Store(RESULTS).load(study, profile)


def whole(study: str, wanted: Iterable[Any], found: Iterable[Record]) -> None:
    """Make sure that the runs that are wanted are there and no others, each to its end unless it diverged."""
    known = {record.key: record for record in found}
    names = {run_key(study, config): config.label for config in wanted}
    assert [label for key, label in names.items() if key not in known] == []
    assert [record.path.stem for key, record in known.items() if key not in names] == []
    for record in known.values():
        ended = record.metrics["iteration"].max() == record.config["iterations"]
        assert record.status == ("finished" if ended else "diverged"), record.path.stem


def alike(found: Iterable[Record]) -> None:
    """Make sure that runs are of one code and one set of data."""
    assert len({(record.facts["code_digest"], record.facts["data"]["digest"]) for record in found}) == 1


def shown(request: pytest.FixtureRequest, claim: str) -> set[str]:
    """What the test's marks say of a claim."""
    return {mark.kwargs["shows"] for mark in request.node.iter_markers("claim") if mark.args[0] == claim}


def check(request: pytest.FixtureRequest, verdicts: Verdicts, claim: str) -> None:
    """Make sure that a claim's findings are what the test's marks say of it; `holds` stands for `matches`."""
    found = {finding.verdict for finding in verdicts[claim]}
    marks = {"matches" if each == "holds" else each for each in shown(request, claim)}
    assert found == marks, told(verdicts, claim)


def judging(verdicts: Callable[[], Verdicts]) -> Any:
    """The fixture `judged` of a file of claims: `judged("fig-3")` does `check`."""

    @pytest.fixture
    def judged(request: pytest.FixtureRequest) -> Callable[[str], None]:
        return lambda claim: check(request, verdicts(), claim)

    return judged
