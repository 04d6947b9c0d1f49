"""What the runs on the walker say about Figure 4 and Section 4.4: from records to numbers, and to verdicts by rules.

A run is known by what is asked of it at the evaluations of its policy, twice in a row from the same starts: the return,
whether it fell, how far it went. The chapter, the ledger's tests and `fop report bipedal` read this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fop_torch.results import Record, run_key
from fop_torch.statistics import RESAMPLES, Comparison, Thresholds, Verdict, compare, first_reach, judge_all
from fop_torch.studies import provenance, reading, recorded
from fop_torch.studies.bipedal.train import (
    FLAT,
    HARDCORE,
    LAYERS,
    METHODS,
    PAPER_LRS,
    SEARCH_SEED,
    STUDY,
    Config,
    best,
    evaluated,
    late_return,
    runs,
    scores,
)
from fop_torch.studies.reading import ANY, Finding, MissingRunsError, all_of, facts, text, together, told

#: Figure 4's methods, and what is beside them.
MAIN, CONTROLS = ("FOP", "momentum", "Adam"), ("S-HD", "matched", "frozen")
#: What pages call the terrains.
TERRAINS = {FLAT: "flat", HARDCORE: "hardcore"}
#: The worst that counts: a run that diverged has it from there on. A fall, with nothing gained.
WORST = -100.0
#: What can become of a policy.
ENDS = ("walks", "creeps", "stands", "falls", "diverged")


@dataclass(frozen=True)
class Rules:
    """What decides; fixed before any run of the laptop's profile, when a pilot of Adam and the smoke runs were known.

    Each family of comparisons in one finding is adjusted together (Holm).

    Attributes:
        score: In points of return, of which the whole way pays about 300 and a fall costs 100.
        speed: In shares of a run; a difference below one evaluation, a fortieth, does not count.
        level: The return by which learning is timed: more than any walker gets that does not walk.
        levels: All at which it is shown.
        turn: In degrees between successive updates.
        walking: A policy walks that gets so far, as a share of the way.
        standing: It stands if it neither falls nor gets further than this.
    """

    score: Thresholds = field(default_factory=lambda: Thresholds(margin=10.0))
    speed: Thresholds = field(default_factory=lambda: Thresholds(margin=1 / 40))
    level: float = 100.0
    levels: tuple[float, ...] = (0.0, 100.0, 200.0, 300.0)
    turn: Thresholds = field(default_factory=lambda: Thresholds(margin=2.0))
    walking: float = 0.5
    standing: float = 0.1


RULES = Rules()


# ---------------------------------------------------------------------------------------
# Which runs


class Setting(NamedTuple):
    """At which settings methods are compared.

    `"paper"` is what it gives, and for FOP's rate of M, which it does not give, the best of the search; `"first"` has
    the rate that we tried first; `"tuned"` is each method at its own best of the search.
    """

    name: str
    terrain: str


class Known(list[Record]):
    """Recorded runs that remember what their search found: to find it takes seconds, and is asked for often.

    Any sequence of records will do in its place.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        super().__init__(records)
        self._best: dict[tuple[str, bool], tuple[float, int, float] | None] = {}

    def best(self, method: str, *, printed: bool) -> tuple[float, int, float] | None:
        """See `train.best`; None also where a profile or a method has no search."""
        asked = method, printed
        if asked not in self._best:
            profile = profile_of(self)
            searched = profile != "smoke" and method != "frozen"
            self._best[asked] = best(self, profile, method, printed=printed) if searched else None
        return self._best[asked]


def known(records: Sequence[Record]) -> Known:
    """The same runs, such that they remember."""
    return records if isinstance(records, Known) else Known(records)


def profile_of(records: Sequence[Record]) -> str:
    """The profile that records are of.

    Raises:
        MissingRunsError: If there are none.
    """
    if not records:
        raise MissingRunsError("no recorded run; `fop run bipedal --profile laptop` makes them")
    return str(records[0].facts["profile"])


def settings_of(records: Sequence[Record], method: str, name: str) -> tuple[float, int, float]:
    """Learning rate, minibatch and rate of M of a method; the control that follows FOP has FOP's.

    Raises:
        MissingRunsError: If the search finds them, and is not complete.
    """
    first = METHODS[method], Config.batch, Config.hyper_lr
    leader = "FOP" if method == "matched" else method
    if name == "first" or (name == "paper" and (leader != "FOP" or profile_of(records) == "smoke")):
        return first
    found = known(records).best(leader, printed=name == "paper")
    if found is None:
        raise MissingRunsError(f"the search for {method}'s best settings is not complete")
    return found


