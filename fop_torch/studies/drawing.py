"""What the figures of both halves of Figure 2 share: each function draws on axes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from fop_theory.plots import COLORS, THEORY
from fop_torch.results import Record
from fop_torch.statistics import compare
from fop_torch.studies import reading
from fop_torch.studies.cifar10 import learned
from fop_torch.studies.figure2 import Half
from fop_torch.studies.reading import MissingRunsError

CONTROLS = {"flipped": "#000000", "centralised": "0.35", "matched": COLORS["momentum"], "frozen": "0.6"}


def training(
    half: Half, axis: Any, records: Sequence[Record], name: str = "train_loss", methods: Sequence[str] | None = None
) -> None:
    """A curve over the epochs for each method: mean over the seeds and bootstrap band.

    Args:
        half: Of Figure 2.
        axis: Where to draw.
        records: The runs.
        name: `"train_loss"`, or `"test_accuracy"` in percent.
        methods: Which; Figure 2's when left out.
    """
    for method in half.methods if methods is None else methods:
        try:
            iterations, band = reading.band(half.pick(records, method), name)
        except MissingRunsError:
            continue
        epochs = iterations / half.epoch[half.profile_of(records)]
        color = COLORS.get(method) or CONTROLS[method]
        axis.plot(epochs, band.mean, color=color, label=method)
        axis.fill_between(epochs, band.low, band.high, color=color, alpha=0.2, linewidth=0)
    axis.set(xlabel="epochs", ylabel={"train_loss": "training loss"}.get(name, "test accuracy in %"))
    axis.legend(fontsize=7)


def leads(half: Half, axis: Any, records: Sequence[Record]) -> None:
    """Final test accuracy of every method minus momentum's, seed by seed: points, and means with t-intervals."""
    momentum = reading.final(half.pick(records, "momentum"))
    found = {name: group for name, group in half.groups(records).items() if name != "momentum"}
    found = {name: group for name, group in found.items() if len(group) == len(momentum)}
    for place, group in enumerate(found.values()):
        ends = reading.final(group)
        seen = compare(ends, momentum, resolution=half.resolution(records))
        axis.errorbar(seen.mean, place, xerr=[[seen.mean - seen.low], [seen.high - seen.mean]], fmt="o",
                      color=COLORS["FOP"], capsize=2)  # fmt: skip
        axis.plot(ends - momentum, [place + 0.25] * len(ends), ".", color="0.5", markersize=4)
    axis.axvline(0, color=COLORS["momentum"], linewidth=1.2)
    axis.set_yticks(range(len(found)), list(found), fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="test accuracy minus momentum's, in points")


def tiles(axis: Any, P: np.ndarray, limit: float) -> None:
    """P - I as nine by nine small images, one for each position of the kernel, as in Figure 5 (a).

    Args:
        axis: Where to draw.
        P: `[9, 9]`.
        limit: Entries of P - I at which the colours end: blue below zero, red above.
    """
    side = round(len(P) ** 0.5)
    # Row i of P as the kernel that it is, at the place of position i.
    change = (P - np.eye(len(P))).reshape(side, side, side, side).transpose(0, 2, 1, 3).reshape(len(P), len(P))
    axis.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for edge in (side - 0.5, 2 * side - 0.5):
        axis.axhline(edge, color="white", linewidth=1)
        axis.axvline(edge, color="white", linewidth=1)
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)


def evolution(half: Half, axes: Sequence[Any], record: Record, layer: int, limit: float) -> None:
    """P over a run, as in Figure 5 (a); see `tiles`.

    Args:
        half: Of Figure 2.
        axes: One for each moment; the last moment is the end, the first the first record.
        record: The run.
        layer: Its place among the weights, from 1; its kernels are 3 x 3.
        limit: Entries of P - I at which the colours end: blue below zero, red above.
    """
    steps, P = learned.matrices(record, "P", layer)
    moments = np.linspace(0, len(steps) - 1, len(axes)).round().astype(int)
    for axis, moment in zip(axes, moments, strict=True):
        tiles(axis, P[moment], limit)
        axis.set(xlabel=f"epoch {steps[moment] / half.epoch[half.profile_of([record])]:g}")


def shades(count: int) -> list[Any]:
    """A colour for each layer, from the image, light, to the classes, dark."""
    return list(matplotlib.colormaps["Blues"](np.linspace(0.35, 1, count)))


def agreement(half: Half, axis: Any, group: Sequence[Record]) -> None:
    """How far successive gradients agree along what all positions have in common, by layer: means over the seeds."""
    layers = learned.layers(group[0], "C")
    for layer, color in zip(layers, shades(len(layers)), strict=True):
        found = [learned.successive(record, layer)["common"] for record in group]
        axis.plot(found[0].index / half.epoch[half.profile_of(group)], np.mean(found, axis=0), color=color,
                  label=f"layer {layer}")  # fmt: skip
    axis.axhline(0, **THEORY)
    axis.set(xlabel="epochs", ylabel="agreement of successive gradients")


def common(half: Half, axis: Any, group: Sequence[Record]) -> None:
    """P along what all positions have in common, over a run, by layer: means over the seeds."""
    layers = learned.layers(group[0])
    for layer, color in zip(layers, shades(len(layers)), strict=True):
        found = [learned.matrices(record, "P", layer) for record in group]
        along = [np.einsum("i,tij,j->t", learned.ONES, P, learned.ONES) for _, P in found]
        steps = found[0][0] / half.epoch[half.profile_of(group)]
        # From the identity on, which is not recorded.
        axis.plot([0, *steps], [1, *np.mean(along, axis=0)], color=color, label=f"layer {layer}")
    axis.axhline(1, **THEORY)
    axis.set(xlabel="epochs", ylabel="P along (1, …, 1)")
