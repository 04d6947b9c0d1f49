"""The counts of `fop_theory.counts` against the networks that the studies train, without memory for them."""

from __future__ import annotations

import torch
from torch import nn

from fop_theory import counts
from fop_torch.convnets import all_cnn_c, resnet18


def described(network: nn.Module, image: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """Width, input and output channels and output pixels of every layer with weights, from one pass."""
    found = []

    def note(module: nn.Module, _, output: torch.Tensor) -> None:
        if isinstance(module, nn.Linear):
            found.append((1, module.in_features, module.out_features, 1))
        else:
            found.append((module.kernel_size[0], module.in_channels, module.out_channels, output[0, 0].numel()))

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    network(torch.empty(2, *image, device="meta"))
    return sorted(found)


def as_tuples(layers: list[counts.Layer]) -> list[tuple[int, int, int, int]]:
    return sorted((x.width, x.inputs, x.outputs, x.pixels) for x in layers)


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_all_cnn_c() -> None:
    with torch.device("meta"):
        network = all_cnn_c()
    assert size(network) == counts.parameters(counts.all_cnn_c()) == 1_369_738
    assert described(network, (3, 32, 32)) == as_tuples(counts.all_cnn_c())


def test_resnet_18_with_three_and_with_four_projections() -> None:
    for projections, total in ((3, 11_689_512), (4, 11_693_736)):
        with torch.device("meta"):
            network = resnet18(projections=projections)
        layers = counts.resnet18(projections)
        assert size(network) == counts.parameters(layers) == total
        assert described(network, (3, 224, 224)) == as_tuples(layers)
