"""FOP follows the oracle of `fop_theory`, which contains no formula for a hypergradient, step by step in float64."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fop_theory import reference as ref
from fop_torch import FOP
from fop_torch.preconditioners import FORMS as TORCH_FORMS
from tests.strategies import seeds

STEPS = 50

#: Ours and the oracle's, of the same options.
BASES: dict[str, tuple[type[Optimizer], dict[str, Any], ref.Optimizer]] = {
    "sgd": (SGD, {}, ref.SGD()),
    "momentum": (SGD, {"momentum": 0.9}, ref.SGD(0.9)),
    "nesterov": (SGD, {"momentum": 0.8, "nesterov": True}, ref.SGD(0.8, nesterov=True)),
    "nesterov, decay": (
        SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}, ref.SGD(0.8, nesterov=True, weight_decay=0.1)
    ),
    "adam": (Adam, {}, ref.Adam()),
    "adam, decay": (Adam, {"weight_decay": 0.1, "betas": (0.8, 0.9)}, ref.Adam((0.8, 0.9), weight_decay=0.1)),
    "adamw": (AdamW, {"weight_decay": 0.1}, ref.Adam(weight_decay=0.1, decoupled=True)),
}  # fmt: skip

#: Adam divides a hypergradient by its own size, or by eps where that is larger. Some hypergradients are zero in theory:
#: through the norm for m = 1; and nearly so: through Adam's first step, `sign(g)` but for eps. Only rounding is left of
#: them. Torch's eps of 1e-8 would make it 1e8 times larger; this one is still small beside the others, of 0.1.
EPS = 1e-2
HYPERS: dict[str, tuple[type[Optimizer], dict[str, Any], ref.Optimizer]] = {
    "sgd": (SGD, {}, ref.SGD()),
    "momentum": (SGD, {"momentum": 0.9}, ref.SGD(0.9)),
    "adam": (Adam, {"eps": EPS}, ref.Adam(eps=EPS)),
}

#: The oracle's form for each of ours, and whether Eq. (11) can normalise it. One number for all entries is a dense
#: 1 x 1 preconditioner of the parameter as one row; S-HD and PP-HD are the oracle's own.
FORMS: dict[str, tuple[str, bool]] = {
    "dense": ("dense", True),
    "low_rank": ("low-rank", True),
    "spatial": ("dense", True),
    "diagonal": ("diagonal", False),
    "scalar": ("dense", False),
    "s-hd": ("s-hd", False),
    "pp-hd": ("pp-hd", False),
    "linear": ("online", False),
    "exponential": ("exponential", False),
}
NORMS = ((False, True), (True, True), (True, False))  # normalize, through_norm

#: Everything that goes together: order, index, through, base.
COMBINATIONS = [
    (order, index, through, base)
    for order in ("paper", "m-first")
    for index in ("printed", "exact")
    for through in ("plain", "step", "velocity")
    for base, (optimizer_class, _, _) in BASES.items()
    if not (through == "velocity" and optimizer_class is not SGD)
    if not (through == "step" and optimizer_class is not SGD and (order, index) == ("paper", "printed"))
]
#: Some forms learn from gradients alone.
NORMALISED = [kind for kind in FORMS if TORCH_FORMS[kind].normalised]
GRADIENTS_ALONE = [each for each in COMBINATIONS if each[2] != "step"]


def matrix(kind: str, T: np.ndarray) -> np.ndarray:
    """A parameter as the oracle sees it, `[m, n]`: FOP's rows are its columns."""
    if kind == "spatial":
        return T.reshape(-1, math.prod(T.shape[2:])).T
    if kind == "scalar":
        return T.reshape(1, -1)
    if kind in NORMALISED:
        return T.reshape(-1, TORCH_FORMS[kind].factor_shape(torch.Size(T.shape), None)[0]).T
    return T.reshape(-1, 1) if T.ndim < 2 else T.reshape(len(T), -1).T


def tensor(shape: tuple[int, ...], X: np.ndarray) -> np.ndarray:
    """The way back."""
    return X.T.reshape(shape)


def factor(kind: str, M: np.ndarray) -> np.ndarray:
    """FOP's M as the oracle's."""
    if kind in ("diagonal", "pp-hd"):
        return matrix(kind, M)
    return M.reshape(1, 1) if M.ndim == 0 else M


@dataclass
class Problem:
    """A smooth convex function of a parameter; its minimum is not at zero, so that relative errors mean something."""

    kind: str
    start: np.ndarray
    M: np.ndarray
    curvature: np.ndarray
    shift: np.ndarray

    def gradient(self, T: np.ndarray) -> np.ndarray:
        """A quadratic's, with its entries coupled, and a wave's."""
        return (self.curvature @ T.ravel() + self.shift + 0.1 * np.sin(T.ravel())).reshape(T.shape)


