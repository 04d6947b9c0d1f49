"""The figures of the MNIST study, in the paper's form: each function draws on axes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fop_theory.angles import widest_angle
from fop_theory.plots import COLORS, THEORY
from fop_torch.results import Record
from fop_torch.statistics import compare
from fop_torch.studies import reading
from fop_torch.studies.mnist import summary
from fop_torch.studies.mnist.summary import LAYERS, RULES
from fop_torch.studies.mnist.train import Config
from fop_torch.studies.reading import MissingRunsError

#: Shades of FOP's colour, the darker the higher the rank.
RANK_COLORS = {784: "#02233D", 100: "#00508A", 25: COLORS["FOP"], 4: "#4A9BD0", 1: "#85BDE2"}
LAYER_COLORS = {1: "#02233D", 2: COLORS["FOP"], 3: COLORS["Adam"], 4: COLORS["S-HD"]}
BATCH_COLORS = {20: "#85BDE2", 100: COLORS["FOP"], 1000: "#02233D"}
FROZEN = "0.45"


def accuracy(axis: Any, records: Sequence[Record]) -> None:
    """Test accuracy over the iterations, as in Figure A.2: mean and bootstrap band of each rank and of momentum."""
    found = {"momentum": (summary.pick(records, "momentum"), COLORS["momentum"])}
    for rank, color in RANK_COLORS.items():
        try:
            found[f"FOP {rank}"] = summary.pick(records, "FOP", rank), color
        except MissingRunsError:  # a smaller profile has fewer ranks
            continue
    for name, (group, color) in found.items():
        iterations, band = reading.band(group)
        axis.plot(iterations, band.mean, color=color, label=name)
        axis.fill_between(iterations, band.low, band.high, color=color, alpha=0.25, linewidth=0)
    axis.set(xlabel="iterations", ylabel="test accuracy in %")
    axis.legend()


def final_accuracy(axis: Any, records: Sequence[Record]) -> None:
    """Final test accuracy against the rank, beside the controls: means and 95 % intervals by Student's t."""
    groups = summary.groups(records)
    ranks = list(reversed(RANK_COLORS))
    looks = {
        "FOP": {"fmt": "o", "color": COLORS["FOP"]},
        "frozen": {"fmt": "o", "color": FROZEN, "mfc": "none"},
        "matched": {"fmt": "s", "color": COLORS["momentum"], "mfc": "none"},
        "FOP, tuned": {"fmt": "D", "color": COLORS["FOP"], "mfc": "none"},
    }
    for shift, (method, look) in zip((-0.2, -0.07, 0.07, 0.2), looks.items(), strict=True):
        first, comma, rest = method.partition(",")
        names = [(at + shift, f"{first} {rank}{comma}{rest}") for at, rank in enumerate(ranks)]
        shown = [(at, reading.final(groups[name])) for at, name in names if name in groups]
        ends = [compare(values, np.zeros(len(values))) for _, values in shown]
        mean = [end.mean for end in ends]
        reach = [[end.mean - end.low for end in ends], [end.high - end.mean for end in ends]]
        axis.errorbar([at for at, _ in shown], mean, reach, label=method, capsize=2, **look)
    for name, style in (("momentum", ":"), ("momentum, tuned", "-.")):
        if name in groups:
            level = reading.final(groups[name]).mean()
            axis.axhline(level, linestyle=style, color=COLORS["momentum"], linewidth=1.2, label=name)
    axis.set(xlabel="rank", ylabel="final test accuracy in %", xticks=range(len(ranks)), xticklabels=ranks)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=7)


