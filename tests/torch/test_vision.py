"""The networks of Figure 2, and one training run on images: methods, learning rate, what is recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fop_torch import FOP
from fop_torch.convnets import all_cnn_c, resnet18
from fop_torch.data import Images
from fop_torch.results import Record
from fop_torch.studies import vision
from fop_torch.studies.cifar10 import train as cifar10
from fop_torch.studies.cifar10.train import EPOCH, Config
from fop_torch.training import InterruptedRunError, Session

TINY = Config("FOP", 0, width=4, dropout=False, batch=20, iterations=6, drops=(3,), hyper_lr=1e-2)


def images(count: int = 100) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return Images("cifar10", "drawn", "0", (pixels, labels), (pixels[:50], labels[:50]), tuple("0123456789"))


def run(config: Config, folder: Path, records: tuple[Record, ...] = (), **options) -> tuple[Session, nn.Module]:
    """Train on drawn images."""
    session = Session("cifar10", config, folder, "code", device="cpu", **options)
    model, stepper, *_ = cifar10.setup(config, "cpu")
    chance = config.method == "shuffled"
    batch, tested = vision.in_memory(images(), config, session, chance=chance)
    vision.train(config, session, records, model, stepper, batch, tested, tests=2, looks=1)
    return session, model


def curve(session: Session, name: str, part: str = "") -> dict[int, float]:
    return {row[0]: row[3] for row in session.rows if row[1:3] == (part, name)}


# ---------------------------------------------------------------------------------------
# The networks


def test_dropout_stands_where_its_authors_have_it() -> None:
    """20 % of the inputs, 50 % behind both layers of stride 2."""
    network = list(all_cnn_c(4, dropout=True))
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.2, 0.5, 0.5]
    assert isinstance(network[0], nn.Dropout)
    for place, layer in enumerate(network[:-2]):
        if isinstance(layer, nn.Conv2d):
            assert isinstance(network[place + 2], nn.Dropout) == (layer.stride == (2, 2))


def test_signals_keep_their_size_at_the_start() -> None:
    """As He et al. draw kernels: behind seven layers a signal is neither gone nor out of hand."""
    torch.manual_seed(0)
    network = all_cnn_c(32)
    seventh = [i for i, layer in enumerate(network) if isinstance(layer, nn.ReLU)][6]
    with torch.no_grad():
        size = network[: seventh + 1](torch.randn(16, 3, 32, 32)).square().mean().sqrt()
    assert 0.3 < size < 3


def test_projections_are_three_or_four() -> None:
    with pytest.raises(ValueError, match="projections: expected 3 or 4, got 2"):
        resnet18(projections=2)


# ---------------------------------------------------------------------------------------
# The methods


def test_the_paper_profile_is_what_section_4_1_says() -> None:
    """150 epochs of batches of 128, learning rate 0.05 divided by 10 after 80, momentum 0.9, Adam with 1e-4 on M."""
    config = Config("FOP", 0)
    assert (config.batch, config.momentum, config.hyper_lr, config.width) == (128, 0.9, 1e-4, 96)
    assert EPOCH == 50_000 // 128
    epochs = [vision.rate(config, epoch * EPOCH) for epoch in (0, 79, 80, 149)]
    assert epochs == pytest.approx([0.05, 0.05, 0.005, 0.005])
    assert config.iterations == 150 * EPOCH
    hyper = cifar10.setup(replace(config, width=4), "cpu")[1].hyper
    assert isinstance(hyper, torch.optim.Adam)
    assert {group["lr"] for group in hyper.param_groups} == {1e-4}


@pytest.mark.parametrize("method", vision.METHODS)
def test_a_method_takes_the_step_that_its_name_says(method: str) -> None:
    """The first step of each method, against the preconditioner written out."""
    config = replace(TINY, method=method, weight_decay=0.0, hyper_lr=0.0)
    model, stepper, *_ = cifar10.setup(config, "cpu")
    kernel = next(iter(vision.kernels(model).values()))
    before = kernel.detach().clone()
    nn.functional.cross_entropy(model(images().train[0][:20].float() / 99), images().train[1][:20]).backward()
    G = kernel.grad.reshape(-1, 9)
    stepper.step()
    P = torch.eye(9)
    if method == "centralised":
        P -= torch.ones(9, 9) / 9
    elif method == "frozen":
        M = vision.random_factor(9, 0)
        P = M @ M.T
    torch.testing.assert_close((before - kernel).reshape(-1, 9), config.lr * G @ P, rtol=1e-4, atol=1e-7)


def test_flipped_climbs_where_fop_descends() -> None:
    """One step of Adam from the same M: the same way in the opposite direction."""
    moved = {}
    for method in ("FOP", "flipped"):
        model, stepper, *_ = cifar10.setup(replace(TINY, method=method), "cpu")
        for start in (0, 20):
            stepper.zero_grad()
            chosen = slice(start, start + 20)
            outputs = model(images().train[0][chosen].float() / 99)
            nn.functional.cross_entropy(outputs, images().train[1][chosen]).backward()
            stepper.step()
        moved[method] = stepper.state[next(iter(vision.kernels(model).values()))]["M"] - torch.eye(9)
    assert moved["FOP"].abs().max() > 1e-3
    torch.testing.assert_close(moved["FOP"].sign(), -moved["flipped"].sign())


def test_normalised_and_linear_layers() -> None:
    """FOP-norm keeps `|P| = 3`; a linear layer is one number, as a 1 x 1 kernel is, and biases are left alone."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    stepper = vision.optimizer(model, replace(TINY, method="FOP-norm"))
    assert isinstance(stepper, FOP)
    kinds = [group["forms"] for group in stepper.param_groups]
    assert kinds == [["spatial"], ["none"], ["scalar"], ["none"]]
    for _ in range(3):
        stepper.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.arange(8)).backward()
        stepper.step()
    assert torch.linalg.norm(stepper.preconditioners()["0.weight"].P) == pytest.approx(3, rel=1e-5)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match=r"method: expected one of momentum, .* got 'sgd'"):
        vision.optimizer(all_cnn_c(4), replace(TINY, method="sgd"))


