"""What the summary of the ImageNet study says of runs whose outcome was planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from fop_torch.results import Record
from fop_torch.studies.cifar10 import learned
from fop_torch.studies.cifar10 import train as cifar10
from fop_torch.studies.cifar10.learned import ONES
from fop_torch.studies.imagenet import figures, summary
from fop_torch.studies.imagenet.train import EPOCH, FEW, Config, runs
from fop_torch.studies.reading import Finding, MissingRunsError
from fop_torch.studies.vision import entries
from tests.torch import planted as planting

matplotlib.use("Agg")

#: Places of layers with 3 x 3 kernels; the first layer has 49 positions, the fourth is a shortcut with one.
WHERE = (2, 3, 11)
NEIGHBOURS = np.zeros((9, 9))
for _i, _j in learned.pairs():
    NEIGHBOURS[_i, _j] = NEIGHBOURS[_j, _i] = 1


@dataclass(frozen=True)
class World:
    """What is planted: final test accuracy in percent, epochs to half of the way, and P, by the method.

    And, for all: how often P could go its way in the run's time, and how far successive gradients agree along the
    common direction, by the time from 0 to 1.
    """

    end: Callable[[str], float]
    halfway: Callable[[str], float]
    P: Callable[[str], np.ndarray]
    pace: float = 1.0
    agreement: Callable[[float], float] = lambda t: 0.1


PRINTED = World(
    end=lambda method: 55 + {"FOP": 3.0}.get(method, 0.0),
    halfway=lambda method: 0.8 if method == "FOP" else 1.5,
    P=lambda method: 0.8 * np.eye(9) - 0.03 * NEIGHBOURS,
)
#: P along the common direction, the opposite when flipped; flipped is better, FOP is late.
ONES_WORLD = World(
    end=lambda method: 53.0 if method == "flipped" else 50.0,
    halfway=lambda method: 2.5 if method == "FOP" else 1.2,
    P=lambda method: np.eye(9) + (-0.6 if method == "flipped" else 0.9) * np.outer(ONES, ONES),
    pace=2.0,
    agreement=lambda t: 0.1 if t < 0.6 else 0.01,
)


def record(study: str, config: Config | cifar10.Config, world: World, epoch: int) -> Record:
    """A run in memory: a rise of the accuracy, as much of a fall of the loss, and P at the end."""
    rng = np.random.default_rng([config.seed, *config.method.encode()])
    steps = np.linspace(0, config.iterations, 25).astype(int)
    rise = 1 - 0.5 ** (steps / epoch / world.halfway(config.method))
    end = world.end(config.method)
    rows: list[tuple[int, str, str, float]] = []
    for place, (step, share) in enumerate(zip(steps, rise / rise[-1], strict=True)):
        if place:
            rows.append((int(step), "", "train_loss", 2.3 - share + 0.001 * rng.standard_normal()))
        if place % 4 == 0:
            rows.append((int(step), "", "test_accuracy", end * share + 0.05 * rng.standard_normal()))
            rows.append((int(step), "", "seconds", step / 10))
    for layer in WHERE:
        for step in steps[4::4]:
            part = float(step / config.iterations)
            noise = 1e-5 * rng.standard_normal((9, 9))
            P = np.eye(9) + min(1.0, world.pace * part) * (world.P(config.method) - np.eye(9)) + noise + noise.T
            X = 10 * world.agreement(part) * np.outer(ONES, ONES) + 1e-3 * np.diag(rng.standard_normal(9))
            for name, matrix in (("P", P), ("C", 10 * np.eye(9)), ("X", X)):
                rows += [(int(step), str(layer), *each) for each in entries(name, matrix).items()]
    rows += [(config.iterations, "1", *each) for each in entries("P", np.eye(49)).items()]
    return planting.record(study, config, rows)


def planted(world: World, seeds: int = 3) -> list[Record]:
    made = planting.every_run(runs, "laptop", lambda c: record("imagenet", c, world, FEW))
    return [each for each in made if each.config["seed"] < seeds]


@pytest.fixture(scope="module")
def printed() -> list[Record]:
    return planted(PRINTED)


@pytest.fixture(scope="module")
def ones() -> list[Record]:
    return planted(ONES_WORLD)


def said(findings: Sequence[Finding]) -> list[str]:
    return [finding.verdict for finding in findings]


@pytest.mark.parametrize("seeds", [3, 2])
def test_a_world_as_printed_matches_but_for_the_printed_numbers(seeds: int) -> None:
    found = summary.verdicts(planted(PRINTED, seeds))
    assert said(found["text-4-2-maintained"]) == ["matches"] * 3
    assert said(found["ours-imagenet-controls"]) == ["matches"]
    assert said(found["fig-5-whitening"]) == ["matches"] * 2
    assert said(found["ours-imagenet-ones"]) == ["differs"]
    # P still moves in the second half, and gradients agree as before.
    assert said(found["ours-imagenet-settles"]) == ["differs"]
    assert said(found["ours-imagenet-agreement"]) == ["matches", "differs"]
    for row in summary.ROWS.values():
        assert said(found[row]) == ["undecided"], row


def test_a_world_of_common_modes_and_a_late_fop(ones) -> None:
    found = summary.verdicts(ones)
    assert said(found["text-4-2-maintained"])[:2] == ["differs", "differs"]
    assert said(found["ours-imagenet-controls"]) == ["differs"]
    assert said(found["ours-imagenet-flipped-better"]) == ["matches"]
    assert said(found["ours-imagenet-ones"]) == ["matches"]
    assert said(found["ours-imagenet-settles"]) == ["matches"]
    assert said(found["ours-imagenet-agreement"]) == ["matches", "matches"]
    # With the sign flipped P shrinks there; all entries off its diagonal are alike, so that wrapping is not told.
    assert said(found["ours-imagenet-flipped"]) == ["matches", "matches", "undecided", "matches", "matches", "matches"]
    neighbours, _ = found["fig-5-whitening"]
    assert neighbours.verdict == "differs"
    assert "of 936 steps, not 300,240, on 10 classes at 64 x 64, not 1,000 at 299 x 299" in neighbours.reason


def test_the_papers_scale_decides_the_printed_numbers() -> None:
    """The printed means themselves, on the paper's network: they agree, and one point below they do not."""
    rows = {claim.id: claim.value for claim in summary.figure2.read_claims()}
    for below, verdict in ((0.0, "matches"), (1.0, "differs")):
        world = replace(PRINTED, end=lambda m, below=below: rows[summary.ROWS[m]] - below)  # type: ignore[misc]
        made = [record("imagenet", c, world, EPOCH) for c in runs("paper")]
        assert summary.HALF.profile_of(made) == "paper"
        found = summary.verdicts(made)
        assert {each for row in summary.ROWS.values() for each in said(found[row])} == {verdict}
        assert said(found["ours-imagenet-flipped-better"]) == ["undecided"]


