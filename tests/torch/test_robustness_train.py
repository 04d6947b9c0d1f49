"""Which runs the robustness study has, what their optimizers are, and that they train."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from fop_torch import FOP, plan
from fop_torch.results import Store, run_key
from fop_torch.studies import find, vision
from fop_torch.studies.cifar10.train import Config as Cifar10
from fop_torch.studies.robustness import summary
from fop_torch.studies.robustness.train import (
    ADAM_LRS,
    LAYERS,
    LRS,
    METHODS,
    MOMENTA,
    REDUCED,
    STUDY,
    Config,
    can_be_followed,
    optimizer,
    runs,
    setup,
)
from fop_torch.sweep import run_one, sweep

SMALL = {**REDUCED["smoke"], "seed": 0}
KINDS = [(base, method) for base, methods in METHODS.items() for method in methods]


def small(base: str, method: str, **settings: object) -> Config:
    return Config(**{**SMALL, "base": base, "method": method, **settings})  # type: ignore[arg-type]


def learn(model: nn.Module, stepper: torch.optim.Optimizer, steps: int) -> None:
    """A few steps on numbers drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, y = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)
        stepper.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        stepper.step()


# ---------------------------------------------------------------------------------------
# Which runs


def test_the_grids_are_whole() -> None:
    found = runs("laptop")
    for base, method in KINDS:
        cells = sorted((c.momentum, c.lr, c.seed) for c in found if (c.base, c.method) == (base, method))
        grid = {"SGD": product(MOMENTA, LRS, range(3)), "Adam": product((Config.momentum,), ADAM_LRS, range(3))}
        assert cells == ([] if method == "matched" else sorted(grid[base]))
    assert len(found) == 2 * 60 + 3 * 27
    assert [replace(c, width=96, dropout=True, iterations=58_500, drops=(31_200,)) for c in found] == runs("paper")


def test_the_paper_profile_is_that_of_figure_2_but_for_the_caption_s_rate_of_m() -> None:
    ours, theirs = Config("FOP", 0), Cifar10("FOP", 0)
    assert {name for name, value in asdict(theirs).items() if getattr(ours, name) != value} == {"hyper_lr"}
    assert (ours.hyper_lr, theirs.hyper_lr) == (5e-4, 1e-4)
    # The rate falls at the same share of a short run.
    laptop = runs("laptop")[0]
    assert laptop.drops[0] / laptop.iterations == pytest.approx(ours.drops[0] / ours.iterations, abs=0.01)


@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
def test_labels_are_names_of_files_and_all_different(profile: str) -> None:
    labels = [c.label for c in runs(profile)]
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[a-z0-9.-]+", label) for label in labels)
    assert replace(runs("laptop")[0], method="matched").label == "sgd-matched-lr0.005-alpha0.1-n400-s0"
    assert small("Adam", "Adam", lr=1e-8).label == "adam-lr1e-08-n40-s0"


# ---------------------------------------------------------------------------------------
# Optimizers


@pytest.mark.parametrize(("base", "method"), KINDS)
def test_optimizers_are_what_they_say(base: str, method: str) -> None:
    config = small(base, method, lr=0.02, momentum=0.7)
    model, stepper, inputs, targets = setup(config, "cpu")
    assert model(torch.zeros(inputs)).shape == (targets[0], 10)
    group = stepper.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.02, Config.weight_decay)
    if base == "SGD":
        assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.7, False, 0)
    else:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
    if method in ("momentum", "matched", "Adam"):
        assert type(stepper) is {"SGD": SGD, "Adam": Adam}[base]
        return
    assert isinstance(stepper, FOP)
    assert (type(stepper.base), type(stepper.hyper)) == ({"SGD": SGD, "Adam": Adam}[base], Adam)
    assert {each["lr"] for each in stepper.hyper.param_groups} == {5e-4}
    found = [learned.M.shape[0] for learned in stepper.preconditioners().values()]
    assert found == [9] * (LAYERS - 2) + [1] * 2
    through = {(each["through"], each["index"], each["order"]) for each in stepper.param_groups}
    assert through == {("step", "exact", "paper") if method == "corrected" else ("plain", "printed", "paper")}


