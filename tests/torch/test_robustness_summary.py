"""What the summary of the robustness study says of runs whose outcome was planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from fop_torch.results import Record, run_key
from fop_torch.studies.reading import MissingRunsError
from fop_torch.studies.robustness import figures, summary
from fop_torch.studies.robustness.summary import RULES, Grids
from fop_torch.studies.robustness.train import ADAM_LRS, LAYERS, LRS, METHODS, MOMENTA, Config, runs
from tests.torch import planted as planting

matplotlib.use("Agg")


@dataclass(frozen=True)
class World:
    """What is planted: each a function of the run's settings.

    Attributes:
        end: Final test accuracy in percent, before noise; NaN: the run diverged.
        noise: Standard deviation of a run's accuracy.
        length: |G P| / |G| in every layer.
    """

    end: Callable[[Config], float]
    noise: float = 0.1
    length: Callable[[Config], float] = lambda c: 1.0


def alone(c: Config) -> float:
    """Without FOP: best at an effective rate of 0.5, and with SGD at chance above 1.2; Adam is best at 1e-3."""
    if c.base == "Adam":
        return max(10.0, 38 - 10 * abs(np.log10(c.lr / 1e-3)))
    rate = c.lr / (1 - c.momentum)
    return 40 - 8 * abs(np.log10(rate / 0.5)) if rate < 1.2 else 10.0


def calm(c: Config) -> float:
    """The same without a setting that fails."""
    return alone(c) if c.base == "Adam" else 30.0


def is_high(c: Config) -> bool:
    return c.momentum >= 0.9 and c.lr >= 0.05


def fop(c: Config, base: str = "SGD") -> bool:
    return c.base == base and c.method in ("FOP", "corrected")


#: Settings in which `alone` fails and that FOP rescues where it is planted so.
BROKEN = ((0.9, 0.15), (0.9, 0.5), (0.99, 0.015), (0.99, 0.05), (0.99, 0.15))


def record(c: Config, world: World) -> Record:
    """A run in memory."""
    key = run_key("robustness", c)
    rng = np.random.default_rng(int(key, 16) % 2**32)
    end = world.end(c)
    rows: list[tuple[int, str, str, float]] = [(0, "", "test_accuracy", 10.0)]
    if np.isfinite(end):
        measured = np.round(np.clip(end + world.noise * rng.standard_normal(), 0, 100), 2) if end > 10 else 10.0
        rows.append((c.iterations, "", "test_accuracy", float(measured)))
    if c.method in ("FOP", "corrected"):
        rows += [(step, str(part), "gain", world.length(c)) for step in (20, 400) for part in range(1, LAYERS + 1)]
    return planting.record("robustness", c, rows, "finished" if np.isfinite(end) else "diverged")


@cache
def planted(world: World) -> list[Record]:
    return planting.every_run(runs, "laptop", lambda c: record(c, world))


def shown(records: list[Record]) -> dict[str, list[str]]:
    return {claim: [each.verdict for each in findings] for claim, findings in summary.verdicts(records).items()}


NOTHING = World(alone)
EVERYWHERE = World(lambda c: alone(c) + 5 * (fop(c) or c.method == "matched") * (alone(c) > 10))
CORNER = World(lambda c: calm(c) + 6 * (fop(c) and is_high(c)))
RESCUE = World(
    lambda c: 35.0 if fop(c) and (c.momentum, c.lr) in BROKEN else alone(c),
    length=lambda c: 0.1 if is_high(c) else 1.0,
)

WORLDS: dict[str, tuple[World, dict[str, list[str]]]] = {
    "nothing": (
        NOTHING,
        {
            "text-4-3-wide-array": ["differs"],
            "text-4-3-gap-grows": ["undecided", "undecided"],
            "fig-3-most-useful-high": ["differs", "differs"],
            "text-4-3-trains-where-sgd-fails": ["differs"],
            "fig-3-improves-robustness": ["differs"] * 4,
            "fig-3-adam-top-improved": ["matches", "differs"],
            "text-4-3-adam-smaller": ["differs", "differs"],
            "text-4-3-adam-moments": ["undecided"],
            "fig-3-hyper-learning-rate": ["matches"],
            "ours-robustness-corrected": ["differs"],
            "ours-robustness-matched": ["matches", "undecided"],
            "ours-robustness-steps": ["undecided"],
        },
    ),
    # Where momentum fails, at high rates and momenta, FOP changes nothing: the gain falls.
    "everywhere": (
        EVERYWHERE,
        {
            "fig-3-one-standard-deviation": ["matches"],
            "text-4-3-wide-array": ["matches"],
            "text-4-3-gap-grows": ["differs", "differs"],
            "fig-3-most-useful-high": ["matches", "differs"],
            "text-4-3-trains-where-sgd-fails": ["differs"],
            "text-4-3-adam-smaller": ["matches", "differs"],
            "text-4-3-adam-moments": ["differs"],
            "ours-robustness-matched": ["matches", "undecided"],
        },
    ),
    # The corrected hypergradient helps, but there is no difference to SGD that it could explain.
    "worse everywhere": (
        World(lambda c: alone(c) + (5 * (c.method == "corrected") - 3) * fop(c, c.base) * (alone(c) > 15)),
        {
            "fig-3-one-standard-deviation": ["differs"],
            "text-4-3-wide-array": ["differs"],
            "fig-3-improves-robustness": ["differs"] * 2 + ["matches"] * 2,
            "fig-3-adam-top-improved": ["differs", "differs"],
            "text-4-3-adam-smaller": ["differs", "differs"],
            "text-4-3-adam-moments": ["undecided"],
            "ours-robustness-corrected": ["matches"],
        },
    ),
    "high corner": (
        CORNER,
        {
            "fig-3-one-standard-deviation": ["matches"],
            "text-4-3-gap-grows": ["matches", "matches"],
            "fig-3-most-useful-high": ["matches", "matches"],
            # Momentum fails nowhere.
            "text-4-3-trains-where-sgd-fails": ["undecided"],
            "ours-robustness-matched": ["differs", "undecided"],
        },
    ),
    "rescue": (
        RESCUE,
        {
            "text-4-3-trains-where-sgd-fails": ["matches"],
            # At the highest momentum it is the lower rates that are rescued.
            "text-4-3-gap-grows": ["undecided", "matches"],
            "fig-3-improves-robustness": ["matches", "differs", "matches", "differs"],
            "ours-robustness-matched": ["differs", "differs"],
            "ours-robustness-steps": ["matches"],
        },
    ),
    "rescue by diverging momentum": (
        replace(RESCUE, end=lambda c: np.nan if (end := RESCUE.end(c)) == 10 and c.base == "SGD" else end),
        {"text-4-3-trains-where-sgd-fails": ["matches"], "ours-robustness-matched": ["differs", "differs"]},
    ),
    "rescue by shorter steps": (
        replace(RESCUE, end=lambda c: RESCUE.end(replace(c, method="FOP") if c.method == "matched" else c)),
        {"ours-robustness-matched": ["matches", "matches"]},
    ),
    "rescue in one setting": (
        World(lambda c: 35.0 if fop(c) and (c.momentum, c.lr) == BROKEN[0] else alone(c)),
        {"text-4-3-trains-where-sgd-fails": ["differs"]},
    ),
    "rescue of a third of the seeds": (
        World(lambda c: 35.0 if fop(c) and (c.momentum, c.lr) in BROKEN and c.seed == 0 else alone(c)),
        {"text-4-3-trains-where-sgd-fails": ["undecided"]},
    ),
    "as many lost as rescued": (
        World(
            lambda c: 35.0
            if fop(c) and (c.momentum, c.lr) in BROKEN
            else 10.0 if fop(c) and c.momentum == 0.5 and c.lr >= 0.05 else alone(c)
        ),
        {"text-4-3-trains-where-sgd-fails": ["undecided"]},
    ),
    "longer steps": (replace(NOTHING, length=lambda c: 3.0), {"ours-robustness-steps": ["differs"]}),
    "FOP with Adam gains at its best rates": (
        World(lambda c: alone(c) + 3 * (fop(c, "Adam") and c.lr == 1e-3) + 9 * (fop(c) and alone(c) > 10)),
        {"fig-3-adam-top-improved": ["matches", "matches"], "text-4-3-adam-smaller": ["matches", "matches"]},
    ),
    "FOP with Adam is another thing": (
        World(lambda c: alone(c) - 5 * (fop(c, "Adam") and alone(c) > 10)),
        {"fig-3-adam-top-improved": ["differs", "differs"], "text-4-3-adam-smaller": ["matches", "differs"]},
    ),
    "the correction explains it": (
        World(lambda c: EVERYWHERE.end(c) + 4 * (c.method == "corrected" and alone(c) > 10)),
        {"text-4-3-adam-moments": ["matches"], "ours-robustness-corrected": ["matches"]},
    ),
    "the correction adds little": (
        World(lambda c: EVERYWHERE.end(c) + 1.5 * (c.method == "corrected" and alone(c) > 10)),
        {"text-4-3-adam-moments": ["differs"], "ours-robustness-corrected": ["matches"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
def test_verdicts_are_those_of_the_planted_world(name: str) -> None:
    world, expected = WORLDS[name]
    records = planted(world)
    found = shown(records)
    assert {claim: found[claim] for claim in expected} == expected, summary.told(summary.verdicts(records), *expected)


def test_another_rate_of_m_is_not_the_caption_s() -> None:
    records = [replace(r, config=r.config | {"hyper_lr": 1e-4}) for r in planted(NOTHING)]
    for before, after in zip(planted(NOTHING), records, strict=True):
        after.__dict__["metrics"] = before.metrics
    assert shown(records)["fig-3-hyper-learning-rate"] == ["differs"]
    assert summary.value(records, "fig-3-hyper-learning-rate") == 1e-4
    with pytest.raises(MissingRunsError, match=r"one value for all runs with FOP, got \[0.0001, 0.0005\]"):
        summary.hyper_lr(records + planted(NOTHING))


# ---------------------------------------------------------------------------------------
# What chance marks


def test_the_law_of_chance_is_that_of_all_swaps() -> None:
    """Three settings and two seeds have 64 swaps in all, gone through here one by one."""
    rng = np.random.default_rng(1)
    fop, base = rng.normal(20, 1, (2, 3, 2))
    fop[0] += 3
    counts, largest = [], []
    for swap in product((False, True), repeat=6):
        at = np.reshape(swap, (3, 2))
        ours, theirs = np.where(at, base, fop), np.where(at, fop, base)
        ratio = (ours - theirs).mean(1) / np.sqrt((ours.var(1, ddof=1) + theirs.var(1, ddof=1)) / 2)
        counts.append((ratio >= 1).sum())
        largest.append(ratio.max())
    found = summary.mark(fop, base)
    first = (fop - base).mean(1) / np.sqrt((fop.var(1, ddof=1) + base.var(1, ddof=1)) / 2)
    assert found.count == counts[0] == (first >= 1).sum() > 0
    assert found.expected == pytest.approx(np.mean(counts))
    assert found.p_count == pytest.approx(np.mean(np.array(counts) >= counts[0]))
    assert found.bound == np.sort(counts)[int(np.ceil(0.95 * 64)) - 1]
    np.testing.assert_allclose(found.p, [(np.array(largest) >= each - 1e-9).mean() for each in first])


def drawn(rng: np.random.Generator, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of 20 settings and 3 seeds: noise of another size in each setting, and some settings at chance."""
    level, spread = rng.uniform(20, 60, (20, 1)), rng.uniform(0.1, 5, (20, 1))
    seeds = rng.normal(0, spread, (20, 3))
    fop, base = (level + seeds + rng.normal(0, spread, (20, 3)) for _ in range(2))
    fop += gain[:, None] * spread
    dead = rng.random(20) < 0.2
    fop[dead] = base[dead] = 10.0
    return fop.round(2), base.round(2)


