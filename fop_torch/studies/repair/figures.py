"""The suite in pictures: each function draws on axes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fop_theory.plots import COLORS
from fop_torch.results import Record
from fop_torch.studies.repair import summary
from fop_torch.studies.repair.train import DECADES, base
from fop_torch.studies.repair.train import methods as tried

#: What the methods are called, and their colours.
NAMES = {
    "paper": ("FOP, the paper's", COLORS["FOP"]),
    "bounded": ("FOP, norm up to 2", COLORS["FOP-norm"]),
    "safe": ("FOP, safe step", COLORS["PP-HD"]),
    "exponential": ("exp(X)", "#9C3F75"),
    "budget": ("exp(X), budget 2", COLORS["S-HD"]),
    "budgets": ("exp(X) over budgets", "black"),
    "linear": ("linear P", "#8C6D31"),
    "linear-budget": ("linear P, budget 2", "#E7A33E"),
    "linear-null": ("linear P, null step", "#3A7D44"),
    "SGD": ("SGD", COLORS["SGD"]),
    "momentum": ("momentum", COLORS["momentum"]),
    "Adam": ("Adam", COLORS["Adam"]),
    "L-BFGS": ("L-BFGS", "#777777"),
    "Muon": ("Muon", "#5B4FB3"),
    "SOAP": ("SOAP", "#1B9AAA"),
    "Kron": ("PSGD Kron", "#7A3E1D"),
    "Shampoo": ("Shampoo", "#B5179E"),
}


def rates(axis: Any, records: Sequence[Record], problem: str, methods: Sequence[str], share: float = 1.0) -> None:
    """Gain over the base in decades of the loss, over six decades of the rate; a cross below marks divergence."""
    for method in [each for each in methods if each in tried(problem)]:
        cells = summary.sweep(records, problem, method, share)
        gains = np.array([cell.gain for cell in cells])
        label, color = NAMES[method]
        axis.plot(DECADES, np.where(np.isfinite(gains), gains, np.nan), ".-", color=color, label=label)
        lost = [step for step, gain in zip(DECADES, gains, strict=True) if not np.isfinite(gain)]
        axis.plot(lost, [-2.8 + 0.12 * methods.index(method)] * len(lost), "x", color=color)
    axis.axhline(0, color=NAMES[base(problem)][1], linewidth=0.8)
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set(xlabel="decades from its middle rate", xticks=DECADES)
    axis.text(1, 1.02, problem, transform=axis.transAxes, va="bottom", ha="right")


def training(axis: Any, records: Sequence[Record], problem: str, methods: Sequence[str]) -> None:
    """Loss along each method's best run, its seeds' geometric mean."""
    for method in methods:
        try:
            record = summary.one(records, problem, method)
        except summary.MissingRunsError:
            continue
        curve = summary.curve(record)
        label, color = NAMES[method]
        axis.plot(curve.index, 10**curve, color=color, label=label)
    axis.set(xlabel="step", yscale="log")
    axis.text(1, 1.02, problem, transform=axis.transAxes, va="bottom", ha="right")
