"""Every public formula refuses a bad argument and names it: swept over the whole package.

Valid arguments are looked up by parameter name, so that a new formula in the usual names is swept
without being listed anywhere.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import numpy as np
import pytest

import fop_theory

column, square = np.array([[1.0], [2.0]]), np.array([[2.0, 0.5], [0.5, 1.0]])
VALID = {
    **dict.fromkeys(["theta", "G", "H", "F", "g", "h", "q", "v", "v_next", "A", "B", "H_before", "slope"], column),
    **dict.fromkeys(["P", "M", "M_now", "M_last"], square),
    **dict.fromkeys(["lr", "hyper_lr", "rate", "decay", "weight_decay", "damping", "tau", "mu", "low", "size"], 0.5),
    **dict.fromkeys(["high", "smoothness", "gap", "squared_norm", "sigma", "condition", "kappa", "curvature"], 2.0),
}
#: Names that mean something else in one function.
SPECIAL = {
    "baselines.scalar_step": {"rate": 0.5},
    "normalised.squared_gain": {"P": square},
    "structure.sign_step": {"slope": square},
    "noise.stationary_covariance": {"H": square},
    "noise.stationary_correlation": {"H": square},
    "noise.stationary_step_energy": {"H": square},
}
#: Not swept, each with its reason.
EXEMPT = {
    "reference.complex_step_gradient": "takes a function; its arrays come from the oracle, which checked them",
}


def formulas() -> dict[str, Callable]:
    found = {}
    for info in pkgutil.iter_modules(fop_theory.__path__):
        if info.name in ("ledger", "plots", "checks", "witnesses", "__main__"):
            continue
        module = importlib.import_module(f"fop_theory.{info.name}")
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_"):
                found[f"{info.name}.{name}"] = function
    return found


def arguments(name: str, function: Callable) -> dict | None:
    """Valid arguments for every parameter without a default, or `None` if a name is not known."""
    table = VALID | SPECIAL.get(name, {})
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return {p: table[p] for p in needed} if needed and all(p in table for p in needed) else None


SWEPT = {name: f for name, f in formulas().items() if name not in EXEMPT and arguments(name, f)}
CASES = [(name, parameter) for name, f in SWEPT.items() for parameter in arguments(name, f)]


def test_the_sweep_reaches_most_formulas() -> None:
    assert len(SWEPT) >= 60
    assert set(EXEMPT) <= set(formulas())


@pytest.mark.parametrize("name", SWEPT)
def test_valid_arguments_pass(name: str) -> None:
    SWEPT[name](**arguments(name, SWEPT[name]))


@pytest.mark.parametrize("bad", ["nan", "text", "shape"])
@pytest.mark.parametrize(("name", "parameter"), CASES, ids=[f"{n}-{p}" for n, p in CASES])
def test_a_bad_argument_is_refused_by_name(name: str, parameter: str, bad: str) -> None:
    good = arguments(name, SWEPT[name])
    is_matrix = isinstance(good[parameter], np.ndarray)
    value = {"nan": good[parameter] * np.nan, "text": "three", "shape": np.ones((2, 2, 2)) if is_matrix else [1.0, 2.0]}
    with pytest.raises(ValueError, match=rf"^{parameter}: expected .*got"):
        SWEPT[name](**{**good, parameter: value[bad]})
