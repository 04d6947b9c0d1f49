"""Figure 2: how a half of it is read, CIFAR-10 or ImageNet. The studies' summaries say which runs, and what decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fop_theory import counts
from fop_theory.ledger import read_claims
from fop_torch.results import Record
from fop_torch.statistics import Comparison, Thresholds, compare, judge_all
from fop_torch.studies import cost, reading
from fop_torch.studies.reading import Finding, MissingRunsError, all_of, curves, final, paired, reach, together
from fop_torch.studies.vision import VisionConfig


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What decides; fixed before the runs.

    Comparisons that stand in one finding are adjusted together (Holm).

    Attributes:
        accuracy: In percentage points of final test accuracy. A lead of half a point counts; the printed ones are 0.6
            on CIFAR-10 and 0.4 on ImageNet.
        speed: In epochs. A lead of less than a tenth of an epoch does not count.
        level: Test accuracy, in percent, by which speed is timed, for each profile.
        loss: Training loss by which it is timed, likewise.
    """

    accuracy: Thresholds = field(default_factory=lambda: Thresholds(margin=0.5))
    speed: Thresholds = field(default_factory=lambda: Thresholds(margin=0.1))
    level: Mapping[str, float]
    loss: Mapping[str, float]


def _matrices(layers: Sequence[counts.Layer]) -> int:
    """Entries of FOP's matrices, and the one number of each linear layer."""
    return counts.entries_of_spatial_factors(layers) + sum(layer.dense for layer in layers)


#: What each method adds to a network.
ADDED: dict[str, Callable[[Sequence[counts.Layer]], int]] = {
    "S-HD": counts.scalar_rates,
    "PP-HD": counts.parameters,
    "FOP-norm": _matrices,
    "FOP": _matrices,
}


