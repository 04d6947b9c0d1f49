"""What a user can get wrong: one clear error that names the value, before anything is changed; and odd parameters."""

from __future__ import annotations

import copy
import itertools
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, RMSprop, SparseAdam

from fop_torch import FOP, PPHD, SHD, assign
from fop_torch.preconditioners import FORMS

INF, NAN = math.inf, math.nan


def matrix(dtype: torch.dtype = torch.float32) -> Tensor:
    return nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4))


def step(optimizer: FOP, *grads: Tensor | None) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, grad in zip(params, grads, strict=True):
        p.grad = None if grad is None else grad.to(p.dtype).clone()
    optimizer.step()


# ----------------------------------------------------------------------------------- options: name, value, what it says

#: Options that a group may have, each with values that are out of its range, and what the error says of them.
OF_A_GROUP: list[tuple[dict[str, Any], str]] = [
    *(({"lr": value}, rf"lr.*{re.escape(repr(value))}") for value in (-0.1, NAN, INF, "0.1", None)),
    *(({"hyper_lr": value}, rf"hyper_lr.*{re.escape(repr(value))}") for value in (-0.1, NAN, INF, "0.1", None)),
    *(({"preconditioner": value}, rf"preconditioner.*'auto' or one of.*{value!r}") for value in ("spatail", 3, None)),
    *(({"preconditioner": "low_rank", "rank": value}, rf"rank.*{value!r}") for value in (-1, 1.5, True, "4")),
    *(({"normalize": value}, rf"normalize.*{value!r}") for value in ("no", 2, None)),
    ({"normalize": True, "preconditioner": "diagonal"}, r"normalize.*'diagonal'.*'dense'"),
    ({"through_norm": "no"}, "through_norm.*'no'"),
    ({"order": "M-first"}, "order.*paper, m-first.*'M-first'"),
    ({"index": "right"}, "index.*printed, exact.*'right'"),
    ({"through": "momentum"}, "through.*plain, step, velocity.*'momentum'"),
    ({"through": "velocity", "dampening": 0.1, "momentum": 0.9}, "through.*velocity.*dampening"),
    ({"through": "step", "dampening": 0.1, "momentum": 0.9}, "through.*step.*dampening"),
    *(({"scale": value}, rf"scale.*{value!r}") for value in (-1.0, NAN, INF, "small")),
    *(({"safe": value}, rf"safe.*{value!r}") for value in (0, 1, -0.5, NAN, "yes")),
    ({"safe": 0.5}, "safe.*hyper=torch.optim.SGD"),  # the default hyper-optimizer is Adam
    *(({"max_norm": value}, rf"max_norm.*{value!r}") for value in (0, -1.0, NAN, "big")),
    *(({"max_norm": value, "preconditioner": "low_rank"}, rf"max_norm.*{value!r}") for value in (0.5, 1.0)),
    ({"max_norm": 2.0, "normalize": True}, "max_norm.*normalize"),
    ({"preconditioner": "spatial"}, r"'spatial'.*\[3, 4\].*'dense'"),
    *(({"preconditioner": kind, "rank": 4}, rf"rank.*{kind!r}.*4.*'low_rank'") for kind in FORMS if kind != "low_rank"),
    *(
        case
        for kind in ("exponential", "linear")
        for case in [
            ({"preconditioner": kind, "through": "step"}, rf"through.*{kind!r}.*'velocity'"),
            ({"preconditioner": kind, "normalize": True}, rf"normalize.*{kind!r}"),
            ({"preconditioner": kind, "max_norm": 1.0}, rf"max_norm.*{kind!r}.*1.0"),
        ]
    ),
    *(({"momentum": value}, "momentum.*nan") for value in (NAN,)),
    ({"weight_decay": NAN}, "weight_decay.*nan"),
    ({"hyper_options": {"beta": 0.9}}, "hyper_options.*beta"),
    ({"hyper_options": {"betas": (2.0, 0.9)}}, "hyper_options.*beta.*2"),
    ({"hyper_options": {"lr": 0.1}}, "hyper_options.*lr=0.1; use hyper_lr"),
    ({"hyper_options": 0.9}, "hyper_options.*0.9"),
]
#: Options of the whole optimizer.
OF_ALL: list[tuple[dict[str, Any], str]] = [
    *(({name: "SGD"}, rf"{name}.*torch.optim.SGD.*'SGD'") for name in ("base", "hyper")),
    *(({name: lambda params, lr: None}, rf"{name}.*lambda") for name in ("base", "hyper")),
    *(({name: nn.Linear}, rf"{name}.*Linear") for name in ("base", "hyper")),
    *(({name: each}, rf"{name}.*{each.__name__}.*use") for name in ("base", "hyper") for each in (LBFGS, SparseAdam)),
    *(({"nonfinite": value}, rf"nonfinite.*skip, ignore.*{value!r}") for value in ("stop", True, None)),
    *(({"seed": value}, rf"seed.*{value!r}") for value in (1.5, "now", None)),
    ({"differentiable": True}, "differentiable"),
    ({"momentum": -0.1}, "momentum.*-0.1"),
    ({"momentun": 0.9}, "momentun"),
    ({"hyperlr": 0.9}, "SGD.*hyperlr"),  # not FOP's either: it was looked for among the base's
    ({"base": Adam, "betas": (0.9, NAN)}, "beta.*nan"),
    ({"base": Adam, "momentum": 0.9}, "momentum"),
    ({"base": RMSprop, "through": "step"}, "through.*RMSprop.*'plain'"),
    ({"base": Adam, "through": "step"}, "through.*index='exact'"),
    ({"base": Adam, "through": "step", "index": "exact", "amsgrad": True}, "through.*amsgrad"),
    ({"base": Adam, "through": "velocity"}, "through.*velocity.*SGD"),
    ({"hyper": SGD, "hyper_options": {"momentum": 0.9}, "safe": 0.5}, "safe.*momentum"),
    ({"hyper": SGD, "index": "exact", "safe": 0.5}, "safe.*index"),
    ({"hyper": SGD, "normalize": True, "safe": 0.5}, "safe.*normalize"),
    *(({"hyper": SGD, "preconditioner": kind, "safe": 0.5}, f"safe.*{kind}") for kind in ("exponential", "linear")),
    *(({"null_step": value}, rf"null_step.*{value!r}") for value in (1, "yes", None)),
    ({"null_step": True, "maximize": True}, "null_step.*maximize"),
]  # fmt: skip


