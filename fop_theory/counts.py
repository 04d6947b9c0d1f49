"""What Figure 2 counts: the layers of its two networks, and the parameters that each method adds.

Each function counts one reading of "added parameters", so that the printed numbers can be matched or ruled out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fop_theory import checks


@dataclass(frozen=True)
class Layer:
    """A convolution, or a fully connected layer (`width` 1 and `dense`).

    Attributes:
        width: Kernel width k.
        inputs: Input channels I.
        outputs: Output channels O.
        pixels: Output positions for one image.
        bias: Whether each output has a bias.
        norm: Whether batch normalisation (a scale and a shift for each output) follows.
        dense: Whether it's fully connected.
    """

    width: int
    inputs: int
    outputs: int
    pixels: int
    bias: bool = False
    norm: bool = False
    dense: bool = False

    @property
    def weights(self) -> int:
        """Entries of the kernel."""
        return self.width**2 * self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Weights, biases and batch normalisation."""
        return self.weights + self.outputs * (self.bias + 2 * self.norm)


def all_cnn_c(classes: int = 10) -> list[Layer]:
    """All-CNN-C (Springenberg et al. 2014, Table 1) for 32 x 32 images, the paper's "9-layer" network.

    Args:
        classes: Number of classes.

    Raises:
        ValueError: If `classes` is smaller than one.
    """
    checks.sizes(classes=classes)
    # (kernel width, input channels, output channels, side of the output image); stride 2 halves the
    # side, and the first layer on 8 x 8 images has no padding.
    table = [(3, 3, 96, 32), (3, 96, 96, 32), (3, 96, 96, 16)]
    table += [(3, 96, 192, 16), (3, 192, 192, 16), (3, 192, 192, 8)]
    table += [(3, 192, 192, 6), (1, 192, 192, 6), (1, 192, classes, 6)]
    return [Layer(k, inputs, outputs, side**2, bias=True) for k, inputs, outputs, side in table]


def resnet18(projections: int = 3, classes: int = 1000, side: int = 224) -> list[Layer]:
    """ResNet-18 (He et al. 2015, Table 1): a 7 x 7 layer, four stages of two blocks, a dense layer.

    Args:
        projections: How many stages begin with a 1 x 1 convolution on the shortcut. He et al. use
            three (where the number of channels grows; option B) or none (option A). Four stands
            for a projection in every stage.
        classes: Number of classes.
        side: Side of the square images, a multiple of 32.

    Raises:
        ValueError: If a number is out of range.
    """
    checks.scalar("projections", projections, low=0, high=4)
    checks.sizes(classes=classes, side=side)
    if side % 32:
        raise ValueError(f"side: expected a multiple of 32, got {side}")
    layers = [Layer(7, 3, 64, (side // 2) ** 2, norm=True)]
    inputs = 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        pixels = (side // (4 * 2**stage)) ** 2
        layers += [Layer(3, c, outputs, pixels, norm=True) for c in (inputs, outputs, outputs, outputs)]
        if stage >= 4 - projections:
            layers.append(Layer(1, inputs, outputs, pixels, norm=True))
        inputs = outputs
    return [*layers, Layer(1, inputs, classes, 1, bias=True, dense=True)]


def parameters(layers: Iterable[Layer]) -> int:
    """All trainable numbers of a network: what PP-HD adds, one rate for each.

    Args:
        layers: The network.
    """
    return sum(layer.parameters for layer in layers)


def scalar_rates(layers: Iterable[Layer]) -> int:
    """Numbers that S-HD adds: one rate for each layer, convolutional or dense.

    Args:
        layers: The network.
    """
    return sum(1 for _ in layers)


def rows_of_spatial_factors(layers: Iterable[Layer]) -> int:
    """Sum of `k^2` over the convolutions: rows of the `k^2 x k^2` matrices, not their entries.

    Args:
        layers: The network.
    """
    return sum(layer.width**2 for layer in layers if not layer.dense)


def entries_of_spatial_factors(layers: Iterable[Layer]) -> int:
    """Sum of `k^4` over the convolutions: numbers in one `k^2 x k^2` matrix for each of them.

    Args:
        layers: The network.
    """
    return sum(layer.width**4 for layer in layers if not layer.dense)


def entries_of_symmetric_factors(layers: Iterable[Layer]) -> int:
    """Sum of `k^2 (k^2 + 1) / 2`: distinct entries of the symmetric `P = M M^T`, one for each convolution.

    Args:
        layers: The network.
    """
    return sum(layer.width**2 * (layer.width**2 + 1) // 2 for layer in layers if not layer.dense)


def other_readings(layers: Iterable[Layer]) -> dict[str, int]:
    """Further things that "added parameters" of a per-parameter method could count, for "275M".

    Args:
        layers: The network.

    Returns:
        Name of each reading and its count.
    """
    layers = list(layers)
    total = parameters(layers)
    return {
        "one rate a parameter": total,
        "parameters and rates": 2 * total,
        "rates and Adam's two moments": 3 * total,
        "spatial P for each channel pair": sum(layer.width**4 * layer.inputs * layer.outputs for layer in layers),
        "P over the inputs of each layer": sum((layer.width**2 * layer.inputs) ** 2 for layer in layers),
        "P over the outputs of each layer": sum((layer.width**2 * layer.outputs) ** 2 for layer in layers),
        "P over the whole kernel": sum(layer.weights**2 for layer in layers),
        "activations of one image": sum(layer.outputs * layer.pixels for layer in layers),
    }