def problem(kind: str, shape: tuple[int, ...], M: np.ndarray, rng: np.random.Generator) -> Problem:
    size = math.prod(shape)
    A = rng.standard_normal((size, size))
    # Eigenvalues from 0.3 to about 4 and gradients of norm 3: with P near I all runs are stable, and no error grows.
    curvature = A @ A.T / size + 0.3 * np.eye(size)
    M = M + 0.3 * rng.standard_normal(M.shape) / math.sqrt(len(M) if M.ndim else 1)
    M = (M + M.T) / 2 if kind in NORMALISED else M
    start, shift = rng.standard_normal(shape) / math.sqrt(size), (2 + rng.random(size)) / math.sqrt(size)
    return Problem(kind, np.asarray(start), np.asarray(M), curvature, shift)


def follow(
    optimizer: FOP,
    params: list[nn.Parameter],
    problems: list[Problem],
    settings: list[ref.Settings],
    steps: int,
    *,
    rates: tuple[float, ...] = (1.0,),
    hyper_rates: tuple[float, ...] = (1.0,),
    layouts: tuple[torch.memory_format, ...] = (torch.contiguous_format,),
) -> None:
    """Run both and compare after each step.

    `rates` and `hyper_rates` multiply the learning rates in turn, `layouts` are those of the gradients in turn.
    """
    for p, each in zip(params, problems, strict=True):
        optimizer.state[p]["M"].copy_(torch.from_numpy(each.M))
    thetas = [matrix(each.kind, each.start) for each in problems]
    states = [ref.initial_state(theta, factor(each.kind, each.M)) for theta, each in zip(thetas, problems, strict=True)]
    largest = [[np.abs(theta).max(), np.abs(state.M).max()] for theta, state in zip(thetas, states, strict=True)]
    for t in range(steps):
        rate, hyper_rate, layout = rates[t % len(rates)], hyper_rates[t % len(hyper_rates)], layouts[t % len(layouts)]
        for p, each in zip(params, problems, strict=True):
            grad = torch.from_numpy(each.gradient(p.detach().numpy()))
            p.grad = grad.contiguous(memory_format=layout) if p.dim() == 4 else grad
        for group in optimizer.param_groups:
            group["lr"] = settings[0].lr * rate
            group["hyper_lr"] = settings[0].hyper_lr * hyper_rate
        optimizer.step()
        for i, (p, each, setting) in enumerate(zip(params, problems, settings, strict=True)):
            # Its own gradient at its own parameters: not ours.
            grad = matrix(each.kind, each.gradient(tensor(p.shape, thetas[i])))
            now = replace(setting, hyper_lr=setting.hyper_lr * hyper_rate)
            states[i], thetas[i] = ref.step(states[i], thetas[i], grad, now, lr=setting.lr * rate)
            ours = matrix(each.kind, p.detach().numpy()), factor(each.kind, optimizer.state[p]["M"].numpy())
            for j, (found, wanted) in enumerate(zip(ours, (thetas[i], states[i].M), strict=True)):
                largest[i][j] = max(largest[i][j], np.abs(wanted).max())
                # 50 steps of float64's 1e-16, on sums of up to 81 terms; relative to the run's largest number.
                error = np.abs(found - wanted).max() / largest[i][j]
                assert error < 1e-12, f"{('theta', 'M')[j]} at step {t}: {error:.1e} in {setting}"


matrix_shapes = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    st.tuples(st.integers(1, 5)),
    st.just(()),
)
kernel_shapes = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
)
layout_kinds = st.sampled_from([torch.contiguous_format, torch.channels_last])


