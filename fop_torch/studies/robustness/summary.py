"""What the runs for Figure 3 say: pure functions from records to numbers, and from those to verdicts.

Nothing is drawn here and no number is typed: the chapter, the ledger's tests and `fop report robustness` read these.
A setting is a cell of a grid: a momentum and a learning rate for SGD, a learning rate for Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from fop_torch.results import Record
from fop_torch.statistics import Comparison, Thresholds, Verdict, compare, holm, judge, judge_all
from fop_torch.studies import provenance, reading
from fop_torch.studies.reading import ANY, Finding, MissingRunsError, facts, interval, text, told
from fop_torch.studies.robustness.train import LRS, METHODS, MOMENTA, STUDY, can_be_followed

#: The method without FOP, by base.
ALONE = {base: methods[0] for base, methods in METHODS.items()}
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Rules:
    """What decides. All of it was fixed before any run of this study was recorded.

    Known by then: one run each of momentum at the learning rates 0.05 and 0.15, by which the steps of the laptop
    profile were chosen, and what a hundred steps of each method cost.

    Attributes:
        chance: Accuracy in percent that a diverged run counts as: a network without numbers names one class for all
            images. Where it is right more or less often, runs that diverged would differ by what says nothing.
        resolution: Step of an accuracy on 10,000 images, in percentage points.
        deviations: A setting is marked if FOP's mean is ahead by so many standard deviations, as in the caption.
        accuracy: In percentage points. Families: the bases; the settings of a grid.
        spread: Likewise, of the standard deviation over the settings.
        alpha: Of the tests that take no margin.
        high: Momentum and learning rate from which on both are "higher".
        wide: Share of the settings that is "a wide array".
        failed: A run failed that went at most this share of the way from chance to the best setting without FOP.
        trained: One trained successfully that went at least this share of it.
        several: Settings that are "several".
        top: Adam's best region: rates whose mean over both methods goes this share of the way to the best such mean.
        similar: Percentage points within which accuracies are "similar".
        large_part: Share of a difference that is "in large part".
        hyper_lr: The caption's, and the tolerance of its row.
    """

    chance: float = 10.0
    resolution: float = 0.01
    deviations: float = 1.0
    accuracy: Thresholds = field(default_factory=lambda: Thresholds(margin=0.5))
    spread: Thresholds = field(default_factory=lambda: Thresholds(margin=0.5))
    alpha: float = 0.05
    high: tuple[float, float] = (MOMENTA[2], LRS[2])
    wide: float = 1 / 3
    failed: float = 0.1
    trained: float = 0.5
    several: int = 2
    top: float = 0.9
    similar: float = 2.0
    large_part: float = 0.5
    hyper_lr: tuple[float, float] = (5e-4, 0.0)


RULES = Rules()


# ---------------------------------------------------------------------------------------
# Which runs


class Grid(NamedTuple):
    """One method's final test accuracies.

    Attributes:
        momenta: Ascending; for Adam one that means nothing.
        lrs: Ascending.
        seeds: Ascending.
        accuracy: In percent, `[momenta, lrs, seeds]`.
    """

    momenta: tuple[float, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    accuracy: np.ndarray


def runs(records: Sequence[Record], base: str, method: str) -> dict[tuple[float, float, int], Record]:
    """One method's runs by momentum, learning rate and seed; the longest, if there are others."""
    longest = max((r.config["iterations"] for r in records), default=0)
    wanted = {"base": base, "method": method, "iterations": longest}
    return {
        (r.config["momentum"], r.config["lr"], r.config["seed"]): r
        for r in records
        if all(r.config[key] == value for key, value in wanted.items())
    }


