"""What FOP hands its hyper-optimizer is the derivative of the loss through the last step, in networks of all kinds.

Two ways that share no line with FOP: autograd through one step taken again, in which P is a matrix over all of a
parameter's entries and a function of M; and central differences of the loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Adam, AdamW, Optimizer

from fop_torch import FOP
from tests.strategies import seeds

KINDS = ("dense", "low_rank", "spatial", "diagonal", "scalar", "s-hd", "pp-hd")
LR = 0.3


class Recording(SGD):
    """A hyper-optimizer that keeps the hypergradients which it is given."""

    def step(self, closure: Any = None) -> Any:
        self.given = [None if M.grad is None else M.grad.clone() for M in self.param_groups[0]["params"]]
        return super().step(closure)


# ------------------------------------------------------------------------------------------------ the way by hand


def explicit(kind: str, M: Tensor, shape: torch.Size, normalize: bool, norm_at: Tensor | None) -> Tensor:
    """P over all entries of the parameter in their order, `[size, size]`, a differentiable function of M.

    `norm_at` is the M whose norm Eq. (11) divides by, if it is not a function of M.
    """
    size = math.prod(shape)
    one = torch.eye(size, dtype=M.dtype)
    if kind in ("scalar", "diagonal"):
        return one * M.reshape(-1) ** 2
    if kind in ("s-hd", "pp-hd"):
        return one * M.reshape(-1)

    def block(M: Tensor) -> Tensor:
        return M @ M.T + (torch.eye(len(M), dtype=M.dtype) if kind == "low_rank" else 0)

    P = block(M)
    if normalize:
        P = P * math.sqrt(len(P)) / (block(M if norm_at is None else norm_at) ** 2).sum().sqrt()
    return torch.kron(torch.eye(size // len(P), dtype=M.dtype), P)


def stepped(base: type[Optimizer], options: dict[str, Any], p: Tensor, state: Any, step: Tensor) -> Tensor:
    """Where torch's optimizer takes the parameter, differentiable by the step that it is fed."""
    p = p.detach().clone()
    optimizer = base([p], lr=LR, differentiable=True, **options)
    # Adam's count is kept in float32, and this way takes the powers of beta in the count's precision.
    optimizer.state[p] = {key: each.double() for key, each in copy.deepcopy(state).items()}
    p.grad = step
    optimizer.step()
    return p


@dataclass
class Before:
    """A parameter as it was before the last step, and what the step used."""

    p: Tensor
    grad: Tensor
    state: Any  # the base optimizer's
    M: Tensor | None = None