@pytest.mark.parametrize("kind", FORMS)
@given(st.data())
def test_it_follows_the_oracle(kind: str, data: st.DataObject) -> None:
    form, normed = FORMS[kind]
    order, index, through, base_name = data.draw(
        st.sampled_from(GRADIENTS_ALONE if kind in NORMALISED else COMBINATIONS)
    )
    normalize, through_norm = data.draw(st.sampled_from(NORMS if normed else NORMS[:1]))
    (base, base_options, base_ref), hyper_name = BASES[base_name], data.draw(st.sampled_from(list(HYPERS)))
    hyper, hyper_options, hyper_ref = HYPERS[hyper_name]
    # Several at once, of equal and of different sizes: FOP handles them together.
    shapes = data.draw(st.lists(kernel_shapes if kind == "spatial" else matrix_shapes, min_size=1, max_size=2))
    rank = data.draw(st.integers(1, 7)) if kind == "low_rank" else None
    rng = np.random.default_rng(data.draw(seeds))
    params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    for p in params:
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=data.draw(layout_kinds))
    lr, hyper_lr = 0.02, data.draw(st.sampled_from([1e-3, 1e-2]))
    with warnings.catch_warnings():
        # A rank above the input dimension is clamped, and says so.
        warnings.filterwarnings("ignore", message="rank: .* exceeds the input dimension")
        optimizer = FOP(
            params, lr, base=base, hyper=hyper, hyper_lr=hyper_lr, hyper_options=hyper_options, preconditioner=kind,
            rank=rank, order=order, index=index, through=through, normalize=normalize, through_norm=through_norm,
            scale=0.3, nonfinite=data.draw(st.sampled_from(["skip", "ignore"])), **base_options,
        )  # fmt: skip
    problems = [problem(kind, tuple(p.shape), optimizer.state[p]["M"].numpy(), rng) for p in params]
    for p, each in zip(params, problems, strict=True):
        p.data.copy_(torch.from_numpy(each.start))
    settings = ref.Settings(
        lr=lr, hyper_lr=hyper_lr, form=form, normalize=normalize, through_norm=through_norm,
        order=order, index=index, through=through, base=base_ref, hyper=hyper_ref,
    )  # fmt: skip
    if base is not SGD:
        # The derivative of Adam's first step is `eps / g^2`, what is left of a difference of terms of size `1 / g`.
        for each in problems:
            M = factor(kind, each.M)
            assume(np.abs(ref.precondition(M, matrix(kind, each.gradient(each.start)), settings)).min() > 0.01)
    follow(
        optimizer, params, problems, [settings] * len(params), STEPS,
        # Constant, or another rate at each step; M frozen now and then.
        rates=data.draw(st.sampled_from([(1.0,), (1.0, 0.5, 0.75, 0.3, 1.2, 0.1, 0.9)])),
        hyper_rates=data.draw(st.sampled_from([(1.0,), (0.0, 0.0, 0.0, 1.0, 0.5)])),
        layouts=tuple(data.draw(st.lists(layout_kinds, min_size=1, max_size=3))),
    )  # fmt: skip


def follow_in_groups(
    base_name: str, hyper_name: str, combinations: list[tuple[str, str, str]], steps: int, rates: tuple[float, ...]
) -> int:
    """All forms, normalised in each way, with each (order, index, through): one optimizer, a group for each."""
    (base, base_options, base_ref), (hyper, hyper_options, hyper_ref) = BASES[base_name], HYPERS[hyper_name]
    rng = np.random.default_rng(0)
    lr, hyper_lr = 0.02, 0.01
    groups: list[dict[str, Any]] = []
    settings = []
    for kind, (form, normed) in FORMS.items():
        for normalize, through_norm in NORMS if normed else NORMS[:1]:
            for order, index, through in combinations:
                if kind in NORMALISED and through == "step":
                    continue
                options: dict[str, Any] = {
                    "order": order, "index": index, "through": through,
                    "normalize": normalize, "through_norm": through_norm,
                }  # fmt: skip
                p = nn.Parameter(torch.zeros((2, 1, 3) if kind == "spatial" else (2, 3), dtype=torch.float64))
                groups.append({"params": [p], "preconditioner": kind, **options})
                settings.append(ref.Settings(lr, hyper_lr, form, base=base_ref, hyper=hyper_ref, **options))
    optimizer = FOP(
        groups, lr, base=base, hyper=hyper, hyper_lr=hyper_lr, hyper_options=hyper_options, rank=2, scale=0.3,
        **base_options,
    )  # fmt: skip
    params = [group["params"][0] for group in groups]
    problems = [
        problem(group["preconditioner"], tuple(p.shape), optimizer.state[p]["M"].numpy(), rng)
        for p, group in zip(params, groups, strict=True)
    ]
    for p, each in zip(params, problems, strict=True):
        p.data.copy_(torch.from_numpy(each.start))
    follow(optimizer, params, problems, settings, steps, rates=rates)
    return len(params)


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("base_name", BASES)
def test_every_form_order_and_base_over_50_steps(base_name: str, order: str) -> None:
    hyper_name = list(HYPERS)[list(BASES).index(base_name) % len(HYPERS)]
    schedule = tuple(0.5 + 0.5 * math.cos(math.pi * t / STEPS) for t in range(STEPS))
    assert follow_in_groups(base_name, hyper_name, [(order, "printed", "plain")], STEPS, schedule) == 15


