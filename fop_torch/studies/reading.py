"""How the studies read their runs: from records to curves and numbers, from those to findings, and into words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fop_torch.results import Record
from fop_torch.statistics import Band, Comparison, Thresholds, Verdict, first_reach, mean_band

#: For what is judged by its sign alone.
ANY = Thresholds(margin=0.0)


class MissingRunsError(LookupError):
    """A statistic needs runs that are not among the records; the message names them."""


class Finding(NamedTuple):
    """What the runs say about one part of a claim, and why."""

    what: str
    verdict: Verdict
    reason: str


# ---------------------------------------------------------------------------------------
# From runs to numbers


def paired(ours: Sequence[Record], theirs: Sequence[Record]) -> None:
    """Make sure that two groups have the same seeds.

    Raises:
        MissingRunsError: If not.
    """
    seeds = [{record.config["seed"] for record in group} for group in (ours, theirs)]
    if seeds[0] != seeds[1]:
        facts = ours[0].facts
        names = [group[0].path.stem.rsplit("-s", 1)[0] for group in (ours, theirs)]
        raise MissingRunsError(
            f"{names[0]} has the seeds {sorted(seeds[0])}, {names[1]} has {sorted(seeds[1])}: runs are compared in "
            f"pairs; `fop run {facts.get('study', '')} --profile {facts.get('profile', '')}` makes what is missing"
        )


def curves(group: Sequence[Record], name: str, part: str | int = "") -> tuple[np.ndarray, np.ndarray]:
    """One measured quantity of several runs: iterations `[t]` and values `[runs, t]`.

    Raises:
        MissingRunsError: If a run has no such curve, or ended early.
    """
    table = pd.concat({r.path.stem: r.curve(name, str(part)) for r in group}, axis=1)
    broken = table.columns[table.isna().any() | (len(table) == 0)]
    if len(broken):
        raise MissingRunsError(f"{', '.join(broken)}: no whole curve of {name} {part}; did the run diverge?")
    return table.index.to_numpy(), table.to_numpy().T


def band(group: Sequence[Record], name: str = "test_accuracy", part: str | int = "") -> tuple[np.ndarray, Band]:
    """Iterations, and mean and bootstrap band of a measured quantity."""
    iterations, values = curves(group, name, part)
    return iterations, mean_band(values)


def final(group: Sequence[Record], name: str = "test_accuracy", diverged: float = 0.0) -> np.ndarray:
    """The last value of each run; `diverged` for one that diverged, `[runs]`."""
    return np.array([diverged if r.status == "diverged" else r.curve(name).iloc[-1] for r in group])


#: What falls while a network learns; what is measured besides rises.
FALLING = ("train_loss",)


def reached(group: Sequence[Record], level: float, name: str = "test_accuracy") -> np.ndarray:
    """Iterations until each run's curve first reached a level; infinity where it never did, `[runs]`."""
    iterations, values = curves(group, name)
    sign = -1 if name in FALLING else 1
    return first_reach(iterations, sign * values, sign * level)


def speed(group: Sequence[Record], level: float, name: str = "test_accuracy") -> np.ndarray:
    """As `reached`, but the last iteration where a run never reached the level, `[runs]`."""
    return np.minimum(reached(group, level, name), group[0].config["iterations"])


def reach(group: Sequence[Record], level: float, name: str = "test_accuracy") -> float:
    """Iterations until a curve first reached a level, mean over the runs; NaN where one never reached it."""
    found = reached(group, level, name)
    return float(found.mean()) if np.isfinite(found).all() else np.nan


# ---------------------------------------------------------------------------------------
# From numbers to findings


def all_of(what: str, keys: Iterable[str], judged: Mapping[str, Verdict], seen: Mapping[str, Comparison]) -> Finding:
    """One finding for several comparisons that must all come out."""
    keys = list(keys)
    told = "; ".join(f"{key}: {interval(seen[key])}, p = {seen[key].p:.1g}, d = {seen[key].effect:.1f}" for key in keys)
    return Finding(what, together(judged[key] for key in keys), told)


def together(each: Iterable[Verdict]) -> Verdict:
    """Matches if all do, differs if one does."""
    found = set(each)
    return "matches" if found == {"matches"} else "differs" if "differs" in found else "undecided"


def number(what: str, seen: Comparison, row: tuple[float, float], unit: str) -> Finding:
    """As the ledger compares: a printed number agrees if ours is within the tolerance of its row."""
    printed, tolerance = row
    verdict: Verdict = "matches" if abs(seen.mean - printed) <= tolerance else "differs"
    return Finding(what, verdict, f"{interval(seen)}{unit}; printed {printed:g} ± {tolerance:g}")


# ---------------------------------------------------------------------------------------
# In words


def interval(seen: Comparison, digits: int = 2) -> str:
    """The mean with its confidence interval."""
    digits = 0 if abs(seen.mean) >= 100 else digits
    return f"{seen.mean:+.{digits}f} ({seen.low:+.{digits}f} to {seen.high:+.{digits}f})"


def text(table: pd.DataFrame, missing: str = "NaN") -> str:
    """A table as text, five digits a number; `missing` for NaN."""
    if table.empty:
        return "none of these runs"
    return table.to_string(float_format=lambda number: f"{number:.5g}", na_rep=missing)


def facts(found: Mapping[str, Any]) -> str:
    """Facts, a line each."""
    return "\n".join(f"{name}: {fact}" for name, fact in found.items())


def told(found: Mapping[str, tuple[Finding, ...]], *claims: str) -> str:
    """The findings on some claims, or on all, in lines that fit a page."""
    lines = []
    for claim in claims or found:
        lines.append(claim)
        for each in found[claim]:
            said = f"{each.what}: {each.verdict.upper()}. {each.reason}"
            lines.append(textwrap.fill(said, 88, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def report(sections: Mapping[str, Callable[[], Any]]) -> str:
    """Sections under their titles; at the end those that need runs that are missing, and which."""
    parts: list[str] = []
    missing: dict[str, list[str]] = {}
    for title, write in sections.items():
        try:
            parts.append(f"{title}\n{write()}")
        except MissingRunsError as error:
            missing.setdefault(str(error), []).append(title)
    if missing:
        lines = (f"{'; '.join(titles)}: not yet: {error}" for error, titles in missing.items())
        parts.append("\n".join(["Not among these runs", *lines]))
    return "\n\n".join(parts)