def test_chance_is_called_chance() -> None:
    """With no effect at all, p < 0.05 comes out in 5 % of the grids or less: a count of marks comes in coarse steps."""
    rng = np.random.default_rng(0)
    found = [summary.mark(*drawn(rng, np.zeros(20))) for _ in range(1000)]
    p = np.array([each.p_count for each in found])
    # Twice the standard error of a share of 1,000 is 0.014.
    for alpha in (0.05, 0.2):
        assert 0.3 * alpha < (p < alpha).mean() < alpha + 0.014
    assert np.mean([each.real > 0 for each in found]) < 0.05 + 0.014
    assert np.mean([each.count for each in found]) == pytest.approx(
        np.mean([each.expected for each in found]), rel=0.05
    )
    # The smallest p of twenty settings is corrected for their number.
    assert np.mean([each.p.min() < 0.2 for each in found]) < 0.2 + 0.026


def test_the_bound_holds_among_true_effects() -> None:
    """Half of the settings gain, half don't: no more of the latter are marked than the bound says, in 95 %."""
    rng = np.random.default_rng(2)
    gain = np.repeat([6.0, 0.0], 10)
    held, real = [], []
    for _ in range(400):
        found = summary.mark(*drawn(rng, gain))
        held.append(found.marked[10:].sum() <= found.bound)
        real.append(found.real)
    assert np.mean(held) > 0.95 - 0.022
    assert np.mean(real) > 2


