"""Which parameter gets what: rules, precedence, "auto"; and what FOP says of it."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.optim import SGD

from fop_torch import FOP, assign
from fop_torch.assign import DEFAULT_RANK, DENSE_UP_TO, resolve
from fop_torch.preconditioners import FORMS


class Net(nn.Module):
    """One layer of each kind that the words know, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.conv = nn.Conv2d(2, 3, 3)
        self.up = nn.ConvTranspose1d(3, 2, 4)
        self.norm = nn.LayerNorm(6)
        self.batch = nn.BatchNorm2d(3)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(()))


def chosen(groups: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: group["preconditioner"] for group in groups for name, _ in group["params"]}


EVERY_NAME = [name for name, _ in Net().named_parameters()]


def given(rules: Any, **options: Any) -> dict[str, str]:
    """The parameters that do not get the default."""
    found = chosen(assign(Net(), rules, default="none", **options))
    assert list(found) != []
    assert sorted(found) == sorted(EVERY_NAME)
    return {name: kind for name, kind in found.items() if kind != "none"}


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("conv", ["conv.weight", "up.weight"]),
        ("linear", ["body.0.weight", "body.2.weight", "head.weight"]),
        ("embedding", ["embed.weight"]),
        ("norm", ["norm.weight", "norm.bias", "batch.weight", "batch.bias"]),
        (nn.Conv2d, ["conv.weight"]),
        (nn.LayerNorm, ["norm.weight", "norm.bias"]),
        (nn.Module, [name for name in EVERY_NAME if not name.endswith("bias") or name in ("norm.bias", "batch.bias")]),
        ("head.*", ["head.weight", "head.bias"]),
        ("*.bias", [name for name in EVERY_NAME if name.endswith("bias")]),
        ("body.[02].weight", ["body.0.weight", "body.2.weight"]),
        ("scale", ["scale"]),
        (lambda name, p, module: name.endswith("bias") and p.numel() == 5, ["body.0.bias"]),
        (lambda name, p, module: getattr(module, "out_features", 0) == 2, ["head.weight", "head.bias"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)  # fmt: skip
def test_a_rule_matches(rule: Any, names: list[str]) -> None:
    assert given({rule: "diagonal"}) == dict.fromkeys(names, "diagonal")


def test_the_first_rule_that_matches_counts() -> None:
    first = {"body.0.weight": "dense", "linear": "low_rank", nn.Linear: "scalar", "*": "diagonal"}
    found = given(first)
    assert found["body.0.weight"] == "dense"
    assert found["body.2.weight"] == found["head.weight"] == "low_rank"
    assert found["head.bias"] == found["conv.weight"] == "diagonal"  # biases pass by "linear"
    turned = given(dict(reversed(first.items())))
    assert set(turned.values()) == {"diagonal"}


def test_groups_and_their_parameters_stand_in_the_models_order() -> None:
    groups = assign(Net(), {"*.bias": "none", "linear": {"preconditioner": "dense", "lr": 0.5}}, default="diagonal")
    names = [[name for name, _ in group["params"]] for group in groups]
    # A module's own parameters come first.
    assert [each[0] for each in names] == ["scale", "conv.bias", "body.0.weight"]
    assert all(each == [name for name in EVERY_NAME if name in each] for each in names)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"cnov": "spatial"}, r"rules: 'cnov' match.* no parameter; words are conv, linear, .*Conv2d.*scale"),
        ({"attention.*": "dense"}, r"rules: 'attention\.\*'"),
        ({nn.Conv3d: "spatial"}, "rules: .*Conv3d"),
        ({lambda name, p, module: False: "dense"}, "rules: .*lambda"),
        ({"conv": "spatial", "foo": "dense", "bar": "dense"}, "rules: 'bar', 'foo'"),
        ({"conv": "spatail"}, r"preconditioner: .*'auto' or one of spatial.*got 'spatail'"),
        ({"conv": {"preconditioner": "spatail"}}, "got 'spatail'"),
        ({"conv": 3}, "got 3"),
    ],
    ids=["typo", "pattern", "class", "function", "two", "form", "form in options", "number"],
)
def test_rules_that_cannot_be_meant(rules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        assign(Net(), rules)


def test_an_unknown_default_is_named() -> None:
    with pytest.raises(ValueError, match="got 'full'"):
        assign(Net(), default="full")


def test_a_form_that_does_not_fit_is_refused_by_fop() -> None:
    with pytest.raises(ValueError, match=r"'spatial' needs the kernels.*\[5, 6\]"):
        FOP(assign(Net(), {"linear": "spatial"}), 0.1)


def test_tied_weights_count_once_by_their_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 6)
            self.out = nn.Linear(6, 7)
            self.out.weight = self.embed.weight

    model = Tied()
    assert chosen(assign(model, {"embedding": "diagonal"}, default="none")) == {
        "embed.weight": "diagonal", "out.bias": "none",
    }  # fmt: skip
    with pytest.raises(ValueError, match="'linear' match"):
        assign(model, {"linear": "dense"})
    optimizer = FOP(assign(model), 0.1)
    model.out(model.embed(torch.tensor([1, 2]))).sum().backward()
    optimizer.step()
    assert list(optimizer.preconditioners()) == ["embed.weight"]


