"""Our claims about the repaired method, judged on the recorded runs of the suite.

Every verdict is recomputed here from `book/results/repair`: a record with another outcome turns its claim red.
"""

from __future__ import annotations

from functools import cache

import pytest

from fop_torch.studies.repair import peers, summary
from fop_torch.studies.repair.train import PROBLEMS, base, runs
from tests.torch.claims import Verdicts, judging, records, whole


@cache
def verdicts() -> Verdicts:
    return summary.verdicts(records("repair"))


judged = judging(verdicts)


#: Run when the rest was recorded, by later code; one of them again when a sweep that diverges whole came to say so.
LATER = ("linear", "linear-budget", "linear-null", *peers.PEERS)
AGAIN = ("Rosenbrock", "Shampoo")


def test_every_run_is_there_and_whole_and_a_problem_s_of_one_set_of_data() -> None:
    found = records("repair")
    whole("repair", runs("laptop", found), found)
    for problem in PROBLEMS:
        assert len({r.facts["data"]["digest"] for r in found if r.config["problem"] == problem}) == 1


def test_the_runs_are_of_one_code_but_for_those_that_came_later() -> None:
    for later in (True, False):
        some = [record for record in records("repair") if (record.config["method"] in LATER) == later]
        but_one = [r for r in some if (r.config["problem"], r.config["method"]) != AGAIN]
        assert len({record.facts["code_digest"] for record in but_one}) == 1


def test_what_another_package_made_names_it() -> None:
    for record in records("repair"):
        assert record.facts.get("package", "").startswith("pytorch-optimizer ") == (
            record.config["method"] in peers.OUTSIDE
        )


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


@pytest.mark.claim("ours-repair-linear", shows="holds", by="experiment")
def test_linear_p_is_lost_without_a_budget(judged) -> None:
    judged("ours-repair-linear")


@pytest.mark.claim("ours-repair-linear-budget", shows="holds", by="experiment")
def test_linear_p_does_no_harm_within_a_budget(judged) -> None:
    judged("ours-repair-linear-budget")


@pytest.mark.claim("ours-repair-null", shows="holds", by="experiment")
def test_no_rate_does_harm_that_looks_ahead(judged) -> None:
    judged("ours-repair-null")


@pytest.mark.claim("ours-repair-paper", shows="matches", by="experiment")
@pytest.mark.claim("ours-repair-paper", shows="differs", by="experiment")
def test_the_papers_update_does_harm_on_nearly_all_problems(judged) -> None:
    judged("ours-repair-paper")