def settings(records: Sequence[Record]) -> pd.DataFrame:
    """Learning rate, minibatch and, of FOP, rate of M of the methods of Figure 4 in each comparison.

    Raises:
        MissingRunsError: If the search is not complete.
    """
    rows = {}
    for name in ("first", "paper", "tuned"):
        for method in MAIN:
            lr, batch, hyper_lr = settings_of(records, method, name)
            rows[name, method] = {"lr": lr, "batch": batch, "hyper_lr": hyper_lr if method == "FOP" else np.nan}
    return pd.DataFrame.from_dict(rows, orient="index")


def pick(records: Sequence[Record], method: str, setting: Setting) -> list[Record]:
    """The runs of one method, by seed.

    Raises:
        MissingRunsError: If there are none.
    """
    lr, batch, hyper_lr = settings_of(records, method, setting.name)
    wanted = {"method": method, "terrain": setting.terrain, "lr": lr, "batch": batch, "hyper_lr": hyper_lr}
    wanted["form"] = Config.form
    group = [
        r for r in records
        if r.config["seed"] < SEARCH_SEED and all(r.config[key] == value for key, value in wanted.items())
    ]  # fmt: skip
    if not group:
        raise MissingRunsError(f"no recorded run of {method}, {TERRAINS[setting.terrain]}, {setting.name} settings")
    return sorted(group, key=lambda record: record.config["seed"])


def groups(records: Sequence[Record], setting: Setting, methods: Iterable[str] = (*MAIN, *CONTROLS)) -> dict[str, list]:
    """The runs of every method that has any, by its name.

    Raises:
        MissingRunsError: If there are none at all.
    """
    found = {}
    for method in methods:
        try:
            found[method] = pick(records, method, setting)
        except MissingRunsError:
            continue
    if not found:
        raise MissingRunsError(f"no recorded run, {TERRAINS[setting.terrain]}, {setting.name} settings")
    return found


def common(records: Sequence[Record], setting: Setting, methods: Iterable[str]) -> dict[str, list[Record]]:
    """The runs of some methods, of the seeds that all of them have.

    Raises:
        MissingRunsError: If a method has none, or there are fewer than two such seeds.
    """
    found = {method: pick(records, method, setting) for method in methods}
    seeds = set.intersection(*({r.config["seed"] for r in group} for group in found.values()))
    if len(seeds) < 2:
        raise MissingRunsError(
            f"two seeds are needed that {', '.join(found)} all have, {TERRAINS[setting.terrain]}, {setting.name} "
            "settings; `fop run bipedal --profile laptop` makes what is missing"
        )
    return {method: [r for r in group if r.config["seed"] in seeds] for method, group in found.items()}


# ---------------------------------------------------------------------------------------
# One run


