"""The options of a parameter group, and what is wrong with them: one clear error before anything is changed."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fop_torch.preconditioners import FORMS, Dense

#: FOP's own options: the defaults of every parameter group, beside the base optimizer's.
OPTIONS: dict[str, Any] = {
    "hyper_lr": 1e-4,
    "preconditioner": "auto",
    "rank": None,
    "normalize": False,
    "through_norm": True,
    "order": "paper",
    "index": "printed",
    "through": "plain",
    "scale": 0.01,
    "safe": None,
    "max_norm": None,
}
#: What all groups share.
SHARED = ("base", "hyper", "nonfinite", "null_step", "seed")
CHOICES = {
    "order": ("paper", "m-first"),
    "index": ("printed", "exact"),
    "through": ("plain", "step", "velocity"),
    "nonfinite": ("skip", "ignore"),
}


def check_names(names: Iterable[str], known: Iterable[str], where: str, alike: float = 0.6) -> None:
    """Raise `ValueError` unless each name is known, or one of the user's own, as torch lets a group carry them.

    What nearly is an option is a slip of the pen; `alike`, of `difflib`, says how nearly.
    """
    known = set(known)
    for name in names:
        close = [] if name in known else get_close_matches(name, known, n=1, cutoff=alike)
        if close:
            raise ValueError(f"{where}: unknown option {name!r}; did you mean {close[0]!r}?")


def check_group(group: dict[str, Any], defaults: Iterable[str]) -> None:
    """Raise `ValueError` if a group names what all groups share, or misspells an option."""
    for name in SHARED:
        if name in group:
            raise ValueError(f"{name}: one for all groups, got {group[name]!r} in a group; give it to the optimizer")
    # Others' groups come with keys of theirs: "lr_scale" is the user's, "hyperlr" is not.
    check_names(group, {*defaults, "params", "param_names", "forms", "ranks"}, "params", alike=0.8)


def check_options(options: dict[str, Any], base: Optimizer, hyper_class: Any) -> None:
    """Raise `ValueError` unless a group's options are in range and go together."""
    for name in ("order", "index", "through"):
        if options[name] not in CHOICES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(CHOICES[name])}, got {options[name]!r}")
    for name in ("normalize", "through_norm"):
        if not isinstance(options[name], bool):
            raise ValueError(f"{name}: expected True or False, got {options[name]!r}")
    for name in ("lr", "hyper_lr", "scale"):
        check_number(name, options[name])
    for name, value in options.items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name}: expected a number, got {value!r}")
    rank = options["rank"]
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
        raise ValueError(f"rank: expected a whole number, at least 0, or None, got {rank!r}")
    for name, limit in (("max_norm", math.inf), ("safe", 1)):
        value = options[name]
        if value is not None and not (isinstance(value, Real) and 0 < float(value) < limit):
            raise ValueError(f"{name}: expected a number between 0 and {limit}, or None, got {value!r}")
    if options["max_norm"] is not None and options["normalize"]:
        raise ValueError("max_norm: with normalize the size of M has no effect; the norm of P is at most sqrt(m) there")
    if not isinstance(options["hyper_options"], dict):
        raise TypeError(f"hyper_options: expected a dictionary, got {options['hyper_options']!r}")
    if "lr" in options["hyper_options"]:
        raise ValueError(f"hyper_options: got lr={options['hyper_options']['lr']!r}; use hyper_lr")
    try:
        # The hyper-optimizer checks its own options, on a factor of one entry.
        hyper_class([torch.zeros(1, 1)], lr=options["hyper_lr"], **options["hyper_options"])
    except (TypeError, ValueError) as error:
        raise type(error)(f"hyper_options: {error}") from error
    if options["safe"] is not None:
        plain = hyper_class is SGD and not set(options["hyper_options"]) - {"foreach", "fused"}
        multiplies = options["order"] == "m-first" or options["index"] == "printed"
        if not (plain and multiplies and not options["normalize"] and options["through"] != "step"):
            raise ValueError(
                "safe: the bound holds where the update of M is (I + a S) M: use hyper=torch.optim.SGD without "
                "momentum, index='printed' or order='m-first', through='plain', and no normalize"
            )
    if options["through"] == "velocity" and (not isinstance(base, SGD) or options["dampening"]):
        raise ValueError("through: 'velocity' needs torch.optim.SGD as the base, without dampening")
    if options["through"] == "step":
        known = type(base) in (SGD, Adam, AdamW)
        if not known or options.get("dampening") or options.get("amsgrad"):
            raise ValueError(
                "through: 'step' is known for SGD (without dampening), Adam and AdamW (without amsgrad), got "
                f"{type(base).__name__}; use through='plain'"
            )
        if type(base) is not SGD and options["order"] == "paper" and options["index"] == "printed":
            raise ValueError(
                "through: Adam's step can be differentiated only at the M that made it; "
                "use index='exact' or order='m-first' with through='step'"
            )