def test_frozen_parameters_are_left_out() -> None:
    model = Net()
    model.body.requires_grad_(False)
    names = set(chosen(assign(model)))
    assert names == {name for name in EVERY_NAME if not name.startswith("body")}
    with pytest.raises(ValueError, match=r"'body\.\*' match"):
        assign(model, {"body.*": "dense"})
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model: expected at least one parameter that needs a gradient, got none"):
        assign(model)


def test_a_rule_may_set_any_option_of_its_group() -> None:
    model = Net()
    rules = {
        "head.weight": {"preconditioner": "low_rank", "rank": 1, "lr": 0.5, "momentum": 0.0},
        "linear": {"hyper_lr": 0.25, "order": "m-first"},
        "conv": {"preconditioner": "spatial", "hyper_options": {"betas": (0.5, 0.5)}},
    }
    kept = {key: dict(value) for key, value in rules.items()}
    optimizer = FOP(assign(model, rules, rank=2), 0.1, momentum=0.9)
    assert rules == kept
    of = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    assert (of["head.weight"]["lr"], of["head.weight"]["momentum"], of["head.weight"]["ranks"]) == (0.5, 0.0, [1])
    assert of["body.0.weight"]["forms"] == ["dense", "dense"]  # what the rule doesn't say is the default, "auto"
    assert (of["body.0.weight"]["hyper_lr"], of["body.0.weight"]["order"]) == (0.25, "m-first")
    assert (of["conv.weight"]["lr"], of["conv.weight"]["hyper_lr"], of["conv.weight"]["order"]) == (0.1, 1e-4, "paper")
    assert optimizer.hyper is not None
    betas = {
        tuple(M.shape): group["betas"] for group in optimizer.hyper.param_groups for M in group["params"]
    }  # fmt: skip
    assert betas[(9, 9)] == (0.5, 0.5)
    assert betas[(4, 1)] == (0.9, 0.999)


def test_the_rank_of_all_is_that_of_those_that_name_none() -> None:
    rules = {"head.weight": {"preconditioner": "low_rank", "rank": 1}, "linear": "low_rank"}
    optimizer = FOP(assign(Net(), rules, rank=3), 0.1)
    ranks = {
        name: rank
        for group in optimizer.param_groups
        for name, rank in zip(group["param_names"], group["ranks"], strict=True)
    }
    assert (ranks["head.weight"], ranks["body.0.weight"], ranks["body.2.weight"]) == (1, 3, 3)
    assert FOP(assign(Net(), {"linear": "low_rank"}), 0.1).state_dict()["param_groups"][1]["ranks"] == [6, 5, 4]


