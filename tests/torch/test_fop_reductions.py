"""What FOP becomes in special cases, and what it doesn't depend on: bitwise where the arithmetic is exact.

Products with one and zero, powers of two, and small whole numbers are exact; elsewhere sums in another order differ by
rounding, in float64 by 1e-16 a step, and the bound is 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer

from fop_torch import FOP, PPHD, SHD
from fop_torch.preconditioners import FORMS

#: Every optimizer of torch, also one that comes with its next version, but for those that FOP refuses.
EVERY: list[type[Optimizer]] = sorted(
    {
        each
        for name, each in vars(torch.optim).items()
        if isinstance(each, type) and issubclass(each, Optimizer) and not name.startswith("_")
    }
    - {Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam},
    key=lambda each: each.__name__,
)
BASES: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    **{each.__name__: (each, {}) for each in EVERY},
    "momentum": (SGD, {"momentum": 0.9}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "dampening": (SGD, {"momentum": 0.9, "dampening": 0.5}),
    "maximize": (SGD, {"momentum": 0.9, "maximize": True}),
    "amsgrad": (Adam, {"amsgrad": True, "weight_decay": 0.01}),
    "centered": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
}

Gradient = Callable[[Tensor], Tensor]


def convex(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Gradient]:
    """A start and the gradient of a smooth convex function that couples all entries, in float64."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    A, b, start = (
        torch.randn(each, generator=generator, dtype=torch.float64) for each in ((size, size), (size,), shape)
    )
    A = A @ A.T / size + 0.3 * torch.eye(size, dtype=torch.float64)

    def gradient(p: Tensor) -> Tensor:
        flat = p.detach().reshape(-1).double()
        return (A @ flat + b + 0.1 * flat.sin()).view(shape)

    return start, gradient


def run(optimizer: Optimizer, p: Tensor, gradient: Gradient, steps: int) -> list[Tensor]:
    """The trajectory, with another learning rate at each step."""
    trajectory = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * (0.5, 1.5)[step % 2]
        p.grad = gradient(p).to(p.dtype)
        optimizer.step()
        trajectory.append(p.detach().clone())
    return trajectory


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def close(ours: Tensor, theirs: Tensor, bound: float = 1e-12) -> bool:
    return bool((ours - theirs).abs().max() <= bound * theirs.abs().max())


def test_every_optimizer_of_torch_is_there() -> None:
    known = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax Muon NAdam RAdam RMSprop Rprop SGD"
    assert {each.__name__ for each in EVERY} >= set(known.split())


# ------------------------------------------------------------------------------------------------ FOP is its base


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("base_name", BASES)
def test_m_frozen_at_the_identity_is_the_base_bitwise(base_name: str, kind: str) -> None:
    base, options = BASES[base_name]
    # Muon takes matrices only.
    shape = (3, 4) if base is Muon else (3, 2, 2, 2)
    if base is Muon and kind == "spatial":
        with pytest.raises(ValueError, match="2D"):
            FOP([nn.Parameter(torch.zeros(3, 2, 2, 2))], 0.1, base=base, preconditioner=kind)
        return
    start, gradient = convex(shape)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        p = nn.Parameter(start.to(dtype, copy=True))
        expected = run(base([p], lr=0.02, **options), p, gradient, 6)
        for order in ("paper", "m-first"):
            q = nn.Parameter(start.to(dtype, copy=True))
            # The low rank's identity is M = 0.
            optimizer = FOP(
                [q], 0.02, base=base, hyper_lr=0, preconditioner=kind, order=order, scale=0, rank=None, **options
            )
            assert same(run(optimizer, q, gradient, 6), expected), f"{dtype}, {order}"
    assert not torch.equal(expected[-1], expected[0])


