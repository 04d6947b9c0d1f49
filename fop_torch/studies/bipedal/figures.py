"""Figure 4 and what stands beside it: each function draws on axes that it is given; and walkers, frame by frame."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import numpy as np

from fop_theory.plots import COLORS
from fop_torch.results import Record
from fop_torch.statistics import mean_band
from fop_torch.studies.bipedal import summary
from fop_torch.studies.bipedal.ppo import Lean
from fop_torch.studies.bipedal.summary import CONTROLS, MAIN, Setting
from fop_torch.studies.bipedal.train import ADAM_LRS, HYPER_LRS, LRS, PAPER_LRS, Config, build, scores
from fop_torch.studies.bipedal.walker import Walker
from fop_torch.studies.reading import MissingRunsError

#: Of what the book's colours do not name.
OTHERS = {"matched": "0.3", "frozen": "0.6"}


def whole(draw: Callable[..., None], axis: Any, *given: Any) -> None:
    """Draw, or say in the axis that the runs for it are not there yet."""
    try:
        draw(axis, *given)
    except MissingRunsError as error:
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.5, fill(str(error), 32), ha="center", va="center", fontsize=7, transform=axis.transAxes)


def color(method: str) -> str:
    """A method's, the same in all figures."""
    return COLORS.get(method) or OTHERS[method]


def best_so_far(axis: Any, records: Sequence[Record], setting: Setting) -> None:
    """Figure 4: median return of the best policy so far, with its bootstrap band."""
    for method, group in summary.groups(records, setting, MAIN).items():
        updates, values = _together(group, summary.seen_best)
        band = summary.median_band(values)
        _draw(axis, updates, band.middle, band.low, band.high, method, len(group))
    axis.set(xlabel="PPO steps", ylabel="return, best policy so far")
    axis.legend(fontsize=7)


def current(axis: Any, records: Sequence[Record], setting: Setting) -> None:
    """What it hides: mean return of the policy as it is, with the band of `mean_band`; the controls' means thin."""
    for method, group in summary.groups(records, setting, (*MAIN, *CONTROLS)).items():
        updates, values = _together(group, summary.evaluations)
        band = mean_band(values)
        if method in MAIN:
            _draw(axis, updates, band.mean, band.low, band.high, method, len(group))
        else:
            axis.plot(updates, band.mean, color=color(method), linewidth=0.8, label=f"{method} ({len(group)})")
    axis.set(xlabel="PPO steps", ylabel="return, present policy")
    axis.legend(fontsize=7)


def _together(group: Sequence[Record], curve: Any) -> tuple[np.ndarray, np.ndarray]:
    each = [curve(record) for record in group]
    return each[0][0], np.array([values for _, values in each])


def _draw(axis: Any, x: Any, middle: Any, low: Any, high: Any, method: str, count: int) -> None:
    axis.plot(x, middle, color=color(method), label=f"{method} ({count})")
    axis.fill_between(x, low, high, color=color(method), alpha=0.2, linewidth=0)


def search(axis: Any, records: Sequence[Record]) -> None:
    """Late return over the learning rate, minibatch 32: means of the seeds, and these as points.

    FOP's other rates of M are dashed and dotted; the paper's range is grey.
    """
    profile = summary.profile_of(records)
    if profile == "smoke":
        raise MissingRunsError("the smoke profile has no search")
    for method, hyper_lr in (*((each, Config.hyper_lr) for each in (*MAIN, "S-HD")), *(("FOP", h) for h in HYPER_LRS)):
        found = scores(records, profile, method)
        rates = ADAM_LRS if method == "Adam" else LRS
        seen = [(lr, found[lr, Config.batch, hyper_lr]) for lr in rates if (lr, Config.batch, hyper_lr) in found]
        if not seen:
            continue
        usual = hyper_lr == Config.hyper_lr
        label = method if usual else f"FOP, ρ = {hyper_lr:g}"
        style: dict[str, Any] = {} if usual else {"linestyle": "--" if hyper_lr == HYPER_LRS[0] else ":"}
        axis.plot(*zip(*((lr, np.mean(v)) for lr, v in seen), strict=True), color=color(method), label=label, **style)
        for lr, values in seen:
            axis.plot([lr] * len(values), values, ".", color=color(method), markersize=3)
    if not axis.lines:
        raise MissingRunsError("no recorded run of the search")
    axis.axvspan(PAPER_LRS[0], PAPER_LRS[-1], color="0.93", zorder=0)
    axis.set(xscale="log", xlabel="learning rate ε", ylabel="late return")
    axis.legend(fontsize=6)


