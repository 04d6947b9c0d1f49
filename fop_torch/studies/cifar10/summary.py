"""What the runs on CIFAR-10 say about Figure 2, top: from records to numbers, and from those to verdicts.

What they say about Figure 5 stands in `learned`. The chapter, the ledger's tests and `fop report cifar10` read both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fop_theory.ledger import read_claims
from fop_torch.results import Record
from fop_torch.statistics import Comparison, Thresholds, compare, judge_all
from fop_torch.studies import provenance, reading
from fop_torch.studies.cifar10.train import EPOCH, MAIN, PLAIN_HYPER_LR, STUDY, Config
from fop_torch.studies.reading import Finding, MissingRunsError, all_of, curves, final, paired, reach, text, told

#: The rows of the ledger with the paper's test accuracies.
ROWS = {method: f"fig-2-cifar-acc-{method.lower()}" for method in MAIN}


@dataclass(frozen=True)
class Rules:
    """What decides; fixed before the runs, when pilots of two epochs and one seed had been seen.

    Comparisons that stand in one finding are adjusted together (Holm).

    Attributes:
        accuracy: In percentage points of final test accuracy. A lead of half a point counts; the printed one is 0.6.
        speed: In epochs. A lead of less than a tenth of an epoch, the distance of two records of the loss, does not.
        level: Test accuracy, in percent, by which speed is timed: about halfway to the end of the laptop's runs, and
            of the paper's.
        loss: Training loss by which it is timed, likewise.
    """

    accuracy: Thresholds = field(default_factory=lambda: Thresholds(margin=0.5))
    speed: Thresholds = field(default_factory=lambda: Thresholds(margin=0.1))
    level: Mapping[str, float] = field(default_factory=lambda: {"laptop": 40.0, "paper": 80.0})
    loss: Mapping[str, float] = field(default_factory=lambda: {"laptop": 1.6, "paper": 0.6})


RULES = Rules()


# ---------------------------------------------------------------------------------------
# Which runs


def profile_of(records: Sequence[Record]) -> str:
    """The profile that records are of: the paper's network makes them the paper's.

    Raises:
        MissingRunsError: If there are none.
    """
    if not records:
        raise MissingRunsError("no recorded run; `fop run cifar10 --profile laptop` makes them")
    return "paper" if records[0].config["width"] == Config.width else "laptop"


def pick(records: Sequence[Record], method: str, hyper_lr: float | None = None) -> list[Record]:
    """The runs of one method, by seed.

    Args:
        records: The runs.
        method: A name of `vision.METHODS`.
        hyper_lr: Learning rate of the hyper-optimizer; when left out the paper's 1e-4, or that of plain steps on M.

    Raises:
        MissingRunsError: If there are none.
    """
    group = [r for r in records if r.config["method"] == method]
    if hyper_lr is None:
        hyper_lr = PLAIN_HYPER_LR if method == "plain M" else Config.hyper_lr
    group = [r for r in group if r.config["hyper_lr"] == hyper_lr]
    if not group:
        raise MissingRunsError(
            f"no recorded run of {method} with hyper_lr {hyper_lr:g}; `fop run cifar10 --profile laptop` makes it"
        )
    return sorted(group, key=lambda record: record.config["seed"])


def groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Every method that is recorded, by the name that pages give it; Figure 2's first."""
    found: dict[str, list[Record]] = {}
    wanted: list[tuple[str, float | None]] = [(m, None) for m in (*MAIN, "matched", "frozen", "centralised", "flipped")]
    wanted += [(m, 5e-4) for m in ("FOP", "FOP-norm", "flipped")] + [(m, None) for m in ("velocity", "plain M")]
    for method, hyper_lr in wanted:
        try:
            found[method if hyper_lr is None else f"{method}, {hyper_lr:g}"] = pick(records, method, hyper_lr)
        except MissingRunsError:
            continue
    return found


# ---------------------------------------------------------------------------------------
# From runs to numbers


def epochs_to(group: Sequence[Record], level: float, name: str = "test_accuracy") -> np.ndarray:
    """Epochs until a curve first reached a level, `[runs]`; the whole training where it never did."""
    return reading.speed(group, level, name) / EPOCH


def seconds_to(group: Sequence[Record], level: float) -> np.ndarray:
    """Seconds of a run until its test accuracy first reached a level, measurements included, `[runs]`.

    On a machine that is shared this is the machine's as much as the method's. NaN where it never did.
    """
    iterations, clocks = curves(group, "seconds")
    found = reading.reached(group, level)
    seconds = [np.interp(at, iterations, clock) for at, clock in zip(found, clocks, strict=True)]
    return np.where(np.isfinite(found), seconds, np.nan)


