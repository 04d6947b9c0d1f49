"""The claims of Figures A.1 and A.2 and of Appendix A.4 on MNIST, judged on the recorded runs at the paper's scale.

Every verdict is recomputed here from `book/results/mnist/paper`: a record with another outcome turns its claim red.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fop_torch.studies.mnist import summary
from fop_torch.studies.mnist.train import Config, build, runs
from tests.torch.claims import Verdicts, check, records, shown, whole


@cache
def verdicts() -> Verdicts:
    return summary.verdicts(records("mnist", "paper"))


@pytest.fixture
def judged(request: pytest.FixtureRequest, measured):
    """As `check`; where the marks say `value` the number is recorded, and the ledger compares it."""

    def judge(claim: str) -> None:
        if shown(request, claim) == {"value"}:
            measured(claim, summary.value(records("mnist", "paper"), claim))
        else:
            check(request, verdicts(), claim)

    return judge


def test_every_run_is_there_and_whole_and_of_one_set_of_images() -> None:
    found = records("mnist", "paper")
    whole("mnist", runs("paper", found), found)
    assert len({record.facts["data"]["digest"] for record in found}) == 1


@pytest.mark.claim("fig-a2-full-ranks", shows="holds", by="exact")
def test_784_is_full_for_the_first_layer_and_100_for_the_others() -> None:
    _, optimizer = build(Config("FOP", 0, rank=784))
    factors = [state["M"] for state in optimizer.state.values() if "M" in state]
    assert [tuple(M.shape) for M in factors] == [(784, 784), (100, 100), (100, 100), (100, 100)]
    assert [int(torch.linalg.matrix_rank(M.double())) for M in factors] == [784, 100, 100, 100]


@pytest.mark.claim("text-a4-accelerates-all-k", shows="matches", by="experiment")
def test_every_rank_reaches_95_percent_sooner_than_momentum(judged) -> None:
    judged("text-a4-accelerates-all-k")


@pytest.mark.claim("fig-a2-improves-at-low-rank", shows="matches", by="experiment")
@pytest.mark.claim("text-2-2-low-rank-effective", shows="matches", by="experiment")
def test_ranks_4_and_1_reach_95_percent_sooner_than_momentum(judged) -> None:
    judged("fig-a2-improves-at-low-rank")
    judged("text-2-2-low-rank-effective")


@pytest.mark.claim("text-a4-improves-accuracy-low-k", shows="differs", by="experiment")
def test_of_ranks_25_and_4_one_ends_worse_than_momentum(judged) -> None:
    judged("text-a4-improves-accuracy-low-k")


@pytest.mark.claim("fig-a2-larger-k-better", shows="matches", by="experiment")
@pytest.mark.claim("fig-a2-larger-k-better", shows="differs", by="experiment")
def test_speed_and_final_accuracy_grow_with_the_rank_but_rank_4_ends_no_better_than_rank_1(judged) -> None:
    judged("fig-a2-larger-k-better")


@pytest.mark.claim("fig-a2-k-below-4", shows="matches", by="experiment")
@pytest.mark.claim("fig-a2-k-below-4", shows="undecided", by="experiment")
def test_rank_1_starts_faster_and_is_not_surely_better_or_worse_at_the_end(judged) -> None:
    judged("fig-a2-k-below-4")


@pytest.mark.claim("fig-a2-better-by-0-6", shows="value", by="experiment")
def test_the_gain_at_full_rank(judged) -> None:
    judged("fig-a2-better-by-0-6")


@pytest.mark.claim("fig-a2-p-value", shows="undecided", by="experiment")
def test_the_p_value_of_that_gain_depends_on_the_test(judged) -> None:
    judged("fig-a2-p-value")


@pytest.mark.claim("fig-a1-layer-2-mean", shows="value", by="experiment")
def test_the_mean_angle_in_layer_2(judged) -> None:
    judged("fig-a1-layer-2-mean")


@pytest.mark.claim("fig-a1-layer-4-mean", shows="value", by="experiment")
def test_the_mean_angle_in_layer_4(judged) -> None:
    judged("fig-a1-layer-4-mean")


@pytest.mark.claim("fig-a1-varies-slightly", shows="matches", by="experiment")
@pytest.mark.claim("fig-a1-varies-slightly", shows="differs", by="experiment")
def test_the_angle_stays_within_the_figure_s_axis_but_runs_are_more_than_5_degrees_apart(judged) -> None:
    judged("fig-a1-varies-slightly")


@pytest.mark.claim("fig-a1-usually-below-45", shows="matches", by="experiment")
def test_the_angle_is_usually_slightly_below_45_degrees(judged) -> None:
    judged("fig-a1-usually-below-45")


@pytest.mark.claim("ours-mnist-frozen", shows="holds", by="experiment")
def test_a_frozen_random_factor_gains_what_the_paper_prints(judged) -> None:
    judged("ours-mnist-frozen")


@pytest.mark.claim("ours-mnist-learning-adds", shows="undecided", by="experiment")
def test_whether_learning_adds_a_tenth_of_a_point_is_not_decided(judged) -> None:
    judged("ours-mnist-learning-adds")


@pytest.mark.claim("ours-mnist-matched", shows="holds", by="experiment")
def test_longer_steps_alone_gain_what_the_paper_prints_and_more_than_rank_25(judged) -> None:
    judged("ours-mnist-matched")


@pytest.mark.claim("ours-mnist-direction", shows="undecided", by="experiment")
def test_whether_the_direction_adds_anything_at_full_rank_is_not_decided(judged) -> None:
    judged("ours-mnist-direction")


@pytest.mark.claim("ours-mnist-tuned", shows="holds", by="experiment")
def test_fop_is_no_better_at_learning_rates_from_a_grid(judged) -> None:
    judged("ours-mnist-tuned")


@pytest.mark.claim("ours-mnist-angle-frozen", shows="holds", by="experiment")
def test_the_angle_of_a_frozen_random_factor_is_usually_slightly_below_45_degrees_too(judged) -> None:
    judged("ours-mnist-angle-frozen")


@pytest.mark.claim("ours-mnist-law", shows="holds", by="experiment")
def test_the_trace_grows_by_what_the_law_promises(judged) -> None:
    judged("ours-mnist-law")


@pytest.mark.claim("ours-mnist-noise", shows="holds", by="experiment")
def test_small_batches_pay_less_into_the_trace(judged) -> None:
    judged("ours-mnist-noise")


@pytest.mark.claim("ours-mnist-hyper-lr", shows="holds", by="experiment")
def test_a_fast_factor_makes_steps_a_hundred_times_as_long_and_ends_worse(judged) -> None:
    judged("ours-mnist-hyper-lr")
