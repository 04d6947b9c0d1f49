"""The walker is the paper's, PPO the library's, FOP acts on every layer, and a killed run ends as one that was not."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch.optim import SGD, Adam

from fop_torch import FOP, plan
from fop_torch.results import Record, Store, run_key
from fop_torch.studies import find
from fop_torch.studies.bipedal import train as study
from fop_torch.studies.bipedal.ppo import Lean, layers, policy_options
from fop_torch.studies.bipedal.train import (
    FLAT,
    HARDCORE,
    LAYERS,
    LENGTHS,
    LRS,
    METHODS,
    STUDY,
    Config,
    build,
    lasting,
    optimizer,
    runs,
    search,
    setup,
)
from fop_torch.studies.bipedal.walker import FALL, TERRAINS, Walker, digest
from fop_torch.sweep import run_one
from fop_torch.training import InterruptedRunError, Session
from tests.torch import planted

SMALL = Config("FOP", 3, steps=192, tested=1)
WIDTHS = ((24, 40), (40, 40), (40, 4), (40, 1))


def torques(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walker that stands has less time to stand."""
    monkeypatch.setattr("fop_torch.studies.bipedal.walker.LIMIT", 150)


# ---------------------------------------------------------------------------------------
# The walker


@pytest.mark.parametrize("terrain", TERRAINS)
def test_the_walker_is_gymnasium_s(terrain: str) -> None:
    """On the landscape that its seed draws, moved by the same force, it sees and gets the same, to the bit."""
    ours = Walker(terrain, seed=7, landscape=5)
    ours.reset()
    theirs = gymnasium.make(terrain, disable_env_checker=True).unwrapped
    theirs.reset(seed=5)
    assert ours.terrain_y == theirs.terrain_y
    (number,) = np.random.SeedSequence([7, 0]).generate_state(1)
    # The landscape takes nothing of the episode's random numbers: first come the clouds, then the force.
    generator = np.random.default_rng(int(number))
    for _ in range(200 // 20):
        generator.uniform(0, 200)
        generator.uniform(0, 1, 10)
    force = generator.uniform(-5, 5)
    fresh = gymnasium.make(terrain, disable_env_checker=True).unwrapped
    fresh._generate_clouds = lambda: setattr(fresh, "np_random", Fixed(force))  # type: ignore[method-assign]
    assert np.array_equal(fresh.reset(seed=5)[0], ours.observed)
    rewards = []
    for action in torques(60):
        one, two = ours.step(action), fresh.step(action)
        assert np.array_equal(one[0], two[0])
        assert one[1:3] == two[1:3]
        rewards.append(one[1])
    assert len(set(rewards)) > 30


class Fixed:
    """A source of one number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def uniform(self, low: float, high: float) -> float:
        assert (low, high) == (-5, 5)
        return self.number


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("terrain", TERRAINS)
def test_an_episode_can_be_played_again(terrain: str) -> None:
    """From what a checkpoint holds, in the middle of one, to the bit, and the ones behind it."""
    walker = Walker(terrain, seed=2)
    walker.reset()
    moves = np.sign(torques(900, 4))
    seen = []
    for i, action in enumerate(moves):
        if i == 400:
            state = walker.state_dict()
            assert 0 < len(state["actions"]) < 400
            other = Walker(terrain, seed=2)
            other.load_state_dict(state)
            assert np.array_equal(other.observed, walker.observed)
        for each in [walker, other] if i >= 400 else [walker]:
            *found, _ = each.step(action)
            if found[2] or found[3]:
                found[0] = each.reset()[0]
            seen.append(found)
    pairs = list(zip(seen[400::2], seen[401::2], strict=True))
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in pairs)
    assert walker.episode > state["episode"] > 0


def test_starts_differ_and_the_landscape_stays() -> None:
    walker = Walker(FLAT, seed=1)
    starts, heights = [], []
    for _ in range(3):
        starts.append(walker.reset()[0].tolist())
        heights.append(list(walker.terrain_y))
    assert heights[0] == heights[1] == heights[2]
    assert starts[0] != starts[1] != starts[2]
    assert Walker(FLAT, seed=1).reset()[0].tolist() == starts[0] != Walker(FLAT, seed=2).reset()[0].tolist()
    assert len({digest(terrain, landscape) for terrain in TERRAINS for landscape in range(2)}) == 4


def test_pictures_need_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    walker = Walker(HARDCORE, render_mode="rgb_array")
    walker.reset()
    picture = walker.render()
    assert picture.shape == (400, 600, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="terrain: expected one of BipedalWalker-v3, BipedalWalkerHardcore-v3, got"):
        Walker("BipedalWalker-v2")
    with pytest.raises(ValueError, match="seed, options: a walker has its own seed"):
        Walker(FLAT).reset(seed=1)
    with pytest.raises(ValueError, match="method: expected one of FOP, momentum, Adam, S-HD, matched, frozen, got"):
        setup(replace(SMALL, method="SGD"), "cpu")


# ---------------------------------------------------------------------------------------
# Network and PPO


def test_the_network_is_the_paper_s() -> None:
    """24-40-40-4, the value's layer on the second hidden one, tanh, actions within 1, a deviation for each action."""
    ppo, _ = build(SMALL)
    assert [(each.in_features, each.out_features) for each in layers(ppo.policy)] == list(WIDTHS)
    count = sum(m * n + n for m, n in WIDTHS) + 4
    assert sum(p.numel() for p in ppo.policy.parameters()) == count == 2849
    large = 50 * torch.randn(100, 24)
    for layer in layers(ppo.policy):
        layer.weight.data.mul_(1000)
    means = ppo.policy.get_distribution(large).distribution.mean
    assert 0.9 < means.abs().max() <= 1
    assert ppo.policy.get_distribution(large).distribution.stddev.unique().tolist() == [1.0]
    # The value reads the hidden layer that the actions read.
    x = torch.randn(5, 24)
    W1, W2, Wa, Wv = layers(ppo.policy)
    hidden = torch.tanh(W2(torch.tanh(W1(x))))
    torch.testing.assert_close(ppo.policy.predict_values(x), Wv(hidden))
    torch.testing.assert_close(ppo.policy.get_distribution(x).distribution.mean, torch.tanh(Wa(hidden)))
    np.testing.assert_allclose(ppo.act(x[0].numpy()), torch.tanh(Wa(hidden))[0].detach(), rtol=1e-4, atol=1e-6)
    outputs, *_ = setup(SMALL, "cpu")
    assert outputs(x).shape == (5, 5)


def stock(ppo: Lean, config: Config) -> Any:
    """The library's own PPO with the same first weights."""
    from stable_baselines3 import PPO

    from fop_torch.studies.bipedal.ppo import Policy

    found = PPO(
        Policy, Walker(config.terrain, config.seed), learning_rate=config.lr, n_steps=config.steps,
        batch_size=config.batch, n_epochs=config.epochs, device="cpu",
        policy_kwargs=policy_options(partial(optimizer, config=config)),
    )  # fmt: skip
    found.policy.load_state_dict(ppo.policy.state_dict())
    return found


@pytest.mark.parametrize("method", ["Adam", "FOP"])
def test_a_ppo_step_is_the_library_s(method: str) -> None:
    """The same buffer, the same order: the same weights after it, up to rounding."""
    config = replace(SMALL, method=method, steps=200, lr=1e-3)  # the last minibatch is a short one
    with pytest.warns(UserWarning, match="truncated mini-batch"):
        ppo, walker = build(config)
    with pytest.warns(UserWarning, match="truncated mini-batch"):
        theirs = stock(ppo, config)
    theirs._setup_learn(10**6, None)
    walker.reset()
    before = ppo.flat.copy()
    ppo.collect()
    # Actions that were more and less probable: the clipping acts.
    ppo.rollout_buffer.log_probs += np.linspace(-0.5, 0.5, 200, dtype=np.float32)[:, None]
    theirs.rollout_buffer = ppo.rollout_buffer
    for each in (ppo, theirs):
        np.random.seed(4)  # noqa: NPY002
        torch.manual_seed(4)
        each.train()
    moved = np.abs(ppo.flat - before)
    other = torch.cat([p.detach().flatten() for p in theirs.policy.parameters()]).numpy()
    assert np.abs(ppo.flat - other).max() < 0.01 * moved.max()
    assert (moved > 0).mean() > 0.95


def test_the_buffer_is_the_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Driven by the same noise, over a fall and over the end of the time: the same steps, values and advantages."""
    monkeypatch.setattr("fop_torch.studies.bipedal.walker.LIMIT", 60)
    ppo, walker = build(SMALL)
    theirs = stock(ppo, SMALL)
    # A last bit of an action would soon be a different fall.
    monkeypatch.setattr(ppo, "act", lambda x: theirs.policy.predict(x, deterministic=True)[0])
    noise = np.random.default_rng(0).normal(size=(SMALL.steps, 4)).astype(np.float32)
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.tensor(noise))
    walker.reset()
    ppo.collect()
    ours = ppo.rollout_buffer
    _, callback = theirs._setup_learn(10**6, None)
    drawn = iter(noise)
    monkeypatch.setattr(
        torch.distributions.Normal, "rsample", lambda self: self.mean + self.stddev * torch.tensor(next(drawn))[None]
    )
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, SMALL.steps)
    assert ours.episode_starts.sum() >= 4
    assert {(each.fell, each.steps == 60) for each in ppo.finished} == {(True, False), (False, True)}
    for name in (
        "observations",
        "actions",
        "rewards",
        "episode_starts",
        "values",
        "log_probs",
        "advantages",
        "returns",
    ):
        one, two = getattr(ours, name), getattr(theirs.rollout_buffer, name)
        np.testing.assert_allclose(one.squeeze(), two.squeeze(), rtol=1e-3, atol=1e-3, err_msg=name)


# ---------------------------------------------------------------------------------------
# Optimizers


@pytest.mark.parametrize("method", METHODS)
def test_optimizers_are_what_they_say(method: str) -> None:
    ppo, _ = build(replace(SMALL, method=method, lr=0.02))
    found = ppo.policy.optimizer
    weights = [each.weight for each in layers(ppo.policy)]
    assert {group["lr"] for group in found.param_groups} == {0.02}
    assert sum(len(group["params"]) for group in found.param_groups) == 9
    if method == "Adam":
        assert type(found) is Adam
        assert found.param_groups[0]["eps"] == 1e-5
        return
    assert {group["momentum"] for group in found.param_groups} == {0.9}
    if method in ("momentum", "matched"):
        assert type(found) is SGD
        return
    assert isinstance(found, FOP)
    assert (type(found.base), type(found.hyper)) == (SGD, Adam)
    kinds = {p: kind for group in found.param_groups for p, kind in zip(group["params"], group["forms"], strict=True)}
    kind = "s-hd" if method == "S-HD" else "dense"
    assert [kinds[p] for p in weights] == [kind] * LAYERS
    assert sorted(kinds.values()) == sorted([kind] * LAYERS + ["none"] * 5)
    assert {group["lr"] for group in found.hyper.param_groups} == {0.0 if method == "frozen" else 1e-4}
    # M is square over each layer's inputs: full rank, the heads too.
    shapes = [tuple(found.state[p]["M"].shape) for p in weights]
    assert shapes == ([()] * LAYERS if method == "S-HD" else [(m, m) for m, _ in WIDTHS])
    if method == "FOP":
        assert all(torch.equal(found.state[p]["M"], torch.eye(p.shape[1])) for p in weights)
    if method == "frozen":
        assert not any(torch.equal(found.state[p]["M"], torch.eye(p.shape[1])) for p in weights)


def test_the_other_reading_of_full_rank() -> None:
    ppo, _ = build(replace(SMALL, form="low_rank"))
    found = ppo.policy.optimizer
    assert [tuple(found.state[each.weight]["M"].shape) for each in layers(ppo.policy)] == [(m, m) for m, _ in WIDTHS]
    assert all(abs(each.P.diagonal() - 1).max() < 0.1 for each in found.preconditioners().values())


def test_fop_acts_on_every_layer_and_the_frozen_one_does_not_learn() -> None:
    for method in ("FOP", "frozen"):
        ppo, walker = build(replace(SMALL, method=method))
        starts = [ppo.policy.optimizer.state[each.weight]["M"].clone() for each in layers(ppo.policy)]
        walker.reset()
        ppo.collect()
        ppo.train()
        same = [
            torch.equal(ppo.policy.optimizer.state[each.weight]["M"], start)
            for each, start in zip(layers(ppo.policy), starts, strict=True)
        ]
        assert same == [method == "frozen"] * LAYERS


# ---------------------------------------------------------------------------------------
# Which runs


def test_the_paper_s_runs() -> None:
    found = [c for c in runs("paper") if c.seed < study.SEARCH_SEED]
    for terrain, seeds, updates in ((FLAT, 10, 5_000), (HARDCORE, 5, 7_000)):
        those = [c for c in found if c.terrain == terrain]
        assert {(c.updates, c.batch, c.steps) for c in those} == {(updates, 32, 2048)}
        assert {(c.method, c.lr) for c in those} == {(m, lr) for m, lr in METHODS.items() if m != "matched"}
        assert sorted(c.seed for c in those if c.method == "FOP") == list(range(seeds))
    assert (METHODS["FOP"], METHODS["momentum"], METHODS["Adam"]) == (3e-4, 3.5e-4, 3e-4)


def test_the_search_goes_beyond_the_paper_s_range() -> None:
    """Rates and minibatches of the paper's, for its three methods; further rates, for all; and seeds of its own."""
    found = search("laptop")
    for method in study.SEARCHED:
        settings = {(c.lr, c.batch) for c in found if c.method == method and c.form == "dense" and c.hyper_lr == 1e-4}
        paper = {(lr, batch) for lr in study.PAPER_LRS for batch in study.BATCHES}
        assert settings == paper | {(lr, 32) for lr in (study.ADAM_LRS if method == "Adam" else LRS)}
    smallest = {(c.lr, c.batch) for c in found if c.hyper_lr == min(study.HYPER_LRS)}
    assert smallest == paper | {(lr, 32) for lr in LRS}
    assert (study.PAPER_LRS[0], study.PAPER_LRS[-1], study.BATCHES[0], study.BATCHES[-1]) == (1e-4, 1e-3, 8, 64)
    assert (min(LRS), max(LRS)) == (1e-4, 1e-1)
    assert not {c.seed for c in found} & {c.seed for c in runs("laptop") if c not in found}


def test_the_most_telling_runs_come_first() -> None:
    """All methods, seed by seed, at the paper's settings on the flat terrain; the search; then hardcore."""
    found = runs("laptop")
    places = [place for place, c in enumerate(found) if c.terrain == FLAT and c.seed < study.SEARCH_SEED]
    assert places == list(range(25))
    assert [c.seed for c in found[:25]] == sorted(5 * list(range(5)))
    assert found[25 : 25 + len(search("laptop"))] == search("laptop")
    assert {c.terrain for c in found[25 + len(search("laptop")) :]} == {HARDCORE}


@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
def test_labels_are_names_of_files_and_all_different(profile: str) -> None:
    labels = [c.label for c in runs(profile)]
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[a-z0-9.-]+", label) for label in labels)
    assert all(c.iterations == c.updates * c.passes > 0 for c in runs(profile))


def test_each_method_at_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings with the best late return, for each that the search has all runs of; FOP's with its rate of M.

    And FOP at the paper's learning rate and minibatch, with the best rate of M there.
    """
    monkeypatch.setattr(study, "late_return", lambda record: record.facts["score"])

    def scored(config: Config) -> Record:
        rate = 1e-5 if config.lr == METHODS["FOP"] else 1e-6
        score = 100.0 - abs(np.log10(config.lr) + 2) - (config.hyper_lr != rate) - (config.batch != 32)
        facts = {"score": score - 50 * (config.seed == 100)}
        return Record(Path("x.json"), run_key("bipedal", config), config.__dict__, "finished", facts)

    records = [scored(c) for c in search("laptop") if c.method != "Adam"]
    found = {(c.method, c.lr, c.batch, c.hyper_lr) for c in study.tuned("laptop", records)}
    assert found == {("momentum", 1e-2, 32, 1e-4), ("FOP", 1e-2, 32, 1e-6), ("FOP", 3e-4, 32, 1e-5)}
    assert {(c.terrain, c.updates) for c in study.tuned("laptop", records)} == {
        (terrain, length) for terrain, length in zip((FLAT, HARDCORE), LENGTHS["laptop"], strict=False)
    }
    assert study.tuned("laptop", records[:3]) == []
    assert set(study.tuned("laptop", records)) <= set(runs("laptop", records))


def test_a_step_of_each_kind_can_be_planned() -> None:
    counted = {method: plan.count(STUDY, replace(SMALL, method=method)).update for method in METHODS}
    assert counted["FOP"].flops == sum(2 * 5 * m * n * m for m, n in WIDTHS)
    assert counted["momentum"].flops == counted["Adam"].flops == counted["S-HD"].flops == 0


# ---------------------------------------------------------------------------------------
# Trained

SHORT = lasting(replace(SMALL, batch=64), 4)


def trained(config: Config, folder: Path) -> Record:
    outcome = run_one("bipedal", "test", config, folder / "results", folder / "scratch", device="cpu")
    assert outcome.error == "", outcome.trace
    found = Store(folder / "results").find("bipedal", "test", run_key("bipedal", config))
    assert found is not None
    return found


def same(one: Record, two: Record) -> bool:
    """But for the clock."""
    tables = [each.metrics[each.metrics["name"] != "seconds"].reset_index(drop=True) for each in (one, two)]
    return tables[0].equals(tables[1])


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("method", ["FOP", "Adam", "matched"])
def test_killed_and_begun_again_it_ends_the_same(method: str, tmp_path: Path) -> None:
    """To the bit, in the middle of an episode; and another seed ends otherwise."""
    config = replace(SHORT, method=method)
    if method == "matched":
        followed = trained(replace(SHORT, method="FOP"), tmp_path / "whole")
        trained(replace(SHORT, method="FOP"), tmp_path / "half")
        config = replace(config, gains=followed.key)
    whole = trained(config, tmp_path / "whole")
    folder = tmp_path / "half" / "scratch" / "bipedal" / "test"
    store = Store(tmp_path / "half" / "results")
    session = Session("bipedal", config, folder, STUDY.code(), device="cpu", every=0.0, stop_after=2)
    with pytest.raises(InterruptedRunError):
        STUDY.train(config, session, store.load("bipedal", "test"))
    state = torch.load(session.checkpoint, weights_only=False)
    assert state["iteration"] == 2 * config.passes
    assert len(state["parts"]["walker"]["actions"]) > 0
    assert same(trained(config, tmp_path / "half"), whole)
    if method == "FOP":
        assert not same(trained(replace(config, seed=4), tmp_path / "whole"), whole)


@pytest.mark.usefixtures("short")
def test_what_a_run_records(tmp_path: Path) -> None:
    assert find("bipedal") is STUDY
    record = trained(SHORT, tmp_path)
    assert record.facts["data"]["name"] == FLAT
    assert record.facts["environment_steps"] == 4 * 192
    count, steps, falls = (record.curve(name) for name in ("episodes", "steps", "falls"))
    assert count.index.tolist() == [12, 24, 36, 48]
    assert 4 * 192 - 150 <= (count * steps).sum() <= 4 * 192
    assert 0 < falls.sum() <= count.sum()
    # A fall costs 100; the way is short.
    assert (record.curve("return")[falls == count] < -90).all()
    assert record.curve("share").abs().max() < 0.1
    for name in ("episodes", "return", "steps", "share", "falls"):
        assert record.curve(f"test_{name}").index.tolist() == [0, 48]
    for part in map(str, range(1, LAYERS + 1)):
        assert record.curve("gain", part).index.tolist() == [16, 32, 48]
        assert (record.curve("update_cosine", part).abs() <= 1).all()
        assert record.curve("grad_norm", part).max() <= 0.5
        eigenvalues = [record.curve(f"eigenvalue {i}", part).iloc[-1] for i in range(WIDTHS[int(part) - 1][0])]
        assert eigenvalues == sorted(eigenvalues)
        assert eigenvalues[0] != eigenvalues[-1]
        diagonal = [record.curve(f"diagonal {i}", part).iloc[-1] for i in range(len(eigenvalues))]
        assert sum(diagonal) == pytest.approx(sum(eigenvalues), rel=1e-4)
    # The recorded parameters are those that were evaluated last.
    ppo, _ = build(SHORT)
    assert study.evaluate(ppo, SHORT)["test_return"] != record.curve("test_return").iloc[-1]
    ppo.flat[:] = record.curve("parameter", "policy")
    assert study.evaluate(ppo, SHORT)["test_return"] == record.curve("test_return").iloc[-1]


@pytest.mark.usefixtures("short")
def test_the_control_repeats_the_gains(tmp_path: Path) -> None:
    """Layer by layer, beyond the norm to which the gradient was clipped; without the run it says so."""
    followed = trained(SHORT, tmp_path)
    assert study.can_be_followed(followed)
    rows = followed.metrics
    rows.loc[(rows["name"] == "gain") & (rows["part"] != "1"), "value"] = 1.0
    rows.loc[(rows["name"] == "gain") & (rows["part"] == "1"), "value"] = 100.0
    config = replace(SHORT, method="matched", gains=followed.key)
    session = Session("bipedal", config, tmp_path, STUDY.code(), device="cpu")
    STUDY.train(config, session, [followed])
    norms = {part: max(v for _, p, name, v in session.rows if (p, name) == (part, "grad_norm")) for part in "1234"}
    assert norms["1"] > 0.5 > max(norms[part] for part in "234")
    outcome = run_one("bipedal", "other", config, tmp_path / "results", tmp_path / "scratch", device="cpu")
    assert "gains: expected the key of a recorded run" in outcome.error


@pytest.mark.usefixtures("short")
def test_a_run_that_breaks_says_where(tmp_path: Path) -> None:
    record = trained(replace(SHORT, method="momentum", lr=1e38), tmp_path)
    assert (record.status, record.facts["diverged_at"]) == ("diverged", SHORT.passes)
    assert study.late_return(record) == FALL


def test_a_policy_whose_actions_are_no_numbers_has_diverged() -> None:
    """Though all its parameters are numbers: the walker gets no such torque."""
    ppo, walker = build(SMALL)
    observation, _ = walker.reset()
    for layer in layers(ppo.policy):
        layer.weight.data.copy_(3e38 * torch.randn_like(layer.weight).sign())
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="the policy's action is"):
        ppo.act(1e3 * observation)


def test_late_return_weighs_each_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {"episodes": [9, 9, 9, 9, 1, 0, 3], "return": [5, 5, 5, 5, -10, None, 30]}
    table = [
        (4 * place, "", name, value)
        for name, values in curves.items()
        for place, value in enumerate(values)
        if value is not None
    ]
    assert study.late_return(planted.record("bipedal", replace(SMALL, iterations=21), table)) == 20


def test_policies_are_evaluated_at_both_ends_and_about_forty_times() -> None:
    assert study.evaluated(lasting(SMALL, 4)) == [0, 4]
    assert study.evaluated(lasting(SMALL, 20)) == [0, 10, 20]
    assert study.evaluated(lasting(SMALL, 600)) == list(range(0, 601, 15))
    assert len(study.evaluated(lasting(SMALL, 7_000))) == 41


# ---------------------------------------------------------------------------------------
# Bad weather


class Weather:
    """Lets the environment do something bad, once."""

    def __init__(self, at: int, strike: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.strike = 0, at, strike
        (gymnasium_s,) = Walker.__bases__
        self._step = gymnasium_s.step
        monkeypatch.setattr(gymnasium_s, "step", lambda walker, action: self(walker, action))

    def __call__(self, walker: Walker, action: np.ndarray) -> Any:
        found = self._step(walker, action)
        self.count += 1
        if self.count == self.at:
            return (found[0], self.strike(), *found[2:])
        return found


def strike() -> float:
    raise OSError("the simulator is gone")


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("bad", "said"), [(strike, "OSError: the simulator is gone"), (lambda: np.nan, "reward nan, observation")]
)
def test_a_failing_environment_is_named_and_the_run_goes_on(
    bad: Callable[[], Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no divergence and is not recorded; the same command goes on from the checkpoint and ends the same."""
    whole = trained(SHORT, tmp_path / "whole")
    Weather(900, bad, monkeypatch)  # beyond the first evaluation, of 150 steps at most, in the fourth PPO step
    folders = tmp_path / "half" / "results", tmp_path / "half" / "scratch"
    outcome = run_one("bipedal", "test", SHORT, *folders, device="cpu", every=0.0)
    assert re.search(rf"WalkerError: {FLAT}, seed 3, episode \d+, step \d+: {said}", outcome.error), outcome
    assert Store(folders[0]).load("bipedal", "test") == []
    assert (folders[1] / "bipedal" / "test" / f"{run_key('bipedal', SHORT)}.ckpt").exists()
    assert same(trained(SHORT, tmp_path / "half"), whole)


@pytest.mark.usefixtures("short")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker is a fork, which has the patched environment")
def test_a_killed_worker_s_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(SHORT, tmp_path / "whole")
    folders = tmp_path / "half" / "results", tmp_path / "half" / "scratch"
    with monkeypatch.context() as patch:
        Weather(900, lambda: os.kill(os.getpid(), signal.SIGKILL), patch)
        options = {"device": "cpu", "every": 0.0}
        worker = multiprocessing.get_context("fork").Process(
            target=run_one, args=("bipedal", "test", SHORT, *folders), kwargs=options
        )
        worker.start()
        worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert (folders[1] / "bipedal" / "test" / f"{run_key('bipedal', SHORT)}.ckpt").exists()
    assert same(trained(SHORT, tmp_path / "half"), whole)
