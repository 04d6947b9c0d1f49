"""The figures of the CIFAR-10 study, in the paper's form: each function draws on axes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fop_theory.plots import COLORS, THEORY
from fop_torch.results import Record
from fop_torch.statistics import compare
from fop_torch.studies import reading
from fop_torch.studies.cifar10 import learned, summary
from fop_torch.studies.cifar10.learned import LAYERS, SIDE
from fop_torch.studies.cifar10.train import EPOCH, MAIN
from fop_torch.studies.reading import MissingRunsError

#: Layers from the image, light, to the classes, dark.
SHADES = dict(zip(LAYERS, ("#B3D5EC", "#85BDE2", "#4A9BD0", "#0072B2", "#00508A", "#02395F", "#02233D"), strict=True))
CONTROLS = {"flipped": "#000000", "centralised": "0.35", "matched": COLORS["momentum"], "frozen": "0.6"}


def training(axis: Any, records: Sequence[Record], name: str = "train_loss", methods: Sequence[str] = MAIN) -> None:
    """A curve over the epochs for each method: mean over the seeds and bootstrap band.

    Args:
        axis: Where to draw.
        records: The runs.
        name: `"train_loss"`, or `"test_accuracy"` in percent.
        methods: Which.
    """
    for method in methods:
        try:
            iterations, band = reading.band(summary.pick(records, method), name)
        except MissingRunsError:
            continue
        color = COLORS.get(method) or CONTROLS[method]
        axis.plot(iterations / EPOCH, band.mean, color=color, label=method)
        axis.fill_between(iterations / EPOCH, band.low, band.high, color=color, alpha=0.2, linewidth=0)
    axis.set(xlabel="epochs", ylabel={"train_loss": "training loss"}.get(name, "test accuracy in %"))
    axis.legend(fontsize=7)


def leads(axis: Any, records: Sequence[Record]) -> None:
    """Final test accuracy of every method minus momentum's, seed by seed: points, and means with t-intervals."""
    momentum = reading.final(summary.pick(records, "momentum"))
    found = {name: group for name, group in summary.groups(records).items() if name != "momentum"}
    found = {name: group for name, group in found.items() if len(group) == len(momentum)}
    for place, group in enumerate(found.values()):
        ends = reading.final(group)
        seen = compare(ends, momentum, resolution=0.01)
        axis.errorbar(seen.mean, place, xerr=[[seen.mean - seen.low], [seen.high - seen.mean]], fmt="o",
                      color=COLORS["FOP"], capsize=2)  # fmt: skip
        axis.plot(ends - momentum, [place + 0.25] * len(ends), ".", color="0.5", markersize=4)
    axis.axvline(0, color=COLORS["momentum"], linewidth=1.2)
    axis.set_yticks(range(len(found)), list(found), fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="test accuracy minus momentum's, in points")


def evolution(axes: Sequence[Any], record: Record, layer: int, limit: float) -> None:
    """P over a run, as in Figure 5 (a): nine by nine small images, one for each position of the kernel.

    Args:
        axes: One for each moment; the last moment is the end, the first the first record.
        record: The run.
        layer: 1 to 7.
        limit: Entries of P - I at which the colours end: blue below zero, red above.
    """
    steps, P = learned.matrices(record, "P", layer)
    moments = np.linspace(0, len(steps) - 1, len(axes)).round().astype(int)
    for axis, moment in zip(axes, moments, strict=True):
        change = P[moment] - np.eye(len(P[moment]))
        # Row i of P as the kernel that it is, at the place of position i.
        tiles = change.reshape(SIDE, SIDE, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(SIDE * SIDE, SIDE * SIDE)
        axis.imshow(tiles, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for edge in (SIDE - 0.5, 2 * SIDE - 0.5):
            axis.axhline(edge, color="white", linewidth=1)
            axis.axvline(edge, color="white", linewidth=1)
        axis.set(xticks=[], yticks=[], xlabel=f"epoch {steps[moment] / EPOCH:g}")
        axis.grid(visible=False)


def entries(axes: Sequence[Any], record: Record) -> None:
    """The entries of P over a run, as in Figure 5 (b): on the diagonal above, off it below; a column for each layer.

    Args:
        axes: `[2, 7]`.
        record: The run.
    """
    off = ~np.eye(SIDE * SIDE, dtype=bool)
    for column, layer in enumerate(LAYERS):
        steps, P = learned.matrices(record, "P", layer)
        for row, values in enumerate((P[:, ~off], P[:, off])):
            axis = axes[row][column]
            axis.fill_between(steps / EPOCH, values.min(axis=1), values.max(axis=1), color=SHADES[layer], alpha=0.4)
            axis.plot(steps / EPOCH, values.mean(axis=1), color=SHADES[layer])
        axes[0][column].set_title(f"layer {layer}", fontsize=7)
        axes[1][column].set(xlabel="epochs")
    axes[0][0].set(ylabel="diagonal of P")
    axes[1][0].set(ylabel="off it")


def spectra(axis: Any, group: Sequence[Record]) -> None:
    """Sorted eigenvalues of the final P by layer, as in Figure 5 (c): means over the seeds."""
    values = np.linalg.eigvalsh(learned.last(group))[..., ::-1].mean(axis=0)
    for layer, each in zip(LAYERS, values, strict=True):
        axis.plot(range(1, len(each) + 1), each, ".-", color=SHADES[layer], label=f"layer {layer}")
    axis.axhline(1, label="start", **THEORY)
    axis.set(xlabel="eigenvalue, sorted", ylabel="of P")
    axis.legend(fontsize=6)


def along_common(axis: Any, records: Sequence[Record], layer: int = 4) -> None:
    """`u^T P u` for what all positions have in common, over a run, for every rule by which M was learned."""
    for name, key in learned.PROBES.items():
        try:
            group = summary.pick(records, *key)
        except MissingRunsError:
            continue
        found = [learned.matrices(record, "P", layer) for record in group]
        steps = found[0][0] / EPOCH
        common = np.array([np.einsum("i,tij,j->t", learned.ONES, P, learned.ONES) for _, P in found])
        (line,) = axis.plot(steps, common.mean(axis=0), label=name)
        axis.fill_between(steps, common.min(axis=0), common.max(axis=0), color=line.get_color(), alpha=0.2)
    axis.axhline(1, **THEORY)
    axis.set(xlabel="epochs", ylabel=f"P along (1, …, 1), layer {layer}", yscale="log")
    axis.legend(fontsize=6)


def agreement(axis: Any, group: Sequence[Record]) -> None:
    """How far successive gradients agree along what all positions have in common, by layer: means over the seeds."""
    for layer in LAYERS:
        found = [learned.successive(record, layer)["common"] for record in group]
        axis.plot(found[0].index / EPOCH, np.mean(found, axis=0), color=SHADES[layer], label=f"layer {layer}")
    axis.axhline(0, **THEORY)
    axis.set(xlabel="epochs", ylabel="agreement of successive gradients")
    axis.legend(fontsize=6)
