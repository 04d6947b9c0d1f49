"""What the runs on ImageNet say about Figure 2, bottom, and Figure 5 (a): from records to numbers and verdicts.

What both halves of Figure 2 share stands in `studies.figure2`. The chapter, the ledger's tests and
`fop report imagenet` read this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fop_torch.results import Record
from fop_torch.statistics import compare, judge_all
from fop_torch.studies import figure2, provenance, reading
from fop_torch.studies.cifar10 import learned
from fop_torch.studies.cifar10.summary import HALF as CIFAR10
from fop_torch.studies.figure2 import Half
from fop_torch.studies.imagenet.train import EPOCH, FEW, IMAGES, MAIN, STUDY, Config
from fop_torch.studies.reading import Finding, all_of, facts, text, told

#: The rows of the ledger with the paper's test accuracies.
ROWS = {method: f"fig-2-imagenet-acc-{method.lower()}" for method in MAIN}
#: What of FOP's difference to momentum do they have too? The paper's profile has no flipped runs.
CONTROLS = ("matched", "flipped")

#: What decides; written down before the first run of the laptop's profile ended, and committed when eight had, of
#: which no number had been read. With ten classes chance is
#: right in 10 % and has a loss of 2.3; with 1,000 the paper's network ends near 70 %. The loss is recorded four times
#: an epoch, the test accuracy once; between two records a curve is a straight line.
RULES = figure2.Rules(level={"laptop": 30.0, "paper": 50.0}, loss={"laptop": 1.9, "paper": 2.5})

HALF = Half(
    title="ImageNet",
    study=STUDY.name,
    rows=ROWS,
    methods=MAIN,
    others=tuple((method, None) for method in CONTROLS),
    epoch={"laptop": FEW, "paper": EPOCH},
    # Ten classes of the small set, 50 images each; the whole validation set.
    tested={"laptop": 500, "paper": 50_000},
    network="ResNet-18",
    whole=("images", IMAGES),
    rules=RULES,
)


def verdicts(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the runs say about each claim, one finding for each of its parts.

    Each is judged on the seeds that all the methods have which it compares: at least two.

    Raises:
        MissingRunsError: If runs are missing.
    """
    found: dict[str, tuple[Finding, ...]] = {}
    for judged in JUDGED.values():
        found |= judged(records)
    return found


def _printed(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    return HALF.printed(HALF.common(records, MAIN))


def _maintained(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    some = HALF.common(records, MAIN)
    return {"text-4-2-maintained": (*HALF.faster(some), HALF.better(some))}


def _controls(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    better, lead = "FOP ends better, in points, than", "with the sign flipped it ends better, in points, than"
    if HALF.profile_of(records) == "paper":
        return {"ours-imagenet-controls": _not_run(better), "ours-imagenet-flipped-better": _not_run(lead)}
    some = HALF.common(records, ("momentum", "FOP", *CONTROLS))
    seen = HALF.against(some, CONTROLS, HALF.ahead_in_accuracy)
    flipped = {"momentum": HALF.ahead_in_accuracy(HALF.pick(some, "flipped"), HALF.pick(some, "momentum"))}
    return {
        claim: (all_of(what, compared, judge_all(compared, "greater", RULES.accuracy), compared),)
        for claim, what, compared in (
            ("ours-imagenet-controls", better, seen),
            ("ours-imagenet-flipped-better", lead, flipped),
        )
    }


def _not_run(what: str) -> tuple[Finding, ...]:
    return (Finding(what, "undecided", "the paper's profile has no run with the sign flipped"),)


def _learned(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What P becomes in the layers with 3 x 3 kernels, by the rules of the CIFAR-10 study."""
    group = HALF.pick(HALF.common(records, ("FOP",)), "FOP")
    structure = (
        learned.negative_neighbours(group),
        learned.similar_across_layers(group)._replace(what="similar across layers"),
    )
    return {
        "fig-5-whitening": tuple(_at_scale(group[0], finding) for finding in structure),
        "ours-imagenet-ones": (learned.grows_along_common(group),),
    }


def _flipped(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """Has P what Section 5 describes if the sign of the hypergradient is flipped?"""
    if HALF.profile_of(records) == "paper":
        return {"ours-imagenet-flipped": _not_run("flipped, P has the signs that Section 5 describes")}
    return {"ours-imagenet-flipped": learned.as_described(HALF.pick(HALF.common(records, ("flipped",)), "flipped"))}


def _at_scale(record: Record, finding: Finding) -> Finding:
    """A finding whose reason says what it is of, if that is not the paper's scale."""
    if HALF.profile_of([record]) == "paper":
        return finding
    c, whole = record.config, Config("FOP", 0)
    scale = (
        f"of {c['iterations']:,} steps, not {whole.iterations:,}, on {c['classes']:,} classes at "
        f"{c['side']} x {c['side']}, not {whole.classes:,} at {whole.side} x {whole.side}"
    )
    return Finding(finding.what, finding.verdict, f"{finding.reason}; {scale}")


def _late(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the end of a training does to P: rows that were worded when two seeds were known."""
    group = HALF.pick(HALF.common(records, ("FOP",)), "FOP")
    zeros = np.zeros(len(group))
    early, late = (learned.agreement(group, when) for when in (slice(3), slice(-3, None)))
    rest = np.array([[learned.unsettled(r, layer, 1 / 2) for layer in learned.layers(r)] for r in group]).mean(axis=0)
    return {
        "ours-imagenet-agreement": (
            learned.signed("in the last three intervals", compare(late, zeros)),
            learned.signed("less than half of what it was in the first three, by", compare(early / 2 - late, zeros)),
        ),
        "ours-imagenet-settles": (
            Finding(
                f"norm of P within {learned.RULES.settled:.0%} of its whole change in the second half",
                "matches" if rest.max() <= learned.RULES.settled else "differs",
                f"share of the change in the second half, by layer: {', '.join(f'{each:.0%}' for each in rest)}",
            ),
        ),
    }  # fmt: skip


#: The parts of the verdicts, by the titles of the report.
JUDGED: dict[str, Callable[[Sequence[Record]], dict[str, tuple[Finding, ...]]]] = {
    "Verdicts, printed": _printed,
    "Verdicts, figure 2": _maintained,
    "Verdicts, controls": _controls,
    "Verdicts, figure 5": _learned,
    "Verdicts, flipped": _flipped,
    "Verdicts, late": _late,
}


def figure_2(cifar10: Sequence[Record], imagenet: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the caption of Figure 2 says of both halves, one finding for each.

    Raises:
        MissingRunsError: If runs are missing.
    """
    return figure2.captions([(CIFAR10, cifar10), (HALF, imagenet)])


def report(records: Sequence[Record]) -> str:
    """Everything above as text; what needs runs that are missing says which."""
    sections: dict[str, Callable[[], Any]] = {
        "Where it comes from": lambda: facts(provenance(STUDY, records)),
        "Outcomes": lambda: text(HALF.outcomes(records), "never"),
    }
    for method in ("FOP", "FOP-norm", "flipped"):
        sections[f"P by layer, {method}"] = lambda these=method: text(  # type: ignore[misc]
            learned.by_layer(HALF.pick(records, these))
        )
    for title, judged in JUDGED.items():
        sections[title] = lambda these=judged: told(these(records))  # type: ignore[misc]
    return reading.report(sections)