def test_three_seeds_mark_no_single_setting_for_sure() -> None:
    fop, base = np.full((4, 3), 50.0), np.full((4, 3), 20.0)
    found = summary.mark(fop + np.arange(3), base + np.arange(3))
    assert found.count == 4
    assert (found.p >= 1 / 8).all()
    assert found.p_count == pytest.approx(8.0**-4)


def test_equal_accuracies_are_not_an_improvement() -> None:
    chance = np.full((3, 3), 10.0)
    found = summary.mark(chance, chance)
    assert (found.count, found.expected, found.p_count) == (0, 0, 1)
    with pytest.raises(MissingRunsError, match="two seeds"):
        summary.mark(chance[:, :1], chance[:, :1])


# ---------------------------------------------------------------------------------------
# Trends, tables, what is missing


def test_a_rise_is_found_and_chance_is_not() -> None:
    steps = np.arange(5.0)
    assert summary.rise(np.stack([steps, 3 * steps, 2 - steps])).slope == pytest.approx(1)
    assert summary.rise(np.tile(steps, (4, 1))).p_rise < 0.001
    assert summary.rise(np.tile(-steps, (4, 1))).p_fall < 0.001
    assert summary.rise(np.zeros((4, 5))) == (0, 1, 1)
    # Of the 10 x 10 orders of two rows, one is as steep.
    few = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 1.0]])
    assert summary.rise(few).p_rise == pytest.approx(0.01, abs=0.004)
    rng = np.random.default_rng(0)
    p = np.array([summary.rise(rng.standard_normal((4, 5))).p_rise for _ in range(300)])
    assert 0.02 < (p < 0.05).mean() < 0.09


