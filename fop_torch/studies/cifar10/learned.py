"""What the preconditioners of the runs on CIFAR-10 look like: Figure 5 and Section 5, from records to verdicts.

A kernel has 3 x 3 positions, numbered row by row; its P is `[9, 9]`. The layers with such kernels count, seven as in
Figure 5. What is not of this network alone serves the ResNet of the ImageNet study too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats

from fop_torch import FOP
from fop_torch.results import Record
from fop_torch.statistics import Comparison, Thresholds, Verdict, compare, judge
from fop_torch.studies.cifar10.summary import pick, profile_of
from fop_torch.studies.figure2 import at_length
from fop_torch.studies.reading import ANY, Finding, MissingRunsError, interval, text, told

LAYERS = range(1, 8)
SIDE = 3
POSITIONS = SIDE * SIDE
#: Unit vector of what all positions have in common.
ONES = np.ones(POSITIONS) / SIDE


@dataclass(frozen=True)
class Rules:
    """What decides; fixed before the runs, when pilots of two epochs and one seed had been seen.

    Attributes:
        any: What is judged by its sign alone, over the seeds.
        order: Of a rank correlation with the layer's number, seed by seed.
        whitening: P counts as whitening in a layer if its neighbours' mean entry is negative and lower than with the
            positions shuffled in all but this share of the orders.
        determinant: "Near zero": less than so much.
        settled: "Relatively fixed" is a norm that changes by at most this share of its whole change after two thirds;
            "stable" a step's lengthening that changes by at most this share of itself.
        similar: "Similar": a mean correlation of at least so much between two matrices' entries off the diagonal. Added
            when the runs were known: or a cosine of at least so much between their changes P - I, which counts what
            all entries have in common too. Both readings are judged.
        nearly: P is nearly `I + c 1 1^T` if that direction holds at least this share of `|P - I|^2`. Fixed when the
            runs were known.
        alone: Noise alone moves P so little if it stays below this share of the run's `|P - I|`. Likewise.
    """

    any: Thresholds = ANY
    order: Thresholds = field(default_factory=lambda: Thresholds(margin=0.5))
    whitening: float = 0.05
    determinant: float = 1e-3
    settled: float = 0.1
    similar: float = 0.5
    nearly: float = 0.95
    alone: float = 0.1


RULES = Rules()


# ---------------------------------------------------------------------------------------
# The matrices of a run


def layers(record: Record, name: str = "P") -> list[int]:
    """The layers for which a run has matrices `[9, 9]`: places among the network's weights, from 1.

    Raises:
        MissingRunsError: If there are none.
    """
    rows = record.metrics
    least, more = (set(rows["part"][rows["name"] == f"{name} {last} {last}"]) for last in (POSITIONS - 1, POSITIONS))
    if not least - more:
        raise MissingRunsError(f"{record.path.stem}: no {name} of a layer with 3 x 3 kernels is recorded")
    return sorted(map(int, least - more))


def matrices(record: Record, name: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric matrix over a run, from its recorded upper triangle.

    Args:
        record: The run.
        name: `"P"`, or of the gradients G_t since the matrix before: `"C"` = sum of `G_t^T G_t`, `"X"` = symmetric part
            of the sum of `G_t^T G_(t-1)`.
        layer: Its place among the network's weights, from 1; its kernels are 3 x 3.

    Returns:
        Iterations `[t]` and matrices `[t, 9, 9]`.

    Raises:
        MissingRunsError: If the run has none.
    """
    rows = record.metrics
    rows = rows[rows["part"] == str(layer)]
    rows = rows[rows["name"].str.startswith(f"{name} ")]
    if rows.empty:
        raise MissingRunsError(f"{record.path.stem}: no {name} of layer {layer} is recorded")
    steps, at = np.unique(rows["iteration"], return_inverse=True)
    which, names = pd.factorize(rows["name"])
    i, j = np.array([each.split()[1:] for each in names], dtype=int)[which].T
    found = np.full((len(steps), POSITIONS, POSITIONS), np.nan)
    found[at, i, j] = found[at, j, i] = rows["value"]
    return steps, found


def last(group: Sequence[Record], name: str = "P") -> np.ndarray:
    """The last matrix of every run and layer, `[runs, layers, 9, 9]`."""
    places = layers(group[0], name)
    return np.array([[matrices(record, name, layer)[1][-1] for layer in places] for record in group])