@pytest.mark.parametrize("kind", ["dense", "low_rank", "spatial"])
def test_normalised_too(kind: str) -> None:
    """`sqrt(m) / |I|_F` is one to the last bit."""
    for width in range(1, 8):
        start, gradient = convex((3, 1, width))
        p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        expected = run(SGD([p], lr=0.02, momentum=0.9), p, gradient, 6)
        optimizer = FOP(
            [q], 0.02, momentum=0.9, hyper_lr=0, preconditioner=kind, scale=0, normalize=True, nonfinite="ignore"
        )
        assert same(run(optimizer, q, gradient, 6), expected)


@pytest.mark.parametrize("without", [{"preconditioner": "none"}, {"preconditioner": "low_rank", "rank": 0}], ids=str)
@pytest.mark.parametrize("base_name", BASES)
def test_without_a_preconditioner_it_is_the_base_bitwise(base_name: str, without: dict[str, Any]) -> None:
    base, options = BASES[base_name]
    start, gradient = convex((3, 4))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        p, q = nn.Parameter(start.to(dtype, copy=True)), nn.Parameter(start.to(dtype, copy=True))
        expected = run(base([p], lr=0.02, **options), p, gradient, 6)
        # hyper_lr is as large as can be: there is nothing to learn.
        optimizer = FOP([q], 0.02, base=base, hyper_lr=10.0, **without, **options)
        assert same(run(optimizer, q, gradient, 6), expected)
        assert optimizer.hyper is None


# ------------------------------------------------------------------------- any optimizer of torch, as base and as hyper