def test_tables_are_the_planted_ones() -> None:
    grids = Grids(planted(replace(EVERYWHERE, noise=0.0)))
    for method, more in (("momentum", 0), ("FOP", 5), ("matched", 5)):
        found = summary.means(grids["SGD", method])
        assert (tuple(found.index), tuple(found.columns)) == (MOMENTA, LRS)
        for momentum, lr in product(MOMENTA, LRS):
            expected = alone(Config("momentum", 0, lr=lr, momentum=momentum))
            assert found.loc[momentum, lr] == pytest.approx(expected + more * (expected > 10), abs=0.01)
    table = summary.settings(grids, "SGD").set_index(["momentum", "lr"])
    assert table.loc[(0.5, 0.05), "gain"] == pytest.approx(5, abs=0.02)
    assert table["marked"].sum() == (table["better"] == "matches").sum() == 14
    assert not table.loc[(0.99, 0.5), "marked"]
    whole = summary.robustness(grids)
    assert whole.loc["SGD, FOP", "mean"] - whole.loc["SGD, alone", "mean"] == pytest.approx(5 * 14 / 20, abs=0.01)
    assert list(whole["fails in"]) == [6, 6, 4, 4]
    assert list(whole["of"]) == [20, 20, 9, 9]
    assert summary.top(grids).lrs == (1e-3,)
    # Six settings of SGD and four of Adam in which nothing trains don't dilute the gain.
    np.testing.assert_allclose(summary.typical(grids, "SGD"), 5, atol=0.02)
    np.testing.assert_allclose(summary.typical(grids, "Adam"), 0, atol=0.02)


def test_the_corner_is_that_of_the_rules() -> None:
    found = summary.corner(Grids(planted(replace(CORNER, noise=0.0))))
    assert found["there"].mean == found["more than elsewhere"].mean == pytest.approx(6, abs=0.01)


def test_a_diverged_run_counts_as_chance_and_so_does_its_control() -> None:
    end = {"momentum": 30.0, "FOP": np.nan, "matched": 30.0}
    records = planted(World(lambda c: end.get(c.method, 20.0) if c.base == "SGD" else 20.0, noise=0.0))
    assert not [r for r in records if r.config["method"] == "matched"]
    for method, expected in (("momentum", 30), ("FOP", 10), ("matched", 10)):
        assert (summary.grid(records, "SGD", method).accuracy == expected).all()


