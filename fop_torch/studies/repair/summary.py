"""What the suite says: pure functions from records to numbers, and from those to verdicts.

Losses are compared by their decimal logarithm: a tenth of a loss counts the same at every level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from fop_torch.results import Record
from fop_torch.statistics import Verdict
from fop_torch.studies import provenance, reading
from fop_torch.studies.reading import Finding, MissingRunsError
from fop_torch.studies.repair.train import (
    BUDGETS,
    DECADES,
    KINDS,
    PEERS,
    PROBLEMS,
    SHARES,
    STUDY,
    Setting,
    base,
    methods,
)


@dataclass(frozen=True)
class Rules:
    """What decides; fixed before any run of the laptop profile.

    Known by then: a trial in NumPy on quadratics, logistic losses and Rosenbrock's function, in which the exponential
    form did well at a rate of a hundredth, and less well above a tenth where gradients are noisy.

    Attributes:
        margin: In decades: a setting did harm if its mean loss is this much above the base's and the seeds' interval
            of the difference, paired, lies above zero.
        wild: In decades: so much above the base's it did harm whatever the interval says.
        level: Of the interval (Student's t).
        candidate: The setting that may become the recommended default, if it does no harm at all: method, rate.
        other: The same setting of linear P, judged beside it; fixed before any run of linear P.
    """

    margin: float = 0.02
    wild: float = 1.0
    level: float = 0.95
    candidate: tuple[str, float] = ("budget", KINDS["budget"][1])
    other: tuple[str, float] = ("linear-budget", KINDS["linear-budget"][1])


RULES = Rules()
#: What a diverged run's logarithm counts as.
DIVERGED = np.inf


class Cell(NamedTuple):
    """One setting against its base: the mean gain in decades (positive is better), and whether it did harm."""

    setting: Setting
    gain: float
    harm: bool


def one(records: Sequence[Record], problem: str, method: str) -> Record:
    """The longest run of a method on a problem.

    Raises:
        MissingRunsError: If there is none.
    """
    found = [r for r in records if (r.config["problem"], r.config["method"]) == (problem, method)]
    if not found:
        raise MissingRunsError(f"{method} on {problem} has no run; `fop run repair` makes it")
    return max(found, key=lambda r: r.config["iterations"])


def ends(record: Record) -> dict[Setting, np.ndarray]:
    """The logarithm of each setting's last loss, `[seeds]`; `DIVERGED` where a curve ended early."""
    table = record.metrics
    last = table[table["name"] == "loss"].sort_values("iteration", kind="stable").groupby("part", sort=False).last()
    found: dict[Setting, list[float]] = {}
    for part, iteration, value in zip(last.index, last["iteration"], np.log10(last["value"]), strict=True):
        *numbers, _ = map(float, str(part).split())
        whole = iteration == record.config["iterations"]
        found.setdefault(Setting(*numbers), []).append(float(value) if whole else DIVERGED)
    return {setting: np.array(values) for setting, values in found.items()}


def tuned(record: Record) -> Setting:
    """The setting with the least mean logarithm at the end."""
    found = ends(record)
    return min(found, key=lambda setting: found[setting].mean())


def curve(record: Record) -> pd.Series:
    """The logarithm of the loss along the tuned setting, mean over the seeds, by the steps done."""
    table, seeds = record.metrics, tuned(record).part(0)[:-1]
    some = table[table["part"].str.startswith(seeds)]
    return np.log10(some.pivot_table(index="iteration", columns="part", values="value")).mean(axis=1)


def harms(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Did a setting do harm? By `RULES`; logarithms of paired seeds."""
    if not np.isfinite(ours).all():
        return True
    worse = ours - theirs
    if worse.mean() >= RULES.wild:
        return True
    half = stats.t.ppf((1 + RULES.level) / 2, len(worse) - 1) * worse.std(ddof=1) / np.sqrt(len(worse))
    return bool(worse.mean() > RULES.margin and worse.mean() - half > 0)


def sweep(records: Sequence[Record], problem: str, method: str, share: float) -> list[Cell]:
    """A method's settings against the base at the same learning rate, in the order of the rate or budget."""
    record, alone = one(records, problem, method), ends(one(records, problem, base(problem)))
    lr = share * record.config["lr"]
    # The grid has a factor of ten in it, so that the base ran there too.
    theirs = next((v for s, v in alone.items() if np.isclose(s.lr, lr, rtol=1e-4)), None)
    if theirs is None:
        raise MissingRunsError(f"{base(problem)} on {problem} has no run at the learning rate {lr:g}")
    cells = []
    for setting, values in ends(record).items():
        if np.isclose(setting.lr, lr, rtol=1e-4):
            gain = float((theirs - values).mean()) if np.isfinite(values).all() else -np.inf
            cells.append(Cell(setting, gain, harms(values, theirs)))
    return cells


def problems(records: Sequence[Record]) -> list[str]:
    """Those that have runs, in the suite's order."""
    there = {r.config["problem"] for r in records}
    return [name for name in PROBLEMS if name in there]


def shares(records: Sequence[Record]) -> pd.DataFrame:
    """For each method the share of its settings that end well, by problem and learning rate, and over all."""
    rows = {}
    for method in (*KINDS, BUDGETS):
        rows[method] = {
            (problem, share): 1 - np.mean([cell.harm for cell in sweep(records, problem, method, share)])
            for problem, share in places(records, method)
        }
    table = pd.DataFrame(rows).T
    table[("all", "")] = table.mean(axis=1)
    return table


def places(records: Sequence[Record], method: str) -> list[tuple[str, float]]:
    """Where a method is judged: problems and shares of the tuned rate at which the base ran.

    The tuned one may be at the end of the base's grid.
    """
    found = []
    for problem in problems(records):
        record = one(records, problem, base(problem))
        lrs = [setting.lr for setting in ends(record)]
        near = [share for share in SHARES if np.isclose(lrs, share * tuned(record).lr, rtol=1e-4).any()]
        found += [(problem, share) for share in near if method in methods(problem)]
    return found


def cells_at(records: Sequence[Record], method: str, rate: float) -> dict[tuple[str, float], Cell]:
    """A method's cell at one rate, on each problem at each learning rate."""
    return {
        (problem, share): next(
            cell for cell in sweep(records, problem, method, share) if np.isclose(cell.setting.rate, rate, rtol=1e-4)
        )
        for problem, share in places(records, method)
    }


def default(records: Sequence[Record]) -> dict[tuple[str, float], Cell]:
    """The candidate's cell on each problem at each learning rate."""
    return cells_at(records, *RULES.candidate)


def recommended(records: Sequence[Record]) -> bool:
    """Does the candidate become the recommended default? If it did no harm anywhere."""
    return not any(cell.harm for cell in default(records).values())


def verdicts(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the suite says to our claims, a finding for each problem and learning rate."""
    flipped: dict[Verdict, Verdict] = {"matches": "differs", "differs": "matches"}

    def none_harms(method: str) -> tuple[Finding, ...]:
        found = []
        for problem, share in places(records, method):
            cells = sweep(records, problem, method, share)
            count = sum(cell.harm for cell in cells)
            said = f"{count} of {len(cells)} settings did harm"
            found.append(Finding(f"{problem} at {share:g}", "differs" if count else "matches", said))
        return tuple(found)

    def some_harms(method: str) -> tuple[Finding, ...]:
        found = [each for each in none_harms(method) if each.what.endswith("at 1")]
        return tuple(each._replace(verdict=flipped[each.verdict]) for each in found)

    def harmless(setting: tuple[str, float]) -> tuple[Finding, ...]:
        return tuple(
            Finding(f"{problem} at {share:g}", "differs" if cell.harm else "matches", f"{cell.gain:+.2f} decades")
            for (problem, share), cell in cells_at(records, *setting).items()
        )

    return {
        "ours-repair-default": harmless(RULES.candidate),
        "ours-repair-rates": none_harms("budget"),
        "ours-repair-budgets": none_harms(BUDGETS),
        "ours-repair-paper": some_harms("paper"),
        "ours-repair-linear": some_harms("linear"),
        "ours-repair-linear-budget": harmless(RULES.other),
        "ours-repair-null": none_harms("linear-null"),
    }


def best(records: Sequence[Record]) -> pd.DataFrame:
    """Each method's best end, in decades below the base's best, mean over the seeds: seven settings each."""
    rows: dict[str, dict[str, float]] = {}
    for problem in problems(records):
        start = min(values.mean() for values in ends(one(records, problem, base(problem))).values())
        for method in (*PEERS, *KINDS, BUDGETS):
            try:
                record = one(records, problem, method)
            except MissingRunsError:
                continue
            found = ends(record)
            if method not in PEERS:  # at the tuned learning rate alone, so that all have tried as much
                found = {s: v for s, v in found.items() if np.isclose(s.lr, record.config["lr"], rtol=1e-4)}
            rows.setdefault(method, {})[problem] = float(start - min(values.mean() for values in found.values()))
    return pd.DataFrame(rows).T


def at_edge(records: Sequence[Record]) -> list[str]:
    """Peers whose best learning rate on a problem is the last of their grid, so that they might end better still."""
    found = []
    for problem in problems(records):
        for method in [each for each in PEERS if each in methods(problem) and each != "L-BFGS"]:
            try:
                record = one(records, problem, method)
            except MissingRunsError:
                continue
            first, *_, last = ends(record)
            if tuned(record) in (first, last) and np.isfinite(ends(record)[tuned(record)]).all():
                found.append(f"{method} on {problem}")
    return found


def report(records: Sequence[Record]) -> str:
    """The numbers in words, for `fop report repair`."""
    return reading.report({
        "Where it comes from": lambda: reading.facts(provenance(STUDY, records)),
        f"Share of {len(DECADES)} settings over six decades that end well": (
            lambda: reading.text(shares(records).round(2), "-")
        ),
        "Best end, decades below the tuned base": lambda: reading.text(best(records).round(3), "-"),
        "The candidate": lambda: f"recommended: {'yes' if recommended(records) else 'no'}",
        "Claims": lambda: reading.told(verdicts(records)),
    })  # fmt: skip