def name(value: Any) -> str | None:
    if not isinstance(value, dict):
        return ""
    # Without addresses: parallel workers must agree on the names.
    return ", ".join(f"{key} {getattr(each, '__qualname__', each)}" for key, each in value.items())


@pytest.mark.parametrize(("options", "message"), OF_A_GROUP + OF_ALL, ids=name)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    p = matrix()
    kept = p.detach().clone()
    with pytest.raises((ValueError, TypeError), match=re.compile(message, re.DOTALL)):
        FOP([p], **{"lr": 0.1, **options})
    assert torch.equal(p, kept)
    assert p.grad is None


@pytest.mark.parametrize(("options", "message"), OF_A_GROUP, ids=name)
def test_bad_options_of_a_group_change_nothing(options: dict[str, Any], message: str) -> None:
    p, q = matrix(), matrix()
    optimizer = FOP([p], 0.1, momentum=0.9)
    step(optimizer, p.detach())
    step(optimizer, p.detach())
    before, hyper = copy.deepcopy(optimizer.state_dict()), optimizer.hyper
    given = {"params": [q], **options}
    with pytest.raises((ValueError, TypeError), match=re.compile(message, re.DOTALL)):
        optimizer.add_param_group(given)
    assert given == {"params": [q], **options}
    assert optimizer.hyper is hyper
    assert str(optimizer.state_dict()) == str(before)
    with pytest.raises((ValueError, TypeError), match=re.compile(message, re.DOTALL)):
        FOP([{"params": [p]}, given], 0.1)
    assert given == {"params": [q], **options}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": SGD}, "base: one for all groups, got .*SGD.* in a group"),
        ({"hyper": SGD}, "hyper: one for all groups"),
        ({"nonfinite": "ignore"}, "nonfinite: one for all groups, got 'ignore'"),
        ({"null_step": True}, "null_step: one for all groups"),
        ({"seed": 1}, "seed: one for all groups, got 1"),
        ({"hyperlr": 0.9}, "params: unknown option 'hyperlr'; did you mean 'hyper_lr'"),
        ({"momentun": 0.9}, "did you mean 'momentum'"),
    ],
    ids=name,
)
def test_a_group_has_no_say_in_what_all_share_and_spells_well(options: dict[str, Any], message: str) -> None:
    """Torch would take any key in silence; the user's own are kept."""
    optimizer = FOP([{"params": [matrix()], "colour": "red", "lr_scale": 0.5}], 0.1)
    assert optimizer.param_groups[0]["colour"] == "red"
    before = str(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [matrix()], **options})
    assert str(optimizer.state_dict()) == before
    FOP(optimizer.param_groups, 0.1)  # the groups of another optimizer


