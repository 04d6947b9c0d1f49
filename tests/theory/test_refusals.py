"""Every public formula refuses a bad argument and names it: swept over the whole package.

Valid arguments are looked up by parameter name, so that a new formula in the usual names is swept
without being listed anywhere; one with a new name fails here until the name has a valid value.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fop_theory
from fop_theory import certificates, counts, objectives, reference

column, square = np.array([[1.0], [2.0]]), np.array([[2.0, 0.5], [0.5, 1.0]])
COLUMNS = (
    "theta G H F g h q v v_next A B H_before slope p d D rates mean moved grad move low_vector high_vector chances"
)
HALVES = "lr hyper_lr rate decay weight_decay damping tau mu low size beta1 beta2 eigenvalue rho ridge time loss gap"
HALVES += " share limit z w w_last work momentum chance drop squares pairs total"
TWOS = "high smoothness squared_norm sigma condition kappa curvature variance highest degree degrees far"
TWOS += " norm radius slope_bound kick cap factor reach slopes trace_bound trace_now"
COUNTS = "n k step steps entries draws runs inputs outputs pixels columns blocks classes projections identity"
VALID: dict[str, Any] = {
    **dict.fromkeys(COLUMNS.split(), column),
    **dict.fromkeys(["P", "Q", "M", "M_now", "M_last", "X", "noise", "second_moment", "outcomes"], square),
    **dict.fromkeys(HALVES.split(), 0.5),
    **dict.fromkeys(TWOS.split(), 2.0),
    **dict.fromkeys(["budget", "entropy", "distance", "theirs", "constant", "growth", "trace", "gain"], 2.0),
    **dict.fromkeys(COUNTS.split(), 1),
    **dict.fromkeys(["Gs", "Hs", "gradients", "ps"], (column, column)),
    **dict.fromkeys(["curvatures", "weights", "conditions"], (1.0, 2.0)),
    "balance": 1.0,
    "end": 0.5,
    "lengths": (1.0, 2.0),
    "image": column,
    "decrease": 0.25,
    "candidates": (column, column),
    "kernel": np.ones((2, 2, 1, 1)),
    "jacobian": np.ones((2, 1, 2, 2)),
    "matrix": np.ones((4, 1)),
    "times": np.array([0.0, 0.1]),
    "side": 64,
    "x": np.array([1.0, 2.0]),
    "y": np.array([1.0, -1.0]),
}
#: Names that mean something else in one module or in one function.
SPECIAL: dict[str, dict[str, Any]] = {
    "adam": {"m": column},
    "low_rank": {"m": 2},
    "normalised.squared_gain": {"P": square},
    "structure.sign_step": {"slope": square},
    "exponential": {"p": 0.5},
    "online": {"rate": 0.1},
    "adaptive": {"M": 0.5, "x": 0.5, "slope": 0.5, "beta2": 0.9},
    "budget.mean_move": {"values": (1.0, 2.0), "chances": (0.5, 0.5)},
    "budget.batch_account": {"rates": (0.5, 0.5)},
    "noise.stationary_covariance": {"H": square, "P": np.eye(2)},
    "noise.stationary_correlation": {"H": square, "P": np.eye(2)},
    "noise.stationary_step_energy": {"H": square, "P": np.eye(2)},
    "noise.sign_noise_drift": {"rate": 0.1},
    "noise.one_dimensional_correlation": {"P": 0.5},
    "conservation.one_dimensional_loss": {"P": 0.5},
    "stochastic": {"second_moment": 2.0, "rates": 0.5, "noise": 1.0, "slope": 0.1, "rate": 0.1, "power": 0.5},
    "stochastic.growth_exponent": {"values": (1.0, -1.0), "chances": (0.5, 0.5)},
    "stochastic.explosive_growth": {"slope": 1e-3, "rate": 1.0, "chance": 0.5},
    "stochastic.log_determinant_floor": {"dot": 0.1, "product": 0.2},
    "stochastic.work_limit": {"moved": 0.5},
    "unmodified.least_drop": {"q": 0.5},
    "sharing.precondition_kernel": {"P": np.eye(4)},
    "objectives.quadratic": {"A": square},
    "objectives.composed": {"A": square},
    "algebra.identity_beside": {"A": square},
    "descent.relative_curvatures": {"A": square},
    "descent.lipschitz_radius": {"slope": 2.0},
    "descent.climbed": {"length": 0.5},
}
#: Handed over as they are: what they hold was checked when they were made, or belongs to another library.
OBJECTS: dict[str, Any] = {
    "batches": [(lambda theta: theta.sum(), lambda theta: theta)],
    "gradient": lambda theta: theta,
    "layers": counts.all_cnn_c(),
    "length": lambda t, P: 0.5,
    "convex": True,
    "order": "m-first",
    "through": "plain",
    "outer": objectives.huber(2),
    "scale": lambda g, h: 1.0,
    "value": lambda theta: theta.sum(),
    "rng": np.random.default_rng(0),
    "seed": 0,
    "settings": reference.Settings(lr=0.5),
    "start": certificates.Point(column, column, 1.0),
    "state": reference.initial_state(column, square),
    "stop": certificates.Point(column, column, 1.0),
}
#: Not swept, each with its reason.
EXEMPT = {
    "algebra.root": "an operation on checked numbers",
    "algebra.elementwise": "an operation on checked matrices",
    "certificates.record": "writes a file",
    "certificates.solved": "takes a row of the grid",
    "certificates.worst_change": "asks a solver; swept with it in test_certificates",
    "certificates.worst_factor": "asks a solver; swept with it in test_certificates",
    "reference.complex_step_gradient": "takes a function; its arrays come from the oracle, which checked them",
    "reference.oracle_hypergradient": "takes the last step, which the oracle checked when it took it",
    "extended.learn_with_momentum": "a generator, as the next one",
    "convergence.learn": "a generator: it refuses when its first step is asked for (test_convergence)",
    "adaptive.adam_moves": "takes a function; what it makes refuses by Adam's formulas",
    "stochastic.learn_in_noise": "a generator, as convergence.learn",
    "stochastic.plain": "takes a function",
    "stochastic.squared": "an operation on checked arrays",
    "reference.precondition": "also takes the complex numbers of the complex step",
}


def formulas() -> dict[str, Callable]:
    """Every public function that takes an argument."""
    found = {}
    for info in pkgutil.iter_modules(fop_theory.__path__):
        if info.name in ("ledger", "plots", "checks", "witnesses", "__main__"):
            continue
        module = importlib.import_module(f"fop_theory.{info.name}")
        for name, function in vars(module).items():
            own = inspect.isfunction(function) and function.__module__ == module.__name__
            if own and not name.startswith("_") and inspect.signature(function).parameters:
                found[f"{info.name}.{name}"] = function
    return found


FORMULAS = formulas()


def arguments(name: str) -> dict[str, Any]:
    """Valid arguments; a parameter with a default and without a value here is left out."""
    module, _ = name.split(".")
    table = VALID | OBJECTS | SPECIAL.get(module, {}) | SPECIAL.get(name, {})
    return {
        p.name: table[p.name]
        for p in inspect.signature(FORMULAS[name]).parameters.values()
        if p.default is p.empty or p.name in table
    }


SWEPT = {name: function for name, function in FORMULAS.items() if name not in EXEMPT}
CASES = [(name, parameter) for name in SWEPT for parameter in arguments(name) if parameter not in OBJECTS]


def spoiled(good: Any, bad: str) -> Any:
    """The valid value turned into a bad one; of a list, its last entry."""
    if isinstance(good, tuple):
        return [*good[:-1], spoiled(good[-1], bad)]
    shape = np.ones((3, 3, 3)) if isinstance(good, np.ndarray) else [1.0, 2.0]
    return {"nan": good * np.nan, "text": "three", "shape": shape}[bad]


def test_the_exceptions_exist() -> None:
    assert set(EXEMPT) <= set(FORMULAS)
    assert {name for name in SPECIAL if "." in name} <= set(SWEPT)


@pytest.mark.parametrize("name", SWEPT)
def test_valid_arguments_pass(name: str) -> None:
    SWEPT[name](**arguments(name))


@pytest.mark.parametrize("bad", ["nan", "text", "shape"])
@pytest.mark.parametrize(("name", "parameter"), CASES, ids=[f"{n}-{p}" for n, p in CASES])
def test_a_bad_argument_is_refused_by_name(name: str, parameter: str, bad: str) -> None:
    good = arguments(name)
    with pytest.raises(ValueError, match=rf"^{parameter}: expected .*got"):
        SWEPT[name](**{**good, parameter: spoiled(good[parameter], bad)})
