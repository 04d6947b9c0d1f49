"""The networks that are measured, real images for them, and the optimizers of Figure 2 by name."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from fop_torch import FOP, PPHD, SHD
from fop_torch.convnets import all_cnn_c as all_cnn_c
from fop_torch.convnets import resnet18 as resnet18

MOMENTUM = "momentum"
RATE = 1e-3


class ActorCritic(nn.Module):
    """PPO's network on BipedalWalker: 24-40-40-4, tanh, and a value head on the shared layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh())
        self.policy, self.value = nn.Linear(40, 4), nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Actions and value side by side."""
        shared = self.body(x)
        return torch.cat([self.policy(shared), self.value(shared)], 1)


def mnist_net() -> nn.Module:
    """The four layers of Figure A.2, 100 units each."""
    widths = (784, 100, 100, 100)
    layers = [part for m, n in itertools.pairwise(widths) for part in (nn.Linear(m, n), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def spatial(net: nn.Module, form: str = "spatial") -> list[dict[str, Any]]:
    """Figure 2's assignment: a spatial preconditioner for every kernel, 1 x 1 too, and none elsewhere."""
    kernels = [p for p in net.parameters() if p.dim() == 4]
    others = [p for p in net.parameters() if p.dim() != 4]
    return [{"params": kernels, "preconditioner": form}, {"params": others, "preconditioner": "none"}]


#: The methods of Figure 2, all on momentum, each with torch's grouped calls for its base.
FIGURE_2: dict[str, Callable[..., Optimizer]] = {
    MOMENTUM: lambda net, **o: SGD(net.parameters(), RATE, momentum=0.9, **o),
    "S-HD": lambda net, **o: SHD(net.parameters(), RATE, momentum=0.9, **o),
    "PP-HD": lambda net, **o: PPHD(net.parameters(), RATE, momentum=0.9, **o),
    "FOP-norm": lambda net, **o: FOP(spatial(net), RATE, momentum=0.9, normalize=True, **o),
    "FOP": lambda net, **o: FOP(spatial(net), RATE, momentum=0.9, **o),
}


#: Options of the repaired forms, as the chapter on harm recommends the first.
REPAIRED: dict[str, dict[str, Any]] = {
    form: {"hyper": SGD, "hyper_lr": 0.01, "max_norm": 2.0} for form in ("exponential", "linear")
}


def gradients(net: nn.Module) -> nn.Module:
    """Give every parameter a gradient, the same in every copy."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.grad = 0.01 * torch.randn(p.shape, generator=generator)
    return net


def backward(net: nn.Module) -> None:
    """Leave gradients as `zero_grad` and a backward pass do: in new memory, the old given up by the network."""
    for p in net.parameters():
        grad = p.grad.clone()
        p.grad = None
        p.grad = grad


def state_tensors(thing: Any, seen: set[int]) -> int:
    """Bytes of the tensors that an optimizer's state holds, in whatever objects, each memory once."""
    if id(thing) in seen or isinstance(thing, (nn.Parameter, str, bytes, int, float, type(None), type)):
        return 0
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        memory = thing.untyped_storage()
        if memory.data_ptr() in seen:
            return 0
        seen.add(memory.data_ptr())
        return memory.nbytes()
    if isinstance(thing, dict):
        return sum(state_tensors(each, seen) for each in thing.values())
    if isinstance(thing, (list, tuple)):
        return sum(state_tensors(each, seen) for each in thing)
    return state_tensors(vars(thing), seen) if hasattr(thing, "__dict__") else 0


def cifar10(count: int) -> tuple[Tensor, Tensor, str]:
    """The first images of CIFAR-10's training set, standardised; scikit-learn's digits where there is no `FOP_DATA`.

    Returns:
        Images `[count, channels, side, side]`, labels, and what they are.
    """
    file = Path(os.environ.get("FOP_DATA", "")) / "cifar10" / "train.parquet"
    if os.environ.get("FOP_DATA") and file.exists():
        import numpy as np
        import pyarrow.parquet as pq
        from PIL import Image

        table = pq.read_table(file, columns=["image", "label"]).slice(0, count).to_pydict()
        decoded = [np.asarray(Image.open(io.BytesIO(each["bytes"])).convert("RGB")) for each in table["image"]]
        images = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous().float()
        labels, name = torch.tensor(table["label"]), f"CIFAR-10, {count:,} images"
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:count, None]
        labels, name = torch.from_numpy(digits.target).long()[:count], "scikit-learn's digits"
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return (images - mean) / std, labels, name
