"""What the runs for Figures A.1 and A.2 say: pure functions from records to numbers, and from those to verdicts.

Nothing is drawn here and no number is typed: the chapter, the ledger's tests and `fop report mnist` all read these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from fop_theory.angles import widest_angle
from fop_torch.results import Record
from fop_torch.statistics import (
    Comparison,
    Thresholds,
    Trend,
    compare,
    judge,
    judge_all,
    trend,
)
from fop_torch.studies import provenance, reading
from fop_torch.studies.mnist.train import RANKS, STUDY, Config, best_lr, grid
from fop_torch.studies.reading import (
    ANY,
    Finding,
    MissingRunsError,
    all_of,
    curves,
    facts,
    final,
    interval,
    number,
    paired,
    reach,
    speed,
    text,
    told,
)

LAYERS = (1, 2, 3, 4)
#: Ranks that have the controls.
FROZEN_RANKS, MATCHED_RANKS, TUNED_RANKS = (784, 25), (784, 25, 1), (784, 25)


@dataclass(frozen=True)
class Rules:
    """What decides. Each family of comparisons named here is adjusted together (Holm).

    Fixed before the runs: the margin of accuracy, every alpha, both levels, the ranks, and what the rows give. Settled
    when the first runs were in view, before the controls: the rest, in particular `axis`, a second reading of
    "slightly" beside `apart`; both are judged. Added last, to hold the claim to its letter: that each single rank is
    better than the next smaller one.

    Attributes:
        accuracy: In percentage points of test accuracy. Families: each rank against momentum; each control.
        speed: In iterations; a difference below one record does not count. Families: each rank against momentum.
        order: Of Spearman's rank correlation with the rank k, seed by seed.
        resolution: Step of an accuracy on 10,000 images, in percentage points.
        fast: Test accuracy by which "training" is timed, in percent.
        initial: The one by which "initial training" is timed.
        low_ranks: "Fairly low" ranks.
        very_low_ranks: "Very low" ranks.
        p: The caption's.
        gain: The caption's gain at full rank in percentage points, and the tolerance of its row.
        angles: The figure's mean angles in degrees, by layer, and the tolerance of their rows.
        angle_tolerance: See `angles`.
        apart: Degrees between the extreme runs, mean over the records, up to which an angle varies "slightly".
        axis: The degrees between which the figure draws its bands: another reading, what stays there varies "slightly".
        usually: Share of the records at which the bands must stay there.
        slightly: What is "slightly below 45°" is at most so many degrees below.
        law: Share of the promised growth by which the trace may miss it at the largest batch.
    """

    accuracy: Thresholds = field(default_factory=lambda: Thresholds(margin=0.1))
    speed: Thresholds = field(default_factory=lambda: Thresholds(margin=200))
    order: Thresholds = field(default_factory=lambda: Thresholds(margin=0.5))
    resolution: float = 0.01
    fast: float = 95.0
    initial: float = 90.0
    low_ranks: tuple[int, ...] = (25, 4)
    very_low_ranks: tuple[int, ...] = (4, 1)
    p: float = 1e-4
    gain: tuple[float, float] = (0.6, 0.2)
    angles: tuple[tuple[int, float], ...] = ((2, 43.16), (4, 42.48))
    angle_tolerance: float = 1.0
    apart: float = 5.0
    axis: tuple[float, float] = (36.0, 50.0)
    usually: float = 0.95
    slightly: float = 5.0
    law: float = 0.1


RULES = Rules()
# ---------------------------------------------------------------------------------------
# Which runs


def pick(records: Sequence[Record], method: str, rank: int = 0, **settings: Any) -> list[Record]:
    """The runs of one method and rank, by seed; what is not set has its default, the iterations are the longest.

    Raises:
        MissingRunsError: If there are none.
    """
    longest = max((record.config["iterations"] for record in records), default=0)
    wanted = asdict(Config(method, 0, rank)) | {"iterations": longest} | settings
    free = {"seed", "gains", "stand_in"}
    group = [r for r in records if all(r.config[key] == value for key, value in wanted.items() if key not in free)]
    if not group:
        said = ", ".join(f"{key} {value:g}" for key, value in ({"rank": rank} | settings).items())
        raise MissingRunsError(
            f"no recorded run of {method} ({said}); `fop run mnist --profile laptop`, or paper, makes it"
        )
    return sorted(group, key=lambda record: record.config["seed"])


def on_grid(records: Sequence[Record]) -> list[Record]:
    """The runs of the grid, known by seeds of their own.

    Raises:
        MissingRunsError: If there are none.
    """
    seeds = {config.seed for config in grid()}
    found = [record for record in records if record.config["seed"] in seeds]
    if not found:
        raise MissingRunsError("no recorded run of the grid; `fop run mnist --profile paper` makes them")
    return found


def at_best_lr(records: Sequence[Record], method: str, rank: int = 0) -> list[Record]:
    """A method's runs at the learning rate that the grid found best for it, by validation accuracy.

    Raises:
        MissingRunsError: If the grid or those runs are not recorded.
    """
    lr = best_lr(records, method, rank)
    if lr is None:
        raise MissingRunsError(f"the grid of learning rates for {method} of rank {rank} is not complete")
    return pick(records, method, rank, lr=lr)


# ---------------------------------------------------------------------------------------
# From runs to numbers


def groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Every group of long runs that is recorded, by the name that pages give it."""
    wanted: dict[str, Callable[[], list[Record]]] = {"momentum": lambda: pick(records, "momentum")}
    for method, ranks in (("FOP", RANKS), ("frozen", FROZEN_RANKS), ("matched", MATCHED_RANKS)):
        for rank in ranks:
            wanted[f"{method} {rank}"] = lambda m=method, k=rank: pick(records, m, k)  # type: ignore[misc]
    wanted["momentum, tuned"] = lambda: at_best_lr(records, "momentum")
    for rank in TUNED_RANKS:
        wanted[f"FOP {rank}, tuned"] = lambda k=rank: at_best_lr(records, "FOP", k)  # type: ignore[misc]
    found = {}
    for name, find in wanted.items():
        try:
            found[name] = find()
        except MissingRunsError:
            continue
    return found


