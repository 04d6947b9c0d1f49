"""The paper's networks."""

from __future__ import annotations

from torch import nn


def mlp(inputs: int = 784, width: int = 100, outputs: int = 10) -> nn.Sequential:
    """The 4-layer fully-connected network of Figures A.1 and A.2; ReLU, which the paper leaves open.

    Args:
        inputs: Numbers an example.
        width: Units a layer, the paper's 100.
        outputs: Classes.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for into, out in ((inputs, width), (width, width), (width, width)):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))