def test_the_table_in_the_papers_form(printed) -> None:
    """Printed and ours side by side; times are those of the record, whichever method stands first in it."""
    clock = {"rows": [
        {"section": "training", "network": network, "name": name, "by_step": {"value": place + (network == "x")}}
        for network in ("x", "ResNet-18") for place, name in enumerate(("FOP", "FOP-norm", "PP-HD", "S-HD"))
    ]}  # fmt: skip
    head, *lines = summary.HALF.table(printed, summary.figure2.counts.resnet18(4), clock).splitlines()
    assert head.split() == ["accuracy,", "%", "ours", "parameters", "counted", "time,", "%", "measured"]
    found = {line.split()[0]: line.split()[1:] for line in lines}
    assert list(found) == list(summary.ROWS)
    assert found["momentum"][:3] == ["69.7", "55.0", "±"]
    assert found["S-HD"][4:] == ["22", "22", "0.3", "3.0"]
    assert found["PP-HD"][4:] == ["275,000,000", "11,693,736", "7.1", "2.0"]
    assert found["FOP-norm"][4:] == ["197", "3,702", "2.1", "1.0"]
    assert found["FOP"][4:] == ["197", "3,702", "1.7", "0.0"]


def test_one_image_is_the_resolution(printed) -> None:
    """Three equal differences are not certain: an accuracy is counted in steps of 0.2 points."""
    assert summary.HALF.resolution(printed) == pytest.approx(0.2)
    group = summary.HALF.pick(printed, "FOP")
    assert summary.HALF.ahead_in_accuracy(group, group).deviation == pytest.approx(0.2 / 6**0.5)