def grid(records: Sequence[Record], base: str, method: str) -> Grid:
    """One method's final test accuracies; a run that diverged counts as chance.

    A control that repeats the gains of a run that diverged cannot be run: it counts as chance too, as that run does.

    Raises:
        MissingRunsError: If a run is missing.
    """
    found = runs(records, base, method)
    whole = found if method != "matched" else runs(records, base, "FOP")
    if not whole:
        raise MissingRunsError(f"no recorded run of {method} with {base}; `fop run robustness` makes what is missing")
    momenta, lrs = (tuple(sorted({key[i] for key in whole})) for i in range(2))
    seeds = tuple(sorted({key[2] for key in whole}))
    values = []
    for cell in product(momenta, lrs, seeds):
        if cell in found:
            values.append(reading.final([found[cell]], diverged=RULES.chance)[0])
        elif method == "matched" and cell in whole and not can_be_followed(whole[cell]):
            values.append(RULES.chance)
        else:
            where = f"momentum {cell[0]:g}, learning rate {cell[1]:g}, seed {cell[2]}"
            raise MissingRunsError(f"{method} with {base} has no run at {where}; `fop run robustness` makes it")
    return Grid(momenta, lrs, seeds, np.reshape(values, (len(momenta), len(lrs), len(seeds))))