def angles(axes: Sequence[Any], records: Sequence[Record], rank: int = 784) -> None:
    """The angle in each layer over the iterations, as in Figure A.1; one axis a layer.

    Solid: mean over the seeds, and from the smallest to the largest. Grey: the same for a frozen M. Dashed: the largest
    angle that the condition number allows. Dotted: the printed mean.
    """
    printed = dict(RULES.angles)
    for layer, axis in zip(LAYERS, axes, strict=True):
        for method, color in (("frozen", FROZEN), ("FOP", COLORS["FOP"])):
            group = summary.pick(records, method, rank)
            iterations, values = reading.curves(group, "angle", layer)
            axis.plot(iterations, values.mean(axis=0), color=color, label="FOP" if method == "FOP" else "frozen M")
            axis.fill_between(iterations, *np.array([values.min(axis=0), values.max(axis=0)]), color=color, alpha=0.25)
        _, condition = reading.curves(group, "condition", layer)
        axis.plot(iterations, np.vectorize(widest_angle)(condition).mean(axis=0), label="bound", **THEORY)
        if layer in printed:
            axis.axhline(printed[layer], linestyle=":", color=THEORY["color"], linewidth=1, label="printed mean")
        axis.set(xlabel="iterations", ylabel=f"layer {layer}: degrees")


def sizes(axes: Sequence[Any], records: Sequence[Record], rank: int = 784) -> None:
    """Step-length gain, condition number and growth of the trace of M M^T, by layer; one axis each."""
    group = summary.pick(records, "FOP", rank)
    labels = {"gain": "|PG| / |G|", "condition": "condition number of P", "trace": "growth of tr M Mᵀ"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for layer, color in LAYER_COLORS.items():
            iterations, values = reading.curves(group, name, layer)
            if name == "gain":  # the others are recorded at every fourth of its records
                iterations, values = iterations[3::4], values[:, 3::4]
            values = values - values[:, :1] if name == "trace" else values
            axis.plot(iterations, values.mean(axis=0), color=color, label=f"layer {layer}")
            axis.fill_between(iterations, *np.array([values.min(axis=0), values.max(axis=0)]), color=color, alpha=0.2)
        axis.set(xlabel="iterations", ylabel=label)
    axes[0].legend()


def law(axis: Any, records: Sequence[Record]) -> None:
    """Growth of the trace under plain gradient steps for each batch size, and what the conservation law promised."""
    for batch, found in summary.law(records).items():
        grown = found["grown"]
        axis.plot(found["iterations"], grown.mean(axis=0), color=BATCH_COLORS[batch], label=f"batch {batch}")
        axis.fill_between(
            found["iterations"], grown.min(axis=0), grown.max(axis=0), color=BATCH_COLORS[batch], alpha=0.25
        )
        axis.plot(found["iterations"], found["promised"].mean(axis=0), **THEORY)
    axis.set(xlabel="iterations", ylabel="growth of tr M Mᵀ")
    axis.legend()


def grid(axes: Sequence[Any], records: Sequence[Record]) -> None:
    """Final test accuracy on the grid: by method and learning rate (first axis); by hyper_lr, sigma and lr (second)."""
    found = summary.sensitivity(records)
    main = found[(found["hyper_lr"] == Config.hyper_lr) & (found["sigma"] == Config.sigma)].copy()
    main["row"] = [f"FOP {rank}" if rank else "momentum" for rank in main["rank"]]
    rest = found[(found["method"] == "FOP") & (found["rank"] == 25)].copy()
    rest["row"] = [
        f"{hyper_lr:.0e}, {f'{sigma:g}' if sigma else 'm^-1/4'}"
        for hyper_lr, sigma in zip(rest["hyper_lr"], rest["sigma"], strict=True)
    ]
    few = rest[rest["sigma"] != Config.sigma]["lr"].unique()
    tables = [main, rest[rest["lr"].isin(few)]]
    for axis, table, label in zip(axes, tables, ("", "hyper_lr, σ"), strict=True):
        values = table.pivot(index="row", columns="lr", values="accuracy")
        axis.imshow(values, cmap="cividis", vmin=80, vmax=98, aspect="auto")
        for (i, j), number in np.ndenumerate(values.to_numpy()):
            said = f"{number:.1f}" if number else "diverged"
            axis.text(j, i, said, ha="center", va="center", fontsize=7, color="white" if number < 90 else "black")
        axis.set(xlabel="learning rate", ylabel=label)
        axis.set_xticks(range(values.shape[1]), [f"{lr:g}" for lr in values.columns], fontsize=7)
        axis.set_yticks(range(values.shape[0]), values.index, fontsize=7)
        axis.grid(visible=False)