def by_hand(
    start: Tensor, gradient: Gradient, base: Callable[..., Optimizer], hyper: Callable[..., Optimizer], steps: int
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 around two optimizers of torch: the dense form, with `G: [n, m]`."""
    p, M = nn.Parameter(start.clone()), nn.Parameter(torch.eye(start.shape[1], dtype=start.dtype))
    moves_p, moves_M = base([p]), hyper([M])
    H, before = None, 0.0
    for _ in range(steps):
        G = gradient(p)
        p.grad = G @ M.detach() @ M.detach().T
        if H is not None:
            M.grad = -before * (G.T @ H + H.T @ G) @ M.detach()
        moves_p.step()
        if H is not None:
            moves_M.step()
        H, before = G, moves_p.param_groups[0]["lr"]
    return p.detach(), M.detach()


@pytest.mark.parametrize("side", ["base", "hyper"])
@pytest.mark.parametrize("name", BASES)
def test_any_optimizer_of_torch_can_be_base_or_hyper(name: str, side: str) -> None:
    chosen, options = BASES[name]
    start, gradient = convex((3, 4))
    lr, hyper_lr, steps = 0.02, 0.005, 8
    if side == "base":
        expected = by_hand(
            start, gradient, lambda ps: chosen(ps, lr=lr, **options), lambda ps: SGD(ps, lr=hyper_lr), steps
        )
        given: dict[str, Any] = {"base": chosen, "hyper": SGD, **options}
    else:
        expected = by_hand(
            start, gradient, lambda ps: SGD(ps, lr=lr), lambda ps: chosen(ps, lr=hyper_lr, **options), steps
        )
        given = {"base": SGD, "hyper": chosen, "hyper_options": options}
    p = nn.Parameter(start.clone())
    optimizer = FOP([p], lr, hyper_lr=hyper_lr, preconditioner="dense", **given)
    for _ in range(steps):
        p.grad = gradient(p)
        optimizer.step()
    # Muon orthogonalises in bfloat16, whose numbers are 2^-8 apart: a last bit of float64 may cost one of those.
    # ASGD keeps its rate in float32, which torch's loop and its one call for all tensors round apart.
    bound = {Muon: 1e-2, torch.optim.ASGD: 1e-6}.get(chosen, 1e-12)
    M = optimizer.state[p]["M"]
    assert close(p.detach(), expected[0], bound)
    assert close(M, expected[1], bound)
    assert not close(M, torch.eye(4, dtype=M.dtype), 1e-4)


# ------------------------------------------------------------------------------------------------- forms of one entry


def whole(shape: tuple[int, ...], count: int) -> list[Tensor]:
    """Gradients of small whole numbers: with learning rates of powers of two a few steps are exact."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-3, 4, shape, generator=generator).double() for _ in range(count)]


def fed(optimizer: FOP, p: Tensor, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    for grad in gradients:
        p.grad = grad.clone()
        optimizer.step()
    return p.detach(), optimizer.state[p]["M"].reshape(-1)


def zeros(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("way", [{}, {"index": "exact"}, {"order": "m-first"}], ids=str)
@pytest.mark.parametrize("through", ["plain", "velocity"])
def test_one_by_one_spatial_is_scalar_bitwise(way: dict[str, str], through: str) -> None:
    """On whole numbers; M takes ten more binary digits at each step, P twice as many."""
    shape = (3, 4, 1, 1)
    options: dict[str, Any] = {"hyper": SGD, "hyper_lr": 2.0**-6, "momentum": 0.5, "through": through, **way}
    p, q = zeros(shape), zeros(shape)
    ours = fed(FOP([p], 2.0**-4, preconditioner="spatial", **options), p, whole(shape, 3))
    theirs = fed(FOP([q], 2.0**-4, preconditioner="scalar", **options), q, whole(shape, 3))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[1] != 1


@pytest.mark.parametrize("hyper", [SGD, Adam])
@pytest.mark.parametrize(
    ("shape", "kinds"),
    [
        ((3, 4, 1, 1), ("scalar", "spatial")),
        ((4, 1), ("scalar", "dense")),
        ((1, 1, 1, 1), ("scalar", "dense", "spatial", "diagonal")),
        ((1, 1), ("s-hd", "pp-hd")),
    ],
    ids=str,
)
def test_forms_of_one_entry_agree(shape: tuple[int, ...], kinds: tuple[str, ...], hyper: type[Optimizer]) -> None:
    start, gradient = convex(shape)
    ends = []
    for kind in kinds:
        p = nn.Parameter(start.clone())
        optimizer = FOP([p], 0.02, momentum=0.9, hyper=hyper, hyper_lr=0.01, preconditioner=kind)
        trajectory = torch.stack(run(optimizer, p, gradient, 50))
        ends.append((trajectory, optimizer.state[p]["M"].reshape(-1)))
    for trajectory, M in ends[1:]:
        assert close(trajectory, ends[0][0])
        assert close(M, ends[0][1])
    assert abs(ends[0][1] - 1) > 1e-3


# ----------------------------------------------------------------------------------- S-HD and PP-HD, under P = M^2


class OfTheRoot(SGD):
    """Gradient descent on the root of a rate.

    With `r = M^2` and `g = df/dr`, `M - lr df/dM = M - 2 lr M g`, so `r` becomes `r (1 - 2 lr g)^2`.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for r in group["params"]:
                if r.grad is not None:
                    r.mul_((1 - 2 * group["lr"] * r.grad) ** 2)


BASELINES = {"scalar": SHD, "diagonal": PPHD}


# The identity needs the derivative at the M that is moved: not index="exact" in the paper's order.
@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize(
    "base",
    [{}, {"momentum": 0.9}, {"base": Adam}, {"base": AdamW, "through": "step", "order": "m-first"}],
    ids=["sgd", "momentum", "adam", "adamw's step"],
)
@pytest.mark.parametrize("kind", BASELINES)
def test_the_positive_forms_are_the_baselines_with_gradient_descent_on_the_root(
    kind: str, base: dict[str, Any], order: str
) -> None:
    start, gradient = convex((3, 4))
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"hyper_lr": 0.05, "order": order, **base}
    ours = FOP([p], 0.02, hyper=SGD, preconditioner=kind, **options)
    theirs = BASELINES[kind]([q], 0.02, hyper=OfTheRoot, **options)
    assert close(torch.stack(run(ours, p, gradient, 50)), torch.stack(run(theirs, q, gradient, 50)))
    rate = theirs.state[q]["M"]
    assert close(ours.state[p]["M"].square(), rate)
    assert (rate - 1).abs().max() > 1e-3


@pytest.mark.parametrize("kind", BASELINES)
def test_to_first_order_they_are_the_baselines_with_four_times_the_rate(kind: str) -> None:
    """From r = 1: `r (1 - 2 rho g)^2 = r - 4 rho r g + ...`; what is left out falls with the square of rho."""
    start, gradient = convex((3, 4))

    def difference(hyper_lr: float, times: float) -> float:
        p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        ours = FOP([p], 0.02, hyper=SGD, hyper_lr=hyper_lr, preconditioner=kind)
        theirs = BASELINES[kind]([q], 0.02, hyper=SGD, hyper_lr=times * hyper_lr)
        run(ours, p, gradient, 10)
        run(theirs, q, gradient, 10)
        return float((ours.state[p]["M"].square() - theirs.state[q]["M"]).norm())

    rho = 1e-4
    assert difference(rho, 4) / difference(rho / 2, 4) == pytest.approx(4, rel=0.01)
    # Any other multiple differs in first order.
    assert difference(rho, 1) / difference(rho / 2, 1) == pytest.approx(2, rel=0.01)


# ------------------------------------------------------------------------------------------ what it doesn't depend on

# A loss times c: its gradients times c, hypergradients times c^2 lr. Plain optimizers want their rates divided by as
# much as what they are fed grows; Adam divides by its gradient's size itself, if eps is zero.
RATES: dict[str, tuple[dict[str, Any], Callable[[float], float], Callable[[float], float]]] = {
    "sgd, sgd": ({"hyper": SGD}, lambda c: 1 / c, lambda c: 1 / c),
    "momentum, momentum": (
        {"hyper": SGD, "momentum": 0.9, "hyper_options": {"momentum": 0.5}}, lambda c: 1 / c, lambda c: 1 / c
    ),
    "velocity": ({"hyper": SGD, "momentum": 0.9, "through": "velocity"}, lambda c: 1 / c, lambda c: 1 / c),
    "sgd, adam": ({"hyper_options": {"eps": 0.0}}, lambda c: 1 / c, lambda c: 1),
    "adam, sgd": ({"base": Adam, "hyper": SGD, "eps": 0.0}, lambda c: 1, lambda c: 1 / c**2),
    "adam, adam": ({"base": Adam, "eps": 0.0, "hyper_options": {"eps": 0.0}}, lambda c: 1, lambda c: 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("name", RATES)
def test_the_scale_of_the_loss(name: str, kind: str) -> None:
    """Bitwise for powers of two, which multiply without rounding. The rates of some forms have no unit."""
    options, lr, hyper_lr = RATES[name]
    hyper_lr = (lambda c: 1) if FORMS[kind].normalised else hyper_lr
    shape = (3, 2, 2, 2)
    start, gradient = convex(shape)

    def trajectory(c: float, rate: float = 1.0) -> tuple[list[Tensor], Tensor]:
        p = nn.Parameter(start.clone())
        optimizer = FOP(
            [p], 2.0**-6 * lr(c), hyper_lr=2.0**-7 * hyper_lr(c) * rate, preconditioner=kind, scale=0.3, **options
        )
        return run(optimizer, p, lambda p: c * gradient(p), 20), optimizer.state[p]["M"]

    once, M = trajectory(1)
    for c in (2.0**10, 2.0**-10):
        again, N = trajectory(c)
        assert same(again, once)
        assert torch.equal(N, M)
    again, N = trajectory(3)
    assert close(torch.stack(again), torch.stack(once))
    assert close(N, M)
    # M matters: with another rate for it the run is another.
    assert not close(trajectory(1, 2)[0][-1], once[-1], 1e-5)


def orthogonal(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["dense", "low_rank"])
@pytest.mark.parametrize("hyper", [SGD, Adam])
def test_rotations_of_inputs_and_outputs(kind: str, hyper: type[Optimizer], normalize: bool) -> None:
    """From M = I the run in rotated coordinates is the rotated run; not so with Adam, which goes entry by entry."""
    start, gradient = convex((3, 4))
    out, into = orthogonal(3, 1), orthogonal(4, 2)
    options: dict[str, Any] = {
        "momentum": 0.9, "hyper": hyper, "hyper_lr": 0.01, "preconditioner": kind, "normalize": normalize
    }  # fmt: skip
    p, q = nn.Parameter(start.clone()), nn.Parameter(out @ start @ into)
    plain, rotated = FOP([p], 0.02, **options), FOP([q], 0.02, **options)
    if kind == "low_rank":  # its start is random and turns along
        plain.state[p]["M"].mul_(30)
        rotated.state[q]["M"].copy_(into.T @ plain.state[p]["M"])
    expected = out @ torch.stack(run(plain, p, gradient, 50)) @ into
    found = torch.stack(run(rotated, q, lambda q: out @ gradient(out.T @ q @ into.T) @ into, 50))
    M = plain.state[p]["M"]
    turned = into.T @ M @ into if kind == "dense" else into.T @ M
    if hyper is SGD:
        assert close(found, expected)
        assert close(rotated.state[q]["M"], turned)
    else:
        assert not close(rotated.state[q]["M"], turned, 1e-3)


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("kind", ["spatial", "s-hd", "scalar", "pp-hd", "diagonal"])
def test_permuted_channels(kind: str, order: str) -> None:
    """The channels share M for spatial, so their order is nothing to it; per-parameter factors go along."""
    shape = (3, 4, 2, 2)
    start, gradient = convex(shape)
    outs, ins = torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])

    def permuted(T: Tensor) -> Tensor:
        return T[outs][:, ins]

    def back(T: Tensor) -> Tensor:
        return T[outs.argsort()][:, ins.argsort()]

    p, q = nn.Parameter(start.clone()), nn.Parameter(permuted(start))
    options: dict[str, Any] = {"momentum": 0.9, "hyper_lr": 0.01, "preconditioner": kind, "order": order}
    plain, other = FOP([p], 0.02, **options), FOP([q], 0.02, **options)
    expected = run(plain, p, gradient, 50)
    found = run(other, q, lambda q: permuted(gradient(back(q))), 50)
    M, N = plain.state[p]["M"], other.state[q]["M"]
    assert close(torch.stack([back(each) for each in found]), torch.stack(expected))
    assert close(N, permuted(M) if M.dim() == 4 else M)
    if kind in ("pp-hd", "diagonal"):  # each entry on its own: not a single sum
        assert torch.equal(N, permuted(M))
    assert not close(M, FORMS[kind].start(p.shape, None, 0.0, torch.Generator()).double(), 1e-3)


@pytest.mark.parametrize("hyper", [SGD, Adam])
def test_permuted_positions_of_a_kernel(hyper: type[Optimizer]) -> None:
    start, gradient = convex((3, 2, 2, 3))
    order = torch.tensor([4, 2, 0, 5, 1, 3])

    def permuted(T: Tensor, order: Tensor = order) -> Tensor:
        return T.reshape(3, 2, 6)[..., order].reshape(3, 2, 2, 3)

    p, q = nn.Parameter(start.clone()), nn.Parameter(permuted(start))
    options: dict[str, Any] = {"hyper": hyper, "hyper_lr": 0.01, "preconditioner": "spatial"}
    plain, other = FOP([p], 0.02, **options), FOP([q], 0.02, **options)
    expected = run(plain, p, gradient, 50)
    found = run(other, q, lambda q: permuted(gradient(permuted(q, order.argsort()))), 50)
    assert close(torch.stack(found), torch.stack([permuted(each) for each in expected]))
    assert close(other.state[q]["M"], plain.state[p]["M"][order][:, order])


# ------------------------------------------------------------------------------------------------------------ p.grad


def held(optimizer: FOP) -> dict[str, Tensor]:
    """Every tensor that the optimizer and its two keep, by its place."""
    owners = {"fop": optimizer, "base": optimizer.base}
    if optimizer.hyper is not None:
        owners["hyper"] = optimizer.hyper
    return {
        f"{owner}: {key}": value
        for owner, each in owners.items()
        for entries in each.state.values()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def check_gradients_stay(kind: str, dtype: torch.dtype, layout: torch.memory_format, **options: Any) -> None:
    muon = Muon in (options.get("base"), options.get("hyper"))
    shape = (3, 4) if muon else (3, 4, 2, 2)
    start, gradient = convex(shape)
    p = nn.Parameter(start.to(dtype, copy=True))
    if not muon:
        p.data = p.data.contiguous(memory_format=layout)
    optimizer = FOP([p], 0.02, preconditioner=kind, **options)
    for step in range(4):
        grad = gradient(p).to(dtype)
        grad = grad if muon else grad.contiguous(memory_format=layout)
        copy, version, stride = grad.clone(), grad._version, grad.stride()
        p.grad = grad
        optimizer.step()
        assert p.grad is grad
        assert torch.equal(grad, copy)
        assert (grad._version, grad.stride()) == (version, stride)
        assert not grad.requires_grad
        memory = {name: each.untyped_storage().data_ptr() for name, each in held(optimizer).items()}
        taken = {grad.untyped_storage().data_ptr(), p.untyped_storage().data_ptr()}
        assert [name for name, at in memory.items() if at in taken] == [], f"step {step}"
        assert kind == "none" or "fop: prev_grad" in memory


WAYS: list[dict[str, Any]] = [
    {},
    {"index": "exact", "momentum": 0.9, "nesterov": True},
    {"order": "m-first", "hyper": SGD},
    {"through": "velocity", "momentum": 0.9},
    {"through": "step", "base": Adam, "index": "exact"},
    {"nonfinite": "ignore", "maximize": True},
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("kind", [*FORMS, "none"])
def test_gradients_stay_and_no_state_is_their_memory(kind: str, way: dict[str, Any], dtype: torch.dtype) -> None:
    if kind != "none" and FORMS[kind].normalised and way.get("through") == "step":
        way = {"base": Adam, "index": "exact"}
    for layout in (torch.contiguous_format, torch.channels_last):
        check_gradients_stay(kind, dtype, layout, **way)


@pytest.mark.parametrize("base_name", BASES)
def test_gradients_stay_with_every_base(base_name: str) -> None:
    base, options = BASES[base_name]
    check_gradients_stay("dense", torch.float32, torch.contiguous_format, base=base, **options)
    check_gradients_stay("diagonal", torch.float32, torch.contiguous_format, base=base, **options)
    check_gradients_stay("none", torch.float32, torch.contiguous_format, base=base, **options)


def test_a_gradient_may_be_overwritten_after_the_step() -> None:
    """As `zero_grad(set_to_none=False)` and the next backward pass do."""
    start, gradient = convex((3, 4))
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours, theirs = FOP([p], 0.02, momentum=0.9, hyper_lr=0.01), FOP([q], 0.02, momentum=0.9, hyper_lr=0.01)
    p.grad = torch.zeros_like(p)
    for _ in range(5):
        p.grad.copy_(gradient(p))
        ours.step()
        ours.zero_grad(set_to_none=False)
        q.grad = gradient(q)
        theirs.step()
        assert torch.equal(p, q)
    assert torch.equal(ours.state[p]["M"], theirs.state[q]["M"])
    assert not torch.equal(ours.state[p]["M"], torch.eye(4, dtype=p.dtype))
