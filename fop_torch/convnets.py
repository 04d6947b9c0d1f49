"""The paper's convolutional networks."""

from __future__ import annotations

from torch import nn


def all_cnn_c(width: int = 96, classes: int = 10, *, dropout: bool = False) -> nn.Sequential:
    """The 9-layer network of Figure 2: All-CNN-C of Springenberg et al. (2015), 1,369,738 parameters at width 96.

    Kernels start as He et al. (2015) draw them: nothing normalises the activations, and with PyTorch's own, smaller
    ones nine layers of ReLU stay at chance for the first epochs. The paper leaves them open.

    Args:
        width: Channels of the first three layers; the others have twice as many.
        classes: Outputs.
        dropout: 20 % of the inputs and 50 % behind each layer of stride 2, as Springenberg et al. have it.
    """
    wide = 2 * width
    plan = [
        (3, width, 3, 1, 1), (width, width, 3, 1, 1), (width, width, 3, 2, 1),
        (width, wide, 3, 1, 1), (wide, wide, 3, 1, 1), (wide, wide, 3, 2, 1),
        (wide, wide, 3, 1, 0), (wide, wide, 1, 1, 0), (wide, classes, 1, 1, 0),
    ]  # fmt: skip
    layers: list[nn.Module] = [nn.Dropout(0.2)] if dropout else []
    for inputs, outputs, kernel, stride, padding in plan:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        layers += [layer, nn.ReLU()]
        if dropout and stride == 2:
            layers.append(nn.Dropout(0.5))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resnet18(classes: int = 1000, *, projections: int = 3) -> nn.Module:
    """Torchvision's ResNet-18 (He et al. 2016), or the one that the paper's counts belong to.

    Torchvision's first stage has no projection, since its width is that of what enters; with one there, as in
    TensorFlow's, a network has 21 convolutions and a linear layer: the 22 rates and the 197 rows of Figure 2.

    Args:
        classes: Outputs.
        projections: Shortcuts with a 1 x 1 convolution, 3 or 4.

    Raises:
        ValueError: If `projections` is neither.
    """
    if projections not in (3, 4):
        raise ValueError(f"projections: expected 3 or 4, got {projections}")
    from torchvision.models import resnet18 as plain

    net = plain(num_classes=classes)
    if projections == 4:
        shortcut = nn.Conv2d(64, 64, 1, bias=False)
        nn.init.kaiming_normal_(shortcut.weight, mode="fan_out", nonlinearity="relu")
        net.layer1[0].downsample = nn.Sequential(shortcut, nn.BatchNorm2d(64))
    return net
