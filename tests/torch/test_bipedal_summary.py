"""What the summary of the walker's study says of runs whose outcome was planted; its statistics, by a second way."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from fop_torch.results import Record
from fop_torch.statistics import Verdict
from fop_torch.studies.bipedal import figures, summary
from fop_torch.studies.bipedal.summary import MAIN, WORST, Setting
from fop_torch.studies.bipedal.train import (
    FLAT,
    HARDCORE,
    PAPER_LRS,
    SEARCH_SEED,
    Config,
    build,
    evaluated,
    lasting,
    runs,
    search,
)
from fop_torch.studies.reading import Finding, MissingRunsError
from tests.torch import planted as planting

matplotlib.use("Agg")

WHERE = {FLAT: "flat", HARDCORE: "hardcore"}


@dataclass(frozen=True)
class World:
    """What is planted, by a run's settings.

    Attributes:
        end: Return of the last policy.
        halfway: Share of the run at which half of the way from -100 is made.
        cosine: Of successive updates.
        searched: Late return of a run of the search.
        breaks: Does the run diverge, after half its time?
    """

    end: Callable[[Config], float]
    halfway: Callable[[Config], float] = lambda c: 0.3
    cosine: Callable[[Config], float] = lambda c: 0.9
    searched: Callable[[Config], float] = lambda c: (
        -100 * abs(np.log10(c.lr / 3e-4)) - abs(c.batch - 32) + 10 * np.log10(c.hyper_lr)
    )
    breaks: Callable[[Config], bool] = lambda c: False


def record(config: Config, world: World) -> Record:
    rng = np.random.default_rng([config.seed, *config.method.encode()])
    searching = config.seed >= SEARCH_SEED
    end = (world.searched(config) if searching else world.end(config)) + rng.standard_normal()
    broken, half = world.breaks(config), world.halfway(config)

    def height(update: float) -> float:
        rise = 1 - 0.5 ** (update / config.updates / half)
        return WORST + (end - WORST) * rise / (1 - 0.5 ** (1 / half))

    last = config.updates // 2 if broken else config.updates
    rows: list[tuple[int, str, str, float]] = []
    for update in evaluated(config):
        if update > last:
            break
        at, value = update * config.passes, height(update)
        stands, walks = value < 0 and config.method != "FOP", value > 150
        rows += [
            (at, "", "test_return", value),
            (at, "", "test_share", 0.9 if walks else 0.02),
            (at, "", "test_falls", 0.0 if stands or walks else 1.0),
        ]
    for update in range(1, last + 1, 20):
        at = update * config.passes
        rows += [(at, "", "return", height(update)), (at, "", "episodes", 5.0), (at, "", "falls", 2.0)]
        if searching:
            continue
        for part in "1234":
            cosine = world.cosine(config) + 0.001 * rng.standard_normal()
            rows += [(at, part, "update_cosine", cosine), (at, part, "grad_cosine", 0.1)]
            if config.method in ("FOP", "S-HD", "frozen"):
                rows += [(at, part, "gain", 2.0), (at, part, "angle", 10.0)]
    if config.method == "FOP" and not searching:
        for part, size in zip("1234", (24, 40, 40, 40), strict=True):
            rows += [(config.iterations, part, f"eigenvalue {i}", 0.5 + i / size) for i in range(size)]
            rows += [(config.iterations, part, f"diagonal {i}", 1.0) for i in range(size)]
    return planting.record("bipedal", config, rows, "diverged" if broken else "finished")


def planted(world: World) -> list[Record]:
    return summary.known(planting.every_run(runs, "laptop", lambda config: record(config, world)))


def said(findings: Sequence[Finding]) -> list[Verdict]:
    return [finding.verdict for finding in findings]


def both(paper: dict[str, float], other: float) -> Callable[[Config], float]:
    """By the method where it has the paper's settings; one number elsewhere."""
    return lambda c: paper.get(c.method, other)


