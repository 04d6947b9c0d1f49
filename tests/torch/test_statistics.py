"""The statistics of paired runs: closed forms, simulations with a known truth, invariances, clear errors."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from fop_torch.statistics import (
    Comparison,
    Thresholds,
    compare,
    first_reach,
    holm,
    judge,
    judge_all,
    mean_band,
    trend,
)
from tests.strategies import seeds

#: A simulation's rate may be off by four standard errors.
TRIALS = 2000
CLAIMS = ["greater", "not-greater", "about"]


def noise(rate: float) -> float:
    return 4 * math.sqrt(rate * (1 - rate) / TRIALS)


@st.composite
def pairs(draw, low: int = 2, high: int = 8):
    """`(method, baseline)`: accuracies of two methods over the same seeds, often counted in steps, sometimes tied."""
    n, rng = draw(st.integers(low, high)), np.random.default_rng(draw(seeds))
    baseline = 0.9 + 0.01 * rng.standard_normal(n)
    method = baseline + 0.01 * rng.standard_normal(n) + draw(st.sampled_from([0, 0.005, -0.005, 0.03]))
    digits = draw(st.sampled_from([15, 4, 2]))
    method, baseline = method.round(digits), baseline.round(digits)
    assume(np.ptp(method - baseline) > 1e-9)
    return method, baseline


def sample(shift: float, n: int = 5, seed: int = 0, trials: int = TRIALS) -> list[Comparison]:
    """Comparisons whose differences are standard normal around `shift`."""
    rng = np.random.default_rng(seed)
    return [compare(row + shift, np.zeros(n)) for row in rng.standard_normal((trials, n))]


# Comparisons


@given(pairs(high=20))
def test_paired_t_and_welch_are_scipys(runs):
    ours, theirs = runs
    found = compare(*runs, level=0.9)
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.9)
    assert found.p == pytest.approx(test.pvalue, rel=1e-7)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-12)
    assert found.deviation == pytest.approx((ours - theirs).std(ddof=1))
    assert found.effect == pytest.approx(found.mean / found.deviation)
    if np.ptp(ours) > 1e-9 and np.ptp(theirs) > 1e-9:
        welch = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
        assert found.p_welch == pytest.approx(welch, rel=1e-7)


def closed_form(t: float, freedom: int) -> float:
    """Student's distribution function at t, for the degrees of freedom that have a short formula."""
    if freedom == 1:
        return 0.5 + math.atan(t) / math.pi
    if freedom == 2:
        return 0.5 + t / (2 * math.sqrt(2 + t * t))
    share = t * t / (4 + t * t)
    return 0.5 + 0.75 * math.copysign(math.sqrt(share), t) * (1 - share / 3)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("against", [0.0, 0.7, -2.0])
def test_p_is_the_closed_form(n, against):
    differences = np.random.default_rng(n).standard_normal(n)
    found = compare(differences, np.zeros(n))
    t = (differences.mean() - against) / math.sqrt(differences.var(ddof=1) / n)
    assert found.p_against(against) == pytest.approx(2 * (1 - closed_form(abs(t), n - 1)), rel=1e-9)
    assert found.p_against(found.high) == pytest.approx(0.05) == found.p_against(found.low)


@given(pairs(high=10))
def test_sign_flip_counts_every_flip(runs):
    # Whole steps, in which sums are exact.
    ours, theirs = (np.round(values * 1e4) for values in runs)
    differences = [int(d) for d in ours - theirs]
    sums = [abs(sum(flipped)) for flipped in itertools.product(*((d, -d) for d in differences))]
    expected = sum(s >= abs(sum(differences)) for s in sums) / len(sums)
    assert compare(ours, theirs).p_sign_flip == expected
    # The same in fractions: rounding doesn't part what is equal.
    assert compare(ours / 1e4, theirs / 1e4).p_sign_flip == expected


def test_sign_flip_is_scipys_where_nothing_ties():
    for n in (2, 5, 9):
        differences = np.random.default_rng(n).standard_normal(n) + 0.5
        theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert compare(differences, np.zeros(n)).p_sign_flip == pytest.approx(theirs.pvalue)


