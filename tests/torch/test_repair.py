"""The suite of repairs: its settings, its runs, and a summary that finds what was planted."""

from __future__ import annotations

import math
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fop_torch import cli, studies
from fop_torch.results import Record
from fop_torch.studies import live
from fop_torch.studies.repair import figures, peers, summary, train
from fop_torch.studies.repair.train import BUDGETS, KINDS, PEERS, PROBLEMS, Config, Setting
from tests.torch.planted import every_run, record


def planted(end: dict[str, float]) -> list[Record]:
    """Runs of the whole laptop profile; a method's end in decades above its base's best, NaN where it diverges."""

    def make(config: Config) -> Record:
        rows = []
        for number, setting in enumerate(train.settings(config)):
            for seed in range(config.seeds):
                # Peers do best in the middle of their grid; a tenth of that is a decade worse.
                away = abs(math.log10(setting.lr / PROBLEMS[config.problem].lr)) if config.method in PEERS else 0.0
                if config.method not in PEERS:
                    away = 0.0 if number < 7 else 1.0
                height = end.get(config.method, 0.0) + away + 0.001 * seed
                rows.append((0, setting.part(seed), "loss", 1.0))
                if not math.isnan(height):
                    rows.append((config.iterations, setting.part(seed), "loss", 10.0 ** (height - 3)))
        return record("repair", config, rows)

    return every_run(train.runs, "laptop", make)


# ------------------------------------------------------------------------------------------------------ the settings


