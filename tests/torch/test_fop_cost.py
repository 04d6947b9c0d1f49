"""What a step costs, counted: words of memory, products, bytes of state; what the committed record says of Figure 2.

Nothing is timed here; `make bench` does that.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torchvision.models import resnet18

from fop_torch import FOP, PPHD, SHD
from fop_torch.convnets import all_cnn_c
from fop_torch.studies import cost, find

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "book" / "results" / "benchmarks" / "cost.json"
M, N, K = 48, 20, 5


def test_traffic_of_known_operations() -> None:
    a, b, one = torch.zeros(10), torch.zeros(10), torch.zeros(1)
    expected = {
        "a new tensor": (lambda: a + b, 20, 10),
        "in place": (lambda: a.add_(b), 20, 10),
        "overwriting": (lambda: a.copy_(b), 10, 10),
        "into memory given": (lambda: torch.add(a, b, out=a), 20, 10),
        "a view": (lambda: a.view(5, 2), 0, 0),
        "an expanded tensor, one entry in memory": (lambda: one.expand(10) + b, 11, 10),
        "a list": (lambda: torch._foreach_mul_([a, b], 2.0), 20, 20),
    }
    for name, (call, reads, writes) in expected.items():
        traffic, _ = cost.watch(call)
        assert (traffic.reads, traffic.writes) == (reads, writes), name


@pytest.mark.parametrize(("flag", "expected"), [("foreach", 8), ("fused", 5)])
def test_words_of_torchs_momentum(flag: str, expected: int) -> None:
    """Fused: reads g, v, theta, writes v, theta. In three calls: v twice, v and g and v, theta and v and theta."""
    params = cost.with_gradients([(32, 16, 3, 3), (50, 7)])
    assert cost.words(SGD(params, 0.1, momentum=0.9, **{flag: True})) == expected


@pytest.mark.parametrize(
    ("optimizer", "options", "limit"),
    [
        # The base's five; the gram reads two; the product reads one and writes one.
        (FOP, {"preconditioner": "spatial"}, 9),
        (FOP, {"preconditioner": "spatial", "normalize": True}, 11),  # and the scale, in place
        (SHD, {}, 9),
        # The gradients' product three, its sign and rate two, its look two, Adam seven, the step three.
        (PPHD, {}, 22),
    ],
)
def test_words_of_a_step_are_no_more_than_counted(optimizer: type[FOP], options: dict, limit: float) -> None:
    params = cost.with_gradients([(192, 192, 3, 3), (192, 96, 3, 3)])
    used = cost.words(optimizer(params, 0.1, momentum=0.9, fused=True, **options))
    # What goes through the factors themselves, and there are 81 of them a layer, is the rest.
    assert limit - 1 < used <= limit + 0.1


@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_a_spatial_step_takes_no_new_memory(flag: str) -> None:
    params = cost.with_gradients([(64, 64, 3, 3), (33, 31, 5, 5)])
    optimizer = FOP(params, 0.1, momentum=0.9, preconditioner="spatial", **{flag: True})
    for _ in range(2):
        optimizer.step()
    traffic, _ = cost.watch(optimizer.step)
    assert max(map(math.prod, traffic.made)) < min(p.numel() for p in params)


@pytest.mark.parametrize(("form", "rank"), [("low_rank", K), ("dense", None)])
def test_no_matrix_of_the_gradients_is_formed(form: str, rank: int | None) -> None:
    (p,) = cost.with_gradients([(N, M)])
    optimizer = FOP([p], 0.1, momentum=0.9, preconditioner=form, rank=rank, hyper_lr=1e-3)
    for _ in range(2):
        optimizer.step()
    traffic, flops = cost.watch(optimizer.step)
    if form == "low_rank":
        assert not [shape for shape in traffic.made if math.prod(shape) >= M * M]
    # By way of S: M x M a product of gradients, and that times M: 4 m^2 n + 2 m^2 k for the hypergradient alone.
    assert flops == cost.low_rank_flops(M, N, M if rank is None else rank)


def test_flops_of_a_layer() -> None:
    x, layer = torch.ones(7, M, requires_grad=True), nn.Linear(M, N, bias=False)
    _, flops = cost.watch(lambda: layer(x).sum().backward())
    assert flops == cost.layer_flops(M, N, 7)


@pytest.mark.parametrize(
    ("build", "entries", "parameters"),
    [(all_cnn_c, 569, 1_369_738), (resnet18, 3701 - 1, 11_689_512)],
    ids=["All-CNN-C", "ResNet-18"],
)
def test_state_of_figure_2s_networks(build, entries: int, parameters: int) -> None:
    """One copy of the kernels' gradients, and three times the entries of M: itself and Adam's two moments."""
    net = build()
    kernels = [p for p in net.parameters() if p.dim() == 4]
    others = [p for p in net.parameters() if p.dim() != 4]
    groups = [{"params": kernels, "preconditioner": "spatial"}, {"params": others, "preconditioner": "none"}]
    optimizer = FOP(groups, 0.1, momentum=0.9, foreach=True)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(2):
        optimizer.step()
    assert sum(p.numel() for p in net.parameters()) == parameters
    # Torchvision's network has three projections, one 1 x 1 matrix fewer than the paper's count of four.
    assert sum(math.prod(p.shape[2:]) ** 2 for p in kernels) == entries
    assert optimizer.memory_usage() == {
        "base": 4 * parameters,
        "M": 4 * entries,
        "previous": 4 * sum(p.numel() for p in kernels),
        "hyper": 4 * (2 * entries + len(kernels)),
    }


def test_a_small_step_makes_few_calls() -> None:
    """On a small net calls are the cost: a step of FOP makes some more than Adam's, however many layers there are."""
    calls = []
    for layers in (2, 6):
        params = cost.with_gradients([(24, 24)] * layers)
        optimizer = FOP(params, 0.1, momentum=0.9, preconditioner="dense", foreach=True)
        adam = Adam(cost.with_gradients([(24, 24)] * layers), 0.1, foreach=True)
        for each in (optimizer, adam):
            for _ in range(2):
                each.step()
        calls.append([cost.watch(each.step)[0].calls for each in (optimizer, adam)])
    per_layer = (calls[1][0] - calls[0][0]) / 4
    assert per_layer <= 8  # five products, and looking at the sizes
    assert calls[0][0] <= 2 * calls[0][1] + 2 * per_layer