def test_five_runs_cannot_give_a_small_p_without_the_normal_distribution():
    found = compare([1.0, 1.001, 1.002, 1.003, 1.004], np.zeros(5))
    assert found.p < 1e-4
    assert found.p_sign_flip == found.smallest_p_sign_flip == 2 / 2**5


def test_many_pairs_draw_their_flips():
    rng = np.random.default_rng(0)
    sure, unsure = compare(rng.normal(3, 1, 40), np.zeros(40)), compare(rng.normal(0.2, 1, 40), np.zeros(40))
    assert sure.p_sign_flip == sure.smallest_p_sign_flip == 1e-4
    assert unsure.p_sign_flip == pytest.approx(unsure.p, abs=0.03)


@given(pairs(), st.floats(-3, 3), st.floats(0.01, 100), seeds)
def test_shift_scale_and_order_of_seeds_change_nothing(runs, shift, scale, seed):
    ours, theirs = runs
    order = np.random.default_rng(seed).permutation(len(ours))
    plain = asdict(compare(ours, theirs))
    moved = asdict(compare(scale * (ours[order] + shift), scale * (theirs[order] + shift)))
    for name in ("mean", "deviation", "low", "high"):
        assert moved.pop(name) == pytest.approx(scale * plain.pop(name), rel=1e-6, abs=1e-12 * scale)
    # Ties are judged exactly, and the shift's rounding may break them.
    tied = abs(moved.pop("superiority") - plain.pop("superiority"))
    assert tied <= np.isclose(ours, theirs, rtol=0, atol=1e-12).mean() / 2 + 1e-12
    assert moved == pytest.approx(plain, rel=1e-6, abs=1e-9)


@given(pairs())
def test_swapping_the_methods_mirrors_everything(runs):
    one, other = compare(*runs), compare(*runs[::-1])
    assert (other.mean, other.low, other.high, other.effect) == (-one.mean, -one.high, -one.low, -one.effect)
    assert (other.p, other.p_sign_flip, other.p_welch) == pytest.approx((one.p, one.p_sign_flip, one.p_welch))
    assert other.superiority == pytest.approx(1 - one.superiority)


def test_superiority_counts_seeds_and_halves_ties():
    assert compare([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 2.0, 5.0]).superiority == 0.625


def test_differences_that_are_all_the_same():
    ours = 0.1 + np.arange(5) / 10
    sure, none, zero = compare(ours + 0.3, ours), compare(ours, ours), compare(np.zeros(5), np.zeros(5))
    assert sure.low == pytest.approx(sure.high) == pytest.approx(0.3)
    assert sure.p < 1e-12
    for equal in (none, zero):
        assert (equal.mean, equal.p, equal.p_sign_flip, equal.p_welch, equal.superiority) == (0, 1, 1, 1, 0.5)
    # A margin that equals the difference is not told from it by rounding.
    assert sure.p_against(0.3) > 0.4


def test_coarse_values_are_not_taken_as_certain():
    # Two seeds that gain the same step of 0.01, which any two values may do by chance.
    ours, theirs = [0.91, 0.92], [0.90, 0.91]
    assert compare(ours, theirs).p < 1e-12
    coarse = compare(ours, theirs, resolution=0.01)
    assert coarse.deviation == pytest.approx(0.01 / math.sqrt(6))
    assert coarse.p > 0.15
    # Values far finer than their spread are not touched.
    wide = [0.5, 0.9], [0.1, 0.2]
    assert compare(*wide, resolution=1e-4) == compare(*wide)


def test_the_t_interval_holds_the_truth_and_the_bootstrap_of_five_does_not():
    inside = [one.low <= 0.3 <= one.high for one in sample(0.3)]
    assert np.mean(inside) == pytest.approx(0.95, abs=noise(0.95))
    draws = np.random.default_rng(0).standard_normal((TRIALS, 5))
    for method in ("percentile", "BCa"):
        low, high = stats.bootstrap(
            (draws,), np.mean, axis=-1, n_resamples=500, method=method, rng=np.random.default_rng(1)
        ).confidence_interval
        assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.84, abs=0.03)


