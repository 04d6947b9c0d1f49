"""The figures of the CIFAR-10 study, in the paper's form: each function draws on axes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from fop_theory.plots import THEORY
from fop_torch.results import Record
from fop_torch.studies import drawing
from fop_torch.studies.cifar10 import learned
from fop_torch.studies.cifar10.learned import LAYERS, SIDE
from fop_torch.studies.cifar10.summary import HALF
from fop_torch.studies.cifar10.train import EPOCH
from fop_torch.studies.reading import MissingRunsError

SHADES = dict(zip(LAYERS, drawing.shades(len(LAYERS)), strict=True))

training, leads, evolution = (partial(draw, HALF) for draw in (drawing.training, drawing.leads, drawing.evolution))


def entries(axes: Sequence[Any], group: Sequence[Record], bins: int = 50) -> None:
    """Histograms of the entries of P over a run, as in Figure 5 (b): on the diagonal above, off it below.

    A column of a panel is the histogram of one moment, drawn as shades: the darker, the more of the entries.

    Args:
        axes: `[2, 7]`, a column for each layer.
        group: Runs of one method, whose entries are counted together.
        bins: Of a histogram; the same for all layers.
    """
    off = ~np.eye(SIDE * SIDE, dtype=bool)
    found = {layer: [learned.matrices(record, "P", layer) for record in group] for layer in LAYERS}
    epochs = found[LAYERS[0]][0][0] / EPOCH
    for row, which in zip(axes, (~off, off), strict=True):
        # The entries of every layer, [t, n].
        values = {layer: np.concatenate([P[:, which] for _, P in each], axis=1) for layer, each in found.items()}
        everything = np.concatenate(list(values.values()))
        edges = np.linspace(everything.min(), everything.max(), bins + 1)
        for axis, each in zip(row, values.values(), strict=True):
            shares = [np.histogram(moment, edges)[0] / len(moment) for moment in each]
            axis.pcolormesh(epochs, (edges[1:] + edges[:-1]) / 2, np.sqrt(shares).T, cmap="Blues", vmin=0, vmax=0.8)
            axis.plot(epochs, each.mean(axis=1), color="black", linewidth=0.8)
            axis.grid(visible=False)
    for top, bottom, layer in zip(*axes, LAYERS, strict=True):
        top.set_title(f"layer {layer}", fontsize=7)
        bottom.set(xlabel="epochs")
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
            group = HALF.pick(records, *key)
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
    """See `drawing.agreement`."""
    drawing.agreement(HALF, axis, group)
    axis.legend(fontsize=6)
