"""Checkpoints: one dictionary in torch's form for three optimizers, exact to the last bit.

`Optimizer.load_state_dict` casts floating-point state to the parameter's dtype; M, and single numbers, keep theirs.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from fop_torch.options import check_form, check_options
from fop_torch.preconditioners import FORMS

if TYPE_CHECKING:
    from fop_torch.fop import FOP

#: FOP's own entries of a parameter's state; the base's and the hyper-optimizer's stand in theirs.
OWN_STATE = ("M", "prev_grad", "prev_lr", "prev_M", "sensitivity")


def pack(optimizer: FOP) -> dict[str, Any]:
    """What the next step depends on: the base's state dictionary, FOP's and the hyper-optimizer's entries added."""
    packed = optimizer.base.state_dict()
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        own = optimizer.state.get(p)
        if own:
            # A new dictionary: the base hands out its own.
            hyper = {f"hyper_{key}": value for key, value in optimizer._hyper_state(own["M"]).items()}
            packed["state"][i] = {**packed["state"].get(i, {}), **own, **hyper}
    return packed


def load(optimizer: FOP, state_dict: dict[str, Any]) -> None:
    """Take over a checkpoint. What it makes is new; the caller can put the old dictionaries back."""
    missing = [repr(key) for key in ("state", "param_groups") if key not in state_dict]
    if missing:
        raise ValueError(f"state_dict: expected what state_dict() gave, got one without {' and '.join(missing)}")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [i for group in state_dict["param_groups"] for i in group["params"]]
    own: dict[int, dict[str, Any]] = {}
    hypers: dict[int, dict[str, Any]] = {}
    bases: dict[int, dict[str, Any]] = {}
    for i, entry in state_dict["state"].items():
        own[i] = {key: entry[key] for key in OWN_STATE if key in entry}
        hypers[i] = {key[6:]: value for key, value in entry.items() if key.startswith("hyper_")}
        bases[i] = {k: v for k, v in entry.items() if k not in OWN_STATE and not k.startswith("hyper_")}
    bases = {i: entry for i, entry in bases.items() if entry}
    groups = deepcopy(state_dict["param_groups"])
    if len(groups) == len(optimizer.param_groups):
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            if saved.get("optimizers", group["optimizers"]) != group["optimizers"]:
                raise ValueError(
                    f"state_dict: saved with the base {saved['optimizers'][0]} and the hyper-optimizer "
                    f"{saved['optimizers'][1]}, but here they are {' and '.join(group['optimizers'])}; build FOP "
                    "as it was saved"
                )
            if "forms" not in saved:  # the base's alone
                for i, p in zip(saved["params"], group["params"], strict=False):
                    own[i] = {"M": optimizer.state[p]["M"]} if "M" in optimizer.state.get(p, {}) else {}
            for key, value in group.items():
                saved.setdefault(key, value)
    optimizer.base.load_state_dict({"state": bases, "param_groups": groups})
    optimizer.param_groups = optimizer.base.param_groups
    _keep_numbers(optimizer.base, dict(zip(params, [bases.get(i, {}) for i in indices], strict=True)))
    optimizer.state = defaultdict(dict)
    learning: list[int] = []
    remaining = iter(indices)
    for group in optimizer.param_groups:
        check_options(group, optimizer.base, optimizer._hyper_class)
        if not len(group["forms"]) == len(group["ranks"]) == len(group["params"]):
            raise ValueError(f"state_dict: expected forms and ranks of {len(group['params'])} parameters")
        for kind, rank, p in zip(group["forms"], group["ranks"], group["params"], strict=True):
            i = next(remaining)
            check_form(p.shape, kind, group)
            _check_entries(i, p, kind, rank, own.get(i, {}), hypers.get(i, {}), bases.get(i, {}))
            if kind != "none":
                learning.append(i)
                optimizer.state[p] = {key: value.to(device=p.device, copy=True) for key, value in own[i].items()}
    optimizer.hyper = None
    optimizer._build_hyper()
    if optimizer.hyper is not None:
        packed = optimizer.hyper.state_dict()
        packed["state"] = {k: hypers[i] for k, i in enumerate(learning) if hypers.get(i)}
        optimizer.hyper.load_state_dict(packed)
        Ms = [M for group in optimizer.hyper.param_groups for M in group["params"]]
        _keep_numbers(optimizer.hyper, dict(zip(Ms, [hypers.get(i, {}) for i in learning], strict=True)))


def _keep_numbers(optimizer: Optimizer, saved: dict[Tensor, dict[str, Any]]) -> None:
    """After `load_state_dict`: memory of its own for every entry, and single numbers as they were saved.

    torch casts them to the parameter's dtype, in which NAdam's product of decays, say, would lose its digits.
    """
    for p, entries in saved.items():
        loaded = optimizer.state.get(p, {})
        for key, value in entries.items():
            if isinstance(value, Tensor):
                loaded[key] = loaded[key].to(value.dtype if value.dim() == 0 else loaded[key].dtype, copy=True)
                if value.dim() == 0:
                    loaded[key].copy_(value)


def _check_entries(i: int, p: Tensor, kind: str, rank: int | None, own: Any, hyper: Any, base: Any) -> None:
    """Raise `ValueError` unless what a checkpoint holds for parameter number i is complete and has its shapes."""
    shapes: dict[str, list[int]] = {"prev_grad": list(p.shape), "sensitivity": list(p.shape), "prev_lr": []}
    held = [(key, value, list(p.shape)) for key, value in base.items()]
    if kind != "none":
        shape = list(FORMS[kind].factor_shape(p.shape, rank))
        shapes |= {"M": shape, "prev_M": shape}
        held += [(key, value, shapes[key]) for key, value in own.items()]
        held += [(f"hyper_{key}", value, shape) for key, value in hyper.items()]
        for key in ["M", "prev_grad", "prev_lr"] if len(own) > 1 or hyper else ["M"]:
            if key not in own:
                raise ValueError(f"state_dict: parameter {i} lacks {key!r}; save what state_dict() gives, whole")
    for name, value, shape in held:
        found = list(value.shape) if isinstance(value, Tensor) else None
        if name in shapes:
            fits = found == shape
        else:
            # The optimizers of torch keep entries of the parameter's shape, sums over its dimensions, and numbers.
            fits = found is None or (
                len(found) <= len(shape) and all(a in (1, b) for a, b in zip(found[::-1], shape[::-1], strict=False))
            )
        if not fits:
            raise ValueError(
                f"state_dict: expected {name} of shape {shape} for parameter {i} of shape {list(p.shape)}, got "
                f"{value if found is None else found}; build the optimizer for the model that was saved"
            )
