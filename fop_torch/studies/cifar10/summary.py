"""What the runs on CIFAR-10 say about Figure 2, top: from records to numbers, and from those to verdicts.

What they say about Figure 5 stands in `learned`, what both halves of Figure 2 share in `studies.figure2`. The chapter,
the ledger's tests and `fop report cifar10` read all three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fop_torch.results import Record
from fop_torch.statistics import judge_all
from fop_torch.studies import figure2, provenance, reading
from fop_torch.studies.cifar10.train import EPOCH, MAIN, PLAIN_HYPER_LR, STUDY, Config
from fop_torch.studies.figure2 import Half
from fop_torch.studies.reading import Finding, all_of, facts, text, told

#: The rows of the ledger with the paper's test accuracies.
ROWS = {method: f"fig-2-cifar-acc-{method.lower()}" for method in MAIN}

#: What decides; fixed before the runs, when pilots of two epochs and one seed had been seen. Speed is timed about
#: halfway to the end of the laptop's runs, and of the paper's; two records of the loss are a tenth of an epoch apart.
RULES = figure2.Rules(level={"laptop": 40.0, "paper": 80.0}, loss={"laptop": 1.6, "paper": 0.6})

HALF = Half(
    title="CIFAR-10",
    study=STUDY.name,
    rows=ROWS,
    methods=MAIN,
    others=(
        *((method, None) for method in ("matched", "frozen", "centralised", "flipped")),
        *((method, 5e-4) for method in ("FOP", "FOP-norm", "flipped")),
        *((method, None) for method in ("velocity", "plain M")),
    ),
    epoch={"laptop": EPOCH, "paper": EPOCH},
    tested={"laptop": 10_000, "paper": 10_000},
    network="All-CNN-C",
    whole=("width", Config.width),
    rules=RULES,
    rates={"plain M": PLAIN_HYPER_LR},
)
profile_of, pick, groups = HALF.profile_of, HALF.pick, HALF.groups
epochs_to, outcomes = HALF.epochs_to, HALF.outcomes
ahead_in_accuracy, ahead_in_speed, against = HALF.ahead_in_accuracy, HALF.ahead_in_speed, HALF.against


def verdicts(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the runs say about each claim of Figure 2, top, one finding for each of its parts.

    Raises:
        MissingRunsError: If runs are missing.
    """
    found: dict[str, tuple[Finding, ...]] = {}
    for judged in (HALF.printed, _figure_2, _controls):
        found |= judged(records)
    return found


def _figure_2(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    accuracy = against(records, MAIN[:-1], ahead_in_accuracy)
    better = judge_all(accuracy, "greater", RULES.accuracy)
    rotation = {name: accuracy[name] for name in ("FOP-norm", "S-HD")}
    both = all_of("FOP is better than its norm alone and a scale alone, in points: than", rotation, better, rotation)
    return {
        "text-4-1-speed-up": (*HALF.faster(records), HALF.better(records)),
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
    beyond = {"centralised": ahead_in_accuracy(pick(records, "flipped"), pick(records, "centralised"))}
    more = judge_all(beyond, "greater", RULES.accuracy)
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
        # Worded when the runs were known.
        "ours-cifar-more-than-centring": (
            all_of("flipped ends better, in points, than", beyond, more, beyond),
        ),
    }  # fmt: skip


def report(records: Sequence[Record]) -> str:
    """Everything above as text; what needs runs that are missing says which."""
    from fop_torch.studies.cifar10 import learned

    sections: dict[str, Callable[[], Any]] = {
        "Where it comes from": lambda: facts(provenance(STUDY, records)),
        "Outcomes": lambda: text(outcomes(records), "never"),
    }
    for judged in (HALF.printed, _figure_2, _controls):
        name = f"Verdicts, {judged.__name__.strip('_').replace('_', ' ')}"
        sections[name] = lambda these=judged: told(these(records))  # type: ignore[misc]
    return reading.report(sections | learned.sections(records))