# ---------------------------------------------------------------------------------------
# What a matrix is like


def pairs(wrapped: bool = False) -> list[tuple[int, int]]:
    """Neighbours among the positions: the 12 that share an edge, or the 6 that would if the kernel were a torus."""
    found = []
    for i, j in combinations(range(POSITIONS), 2):
        (a, b), (c, d) = divmod(i, SIDE), divmod(j, SIDE)
        steps = sorted((abs(a - c), abs(b - d)))
        if steps == ([0, SIDE - 1] if wrapped else [0, 1]):
            found.append((i, j))
    return found


def mean_at(P: np.ndarray, where: Sequence[tuple[int, int]]) -> np.ndarray:
    """Mean entry of `P: [..., 9, 9]` at some pairs of positions."""
    i, j = zip(*where, strict=True)
    return P[..., list(i), list(j)].mean(axis=-1)


def shuffled(P: np.ndarray, count: int = 2_000) -> np.ndarray:
    """The neighbours' mean entry with the positions in other orders: what chance makes of it, `[count]`."""
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(POSITIONS), (count, 1)), axis=1)
    i, j = zip(*pairs(), strict=True)
    return P[orders[:, list(i)], orders[:, list(j)]].mean(axis=1)


@cache
def random_directions(count: int = 2_000) -> np.ndarray:
    """The neighbours' mean entry of `P - I` for random M near the identity, per unit of `|P - I|`, `[count]`.

    With `M = I + E` and small E it is that of `E + E^T`.
    """
    E = np.random.default_rng(1).standard_normal((count, POSITIONS, POSITIONS))
    change = E + E.transpose(0, 2, 1)
    return mean_at(change, pairs()) / np.linalg.norm(change, axis=(1, 2))


class Shape(NamedTuple):
    """What Section 5 says of a matrix, in numbers.

    Attributes:
        diagonal: Mean entry on the diagonal.
        off: Mean absolute entry off it.
        neighbours: Mean entry at the 12 pairs of positions that share an edge.
        wrapped: Mean entry at the 6 pairs that would on a torus.
        p: Share of the orders of the positions whose neighbours' mean is as low or lower.
        random: Share of random M as far from the identity whose neighbours' mean is as low or lower.
        common: `u^T P u` for what all positions have in common, `u = 1/3`; 1 at the start.
        rest: Mean of the other eigenvalues' share: `(tr P - common) / 8`.
        along: Share of `|P - I|^2` that lies along `1 1^T`.
        norm: Frobenius norm.
        smallest: Smallest eigenvalue.
        largest: Largest eigenvalue.
        spread: Standard deviation of the eigenvalues over their mean: 0 for a uniform spectrum.
        condition: Largest eigenvalue over smallest.
        determinant: Product of the eigenvalues.
    """

    diagonal: float
    off: float
    neighbours: float
    wrapped: float
    p: float
    random: float
    common: float
    rest: float
    along: float
    norm: float
    smallest: float
    largest: float
    spread: float
    condition: float
    determinant: float


def shape(P: np.ndarray) -> Shape:
    """Look at one matrix `[9, 9]`."""
    values = np.linalg.eigvalsh(P)
    near = mean_at(P, pairs())
    common, change = float(ONES @ P @ ONES), np.square(P - np.eye(POSITIONS)).sum()
    return Shape(
        diagonal=float(np.diag(P).mean()),
        off=float(np.abs(P[~np.eye(POSITIONS, dtype=bool)]).mean()),
        neighbours=float(near),
        wrapped=float(mean_at(P, pairs(wrapped=True))),
        p=float((shuffled(P) <= near + 1e-12).mean()),
        random=float((change**0.5 * random_directions() <= near).mean()),
        common=common,
        rest=float((np.trace(P) - common) / (POSITIONS - 1)),
        along=float((common - 1) ** 2 / change) if change > 0 else 0.0,
        norm=float(np.linalg.norm(P)),
        smallest=float(values[0]),
        largest=float(values[-1]),
        spread=float(values.std() / values.mean()),
        condition=float(values[-1] / values[0]) if values[0] > 0 else np.inf,
        determinant=float(np.prod(values)),
    )


