"""What runs that share their seeds say about a claim: bands, paired comparisons, trends, verdicts.

Every study trains each method with the same seeds, so that runs are compared in pairs. With the paper's 5 seeds two
things are easily got wrong. A bootstrap of 5 numbers is too narrow: its 95 % interval of the mean, percentile or BCa,
holds the true mean in about 84 % of the cases, because it sees the spread of the sample, not the doubt about it.
Intervals and verdicts here therefore come from Student's t on the paired differences, whose 95 % are 95 % for normal
differences; bands around curves are bootstrapped with a correction. And no rank or permutation test of 5 pairs can
give a p below 2/2⁵ = 0.0625: a smaller p rests on the normal distribution.

Larger values are better throughout. Where smaller ones are (a loss, iterations), swap the method and the baseline, or
negate. Numbers must be finite: a run that diverged is handed in as the worst value, not as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

Claim = Literal["greater", "not-greater", "about"]
Verdict = Literal["matches", "differs", "undecided"]

#: How many resamples a bootstrap draws, and how many sign flips where there are more pairs than EXACT; else all flips.
RESAMPLES, EXACT = 10_000, 13


@dataclass(frozen=True)
class Band:
    """The mean of several curves and how far it can be trusted, at each point.

    Attributes:
        mean: `[points]`.
        low: Lower end of the confidence band of the mean, `[points]`; NaN where there is one run only.
        high: Its upper end.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_band(values: Any, level: float = 0.95) -> Band:
    """Return the mean of several runs with a bootstrap confidence band, point by point.

    The percentiles are Hesterberg's expanded ones (The American Statistician 69, 2015): with few runs they lie
    further out, at −t·√(n/(n−1)) where the usual ones lie at the normal quantile. Even so a band cannot leave the runs'
    span: the 95 % are about 92 % with 5 runs and 75 % with 3. It is made to be looked at; `compare` is made to judge.

    Args:
        values: `[runs, points]`.
        level: Chance with which the band shall hold the mean at a point, between 0 and 1.

    Raises:
        ValueError: If `values` are not finite numbers of that shape, or `level` is out of range.
    """
    curves = _numbers("values", values, 2)
    _inside("level", level, 0, 1)
    runs = len(curves)
    low = high = np.full(curves.shape[1], math.nan)
    if runs > 1:
        tail = stats.norm.sf(math.sqrt(runs / (runs - 1)) * stats.t.ppf((1 + level) / 2, runs - 1))
        low, high = stats.bootstrap(
            (curves,), np.mean, axis=0, confidence_level=1 - 2 * tail, n_resamples=RESAMPLES, method="percentile",
            batch=max(1, 1_000_000 // curves.size), rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    return Band(curves.mean(axis=0), low, high)


@dataclass(frozen=True)
class Comparison:
    """By how much a method is ahead of a baseline, seed by seed.

    With one pair nothing is known of the spread: the interval is all numbers, every p is 1.

    Attributes:
        n: Number of pairs.
        mean: Mean of method − baseline.
        deviation: Standard deviation of the differences (n − 1), at least what the values' resolution makes of it.
        level: Level of the confidence interval.
        low: Lower end of the confidence interval of the mean difference, by Student's t.
        high: Its upper end.
        p: Two-sided p of the paired t-test.
        p_sign_flip: Two-sided p of the sign-flip (paired permutation) test; exact up to 13 pairs.
        smallest_p_sign_flip: The smallest p that test can give: 2/2ⁿ, and 1/10,000 with more than 13 pairs.
        p_welch: Two-sided p of Welch's t-test, which ignores the pairs.
        effect: Cohen's d_z: mean over deviation.
        superiority: Share of the pairs in which the method is ahead; a tie counts half.
    """

    n: int
    mean: float
    deviation: float
    level: float
    low: float
    high: float
    p: float
    p_sign_flip: float
    smallest_p_sign_flip: float
    p_welch: float
    effect: float
    superiority: float

    def p_against(self, difference: float) -> float:
        """Two-sided p of the paired t-test that the true mean difference is `difference`."""
        if self.n < 2:
            return 1.0
        t = (self.mean - difference) / self.deviation * math.sqrt(self.n)
        return float(2 * stats.t.sf(abs(t), self.n - 1))


def compare(method: Any, baseline: Any, level: float = 0.95, resolution: float = 0.0) -> Comparison:
    """Compare a method with a baseline over runs paired by seed.

    A quantity on its own is compared with zeros.

    Differences that are all the same count as certain: the interval is then a point. Where values are counted in
    coarse steps that can be chance, and `resolution` says so: a rounded value is uncertain by resolution/√12, and the
    differences are taken to spread by at least resolution/√6.

    Args:
        method: One number a seed, `[n]`; larger is better.
        baseline: The same seeds in the same order, `[n]`.
        level: Level of the confidence interval, between 0 and 1.
        resolution: Step in which the values are counted: 1e-4 for an accuracy on 10,000 images.

    Raises:
        ValueError: If the values are not finite, don't pair up or are none at all; or an option is out of range.
    """
    ours, theirs = _numbers("method", method, 1), _numbers("baseline", baseline, 1)
    if len(ours) != len(theirs):
        raise ValueError(
            f"method and baseline: expected the same seeds, got {len(ours)} and {len(theirs)} values; "
            "leave out the seeds that only one of them has"
        )
    _inside("level", level, 0, 1)
    _at_least_zero("resolution", resolution)
    differences, n = ours - theirs, len(ours)
    mean = float(differences.mean())
    superiority = float((np.sign(differences).mean() + 1) / 2)
    if n == 1:
        return Comparison(n, mean, math.nan, level, -math.inf, math.inf, 1.0, 1.0, 1.0, 1.0, math.nan, superiority)
    # Below this, spread is rounding; the tiny number lets zeros be compared with zeros.
    rounding = max(4 * np.finfo(float).eps * float(np.abs([ours, theirs]).max()), 1e-150)
    deviation = max(float(differences.std(ddof=1)), resolution / math.sqrt(6), rounding)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    spreads = [max(float(values.std(ddof=1)), resolution / math.sqrt(12), rounding) for values in (ours, theirs)]
    welch = stats.ttest_ind_from_stats(ours.mean(), spreads[0], n, theirs.mean(), spreads[1], n, equal_var=False)
    return Comparison(
        n=n,
        mean=mean,
        deviation=deviation,
        level=level,
        low=mean - half,
        high=mean + half,
        p=float(2 * stats.t.sf(abs(mean) / deviation * math.sqrt(n), n - 1)),
        p_sign_flip=_sign_flip(differences, rounding),
        smallest_p_sign_flip=2 / 2**n if n <= EXACT else 1 / RESAMPLES,
        p_welch=float(welch.pvalue),
        effect=mean / deviation,
        superiority=superiority,
    )


def _sign_flip(differences: np.ndarray, rounding: float) -> float:
    n = len(differences)
    if n <= EXACT:
        # The binary digits of 0 to 2ⁿ − 1; the first row flips nothing.
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        # The flip that was observed is one of them: p is never zero.
        signs = np.vstack([np.ones(n), np.random.default_rng(0).choice((1, -1), (RESAMPLES - 1, n))])
    sums = np.abs(signs @ differences)
    # Values counted in steps give many equal sums; that rounding parts some of them must not make p smaller.
    return float((sums >= sums[0] - n * rounding).mean())


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of several tests by Holm's method.

    The chance that any true hypothesis gets an adjusted p below alpha is at most alpha.

    Args:
        p_values: One p a name.

    Raises:
        ValueError: If a p is not a number in [0, 1].
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p_values: expected numbers in [0, 1], got {p!r} for {name!r}")
    adjusted, running = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


@dataclass(frozen=True)
class Thresholds:
    """What decides about a claim, fixed before the runs: it stands in a study's config.

    Attributes:
        margin: The smallest difference that counts, in the values' unit; 0 if any does.
        alpha: Accepted chance of any false "matches", and of any false "differs", among what is judged together.

    Raises:
        ValueError: If `margin` is negative or `alpha` not between 0 and 1.
    """

    margin: float
    alpha: float = 0.05

    def __post_init__(self) -> None:
        _at_least_zero("margin", self.margin)
        _inside("alpha", self.alpha, 0, 1)


def judge(
    comparison: Comparison,
    claim: Claim,
    thresholds: Thresholds,
    value: float | None = None,
    tolerance: float | None = None,
) -> Verdict:
    """Judge one claim about one comparison.

    With the confidence interval of the mean difference at level 1 − alpha:

    - `"greater"`, the method is better: *differs* if the interval lies below `margin` (the gain, if there is one, is
      smaller than what counts, even where it is surely not zero); else *matches* if the interval lies above 0.
    - `"not-greater"`: the same with the two verdicts swapped.
    - `"about"`, the difference is `value` to within `tolerance`: *matches* if the interval lies between
      value − tolerance and value + tolerance; *differs* if it lies outside of them.

    Else *undecided*; with one pair always.

    Args:
        comparison: From `compare`.
        claim: What is claimed.
        thresholds: What decides.
        value: The claimed difference, for `"about"` only.
        tolerance: How far from it still agrees, for `"about"` only.

    Raises:
        ValueError: If the claim is unknown, or `value` and `tolerance` don't go with it.
    """
    return judge_all({"": comparison}, claim, thresholds, value, tolerance)[""]


def judge_all(
    comparisons: Mapping[str, Comparison],
    claim: Claim,
    thresholds: Thresholds,
    value: float | None = None,
    tolerance: float | None = None,
) -> dict[str, Verdict]:
    """Judge one claim about several comparisons, such as one a rank, adjusted for their number.

    The rules are those of `judge`, each read as a test: "the interval lies above x" is "the mean does, and p against x
    is below alpha". Those p are adjusted by Holm's method, once over what would speak for the claim, once over what
    would speak against it: the chance of any false "matches" is at most alpha, and so is that of any false "differs".

    Raises:
        ValueError: If the claim is unknown, or `value` and `tolerance` don't go with it.
    """
    if claim not in ("greater", "not-greater", "about"):
        raise ValueError(f"claim: expected 'greater', 'not-greater' or 'about', got {claim!r}")
    if claim == "about":
        if value is None or tolerance is None:
            raise ValueError(f"claim 'about': needs value and tolerance, got {value!r} and {tolerance!r}")
        if not math.isfinite(value):
            raise ValueError(f"value: expected a finite number, got {value!r}")
        _at_least_zero("tolerance", tolerance)
        left, right = value - tolerance, value + tolerance
        inside = holm({key: max(_p_above(one, left), _p_below(one, right)) for key, one in comparisons.items()})
        outside = holm({key: min(_p_below(one, left), _p_above(one, right)) for key, one in comparisons.items()})
        return {key: _decide(inside[key], outside[key], thresholds.alpha) for key in comparisons}
    if value is not None or tolerance is not None:
        raise ValueError(f"claim {claim!r}: takes no value and no tolerance, got {value!r} and {tolerance!r}")
    gain = holm({key: _p_above(one, 0.0) for key, one in comparisons.items()})
    # First, for a gain that is sure and too small to count is no support.
    no_gain = holm({key: _p_below(one, thresholds.margin) for key, one in comparisons.items()})
    verdicts = {key: _decide(no_gain[key], gain[key], thresholds.alpha) for key in comparisons}
    opposite: dict[Verdict, Verdict] = {"matches": "differs", "differs": "matches", "undecided": "undecided"}
    return verdicts if claim == "not-greater" else {key: opposite[verdict] for key, verdict in verdicts.items()}


def _decide(p_for: float, p_against: float, alpha: float) -> Verdict:
    if p_for < alpha:
        return "matches"
    return "differs" if p_against < alpha else "undecided"


def _p_above(comparison: Comparison, difference: float) -> float:
    return comparison.p_against(difference) if comparison.mean > difference else 1.0


def _p_below(comparison: Comparison, difference: float) -> float:
    return comparison.p_against(difference) if comparison.mean < difference else 1.0


def first_reach(iterations: Any, values: Any, threshold: float) -> np.ndarray:
    """Return for each run the iteration at which its curve first reaches a threshold.

    Between recorded points curves are straight lines. For a curve that falls, negate values and threshold.

    Args:
        iterations: `[t]`, increasing.
        values: `[runs, t]`.
        threshold: What is to be reached, in the values' unit.

    Returns:
        `[runs]`; infinity for a run that never reaches it: to compare, put a number there, such as the last iteration.

    Raises:
        ValueError: If the shapes don't go together, a number is not finite, or the iterations don't increase.
    """
    steps, curves = _curves(iterations, values)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold: expected a finite number, got {threshold!r}")
    reached = curves >= threshold
    after = reached.argmax(axis=1)
    before = np.maximum(after - 1, 0)
    runs = np.arange(len(curves))
    left, right = curves[runs, before], curves[runs, after]
    # A run that is there from the start has no point before, hence no rise.
    share = np.divide(threshold - left, right - left, out=np.ones(len(curves)), where=(after > 0) & (right > left))
    found = steps[before] + share * (steps[after] - steps[before])
    return np.where(reached.any(axis=1), found, math.inf)


@dataclass(frozen=True)
class Trend:
    """Whether a quantity grows with another, by seeds.

    Attributes:
        rho: Spearman's rank correlation for each seed, `[seeds]`; 0 where all values are tied. To judge the trend,
            `compare` them with zeros.
        p: One-sided p of Page's test for a rise; exact up to 8 points and 12 seeds, and too large where values tie.
        ordered: Share of the pairs of points, over all seeds, in which the larger x has the larger y; a tie in y counts
            half.
    """

    rho: np.ndarray
    p: float
    ordered: float


def trend(x: Any, y: Any) -> Trend:
    """Ask whether y rises with x.

    Args:
        x: `[k]`, all different, in any order.
        y: `[seeds, k]`.

    Raises:
        ValueError: If there are fewer than two seeds or three points, two x are equal, the shapes don't go together,
            or a number is not finite.
    """
    points, heights = _numbers("x", x, 1), _numbers("y", y, 2)
    seeds, k = heights.shape
    if k != len(points) or k < 3 or seeds < 2:
        raise ValueError(
            f"trend: expected x [k] and y [seeds, k] with k >= 3 and seeds >= 2, got {points.shape} and {heights.shape}"
        )
    if len(np.unique(points)) < k:
        raise ValueError(f"x: expected numbers that are all different, got {points.tolist()}; average y over equal x")
    heights = heights[:, points.argsort()]
    ranks = stats.rankdata(heights, axis=1) - (k + 1) / 2
    centred = np.arange(k) - (k - 1) / 2
    size = np.linalg.norm(ranks, axis=1) * np.linalg.norm(centred)
    later, earlier = np.tril_indices(k, -1)
    return Trend(
        rho=np.divide(ranks @ centred, size, out=np.zeros(seeds), where=size > 0),
        p=float(stats.page_trend_test(heights).pvalue),
        ordered=float((np.sign(heights[:, later] - heights[:, earlier]).mean() + 1) / 2),
    )


def _numbers(name: str, values: Any, dimensions: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers in rows of equal length, got {values!r}") from None
    if array.ndim != dimensions or array.size == 0:
        raise ValueError(f"{name}: expected an array of {dimensions} dimension(s), not empty, got shape {array.shape}")
    if not np.isfinite(array).all():
        wrong = array[~np.isfinite(array)][0]
        raise ValueError(f"{name}: expected finite numbers, got {wrong}; give a run that diverged the worst value")
    return array


def _curves(iterations: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    steps, curves = _numbers("iterations", iterations, 1), _numbers("values", values, 2)
    if curves.shape[1] != len(steps):
        raise ValueError(
            f"values: expected [runs, t] with one number for each of the {len(steps)} iterations, got {curves.shape}"
        )
    if not (np.diff(steps) > 0).all():
        raise ValueError(f"iterations: expected numbers that increase, got {steps.tolist()}")
    return steps, curves


def _inside(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ValueError(f"{name}: expected a number between {low} and {high}, got {value!r}")


def _at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a finite number, at least 0, got {value!r}")