@pytest.mark.parametrize("optimizer_class", [SHD, PPHD])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(each for each in OF_A_GROUP + OF_ALL if not {"preconditioner", "rank", "scale"} & set(each[0])),
        ({"preconditioner": "dense"}, "preconditioner"),
        ({"normalize": True}, "normalize.*hd"),
        ({"hyper": SGD, "safe": 0.5}, "safe.*hd.*'scalar' or 'diagonal'"),
    ],
    ids=name,
)
def test_the_baselines_refuse_the_same(optimizer_class: type[FOP], options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.compile(message, re.DOTALL)):
        optimizer_class([matrix()], **{"lr": 0.1, **options})


#: What is no list of parameters.
NO_PARAMS: dict[str, tuple[Callable[[], Any], str]] = {
    "a tensor": (matrix, r"params.*one tensor.*\[parameter\]"),
    "nothing": (list, "empty parameter list"),
    "a number": (lambda: [3.0], "float"),
    "a model": (lambda: nn.Linear(2, 2), "Linear"),
    "a complex parameter": (lambda: [torch.ones(2, 3, dtype=torch.complex64)], r"\[2, 3\], torch.complex64"),
    "whole numbers": (lambda: [torch.ones(2, 3, dtype=torch.int64)], r"\[2, 3\], torch.int64"),
    "not a leaf": (lambda: [2 * matrix()], "non-leaf"),
    "twice": (lambda: [{"params": [p]} for p in [matrix()] * 2], "more than one parameter group"),
    "a set": (lambda: [{"params": {matrix()}}], "ordered|list"),
    "a group without parameters": (lambda: [{"lr": 0.1}], "params"),
    "some without names": (lambda: [("a", matrix()), matrix()], "names"),
}  # fmt: skip


@pytest.mark.parametrize("optimizer_class", [FOP, SHD, PPHD])
@pytest.mark.parametrize("kind", NO_PARAMS)
def test_what_is_no_list_of_parameters(kind: str, optimizer_class: type[FOP]) -> None:
    make, message = NO_PARAMS[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer_class(make(), 0.1)


def test_numbers_of_numpy_are_numbers() -> None:
    p = matrix()
    optimizer = FOP([p], np.float64(0.1), hyper_lr=np.float32(0.01), max_norm=np.float32(2), scale=np.float64(0.1))
    for _ in range(3):
        step(optimizer, p.detach())
    assert p.isfinite().all()


@pytest.mark.parametrize("order", ["paper", "m-first"])
def test_a_learning_rate_may_be_a_tensor_or_zero(order: str) -> None:
    p, q, r = matrix(), matrix(), matrix()
    given = torch.tensor(0.1)
    optimizers = [FOP([p], given, order=order), FOP([q], 0.1, order=order), FOP([r], 0, order=order)]
    for i in range(4):
        given.fill_(0.1 / (i + 1))
        optimizers[1].param_groups[0]["lr"] = float(given)
        for optimizer in optimizers:
            step(optimizer, optimizer.param_groups[0]["params"][0].detach())
    assert torch.equal(p, q)
    assert torch.equal(r, matrix())
    assert all(torch.equal(optimizers[0].state[p][key], value) for key, value in optimizers[1].state[q].items())


# ---------------------------------------------------------------------------------------------------------------- rank


@pytest.mark.parametrize("given", ["fop", "group", "assign"])
def test_a_rank_over_the_dimension_is_clamped_and_said(given: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 9))
    weights = [each.weight for each in model]
    options = {"preconditioner": "low_rank", "rank": 7}
    make = {
        "fop": lambda: FOP(weights, 0.1, **options),
        "group": lambda: FOP([{"params": weights, **options}], 0.1),
        "assign": lambda: FOP(assign(model, {"linear": "low_rank"}, rank=7), 0.1),
    }
    with pytest.warns(UserWarning, match="rank: 7 exceeds the input dimension") as said:
        optimizer = make[given]()
    assert [re.findall(r"\d+ is used", str(each.message)) for each in said] == [["4 is used"], ["3 is used"]]
    assert {each.filename for each in said} == {__file__}
    assert [list(optimizer.state[each.weight]["M"].shape) for each in model] == [[4, 4], [3, 3]]