def outcomes(records: Sequence[Record]) -> pd.DataFrame:
    """One row a method: seeds, final test accuracy and its spread, training loss, epochs and seconds to a level."""
    profile = profile_of(records)
    level, loss = RULES.level[profile], RULES.loss[profile]
    rows = {}
    for name, group in groups(records).items():
        accuracy = final(group)
        rows[name] = {
            "seeds": len(group), "accuracy": accuracy.mean(), "sd": accuracy.std(ddof=1) if len(group) > 1 else np.nan,
            "loss": final(group, "train_loss").mean(),
            f"to {level:g} %": reach(group, level) / EPOCH,
            f"to loss {loss:g}": reach(group, loss, "train_loss") / EPOCH,
            "seconds": seconds_to(group, level).mean(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def ahead_in_accuracy(ours: Sequence[Record], theirs: Sequence[Record]) -> Comparison:
    """Final test accuracy, ours minus theirs, in percentage points, seed by seed."""
    paired(ours, theirs)
    return compare(final(ours), final(theirs), resolution=0.01)


def ahead_in_speed(ours: Sequence[Record], theirs: Sequence[Record], name: str = "test_accuracy") -> Comparison:
    """How many epochs sooner ours reach the level of `RULES`, seed by seed."""
    paired(ours, theirs)
    level = (RULES.loss if name == "train_loss" else RULES.level)[profile_of(ours)]
    return compare(-epochs_to(ours, level, name), -epochs_to(theirs, level, name))


def against(
    records: Sequence[Record],
    others: Sequence[str],
    ahead: Callable[..., Comparison],
    **options: Any,
) -> dict[str, Comparison]:
    """FOP against other methods by one of the two measures above, by the other's name."""
    ours = pick(records, "FOP")
    return {other: ahead(ours, pick(records, other), **options) for other in others}


# ---------------------------------------------------------------------------------------
# Verdicts


def verdicts(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the runs say about each claim of Figure 2, top, one finding for each of its parts.

    Raises:
        MissingRunsError: If runs are missing.
    """
    found: dict[str, tuple[Finding, ...]] = {}
    for judged in (_printed, _figure_2, _controls):
        found |= judged(records)
    return found


def _printed(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """The printed accuracies: only the paper's network and epochs can decide them."""
    claims = {claim.id: claim for claim in read_claims()}
    found: dict[str, tuple[Finding, ...]] = {}
    for method, row in ROWS.items():
        ends = final(pick(records, method))
        seen = compare(ends, np.zeros(len(ends)), resolution=0.01)
        printed = claims[row].value, claims[row].tolerance
        finding = reading.number(f"final test accuracy of {method}", seen, printed, " %")  # type: ignore[arg-type]
        found[row] = (at_length(profile_of(records), finding),)
    return found


def at_length(profile: str, finding: Finding) -> Finding:
    """A finding about what stands after the paper's 150 epochs at its width: a smaller training doesn't decide it."""
    if profile == "paper":
        return finding
    return Finding(finding.what, "undecided", f"{finding.reason}; of a smaller and shorter training")


def _figure_2(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    others = MAIN[:-1]
    accuracy = against(records, others, ahead_in_accuracy)
    fast = against(records, others, ahead_in_speed)
    steep = against(records, others, ahead_in_speed, name="train_loss")
    better = judge_all(accuracy, "greater", RULES.accuracy)
    sooner = judge_all(fast, "greater", RULES.speed)
    steeper = judge_all(steep, "greater", RULES.speed)
    profile = profile_of(records)
    speed = (
        all_of(f"FOP reaches {RULES.level[profile]:g} % sooner, in epochs, than", others, sooner, fast),
        all_of(f"FOP reaches a training loss of {RULES.loss[profile]:g} sooner than", others, steeper, steep),
    )
    end = all_of("FOP ends with a better test accuracy, in points, than", others, better, accuracy)
    rotation = {name: accuracy[name] for name in ("FOP-norm", "S-HD")}
    both = all_of("FOP is better than its norm alone and a scale alone, in points: than", rotation, better, rotation)
    return {
        "text-4-1-speed-up": (*speed, end),
        "text-4-1-rotation-and-scaling": (both,),
    }


def _controls(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """The controls: what of FOP's difference to momentum do they have too?"""
    keys = ("matched", "frozen", "centralised", "flipped")
    seen = against(records, keys, ahead_in_accuracy)
    better = judge_all(seen, "greater", RULES.accuracy)
    lag = {key: ahead_in_speed(pick(records, key), pick(records, "FOP")) for key in keys}
    sooner = judge_all(lag, "greater", RULES.speed)
    momentum = pick(records, "momentum")
    flipped = {key: ahead_in_accuracy(pick(records, key), momentum) for key in ("flipped", "centralised")}
    lead = judge_all(flipped, "greater", RULES.accuracy)
    return {
        "ours-cifar-controls": (
            all_of("FOP ends better, in points, than", keys, better, seen),
        ),
        # Adjusted for all four; which three are named was seen in the runs.
        "ours-cifar-later": (
            all_of("sooner than FOP, in epochs:", ("frozen", "centralised", "flipped"), sooner, lag),
        ),
        "ours-cifar-flipped-better": (
            all_of("better than momentum, in points:", flipped, lead, flipped),
        ),
    }  # fmt: skip


def report(records: Sequence[Record]) -> str:
    """Everything above as text; what needs runs that are missing says which."""
    from fop_torch.studies.cifar10 import learned

    sections: dict[str, Callable[[], Any]] = {
        "Where it comes from": lambda: "\n".join(
            f"{name}: {fact}" for name, fact in provenance(STUDY, records).items()
        ),
        "Outcomes": lambda: text(outcomes(records), "never"),
    }
    for judged in (_printed, _figure_2, _controls):
        name = f"Verdicts, {judged.__name__.strip('_').replace('_', ' ')}"
        sections[name] = lambda these=judged: told(these(records))  # type: ignore[misc]
    return reading.report(sections | learned.sections(records))