# Bands


def test_band_is_narrow_by_less_than_the_usual_bootstrap():
    for n, expected in ((3, 0.75), (5, 0.92)):
        band = mean_band(np.random.default_rng(n).standard_normal((n, TRIALS)))
        assert np.mean((band.low <= 0) & (band.high >= 0)) == pytest.approx(expected, abs=0.03)


def test_band_of_ten_runs_is_as_wide_as_the_t_interval():
    curves = np.random.default_rng(0).standard_normal((10, 400))
    band = mean_band(curves, level=0.9)
    low, high = stats.ttest_1samp(curves, 0, axis=0).confidence_interval(0.9)
    assert band.mean == pytest.approx(curves.mean(axis=0))
    # Without the factor sqrt(n / (n - 1)) it is 0.95.
    assert np.mean((band.high - band.low) / (high - low)) == pytest.approx(1, abs=0.02)


@given(st.integers(2, 6), st.integers(1, 5), seeds, st.floats(-5, 5), st.floats(0.1, 10))
def test_band_lies_within_the_span_and_moves_with_the_curves(runs, points, seed, shift, scale):
    curves = np.random.default_rng(seed).standard_normal((runs, points))
    band, moved = mean_band(curves), mean_band(shift + scale * curves)
    eps = 1e-12
    assert (curves.min(axis=0) - eps <= band.low).all()
    assert (band.low <= band.mean).all()
    assert (band.mean <= band.high).all()
    assert (band.high <= curves.max(axis=0) + eps).all()
    for one, other in ((band.low, moved.low), (band.mean, moved.mean), (band.high, moved.high)):
        assert other == pytest.approx(shift + scale * one, abs=1e-9)
    # A point's band is its own.
    assert mean_band(curves[:, :1]).low == pytest.approx(band.low[:1])


def test_one_run_has_no_band():
    band = mean_band([[1.0, 2.0]])
    assert band.mean.tolist() == [1, 2]
    assert np.isnan([band.low, band.high]).all()


# Holm


def test_holm_on_the_example_of_statsmodels():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(holm(p)) == list(p)
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(values):
    # A hypothesis falls when every set of hypotheses that holds it falls by Bonferroni.
    found = holm({str(i): p for i, p in enumerate(values)})
    for i, p in enumerate(values):
        others = [j for j in range(len(values)) if j != i]
        sets = [{i, *rest} for size in range(len(values)) for rest in itertools.combinations(others, size)]
        expected = max(min(1.0, len(s) * min(values[j] for j in s)) for s in sets)
        assert found[str(i)] == pytest.approx(expected)
        assert found[str(i)] >= p
    ordered = [found[str(i)] for i in np.argsort(values)]
    assert ordered == sorted(ordered)


# Verdicts


def by_interval(low: float, high: float, claim: str, margin: float, value: float, tolerance: float) -> str:
    """The rules as `judge` documents them, read from the interval."""
    if claim == "about":
        if value - tolerance < low and high < value + tolerance:
            return "matches"
        return "differs" if high < value - tolerance or low > value + tolerance else "undecided"
    if high < margin:
        return "differs" if claim == "greater" else "matches"
    if low > 0:
        return "matches" if claim == "greater" else "differs"
    return "undecided"


@given(
    pairs(), st.sampled_from(CLAIMS), st.floats(0.001, 0.5), st.floats(0, 0.02), st.floats(-0.02, 0.02),
    st.floats(0, 0.05),
)  # fmt: skip
def test_judge_reads_the_interval(runs, claim, alpha, margin, value, tolerance):
    interval = compare(*runs, level=1 - alpha)
    edges = np.array([0, margin, value - tolerance, value + tolerance])
    # An end that falls on an edge is decided by rounding.
    assume(np.abs(np.subtract.outer([interval.low, interval.high], edges)).min() > 1e-12)
    about = (value, tolerance) if claim == "about" else ()
    found = judge(compare(*runs), claim, Thresholds(margin, alpha), *about)
    assert found == by_interval(interval.low, interval.high, claim, margin, value, tolerance)