def test_random_factors_are_the_identity_in_the_mean() -> None:
    P = torch.stack([vision.random_factor(9, seed) @ vision.random_factor(9, seed).T for seed in range(2_000)]).mean(0)
    torch.testing.assert_close(P, torch.eye(9), rtol=0, atol=0.06)


# ---------------------------------------------------------------------------------------
# A run


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels last"])
def test_correlations_are_sums_over_steps(channels_last: bool) -> None:
    """C and X against loops over kernels and positions, in both layouts of memory."""
    layer = nn.Conv2d(3, 5, 3)
    if channels_last:
        layer = layer.to(memory_format=torch.channels_last)
    sums = vision.Correlations([nn.Parameter(torch.zeros(2, 2, 1, 1)), layer.weight])
    seen = []
    for _ in range(3):
        layer.zero_grad()
        layer(torch.randn(2, 3, 6, 6)).square().sum().backward()
        seen.append(layer.weight.grad.clone())
        sums.add()
    C, X = torch.zeros(9, 9), torch.zeros(9, 9)
    for t, G in enumerate(seen):
        for out, inside in ((o, i) for o in range(5) for i in range(3)):
            g = G[out, inside].reshape(9)
            C += torch.outer(g, g)
            if t:
                h = seen[t - 1][out, inside].reshape(9)
                X += (torch.outer(g, h) + torch.outer(h, g)) / 2
    taken = sums.take()
    assert list(taken) == [2]  # a kernel of one position has nothing to tell
    torch.testing.assert_close(taken[2], (C, X), rtol=1e-4, atol=1e-3)
    assert all(part.abs().max() == 0 for part in sums.take()[2])


def test_a_run_records_what_its_summary_reads(tmp_path: Path) -> None:
    session, _ = run(TINY, tmp_path)
    assert list(curve(session, "test_accuracy")) == [0, 2, 4, 6]
    assert list(curve(session, "gain", "9")) == [1, 2, 3, 4, 5, 6]
    entries = {row[2] for row in session.rows if row[1] == "7" and row[0] == 6 and " " in row[2]}
    assert len(entries) == 3 * 45


def test_the_optimizer_gets_the_learning_rate_of_the_step(tmp_path: Path) -> None:
    """Two runs that differ in the drop alone are the same until there, and differ after it."""
    early, late = (
        run(replace(TINY, method="momentum", drops=drops), tmp_path / str(drops))[0] for drops in ((3,), (5,))
    )
    losses = [curve(session, "train_loss") for session in (early, late)]
    assert [losses[0][step] == losses[1][step] for step in range(1, 7)] == [True, True, True, True, False, False]


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Checkpoint in the middle: the curves are the same as without, the sums of gradients included."""
    whole, model = run(TINY, tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        run(TINY, tmp_path / "broken", every=0.0, stop_after=3)
    again, resumed = run(TINY, tmp_path / "broken")

    def measured(session: Session) -> list[tuple]:
        return [row for row in session.rows if row[2] != "seconds"]

    assert measured(again) == measured(whole)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_labels_by_chance_hold_nothing_about_the_images() -> None:
    """The same labels in another order, and the same order whatever the seed."""
    labels = torch.arange(100)
    once = vision.shuffled(labels)
    assert not torch.equal(once, labels)
    assert torch.equal(once.sort().values, labels)
    assert torch.equal(once, vision.shuffled(labels))


def test_matched_needs_its_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gains: expected the key of a recorded run, got 'abc'"):
        run(replace(TINY, method="matched", gains="abc"), tmp_path)


def test_accuracy_is_measured_without_dropout() -> None:
    """Share and mean loss against one pass by hand; the network goes back to training."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    x, y = torch.randn(10, 3, 2, 2), torch.arange(10) % 3
    found = vision.accuracy(network, lambda: iter([(x[:4], y[:4]), (x[4:], y[4:])]))
    assert network.training
    network.eval()
    outputs = network(x)
    assert found["test_accuracy"] == pytest.approx(100 * (outputs.argmax(1) == y).float().mean().item())
    assert found["test_loss"] == pytest.approx(nn.functional.cross_entropy(outputs, y).item(), rel=1e-5)
