"""What the tests of claims share: it fails on missing, strange or short runs, on two codes, on other findings."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from fop_torch.results import Record
from fop_torch.studies.reading import Finding
from tests.torch import claims, planted


@dataclass(frozen=True)
class Config:
    label: str
    seed: int = 0
    iterations: int = 10


WANTED = [Config("a"), Config("b")]


def run(config: Config, last: int = 10, status: str = "finished") -> Record:
    return planted.record("some", config, [(last, "", "loss", 1.0)], status)


def test_whole_means_each_to_its_end_or_diverged_and_no_others() -> None:
    claims.whole("some", WANTED, [run(config) for config in WANTED])
    claims.whole("some", WANTED, [run(WANTED[0]), run(WANTED[1], 5, "diverged")])
    for broken in (
        [run(WANTED[0])],
        [run(config) for config in (*WANTED, Config("c"))],
        [run(WANTED[0]), run(WANTED[1], 5)],
        [run(WANTED[0]), run(WANTED[1], 10, "diverged")],
    ):
        with pytest.raises(AssertionError):
            claims.whole("some", WANTED, broken)


def test_alike_means_one_code_and_one_set_of_data() -> None:
    one, other, third = (run(Config(label)) for label in "abc")
    claims.alike([one, other, third])
    other.facts["code_digest"] = "1"
    third.facts["data"] = {**third.facts["data"], "digest": "1"}
    for pair in ([one, other], [one, third]):
        with pytest.raises(AssertionError):
            claims.alike(pair)


@pytest.mark.parametrize(
    ("marks", "found", "fits"),
    [
        (["matches"], ["matches", "matches"], True),
        (["holds"], ["matches"], True),
        (["matches", "differs"], ["differs", "matches"], True),
        (["matches", "differs"], ["matches"], False),
        (["differs"], ["differs", "undecided"], False),
        ([], ["undecided"], False),
    ],
)
def test_findings_are_what_the_marks_say(marks: list[str], found: list, fits: bool) -> None:
    there = [pytest.mark.claim("fig-9", shows=each, by="experiment").mark for each in marks]
    there.append(pytest.mark.claim("another", shows="undecided", by="experiment").mark)
    request = SimpleNamespace(node=SimpleNamespace(iter_markers=lambda name: there))
    verdicts = {"fig-9": tuple(Finding("a part", each, "seen") for each in found)}
    if fits:
        claims.check(request, verdicts, "fig-9")
    else:
        with pytest.raises(AssertionError, match=r"a part: .*seen"):
            claims.check(request, verdicts, "fig-9")
