"""The counts of `fop_theory.counts` against networks built of torch's layers, without memory for them."""

from __future__ import annotations

import torch
from torch import nn

from fop_theory import counts


def all_cnn_c() -> nn.Module:
    def conv(inputs: int, outputs: int, width: int, stride: int = 1, padding: int = 0) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, width, stride, padding), nn.ReLU())

    return nn.Sequential(
        conv(3, 96, 3, 1, 1), conv(96, 96, 3, 1, 1), conv(96, 96, 3, 2, 1),
        conv(96, 192, 3, 1, 1), conv(192, 192, 3, 1, 1), conv(192, 192, 3, 2, 1),
        conv(192, 192, 3), conv(192, 192, 1), conv(192, 10, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        projection = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*projection) if project else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(project_everywhere: bool) -> nn.Module:
    stages, inputs = [], 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        grows = outputs != inputs
        stages += [Block(inputs, outputs, 1 if stage == 0 else 2, project_everywhere or grows)]
        stages += [Block(outputs, outputs, 1, False)]
        inputs = outputs
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


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
            network = resnet18(project_everywhere=projections == 4)
        layers = counts.resnet18(projections)
        assert size(network) == counts.parameters(layers) == total
        assert described(network, (3, 224, 224)) == as_tuples(layers)