class Grids(dict[tuple[str, str], Grid]):
    """Final test accuracies by base and method, each read from the records when it is first asked for.

    Args:
        records: Of the study.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__()
        self.records = records

    def __missing__(self, key: tuple[str, str]) -> Grid:
        self[key] = grid(self.records, *key)
        return self[key]


def pair(grids: Grids, base: str, method: str = "FOP", baseline: str = "") -> tuple[Grid, Grid]:
    """A method's grid and that of its baseline, the base alone when left out.

    Raises:
        MissingRunsError: If runs are missing, or the two have other settings or seeds.
    """
    ours, theirs = grids[base, method], grids[base, baseline or ALONE[base]]
    if ours[:3] != theirs[:3]:
        raise MissingRunsError(
            f"{base}: {method} and {baseline or ALONE[base]} have other settings or seeds; "
            "`fop run robustness` makes what is missing"
        )
    return ours, theirs


def means(found: Grid) -> pd.DataFrame:
    """Means over the seeds as a heat map: a row a momentum, a column a learning rate."""
    return pd.DataFrame(
        found.accuracy.mean(2), pd.Index(found.momenta, name="momentum"), pd.Index(found.lrs, name="lr")
    )


# ---------------------------------------------------------------------------------------
# Settings that improve by a standard deviation


@dataclass(frozen=True)
class Marked:
    """Which settings improve by at least one standard deviation, and how many would by chance.

    Attributes:
        gain: Of the mean accuracy by FOP, in percentage points, `[settings]`.
        deviation: See `pooled`, `[settings]`.
        marked: Is the gain at least `RULES.deviations` times that? `[settings]`.
        p: For each setting, corrected for all of them (max statistic); never below `1 / 2^seeds`. `[settings]`.
        expected: How many settings chance would mark in the mean.
        bound: With confidence `1 - alpha` no more of the marked settings owe it to chance.
        p_count: That chance marks as many as were marked.
    """

    gain: np.ndarray
    deviation: np.ndarray
    marked: np.ndarray
    p: np.ndarray
    expected: float
    bound: int
    p_count: float

    @property
    def count(self) -> int:
        """How many settings are marked."""
        return int(self.marked.sum())

    @property
    def real(self) -> int:
        """With confidence `1 - alpha`, at least so many of them do not owe it to chance."""
        return max(0, self.count - self.bound)


def pooled(fop: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """The standard deviation (n - 1) of runs that differ in their seed alone, from both methods' runs, `[...]`.

    The caption doesn't say whose it means. Accuracies that are equal are uncertain by their rounding at least.

    Args:
        fop: `[..., seeds]`.
        alone: `[..., seeds]`.
    """
    return _at_least_rounding(np.sqrt((fop.var(-1, ddof=1) + alone.var(-1, ddof=1)) / 2))


#: Other deviations that the caption could mean.
READINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "the runs without FOP": lambda fop, alone: _at_least_rounding(alone.std(-1, ddof=1)),
    "the differences": lambda fop, alone: _at_least_rounding((fop - alone).std(-1, ddof=1)),
}


def _at_least_rounding(deviation: np.ndarray) -> np.ndarray:
    return np.maximum(deviation, RULES.resolution / np.sqrt(12))


def mark(fop: np.ndarray, alone: np.ndarray) -> Marked:
    """Mark the settings that improve by a standard deviation, and ask how many would if FOP did nothing.

    If it did nothing, the two runs of a seed and setting could be swapped. All swaps are gone through, each seed and
    setting on its own; their number of marks is a sum of independent zeros and ones, whose law is known exactly. Three
    seeds have 8 patterns of swaps, so that no single setting can have a p below 1/8, but the number of marks can. Of
    the marks at most the law's `1 - alpha` quantile is due to chance, with confidence `1 - alpha`, whichever settings
    FOP does nothing in (Hemerik and Goeman, JRSS B 80, 2018). It is supposed that what a seed does to the difference
    of the two methods differs from setting to setting.

    Args:
        fop: Accuracies in percent, `[settings, seeds]`.
        alone: Of the same settings and seeds without FOP.

    Raises:
        MissingRunsError: If there is one seed only.
    """
    seeds = fop.shape[1]
    if seeds < 2:
        raise MissingRunsError("a standard deviation needs two seeds at least; this profile has one")
    # Row 0 swaps nothing.
    swap = (np.arange(2**seeds)[:, None] >> np.arange(seeds) & 1).astype(bool)[:, None, :]
    ours, theirs = np.where(swap, alone, fop), np.where(swap, fop, alone)  # [patterns, settings, seeds]
    gain, deviation = (ours - theirs).mean(-1), pooled(ours, theirs)
    # Rounding must not part equal ratios.
    ratio = np.round(gain / deviation, 9)
    marked = ratio >= RULES.deviations
    # That the largest ratio of all settings stays below each setting's own.
    below = np.prod((ratio[:, :, None] < ratio[0]).mean(0), axis=0)
    law = np.ones(1)
    for p in marked.mean(0):
        law = np.convolve(law, [1 - p, p])
    count, up_to = int(marked[0].sum()), np.cumsum(law)
    return Marked(
        gain=gain[0], deviation=deviation[0], marked=marked[0], p=1 - below, expected=float(marked.mean(0).sum()),
        bound=int(np.argmax(up_to >= 1 - RULES.alpha - 1e-12)), p_count=float(law[count:].sum()),
    )  # fmt: skip


def marks(grids: Grids, base: str) -> Marked:
    """See `mark`; for the settings of a base, momentum by momentum."""
    ours, theirs = pair(grids, base)
    seeds = len(ours.seeds)
    return mark(ours.accuracy.reshape(-1, seeds), theirs.accuracy.reshape(-1, seeds))


def settings(grids: Grids, base: str) -> pd.DataFrame:
    """One row a setting: both means, the gain, its deviation, marked?, p; and what a paired t-test says (Holm)."""
    ours, theirs = pair(grids, base)
    found = marks(grids, base)
    cells = list(product(ours.momenta, ours.lrs))
    seen = {
        str(cell): compare(fop, alone, resolution=RULES.resolution)
        for cell, fop, alone in zip(cells, *(np.vstack(each.accuracy) for each in (ours, theirs)), strict=True)  # type: ignore[call-overload]
    }
    return pd.DataFrame({
        "momentum": [cell[0] for cell in cells], "lr": [cell[1] for cell in cells],
        "alone": theirs.accuracy.mean(2).ravel(), "FOP": ours.accuracy.mean(2).ravel(), "gain": found.gain,
        "deviation": found.deviation, "marked": found.marked, "p": found.p,
        "better": list(judge_all(seen, "greater", RULES.accuracy).values()),
    })  # fmt: skip


# ---------------------------------------------------------------------------------------
# Where FOP helps


class Rise(NamedTuple):
    """Whether a quantity rises along the rows of a table.

    Attributes:
        slope: Of the least-squares line through a row, in the quantity's unit for one step, mean over the rows.
        p_rise: One-sided p by permutations within each row.
        p_fall: Likewise, for a fall.
    """

    slope: float
    p_rise: float
    p_fall: float


def rise(values: np.ndarray) -> Rise:
    """Ask whether values rise from left to right, `[rows, places]`.

    Sizes count here, not ranks: among settings in which nothing happens the ranks are those of noise.
    """
    place = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    line = place / (place**2).sum()
    slope = float((values @ line).mean())
    rng = np.random.default_rng(0)
    others = (rng.permuted(np.broadcast_to(values, (PERMUTATIONS, *values.shape)), axis=2) @ line).mean(1)
    # What was observed is one of the permutations; rounding must not part equal slopes.
    p_rise, p_fall = ((1 + (sign * others >= sign * slope - 1e-9).sum()) / (1 + PERMUTATIONS) for sign in (1, -1))
    return Rise(slope, float(p_rise), float(p_fall))


def rises(grids: Grids) -> dict[str, Rise]:
    """Whether FOP's gain rises with the learning rate, momentum by momentum, and the other way round."""
    ours, theirs = pair(grids, "SGD")
    gain = (ours.accuracy - theirs.accuracy).mean(2)
    return {"learning rate": rise(gain), "momentum": rise(gain.T)}