def shapes(group: Sequence[Record]) -> pd.DataFrame:
    """The last matrices' shapes, one row a run's seed and layer."""
    rows = [
        {"seed": record.config["seed"], "layer": layer} | shape(P)._asdict()
        for record, each in zip(group, last(group), strict=True)
        for layer, P in zip(layers(record), each, strict=True)
    ]
    return pd.DataFrame(rows).set_index(["seed", "layer"])


def by_layer(group: Sequence[Record]) -> pd.DataFrame:
    """Means of the shapes over the seeds, one row a layer."""
    return shapes(group).groupby("layer").mean()


def similarity(P: np.ndarray) -> np.ndarray:
    """Correlations of the entries off the diagonal between all pairs of matrices `[n, 9, 9]`."""
    upper = np.triu_indices(POSITIONS, 1)
    table = np.corrcoef(P[:, upper[0], upper[1]])
    return table[np.triu_indices(len(P), 1)]


def cosines(changes: np.ndarray) -> np.ndarray:
    """Cosines between all pairs of matrices `[n, 9, 9]`, taken as vectors."""
    rows = changes.reshape(len(changes), -1)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def depth(values: pd.Series) -> np.ndarray:
    """Spearman's rank correlation of a column of `shapes` with the layer's number, for each seed."""
    each = [(rows.index.get_level_values("layer"), rows) for _, rows in values.groupby("seed")]
    # The same value in every layer is no order.
    return np.array([stats.spearmanr(*pair)[0] if np.ptp(pair[1]) > 0 else 0.0 for pair in each])


# ---------------------------------------------------------------------------------------
# What drives it


def successive(record: Record, layer: int) -> pd.DataFrame:
    """How far successive gradients agree, along what all positions share and in the other directions, over a run.

    `sum g_t g_(t-1) / sum g_t^2` along a direction lies between -1 and 1. FOP as printed makes P grow along a direction
    where it is positive, and shrink where it is negative.

    Returns:
        One row an interval between two tests: `common`, `rest` (the mean over the others), and `share`: the part of the
        gradients' energy that lies along the common direction, 1/9 for white gradients.
    """
    steps, C = matrices(record, "C", layer)
    _, X = matrices(record, "X", layer)
    energy, agreement = (np.einsum("i,tij,j->t", ONES, A, ONES) for A in (C, X))
    totals, sums = np.trace(C, axis1=1, axis2=2), np.trace(X, axis1=1, axis2=2)
    return pd.DataFrame(
        {"common": agreement / energy, "rest": (sums - agreement) / (totals - energy), "share": energy / totals},
        index=steps,
    )


def whitening_of_gradients(record: Record, layer: int) -> float:
    """Does P shrink what gradients have much of? Rank correlation of `u^T P u` with the variance along u.

    u runs over the eigenvectors of the gradients' spatial covariance, summed over the run. A whitening has -1.
    """
    C = matrices(record, "C", layer)[1].sum(axis=0)
    P = matrices(record, "P", layer)[1][-1]
    variances, directions = np.linalg.eigh(C)
    return float(stats.spearmanr(variances, np.einsum("ki,kl,li->i", directions, P, directions))[0])