@dataclass
class Trainer:
    """A network, FOP with one form for all parameters that it fits, and memory of the last step."""

    model: nn.Module
    kind: str
    base: type[Optimizer] = SGD
    base_options: dict[str, Any] = field(default_factory=dict)
    order: str = "paper"
    index: str = "exact"
    through: str = "plain"
    normalize: bool = False
    through_norm: bool = True
    memory_format: torch.memory_format = torch.contiguous_format
    hyper_lr: float = 0.1

    def __post_init__(self) -> None:
        self.model = self.model.double()
        for p in self.model.parameters():
            if p.dim() == 4:
                p.data = p.data.contiguous(memory_format=self.memory_format)
        chosen = {name: p for name, p in self.model.named_parameters() if self.kind != "spatial" or p.dim() > 2}
        self.names = list(chosen)
        groups: list[dict[str, Any]] = [{"params": list(chosen.values()), "preconditioner": self.kind}]
        others = [p for name, p in self.model.named_parameters() if name not in chosen]
        if others:
            groups.append({"params": others, "preconditioner": "none"})
        narrowest = min(p.numel() // (len(p) if p.dim() > 1 else 1) for p in chosen.values())
        self.optimizer = FOP(
            groups, LR, base=self.base, hyper=Recording, hyper_lr=self.hyper_lr, rank=min(2, narrowest), scale=0.3,
            order=self.order, index=self.index, through=self.through, normalize=self.normalize,
            through_norm=self.through_norm, **self.base_options,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        for M in self.factors().values():
            # Anywhere, not only at I.
            M += 0.2 * torch.randn(M.shape, generator=generator, dtype=M.dtype)
        self.last: dict[str, Before] = {}
        self.raw: dict[str, Tensor] = {}

    def factors(self) -> dict[str, Tensor]:
        params = dict(self.model.named_parameters())
        return {name: self.optimizer.state[params[name]]["M"] for name in self.names}

    def step(self, loss: Callable[[nn.Module], Tensor]) -> None:
        self.model.zero_grad()
        loss(self.model).backward()
        params = dict(self.model.named_parameters())
        self.last = {
            name: Before(p.detach().clone(), p.grad.clone(), copy.deepcopy(self.optimizer.base.state.get(p, {})))
            for name, p in params.items()
            if p.grad is not None
        }
        self.used = {name: M.clone() for name, M in self.factors().items()}
        momentum = self.base_options.get("momentum", 0)
        self.raw = {name: momentum * self.raw.get(name, 0) + before.grad for name, before in self.last.items()}
        self.optimizer.step()
        if self.order == "m-first":
            self.used = {name: M.clone() for name, M in self.factors().items()}

    def hypergradients(self, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
        """What FOP forms at the next loss, on a copy of everything."""
        twin = copy.deepcopy(self)
        assert twin.optimizer.hyper is not None
        twin.step(loss)
        return dict(zip(self.names, twin.optimizer.hyper.given, strict=True))  # type: ignore[attr-defined]

    def point(self) -> dict[str, Tensor]:
        """Where the derivative is taken: the M of the last step, or in the printed index the present one."""
        present = self.order == "paper" and self.index == "printed"
        return {name: M.clone() for name, M in (self.factors() if present else self.used).items()}

    def moved(self, name: str, M: Tensor, norm_at: Tensor) -> Tensor:
        """Where the last step would have taken a parameter with this M, as `through` has it."""
        before = self.last[name]
        P = explicit(self.kind, M, before.p.shape, self.normalize, None if self.through_norm else norm_at)
        if self.through == "step":
            return stepped(
                self.base, self.base_options, before.p, before.state, (P @ before.grad.reshape(-1)).view_as(before.p)
            )
        pushed = self.raw[name] if self.through == "velocity" else before.grad
        return before.p - LR * (P @ pushed.reshape(-1)).view_as(before.p)

    def loss_by_factors(self, loss: Callable[[nn.Module], Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
        """The loss as a function of the M's of the last step, by which all parameters are moved at once."""
        params = {name: p.detach() for name, p in self.model.named_parameters()}
        point = self.point()
        with torch.no_grad():
            there = {name: self.moved(name, M, M) for name, M in point.items()}
        true_step = self.index == "exact" or self.order == "m-first"
        if true_step and (self.through == "step" or (self.base is SGD and not self.base_options)):
            for name, p in there.items():  # the step by hand is the one that was taken
                torch.testing.assert_close(p, params[name], rtol=1e-12, atol=1e-12)

        def at(Ms: dict[str, Tensor]) -> Tensor:
            # Elsewhere only part of the step depends on M; its change is added to where the parameters are.
            shifted = {name: params[name] + self.moved(name, M, point[name]) - there[name] for name, M in Ms.items()}

            class Shifted(nn.Module):
                def forward(_, *inputs: Tensor) -> Any:  # noqa: N805
                    return functional_call(self.model, {**params, **shifted}, inputs)

            return loss(Shifted())

        return at


def check(trainer: Trainer, losses: Iterable[Callable[[nn.Module], Tensor]]) -> None:
    """Train on all losses but the last; there compare the hypergradients."""
    *earlier, last = losses
    for loss in earlier:
        trainer.step(loss)
    found = trainer.hypergradients(last)
    function, point = trainer.loss_by_factors(last), trainer.point()

    leaves = {name: M.clone().requires_grad_() for name, M in point.items()}
    wanted = dict(zip(leaves, torch.autograd.grad(function(leaves), list(leaves.values())), strict=True))
    largest = max(slope.norm() for slope in wanted.values())
    assert largest > 1e-4, "the problem tests nothing"
    for name, slope in wanted.items():
        # Sums of up to some hundred terms in float64.
        error = (found[name] - slope).norm()
        assert error <= 1e-11 * slope.norm() + 1e-15, f"{name}: {error:.1e} of {slope.norm():.1e}"

    generator = torch.Generator().manual_seed(2)
    h = 1e-3
    with torch.no_grad():
        for name, M in point.items():
            direction = torch.randn(M.shape, generator=generator, dtype=M.dtype)
            direction /= direction.norm()
            f = {k: function({**point, name: M + k * h * direction}) for k in (-2, -1, 1, 2)}
            slope = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
            # Five points: h^4 = 1e-12 times a fifth derivative, and rounding of 1e-16 / h.
            error = abs(slope - (found[name] * direction).sum())
            assert error <= 1e-9 * largest + 1e-12, f"{name}: {error:.1e} of {found[name].norm():.1e}"


# -------------------------------------------------------------------------------------------------------- networks


class Tied(nn.Module):
    """One matrix that embeds and reads out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.readout = nn.Linear(4, 6, bias=False)
        self.readout.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.mix(self.embedding(words).mean(1))))


def with_head(*layers: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(features, 2))


#: The network, and the shape of one input; words for those that embed.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | int]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)), (4,)),
    "1x1": (lambda: with_head(nn.Conv2d(2, 3, 1), features=12), (2, 2, 2)),
    "3x3": (lambda: with_head(nn.Conv2d(2, 3, 3), features=12), (2, 4, 4)),
    "5x5": (lambda: with_head(nn.Conv2d(2, 2, 5, padding=2), features=18), (2, 3, 3)),
    "two of a size": (lambda: with_head(nn.Conv2d(1, 3, 3), nn.GELU(), nn.Conv2d(3, 2, 3), features=8), (1, 6, 6)),
    "strided": (lambda: with_head(nn.Conv2d(2, 3, 3, stride=2), features=12), (2, 5, 5)),
    "dilated": (lambda: with_head(nn.Conv2d(2, 3, 3, dilation=2), features=3), (2, 5, 5)),
    "grouped": (lambda: with_head(nn.Conv2d(4, 6, 3, groups=2), features=24), (4, 4, 4)),
    "depthwise": (lambda: with_head(nn.Conv2d(3, 3, 3, groups=3), features=12), (3, 4, 4)),
    "rectangular": (lambda: with_head(nn.Conv2d(2, 3, (1, 3)), features=12), (2, 2, 4)),
    "transposed": (lambda: with_head(nn.ConvTranspose2d(3, 2, 3, stride=2), features=50), (3, 2, 2)),
    "transposed, grouped": (lambda: with_head(nn.ConvTranspose2d(4, 6, 2, groups=2), features=54), (4, 2, 2)),
    "1-d": (lambda: with_head(nn.Conv1d(2, 3, 3), features=12), (2, 6)),
    "3-d": (lambda: with_head(nn.Conv3d(1, 2, 2), features=16), (1, 3, 3, 3)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Tanh(), nn.Linear(12, 2)), 6),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)), (4,)),
    "group norm": (lambda: with_head(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), features=16), (2, 3, 3)),
    "tied": (Tied, 6),
}  # fmt: skip
CONVOLUTIONS = [name for name, (_, shape) in NETWORKS.items() if isinstance(shape, tuple) and len(shape) > 1]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]()


def batches(name: str, count: int) -> list[Callable[[nn.Module], Tensor]]:
    """A loss for each step, each on its own batch."""
    shape = NETWORKS[name][1]
    generator = torch.Generator().manual_seed(3)

    def loss() -> Callable[[nn.Module], Tensor]:
        if isinstance(shape, int):
            inputs = torch.randint(shape, (4, 3), generator=generator)
        else:
            inputs = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
        target = torch.randn(4, 6 if name == "tied" else 2, generator=generator, dtype=torch.float64)
        return lambda model: nn.functional.mse_loss(model(inputs), target)

    return [loss() for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in NETWORKS for kind in KINDS if kind != "spatial" or name in CONVOLUTIONS],
)
def test_in_networks_of_all_kinds(name: str, kind: str) -> None:
    check(Trainer(build(name), kind), batches(name, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["1x1", "3x3", "two of a size", "grouped", "depthwise", "transposed"])
def test_with_channels_last_in_memory(name: str, kind: str) -> None:
    trainer = Trainer(build(name), kind, memory_format=torch.channels_last)
    check(trainer, batches(name, 4))
    weight = next(p for p in trainer.model.parameters() if p.dim() == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)


WAYS: dict[str, dict[str, Any]] = {
    "printed": {"index": "printed"},
    "m-first": {"order": "m-first"},
    "momentum": {"base_options": {"momentum": 0.9}},
    "momentum, decay, step": {"through": "step", "base_options": {"momentum": 0.9, "weight_decay": 0.1}},
    "nesterov, step": {"through": "step", "base_options": {"momentum": 0.9, "nesterov": True}},
    "nesterov, step, printed": {
        "through": "step", "index": "printed", "base_options": {"momentum": 0.9, "nesterov": True}
    },
    "velocity": {"through": "velocity", "base_options": {"momentum": 0.9}},
    "velocity, m-first": {"through": "velocity", "order": "m-first", "base_options": {"momentum": 0.9}},
    "adam": {"base": Adam},
    "adam, step": {"base": Adam, "through": "step"},
    "adam, decay, step, m-first": {
        "base": Adam, "through": "step", "order": "m-first", "base_options": {"weight_decay": 0.1, "betas": (0.5, 0.9)}
    },
    "adamw, step": {"base": AdamW, "through": "step", "base_options": {"weight_decay": 0.1}},
}  # fmt: skip
NORMS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "normed": {"normalize": True},
    "norm held": {"normalize": True, "through_norm": False},
}
MATRICES = ("dense", "low_rank", "spatial")


@pytest.mark.parametrize(
    ("kind", "norm"), [(kind, norm) for kind in KINDS for norm in NORMS if kind in MATRICES or norm == "as it is"]
)
@pytest.mark.parametrize("way", WAYS)
def test_through_every_base_and_norm(way: str, kind: str, norm: str) -> None:
    check(Trainer(build("3x3"), kind, **WAYS[way], **NORMS[norm]), batches("3x3", 4))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Any convolution, plain or transposed, and the shape of an input that is large enough for it."""
    dims = draw(st.integers(1, 3))
    groups, wide, narrow = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 5 if dims < 3 else 2)) for _ in range(dims))
    stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    transposed = draw(st.booleans())
    kinds = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layer = kinds[dims - 1](groups * wide, groups * narrow, kernel, stride=stride, dilation=dilation, groups=groups)
    room = (2,) * dims if transposed else tuple(dilation * (k - 1) + 1 + stride for k in kernel)
    return nn.Sequential(layer, nn.Tanh()), (groups * wide, *room)


@given(convolutions(), st.sampled_from(KINDS), st.sampled_from([torch.contiguous_format, torch.channels_last]), seeds)
def test_in_any_convolution(
    layer: tuple[nn.Module, tuple[int, ...]], kind: str, memory_format: torch.memory_format, seed: int
) -> None:
    model, shape = layer
    generator = torch.Generator().manual_seed(seed)
    model.double()

    def loss() -> Callable[[nn.Module], Tensor]:
        inputs = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        target = torch.randn(2, 1, *[1] * (len(shape) - 1), generator=generator, dtype=torch.float64)
        return lambda model: (model(inputs) - target).square().mean()

    check(Trainer(model, kind, memory_format=memory_format), [loss() for _ in range(3)])