def high(found: Grid) -> np.ndarray:
    """Which settings have a higher momentum and a higher learning rate, see `RULES.high`; `[momenta, lrs]`."""
    return np.outer(np.array(found.momenta) >= RULES.high[0], np.array(found.lrs) >= RULES.high[1])


def corner(grids: Grids) -> dict[str, Comparison]:
    """FOP's gain where momentum and learning rate are higher, on its own and beyond that of all other settings."""
    ours, theirs = pair(grids, "SGD")
    gain, inside = ours.accuracy - theirs.accuracy, high(ours)
    at = gain[inside].mean(0)
    return {"there": compare(at, np.zeros(len(at))), "more than elsewhere": compare(at, gain[~inside].mean(0))}


def levels(alone: Grid) -> tuple[float, float]:
    """Accuracies up to which a run failed, and from which on it trained successfully; see `RULES`."""
    way = alone.accuracy.mean(2).max() - RULES.chance
    return RULES.chance + RULES.failed * way, RULES.chance + RULES.trained * way


class Rescued(NamedTuple):
    """Where FOP trains and the base alone fails, in most of the seeds.

    Attributes:
        failed: Settings in which the base alone fails, `[momenta, lrs]`.
        rescued: Those of them in which FOP trains.
        ever: Those in which this is so for one seed at least.
        lost: Settings in which FOP fails and the base alone trains.
        p: One-sided p of McNemar's exact test: of all runs, more are rescued than lost.
    """

    failed: np.ndarray
    rescued: np.ndarray
    ever: np.ndarray
    lost: np.ndarray
    p: float


def rescue(ours: Grid, theirs: Grid) -> Rescued:
    """Where one method trains and its baseline fails."""
    fails, trains = levels(theirs)
    here, there = ours.accuracy >= trains, theirs.accuracy <= fails
    gone, fine = ours.accuracy <= fails, theirs.accuracy >= trains
    saved, lost = here & there, gone & fine
    n = int((saved | lost).sum())
    p = stats.binomtest(int(saved.sum()), n, alternative="greater").pvalue if n else 1.0
    return Rescued(failed=_most(there), rescued=_most(saved), ever=saved.sum(2) > 0, lost=_most(lost), p=float(p))


def _most(each: np.ndarray) -> np.ndarray:
    """Is it so for most of the seeds? `[momenta, lrs]`."""
    return each.mean(2) > 0.5


# ---------------------------------------------------------------------------------------
# Robustness as such, and Adam