def test_no_step_stands_for_a_run_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fop plan` says so in a sentence, and `fop doctor` goes on with the other studies."""
    monkeypatch.setattr(studies, "MODULES", {"repair": studies.MODULES["repair"]})
    refused = CliRunner().invoke(cli.main, ["plan", "repair"])
    assert refused.exit_code == 1
    assert refused.stderr == "Error: study: a run of repair is many small trainings, which have no one step to plan\n"
    told = CliRunner().invoke(cli.main, ["doctor"])
    assert told.exit_code == 0
    assert "cost      repair: not counted, a run is many small trainings\n" in told.output
    assert "Cost: steps of the optimizer alone" in told.output


def test_the_runs_are_all_methods_on_all_problems() -> None:
    records = planted({})
    pairs = {(r.config["problem"], r.config["method"]) for r in records}
    everything = {(problem, method) for problem in PROBLEMS for method in (*PEERS, *KINDS, BUDGETS)}
    noisy = ("digits", "MNIST", "CIFAR-10")
    assert pairs == everything - {(problem, each) for problem in noisy for each in ("L-BFGS", "linear-null")}
    # FOP runs at the learning rate at which its own base was best.
    lrs = {r.config["problem"]: r.config["lr"] for r in records if r.config["method"] == "paper"}
    assert lrs == {problem: pytest.approx(each.lr) for problem, each in PROBLEMS.items()}


def test_rates_and_budgets_go_over_six_decades_and_all_methods_try_as_much() -> None:
    for problem in PROBLEMS:
        for method in (*KINDS, BUDGETS):
            found = train.settings(Config(problem, method, lr=0.5))
            assert len(found) == 14
            assert {setting.lr for setting in found} == {0.5, 0.05}
            values = [s.budget - 1 if method == BUDGETS else s.rate for s in found[:7]]
            assert values[-1] / values[0] == pytest.approx(1e6)
        assert all(len(train.settings(Config(problem, peer))) == 7 for peer in PEERS if peer != "L-BFGS")


def test_a_setting_is_read_as_it_was_written() -> None:
    rows = [(0, Setting(0.3, 1e-4, 2.0).part(1), "loss", 1.0), (100, Setting(0.3, 1e-4, 2.0).part(1), "loss", 0.01)]
    found = summary.ends(record("repair", Config("quadratic", "budget"), rows))
    assert found == {Setting(0.3, 1e-4, 2.0): pytest.approx([-2.0])}


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method: expected one of SGD, .*budgets, got 'FOP'"):
        train.optimizer(PROBLEMS["digits"].build(0), Config("digits", "FOP"), Setting(0.1), 0)


def test_what_another_package_makes_is_no_smoke_run_and_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = {config.method for config in train.runs("smoke")}
    assert not smoke & set(peers.OUTSIDE)
    assert {"Muon", *peers.OUTSIDE} == set(peers.PEERS) <= {config.method for config in train.runs("laptop")}
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    for name in peers.OUTSIDE:
        with pytest.raises(ModuleNotFoundError, match=rf"{name} needs pytorch-optimizer, .*pip install .*\[bench\]"):
            train.optimizer(PROBLEMS["digits"].build(0), Config("digits", name), Setting(0.1), 0)


# ----------------------------------------------------------------------------------------------------------- one run


def test_the_gradient_descent_of_the_suite_is_gradient_descent() -> None:
    config = Config("quadratic", "SGD", iterations=5)
    found = train.descend(config, Setting(0.5), 3, None)
    model = train.quadratic(3)
    w = model.weight.detach().clone()
    for step, value in found:
        assert value == pytest.approx(float(model.value(w)), rel=1e-12)
        w = w - 0.5 * torch.func.grad(model.value)(w)
        assert step <= 5
    assert [step for step, _ in found] == list(range(6))


def test_a_setting_that_is_lost_ends_its_curve() -> None:
    config = Config("quadratic", "SGD", iterations=100)
    found = train.descend(config, Setting(50.0), 0, None)
    assert found[-1][0] < 100
    assert all(math.isfinite(value) for _, value in found)
    assert math.isinf(summary.DIVERGED)


def test_muon_takes_the_matrices_and_adamw_the_rest_and_both_rates_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[peers.Several] = []
    build = peers.build
    monkeypatch.setattr(peers, "build", lambda *args: made.append(build(*args)) or made[0])
    config = Config("digits", "Muon", iterations=10)
    found = train.descend(config, Setting(0.03), 0, train._digits(False))
    assert found[-1][1] < found[0][1]
    assert [type(each).__name__ for each in made[0].optimizers] == ["Muon", "AdamW"]
    assert [p.dim() for group in made[0].param_groups for p in group["params"]] == [2, 1]
    assert [group["lr"] for group in made[0].param_groups] == [pytest.approx(0.003), pytest.approx(0.0003)]


def test_a_statistic_that_is_not_finite_ends_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: peers.Several, closure: object = None) -> None:
        raise torch.linalg.LinAlgError("the input matrix contained non-finite values")

    monkeypatch.setattr(peers.Several, "step", step)
    assert [step for step, _ in train.descend(Config("quadratic", "Muon"), Setting(0.03), 0, None)] == [0]


@pytest.mark.parametrize("problem", ["quadratic", "logistic", "Rosenbrock"])
def test_starts_differ_by_their_seed_alone(problem: str) -> None:
    build = PROBLEMS[problem].build
    values = [float(build(seed)(torch.zeros(1, 1)).detach()) for seed in (0, 0, 1)]
    assert values[0] == values[1]
    grads = []
    for seed in (0, 1):
        model = build(seed)
        model(torch.zeros(1, 1)).mean().backward()
        grads.append(next(model.parameters()).grad)
    assert not torch.equal(*grads)


# ------------------------------------------------------------------------------------------------------- the summary


def test_what_harm_is() -> None:
    base = np.array([-3.0, -3.1, -2.9])
    assert not summary.harms(base, base)
    assert not summary.harms(base + 0.015, base)  # below the margin
    assert summary.harms(base + 0.03, base)  # above it, in every seed
    assert not summary.harms(base + np.array([0.3, -0.2, 0.1]), base)  # the seeds disagree
    assert summary.harms(base + np.array([3.0, -0.2, 2.0]), base)  # so far above that it doesn't matter
    assert summary.harms(np.array([-9.0, -9.0, np.inf]), base)  # one seed diverged


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ({"budget": -0.5, "budgets": 0.0, "paper": 0.5}, ("matches", "matches", "matches", "matches")),
        ({"budget": 0.1, "budgets": 0.1, "paper": 0.0}, ("differs", "differs", "differs", "differs")),
        ({"budget": math.nan, "budgets": -1.0, "paper": math.nan}, ("differs", "differs", "matches", "matches")),
    ],
)
def test_the_verdicts_follow_what_was_planted(end: dict[str, float], expected: tuple[str, ...]) -> None:
    found = summary.verdicts(planted(end))
    claims = ("ours-repair-default", "ours-repair-rates", "ours-repair-budgets", "ours-repair-paper")
    assert tuple({each.verdict for each in found[claim]} for claim in claims) == tuple({each} for each in expected)
    assert len(found["ours-repair-default"]) == 12
    assert summary.recommended(planted(end)) == (expected[0] == "matches")


@pytest.mark.parametrize(("height", "harm"), [(-0.5, False), (0.5, True), (math.nan, True)])
def test_linear_p_is_judged_likewise(height: float, harm: bool) -> None:
    found = summary.verdicts(planted(dict.fromkeys(("linear", "linear-budget", "linear-null"), height)))
    usual, flipped = ("differs", "matches") if harm else ("matches", "differs")
    assert {each.verdict for each in found["ours-repair-linear-budget"]} == {usual}
    assert {each.verdict for each in found["ours-repair-null"]} == {usual}
    assert {each.verdict for each in found["ours-repair-linear"]} == {flipped}
    assert [len(found[f"ours-repair-{name}"]) for name in ("linear", "linear-budget", "null")] == [6, 12, 6]


def test_the_tables_count_what_was_planted() -> None:
    records = planted({"paper": math.nan, "exponential": -2.0})
    table = summary.shares(records)
    assert (table.loc["paper"] == 0).all()
    assert (table.loc["exponential"] == 1).all()
    best = summary.best(records)
    np.testing.assert_allclose(best.loc["exponential"], 2.0, atol=1e-9)
    assert np.isneginf(best.loc["paper"]).all()
    assert best.loc["L-BFGS"].isna().sum() == best.loc["linear-null"].isna().sum() == 3


def test_the_report_shows_its_tables_whole() -> None:
    records = planted({})
    said = summary.report(records)
    assert "..." not in said
    assert "{" not in said
    assert f"runs: {len(records)}\n" in said
    lines = [line.split() for line in said.splitlines()]
    assert list(PROBLEMS) in lines  # above the best
    for table in (summary.shares(records), summary.best(records)):
        rows = [line for line in lines if line and line[0] in table.index and len(line) == 1 + table.shape[1]]
        assert [line[0] for line in rows] == list(table.index)
    assert max(map(len, said.splitlines())) <= 110


def test_what_is_missing_is_named() -> None:
    records = [r for r in planted({}) if r.config["method"] != "budget"]
    with pytest.raises(summary.MissingRunsError, match="budget on quadratic has no run"):
        summary.verdicts(records)
    assert "budget on quadratic has no run" in summary.report(records)


def test_the_smoke_runs_are_read_and_drawn() -> None:
    records = live("repair", "smoke")
    assert {r.config["problem"] for r in records} == {"quadratic", "digits"}
    assert summary.shares(records).loc["budget"].between(0, 1).all()
    fig, axes = plt.subplots(1, 2)
    figures.rates(axes[0], records, "quadratic", list(KINDS))
    figures.training(axes[1], records, "digits", ["SGD", "budget"])
    assert len(axes[1].lines) == 2
    plt.close(fig)
