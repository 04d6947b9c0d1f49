"""The code's form: lint, formatting, types, docstrings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fop_theory

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fop_theory.__path__, "fop_theory.")
    if not module.name.startswith("fop_theory.witnesses.")
)


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_style(command: str) -> None:
    words = [sys.executable, "-m", *command.split()]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}:\n{run.stdout}{run.stderr}"


def test_the_map_of_contributing_names_every_module_of_fop_torch_once() -> None:
    said = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = [path for folder in ("fop_torch", "fop_torch/studies") for path in (ROOT / folder).glob("[!_]*.py")]
    assert len(paths) > 20
    counts = {path.name: len(re.findall(rf"[`/]{path.name}`", said)) for path in paths}
    assert {name: count for name, count in counts.items() if count != 1} == {}


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    own = {
        key: value
        for key, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == name
    }
    members = {
        f"{key}.{inner}": value
        for key, owner in own.items()
        if inspect.isclass(owner)
        for inner, value in vars(owner).items()
        if inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod))
    }
    public = {key: value for key, value in {**own, **members}.items() if "._" not in f".{key}"}
    # A dataclass without a docstring is given its signature as one.
    bare = [key for key, value in public.items() if not value.__doc__ or value.__doc__.startswith(f"{key}(")]
    assert bare == []
