"""Which parameter gets which preconditioner: by module type, by name, by a function, or by shape."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from fop_torch.options import OPTIONS, check_names, warn
from fop_torch.preconditioners import FORMS

KINDS = (*FORMS, "none")
#: Widest input dimension that "auto" gives a dense preconditioner; above, low rank of this many columns.
DENSE_UP_TO = 128
DEFAULT_RANK = 16

#: Words for module types that rules may use.
MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.modules.conv._ConvNd,),
    "linear": (nn.Linear,),
    "embedding": (nn.Embedding,),
    "norm": (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm),
}

Rule = str | type[nn.Module] | Callable[[str, Tensor, nn.Module], bool]


def resolve(shape: torch.Size, kind: str, rank: int | None) -> tuple[str, int | None]:
    """Settle form and rank for a parameter of this shape.

    Args:
        shape: The parameter's.
        kind: A key of `FORMS`, `"none"` or `"auto"`.
        rank: Columns asked for, or None.

    Returns:
        The form, and the rank for `"low_rank"` (else None). Rank 0 is `"none"`, and so is a parameter without entries.

    Raises:
        ValueError: If there is no such form.

    Warns:
        UserWarning: If the rank exceeds the input dimension and is clamped.
    """
    if kind == "auto":
        if len(shape) > 2 and math.prod(shape[2:]) > 1:
            kind = "spatial"
        elif len(shape) < 2:
            kind = "none"
        else:
            kind = "dense" if math.prod(shape[1:]) <= DENSE_UP_TO else "low_rank"
    if kind not in KINDS:
        raise ValueError(f"preconditioner: expected 'auto' or one of {', '.join(KINDS)}, got {kind!r}")
    if 0 in shape:
        return "none", None
    if kind != "low_rank":
        return kind, None
    width = FORMS["low_rank"].factor_shape(shape, None)[0]
    if rank is not None and rank > width:
        warn(
            f"rank: {rank} exceeds the input dimension {width} of a parameter of shape {list(shape)}; {width} is used",
            UserWarning,
        )
    rank = min(DEFAULT_RANK if rank is None else rank, width)
    return ("low_rank", rank) if rank else ("none", None)


def assign(
    model: nn.Module,
    rules: Mapping[Rule, str | dict[str, Any]] | None = None,
    *,
    default: str = "auto",
    rank: int | None = None,
) -> list[dict[str, Any]]:
    """Make parameter groups from rules, for `FOP(assign(model, rules), lr=...)`.

    Args:
        model: The network; parameters that need no gradient are left out, tied ones counted once.
        rules: From what a parameter must match to what it gets. A key is a word for a type of module (`"conv"`,
            `"linear"`, `"embedding"`, `"norm"`), a class of module, a pattern for parameter names (`"head.*"`), or a
            function of name, parameter and module. A value is a form, such as `"spatial"`, or a dictionary of
            options of the group, such as `{"preconditioner": "low_rank", "rank": 8, "lr": 0.01}`. The first rule that
            matches counts. Rules by module concern weights: vectors (biases) pass by them, unless the module has
            nothing else, as normalizations do.
        default: What a parameter gets that no rule matches.
        rank: Rank of all low-rank preconditioners whose rule names none.

    Returns:
        Groups with named parameters, one for each set of options, in the order of the model.

    Raises:
        TypeError: If `model` is not a module.
        ValueError: If a rule matches nothing, names an unknown form, or misspells an option.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> for group in assign(net, {"conv": "spatial", "2.*": "none"}):
        ...     print(group["preconditioner"], [name for name, _ in group["params"]])
        spatial ['0.weight']
        auto ['0.bias']
        none ['2.weight', '2.bias']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected the network itself, a torch.nn.Module, got {type(model).__name__}")
    rules = dict(rules or {})
    options = {
        key: dict(value) if isinstance(value, dict) else {"preconditioner": value} for key, value in rules.items()
    }
    known = {*OPTIONS, "hyper_options", *inspect.signature(SGD).parameters, *inspect.signature(AdamW).parameters}
    for chosen in [*options.values(), {"preconditioner": default}]:
        kind = chosen.setdefault("preconditioner", default)
        if kind != "auto" and kind not in KINDS:
            raise ValueError(f"preconditioner: expected 'auto' or one of {', '.join(KINDS)}, got {kind!r}")
        check_names(chosen, known, "rules")
    unused = set(rules)
    groups: dict[str, dict[str, Any]] = {}
    modules = dict(model.named_modules())
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        module = modules[name.rpartition(".")[0]]
        matching = [key for key in rules if _matches(key, name, p, module)]
        unused -= set(matching)
        chosen = options[matching[0]] if matching else {"preconditioner": default}
        if chosen["preconditioner"] in ("auto", "low_rank"):
            chosen = {"rank": rank, **chosen}
        groups.setdefault(repr(sorted(chosen.items(), key=str)), {**chosen, "params": []})["params"].append((name, p))
    if unused:
        kinds = sorted({type(module).__name__ for module in modules.values()})
        raise ValueError(
            f"rules: {', '.join(map(repr, sorted(unused, key=repr)))} match no parameter; words are "
            f"{', '.join(MODULES)}, the model's modules are {', '.join(kinds)}, its parameters are named "
            f"{', '.join(list(dict(model.named_parameters()))[:4])}, ..."
        )
    if not groups:
        raise ValueError("model: expected at least one parameter that needs a gradient, got none")
    return list(groups.values())


def _matches(key: Rule, name: str, p: Tensor, module: nn.Module) -> bool:
    if isinstance(key, str) and key not in MODULES:
        return fnmatchcase(name, key)
    if isinstance(key, (str, type)):
        kinds = MODULES[key] if isinstance(key, str) else key
        return isinstance(module, kinds) and (p.dim() > 1 or all(q.dim() < 2 for q in module.parameters(recurse=False)))
    return key(name, p, module)