def test_a_rank_may_be_meant_for_some_groups() -> None:
    """Of all groups, or of all that `assign` makes; "auto" takes it too."""
    groups = [{"params": [matrix()], "preconditioner": kind} for kind in ("dense", "low_rank", "exponential")]
    assert [group["ranks"] for group in FOP(groups, 0.1, rank=2).param_groups] == [[None], [2], [None]]
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(200, 3))
    optimizer = FOP(assign(model, {"conv": "linear"}, rank=5), 0.1)
    assert sorted(str(group["ranks"]) for group in optimizer.param_groups) == ["[None, 5, None]", "[None]"]
    with pytest.raises(ValueError, match="rank: 's-hd' has none, got 3"):
        SHD([matrix()], 0.1, rank=3)


def test_rank_zero_is_the_base() -> None:
    p, q = matrix(), matrix()
    optimizer, plain = FOP([p], 0.1, preconditioner="low_rank", rank=0, momentum=0.9), SGD([q], 0.1, momentum=0.9)
    for _ in range(4):
        step(optimizer, p.detach())
        q.grad = q.detach().clone()
        plain.step()
    assert torch.equal(p, q)
    assert optimizer.hyper is None
    assert optimizer.preconditioners() == {}
    assert optimizer.memory_usage() == {"base": 48, "M": 0, "previous": 0, "hyper": 0}


# --------------------------------------------------------------------------------------------------- odd parameters