def turning(axis: Any, records: Sequence[Record], setting: Setting) -> None:
    """Degrees between successive updates over the run: of their cosine, mean over the layers and the seeds."""
    for method, group in summary.groups(records, setting).items():
        curves = [r.curve("update_cosine", str(part)) for r in group for part in range(1, 5)]
        shortest = min(map(len, curves))
        values = np.mean([curve.to_numpy()[:shortest] for curve in curves], 0)
        updates = curves[0].index.to_numpy()[:shortest] / Config(**group[0].config).passes
        axis.plot(updates, np.degrees(np.arccos(values)), color=color(method), label=method)
    axis.set(xlabel="PPO steps", ylabel="degrees between updates")
    axis.legend(fontsize=7)


def spectra(axis: Any, records: Sequence[Record], setting: Setting) -> None:
    """Eigenvalues of FOP's P at the end, largest first, layer by layer, mean over the runs of their logarithms."""
    group = summary.finished(summary.pick(records, "FOP", setting))
    for part, name in enumerate(("hidden 1", "hidden 2", "actions", "value"), 1):
        values = np.array([summary.spectrum(record, part)[::-1] for record in group])
        axis.plot(np.exp(np.log(np.maximum(values, 1e-12)).mean(0)), label=name)
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.set(yscale="log", xlabel="place", ylabel="eigenvalue of P")
    axis.legend(fontsize=7)


# ---------------------------------------------------------------------------------------
# Walkers


def walker_of(record: Record) -> Lean:
    """PPO with the policy with which a run ended."""
    ppo, _ = build(Config(**record.config))
    ppo.flat[:] = record.curve("parameter", "policy")
    return ppo


def frames(ppo: Lean, terrain: str, count: int = 6, seed: int = 0, width: int = 150) -> np.ndarray:
    """Pictures of an episode of a policy without noise, evenly over its time, drawn without a screen.

    Args:
        ppo: With the policy.
        terrain: Where.
        count: How many.
        seed: Of the episode.
        width: Of a picture, in pixels.

    Returns:
        `[count, height, width, 3]`, bytes.
    """
    from PIL import Image

    walker = Walker(terrain, seed)
    observation, _ = walker.reset()
    over, moves = False, []
    while not over:
        moves.append(ppo.act(observation))
        observation, _, ended, late, _ = walker.step(moves[-1])
        over = ended or late
    wanted = set(np.linspace(0, len(moves) - 1, count).astype(int))
    # The same episode again, which is a function of seed and actions: only now is it known how long it is.
    shown = Walker(terrain, seed, render_mode="rgb_array")
    shown.reset()
    found = []
    for step, move in enumerate(moves):
        shown.step(move)
        if step in wanted:
            picture = Image.fromarray(shown.render()).resize((width, width * 2 // 3), Image.Resampling.BOX)
            found.append(np.asarray(picture))
    return np.array(found)


def strip(rows: Sequence[np.ndarray]) -> bytes:
    """A PNG of rows of pictures, `[count, height, width, 3]` each, in 64 colours and with white between."""
    from PIL import Image

    padded = [np.pad(row, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255) for row in rows]
    whole = np.concatenate([np.concatenate(list(row), 1) for row in padded], 0)
    file = io.BytesIO()
    Image.fromarray(whole).quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def walkers(records: Sequence[Record], setting: Setting) -> bytes:
    """A strip for each of `MAIN`: of its run whose last policy has the highest return; white where all diverged."""
    rows = []
    for group in summary.groups(records, setting, MAIN).values():
        try:
            best = max(summary.finished(group), key=lambda record: float(summary.evaluations(record)[1][-1]))
        except MissingRunsError:
            rows.append(np.full((6, 100, 150, 3), 255, dtype=np.uint8))
        else:
            rows.append(frames(walker_of(best), setting.terrain))
    return strip(rows)