#: FOP is first, soonest, and turns; momentum and the controls stand.
PRINTED = World(
    end=both({"FOP": 300, "Adam": 200}, -60),
    halfway=both({"FOP": 0.1}, 0.5),
    cosine=both({"FOP": 0.5}, 0.9),
)
#: Adam walks, nobody else does; each at its best all walk alike, since the search finds another rate.
CLIFF = World(
    end=lambda c: 280 if c.method == "Adam" or c.lr > 1e-3 else -60,
    searched=lambda c: -100 * abs(np.log10(c.lr / (3e-4 if c.method == "Adam" else 3e-2))),
)


@pytest.fixture(scope="module")
def printed() -> list[Record]:
    return planted(PRINTED)


@pytest.fixture(scope="module")
def cliff() -> list[Record]:
    return planted(CLIFF)


def test_a_world_as_printed_matches(printed) -> None:
    found = summary.verdicts(printed)
    assert said(found["fig-4"]) == ["matches"] * 2
    assert said(found["fig-4-fop-outperforms"]) == ["matches"] * 5
    assert said(found["text-4-4-faster-and-better"]) == ["matches"] * 3
    assert said(found["text-4-4-deceptive"]) == ["matches"]
    assert said(found["ours-walker-controls"]) == ["matches"] * 2
    assert said(found["text-a5-best-settings"]) == ["matches"] * 3
    # FOP's best settings are the paper's: the runs are the same.
    assert said(found["ours-walker-tuned"]) == ["matches"] * 3


def test_a_world_in_which_adam_alone_walks_until_rates_are_right(cliff) -> None:
    found = summary.verdicts(cliff)
    assert said(found["fig-4"]) == ["differs"] * 2
    # FOP and momentum are alike; neither reaches the level, so that speed is not judged.
    assert said(found["fig-4-fop-outperforms"]) == ["differs", "differs", "undecided", "differs", "differs"]
    assert said(found["text-4-4-faster-and-better"]) == ["differs", "differs", "differs"]
    assert said(found["text-4-4-deceptive"]) == ["differs"]
    assert "updates turn more, in degrees: differs" in found["text-4-4-deceptive"][0].reason
    assert said(found["ours-walker-tuned"]) == ["differs"] * 3
    fop, momentum, adam = found["text-a5-best-settings"]
    assert (fop.verdict, momentum.verdict, adam.verdict) == ("differs", "differs", "matches")
    assert "learning rate 0.001 with minibatch 32" in fop.reason
    tuned = summary.pick(cliff, "FOP", Setting("tuned", FLAT))
    assert {r.config["lr"] for r in tuned} == {3e-2}
    assert len(tuned) == 5


@pytest.mark.parametrize(
    ("change", "claim", "verdicts"),
    [
        # Better and sooner, but it does not turn: no such advantage.
        ({"cosine": lambda c: 0.9}, "text-4-4-deceptive", ["differs"]),
        # Better than momentum, but steps as long do as well.
        ({"end": both({"FOP": 300, "matched": 300}, -60)}, "text-4-4-deceptive", ["differs"]),
        # As good in the end, and sooner: a mean over the late episodes still sees that.
        ({"end": both({}, 300)}, "text-4-4-faster-and-better", ["differs", "matches", "matches"]),
        # Better, and no sooner.
        ({"halfway": lambda c: 0.1, "end": both({"FOP": 300}, 270)}, "text-4-4-faster-and-better",
         ["matches", "matches", "differs"]),
        # Better in some seeds only.
        ({"end": lambda c: 300 if c.method == "FOP" and c.seed == 0 else -60}, "fig-4-fop-outperforms",
         ["undecided"] * 5),
    ],
)  # fmt: skip
def test_each_part_is_held_to_its_letter(change: dict[str, Any], claim: str, verdicts: list[Verdict]) -> None:
    configs = [*main(), *(replace(c, method="matched") for c in main() if c.method == "FOP"), *search("laptop")]
    made = [record(c, replace(PRINTED, **change)) for c in configs]
    found = (summary._printed(made) | summary._deceptive(made))[claim]
    assert said(found) == verdicts, found