@dataclass(frozen=True)
class Half:
    """How one half of the figure is read.

    Attributes:
        title: Name of the images, for findings.
        study: Name of the study.
        rows: The rows of the ledger with the printed test accuracies, by method.
        methods: Figure 2's methods; FOP is the last.
        others: What else may be recorded: method, and the learning rate of the hyper-optimizer where it is not the
            method's usual one.
        epoch: Steps of an epoch, for each profile.
        tested: Images of the test set, for each profile.
        network: Its name in the record of measured times.
        whole: A setting that the smaller profiles reduce, and its value at the paper's scale.
        rules: What decides.
        rates: Usual learning rates of the hyper-optimizer, where they are not the paper's 1e-4.
    """

    title: str
    study: str
    rows: Mapping[str, str]
    methods: tuple[str, ...]
    others: tuple[tuple[str, float | None], ...]
    epoch: Mapping[str, int]
    tested: Mapping[str, int]
    network: str
    whole: tuple[str, Any]
    rules: Rules
    rates: Mapping[str, float] = field(default_factory=dict)

    # -----------------------------------------------------------------------------------
    # Which runs

    def profile_of(self, records: Sequence[Record]) -> str:
        """The profile that records are of: the paper's scale makes them the paper's.

        Raises:
            MissingRunsError: If there are none.
        """
        if not records:
            raise MissingRunsError(f"no recorded run; `fop run {self.study} --profile laptop` makes them")
        name, value = self.whole
        return "paper" if records[0].config[name] == value else "laptop"

    def pick(self, records: Sequence[Record], method: str, hyper_lr: float | None = None) -> list[Record]:
        """The runs of one method, by seed.

        Args:
            records: The runs.
            method: A name of `vision.METHODS`.
            hyper_lr: Learning rate of the hyper-optimizer; the method's usual one when left out.

        Raises:
            MissingRunsError: If there are none.
        """
        if hyper_lr is None:
            hyper_lr = self.rates.get(method, VisionConfig.hyper_lr)
        group = [r for r in records if r.config["method"] == method and r.config["hyper_lr"] == hyper_lr]
        if not group:
            raise MissingRunsError(
                f"no recorded run of {method} with hyper_lr {hyper_lr:g}; `fop run {self.study} --profile laptop` "
                "makes it"
            )
        return sorted(group, key=lambda record: record.config["seed"])

    def groups(self, records: Sequence[Record]) -> dict[str, list[Record]]:
        """Every method that is recorded, by the name that pages give it; Figure 2's first."""
        found: dict[str, list[Record]] = {}
        usual: list[tuple[str, float | None]] = [(method, None) for method in self.methods]
        for method, hyper_lr in (*usual, *self.others):
            try:
                found[method if hyper_lr is None else f"{method}, {hyper_lr:g}"] = self.pick(records, method, hyper_lr)
            except MissingRunsError:
                continue
        return found

    def common(self, records: Sequence[Record], methods: Iterable[str]) -> list[Record]:
        """The runs of those seeds that are recorded for all of some methods, at their usual rates.

        Raises:
            MissingRunsError: If there are fewer than two such seeds: nothing can be compared.
        """
        seeds = {method: {r.config["seed"] for r in self.pick(records, method)} for method in methods}
        shared = set.intersection(*seeds.values())
        if len(shared) < 2:
            told = ", ".join(f"{method} {sorted(each)}" for method, each in seeds.items())
            raise MissingRunsError(
                f"two seeds are needed that all have; recorded are the seeds of {told}; "
                f"`fop run {self.study} --profile laptop` makes what is missing"
            )
        return [r for r in records if r.config["seed"] in shared]

    # -----------------------------------------------------------------------------------
    # From runs to numbers

    def epochs_to(self, group: Sequence[Record], level: float, name: str = "test_accuracy") -> np.ndarray:
        """Epochs until a curve first reached a level, `[runs]`; the whole training where it never did."""
        return reading.speed(group, level, name) / self.epoch[self.profile_of(group)]

    def outcomes(self, records: Sequence[Record]) -> pd.DataFrame:
        """One row a method: seeds, final test accuracy and its spread, training loss, epochs and seconds to a level."""
        profile = self.profile_of(records)
        level, loss, epoch = self.rules.level[profile], self.rules.loss[profile], self.epoch[profile]
        rows = {}
        for name, group in self.groups(records).items():
            accuracy = final(group)
            rows[name] = {
                "seeds": len(group), "accuracy": accuracy.mean(),
                "sd": accuracy.std(ddof=1) if len(group) > 1 else np.nan, "loss": final(group, "train_loss").mean(),
                f"to {level:g} %": reach(group, level) / epoch,
                f"to loss {loss:g}": reach(group, loss, "train_loss") / epoch,
                "seconds": seconds_to(group, level).mean(),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index")

    def resolution(self, records: Sequence[Record]) -> float:
        """What one test image is of the accuracy, in percentage points."""
        return 100 / self.tested[self.profile_of(records)]

    def ahead_in_accuracy(self, ours: Sequence[Record], theirs: Sequence[Record]) -> Comparison:
        """Final test accuracy, ours minus theirs, in percentage points, seed by seed."""
        paired(ours, theirs)
        return compare(final(ours), final(theirs), resolution=self.resolution(ours))

    def ahead_in_speed(
        self, ours: Sequence[Record], theirs: Sequence[Record], name: str = "test_accuracy"
    ) -> Comparison:
        """How many epochs sooner ours reach the level of the rules, seed by seed."""
        paired(ours, theirs)
        level = (self.rules.loss if name == "train_loss" else self.rules.level)[self.profile_of(ours)]
        return compare(-self.epochs_to(ours, level, name), -self.epochs_to(theirs, level, name))

    def against(
        self, records: Sequence[Record], others: Sequence[str], ahead: Callable[..., Comparison], **options: Any
    ) -> dict[str, Comparison]:
        """FOP against other methods by one of the two measures above, by the other's name."""
        ours = self.pick(records, "FOP")
        return {other: ahead(ours, self.pick(records, other), **options) for other in others}

    def table(self, records: Sequence[Record], layers: Sequence[counts.Layer], clock: dict[str, Any]) -> str:
        """The figure's table: each printed number, and ours.

        Args:
            records: The runs, for the accuracies.
            layers: The paper's network, on which added parameters are counted.
            clock: The record of measured times, see `studies.cost`; all methods were timed in turns.
        """
        claims, timed = {claim.id: claim.value for claim in read_claims()}, cost.rows(clock, "training")
        lines = []
        for method, row in self.rows.items():
            group = final(self.pick(records, method))
            spread = f" ± {group.std(ddof=1):.1f}" if len(group) > 1 else ""
            line = [method, f"{claims[row]:.1f}", f"{group.mean():.1f}{spread}"]
            if method in ADDED:
                time = claims[row.replace("acc", "time")]
                parameters = claims[row.replace("acc", "params").replace("fop-norm", "fop")]
                (seen,) = (each for each in timed if each["network"] == self.network and each["name"] == method)
                line += [f"{parameters:,.0f}", f"{ADDED[method](layers):,}", f"{time:.1f}"]
                line += [f"{seen['by_step']['value']:.1f}"]
            lines.append(line + [""] * (7 - len(line)))
        head = ("", "accuracy, %", "ours", "parameters", "counted", "time, %", "measured")
        return cost.table(head, lines)

    # -----------------------------------------------------------------------------------
    # Findings

    def printed(self, records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
        """The printed accuracies: only the paper's network and epochs can decide them."""
        claims = {claim.id: claim for claim in read_claims()}
        found: dict[str, tuple[Finding, ...]] = {}
        for method, row in self.rows.items():
            ends = final(self.pick(records, method))
            seen = compare(ends, np.zeros(len(ends)), resolution=self.resolution(records))
            printed = claims[row].value, claims[row].tolerance
            finding = reading.number(f"final test accuracy of {method}", seen, printed, " %")  # type: ignore[arg-type]
            found[row] = (at_length(self.profile_of(records), finding),)
        return found

    def faster(self, records: Sequence[Record]) -> tuple[Finding, Finding]:
        """Is FOP sooner than the other four, by test accuracy and by training loss?"""
        others, profile = self.methods[:-1], self.profile_of(records)
        fast = self.against(records, others, self.ahead_in_speed)
        steep = self.against(records, others, self.ahead_in_speed, name="train_loss")
        sooner, steeper = (judge_all(each, "greater", self.rules.speed) for each in (fast, steep))
        level, loss = self.rules.level[profile], self.rules.loss[profile]
        return (
            all_of(f"FOP reaches {level:g} % sooner, in epochs, than", others, sooner, fast),
            all_of(f"FOP reaches a training loss of {loss:g} sooner than", others, steeper, steep),
        )

    def better(self, records: Sequence[Record]) -> Finding:
        """Does FOP end with a better test accuracy than the other four?"""
        others = self.methods[:-1]
        accuracy = self.against(records, others, self.ahead_in_accuracy)
        judged = judge_all(accuracy, "greater", self.rules.accuracy)
        return all_of("FOP ends with a better test accuracy, in points, than", others, judged, accuracy)


def seconds_to(group: Sequence[Record], level: float) -> np.ndarray:
    """Seconds of a run until its test accuracy first reached a level, measurements included, `[runs]`.

    On a machine that is shared this is the machine's as much as the method's. NaN where it never did.
    """
    iterations, clocks = curves(group, "seconds")
    found = reading.reached(group, level)
    seconds = [np.interp(at, iterations, clock) for at, clock in zip(found, clocks, strict=True)]
    return np.where(np.isfinite(found), seconds, np.nan)


def at_length(profile: str, finding: Finding) -> Finding:
    """A finding about what stands after the paper's epochs at its scale: a smaller training doesn't decide it."""
    if profile == "paper":
        return finding
    return Finding(finding.what, "undecided", f"{finding.reason}; of a smaller and shorter training")


def captions(halves: Sequence[tuple[Half, Sequence[Record]]]) -> dict[str, tuple[Finding, ...]]:
    """What the figure's caption says of both halves, one finding for each set of images.

    The figure as a whole, `fig-2`, is judged by the ledger from its tables' rows.

    Raises:
        MissingRunsError: If runs are missing.
    """
    faster, better = [], []
    for half, records in halves:
        some = half.common(records, half.methods)
        faster.append(_joined(half, half.faster(some)))
        better.append(_joined(half, [half.better(some)]))
    return {"fig-2-converges-faster": tuple(faster), "fig-2-slightly-superior": tuple(better)}


def _joined(half: Half, findings: Sequence[Finding]) -> Finding:
    """Several findings on a half, which must all come out, as one."""
    verdict = together(finding.verdict for finding in findings)
    return Finding(f"on {half.title}", verdict, "; ".join(f"{each.what}: {each.reason}" for each in findings))
