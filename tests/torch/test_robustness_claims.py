"""The claims of Figure 3 and Section 4.3, judged on the recorded runs.

Every verdict is recomputed here from `book/results/robustness`: a record with another outcome turns its claim red.
"""

from __future__ import annotations

from functools import cache

import pytest

from fop_theory.ledger import read_claims
from fop_torch.studies.robustness import summary
from fop_torch.studies.robustness.train import runs
from tests.torch.claims import Verdicts, alike, judging, records, whole


@cache
def verdicts() -> Verdicts:
    return summary.verdicts(records("robustness"))


judged = judging(verdicts)


def test_every_run_is_there_and_whole_and_of_one_code_and_one_set_of_images() -> None:
    found = records("robustness")
    whole("robustness", runs("laptop", found), found)
    alike(found)


def test_all_runs_with_fop_have_the_caption_s_rate_of_m() -> None:
    (row,) = [claim for claim in read_claims() if claim.id == "fig-3-hyper-learning-rate"]
    assert summary.hyper_lr(records("robustness")) == row.value


@pytest.mark.claim("fig-3", shows="undecided", by="experiment")
@pytest.mark.claim("fig-3", shows="differs", by="experiment")
def test_the_figure_is_what_its_caption_reads_off_it(judged) -> None:
    judged("fig-3")


@pytest.mark.claim("fig-3-improves-robustness", shows="undecided", by="experiment")
@pytest.mark.claim("fig-3-improves-robustness", shows="differs", by="experiment")
def test_no_greater_robustness_is_seen(judged) -> None:
    judged("fig-3-improves-robustness")


@pytest.mark.claim("fig-3-one-standard-deviation", shows="undecided", by="experiment")
def test_as_many_settings_are_marked_as_chance_would_mark(judged) -> None:
    judged("fig-3-one-standard-deviation")


@pytest.mark.claim("text-4-3-wide-array", shows="differs", by="experiment")
def test_no_wide_array_of_settings_improves(judged) -> None:
    judged("text-4-3-wide-array")


@pytest.mark.claim("text-4-3-gap-grows", shows="undecided", by="experiment")
def test_no_rise_of_the_gap_is_seen(judged) -> None:
    judged("text-4-3-gap-grows")


@pytest.mark.claim("fig-3-most-useful-high", shows="differs", by="experiment")
def test_fop_is_not_most_useful_at_higher_rate_and_momentum(judged) -> None:
    judged("fig-3-most-useful-high")


@pytest.mark.claim("text-4-3-trains-where-sgd-fails", shows="differs", by="experiment")
def test_fop_trains_nowhere_where_momentum_fails(judged) -> None:
    judged("text-4-3-trains-where-sgd-fails")


@pytest.mark.claim("fig-3-adam-top-improved", shows="undecided", by="experiment")
def test_whether_the_best_adam_is_improved_is_not_decided(judged) -> None:
    judged("fig-3-adam-top-improved")


@pytest.mark.claim("text-4-3-adam-smaller", shows="undecided", by="experiment")
def test_whether_the_gain_is_smaller_for_adam_is_not_decided(judged) -> None:
    judged("text-4-3-adam-smaller")


@pytest.mark.claim("text-4-3-adam-moments", shows="undecided", by="experiment")
@pytest.mark.claim("ours-robustness-corrected", shows="undecided", by="experiment")
def test_whether_adam_s_moments_matter_is_not_decided(judged) -> None:
    judged("text-4-3-adam-moments")
    judged("ours-robustness-corrected")


@pytest.mark.claim("ours-robustness-matched", shows="undecided", by="experiment")
@pytest.mark.claim("ours-robustness-steps", shows="undecided", by="experiment")
def test_the_control_is_not_told_apart_from_fop(judged) -> None:
    judged("ours-robustness-matched")
    judged("ours-robustness-steps")