@pytest.mark.parametrize("hyper_name", HYPERS)
@pytest.mark.parametrize("base_name", BASES)
def test_every_combination(base_name: str, hyper_name: str) -> None:
    combinations = [each[:3] for each in COMBINATIONS if each[3] == base_name]
    # Five steps tell them apart.
    count = follow_in_groups(base_name, hyper_name, combinations, 5, (1.0, 0.5, 0.75))
    assert count == (13 * 12 + 2 * 8 if BASES[base_name][0] is SGD else 13 * 7 + 2 * 4)


# ------------------------------------------------------------------------------------ what the oracle doesn't know


@pytest.mark.parametrize(
    ("base_name", "through", "kind"),
    sorted(
        {
            (base, through, kind)
            for kind in FORMS
            for _, _, through, base in (GRADIENTS_ALONE if kind in NORMALISED else COMBINATIONS)
        }
    ),
)
def test_to_maximize_is_to_minimize_the_negative_bitwise(base_name: str, kind: str, through: str) -> None:
    base, options, _ = BASES[base_name]
    rng = np.random.default_rng(1)
    each = problem(kind, (2, 2, 3), np.zeros(()), rng)
    ends = []
    for sign in (1, -1):
        p = nn.Parameter(torch.tensor(each.start))
        optimizer = FOP(
            [p], 0.02, base=base, hyper=SGD, hyper_lr=0.1, preconditioner=kind, order="m-first", through=through,
            maximize=sign < 0, **options,
        )  # fmt: skip
        for _ in range(10):
            p.grad = sign * torch.from_numpy(each.gradient(p.detach().numpy()))
            optimizer.step()
        ends.append((p.detach(), optimizer.state[p]["M"]))
    (p, M), (q, N) = ends
    assert torch.equal(p, q)
    assert torch.equal(M, N)


# ------------------------------------------------------------------------------------------ what doesn't go together

SHAPE = (2, 3, 4)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Adam's step in the paper's order as printed": (
        {"base": Adam, "through": "step"}, "through: Adam's step .* only at the M that made it.* index='exact'"
    ),
    "AdamW's step in the paper's order as printed": ({"base": AdamW, "through": "step"}, "order='m-first'"),
    "Adam's step with amsgrad": (
        {"base": Adam, "amsgrad": True, "through": "step", "order": "m-first"}, "without amsgrad"
    ),
    "another base's step": ({"base": RMSprop, "through": "step", "order": "m-first"}, "RMSprop; use through='plain'"),
    "a step with dampening": ({"momentum": 0.9, "dampening": 0.1, "through": "step"}, "without dampening"),
    "velocity of Adam": ({"base": Adam, "through": "velocity"}, "'velocity' needs torch.optim.SGD"),
    "velocity with dampening": ({"momentum": 0.9, "dampening": 0.1, "through": "velocity"}, "without dampening"),
    "FOP-norm of a diagonal": ({"preconditioner": "diagonal", "normalize": True}, "normalize: .*'diagonal'; use"),
    "FOP-norm of a scalar": ({"preconditioner": "scalar", "normalize": True}, "normalize: .*'scalar'"),
    "FOP-norm of S-HD": ({"preconditioner": "s-hd", "normalize": True}, "normalize: .*'s-hd'"),
    "FOP-norm of PP-HD": ({"preconditioner": "pp-hd", "normalize": True}, "normalize: .*'pp-hd'"),
    "an unknown order": ({"order": "m_first"}, "order: expected one of paper, m-first, got 'm_first'"),
    "an unknown index": ({"index": "present"}, "index: expected one of printed, exact, got 'present'"),
    "an unknown way": ({"through": "norm"}, "through: expected one of plain, step, velocity, got 'norm'"),
    "an unknown form": ({"preconditioner": "low-rank"}, "preconditioner: expected 'auto' or one of .*'low-rank'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        FOP([nn.Parameter(torch.zeros(SHAPE))], 0.1, **options)


def test_spatial_is_for_kernels() -> None:
    with pytest.raises(ValueError, match=r"'spatial' needs the kernels .* shape \[3, 4\]; use 'dense'"):
        FOP([nn.Parameter(torch.zeros(3, 4))], 0.1, preconditioner="spatial")


@pytest.mark.parametrize("base", [Adam, AdamW])
@pytest.mark.parametrize("way", [{"order": "m-first"}, {"index": "exact"}], ids=str)
def test_adams_step_is_allowed_where_its_m_is_known(base: type[Optimizer], way: dict[str, str]) -> None:
    FOP([nn.Parameter(torch.zeros(SHAPE))], 0.1, base=base, through="step", **way)  # raises nothing


def test_a_group_added_later_is_checked_too() -> None:
    optimizer = FOP([nn.Parameter(torch.zeros(SHAPE))], 0.1, base=Adam)
    with pytest.raises(ValueError, match="only at the M that made it"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(SHAPE))], "through": "step"})
    assert len(optimizer.param_groups) == 1
