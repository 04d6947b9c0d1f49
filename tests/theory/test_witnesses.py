"""Each refutation's witness runs alone: plain Python, standard library, exact, under 20 lines."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fop_theory import ledger

FILES = sorted(path for path in ledger.WITNESSES.glob("*.py") if path.name != "__init__.py")
NAMED = {claim.witness for claim in ledger.read_claims()} - {""}
each_witness = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)

#: What a comparison becomes when the witness is broken on purpose.
FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Gt: ast.LtE, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def _run(path: Path) -> subprocess.CompletedProcess[str]:
    """Run a file isolated: no site packages, no environment, another working directory."""
    command = [sys.executable, "-I", "-S", str(path)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=20, check=False)


def test_there_are_witnesses() -> None:
    assert FILES


@each_witness
def test_a_witness_runs_alone(path: Path) -> None:
    run = _run(path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip()


@each_witness
def test_a_witness_is_short_and_plain(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) < 20
    assert ast.get_docstring(tree)
    nodes = list(ast.walk(tree))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names


@each_witness
def test_a_witness_is_exact(path: Path) -> None:
    """No float enters it: neither a literal, nor `float`, nor a root; `float` may stand in what it prints."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    printed = [node for call in ast.walk(tree) if _is_print(call) for node in ast.walk(call)]
    rest = [node for node in ast.walk(tree) if node not in printed]
    assert not [node for node in rest if isinstance(node, ast.Constant) and isinstance(node.value, (float, complex))]
    assert not {node.id for node in rest if isinstance(node, ast.Name)} & {"float", "complex", "sqrt", "exp", "log"}


def _is_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


@each_witness
def test_a_witness_is_named_by_a_row(path: Path) -> None:
    assert path.stem in NAMED


@each_witness
def test_a_broken_witness_says_so(path: Path, tmp_path: Path) -> None:
    """Turn round the comparison of each of its assertions, one at a time: it must then fail."""
    text = path.read_text(encoding="utf-8")
    asserted = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)]
    assert asserted
    for number in range(len(asserted)):
        tree = ast.parse(text)
        claim = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)][number]
        comparisons = [node for node in ast.walk(claim.test) if isinstance(node, ast.Compare)]
        assert comparisons, f"{path.name}: line {claim.lineno}: an assertion without a comparison"
        comparisons[0].ops[0] = FLIPPED[type(comparisons[0].ops[0])]()
        broken = tmp_path / f"{path.stem}_{number}.py"
        broken.write_text(ast.unparse(tree), encoding="utf-8")
        run = _run(broken)
        assert run.returncode != 0, f"{path.name}: line {claim.lineno}: its reverse passes as well"
        assert "AssertionError" in run.stderr