def test_an_empty_group_is_no_parameter_but_may_be_given() -> None:
    p = matrix()
    optimizer = FOP([{"params": []}, {"params": [p]}], 0.1)
    for _ in range(3):
        step(optimizer, p.detach())
    assert (p != matrix()).any()


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("kind", ["dense", "low_rank", "diagonal", "scalar", "pp-hd", "s-hd", "none"])
def test_a_gradient_that_is_absent_now_and_then(kind: str, order: str) -> None:
    """A parameter goes its way as if the steps without its gradient had not been; the other's goes on."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(8, 2, 3, 4, generator=generator, dtype=torch.float64)
    options = {"preconditioner": kind, "order": order, "momentum": 0.9, "hyper_lr": 0.01, "scale": 0.1}
    p, q = matrix(torch.float64), matrix(torch.float64)
    optimizer = FOP([p, q], 0.1, **options)
    # A low rank's first M depends on the parameter's number.
    alone = [FOP([matrix(torch.float64)], 0.1, **options, seed=seed) for seed in (0, 1)]
    for i, (first, second) in enumerate(grads):
        present = i not in (2, 3, 6)
        step(optimizer, first, second if present else None)
        step(alone[0], first)
        if present:
            step(alone[1], second)
    for each, single in zip((p, q), alone, strict=True):
        # Layers of one shape share a batched product, which may round in another order.
        torch.testing.assert_close(each, single.param_groups[0]["params"][0], rtol=1e-12, atol=1e-13)


def test_no_gradient_at_all_is_no_step() -> None:
    p = matrix()
    optimizer = FOP([p], 0.1, momentum=0.9)
    optimizer.step()
    assert torch.equal(p, matrix())
    assert set(optimizer.state[p]) == {"M"}
    assert optimizer.skipped_steps == 0
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    FOP([frozen], 0.1).step()
    assert torch.equal(frozen, torch.ones(2, 2))


@pytest.mark.parametrize("kind", ["auto", "dense", "low_rank", "diagonal", "scalar", "pp-hd", "s-hd", "none"])
def test_a_parameter_without_dimensions(kind: str) -> None:
    p = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    optimizer = FOP([p], 0.1, preconditioner=kind, hyper=SGD, hyper_lr=0.05, scale=0.5)
    # By hand: P = M^2, 1 + M^2 or M, its derivative 2 M or 1; the loss is p^2 / 2.
    theta, last, M = 2.0, None, 1.0
    if kind == "low_rank":
        M = float(optimizer.state[p]["M"])
    fixed = kind in ("auto", "none")
    for _ in range(5):
        step(optimizer, p.detach())
        P = {"low_rank": 1 + M**2, "pp-hd": M, "s-hd": M}.get(kind, M**2)
        grad = theta
        theta = theta - 0.1 * P * grad
        if last is not None and not fixed:
            M = M + 0.05 * 0.1 * grad * last * (1 if kind in ("pp-hd", "s-hd") else 2 * M)
        last = grad
    assert float(p.detach()) == pytest.approx(theta, rel=1e-12)


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("base", [SGD, AdamW])
@pytest.mark.parametrize("kind", ["auto", *FORMS])
def test_empty_parameters_step_beside_others(kind: str, base: type[torch.optim.Optimizer], order: str) -> None:
    shapes = [(0,), (0, 3), (3, 0), (2, 0, 3, 3), (0, 2, 3, 3), (2, 3, 3, 0)]
    if kind == "spatial":
        shapes = [shape for shape in shapes if len(shape) > 2]
    for shape in shapes:
        p = nn.Parameter(torch.zeros(shape))
        q = nn.Parameter(torch.ones(2, 2, 3, 3))
        optimizer = FOP([p, q], 0.1, preconditioner=kind, base=base, order=order)
        for _ in range(3):
            step(optimizer, torch.zeros(shape), q.detach())
        assert q.isfinite().all()
        assert (q != 1).all()
        assert optimizer.skipped_steps == 0
        optimizer.describe()
        optimizer.preconditioners()
        optimizer.load_state_dict(optimizer.state_dict())


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda T: T.contiguous(),
    "channels last": lambda T: T.contiguous(memory_format=torch.channels_last),
    "columns": lambda T: T.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}


@pytest.mark.parametrize(
    "options",
    [{}, {"order": "m-first"}, {"hyper": SGD}, {"momentum": 0.9, "fused": True}, {"base": Adam, "fused": True}],
    ids=name,
)
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (3, 2, 1, 1), (4, 1, 3, 3)], ids=str)
@pytest.mark.parametrize("kind", FORMS)
def test_how_numbers_lie_in_memory_does_not_matter(kind: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Least of all to the fused optimizers, which on a CPU don't look at strides."""
    outcomes = {}
    for of_p, of_grad in itertools.product(LAYOUTS, LAYOUTS):
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(LAYOUTS[of_p](torch.randn(shape, generator=generator, dtype=torch.float64)))
        optimizer = FOP([p], 0.1, preconditioner=kind, hyper_lr=0.05, **options)
        for _ in range(4):
            p.grad = LAYOUTS[of_grad](torch.randn(shape, generator=generator, dtype=torch.float64))
            optimizer.step()
        outcomes[of_p, of_grad] = p.detach().contiguous()
    for outcome in outcomes.values():
        # Products of other layouts are summed in another order.
        torch.testing.assert_close(outcome, outcomes["rows", "rows"], rtol=1e-11, atol=1e-13)