def by_chance(record: Record, rows: int = 100, seed: int = 0) -> np.ndarray:
    """P `[7, 9, 9]` after as many steps of the run's optimizer on noise of the run's covariances, without a network.

    Args:
        record: The run; the last covariance of each layer's gradients is taken.
        rows: Kernels of a layer, which share its P.
        seed: Of the noise.
    """
    C = torch.tensor(last([record], "C")[0], dtype=torch.float32)
    roots = torch.linalg.cholesky(C / C.diagonal(dim1=1, dim2=2).sum(1)[:, None, None])
    kernels = [torch.nn.Parameter(torch.zeros(rows, 1, SIDE, SIDE)) for _ in LAYERS]
    stepper = FOP(kernels, record.config["lr"], hyper_lr=record.config["hyper_lr"], foreach=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(record.config["iterations"]):
        noise = torch.randn(len(LAYERS), rows, POSITIONS, generator=generator) @ roots.mT
        for p, grad in zip(kernels, noise.view(len(LAYERS), rows, 1, SIDE, SIDE), strict=True):
            p.grad = grad
        stepper.step()
    return np.array([each.P.numpy() for each in stepper.preconditioners().values()])


def unsettled(record: Record, layer: int, share: float = 2 / 3) -> float:
    """How far the norm of P still moves after a share of the run, as a share of its whole way from the identity's."""
    steps, P = matrices(record, "P", layer)
    size, since = np.linalg.norm(P, axis=(1, 2)), share * steps[-1]
    late = np.append(size[steps > since], np.interp(since, steps, size))
    return float(np.ptp(late) / np.ptp(np.append(size, SIDE)))


def drift(record: Record, layer: int) -> float:
    """By which share the step-length gain changes over the last third, along a straight line fitted to it."""
    curve = record.curve("gain", str(layer))
    late = curve[curve.index >= 2 * curve.index[-1] / 3]
    slope, _ = np.polyfit(late.index, late, 1)
    return float(abs(slope) * (late.index[-1] - late.index[0]) / late.mean())


# ---------------------------------------------------------------------------------------
# Verdicts


def verdicts(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What the runs say about each claim of Figure 5 and Section 5, one finding for each of its parts.

    The paper's own update is judged at the rate of M that the paper gives, 1e-4.

    Raises:
        MissingRunsError: If runs are missing.
    """
    return _as_printed(pick(records, "FOP")) | _rivals(records)


def structure(group: Sequence[Record]) -> tuple[Finding, ...]:
    """Is the structure of Figure 5 (a) there: each position strong for itself, negative neighbours, no wrapping?"""
    found = shapes(group)
    wraps = compare((found["wrapped"] - found["neighbours"]).groupby("seed").mean(), np.zeros(len(group)))
    return (
        strong_for_itself(group),
        negative_neighbours(group),
        Finding(
            "without wrapping: higher at the corners' would-be neighbours", judge(wraps, "greater", RULES.any),
            f"mean entry there minus that of neighbours {interval(wraps, 4)}",
        ),
    )  # fmt: skip


def strong_for_itself(group: Sequence[Record]) -> Finding:
    """Is each diagonal entry of every matrix positive, and larger than any other of the matrix?"""
    ends = last(group)
    diagonal, off = np.diagonal(ends, axis1=2, axis2=3), ends[..., ~np.eye(POSITIONS, dtype=bool)]
    return Finding(
        "each position positive for itself, by more than any other entry",
        "matches" if (diagonal.min(-1) > np.abs(off).max(-1)).all() else "differs",
        f"smallest on the diagonal {diagonal.min():.3f}, largest off it {np.abs(off).max():.3f}; P starts so",
    )


def negative_neighbours(group: Sequence[Record]) -> Finding:
    """Is the mean entry at neighbours negative, in the mean over the layers, by its sign over the seeds?"""
    found = shapes(group)
    low = compare(-found["neighbours"].groupby("seed").mean(), np.zeros(len(group)))
    share = float(((found["neighbours"] < 0) & (found["p"] <= RULES.whitening)).mean())
    return Finding(
        "neighbours negative", judge(low, "greater", RULES.any),
        f"mean entry at neighbours {interval(_minus(low), 4)}; negative and lower than with shuffled positions in "
        f"{share:.0%} of the matrices",
    )  # fmt: skip


def similar_across_layers(group: Sequence[Record]) -> Finding:
    """Do the layers' matrices have the same pattern off the diagonal?"""
    return _at_least("across layers", np.array([similarity(each).mean() for each in last(group)]), RULES.similar)


def grows_along_common(group: Sequence[Record]) -> Finding:
    """Does P grow along what all positions have in common, in the mean over the layers, by its sign over the seeds?"""
    return signed("P grows along what all positions have in common, by", along_common(group))


def _as_printed(group: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    found = shapes(group)
    zeros, profile = np.zeros(len(group)), profile_of(group)

    def mean(values: pd.Series) -> np.ndarray:
        return values.groupby("seed").mean().to_numpy()

    def deeper(what: str, column: pd.Series) -> Finding:
        seen = compare(depth(column), zeros)
        verdict = judge(seen, "greater", RULES.order)
        return Finding(what, verdict, f"rank correlation with the layer {interval(seen)}")

    diagonal, off = compare(1 - mean(found["diagonal"]), zeros), compare(mean(found["off"]), zeros)
    ends = last(group)
    across_seeds = np.array([similarity(ends[:, i]).mean() for i in range(len(LAYERS))])
    changes = np.concatenate(ends) - np.eye(POSITIONS)
    rest = {layer: float(np.mean([unsettled(record, layer) for record in group])) for layer in LAYERS}
    drifts = {layer: float(np.mean([drift(record, layer) for record in group])) for layer in LAYERS}
    shrinks = Finding(
        "the diagonal shrinks", judge(diagonal, "greater", RULES.any), f"by {interval(diagonal, 4)} from 1"
    )
    grows = Finding(
        "off the diagonal it grows", judge(off, "greater", RULES.any), f"mean absolute entry {interval(off, 4)}"
    )
    smaller = deeper("eigenvalues smaller in higher layers", -(found["diagonal"]))
    uniform = deeper("eigenvalues more uniform in higher layers", -found["spread"])
    return {
        "text-5-whitening": structure(group),
        "text-5-similar-structures": (
            _at_least("across seeds", across_seeds, RULES.similar),
            similar_across_layers(group),
            _at_least("as directions of P - I, across both", cosines(changes), RULES.similar),
        ),
        "text-5-norm-shift": (shrinks, grows, deeper("the diagonal shrinks more in higher layers", -found["diagonal"])),
        "fig-5-stronger-higher-layers": (
            deeper("stronger decorrelation in higher layers", -found["neighbours"]),
            deeper("smaller norm in higher layers", -found["norm"]),
        ),
        "fig-5-eigenvalues-shift": (smaller, uniform),
        "text-5-more-uniform": (smaller, uniform),
        "text-5-psd-met": (
            Finding(
                "no negative eigenvalue", "matches" if found["smallest"].min() >= 0 else "differs",
                f"smallest eigenvalue of all {found['smallest'].min():.4f}",
            ),
        ),
        # Even where P shrinks, so short a training leaves its determinant far from zero: nothing here could show it.
        "text-5-near-zero-determinant": (
            at_length(profile, _all_layers("determinant near zero", found["determinant"], RULES.determinant)),
            at_length(profile, _all_layers("eigenvalues below one", found["largest"], 1.0)),
        ),
        "text-6-two-thirds": (
            at_length(profile, _settled(f"norm within {RULES.settled:.0%} of its whole change after two thirds",
                                        "share of the change in the last third", rest)),
        ),
        "text-6-lr-stabilizes": (
            at_length(profile, _settled(f"steps' lengthening within {RULES.settled:.0%} after two thirds",
                                        "change of |G P| / |G| in the last third", drifts)),
        ),
    }  # fmt: skip


def _rivals(records: Sequence[Record]) -> dict[str, tuple[Finding, ...]]:
    """What makes the structure; the rows that these judge were worded when the first seed's runs were known."""
    printed, flipped = pick(records, "FOP"), pick(records, "flipped")
    zeros = np.zeros(len(printed))
    names = (*OTHER_RULES, "shuffled")
    grown = {name: along_common(pick(records, *PROBES[name])) for name in names}
    late = compare(agreement(printed, slice(-3, None)), zeros)
    variances = {
        name: compare([np.mean([whitening_of_gradients(r, layer) for layer in LAYERS]) for r in group], zeros)
        for name, group in (("FOP", printed), ("flipped", flipped))
    }
    moved, learned = (
        np.linalg.norm(P - np.eye(POSITIONS), axis=(1, 2)) for P in (by_chance(printed[0]), last(printed)[0])
    )
    return {
        "ours-cifar-ones": (
            grows_along_common(printed),
            _whole("in every layer and run", shapes(printed)["common"] > 1),
            _whole(f"{RULES.nearly:.0%} of the change lie there", shapes(printed)["along"] >= RULES.nearly),
        ),
        "ours-cifar-flipped": as_described(flipped),
        "ours-cifar-agreement": (
            signed("in the last three intervals", late),
        ),
        "ours-cifar-covariance": (
            signed("as printed, P stretches where gradients vary most: rank correlation", variances["FOP"]),
            signed("flipped, it shrinks there: minus the rank correlation", _minus(variances["flipped"])),
        ),
        "ours-cifar-noise-alone": (
            Finding(
                f"moves P less than {RULES.alone:.0%} as far",
                "matches" if moved.max() < RULES.alone * learned.min() else "differs",
                f"|P - I| of the layer that moved farthest on noise {moved.max():.3f}, of the one that moved least in "
                f"the run {learned.min():.3f}",
            ),
        ),
        "ours-cifar-other-rules": tuple(
            signed(f"{name}: P grows along what all positions have in common, by", grown[name])
            for name in OTHER_RULES
        ),
        "ours-cifar-velocity": as_described(pick(records, "velocity")),
        "ours-cifar-shuffled": (signed("with labels by chance, by", grown["shuffled"]),),
    }  # fmt: skip


def as_described(group: Sequence[Record]) -> tuple[Finding, ...]:
    """Has P, in the mean over the layers and in sign, what Section 5 describes?"""
    found = shapes(group)
    below = compare(1 - found["diagonal"].groupby("seed").mean(), np.zeros(len(group)))
    return (
        *structure(group),
        signed("diagonal below one, by", below),
        signed("smaller along what all positions have in common, by", _minus(along_common(group))),
        _whole("smallest eigenvalue below one", found["smallest"] < 1),
    )


#: Rules for M that could have turned the direction, by their names in `PROBES`.
OTHER_RULES = ("plain M", "FOP-norm")


def along_common(group: Sequence[Record]) -> Comparison:
    """By how much `u^T P u` ends above 1 for what all positions have in common: mean over layers, over the seeds."""
    common = shapes(group)["common"].groupby("seed").mean()
    return compare(common - 1, np.zeros(len(common)))


def agreement(group: Sequence[Record], when: slice) -> np.ndarray:
    """Agreement of successive gradients along the common direction, mean over layers and some intervals, `[runs]`."""
    places = layers(group[0], "C")
    return np.array([np.mean([successive(r, layer)["common"].iloc[when].mean() for layer in places]) for r in group])


#: Runs whose P is compared: by name, method and rate of the hyper-optimizer.
PROBES: Mapping[str, tuple[Any, ...]] = {
    "FOP": ("FOP",),
    "FOP, 5e-4": ("FOP", 5e-4),
    "flipped": ("flipped",),
    "flipped, 5e-4": ("flipped", 5e-4),
    "FOP-norm": ("FOP-norm",),
    "velocity": ("velocity",),
    "plain M": ("plain M",),
    "shuffled": ("shuffled",),
}


def _settled(what: str, measured: str, by_layer: Mapping[int, float]) -> Finding:
    verdict: Verdict = "matches" if max(by_layer.values()) <= RULES.settled else "differs"
    return Finding(what, verdict, f"{measured}, by layer: " + ", ".join(f"{v:.0%}" for v in by_layer.values()))


def _whole(what: str, holds: pd.Series) -> Finding:
    return Finding(what, "matches" if holds.all() else "differs", f"{holds.mean():.0%} of the matrices")


def signed(what: str, seen: Comparison) -> Finding:
    """Is a quantity above zero, by its sign over the seeds?"""
    return Finding(what, judge(seen, "greater", RULES.any), interval(seen, 4))


def _minus(seen: Comparison) -> Comparison:
    return replace(seen, mean=-seen.mean, low=-seen.high, high=-seen.low, effect=-seen.effect)


def _at_least(what: str, values: np.ndarray, least: float) -> Finding:
    verdict: Verdict = "matches" if values.mean() >= least else "differs"
    return Finding(
        what,
        verdict,
        f"mean correlation or cosine {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})",
    )


def _all_layers(what: str, values: pd.Series, most: float) -> Finding:
    verdict: Verdict = "matches" if values.max() < most else "differs"
    means = values.groupby("layer").mean()
    return Finding(what, verdict, f"by layer {', '.join(f'{value:.3g}' for value in means)}; less than {most:g} counts")


def sections(records: Sequence[Record]) -> dict[str, Callable[[], Any]]:
    """For `fop report cifar10`."""
    found: dict[str, Callable[[], Any]] = {}
    for name, key in PROBES.items():
        found[f"P by layer, {name}"] = lambda these=key: text(by_layer(pick(records, *these)))  # type: ignore[misc]
    found["Verdicts, Figure 5"] = lambda: told(verdicts(records))
    return found