@pytest.mark.parametrize(
    ("differences", "greater", "not_greater"),
    [
        ([0.010, 0.011, 0.012, 0.013, 0.014], "matches", "differs"),
        ([-0.010, -0.011, -0.012, -0.013, -0.014], "differs", "matches"),
        ([0.0010, 0.0011, 0.0012, 0.0013, 0.0014], "differs", "matches"),
        ([-0.02, -0.01, 0.0, 0.01, 0.03], "undecided", "undecided"),
        ([0.004, 0.005, 0.005, 0.006, 0.006], "matches", "differs"),
        ([0.0] * 5, "differs", "matches"),
    ],
    ids=["gain", "loss", "gain too small to count", "noise", "gain around the margin", "diverged alike"],
)  # fmt: skip
def test_verdicts_on_a_gain(differences, greater, not_greater):
    found = compare(differences, np.zeros(5))
    thresholds = Thresholds(margin=0.005)
    assert judge(found, "greater", thresholds) == greater
    assert judge(found, "not-greater", thresholds) == not_greater


@pytest.mark.parametrize(
    ("value", "tolerance", "verdict"),
    [(0.006, 0.002, "matches"), (0.02, 0.002, "differs"), (-0.02, 0.002, "differs"), (0.006, 0.0001, "undecided")],
)
def test_verdicts_on_a_value(value, tolerance, verdict):
    found = compare([0.0055, 0.006, 0.0065, 0.006, 0.0061], np.zeros(5))
    assert judge(found, "about", Thresholds(margin=0.0), value, tolerance) == verdict


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("gain", [-1e6, 0.0, 1e6])
def test_one_pair_decides_nothing(claim, gain):
    found = compare([gain], [0.0])
    assert (found.n, found.low, found.high) == (1, -math.inf, math.inf)
    assert found.p == found.p_welch == found.p_sign_flip == found.smallest_p_sign_flip == 1
    assert math.isnan(found.effect)
    about = (0.0, 1.0) if claim == "about" else ()
    assert judge(found, claim, Thresholds(margin=1.0), *about) == "undecided"


def test_false_verdicts_are_as_rare_as_alpha_says():
    thresholds = Thresholds(margin=1.0)
    no_gain = [judge(one, "greater", thresholds) for one in sample(0.0)]
    # Two-sided p: half of alpha falls on this side.
    assert np.mean([v == "matches" for v in no_gain]) == pytest.approx(0.025, abs=noise(0.025))
    just_counts = [judge(one, "greater", thresholds) for one in sample(1.0, seed=1)]
    assert np.mean([v == "differs" for v in just_counts]) == pytest.approx(0.025, abs=noise(0.025))
    edge = [judge(one, "about", thresholds, 2.0, 1.0) for one in sample(1.0, n=10, seed=2)]
    assert np.mean([v == "matches" for v in edge]) <= 0.025 + noise(0.025)
    assert np.mean([v == "differs" for v in edge]) <= 0.025 + noise(0.025)


@pytest.mark.parametrize("gain", [0.8, 2.0])
def test_power_is_that_of_the_noncentral_t(gain):
    verdicts = [judge(one, "greater", Thresholds(margin=0.0)) for one in sample(gain)]
    power = stats.nct.sf(stats.t.ppf(0.975, 4), 4, gain * math.sqrt(5))
    assert np.mean([v == "matches" for v in verdicts]) == pytest.approx(power, abs=noise(power))


def test_several_comparisons_err_together_with_alpha():
    wrong, alone, thresholds = [], [], Thresholds(margin=0.0)
    for family in np.reshape(np.array(sample(0.0), dtype=object), (-1, 5)):
        together = judge_all(dict(zip("abcde", family, strict=True)), "greater", thresholds)
        wrong.append("matches" in together.values())
        alone.append("matches" in [judge(one, "greater", thresholds) for one in family])
    assert np.mean(wrong) <= 0.025 + noise(0.025) * math.sqrt(5) < np.mean(alone)