MISSING = {
    "a run of momentum": (
        lambda c: (c["method"], c["lr"], c["momentum"], c["seed"]) != ("momentum", 0.05, 0.9, 1),
        "momentum with SGD has no run at momentum 0.9, learning rate 0.05, seed 1",
    ),
    "a control": (
        lambda c: (c["method"], c["lr"], c["momentum"], c["seed"]) != ("matched", 0.05, 0.9, 1),
        "matched with SGD has no run at momentum 0.9",
    ),
    "a rate of FOP": (lambda c: (c["method"], c["lr"]) != ("FOP", 0.05), "SGD: FOP and momentum have other settings"),
    "a seed of Adam": (lambda c: (c["method"], c["seed"]) != ("Adam", 2), "Adam: FOP and Adam have other settings"),
    "all corrected": (lambda c: c["method"] != "corrected", "no recorded run of corrected with Adam"),
}


@pytest.mark.parametrize("what", MISSING)
def test_missing_runs_are_named(what: str) -> None:
    keep, message = MISSING[what]
    few = [r for r in planted(NOTHING) if keep(r.config)]
    with pytest.raises(MissingRunsError, match=message):
        summary.verdicts(few)


def test_a_report_of_few_runs_says_what_is_missing() -> None:
    few = [r for r in planted(NOTHING) if r.config["method"] != "corrected"]
    told = summary.report(few)
    assert "not yet: no recorded run of corrected with Adam" in told
    assert "text-4-3-gap-grows" in told
    assert "text-4-3-adam-smaller" not in told


def test_the_report_tells_every_verdict() -> None:
    records = planted(RESCUE)
    told = summary.report(records)
    assert "not yet" not in told
    assert "nan" not in told.lower().replace("dominant", "")
    for claim, findings in summary.verdicts(records).items():
        for each in findings:
            assert any(letter.isdigit() for letter in each.reason), each
        if claim != "fig-3":  # it repeats others
            assert summary.told({claim: findings}) in told


def test_figures_draw_what_is_there() -> None:
    records = planted(RESCUE)
    figure, axes = plt.subplots(1, 5)
    figures.heat_maps(axes[:2], records)
    figures.control(axes[2], records)
    figures.adam(axes[3], records)
    figures.step_lengths(axes[4], records)
    marked = summary.marks(Grids(records), "SGD").marked
    assert (len(axes[0].patches), len(axes[1].patches)) == (0, marked.sum())
    framed = {(round(each.get_x() + 0.46), round(each.get_y() + 0.46)) for each in axes[1].patches}
    assert {(LRS.index(lr), MOMENTA.index(momentum)) for momentum, lr in BROKEN} <= framed
    written = [[float(each.get_text()) for each in axis.texts] for axis in axes]
    for numbers, method in zip(written, ("momentum", "FOP"), strict=False):
        np.testing.assert_allclose(numbers, summary.grid(records, "SGD", method).accuracy.mean(2).ravel(), atol=0.051)
    assert max(written[2]) == pytest.approx(25, abs=0.5)
    assert min(written[4]) == pytest.approx(np.log2(0.1), abs=0.051)
    assert [line.get_label() for line in axes[3].lines] == ["Adam", "Adam with FOP", "corrected"]
    np.testing.assert_allclose(axes[3].lines[0].get_xdata(), ADAM_LRS)
    plt.close(figure)


def test_one_seed_is_drawn_without_frames() -> None:
    few = [r for r in planted(RESCUE) if r.config["seed"] == 0]
    figure, axes = plt.subplots(1, 2)
    figures.heat_maps(axes, few)
    assert not axes[1].patches
    plt.close(figure)


def test_the_rules_are_those_of_the_rows() -> None:
    from fop_theory import ledger

    rows = {claim.id: claim for claim in ledger.read_claims()}
    row = rows["fig-3-hyper-learning-rate"]
    assert RULES.hyper_lr == (row.value, row.tolerance)
    section = {name for name in rows if name.startswith(("fig-3", "text-4-3"))}
    judged = summary.verdicts(planted(NOTHING))
    assert section <= judged.keys()
    assert set(METHODS) == {"SGD", "Adam"}