def test_fop_is_that_of_the_other_studies() -> None:
    """To the last bit, where no number is out of range."""
    ended = []
    for make in (optimizer, vision.optimizer):
        config = small("SGD", "FOP", lr=0.05)
        model, *_ = setup(config, "cpu")
        stepper = make(model, config)
        learn(model, stepper, 4)
        ended.append(
            [p.clone() for p in model.parameters()]
            + [stepper.state[p]["M"] for p in model[0].parameters() if "M" in stepper.state[p]]
        )
    assert len(ended[0]) == 2 * LAYERS + 1
    assert all(torch.equal(*both) for both in zip(*ended, strict=True))
    assert not torch.equal(ended[0][-1], torch.eye(9))


def test_the_correction_reaches_m_and_the_base_is_otherwise_the_same() -> None:
    """The first two steps are those of Adam with P = I; after that M was moved, by different hypergradients."""
    ended = {}
    for method in METHODS["Adam"]:
        model, stepper, *_ = setup(small("Adam", method, lr=1e-3), "cpu")
        learn(model, stepper, 2)
        first = model[0].weight.detach().clone()
        learn(model, stepper, 3)
        ended[method] = first, stepper.state[model[0].weight].get("M")
    assert torch.equal(ended["Adam"][0], ended["FOP"][0])
    assert torch.equal(ended["Adam"][0], ended["corrected"][0])
    assert not torch.allclose(ended["FOP"][1], ended["corrected"][1], atol=1e-5)


@pytest.mark.parametrize("method", ["momentum", "FOP"])
def test_a_number_out_of_range_breaks_fop_as_it_breaks_its_base(method: str) -> None:
    model, stepper, *_ = setup(small("SGD", method), "cpu")
    learn(model, stepper, 1)
    model[0].weight.grad[0, 0, 0, 0] = float("inf")
    stepper.step()
    assert not model[0].weight.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "RMSprop"}, "base: expected one of SGD, Adam, got 'RMSprop'"),
        ({"method": "corrected"}, "method: expected one of momentum, FOP, matched for the base SGD, got 'corrected'"),
    ],
)
def test_unknown_names_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setup(replace(small("SGD", "FOP"), **settings), "cpu")


def test_a_step_of_each_kind_can_be_planned() -> None:
    """On tensors without numbers; that with the Jacobian does more than the printed one."""
    printed, exact = (plan.count(STUDY, small("Adam", method)).update for method in ("FOP", "corrected"))
    assert exact.operations > printed.operations
    assert exact.flops == printed.flops > 0


# ---------------------------------------------------------------------------------------
# Trained


def test_half_of_the_smoke_runs_and_a_control_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOP_DATA", raising=False)
    monkeypatch.setenv("FOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FOP_OFFLINE", "1")
    assert find("robustness") is STUDY
    store, scratch = Store(tmp_path / "results"), tmp_path / "scratch"
    few = ("sgd-momentum-lr0.05", "sgd-fop-lr0.05")
    sweep(STUDY, "smoke", store=store, scratch=scratch, quiet=True, only=few)
    records = store.load("robustness", "smoke")
    assert {r.key for r in records} == {run_key("robustness", c) for c in runs("smoke") if c.label.startswith(few)}
    grids = summary.Grids(records)
    for method in ("momentum", "FOP"):
        found = grids["SGD", method]
        assert found[:3] == (MOMENTA[1:3], LRS[2:3], (0,))
    for each in records:
        assert each.curve("test_accuracy").index.tolist() == [0, 40]
        assert each.curve("train_loss").index.tolist() == list(range(2, 41, 2))
        assert can_be_followed(each) == (each.config["method"] == "FOP")
    # FOP began as momentum did, and went its own way.
    begun = {r.config["method"]: r for r in records if r.config["momentum"] == 0.5}
    losses = [begun[method].curve("train_loss") for method in ("momentum", "FOP")]
    assert losses[0].iloc[0] == losses[1].iloc[0]
    assert losses[0].iloc[-1] != losses[1].iloc[-1]
    assert (begun["FOP"].curve("gain", "1") != 1).any()
    # The control begins so too, and repeats FOP's gains.
    config = small("SGD", "matched", lr=0.05, momentum=0.5, gains=begun["FOP"].key)
    assert run_one("robustness", "smoke", config, store.root, scratch).error == ""
    control = store.find("robustness", "smoke", run_key("robustness", config))
    assert control.curve("train_loss").iloc[-1] not in {each.iloc[-1] for each in losses}
    told = summary.report(store.load("robustness", "smoke"))
    assert "Final test accuracy, SGD: FOP" in told
    assert "not yet: a standard deviation needs two seeds at least" in told