def main() -> list[Config]:
    return [c for c in runs("laptop") if c.seed < SEARCH_SEED and c.method in MAIN]


def test_a_run_that_diverged_has_the_worst_from_there_on() -> None:
    config = next(c for c in main() if c.method == "FOP")
    broken = record(config, replace(PRINTED, breaks=lambda c: True))
    updates, values = summary.evaluations(broken)
    assert updates.tolist() == evaluated(config)
    assert (values[updates > config.updates // 2] == WORST).all()
    assert values[updates <= config.updates // 2].max() > 0
    # What was seen was seen; what is left is nothing.
    assert summary.score(broken) == values.max()
    assert summary.last(broken) == WORST
    assert summary.ends(broken) == "diverged"


def test_what_becomes_of_policies() -> None:
    config = next(c for c in main() if c.method == "momentum")

    def ends(share: float, falls: float) -> str:
        rows = [(config.iterations, "", "test_share", share), (config.iterations, "", "test_falls", falls)]
        return summary.ends(planting.record("bipedal", config, rows))

    assert [ends(0.9, 0), ends(0.6, 1), ends(0.3, 0), ends(0.3, 1), ends(0.05, 0), ends(-0.04, 0), ends(0.05, 2)] == [
        "walks", "walks", "creeps", "falls", "stands", "stands", "falls",
    ]  # fmt: skip


def test_the_paper_s_settings_have_the_rate_of_m_that_the_search_finds() -> None:
    """FOP walks at that rate alone; the first rate has its own tables, and other methods have one setting."""
    rate = 1e-5
    made = planted(
        World(
            end=lambda c: 300 if c.method == "FOP" and c.hyper_lr == rate else -60,
            searched=lambda c: 100 - 10 * abs(np.log10(c.lr / 3e-3)) - abs(np.log10(c.hyper_lr / rate)),
        )
    )
    means = {name: summary.outcomes(made, Setting(name, HARDCORE))["best"] for name in ("paper", "first")}
    assert means["paper"]["FOP"] > 290
    assert means["first"]["FOP"] < -50
    assert means["paper"].drop(["FOP", "matched"]).equals(means["first"].drop(["FOP", "matched"]))
    for method in ("FOP", "matched"):
        found = summary.pick(made, method, Setting("paper", FLAT))
        assert {(r.config["lr"], r.config["hyper_lr"]) for r in found} == {(3e-4, rate)}
    assert {r.config["lr"] for r in summary.pick(made, "FOP", Setting("tuned", FLAT))} == {3e-3}
    with pytest.raises(MissingRunsError, match="no recorded run of matched, flat, tuned settings"):
        summary.pick(made, "matched", Setting("tuned", FLAT))
    assert said(summary.verdicts(made)["fig-4"]) == ["matches"] * 2
    table = summary.settings(made)["hyper_lr"]
    assert [table[name, "FOP"] for name in ("first", "paper", "tuned")] == [1e-4, rate, rate]
    assert table.drop("FOP", level=1).isna().all()


def test_search_is_decided_by_every_seed() -> None:
    """Another setting is better in the mean, but not in both seeds: undecided."""
    lucky = lambda c: 50.0 * (c.lr == PAPER_LRS[-1]) * (1 if c.seed == SEARCH_SEED else -0.5)  # noqa: E731
    made = planted(replace(PRINTED, searched=lucky))
    assert said(summary._search(made)["text-a5-best-settings"]) == ["undecided"] * 3


def test_what_is_missing_is_said(printed) -> None:
    some = [r for r in printed if r.config["terrain"] == FLAT]
    with pytest.raises(MissingRunsError, match="no recorded run of FOP, hardcore, paper settings"):
        summary.verdicts(some)
    some = [r for r in some if r.config["seed"] < SEARCH_SEED]
    for judge in (summary._figure, summary._tuned):
        with pytest.raises(MissingRunsError, match="the search for FOP's best settings is not complete"):
            judge(some)
    one = [r for r in printed if r.config["seed"] in (0, SEARCH_SEED, SEARCH_SEED + 1)]
    with pytest.raises(MissingRunsError, match="two seeds are needed that FOP, momentum, Adam all have"):
        summary._figure(one)
    with pytest.raises(MissingRunsError, match="no recorded run; `fop run bipedal"):
        summary.pick([], "FOP", Setting("tuned", FLAT))
    said = summary.report(one, "Verdicts, figure", "Verdicts, caption")
    assert "Verdicts, figure 4; Verdicts, caption and text: not yet: two seeds are needed" in said


def test_the_smoke_profile_is_read_too() -> None:
    """One seed, no search, one terrain: tables of that, and the rest is said to be missing."""
    made = planting.every_run(runs, "smoke", lambda config: record(config, PRINTED))
    for each in made:
        each.facts["profile"] = "smoke"
    said = summary.report(made)
    assert "smoke: 6 of at least 6 runs are here" in said
    assert "Verdicts, search: not yet: the search for FOP's best settings is not complete" in said.replace("\n", " ")
    _, axis = plt.subplots()
    figures.whole(figures.search, axis, made)
    assert [text.get_text() for text in axis.texts] == ["the smoke profile has no search"]
    plt.close("all")


def test_the_report_of_all_runs_lacks_nothing(printed) -> None:
    said = summary.report(printed)
    assert "not yet" not in said
    assert f"laptop: {len(printed)} of at least {len(printed)} runs are here" in said
    flat = [r for r in printed if r.config["terrain"] == FLAT and r.config["seed"] < SEARCH_SEED]
    assert "search: 0 of 130" in summary.standing(flat)
    assert "each at its best: cannot be named yet" in summary.standing(flat)


# ---------------------------------------------------------------------------------------
# Statistics


def test_the_chance_of_improvement_is_mann_whitney_s() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, rng.integers(2, 9)).astype(float), rng.integers(0, 5, 6).astype(float)
        found = summary.improvement([a], [b])
        assert float(found.middle) == pytest.approx(stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))
        assert 0 <= found.low <= found.middle <= found.high <= 1
    mixed = summary.improvement([np.ones(4), np.zeros(4)], [np.zeros(4), np.ones(4)])
    assert (float(mixed.middle), mixed.low, mixed.high) == (0.5, 0.5, 0.5)


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    values = np.array([-1000.0, 1, 2, 3, 4, 5, 6, 1e6])
    found = summary.interquartile([values[:4], values[4:]])
    assert float(found.middle) == np.sort(values)[2:6].mean() == 3.5
    for n in range(1, 12):
        drawn = np.random.default_rng(n).normal(size=n)
        assert float(summary.interquartile([drawn]).middle) == pytest.approx(stats.trim_mean(drawn, 0.25))
    # Strata are resampled among themselves: two constant ones never mix in other shares.
    certain = summary.interquartile([np.zeros(6), np.ones(2)])
    assert (certain.low, certain.middle, certain.high) == (0, 0, 0)


def test_a_band_of_medians_is_scipy_s() -> None:
    values = np.random.default_rng(1).normal(size=(7, 3))
    found = summary.median_band(values)
    scipys = stats.bootstrap((values,), np.median, axis=0, method="percentile", n_resamples=2000, rng=2)
    np.testing.assert_allclose(found.middle, np.median(values, 0))
    np.testing.assert_allclose(found.low, scipys.confidence_interval.low, atol=0.25)
    np.testing.assert_allclose(found.high, scipys.confidence_interval.high, atol=0.25)
    assert np.isnan(summary.median_band(values[:1]).low).all()


# ---------------------------------------------------------------------------------------
# Figures


@pytest.mark.parametrize("name", ["paper", "tuned"])
def test_figures_draw_what_is_there(name: str, printed, cliff) -> None:
    """All seeds, and one."""
    one = summary.known([r for r in cliff if r.config["seed"] in (0, SEARCH_SEED, SEARCH_SEED + 1)])
    for records, terrain in ((printed, FLAT), (one, HARDCORE)):
        _, axes = plt.subplots(1, 5)
        for draw, axis in zip((figures.best_so_far, figures.current, figures.turning), axes, strict=False):
            draw(axis, records, Setting(name, terrain))
        figures.search(axes[3], records)
        figures.spectra(axes[4], records, Setting(name, terrain))
        assert all(axis.lines for axis in axes)
        plt.close("all")
    with pytest.raises(MissingRunsError):
        figures.best_so_far(axes[0], [r for r in printed if r.config["terrain"] == FLAT], Setting("paper", HARDCORE))


def test_a_page_is_made_of_any_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of none, of one method's, of those that diverged; nothing is written to stderr, which would break the book."""
    live = planting.every_run(runs, "smoke", lambda config: record(config, PRINTED))
    configs = [c for c in main() if c.seed < 2 and c.terrain == FLAT]
    broken = replace(PRINTED, breaks=lambda c: c.method == "FOP")
    found = [record(c, broken) for c in configs] + [record(c, PRINTED) for c in search("laptop")]

    def at_hand(recorded: list[Record]) -> list[Record]:
        def load(_: str) -> list[Record]:
            if not recorded:
                raise FileNotFoundError
            return recorded

        monkeypatch.setattr(summary, "recorded", load)
        return list(summary.at_hand(live))

    assert at_hand([]) == at_hand([r for r in found if r.config["method"] == "momentum"]) == live
    assert at_hand(found) == found
    _, axes = plt.subplots(1, 5)
    for draw, axis in zip((figures.best_so_far, figures.current, figures.turning, figures.spectra), axes, strict=False):
        figures.whole(draw, axis, found, Setting("paper", FLAT))
    figures.whole(figures.search, axes[4], found)
    assert [bool(axis.texts) for axis in axes] == [False, False, False, True, False]
    plt.close("all")
    assert "P by layer, FOP, flat: not yet: " in summary.report(found, "P by layer", "Outcomes, flat, paper")
    assert summary.outcomes(found, Setting("paper", FLAT)).loc["FOP", "diverged"] == 2


def some_policy() -> Record:
    config = lasting(Config("Adam", 3, steps=192), 1)
    ppo, _ = build(config)
    values = np.random.default_rng(0).normal(size=len(ppo.flat)).astype(np.float32)
    rows = [(config.iterations, "policy", "parameter", float(value)) for value in values]
    return planting.record("bipedal", config, [*rows, (0, "", "test_return", 0.0)])


def test_a_strip_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small, without a screen, of the recorded parameters; and the walker moves from one to the next."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr("fop_torch.studies.bipedal.walker.LIMIT", 60)
    policy = some_policy()
    found = figures.walker_of(policy)
    np.testing.assert_array_equal(found.flat, policy.curve("parameter", "policy"))
    pictures = figures.frames(found, FLAT, count=4)
    assert pictures.shape == (4, 100, 150, 3)
    assert len({picture.tobytes() for picture in pictures}) == 4
    diverged = replace(policy, status="diverged")
    monkeypatch.setattr(summary, "groups", lambda *_: {"FOP": [diverged], "Adam": [diverged, policy]})
    made = figures.walkers([], Setting("paper", FLAT))
    assert len(made) < 50_000
    seen = np.array(Image.open(io.BytesIO(made)).convert("RGB"))
    assert seen.shape == (2 * 104, 6 * 154, 3)
    assert seen[:104].min() > 250 > seen[104:].min()
