"""The oracle's base optimizers are torch's: the same trajectory in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fop_theory import adaptive
from fop_theory import reference as ref

BASES = {
    "sgd": (ref.SGD(), torch.optim.SGD, {}),
    "momentum": (ref.SGD(0.9, weight_decay=0.01), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (ref.SGD(0.9, nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (ref.Adam(weight_decay=0.01), torch.optim.Adam, {"weight_decay": 0.01}),
    "adamw": (ref.Adam(weight_decay=0.1, decoupled=True), torch.optim.AdamW, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", BASES)
def test_base_follows_torch(name: str) -> None:
    base, optimizer, options = BASES[name]
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((4, 3))
    parameter = torch.tensor(theta, requires_grad=True)
    theirs = optimizer([parameter], lr=0.05, **options)
    moments = ref.Moments(np.zeros_like(theta), np.zeros_like(theta), 0)
    for _ in range(50):
        G = rng.standard_normal((4, 3))
        parameter.grad = torch.tensor(G)
        theirs.step()
        moments, change = base.update(moments, G, theta, 0.05)
        theta = theta - change
    np.testing.assert_allclose(theta, parameter.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_torchs_adam_reaches_as_far_as_the_theory_says(steps: int) -> None:
    """The worst inputs: torch's last step has the length of the bound, for Adam and AdamW."""
    for optimizer, options in ((torch.optim.Adam, {}), (torch.optim.AdamW, {"weight_decay": 0.0})):
        parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        theirs = optimizer([parameter], lr=1.0, eps=0.0, **options)
        for age in reversed(range(steps)):
            before = parameter.item()
            parameter.grad = torch.full((1,), (0.9 / 0.999) ** age, dtype=torch.float64)
            theirs.step()
        reached = float(adaptive.squared_reach(steps)) ** 0.5
        assert abs(parameter.item() - before) == pytest.approx(reached, rel=1e-9)