def test_seeds_that_not_all_methods_have_are_left_out_and_one_is_too_few(printed) -> None:
    def without(method: str, seeds: tuple[int, ...]) -> list[Record]:
        return [r for r in printed if r.config["method"] != method or r.config["seed"] not in seeds]

    found = summary.verdicts(without("flipped", (2,)))
    # Only what compares the flipped runs has two seeds: with two the same spread gives another interval.
    whole = summary.verdicts(printed)
    assert found["text-4-2-maintained"] == whole["text-4-2-maintained"]
    assert found["ours-imagenet-controls"] != whole["ours-imagenet-controls"]
    few = without("flipped", (1, 2))
    with pytest.raises(MissingRunsError, match=r"two seeds .* flipped \[0\]; `fop run imagenet"):
        summary.verdicts(few)
    report = summary.report(few)
    assert "text-4-2-maintained" in report
    assert "two seeds are needed that all have" in report
    with pytest.raises(MissingRunsError, match="fop run imagenet"):
        summary.HALF.profile_of([])


def test_the_caption_is_judged_on_both_halves(printed, ones) -> None:
    """One finding for each set of images, by its own levels and length of an epoch."""

    def halves(world: World) -> list[Record]:
        made = cifar10.runs("laptop")
        return [record("cifar10", c, world, cifar10.EPOCH) for c in made if c.method in cifar10.MAIN]

    found = summary.figure_2(halves(PRINTED), ones)
    assert said(found["fig-2-converges-faster"]) == ["matches", "differs"]
    assert [finding.what for finding in found["fig-2-slightly-superior"]] == ["on CIFAR-10", "on ImageNet"]
    found = summary.figure_2(halves(ONES_WORLD), printed)
    assert said(found["fig-2-converges-faster"]) == ["differs", "matches"]
    assert said(found["fig-2-slightly-superior"])[1] == "matches"


def test_epochs_are_this_sets(printed) -> None:
    """30 of 58 percent, by the planted curve, but for the straight lines between two epochs."""
    group = summary.HALF.pick(printed, "FOP")
    exact = -0.8 * np.log2(1 - 30 / 58 * (1 - 0.5 ** (6 / 0.8)))
    assert summary.HALF.epochs_to(group, 30.0).mean() == pytest.approx(exact, abs=0.15)


def test_layers_are_those_with_3_x_3_kernels(printed) -> None:
    assert learned.layers(printed[-1]) == list(WHERE)
    assert learned.last(printed[:2]).shape == (2, 3, 9, 9)


def test_figures_are_drawn(printed) -> None:
    assert figures.ninth() == 11
    _, axes = plt.subplots(1, 6)
    figures.training(axes[0], printed)
    assert len(axes[0].lines) == 5
    assert axes[0].lines[0].get_xdata()[-1] == 6
    figures.leads(axes[1], printed)
    assert [label.get_text() for label in axes[1].get_yticklabels()][-2:] == ["matched", "flipped"]
    figures.evolution(axes[2:4], summary.HALF.pick(printed, "FOP")[0], 11, 0.5)
    assert [axis.get_xlabel() for axis in axes[2:4]] == ["epoch 1", "epoch 6"]
    image = np.asarray(axes[3].images[0].get_array())
    # The tile in the middle is the centre's row: itself less one, and four neighbours.
    assert image[3:6, 3:6].ravel() == pytest.approx(PRINTED.P("FOP")[4] - np.eye(9)[4], abs=1e-4)
    group = summary.HALF.pick(printed, "FOP")
    figures.agreement(axes[4], group)
    figures.common(axes[5], group)
    for axis, end in ((axes[4], 0.1), (axes[5], learned.ONES @ PRINTED.P("FOP") @ learned.ONES)):
        assert len(axis.lines) == 1 + len(WHERE)
        assert axis.lines[0].get_ydata()[-1] == pytest.approx(end, abs=1e-3)
    plt.close("all")