def check_rank(options: dict[str, Any]) -> None:
    """Raise `ValueError` if a rank is asked for together with a form that has none."""
    kind = options["preconditioner"]
    if options["rank"] is not None and kind not in ("auto", "low_rank"):
        raise ValueError(f"rank: {kind!r} has none, got {options['rank']!r}; leave it out, or use 'low_rank' or 'auto'")


def check_number(name: str, value: Any) -> None:
    """Raise `ValueError` unless a learning rate, or the like, is a finite number and at least 0."""
    if name == "lr" and isinstance(value, Tensor):
        return  # to look at it would make the host wait
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 <= float(value) < math.inf):
        raise ValueError(f"{name}: expected a finite number, at least 0, got {value!r}")


def check_form(shape: torch.Size, kind: str, options: dict[str, Any]) -> None:
    """Raise `ValueError` unless the form fits the parameter's shape and its group's options."""
    if kind == "none":
        return
    if kind not in FORMS:
        raise ValueError(f"forms: expected 'none' or one of {', '.join(FORMS)}, got {kind!r}")
    FORMS[kind].check(shape)
    if options["normalize"] and not isinstance(FORMS[kind], Dense):
        kind_error = f"normalize: Eq. (11) is for the matrix forms, got preconditioner {kind!r}"
        raise ValueError(f"{kind_error}; use 'spatial', 'dense' or 'low_rank'")
    if FORMS[kind].normalised and options["through"] == "step":
        raise ValueError(f"through: {kind!r} learns from gradients alone; use through='plain' or 'velocity'")
    if FORMS[kind].normalised and options["safe"] is not None:
        raise ValueError(f"safe: its bound is for P = M M^T; use max_norm, within which {kind!r} is definite")
    if FORMS[kind].normalised and options["max_norm"] is not None and options["max_norm"] <= 1:
        raise ValueError(
            f"max_norm: {kind!r} keeps P between 1 / max_norm and max_norm, so it must exceed 1, "
            f"got {options['max_norm']!r}"
        )
    if kind == "low_rank" and options["max_norm"] is not None and options["max_norm"] <= 1:
        raise ValueError(
            f"max_norm: I + M M^T has a norm over 1, got {options['max_norm']!r}; use 'dense' for smaller steps"
        )
    if options["safe"] is not None and not FORMS[kind].positive:
        raise ValueError(f"safe: {kind!r} may become negative by design; use 'scalar' or 'diagonal'")


def check_parameter(p: Tensor) -> None:
    """Raise `TypeError` unless FOP can take this parameter."""
    if not p.dtype.is_floating_point:
        raise TypeError(f"params: expected real floating-point parameters, got one of shape {list(p.shape)}, {p.dtype}")
    if hasattr(p, "device_mesh"):
        raise TypeError(
            f"params: sharded parameters (DTensor) are not supported, got one of shape {list(p.shape)}; "
            "use DistributedDataParallel, or keep the torch optimizer for this parameter"
        )


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the program that called torch or this package, whatever lies in between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "fop_torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
