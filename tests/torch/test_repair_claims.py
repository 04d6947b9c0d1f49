"""Our claims about the repaired method, judged on the recorded runs of the suite.

Every verdict is recomputed here from `book/results/repair`: a record with another outcome turns its claim red.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from fop_torch.results import Record, Store, run_key
from fop_torch.studies.reading import Finding
from fop_torch.studies.repair import summary
from fop_torch.studies.repair.train import PROBLEMS, base, runs
from tests.torch.planted import check

RESULTS = Path(__file__).parents[2] / "book" / "results"


@cache
def records() -> list[Record]:
    return Store(RESULTS).load("repair", "laptop")


@cache
def verdicts() -> dict[str, tuple[Finding, ...]]:
    return summary.verdicts(records())


@pytest.fixture
def judged(request: pytest.FixtureRequest):
    return lambda claim: check(request, verdicts(), claim)


def test_every_run_is_there() -> None:
    assert {run_key("repair", config) for config in runs("laptop", records())} == {r.key for r in records()}


def test_the_bases_best_learning_rate_lies_inside_its_grid() -> None:
    for problem in PROBLEMS:
        found = list(summary.ends(summary.one(records(), problem, base(problem))))
        assert summary.tuned(summary.one(records(), problem, base(problem))) in found[1:-1], problem


@pytest.mark.claim("ours-repair-default", shows="holds", by="experiment")
def test_the_candidate_does_no_harm(judged) -> None:
    judged("ours-repair-default")


@pytest.mark.claim("ours-repair-rates", shows="matches", by="experiment")
@pytest.mark.claim("ours-repair-rates", shows="differs", by="experiment")
def test_hardly_a_rate_does_harm_within_a_budget(judged) -> None:
    judged("ours-repair-rates")


@pytest.mark.claim("ours-repair-budgets", shows="holds", by="experiment")
def test_no_budget_does_harm_at_the_small_rate(judged) -> None:
    judged("ours-repair-budgets")


@pytest.mark.claim("ours-repair-paper", shows="matches", by="experiment")
@pytest.mark.claim("ours-repair-paper", shows="differs", by="experiment")
def test_the_papers_update_does_harm_on_nearly_all_problems(judged) -> None:
    judged("ours-repair-paper")
