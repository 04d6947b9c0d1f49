"""Every planted fault is noticed: break a formula, and a test with that equation's number fails."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from fop_theory.ledger import CLAIMS, Mutant
from tests.mutation import mutated_source, try_mutant

ROOT = Path(__file__).parents[1]
ROWS = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
PLANTED = [(row["id"], number, m) for row in ROWS for number, m in enumerate(row.get("mutants", ()))]


@pytest.fixture(scope="session")
def tests_of_claims() -> dict[str, list[str]]:
    """Node ids of the test functions marked with each claim, read from the files: no collection needed."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.claim":
                    name = ast.literal_eval(mark.args[0])
                    found.setdefault(name, []).append(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return found


@pytest.mark.mutant
@pytest.mark.parametrize(("claim", "number", "row"), PLANTED, ids=[f"{c}-{n}" for c, n, _ in PLANTED])
def test_mutant_is_killed(claim, number, row, tests_of_claims, record_property) -> None:
    tests = tests_of_claims.get(claim, [])
    assert tests, f"{claim}: tests: no test is marked with this claim"
    mutant = Mutant(row["in"], row["replace"], row["by"])
    killed, how, test = try_mutant(mutant, tests, str(ROOT))
    record_property("mutant", {"claim": claim, "number": number, **row, "killed": killed, "how": how, "test": test})
    assert killed, f"{claim}: mutants: {row['in']}: {row['replace']!r} -> {row['by']!r} survives: {how} {test}"


def _formula(x: float) -> float:
    """A docstring with x * 2 in it."""
    return x * 2


def test_a_mutant_changes_the_code_and_not_the_docstring() -> None:
    assert "return x * 3" in mutated_source(_formula, "x * 2", "x * 3")
    with pytest.raises(ValueError, match="stands 0 times"):
        mutated_source(_formula, "x * 5", "x")


@pytest.mark.parametrize(
    ("by", "how"),
    [("-lr * (S @ M)", "all tests passed"), ("-lr * undefined_name", "NameError")],
)  # fmt: skip
def test_a_mutant_that_changes_nothing_or_crashes_is_not_killed(by, how) -> None:
    mutant = Mutant("fop_theory.hypergradient.hypergradient", "-lr * (S @ M)", by)
    tests = ["tests/theory/test_hypergradient.py::test_eq_4_central_differences"]
    killed, said, _ = try_mutant(mutant, tests, str(ROOT))
    assert (killed, said) == (False, how)