def robustness(grids: Grids) -> pd.DataFrame:
    """By base and method, over all settings: mean accuracy, standard deviation, best setting, settings that fail."""
    rows = {}
    for base in METHODS:
        found = dict(zip(("FOP", ALONE[base]), pair(grids, base), strict=True))
        fails, _ = levels(found[ALONE[base]])
        for method in (ALONE[base], "FOP"):
            cells = found[method].accuracy.mean(2)
            rows[f"{base}, {'alone' if method == ALONE[base] else method}"] = {
                "mean": cells.mean(), "deviation": cells.std(), "best": cells.max(),
                "fails in": int((cells <= fails).sum()), "of": cells.size,
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def evenness(grids: Grids) -> dict[str, dict[str, Comparison]]:
    """FOP against the base alone, seed by seed: mean over the settings, and by how much it spreads less over them."""
    found: dict[str, dict[str, Comparison]] = {"mean": {}, "spread": {}}
    for base in METHODS:
        ours, theirs = (each.accuracy for each in pair(grids, base))
        found["mean"][base] = compare(ours.mean((0, 1)), theirs.mean((0, 1)))
        found["spread"][base] = compare(-ours.std((0, 1)), -theirs.std((0, 1)))
    return found


def alive(ours: Grid, theirs: Grid) -> np.ndarray:
    """Settings in which either method does not fail, by its mean; `[momenta, lrs]`."""
    return np.maximum(ours.accuracy.mean(2), theirs.accuracy.mean(2)) > levels(theirs)[0]


def typical(grids: Grids, base: str) -> np.ndarray:
    """FOP's gain in percentage points, mean over the settings in which either method trains at all, `[seeds]`."""
    ours, theirs = pair(grids, base)
    return (ours.accuracy - theirs.accuracy)[alive(ours, theirs)].mean(0)


class Top(NamedTuple):
    """Adam where it is best.

    Attributes:
        lrs: The region, see `RULES.top`.
        region: FOP's gain in it, its mean.
        best: Of FOP at its best rate over Adam at its own.
        at: Those two rates, FOP's first.
    """

    lrs: tuple[float, ...]
    region: Comparison
    best: Comparison
    at: tuple[float, float]


def top(grids: Grids) -> Top:
    """What FOP gains at Adam's best learning rates."""
    ours, theirs = pair(grids, "Adam")
    mean = (ours.accuracy + theirs.accuracy).mean((0, 2)) / 2
    inside = mean >= RULES.chance + RULES.top * (mean.max() - RULES.chance)
    places = [int(each.accuracy.mean((0, 2)).argmax()) for each in (ours, theirs)]
    return Top(
        lrs=tuple(np.array(ours.lrs)[inside].tolist()),
        region=compare(ours.accuracy[0, inside].mean(0), theirs.accuracy[0, inside].mean(0)),
        best=compare(ours.accuracy[0, places[0]], theirs.accuracy[0, places[1]]),
        at=(ours.lrs[places[0]], ours.lrs[places[1]]),
    )


def corrected(grids: Grids) -> np.ndarray:
    """What Adam's Jacobian in the hypergradient adds to FOP, mean over the rates that `typical` takes, `[seeds]`."""
    ours, theirs = pair(grids, "Adam")
    better, printed = pair(grids, "Adam", "corrected", "FOP")
    return (better.accuracy - printed.accuracy)[alive(ours, theirs)].mean(0)


# ---------------------------------------------------------------------------------------
# The control


def step_lengths(grids: Grids) -> np.ndarray:
    """By what FOP lengthened steps, |G P| / |G|: geometric mean over layers and measurements, `[momenta, lrs, seeds]`.

    NaN where a run broke before the first measurement.
    """
    found, shape = runs(grids.records, "SGD", "FOP"), grids["SGD", "FOP"]
    lengths = []
    for cell in product(*shape[:3]):
        rows = found[cell].metrics
        gains = rows["value"][(rows["name"] == "gain") & (rows["value"] > 0)].to_numpy()
        lengths.append(np.exp(np.log(gains).mean()) if len(gains) else np.nan)
    return np.reshape(lengths, shape.accuracy.shape)


# ---------------------------------------------------------------------------------------
# Verdicts


def verdicts(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the runs say about each claim, one finding for each of its parts.

    Raises:
        MissingRunsError: If runs are missing.
    """
    found: dict[str, tuple[Finding, ...]] = {}
    grids = Grids(records)
    for judged in (_momentum, _adam, _robust, _controls):
        found |= judged(grids)
    # The figure is what its caption reads off it.
    return {"fig-3": tuple(each for claim in CAPTION for each in found[claim])} | found


#: What the caption of Figure 3 reads off it.
CAPTION = (
    "fig-3-improves-robustness",
    "fig-3-one-standard-deviation",
    "fig-3-most-useful-high",
    "fig-3-adam-top-improved",
)


def value(records: Sequence[Record], claim: str) -> float:
    """Our number for a claim whose row gives the paper's.

    Raises:
        KeyError: If the claim is not one of them.
    """
    numbers: dict[str, Callable[[], float]] = {"fig-3-hyper-learning-rate": lambda: hyper_lr(records)}
    return numbers[claim]()


def hyper_lr(records: Sequence[Record]) -> float:
    """The learning rate of M in all runs with FOP.

    Raises:
        MissingRunsError: If there are none, or they differ.
    """
    found = {r.config["hyper_lr"] for r in records if r.config["method"] in ("FOP", "corrected")}
    if len(found) != 1:
        raise MissingRunsError(f"hyper_lr: expected one value for all runs with FOP, got {sorted(found)}")
    return float(found.pop())


def _momentum(grids: Grids) -> dict[str, tuple[Finding, ...]]:
    found, at = marks(grids, "SGD"), corner(grids)
    useful = judge_all(at, "greater", RULES.accuracy)
    lr, (printed, tolerance) = hyper_lr(grids.records), RULES.hyper_lr
    return {
        "fig-3-one-standard-deviation": (_more_than_chance(grids, found),),
        "text-4-3-wide-array": (_wide(found),),
        "text-4-3-gap-grows": tuple(_rising(rises(grids))),
        "fig-3-most-useful-high": (
            Finding(
                "a gain at higher momentum and learning rate, in points", useful["there"],
                f"{interval(at['there'])} where the momentum is at least {RULES.high[0]:g} and the learning rate "
                f"{RULES.high[1]:g}",
            ),
            Finding(
                "a greater one than elsewhere, in points", useful["more than elsewhere"],
                f"{interval(at['more than elsewhere'])}, p = {at['more than elsewhere'].p:.1g}",
            ),
        ),
        "text-4-3-trains-where-sgd-fails": (_where_momentum_fails(grids),),
        "fig-3-hyper-learning-rate": (
            Finding(
                "learning rate of M", "matches" if abs(lr - printed) <= tolerance else "differs",
                f"{lr:g} in all runs with FOP; printed {printed:g}",
            ),
        ),
    }  # fmt: skip


def _more_than_chance(grids: Grids, found: Marked) -> Finding:
    verdict: Verdict = "undecided"
    if found.p_count < RULES.alpha:
        verdict = "matches"
    elif found.count <= found.expected:
        verdict = "differs"
    ours, theirs = (each.accuracy for each in pair(grids, "SGD"))
    gain = (ours - theirs).mean(2)
    others = ", ".join(
        f"of {name} {(gain >= RULES.deviations * deviation(ours, theirs)).sum()}"
        for name, deviation in READINGS.items()
    )
    better = (settings(grids, "SGD")["better"] == "matches").sum()
    return Finding(
        "more settings improve by a standard deviation than chance would mark", verdict,
        f"{found.count} of {gain.size}, where swapping the two methods' runs marks {found.expected:.1f} in the mean, "
        f"p = {found.p_count:.2g}; at least {found.real} of them not by chance (95 %). Smallest p of a single setting "
        f"{found.p.min():.2g}, corrected, and no smaller one than {0.5 ** ours.shape[2]:.2g} is possible; "
        f"by paired t-tests (Holm) {better} settings are better. The deviation is that of both methods' runs; by that "
        f"{others}",
    )  # fmt: skip


def _wide(found: Marked) -> Finding:
    wanted = RULES.wide * len(found.marked)
    verdict: Verdict = "undecided"
    if found.real >= wanted:
        verdict = "matches"
    elif found.count < wanted:
        verdict = "differs"
    return Finding(
        f"improved in {RULES.wide:.0%} of the settings of SGD or more", verdict,
        f"{found.count} of {len(found.marked)} by a standard deviation, "
        f"at least {found.real} of them not by chance (95 %)",
    )  # fmt: skip


def _rising(found: Mapping[str, Rise]) -> list[Finding]:
    falls = holm({name: each.p_fall for name, each in found.items()})
    findings = []
    for name, each in found.items():
        verdict: Verdict = "undecided"
        if each.p_rise < RULES.alpha:
            verdict = "matches"
        elif falls[name] < RULES.alpha:
            verdict = "differs"
        told = (
            f"{each.slope:+.2f} points a step of the grid, p of a rise {each.p_rise:.2g}, of a fall {each.p_fall:.2g}"
        )
        findings.append(Finding(f"the gain rises with the {name}", verdict, told))
    return findings


def _where_momentum_fails(grids: Grids) -> Finding:
    ours, theirs = pair(grids, "SGD")
    found, (fails, trains) = rescue(ours, theirs), levels(theirs)
    verdict: Verdict = "undecided"
    if found.failed.sum() >= RULES.several:
        if found.rescued.sum() >= RULES.several and found.p < RULES.alpha:
            verdict = "matches"
        elif found.ever.sum() < RULES.several:
            verdict = "differs"
    return Finding(
        f"FOP trains in {RULES.several} settings or more in which momentum fails", verdict,
        f"most runs of momentum end at {fails:.1f} % or less in {found.failed.sum()} of {found.failed.size} settings; "
        f"FOP reaches {trains:.1f} % in {found.rescued.sum()} of these ({_cells(ours, found.rescued)}), "
        f"for one seed at least in {found.ever.sum()}; the other way round in {found.lost.sum()}; "
        f"McNemar's p = {found.p:.2g}",
    )  # fmt: skip


def _cells(found: Grid, which: np.ndarray) -> str:
    names = [f"{momentum:g}/{lr:g}" for momentum, row in zip(found.momenta, which, strict=True)
             for lr, is_so in zip(found.lrs, row, strict=True) if is_so]  # fmt: skip
    return f"momentum/rate {', '.join(names)}" if names else "none"


def _adam(grids: Grids) -> dict[str, tuple[Finding, ...]]:
    best, gains = top(grids), {base: typical(grids, base) for base in METHODS}
    zeros = np.zeros(len(gains["Adam"]))
    alone = compare(gains["Adam"], zeros)
    less = compare(gains["SGD"], gains["Adam"])
    smaller = judge(less, "greater", RULES.accuracy)
    adds = corrected(grids)
    # The share of the shortfall that the correction makes up for, less what would be "in large part".
    explained = compare(adds, RULES.large_part * (gains["SGD"] - gains["Adam"]))
    small = Finding(
        "a smaller gain than with SGD, in points", smaller,
        f"SGD's less Adam's {interval(less)}; {interval(compare(gains['SGD'], zeros))} with SGD and {interval(alone)} "
        "with Adam, means over the settings in which either method trains",
    )  # fmt: skip
    region = Finding(
        "a gain in the best region, in points", judge(best.region, "greater", RULES.accuracy),
        f"{interval(best.region)} at learning rates {_rates(best.lrs)}",
    )  # fmt: skip
    return {
        "fig-3-adam-top-improved": (
            Finding(
                f"similar, to within {RULES.similar:g} points", judge(alone, "about", ANY, 0.0, RULES.similar),
                f"{interval(alone)} over the rates at which either method trains",
            ),
            Finding(
                "the best with FOP better than the best without, in points",
                judge(best.best, "greater", RULES.accuracy),
                f"{interval(best.best)}, at {best.at[0]:g} with and {best.at[1]:g} without",
            ),
        ),
        "text-4-3-adam-smaller": (small, region),
        "text-4-3-adam-moments": (
            Finding(
                "the hypergradient through Adam's moments makes up for half of the difference to SGD",
                "undecided" if smaller != "matches" else judge(explained, "greater", ANY),
                f"it adds {interval(compare(adds, zeros))} points to FOP with Adam, whose gain is {interval(less)} "
                "points below SGD's"
                + ("" if smaller == "matches" else "; without a smaller gain there is nothing to explain"),
            ),
        ),
        "ours-robustness-corrected": (
            Finding(
                "with Adam, the hypergradient of the step taken is better than the printed one, in points",
                judge(compare(adds, zeros), "greater", RULES.accuracy), interval(compare(adds, zeros)),
            ),
        ),
    }  # fmt: skip


def _rates(lrs: Sequence[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in lrs)


def _robust(grids: Grids) -> dict[str, tuple[Finding, ...]]:
    """Two readings of "more robust", for each base: a better mean over the settings, and less spread over them."""
    found, table = evenness(grids), robustness(grids)
    findings = []
    for what, said, thresholds in (
        ("mean", "a better mean over the settings, in points", RULES.accuracy),
        ("spread", "less spread over the settings, in points", RULES.spread),
    ):
        judged = judge_all(found[what], "greater", thresholds)
        column = "mean" if what == "mean" else "deviation"
        for base, seen in found[what].items():
            ends = [table.loc[f"{base}, {name}", column] for name in ("alone", "FOP")]
            findings.append(
                Finding(
                    f"{base}: {said}", judged[base], f"{interval(seen)}; {ends[0]:.1f} alone, {ends[1]:.1f} with FOP"
                )
            )
    return {"fig-3-improves-robustness": tuple(findings)}


def _controls(grids: Grids) -> dict[str, tuple[Finding, ...]]:
    """What of FOP's gains momentum has too, if its steps are as long as FOP made them."""
    fop, matched = pair(grids, "SGD", "FOP", "matched")
    _, momentum = pair(grids, "SGD")
    seen = compare(fop.accuracy.mean((0, 1)), matched.accuracy.mean((0, 1)))
    saved, trains = rescue(fop, momentum).rescued, levels(momentum)[1]
    also = saved & _most(matched.accuracy >= trains)
    explained: Verdict = "undecided"
    if saved.any() and (also.sum() in (0, saved.sum())):
        explained = "matches" if also.any() else "differs"
    lengths = np.log2(step_lengths(grids))
    inside = high(fop)
    shorter = {
        name: compare(-np.nanmean(lengths[which], axis=0), np.zeros(lengths.shape[2]))
        for name, which in (("high", inside), ("elsewhere", ~inside))
    }
    size = {name: 2**-each.mean for name, each in shorter.items()}
    return {
        "ours-robustness-matched": (
            Finding(
                "FOP is no better than momentum with steps as long, in points",
                judge(seen, "not-greater", RULES.accuracy),
                f"FOP less this control {interval(seen)}, mean over all settings",
            ),
            Finding(
                "that momentum also trains where FOP does and momentum fails", explained,
                f"in {also.sum()} of {saved.sum()} settings ({_cells(fop, also)})",
            ),
        ),
        "ours-robustness-steps": (
            Finding(
                "FOP shortens steps where momentum and learning rate are higher",
                judge(shorter["high"], "greater", ANY),
                f"times {size['high']:.2f} there, {size['elsewhere']:.2f} elsewhere, "
                "geometric means over layers and steps",
            ),
        ),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------
# In words


def report(records: Sequence[Record]) -> str:
    """Everything above as text; what needs runs that are missing says which."""
    grids = Grids(records)
    sections: dict[str, Callable[[], Any]] = {
        "Where it comes from": lambda: facts(provenance(STUDY, records)),
        **{
            f"Final test accuracy, {base}: {method}": lambda base=base, method=method: text(  # type: ignore[misc]
                means(grids[base, method])
            )
            for base, methods in METHODS.items()
            for method in methods
        },
        **{f"Settings, {base}": lambda base=base: text(settings(grids, base)) for base in METHODS},  # type: ignore[misc]
        "Over all settings": lambda: text(robustness(grids)),
    }
    for judged in (_momentum, _adam, _robust, _controls):
        name = f"Verdicts, {judged.__name__.strip('_')}"
        sections[name] = lambda these=judged: told(these(grids))  # type: ignore[misc]
    return reading.report(sections)
