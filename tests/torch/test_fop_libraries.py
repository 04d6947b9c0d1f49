"""FOP in libraries that build and drive optimizers themselves: Stable-Baselines3 and Lightning.

They are imported where they are used: a worker that runs none of these tests need not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from fop_torch import FOP, PPHD, SHD, assign


def contents(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for i, entries in optimizer.state_dict()["state"].items():
        found |= {f"{i}.{key}": value.clone() for key, value in entries.items()}
    return found


def unlike(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


# -------------------------------------------------------------------------------------------------- Stable-Baselines3


def ppo(optimizer_class: type[torch.optim.Optimizer], **options: Any) -> Any:
    from stable_baselines3 import PPO

    return PPO(
        "MlpPolicy", "CartPole-v1", n_steps=128, batch_size=64, n_epochs=3, seed=0, device="cpu",
        learning_rate=lambda left: 1e-3 + 2e-3 * left,
        policy_kwargs={"optimizer_class": optimizer_class, "optimizer_kwargs": options, "net_arch": [32, 32]},
    )  # fmt: skip


def test_stable_baselines_trains_with_it() -> None:
    model = ppo(FOP, base=Adam, eps=1e-5, hyper_lr=1e-3)
    optimizer = model.policy.optimizer
    starts = {name: learned.M for name, learned in optimizer.preconditioners().items()}
    model.learn(512)
    assert optimizer.param_groups[0]["lr"] == 1e-3  # the schedule's last
    assert optimizer.skipped_steps == 0
    assert all(p.isfinite().all() for p in model.policy.parameters())
    learned = optimizer.preconditioners()
    assert len(learned) == 6
    assert not any(torch.equal(each.M, starts[name]) for name, each in learned.items())


def test_stable_baselines_with_frozen_preconditioners_is_its_own_adam() -> None:
    """To the bit: nothing of what it does to an optimizer goes amiss."""
    ours = ppo(FOP, base=Adam, eps=1e-5, hyper_lr=0.0).learn(384)
    own = ppo(Adam, eps=1e-5).learn(384)
    assert unlike(dict(ours.policy.named_parameters()), dict(own.policy.named_parameters())) == []


@pytest.mark.parametrize("optimizer_class", [FOP, SHD, PPHD])
def test_stable_baselines_saves_and_goes_on(optimizer_class: type[FOP], tmp_path: Path) -> None:
    import gymnasium
    from stable_baselines3 import PPO

    model = ppo(optimizer_class, base=Adam, hyper_lr=1e-3)
    model.learn(256)
    model.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", env=gymnasium.make("CartPole-v1"), device="cpu")
    at_rest = contents(model.policy, model.policy.optimizer)
    assert unlike(contents(loaded.policy, loaded.policy.optimizer), at_rest) == []
    for each in (model, loaded):
        each.set_random_seed(1)  # it does not save what its random numbers depend on
        each.learn(128)
    ended = contents(model.policy, model.policy.optimizer)
    assert unlike(contents(loaded.policy, loaded.policy.optimizer), ended) == []
    assert unlike(ended, at_rest) != []


# ------------------------------------------------------------------------------------------------------- Lightning

# Of Lightning 2.6 itself: it asks torch what a leaf is in the old way, and wants more workers than these data need.
lightning = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.* is deprecated:FutureWarning", "ignore:The '.*dataloader' does not have many workers"
)


def digits() -> tuple[Any, Any]:
    """The 8 x 8 digits that come with scikit-learn, in batches of 64 for training, and the rest."""
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.images, dtype=torch.float32)[order, None] / 16
    y = torch.tensor(found.target)[order]
    return (
        DataLoader(TensorDataset(x[:1280], y[:1280]), batch_size=64),
        DataLoader(TensorDataset(x[1280:], y[1280:]), batch_size=600),
    )


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32), nn.ReLU(), nn.Linear(32, 10))


def optimizer_of(net: nn.Module) -> FOP:
    rules: dict[Any, Any] = {"conv": "spatial", "linear": "low_rank"}
    return FOP(assign(net, rules, rank=8), lr=0.1, base=SGD, momentum=0.9, hyper_lr=1e-3)


def lightning_module(make: Callable[[nn.Module], torch.optim.Optimizer]) -> Any:
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, number: int) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.net(x).float(), y)

        def validation_step(self, batch: Any, number: int) -> None:
            x, y = batch
            self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())

        def configure_optimizers(self) -> Any:
            optimizer = make(self.net)
            return [optimizer], [CosineAnnealingLR(optimizer, T_max=4)]

    return Module()


def trainer(epochs: int, **options: Any) -> Any:
    import pytorch_lightning

    return pytorch_lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def fit(
    epochs: int, make: Callable[[nn.Module], torch.optim.Optimizer] = optimizer_of, resume: Path | None = None,
    **options: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Train by Lightning; give its trainer, the module and the optimizer that it used."""
    module, runner = lightning_module(make), trainer(epochs, **options)
    runner.fit(module, *digits(), ckpt_path=resume)
    return runner, module, runner.optimizers[0]


@lightning
def test_lightning_trains_as_a_plain_loop_does() -> None:
    """To the bit, with its closures and its schedule; and the digits are learned."""
    runner, module, optimizer = fit(4)
    net = network()
    own = optimizer_of(net)
    schedule = CosineAnnealingLR(own, T_max=4)
    for _ in range(4):
        for x, y in digits()[0]:
            own.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            own.step()
        schedule.step()
    assert unlike(contents(module.net, optimizer), contents(net, own)) == []
    assert runner.callback_metrics["accuracy"] > 0.9
    assert optimizer.skipped_steps == 0


@lightning
def test_lightning_resumes_to_the_bit(tmp_path: Path) -> None:
    _, whole, optimizer = fit(4)
    half, _, _ = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, again = fit(4, resume=tmp_path / "half.ckpt")
    assert unlike(contents(resumed.net, again), contents(whole.net, optimizer)) == []
    assert unlike(dict(half.model.net.named_parameters()), dict(whole.net.named_parameters())) != []


@lightning
def test_lightning_clips_accumulates_and_casts() -> None:
    """With M frozen, as with the base alone, to the bit; with M learning, the digits are learned."""
    options: dict[str, Any] = {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "accumulate_grad_batches": 2}

    def frozen(net: nn.Module) -> FOP:
        return FOP(net.parameters(), lr=0.1, momentum=0.9, hyper_lr=0.0, preconditioner="dense")

    def plain(net: nn.Module) -> SGD:
        return SGD(net.parameters(), lr=0.1, momentum=0.9)

    modules = [fit(1, make, **options)[1] for make in (frozen, plain)]
    assert unlike(*[dict(module.net.named_parameters()) for module in modules]) == []
    runner, _, optimizer = fit(6, **options)
    assert runner.callback_metrics["accuracy"] > 0.85
    assert {each.M.dtype for each in optimizer.preconditioners().values()} == {torch.float32}