@given(st.lists(pairs(), min_size=1, max_size=4), st.sampled_from(CLAIMS))
def test_more_comparisons_never_make_a_verdict_bolder(several, claim):
    about = (0.005, 0.01) if claim == "about" else ()
    comparisons = {str(i): compare(*runs) for i, runs in enumerate(several)}
    thresholds = Thresholds(margin=0.0)
    for key, verdict in judge_all(comparisons, claim, thresholds, *about).items():
        assert verdict in (judge(comparisons[key], claim, thresholds, *about), "undecided")


# Curves


def test_first_reach_by_hand():
    steps = [0, 10, 30]
    curves = [[0.0, 1.0, 2.0], [2.0, 0.0, 0.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    assert first_reach(steps, curves, 1.0).tolist() == [10, 0, 30, math.inf, 5]
    # A loss that falls, negated.
    assert first_reach(steps, -np.array([[3.0, 1.0, 1.0]]), -2.0).tolist() == [5]


@given(st.integers(1, 6), st.integers(1, 3), seeds, st.floats(-1, 1))
def test_first_reach_is_where_the_curve_crosses(points, runs, seed, threshold):
    rng = np.random.default_rng(seed)
    steps, curves = np.cumsum(rng.uniform(0.1, 9, points)), rng.standard_normal((runs, points)).round(1)
    for reached, curve in zip(first_reach(steps, curves, threshold), curves, strict=True):
        if math.isinf(reached):
            assert curve.max() < threshold
            continue
        assert (curve[steps < reached - 1e-9] < threshold).all()
        if curve[0] >= threshold:
            assert reached == steps[0]
        else:
            assert np.interp(reached, steps, curve) == pytest.approx(threshold, abs=1e-9)


# Trends


def test_trend_counts_every_order():
    # Page's p for two seeds and three points: of all 36 pairs of orders, those with an L as large.
    def L(rows):
        return sum((j + 1) * rank for row in rows for j, rank in enumerate(row))

    every = [L(rows) for rows in itertools.product(itertools.permutations([1, 2, 3]), repeat=2)]
    for rows in ([(1, 2, 3), (1, 3, 2)], [(1, 2, 3), (1, 2, 3)], [(3, 2, 1), (2, 1, 3)]):
        expected = sum(value >= L(rows) for value in every) / 36
        assert trend([1, 2, 3], rows).p == pytest.approx(expected)


@given(st.integers(2, 5), st.integers(3, 6), seeds)
def test_trend_is_spearman_kendall_and_page(runs, k, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.permutation(k) * 1.5, rng.standard_normal((runs, k))
    found = trend(x, y)
    assert found.rho == pytest.approx([stats.spearmanr(x, row).statistic for row in y])
    # Without ties Page's L and the mean of Spearman's rho are the same up to scale.
    statistic = stats.page_trend_test(y[:, np.argsort(x)]).statistic
    rho = 12 * statistic / (runs * k * (k * k - 1)) - 3 * (k + 1) / (k - 1)
    assert found.rho.mean() == pytest.approx(rho)
    assert found.ordered == pytest.approx(np.mean([(stats.kendalltau(x, row).statistic + 1) / 2 for row in y]))
    order = rng.permutation(k)
    moved = trend(np.exp(x[order]), np.exp(y[rng.permutation(runs)][:, order]))
    assert (moved.p, moved.ordered) == pytest.approx((found.p, found.ordered))
    falling = trend(-x, y)
    assert falling.rho == pytest.approx(-found.rho)
    assert falling.ordered == pytest.approx(1 - found.ordered)


def test_trend_can_be_judged():
    ranks = [1, 4, 25, 100, 784]
    rising = trend(ranks, np.log(ranks) + np.arange(5)[:, None])
    assert rising.rho == pytest.approx(np.ones(5))
    assert rising.ordered == 1
    assert rising.p < 1e-6
    flat = trend(ranks, np.ones((5, 5)))
    assert (flat.rho.tolist(), flat.ordered) == ([0.0] * 5, 0.5)
    assert flat.p > 0.5
    thresholds = Thresholds(margin=0.3)
    assert judge(compare(rising.rho, np.zeros(5), resolution=0.1), "greater", thresholds) == "matches"
    assert judge(compare(flat.rho, np.zeros(5), resolution=0.1), "greater", thresholds) == "differs"


# Bad input

GOOD = [0.9, 0.91, 0.92]
FINE = compare(GOOD, [0.8, 0.82, 0.85])
LIMITS = Thresholds(margin=0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare(GOOD, [0.9, math.nan, 0.8]), "baseline: expected finite numbers, got nan; give a run that"),
        (lambda: compare([0.9, math.inf, 0.8], GOOD), "method: expected finite numbers, got inf"),
        (lambda: compare(GOOD, GOOD[:2]), "expected the same seeds, got 3 and 2 values; leave out"),
        (lambda: compare([], []), r"method: expected an array of 1 dimension\(s\), not empty, got shape \(0,\)"),
        (lambda: compare([GOOD], [GOOD]), "method: expected an array of 1 dimension"),
        (lambda: compare(["a"], [1.0]), r"method: expected numbers in rows of equal length, got \['a'\]"),
        (lambda: compare(GOOD, GOOD, level=95), "level: expected a number between 0 and 1, got 95"),
        (lambda: compare(GOOD, GOOD, level=math.nan), "level: expected a number between 0 and 1, got nan"),
        (lambda: compare(GOOD, GOOD, resolution=-1.0), "resolution: expected a finite number, at least 0, got -1.0"),
        (lambda: mean_band(GOOD), "values: expected an array of 2 dimension"),
        (lambda: mean_band([GOOD, [1.0]]), "values: expected numbers in rows of equal length"),
        (lambda: mean_band([GOOD], level=1), "level: expected a number between 0 and 1, got 1"),
        (lambda: holm({"a": 0.1, "b": math.nan}), r"p_values: expected numbers in \[0, 1\], got nan for 'b'"),
        (lambda: holm({"a": 1.2}), "got 1.2 for 'a'"),
        (lambda: Thresholds(margin=-0.1), "margin: expected a finite number, at least 0, got -0.1"),
        (lambda: Thresholds(margin=0.0, alpha=0.0), "alpha: expected a number between 0 and 1, got 0.0"),
        (lambda: judge(FINE, "better", LIMITS), "claim: expected 'greater', 'not-greater' or 'about', got 'better'"),
        (lambda: judge(FINE, "about", LIMITS), "claim 'about': needs value and tolerance, got None and None"),
        (lambda: judge(FINE, "about", LIMITS, math.nan, 1.0), "value: expected a finite number, got nan"),
        (lambda: judge(FINE, "about", LIMITS, 0.1, -1.0), "tolerance: expected a finite number, at least 0, got -1.0"),
        (lambda: judge(FINE, "greater", LIMITS, 0.1), "claim 'greater': takes no value and no tolerance, got 0.1"),
        (lambda: first_reach([1, 2], [GOOD], 0.9), "one number for each of the 2 iterations, got"),
        (lambda: first_reach([1, 1, 2], [GOOD], 0.9), "iterations: expected numbers that increase, got"),
        (lambda: first_reach([1, 2, 3], [GOOD], math.nan), "threshold: expected a finite number, got nan"),
        (lambda: trend([1, 2], [[1, 2], [2, 3]]), r"with k >= 3 and seeds >= 2, got \(2,\) and \(2, 2\)"),
        (lambda: trend([1, 2, 3], [[1, 2, 3]]), "seeds >= 2"),
        (lambda: trend([1, 2, 3], [[1, 2], [2, 3]]), r"got \(3,\) and \(2, 2\)"),
        (lambda: trend([1, 1, 2], [GOOD, GOOD]), "x: expected numbers that are all different"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