def evaluations(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """PPO steps and returns of the evaluated policies; after a run diverged, `WORST`.

    Returns:
        Both `[t]`, up to the end that the run should have had.
    """
    config = Config(**record.config)
    seen, due = record.curve("test_return"), evaluated(config)
    found = dict(zip(np.asarray(seen.index) // config.passes, seen.to_numpy(), strict=True))
    return np.array(due), np.array([found.get(update, WORST) for update in due])


def seen_best(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """As Figure 4: the return of the best policy so far."""
    updates, values = evaluations(record)
    return updates, np.maximum.accumulate(values)


def score(record: Record) -> float:
    """Figure 4's last value: the return of the best policy of a run."""
    return float(seen_best(record)[1][-1])


def last(record: Record) -> float:
    """What Figure 4's choice hides: mean return of the training episodes of the last quarter."""
    return late_return(record)


def share_to(record: Record, level: float) -> float:
    """Share of the run until its best policy reached a return; infinity where none did."""
    updates, values = seen_best(record)
    return float(first_reach(updates / updates[-1], values[None], level)[0])


def falls(record: Record) -> float:
    """Falls in a thousand steps of the training."""
    config = Config(**record.config)
    return 1000 * float(record.curve("falls").sum()) / (config.steps * max(1, len(record.curve("episodes"))))


def ends(record: Record) -> str:
    """What the last policy does: one of `ENDS`."""
    if record.status == "diverged":
        return "diverged"
    fell, share = (record.curve(f"test_{name}").iloc[-1] for name in ("falls", "share"))
    if share >= RULES.walking:
        return "walks"
    return "falls" if fell else "stands" if share < RULES.standing else "creeps"


def turning(record: Record, name: str = "update_cosine") -> float:
    """Degrees between successive updates, or gradients: of their mean cosine over the run, mean over the layers."""
    return float(np.mean([np.degrees(np.arccos(curve.mean())) for curve in _layers(record, name)]))


def _layers(record: Record, name: str) -> list[pd.Series]:
    """A curve of each layer.

    Raises:
        MissingRunsError: If the run diverged before any was recorded.
    """
    each = [record.curve(name, str(part)) for part in range(1, LAYERS + 1)]
    if not all(map(len, each)):
        raise MissingRunsError(f"{record.path.stem}: no curve of {name}; did the run diverge?")
    return each


def lengthening(record: Record) -> float:
    """Geometric mean over layers and run of what FOP made of a gradient's length."""
    return float(np.exp(np.mean([np.log(curve).mean() for curve in _layers(record, "gain")])))


# ---------------------------------------------------------------------------------------
# Several runs


class Band(NamedTuple):
    """A statistic of several runs at each point, and its 95 % bootstrap interval; NaN for one run's."""

    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def median_band(values: np.ndarray) -> Band:
    """The median of `[runs, t]` and the percentiles of its resamples, as the caption has them.

    Few runs make them too narrow, see `fop_torch.statistics`: they are looked at, and decide nothing.
    """
    return Band(np.median(values, 0), *_bootstrap([values], lambda drawn: np.median(drawn[0], 0)))


def interquartile(strata: Sequence[np.ndarray]) -> Band:
    """Mean of the middle half of all runs' scores, with the stratified bootstrap of Agarwal et al. (2021).

    Args:
        strata: Scores of each task's runs, `[runs]`; they are resampled among themselves.
    """
    return Band(np.array(_trimmed(strata)), *_bootstrap(strata, _trimmed))


def improvement(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Band:
    """Chance that a run of ours has a higher score than one of theirs, a tie counting half; mean over the tasks.

    Args:
        ours: Scores of each task's runs, `[runs]`.
        theirs: Likewise.
    """
    n = len(ours)

    def chance(drawn: Sequence[np.ndarray]) -> float:
        return float(np.mean([_ahead(a, b) for a, b in zip(drawn[:n], drawn[n:], strict=True)]))

    return Band(np.array(chance([*ours, *theirs])), *_bootstrap([*ours, *theirs], chance))


def _trimmed(strata: Sequence[np.ndarray]) -> float:
    values = np.sort(np.concatenate(list(strata)))
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def _ahead(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.sign(a[:, None] - b[None]).mean() + 1) / 2)


def _bootstrap(strata: Sequence[np.ndarray], statistic: Callable[[Sequence[np.ndarray]], Any]) -> tuple:
    """2.5th and 97.5th percentile over resamples of the runs within each stratum."""
    generator = np.random.default_rng(0)
    if max(map(len, strata)) == 1:
        nothing = np.full(np.shape(statistic(strata)), np.nan)
        return nothing, nothing
    count = RESAMPLES // 5
    drawn = [[s[generator.integers(len(s), size=len(s))] for s in strata] for _ in range(count)]
    low, high = np.percentile([statistic(each) for each in drawn], [2.5, 97.5], axis=0)
    return low, high


def outcomes(records: Sequence[Record], setting: Setting) -> pd.DataFrame:
    """One row a method: seeds, Figure 4's last median, means of the last episodes, falls, what the policies became."""
    rows = {}
    for method, group in groups(records, setting).items():
        became = [ends(record) for record in group]
        rows[method] = {
            "lr": group[0].config["lr"], "seeds": len(group), "best": np.median([score(r) for r in group]),
            "late": np.mean([last(r) for r in group]), "falls/1000": np.mean([falls(r) for r in group]),
            **{name: became.count(name) for name in ENDS},
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def efficiency(records: Sequence[Record], setting: Setting) -> pd.DataFrame:
    """Median PPO steps until the best policy reached a return, by method; `inf` where fewer than half did."""
    return pd.DataFrame.from_dict(
        {
            method: {
                f"to {level:g}": np.median([share_to(r, level) * Config(**r.config).updates for r in group])
                for level in RULES.levels
            }
            for method, group in groups(records, setting).items()
        },
        orient="index",
    )


def reliable(records: Sequence[Record], name: str = "paper") -> pd.DataFrame:
    """Interquartile mean of the late return over the terrains, and the chance that FOP's run beats a method's.

    Returns:
        One row a method: both with their stratified 95 % bootstrap intervals.
    """
    found: dict[str, list[np.ndarray]] = {}
    for terrain in TERRAINS:
        for method, group in groups(records, Setting(name, terrain)).items():
            found.setdefault(method, []).append(np.array([last(record) for record in group]))
    rows = {}
    for method, strata in found.items():
        middle = interquartile(strata)
        rows[method] = dict(zip(("IQM", "low", "high"), map(float, middle), strict=True))
        if method != "FOP" and len(strata) == len(found.get("FOP", ())):
            chance = improvement(found["FOP"], strata)
            rows[method] |= dict(zip(("FOP ahead", "from", "to"), map(float, chance), strict=True))
    return pd.DataFrame.from_dict(rows, orient="index")


def motion(records: Sequence[Record], setting: Setting) -> pd.DataFrame:
    """How updates turn, one row a method: degrees between successive updates and gradients, P's angle and gain."""
    rows = {}
    for method, group in groups(records, setting).items():
        rows[method] = {
            "updates": np.mean([turning(r) for r in group]),
            "gradients": np.mean([turning(r, "grad_cosine") for r in group]),
        }
        if len(group[0].curve("gain", "1")):
            rows[method] |= {
                "angle": np.mean([curve.mean() for r in group for curve in _layers(r, "angle")]),
                "gain": np.exp(np.mean([np.log(lengthening(r)) for r in group])),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def by_layer(group: Sequence[Record]) -> pd.DataFrame:
    """What P is at the end, one row a layer, means over the runs that did not diverge.

    Returns:
        Step-length gain and angle, last entries; smallest and largest eigenvalue and their mean.

    Raises:
        MissingRunsError: If all did.
    """
    group, rows = finished(group), {}
    for part, name in enumerate(("hidden 1", "hidden 2", "actions", "value"), 1):
        spectra = np.array([spectrum(record, part) for record in group])
        rows[name] = {
            **{each: np.mean([r.curve(each, str(part)).iloc[-1] for r in group]) for each in ("gain", "angle")},
            "smallest": spectra[:, 0].mean(), "mean": spectra.mean(), "largest": spectra[:, -1].mean(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def finished(group: Sequence[Record]) -> list[Record]:
    """The runs that did not diverge.

    Raises:
        MissingRunsError: If all did.
    """
    found = [record for record in group if record.status == "finished"]
    if not found:
        raise MissingRunsError(f"{', '.join(record.path.stem for record in group)}: all diverged")
    return found


def spectrum(record: Record, part: int, name: str = "eigenvalue") -> np.ndarray:
    """Eigenvalues of a layer's P at the end, in rising order; or its diagonal, input by input."""
    rows = record.metrics
    rows = rows[(rows["part"] == str(part)) & rows["name"].str.startswith(f"{name} ")]
    places = rows["name"].str.split().str[-1].astype(int)
    return rows["value"].to_numpy()[np.argsort(places)]


# ---------------------------------------------------------------------------------------
# Verdicts

#: A number of one run, by which methods are compared; larger is better.
Measure = Callable[[Record], float]


def sooner(record: Record) -> float:
    """Share of a run that was left when it reached the level of the rules; 0 if it never did."""
    return 1 - min(1.0, share_to(record, RULES.level))


#: The runs that are compared: by terrain, then by method, of the same seeds.
Fields = dict[str, dict[str, list[Record]]]


def fields(records: Sequence[Record], name: str, methods: Iterable[str]) -> Fields:
    """The runs of some methods on both terrains, see `common`; `name` is that of a `Setting`."""
    methods = tuple(methods)
    return {title: common(records, Setting(name, terrain), methods) for terrain, title in TERRAINS.items()}


def ahead(found: Fields, others: Iterable[str], measure: Measure) -> dict[str, Comparison]:
    """FOP less others by a measure, seed by seed: one comparison a terrain and method, such as "flat, Adam"."""
    return {
        f"{title}, {other}": compare([measure(r) for r in some["FOP"]], [measure(r) for r in some[other]])
        for title, some in found.items()
        for other in others
    }


def _better(found: Fields, others: Sequence[str]) -> tuple[Finding, Finding]:
    """Is FOP better at the end than others, by Figure 4's measure, and by that which it hides?"""
    best_policy, late = (
        all_of(f"higher return of the {what}, in points", seen, judge_all(seen, "greater", RULES.score), seen)
        for what, seen in (("best policy", ahead(found, others, score)), ("late episodes", ahead(found, others, last)))
    )
    return best_policy, late


def _faster(found: Fields, others: Sequence[str]) -> Finding:
    """Is it sooner at the level than others? Where neither gets there, nothing was timed."""
    seen = ahead(found, others, sooner)
    judged = judge_all(seen, "greater", RULES.speed)
    for title, some in found.items():
        for other in others:
            if not any(sooner(record) > 0 for record in (*some["FOP"], *some[other])):
                judged[f"{title}, {other}"] = "undecided"
    return all_of(f"sooner at a return of {RULES.level:g}, in shares of the run", seen, judged, seen)


def _figure(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the caption reads off the figure: where FOP's median ends, and whether its band is apart."""
    found = []
    for title, some in fields(records, "paper", MAIN).items():
        bands = {method: median_band(np.array([[score(r)] for r in group])) for method, group in some.items()}
        ours, others = bands["FOP"], [bands["momentum"], bands["Adam"]]
        apart = all(ours.low[0] > other.high[0] for other in others)
        below = any(ours.middle[0] < other.middle[0] for other in others)
        said = ", ".join(f"{m} {b.middle[0]:.0f} ({b.low[0]:.0f} to {b.high[0]:.0f})" for m, b in bands.items())
        verdict: Verdict = "matches" if apart else "differs" if below else "undecided"
        found.append(Finding(f"{title}: FOP's median ends above both, its band apart", verdict, said))
    return {"fig-4": tuple(found)}


def _printed(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    found, both = fields(records, "paper", MAIN), ("momentum", "Adam")
    return {
        "fig-4-fop-outperforms": (
            *_better(found, ("momentum",)), _faster(found, ("momentum",)), *_better(found, ("Adam",)),
        ),
        "text-4-4-faster-and-better": (*_better(found, both), _faster(found, both)),
    }  # fmt: skip


def _tuned(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    found, both = fields(records, "tuned", MAIN), ("momentum", "Adam")
    return {"ours-walker-tuned": (*_better(found, both), _faster(found, both))}


def _controls(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    return {"ours-walker-controls": _better(fields(records, "paper", ("FOP", *CONTROLS)), CONTROLS)}


def _deceptive(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """One finding, since only all of its parts make the claim.

    An advantage; updates that turn more; fewer runs that are stuck; and all that not by longer steps alone.
    """
    found, others = fields(records, "paper", ("FOP", "momentum", "matched")), ("momentum",)
    turned = ahead(found, others, turning)
    freed = ahead(found, others, lambda record: -float(ends(record) == "stands"))
    steps = ahead(found, ("matched",), score)
    parts = (
        _better(found, others)[0],
        all_of("updates turn more, in degrees", turned, judge_all(turned, "greater", RULES.turn), turned),
        all_of("fewer runs stand still at the end, in shares", freed, judge_all(freed, "greater", ANY), freed),
        all_of("better than steps as long, in points", steps, judge_all(steps, "greater", RULES.score), steps),
    )
    said = ". ".join(f"{each.what}: {each.verdict}: {each.reason}" for each in parts)
    whole = Finding("an advantage, by turning, out of standing", together(each.verdict for each in parts), said)
    return {"text-4-4-deceptive": (whole,)}


def _search(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """Within the paper's range, are the paper's settings the best?

    They are not if another setting of the grid is better in every seed, by what counts; nothing is decided if it is
    only in the mean. For a rate between two of the grid stands the nearer one.
    """
    found = []
    for method in MAIN:
        settings_of(records, method, "tuned")  # is the search complete?
        seen = scores(records, profile_of(records), method)
        inside = {
            (lr, batch): np.array(values)
            for (lr, batch, hyper_lr), values in seen.items()
            if lr in PAPER_LRS and hyper_lr == Config.hyper_lr
        }
        top = max(inside, key=lambda each: float(inside[each].mean()))
        near = min(PAPER_LRS, key=lambda lr: abs(np.log(lr / METHODS[method]))), Config.batch
        surely = bool((inside[top] > inside[near] + RULES.score.margin).all())
        said = ", ".join(
            f"learning rate {lr:g} with minibatch {batch}: {inside[lr, batch].mean():.0f}" for lr, batch in (top, near)
        )
        verdict: Verdict = "matches" if top == near else "differs" if surely else "undecided"
        found.append(Finding(f"{method}'s best within the range", verdict, f"late return, best and paper's: {said}"))
    return {"text-a5-best-settings": tuple(found)}


#: The parts of the verdicts, by the titles of the report.
JUDGED: dict[str, Callable[[Sequence[Record]], dict[str, tuple[Finding, ...]]]] = {
    "Verdicts, figure 4": _figure,
    "Verdicts, caption and text": _printed,
    "Verdicts, each at its best": _tuned,
    "Verdicts, controls": _controls,
    "Verdicts, deceptive": _deceptive,
    "Verdicts, search": _search,
}


def verdicts(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the runs say about each claim, one finding for each of its parts.

    Raises:
        MissingRunsError: If runs are missing.
    """
    found: dict[str, tuple[Finding, ...]] = {}
    records = known(records)
    for judged in JUDGED.values():
        found |= judged(records)
    return found


def at_hand(live: Sequence[Record]) -> Known:
    """The recorded runs, of the paper's profile or the laptop's; those just trained until each of `MAIN` has one."""
    try:
        found = Known(recorded(STUDY.name))
        for method in MAIN:
            pick(found, method, Setting("first", FLAT))
        return found
    except (FileNotFoundError, MissingRunsError):
        return Known(live)


def kinds(records: Sequence[Record]) -> dict[str, dict[Config, bool]]:
    """The runs of the records' profile by what they are for, as far as they can be named, and whether each is here."""
    profile = profile_of(records)
    known_keys = {record.key for record in records}
    printed = {terrain: f"the paper's settings, {title}" for terrain, title in TERRAINS.items()}
    found: dict[str, dict[Config, bool]] = {kind: {} for kind in (*printed.values(), "search", "each at its best")}
    for c in runs(profile, records):
        usual = (c.lr, c.batch) == (METHODS[c.method], Config.batch)  # whatever FOP's rate of M
        kind = "search" if c.seed >= SEARCH_SEED else printed[c.terrain] if usual else "each at its best"
        found[kind][c] = run_key(STUDY.name, c) in known_keys
    return found


def standing(records: Sequence[Record]) -> str:
    """How far the records go: runs of their profile, and how many of each kind."""
    found = kinds(records)
    every = [here for those in found.values() for here in those.values()]
    lines = [f"{profile_of(records)}: {sum(every)} of at least {len(every)} runs are here"]
    for kind, those in found.items():
        lines.append(f"  {kind}: {sum(those.values())} of {len(those)}" if those else f"  {kind}: cannot be named yet")
    return "\n".join(lines)


def report(records: Sequence[Record], *only: str) -> str:
    """Everything above as text; what needs runs that are missing says which.

    Args:
        records: The runs.
        *only: Beginnings of the titles that are wanted; all when left out.
    """
    records = known(records)
    sections: dict[str, Callable[[], Any]] = {
        "Where it comes from": lambda: facts(provenance(STUDY, records)),
        "How far the records go": lambda: standing(records),
    }
    sections["Settings"] = lambda: text(settings(records), "")
    for name in ("first", "paper", "tuned"):
        for terrain, title in TERRAINS.items():
            where, setting = f"{title}, {name} settings", Setting(name, terrain)
            for what, table in (("Outcomes", outcomes), ("PPO steps to a return", efficiency), ("Motion", motion)):
                sections[f"{what}, {where}"] = lambda make=table, at=setting: text(make(records, at), "")  # type: ignore[misc]
        sections[f"Over both terrains, {name} settings"] = lambda these=name: text(reliable(records, these), "")  # type: ignore[misc]
    sections["P by layer, FOP, flat"] = lambda: text(by_layer(pick(records, "FOP", Setting("paper", FLAT))))
    for title, judged in JUDGED.items():
        sections[title] = lambda these=judged: told(these(records))  # type: ignore[misc]
    wanted = {title: write for title, write in sections.items() if not only or title.startswith(only)}
    return reading.report(wanted)