@pytest.mark.parametrize(
    ("shape", "kind", "factor"),
    [
        ((3, 2, 3, 3), "spatial", (9, 9)),
        ((8, 1, 5, 5), "spatial", (25, 25)),  # depthwise
        ((4, 2, 3), "spatial", (3, 3)),
        ((4, 2, 2, 2, 2), "spatial", (8, 8)),
        ((4, 2, 3, 1), "spatial", (3, 3)),
        ((4, 2, 1, 1), "dense", (2, 2)),  # 1 x 1
        ((4, DENSE_UP_TO + 1, 1, 1), "low_rank", (DENSE_UP_TO + 1, DEFAULT_RANK)),
        ((4, 2), "dense", (2, 2)),
        ((4, DENSE_UP_TO), "dense", (DENSE_UP_TO, DENSE_UP_TO)),
        ((4, DENSE_UP_TO + 1), "low_rank", (DENSE_UP_TO + 1, DEFAULT_RANK)),
        ((1, 1), "dense", (1, 1)),
        ((5,), "none", None),
        ((), "none", None),
        ((0, 5), "none", None),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_auto_goes_by_shape(shape: tuple[int, ...], kind: str, factor: tuple[int, ...] | None) -> None:
    rank = DEFAULT_RANK if kind == "low_rank" else None
    assert resolve(torch.Size(shape), "auto", None) == (kind, rank)
    p = nn.Parameter(torch.ones(shape))
    optimizer = FOP([p], 0.1)
    assert optimizer.param_groups[0]["forms"] == [kind]
    M = optimizer.state.get(p, {}).get("M")
    assert (None if M is None else tuple(M.shape)) == factor


def test_a_rank_above_sixteen_inputs_is_sixteen_and_below_it_all() -> None:
    assert resolve(torch.Size((3, 40)), "low_rank", None) == ("low_rank", 16)
    assert resolve(torch.Size((3, 9)), "low_rank", None) == ("low_rank", 9)
    assert resolve(torch.Size((3, 9)), "low_rank", 0) == ("none", None)


# ------------------------------------------------------------------------------------------------ what FOP says of it


def test_the_table_says_what_each_parameter_has() -> None:
    model = Net()
    optimizer = FOP(assign(model, {"embedding": "low_rank", "norm": "diagonal", "head.bias": "scalar"}, rank=2), 0.1)
    lines = optimizer.describe().splitlines()
    assert lines[0].split() == ["parameter", "shape", "preconditioner", "M", "entries"]
    rows = {line.split("  ")[0]: [cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[2:-1]}
    assert rows == {
        "embed.weight": ["embed.weight", "7 x 6", "low_rank", "6 x 2", "12"],
        "conv.weight": ["conv.weight", "3 x 2 x 3 x 3", "spatial", "9 x 9", "81"],
        "conv.bias": ["conv.bias", "3", "none", "0"],
        "up.weight": ["up.weight", "3 x 2 x 4", "spatial", "4 x 4", "16"],
        "up.bias": ["up.bias", "2", "none", "0"],
        "norm.weight": ["norm.weight", "6", "diagonal", "6", "6"],
        "norm.bias": ["norm.bias", "6", "diagonal", "6", "6"],
        "batch.weight": ["batch.weight", "3", "diagonal", "3", "3"],
        "batch.bias": ["batch.bias", "3", "diagonal", "3", "3"],
        "body.0.weight": ["body.0.weight", "5 x 6", "dense", "6 x 6", "36"],
        "body.0.bias": ["body.0.bias", "5", "none", "0"],
        "body.2.weight": ["body.2.weight", "4 x 5", "dense", "5 x 5", "25"],
        "body.2.bias": ["body.2.bias", "4", "none", "0"],
        "head.weight": ["head.weight", "2 x 4", "dense", "4 x 4", "16"],
        "head.bias": ["head.bias", "2", "scalar", "1", "1"],
        "scale": ["scale", "1", "none", "0"],
    }
    entries = 12 + 81 + 16 + 6 + 6 + 3 + 3 + 36 + 25 + 16 + 1
    assert lines[-1] == (f"{entries} entries of M; bytes of state: base 0, M {4 * entries}, previous 0, hyper 0")


def test_parameters_without_names_are_numbered() -> None:
    params = [nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
    optimizer = FOP([{"params": params[:2]}, {"params": params[2:]}], 0.1)
    assert list(optimizer.preconditioners()) == ["0", "1", "2"]
    assert [line.split()[0] for line in optimizer.describe().splitlines()[2:-1]] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", FORMS)
def test_what_every_form_says_agrees_with_numpy(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 2, 2)
    p = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    groups = [{"params": [("kernel", p)], "preconditioner": kind}]
    optimizer = FOP(groups, 0.1, rank=2, hyper=SGD, hyper_lr=0.3, scale=0.5)
    before = optimizer.preconditioners()["kernel"]
    assert math.isnan(before.gain)
    assert math.isnan(before.angle)
    for _ in range(4):
        p.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    assert p.grad is not None
    found = optimizer.preconditioners()["kernel"]
    assert found.form == kind
    M = optimizer.state[p]["M"].numpy()
    G = p.grad.numpy()
    rows = {
        "spatial": G.reshape(-1, 4),
        "linear": G.reshape(-1, 4),
        "exponential": G.reshape(-1, 4),
        "dense": G.reshape(2, -1),
        "low_rank": G.reshape(2, -1),
    }.get(kind, G.reshape(1, -1))
    P = {
        "spatial": lambda: M @ M.T,
        "dense": lambda: M @ M.T,
        "low_rank": lambda: np.eye(12) + M @ M.T,
        "diagonal": lambda: np.diag(M.ravel() ** 2),
        "scalar": lambda: M**2 * np.eye(24),
        "pp-hd": lambda: np.diag(M.ravel()),
        "s-hd": lambda: M * np.eye(24),
        "linear": lambda: M,
        "exponential": lambda: scipy.linalg.expm(M),
    }[kind]()
    values = np.linalg.eigvalsh(P)
    step = rows @ P
    whole = found.P.numpy() if found.P.dim() == 2 else np.diag(np.broadcast_to(found.P.numpy(), 24))
    np.testing.assert_allclose(whole, P, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(np.broadcast_to(found.eigenvalues, values.shape), values, rtol=1e-10)
    # A quotient of eigenvalues, each exact to rounding times the largest.
    assert found.condition == pytest.approx(values[-1] / values[0], rel=1e-9)
    assert found.gain == pytest.approx(np.linalg.norm(step) / np.linalg.norm(rows), rel=1e-12)
    cosine = np.sum(step * rows) / np.linalg.norm(step) / np.linalg.norm(rows)
    # Near 0 degrees the arc cosine loses half of the digits.
    assert found.angle == pytest.approx(math.degrees(math.acos(min(cosine, 1))), abs=1e-5)
    assert torch.equal(found.M, optimizer.state[p]["M"])
    assert found.M is not optimizer.state[p]["M"]


@pytest.mark.parametrize("kind", FORMS)
def test_memory_is_counted_form_by_form(kind: str) -> None:
    p = nn.Parameter(torch.ones(2, 3, 2, 2))
    bias = nn.Parameter(torch.ones(5))
    groups: list[dict[str, Any]] = [{"params": [p], "preconditioner": kind}, {"params": [bias]}]
    optimizer = FOP(groups, 0.1, rank=2, momentum=0.9)
    entries = {
        "spatial": 4 * 4,
        "linear": 4 * 4,
        "exponential": 4 * 4,
        "dense": 12 * 12,
        "low_rank": 12 * 2,
        "scalar": 1,
        "s-hd": 1,
    }.get(kind, 24)
    assert optimizer.memory_usage() == {"base": 0, "M": 4 * entries, "previous": 0, "hyper": 0}
    for _ in range(2):
        for each in (p, bias):
            each.grad = torch.ones_like(each)
        optimizer.step()
    expected = {"base": 4 * (24 + 5), "M": 4 * entries, "previous": 4 * 24, "hyper": 4 * (2 * entries + 1)}
    assert optimizer.memory_usage() == expected
    assert optimizer.describe().splitlines()[-1] == (
        f"{entries} entries of M; bytes of state: " + ", ".join(f"{key} {size:,}" for key, size in expected.items())
    )


def test_what_is_learned_follows_the_gradient_that_was_last() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = FOP([p], 0.1, hyper=SGD)
    optimizer.state[p]["M"].copy_(torch.diag(torch.tensor([2.0, 1.0])))

    def gain(grad: Tensor) -> float:
        p.grad = grad
        optimizer.step()
        return optimizer.preconditioners()["0"].gain

    optimizer.param_groups[0]["hyper_lr"] = 0
    assert gain(torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == 4
    assert gain(torch.tensor([[0.0, 0.0], [0.0, 3.0]])) == 1


def test_a_misspelt_option_in_a_rule_is_named() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="rules: unknown option 'rnak'; did you mean 'rank'"):
        assign(model, {"linear": {"preconditioner": "low_rank", "rnak": 4}})
    with pytest.raises(ValueError, match="rules: unknown option 'momentun'; did you mean 'momentum'"):
        assign(model, {"linear": {"momentun": 0.5}})
    (group, _) = assign(model, {"linear": {"colour": "red"}})
    assert group["colour"] == "red"


def test_parameters_in_place_of_the_model_are_refused() -> None:
    with pytest.raises(TypeError, match=r"model: expected the network itself, a torch.nn.Module, got generator"):
        assign(nn.Linear(3, 2).parameters(), {})  # type: ignore[arg-type]