VARIANTS: list[dict[str, Any]] = [
    *({"preconditioner": kind} for kind in FORMS),
    {"preconditioner": "dense", "normalize": True},
    {"preconditioner": "low_rank", "normalize": True},
    {"preconditioner": "dense", "base": Adam, "through": "step", "index": "exact"},
    {"preconditioner": "dense", "hyper": SGD, "safe": 0.5, "max_norm": 2.0},
    {"preconditioner": "low_rank", "max_norm": 2.0},
]  # fmt: skip


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("options", VARIANTS, ids=name)
def test_zero_gradients_for_ever(options: dict[str, Any], order: str) -> None:
    p = nn.Parameter(torch.ones(3, 2, 2, 2))
    momentum = {} if "base" in options else {"momentum": 0.9}
    optimizer = FOP([p], 0.1, order=order, **momentum, **options)
    M = optimizer.state[p]["M"].clone()
    for _ in range(100):
        step(optimizer, torch.zeros_like(p))
    assert torch.equal(p, torch.ones_like(p))
    assert torch.equal(optimizer.state[p]["M"], M)
    assert optimizer.skipped_steps == 0
    found = optimizer.preconditioners()["0"]
    assert math.isnan(found.gain)  # 0 / 0
    assert math.isnan(found.angle)


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("hyper", [SGD, Adam])
@pytest.mark.parametrize("hyper_lr", [1e3, 1e10, 1e30, 1e300])
@pytest.mark.parametrize("kind", FORMS)
def test_a_huge_hyper_learning_rate_is_counted_and_parameters_stay_finite(
    kind: str, hyper_lr: float, hyper: type[torch.optim.Optimizer], order: str
) -> None:
    p = nn.Parameter(torch.linspace(-1, 1, 24).reshape(3, 2, 2, 2))
    bias = nn.Parameter(torch.ones(3))
    optimizer = FOP(
        [{"params": [p], "preconditioner": kind}, {"params": [bias]}], 0.1, hyper_lr=hyper_lr, hyper=hyper, order=order
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(60):
            step(optimizer, p.detach(), bias.detach())
    assert p.isfinite().all()
    assert bias.isfinite().all()
    if kind == "exponential" and hyper_lr < 1e300:
        return  # it has a bound of its own: there is nothing to skip
    assert optimizer.skipped_steps > 0
    assert len(said) == 1
    assert "lower lr or hyper_lr, or set max_norm" in str(said[0].message)


@pytest.mark.parametrize("order", ["paper", "m-first"])
@pytest.mark.parametrize("kind", ["dense", "low_rank"])
def test_gradients_of_rank_one_teach_one_direction(kind: str, order: str) -> None:
    """All gradients are u v^T: what P does across v stays as it was."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(4, generator=generator, dtype=torch.float64)
    p = matrix(torch.float64)
    optimizer = FOP([p], 0.1, preconditioner=kind, hyper=SGD, hyper_lr=0.05, order=order)
    first = optimizer.preconditioners()["0"].P
    for _ in range(30):
        u = torch.randn(3, generator=generator, dtype=torch.float64)
        step(optimizer, torch.outer(u, v))
    found = optimizer.preconditioners()["0"]
    across = torch.eye(4, dtype=torch.float64) - torch.outer(v, v) / (v @ v)
    assert (found.P - first).norm() > 1e-6
    # (I + c v v^T) M at each step: 30 roundings of numbers of size one.
    torch.testing.assert_close(across @ found.P @ across, across @ first @ across, rtol=0, atol=1e-13)
    assert found.eigenvalues[0] > 0
    assert p.isfinite().all()


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [(FOP, {"preconditioner": "dense"}), (FOP, {"preconditioner": "none"}), (SHD, {}), (PPHD, {})],
    ids=["dense", "none", "s-hd", "pp-hd"],
)
def test_sparse_gradients_are_refused_before_anything_moves(
    optimizer_class: type[FOP], options: dict[str, Any]
) -> None:
    table, p = nn.Embedding(5, 4, sparse=True), matrix()
    optimizer = optimizer_class([p, table.weight], 0.1, momentum=0.9, **options)
    p.grad = p.detach().clone()
    table(torch.tensor([1, 2])).sum().backward()
    before = copy.deepcopy(optimizer.state_dict())
    weight = table.weight.detach().clone()
    with pytest.raises(TypeError, match=r"sparse.*\[5, 4\], torch.float32.*sparse=False"):
        optimizer.step()
    assert torch.equal(p, matrix())
    assert torch.equal(table.weight, weight)
    assert str(optimizer.state_dict()) == str(before)


def test_a_module_in_place_of_its_parameters_is_named() -> None:
    with pytest.raises(TypeError, match=r"params: .*got a module \(Linear\); write model\.parameters\(\)"):
        FOP(torch.nn.Linear(2, 2), lr=0.1)  # type: ignore[arg-type]


def test_a_misspelt_option_is_answered_with_the_options_there_are() -> None:
    with pytest.raises(TypeError, match=r"'hyperlr'; beside the base's options FOP takes lr, base, hyper, hyper_lr"):
        FOP([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, hyperlr=0.1)
