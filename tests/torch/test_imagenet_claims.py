"""The claims of Section 4.2, Figure 2, bottom and whole, and Figure 5 (a), judged on the recorded runs on ImageNet.

Every verdict is recomputed here from `book/results`: a record with another outcome turns its claim red.
"""

from __future__ import annotations

from functools import cache

import pytest
from torchvision.models import ResNet18_Weights

from fop_theory.ledger import read_claims
from fop_torch.studies.imagenet import summary
from fop_torch.studies.imagenet.train import IMAGES, Config, runs
from tests.torch.claims import Verdicts, alike, judging, records, whole


@cache
def verdicts() -> Verdicts:
    found = records("imagenet")
    return summary.verdicts(found) | summary.figure_2(records("cifar10"), found)


judged = judging(verdicts)


def test_every_run_is_there_and_whole_and_of_one_code_and_one_set_of_images() -> None:
    found = records("imagenet")
    whole("imagenet", runs("laptop", found), found)
    alike(found)
    assert {record.status for record in found} == {"finished"}


@pytest.mark.claim("text-4-2-data", shows="undecided", by="experiment")
def test_the_images_are_not_here_and_their_names_and_numbers_are_as_printed() -> None:
    """A thousand names, as torchvision lists them; what a run at the paper's scale expects is what is printed."""
    assert len(set(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])) == 1_000
    (row,) = [claim for claim in read_claims() if claim.id == "text-4-2-data"]
    whole = Config("FOP", 0)
    tested = summary.HALF.tested["paper"]
    for number in (f"{IMAGES:,}", f"{tested:,}", f"{whole.classes:,}", f"${whole.side} \\times {whole.side}$"):
        assert number in row.statement


@pytest.mark.claim("fig-2-imagenet-acc-momentum", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-imagenet-acc-s-hd", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-imagenet-acc-pp-hd", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-imagenet-acc-fop-norm", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-imagenet-acc-fop", shows="undecided", by="experiment")
def test_printed_accuracies_are_not_judged_on_smaller_runs(judged) -> None:
    for row in summary.ROWS.values():
        judged(row)


@pytest.mark.claim("text-4-2-maintained", shows="differs", by="experiment")
@pytest.mark.claim("text-4-2-maintained", shows="undecided", by="experiment")
def test_fop_is_not_faster_and_whether_it_ends_better_is_not_decided(judged) -> None:
    judged("text-4-2-maintained")


@pytest.mark.claim("fig-2-converges-faster", shows="undecided", by="experiment")
@pytest.mark.claim("fig-2-converges-faster", shows="differs", by="experiment")
@pytest.mark.claim("fig-2-slightly-superior", shows="undecided", by="experiment")
def test_what_the_caption_says_of_both_halves_is_not_decided(judged) -> None:
    judged("fig-2-converges-faster")
    judged("fig-2-slightly-superior")


@pytest.mark.claim("ours-imagenet-controls", shows="undecided", by="experiment")
@pytest.mark.claim("ours-imagenet-flipped-better", shows="undecided", by="experiment")
def test_the_ends_of_the_controls_are_not_told_apart(judged) -> None:
    judged("ours-imagenet-controls")
    judged("ours-imagenet-flipped-better")


@pytest.mark.claim("fig-5-whitening", shows="differs", by="experiment")
def test_neighbours_are_positive_and_layers_are_not_alike(judged) -> None:
    judged("fig-5-whitening")


@pytest.mark.claim("ours-imagenet-ones", shows="holds", by="experiment")
def test_p_grows_along_what_all_positions_have_in_common(judged) -> None:
    judged("ours-imagenet-ones")


@pytest.mark.claim("ours-imagenet-flipped", shows="holds", by="experiment")
def test_the_flipped_sign_gives_what_section_5_describes(judged) -> None:
    judged("ours-imagenet-flipped")


@pytest.mark.claim("ours-imagenet-agreement", shows="holds", by="experiment")
def test_successive_gradients_agree_less_after_the_first_drop(judged) -> None:
    judged("ours-imagenet-agreement")


@pytest.mark.claim("ours-imagenet-settles", shows="holds", by="experiment")
def test_p_hardly_moves_after_the_first_drop(judged) -> None:
    judged("ours-imagenet-settles")
