"""Figure 3 in the paper's form, and the control beside it: each function draws on axes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from fop_theory.plots import COLORS
from fop_torch.results import Record
from fop_torch.statistics import mean_band
from fop_torch.studies.reading import MissingRunsError
from fop_torch.studies.robustness import summary
from fop_torch.studies.robustness.summary import Grid, Grids
from fop_torch.studies.robustness.train import METHODS

#: What the curves of (b) are called, and their colours.
ADAM = {
    "Adam": ("Adam", COLORS["Adam"]),
    "FOP": ("Adam with FOP", COLORS["FOP"]),
    "corrected": ("corrected", COLORS["S-HD"]),
}
MARK: dict[str, Any] = {"fill": False, "edgecolor": COLORS["FOP"], "linewidth": 2.5}


def heat_maps(axes: Sequence[Any], records: Sequence[Record]) -> None:
    """Figure 3 (a): mean final test accuracy without FOP (first axis) and with it (second).

    Settings that improve by a standard deviation are framed in blue, as in the paper. Both maps share their colours.
    """
    grids = Grids(records)
    ours, theirs = summary.pair(grids, "SGD")
    top = max(each.accuracy.mean(2).max() for each in (ours, theirs))
    for axis, found, name in zip(axes, (theirs, ours), ("momentum", "momentum with FOP"), strict=True):
        _heat_map(axis, found, found.accuracy.mean(2), cmap="gray", vmin=summary.RULES.chance, vmax=top)
        axis.set_ylabel(f"{name}\nmomentum α")
    try:
        marked = summary.marks(grids, "SGD").marked.reshape(ours.accuracy.shape[:2])
    except MissingRunsError:  # one seed has no deviation
        return
    for row, column in np.argwhere(marked):
        axes[1].add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, **MARK))


def control(axis: Any, records: Sequence[Record]) -> None:
    """FOP's mean accuracy less that of momentum with steps as long; blue where FOP is ahead."""
    ours, matched = summary.pair(Grids(records), "SGD", "FOP", "matched")
    difference = (ours.accuracy - matched.accuracy).mean(2)
    reach = max(1.0, float(np.abs(difference).max()))
    _heat_map(axis, ours, difference, cmap="RdBu", vmin=-reach, vmax=reach, form="+.1f")
    axis.set_ylabel("FOP less matched steps\nmomentum α")


def _heat_map(axis: Any, found: Grid, values: np.ndarray, form: str = ".1f", **colours: Any) -> None:
    """One number a setting; momentum grows downwards and the learning rate to the right, as in the paper."""
    drawn = axis.imshow(values, aspect="auto", **colours)
    for (row, column), number in np.ndenumerate(values):
        red, green, blue, _ = drawn.cmap(drawn.norm(number))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        colour = "white" if dark else "black"
        axis.text(column, row, f"{number:{form}}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(found.lrs)), [f"{lr:g}" for lr in found.lrs])
    axis.set_yticks(range(len(found.momenta)), [f"{momentum:g}" for momentum in found.momenta])
    axis.set_xlabel("learning rate ε")
    axis.grid(visible=False)


def adam(axis: Any, records: Sequence[Record]) -> None:
    """Figure 3 (b): final test accuracy of Adam over its learning rate, mean and bootstrap band of each method."""
    for method in METHODS["Adam"]:
        found = summary.grid(records, "Adam", method)
        label, color = ADAM[method]
        band = mean_band(found.accuracy[0].T)
        axis.plot(found.lrs, band.mean, marker="o", markersize=3, color=color, label=label)
        axis.fill_between(found.lrs, band.low, band.high, color=color, alpha=0.25, linewidth=0)
    axis.set(xscale="log", xlabel="learning rate ε", ylabel="final test accuracy in %")
    axis.legend()


def step_lengths(axis: Any, records: Sequence[Record]) -> None:
    """By what FOP lengthened the steps, geometric mean over layers, measurements and seeds; above 1 in blue."""
    grids = Grids(records)
    lengths, found = np.log2(summary.step_lengths(grids)), grids["SGD", "FOP"]
    counts = np.isfinite(lengths).sum(2)
    mean = np.divide(np.nansum(lengths, axis=2), counts, out=np.zeros(counts.shape), where=counts > 0)
    reach = max(1.0, float(np.abs(mean).max()))
    _heat_map(axis, found, mean, cmap="RdBu", vmin=-reach, vmax=reach, form="+.1f")
    axis.set_ylabel("log₂ of step length\nmomentum α")