def outcomes(records: Sequence[Record]) -> pd.DataFrame:
    """One row a group of long runs: learning rate, seeds, final test accuracy in percent, iterations to both levels.

    NaN for a level that one of the runs never reached.
    """
    rows = {}
    for name, group in groups(records).items():
        accuracy = final(group)
        rows[name] = {
            "lr": group[0].config["lr"], "seeds": len(group), "accuracy": accuracy.mean(), "lowest": accuracy.min(),
            "highest": accuracy.max(),
            **{f"to {level:g} %": reach(group, level) for level in (RULES.initial, RULES.fast)},
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def gains_in_accuracy(ours: Sequence[Record], theirs: Sequence[Record]) -> Comparison:
    """Final test accuracy, ours minus theirs, in percentage points, seed by seed."""
    paired(ours, theirs)
    return compare(final(ours), final(theirs), resolution=RULES.resolution)


def gains_in_speed(ours: Sequence[Record], theirs: Sequence[Record], level: float) -> Comparison:
    """How many iterations sooner ours reach a level, seed by seed."""
    paired(ours, theirs)
    return compare(-speed(ours, level), -speed(theirs, level))


def gains(ours: Sequence[Record], theirs: Sequence[Record], level: float | None = None) -> Comparison:
    """In final accuracy, or in the speed to a level."""
    return gains_in_accuracy(ours, theirs) if level is None else gains_in_speed(ours, theirs, level)


def against_momentum(records: Sequence[Record], level: float | None = None) -> dict[str, Comparison]:
    """FOP of each rank, such as "rank 25", against momentum: final accuracy, or the speed to a level."""
    momentum = pick(records, "momentum")
    return {f"rank {rank}": gains(pick(records, "FOP", rank), momentum, level) for rank in RANKS}


def against_next_rank(records: Sequence[Record], level: float | None = None) -> dict[str, Comparison]:
    """FOP of each rank against the next smaller one, such as "rank 25 over 4": final accuracy, or speed to a level."""
    groups = {rank: pick(records, "FOP", rank) for rank in RANKS}
    return {f"rank {more} over {less}": gains(groups[more], groups[less], level) for more, less in pairwise(RANKS)}


def against_control(records: Sequence[Record], control: str) -> dict[str, Comparison]:
    """Final accuracy of FOP minus that of a control, by rank.

    Args:
        records: The runs.
        control: `"frozen"`, `"matched"`, or `"tuned"`: each method at its best learning rate.
    """
    if control == "tuned":
        momentum = at_best_lr(records, "momentum")
        return {f"rank {rank}": gains_in_accuracy(at_best_lr(records, "FOP", rank), momentum) for rank in TUNED_RANKS}
    ranks = {"frozen": FROZEN_RANKS, "matched": MATCHED_RANKS}[control]
    return {
        f"rank {rank}": gains_in_accuracy(pick(records, "FOP", rank), pick(records, control, rank)) for rank in ranks
    }


def rank_trend(records: Sequence[Record], level: float | None = None) -> Trend:
    """Whether final accuracy, or the speed to a level, grows with the rank."""
    found = [pick(records, "FOP", rank) for rank in RANKS]
    for group in found[1:]:
        paired(group, found[0])
    values = [final(group) if level is None else -speed(group, level) for group in found]
    return trend(RANKS, np.transpose(values))


def angles(group: Sequence[Record]) -> pd.DataFrame:
    """The angle between gradient and preconditioned gradient in degrees, one row a layer.

    Returns:
        `mean` over iterations and seeds; `low` and `high`, its 95 % interval by seeds; `range`: largest minus smallest
        over the seeds, mean over the iterations; `below`: share of records below 45°; `bound`: mean of the largest
        angle that the condition number allows.
    """
    rows = {}
    for layer in LAYERS:
        _, values = curves(group, "angle", layer)
        _, condition = curves(group, "condition", layer)
        level = compare(values.mean(axis=1), np.zeros(len(values)))
        rows[layer] = {
            "mean": level.mean, "low": level.low, "high": level.high, "range": np.ptp(values, axis=0).mean(),
            "below": (values < 45).mean(), "bound": np.vectorize(widest_angle)(condition).mean(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def turned_by_learning(records: Sequence[Record], rank: int = 784) -> dict[str, Comparison]:
    """By how many degrees a learned M turns the gradient further than its frozen start, by layer, over the run."""
    learned, frozen = pick(records, "FOP", rank), pick(records, "frozen", rank)
    paired(learned, frozen)
    return {
        f"layer {layer}": compare(*(curves(group, "angle", layer)[1].mean(axis=1) for group in (learned, frozen)))
        for layer in LAYERS
    }


def sizes(group: Sequence[Record]) -> pd.DataFrame:
    """Step-length gain |GP|/|G|, condition number and trace of M M^T, first and last, means over seeds, by layer."""
    rows = {}
    for layer in LAYERS:
        each = {name: curves(group, name, layer)[1].mean(axis=0) for name in ("gain", "condition", "trace")}
        rows[layer] = {f"{name}, {end}": v[at] for name, v in each.items() for end, at in (("first", 0), ("last", -1))}
    return pd.DataFrame.from_dict(rows, orient="index")


def law(records: Sequence[Record]) -> dict[int, dict[str, np.ndarray]]:
    """How `tr M M^T` of the whole network grew under plain gradient steps, by batch size.

    Returns:
        For each batch size, over the iterations `[t]` at which everything was measured: `iterations`; `grown`: the
        trace minus its start, `[seeds, t]`; `promised`: the law's sum over the steps, `[seeds, t]`; `limit`:
        `4 rho (J_0 - J)` by the validation loss, `[seeds, t]`. The start is taken from the first record and what was
        promised until then.
    """
    batches = sorted({r.config["batch"] for r in records if r.config["method"] == "law"})
    if not batches:
        raise MissingRunsError("no recorded run of the conservation law; `fop run mnist --profile paper` makes them")
    found = {}
    for batch in batches:
        group = [r for r in records if r.config["method"] == "law" and r.config["batch"] == batch]
        steps, trace = curves(group, "trace")
        _, promised = curves(group, "promised")
        at, loss = curves(group, "validation_loss")
        both = np.isin(steps, at)
        start = trace[:, :1] - promised[:, :1]
        found[batch] = {
            "iterations": steps[both],
            "grown": (trace - start)[:, both],
            "promised": promised[:, both],
            "limit": 4 * group[0].config["hyper_lr"] * (loss[:, :1] - loss)[:, np.isin(at, steps)],
        }
    return found


def sensitivity(records: Sequence[Record]) -> pd.DataFrame:
    """The grid, one row a setting: mean final test accuracy of its seeds, largest gain of any layer at the end.

    A run that diverged counts as nothing right; `diverged` says how many did.
    """
    runs = on_grid(records)
    keys = ["method", "rank", "hyper_lr", "sigma", "lr"]
    rows = []
    for record in runs:
        gains = [record.curve("gain", str(layer)) for layer in LAYERS]
        gain = max((float(curve.iloc[-1]) for curve in gains if len(curve)), default=1.0)
        gain = gain if record.status == "finished" else np.nan
        rows.append({key: record.config[key] for key in keys} | {
            "accuracy": final([record])[0], "gain": gain, "diverged": int(record.status == "diverged"), "seeds": 1,
        })  # fmt: skip
    return (
        pd.DataFrame(rows)
        .groupby(keys)
        .agg({"accuracy": "mean", "gain": "mean", "diverged": "sum", "seeds": "sum"})
        .reset_index()
    )


# ---------------------------------------------------------------------------------------
# Verdicts


def verdicts(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the runs say about each claim, one finding for each of its parts.

    Raises:
        MissingRunsError: If runs are missing.
    """
    found: dict[str, tuple[Finding, ...]] = {}
    for judged in (_figure_a2, _figure_a1, _controls, _law, _settings):
        found |= judged(records)
    return found


def value(records: Sequence[Record], claim: str) -> float:
    """Our number for a claim whose row gives the paper's.

    Raises:
        KeyError: If the claim is not one of them.
    """
    numbers: dict[str, Callable[[], float]] = {
        "fig-a2-better-by-0-6": lambda: against_momentum(records)["rank 784"].mean,
        **{
            f"fig-a1-layer-{layer}-mean": lambda at=layer: angles(pick(records, "FOP", 784)).loc[at, "mean"]  # type: ignore[misc]
            for layer, _ in RULES.angles
        },
    }
    return float(numbers[claim]())


def _figure_a2(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    accuracy, fast, initial = (against_momentum(records, level) for level in (None, RULES.fast, RULES.initial))
    better = judge_all(accuracy, "greater", RULES.accuracy)
    worse = judge_all(accuracy, "not-greater", RULES.accuracy)
    sooner = judge_all(fast, "greater", RULES.speed)
    started = judge_all(initial, "greater", RULES.speed)

    def sooner_at(ranks: Sequence[int]) -> Finding:
        return all_of(f"sooner at {RULES.fast:g} %, in iterations", _ranks(ranks), sooner, fast)

    faster, finer = against_next_rank(records, RULES.fast), against_next_rank(records)
    step_faster = judge_all(faster, "greater", RULES.speed)
    step_finer = judge_all(finer, "greater", RULES.accuracy)
    full = accuracy["rank 784"]
    small = [full.p < RULES.p, full.p_welch < RULES.p]
    told = f"paired t-test p = {full.p:.1g}, Welch's p = {full.p_welch:.1g}, sign flips p = {full.p_sign_flip:.2g}"
    told += f" (no rank or permutation test of {full.n} pairs gives less than {full.smallest_p_sign_flip:.2g})"
    return {
        "text-a4-accelerates-all-k": (sooner_at(RANKS),),
        "fig-a2-improves-at-low-rank": (sooner_at(RULES.very_low_ranks),),
        "text-2-2-low-rank-effective": (sooner_at(RULES.very_low_ranks),),
        "text-a4-improves-accuracy-low-k": (
            all_of("better at the end, in points", _ranks(RULES.low_ranks), better, accuracy),
        ),
        "fig-a2-larger-k-better": (
            _ordered("speed", rank_trend(records, RULES.fast)),
            _ordered("final accuracy", rank_trend(records)),
            all_of("each sooner than the next smaller, in iterations", faster, step_faster, faster),
            all_of("each better at the end than the next smaller, in points", finer, step_finer, finer),
        ),
        "fig-a2-k-below-4": (
            all_of("no better at the end, in points", _ranks((1,)), worse, accuracy),
            all_of(f"sooner at {RULES.initial:g} %, in iterations", _ranks((1,)), started, initial),
        ),
        "fig-a2-better-by-0-6": (number("gain at full rank", full, RULES.gain, " points"),),
        "fig-a2-p-value": (
            Finding("p-value", "matches" if all(small) else "undecided" if any(small) else "differs", told),
        ),
    }


def _figure_a1(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    group = pick(records, "FOP", 784)
    zeros = np.zeros(len(group))
    printed = {
        f"fig-a1-layer-{layer}-mean": (
            number(
                f"mean angle, layer {layer}",
                compare(curves(group, "angle", layer)[1].mean(axis=1), zeros),
                (mean, RULES.angle_tolerance),
                "°",
            ),
        )
        for layer, mean in RULES.angles
    }
    return printed | {"fig-a1-varies-slightly": _varies(group), "fig-a1-usually-below-45": _below_45(group)}


def _varies(group: Sequence[Record]) -> tuple[Finding, ...]:
    """Two sizes that "slightly" can have."""
    low, high = RULES.axis
    each = {layer: curves(group, "angle", layer)[1] for layer in LAYERS}
    apart = {layer: float(np.ptp(values, axis=0).mean()) for layer, values in each.items()}
    inside = {layer: float(((v >= low) & (v <= high)).all(axis=0).mean()) for layer, v in each.items()}
    return (
        Finding(
            f"extreme runs at most {RULES.apart:g}° apart",
            "matches" if max(apart.values()) <= RULES.apart else "differs",
            f"mean over the records: {_layers(apart, '.1f')}",
        ),
        Finding(
            "bands within the figure's axis",
            "matches" if min(inside.values()) >= RULES.usually else "differs",
            f"share of the records at which all runs lie between {low:g}° and {high:g}°: {_layers(inside, '.0%')}",
        ),
    )


def _below_45(group: Sequence[Record]) -> tuple[Finding, ...]:
    whole = np.stack([curves(group, "angle", layer)[1] for layer in LAYERS], axis=1)  # [seeds, layers, t]
    zeros = np.zeros(len(whole))
    usual = compare((whole < 45).mean(axis=(1, 2)), zeros + 0.5)
    near = compare(whole.mean(axis=(1, 2)), zeros)
    half = RULES.slightly / 2
    shares = dict(zip(LAYERS, (whole < 45).mean(axis=(0, 2)), strict=True))
    means = dict(zip(LAYERS, whole.mean(axis=(0, 2)), strict=True))
    return (
        Finding(
            "usually below 45°",
            judge(usual, "greater", ANY),
            f"share above one half: {interval(usual)}; shares {_layers(shares, '.0%')}",
        ),
        Finding(
            f"by {RULES.slightly:g}° or less",
            judge(near, "about", ANY, 45 - half, half),
            f"mean {interval(near)}°; {_layers(means, '.1f')}",
        ),
    )


def _controls(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What of the gains a control has too.

    The rows that these judge were worded when the runs were known; the margins are those of `RULES`.
    """
    momentum = pick(records, "momentum")
    frozen, matched, tuned = (against_control(records, name) for name in ("frozen", "matched", "tuned"))
    without = {name: gains_in_accuracy(pick(records, name, 784), momentum) for name in ("frozen", "matched")}
    gained = judge_all(without, "greater", RULES.accuracy)
    behind = {
        f"rank {rank}": gains_in_accuracy(pick(records, "matched", rank), pick(records, "FOP", rank))
        for rank in MATCHED_RANKS
    }
    ahead = judge_all(behind, "greater", RULES.accuracy)
    by_rate = gains_in_accuracy(at_best_lr(records, "momentum"), momentum)
    adds_little = judge_all(frozen, "about", RULES.accuracy, 0.0, RULES.accuracy.margin)
    no_better = judge_all({"rank 784": matched["rank 784"]}, "not-greater", RULES.accuracy)
    not_by_tuning = judge_all(tuned, "not-greater", RULES.accuracy)

    def as_printed(name: str) -> tuple[Finding, ...]:
        return (
            all_of(f"{name}: better than momentum, in points", [name], gained, without),
            number(f"{name}: gain at full rank", without[name], RULES.gain, " points"),
        )

    return {
        "ours-mnist-frozen": as_printed("frozen"),
        "ours-mnist-learning-adds": (
            all_of("as good as its frozen start, in points", frozen, adds_little, frozen),
        ),
        "ours-mnist-matched": (
            *as_printed("matched"),
            all_of("momentum with steps as long is better than FOP, in points", _ranks((25,)), ahead, behind),
        ),
        "ours-mnist-direction": (
            all_of("no better than momentum with steps as long, in points", no_better, no_better, matched),
        ),
        "ours-mnist-tuned": (
            all_of("no better than momentum, both at the grid's rates, in points", tuned, not_by_tuning, tuned),
            Finding(
                "momentum gains by its learning rate alone, in points",
                judge(by_rate, "greater", RULES.accuracy),
                f"{interval(by_rate)}, p = {by_rate.p:.1g}",
            ),
        ),
        "ours-mnist-angle-frozen": _below_45(pick(records, "frozen", 784)),
    }  # fmt: skip


def _law(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    found = law(records)
    most, least = max(found), min(found)
    last = {
        batch: {name: each[name][:, -1] for name in ("grown", "promised", "limit")} for batch, each in found.items()
    }
    misses = np.abs(last[most]["grown"] - last[most]["promised"]) / np.abs(last[most]["promised"])
    never_less = all((each["grown"] >= each["promised"]).all() for each in found.values())
    never_more = all((each["grown"] <= each["limit"]).all() for each in found.values())
    noise = compare(last[most]["promised"], last[least]["promised"])
    said = "; ".join(
        f"batch {batch}: grown {each['grown'].mean():+.4f}, promised {each['promised'].mean():+.4f}"
        for batch, each in last.items()
    )
    return {
        "ours-mnist-law": (
            Finding(
                f"grown as promised at batch {most}", "matches" if misses.max() <= RULES.law else "differs",
                f"missed by {misses.max():.1%} of it at most; {said}",
            ),
            Finding(
                "never below what was promised, nor above 4ρΔJ", "matches" if never_less and never_more else "differs",
                f"limit 4ρΔJ at the end {last[most]['limit'].mean():.2f}",
            ),
        ),
        "ours-mnist-noise": (
            Finding(
                f"batch {least} pays less than batch {most}", judge(noise, "greater", ANY),
                f"{said}; difference of what was promised {interval(noise, 4)}",
            ),
        ),
    }  # fmt: skip


def _settings(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """Of the grid's runs of rank 25 at the study's learning rate: Adam on M at 1e-4 against the study's 1e-6."""
    runs = on_grid(records)
    fast = pick(runs, "FOP", 25, hyper_lr=1e-4, sigma=0.01)
    slow = pick(runs, "FOP", 25)
    momentum = pick(runs, "momentum")
    for group in (slow, momentum):
        paired(fast, group)
    gain = [max(r.curve("gain", str(layer)).iloc[-1] for layer in LAYERS) for r in fast]
    ends = {name: final(g) for name, g in (("fast", fast), ("slow", slow), ("momentum", momentum))}
    holds = min(gain) > 100 and (ends["fast"] < ends["slow"]).all() and (ends["fast"] < ends["momentum"]).all()
    return {
        "ours-mnist-hyper-lr": (
            Finding(
                "a hundredfold steps, and worse", "matches" if holds else "differs",
                f"longest steps {min(gain):.0f} times the gradient's or more; test accuracy "
                f"{_list(ends['fast'])} against {_list(ends['slow'])} with M nearly at rest and "
                f"{_list(ends['momentum'])} of momentum",
            ),
        ),
    }  # fmt: skip


def _ordered(what: str, found: Trend) -> Finding:
    seen = compare(found.rho, np.zeros(len(found.rho)))
    told = f"Spearman's correlation with the rank {interval(seen)}, pairs of ranks in order {found.ordered:.0%}"
    return Finding(f"larger k, better {what}", judge(seen, "greater", RULES.order), f"{told}, Page's p = {found.p:.1g}")


def _ranks(ranks: Iterable[int]) -> list[str]:
    return [f"rank {rank}" for rank in ranks]


def _layers(values: Mapping[int, float], form: str) -> str:
    return ", ".join(f"layer {layer} {value:{form}}" for layer, value in values.items())


def _list(values: np.ndarray) -> str:
    return " and ".join(f"{value:.1f} %" for value in values)


def report(records: Sequence[Record]) -> str:
    """Everything above as text; what needs runs that are missing says which."""
    sections: dict[str, Callable[[], Any]] = {
        "Where it comes from": lambda: facts(provenance(STUDY, records)),
        "Outcomes: test accuracy in %, iterations to a level of it; never: not by every run": (
            lambda: text(outcomes(records), "never")
        ),
        "Angles, FOP 784": lambda: text(angles(pick(records, "FOP", 784))),
        "Angles, frozen 784": lambda: text(angles(pick(records, "frozen", 784))),
        "Step length, condition, trace, FOP 784": lambda: text(sizes(pick(records, "FOP", 784))),
        "Grid": lambda: text(sensitivity(records)),
    }
    for judged in (_figure_a2, _figure_a1, _controls, _law, _settings):
        name = f"Verdicts, {judged.__name__.strip('_').replace('_', ' ')}"
        sections[name] = lambda these=judged: told(these(records))  # type: ignore[misc]
    return reading.report(sections)
