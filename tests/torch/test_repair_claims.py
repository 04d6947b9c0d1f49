"""Our claims about the repaired method, judged on the recorded runs of the suite.

Every verdict is recomputed here from `book/results/repair`: a record with another outcome turns its claim red.
"""

from __future__ import annotations

from functools import cache

import pytest

from fop_torch.studies.repair import summary
from fop_torch.studies.repair.train import PROBLEMS, base, runs
from tests.torch.claims import Verdicts, alike, judging, records, whole


@cache
def verdicts() -> Verdicts:
    return summary.verdicts(records("repair"))


judged = judging(verdicts)


def test_every_run_is_there_and_whole_and_of_one_code_and_a_problem_s_of_one_set_of_data() -> None:
    found = records("repair")
    whole("repair", runs("laptop", found), found)
    for problem in PROBLEMS:
        alike(record for record in found if record.config["problem"] == problem)
    assert len({record.facts["code_digest"] for record in found}) == 1


def test_the_bases_best_learning_rate_lies_inside_its_grid() -> None:
    for problem in PROBLEMS:
        record = summary.one(records("repair"), problem, base(problem))
        assert summary.tuned(record) in list(summary.ends(record))[1:-1], problem


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
