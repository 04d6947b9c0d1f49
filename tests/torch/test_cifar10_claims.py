"""The claims of Figure 2, top, and of Section 5, judged on the recorded runs on CIFAR-10.

Every verdict is recomputed here from `book/results/cifar10`: a record with another outcome turns its claim red.
"""

from __future__ import annotations

from functools import cache

import pytest

from fop_torch.studies.cifar10 import learned, summary
from fop_torch.studies.cifar10.train import MAIN, runs
from tests.torch.claims import Verdicts, alike, judging, records, whole


@cache
def verdicts() -> Verdicts:
    found = records("cifar10")
    return summary.verdicts(found) | learned.verdicts(found)


judged = judging(verdicts)


def test_every_run_is_there_and_whole_and_of_one_code_and_one_set_of_images() -> None:
    found = records("cifar10")
    wanted = runs("laptop", found)
    assert {c.method for c in wanted} >= {*MAIN, "matched", "frozen", "centralised", "flipped"}
    whole("cifar10", wanted, found)
    alike(found)
    assert {record.status for record in found} == {"finished"}


@pytest.mark.claim("text-4-1-speed-up", shows="undecided", by="experiment")
def test_fop_is_neither_surely_faster_nor_surely_better(judged) -> None:
    judged("text-4-1-speed-up")


@pytest.mark.claim("text-4-1-rotation-and-scaling", shows="undecided", by="experiment")
def test_what_rotation_and_scaling_add_is_not_decided(judged) -> None:
    judged("text-4-1-rotation-and-scaling")


@pytest.mark.claim("fig-2-cifar-acc-momentum", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-cifar-acc-s-hd", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-cifar-acc-pp-hd", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-cifar-acc-fop-norm", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-cifar-acc-fop", shows="undecided", by="experiment")
def test_printed_accuracies_are_not_judged_on_smaller_runs(judged) -> None:
    for row in summary.ROWS.values():
        judged(row)


@pytest.mark.claim("ours-cifar-controls", shows="undecided", by="experiment")
def test_the_ends_of_the_controls_are_not_told_apart_from_fop_s(judged) -> None:
    judged("ours-cifar-controls")


@pytest.mark.claim("ours-cifar-later", shows="holds", by="experiment")
def test_three_controls_are_sooner_than_fop(judged) -> None:
    judged("ours-cifar-later")


@pytest.mark.claim("ours-cifar-flipped-better", shows="undecided", by="experiment")
def test_whether_the_flipped_sign_helps_is_not_decided(judged) -> None:
    judged("ours-cifar-flipped-better")


@pytest.mark.claim("ours-cifar-more-than-centring", shows="holds", by="experiment")
def test_the_flipped_sign_is_more_than_centring(judged) -> None:
    judged("ours-cifar-more-than-centring")


@pytest.mark.claim("text-5-whitening", shows="matches", by="experiment")
@pytest.mark.claim("text-5-whitening", shows="differs", by="experiment")
def test_each_position_is_strong_for_itself_and_neighbours_are_positive(judged) -> None:
    judged("text-5-whitening")


@pytest.mark.claim("text-5-similar-structures", shows="matches", by="experiment")
@pytest.mark.claim("text-5-similar-structures", shows="differs", by="experiment")
def test_the_changes_are_one_direction_and_their_patterns_are_not_alike(judged) -> None:
    judged("text-5-similar-structures")


@pytest.mark.claim("text-5-norm-shift", shows="differs", by="experiment")
@pytest.mark.claim("text-5-norm-shift", shows="matches", by="experiment")
@pytest.mark.claim("text-5-norm-shift", shows="undecided", by="experiment")
def test_the_diagonal_grows_and_so_do_the_other_entries(judged) -> None:
    judged("text-5-norm-shift")


@pytest.mark.claim("fig-5-stronger-higher-layers", shows="undecided", by="experiment")
@pytest.mark.claim("fig-5-eigenvalues-shift", shows="undecided", by="experiment")
@pytest.mark.claim("text-5-more-uniform", shows="undecided", by="experiment")
def test_an_order_of_the_layers_is_not_decided(judged) -> None:
    for claim in ("fig-5-stronger-higher-layers", "fig-5-eigenvalues-shift", "text-5-more-uniform"):
        judged(claim)


@pytest.mark.claim("text-5-psd-met", shows="matches", by="experiment")
def test_no_eigenvalue_is_negative(judged) -> None:
    judged("text-5-psd-met")


@pytest.mark.claim("text-5-near-zero-determinant", shows="undecided", by="experiment")
@pytest.mark.claim("text-6-two-thirds", shows="undecided", by="experiment")
@pytest.mark.claim("text-6-lr-stabilizes", shows="undecided", by="experiment")
def test_what_150_epochs_lead_to_is_not_judged_on_five(judged) -> None:
    judged("text-5-near-zero-determinant")
    judged("text-6-two-thirds")
    judged("text-6-lr-stabilizes")


@pytest.mark.claim("ours-cifar-ones", shows="holds", by="experiment")
def test_p_grows_along_what_all_positions_have_in_common(judged) -> None:
    judged("ours-cifar-ones")


@pytest.mark.claim("ours-cifar-flipped", shows="holds", by="experiment")
def test_the_flipped_sign_gives_what_section_5_describes(judged) -> None:
    judged("ours-cifar-flipped")


@pytest.mark.claim("ours-cifar-agreement", shows="holds", by="experiment")
def test_successive_gradients_still_agree_at_the_end(judged) -> None:
    judged("ours-cifar-agreement")


@pytest.mark.claim("ours-cifar-covariance", shows="holds", by="experiment")
def test_p_stretches_where_gradients_vary_most_and_flipped_shrinks_there(judged) -> None:
    judged("ours-cifar-covariance")


@pytest.mark.claim("ours-cifar-other-rules", shows="holds", by="experiment")
def test_other_rules_for_m_turn_the_same_way(judged) -> None:
    judged("ours-cifar-other-rules")


@pytest.mark.claim("ours-cifar-velocity", shows="holds", by="experiment")
def test_the_derivative_through_the_velocity_gives_what_section_5_describes(judged) -> None:
    judged("ours-cifar-velocity")


@pytest.mark.claim("ours-cifar-shuffled", shows="undecided", by="experiment")
def test_which_way_labels_by_chance_turn_it_is_not_decided(judged) -> None:
    judged("ours-cifar-shuffled")


@pytest.mark.claim("ours-cifar-noise-alone", shows="holds", by="experiment")
def test_noise_alone_hardly_moves_p(judged) -> None:
    judged("ours-cifar-noise-alone")