def test_slope_of_a_power_law() -> None:
    x = [1.0, 2.0, 5.0, 10.0]
    assert cost.slope(x, [3 * each**1.5 for each in x]) == pytest.approx(1.5, rel=1e-12)


def test_a_missing_record_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make bench"):
        cost.load(tmp_path / "none.json")


def test_a_row_that_is_not_there_is_named() -> None:
    record = {"rows": [{"section": "step", "name": "FOP"}] * 2}
    with pytest.raises(LookupError, match="step: 2 rows"):
        cost.row(record, "step")
    with pytest.raises(LookupError, match="'name': 'SGD'"):
        cost.row(record, "step", name="SGD")


def test_a_step_on_a_large_batch_is_mostly_the_network_s() -> None:
    """Against the optimizer's formulas and torch's own counts of the network, at Figure 2's settings."""
    study = find("cifar10")
    config = next(run for run in study.runs("paper") if run.method == "FOP")
    sizes = [(p.numel(), p[0, 0].numel()) for p in all_cnn_c().parameters() if p.dim() == 4]
    found = cost.added(study, config)
    # Two products with k^2 columns a kernel, for two rows of a gradient at once where there are two: twice as many
    # operations. The rest is of the factors. The network's operations and bytes are `plan.count`'s.
    products = sum(4 * n * m for n, m in sizes) / 207_293_644_800
    assert products < found.products < 2.01 * products
    copies = 4 * sum(n for n, _ in sizes) / (3 * 4 * 1_369_738 + 216_459_268)
    assert copies < found.memory < 1.01 * copies


@pytest.mark.claim("text-1-minimal-cost", shows="under", by="exact")
@pytest.mark.claim("fig-2-negligible-cost", shows="holds", by="exact")
@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_fop_adds_few_products_and_little_memory_to_figure_2s_steps(name: str) -> None:
    study = find(name)
    found = cost.added(study, next(run for run in study.runs("paper") if run.method == "FOP"))
    assert 0 < found.products < 0.001
    assert 0 < found.memory < 0.05


# ------------------------------------------------------------------------------------------- the committed record


def recorded(network: str, method: str) -> float:
    """What a method adds to a whole training step, in percent, by its own step's time; of this machine."""
    record = cost.load(RECORD)
    assert record["about"]["device"] == "cpu"  # the paper names no device, presumably a GPU; hence undecided below
    assert not record["quick"]
    row = cost.row(record, "training", network=network, name=method)
    assert row["low"] <= row["value"] <= row["high"]
    assert row["rounds"] >= 10
    assert math.isfinite(row["by_step"]["value"])
    return row["by_step"]["value"]


@pytest.mark.claim("fig-2-negligible-cost", shows="undecided", by="experiment")
def test_added_time_is_small_and_depends_on_the_network() -> None:
    """The limits were chosen when both were known; the paper names no device."""
    small, large = (recorded(network, "FOP") for network in ("All-CNN-C", "ResNet-18"))
    assert 0 < small < 1 < large < 3


@pytest.mark.claim("fig-2-cifar-time-s-hd", shows="undecided", by="experiment")
def test_added_time_of_s_hd_on_cifar_10(measured) -> None:
    measured("fig-2-cifar-time-s-hd", recorded("All-CNN-C", "S-HD"))


@pytest.mark.claim("fig-2-cifar-time-pp-hd", shows="undecided", by="experiment")
def test_added_time_of_pp_hd_on_cifar_10(measured) -> None:
    measured("fig-2-cifar-time-pp-hd", recorded("All-CNN-C", "PP-HD"))


@pytest.mark.claim("fig-2-cifar-time-fop-norm", shows="undecided", by="experiment")
def test_added_time_of_fop_norm_on_cifar_10(measured) -> None:
    measured("fig-2-cifar-time-fop-norm", recorded("All-CNN-C", "FOP-norm"))


@pytest.mark.claim("fig-2-cifar-time-fop", shows="undecided", by="experiment")
def test_added_time_of_fop_on_cifar_10(measured) -> None:
    measured("fig-2-cifar-time-fop", recorded("All-CNN-C", "FOP"))


@pytest.mark.claim("fig-2-imagenet-time-s-hd", shows="undecided", by="experiment")
def test_added_time_of_s_hd_on_imagenet(measured) -> None:
    measured("fig-2-imagenet-time-s-hd", recorded("ResNet-18", "S-HD"))


@pytest.mark.claim("fig-2-imagenet-time-pp-hd", shows="undecided", by="experiment")
def test_added_time_of_pp_hd_on_imagenet(measured) -> None:
    measured("fig-2-imagenet-time-pp-hd", recorded("ResNet-18", "PP-HD"))


@pytest.mark.claim("fig-2-imagenet-time-fop-norm", shows="undecided", by="experiment")
def test_added_time_of_fop_norm_on_imagenet(measured) -> None:
    measured("fig-2-imagenet-time-fop-norm", recorded("ResNet-18", "FOP-norm"))


@pytest.mark.claim("fig-2-imagenet-time-fop", shows="undecided", by="experiment")
def test_added_time_of_fop_on_imagenet(measured) -> None:
    measured("fig-2-imagenet-time-fop", recorded("ResNet-18", "FOP"))
