"""The reference lists every public name of the optimizer, each has a docstring, and the README's script runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import fop_torch
from fop_torch.preconditioners import FORMS, Form
from fop_torch.report import Learned

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "book" / "optimizer" / "reference.md"
#: What a public method returns counts as public.
OBJECTS = {**{name: getattr(fop_torch, name) for name in fop_torch.__all__}, "report.Learned": Learned}


def members(owner: type) -> list[str]:
    """Public methods and properties that a class of ours defines, its bases of ours included."""
    classes = [each for each in owner.__mro__ if each.__module__.startswith("fop_torch")]
    return sorted(
        {
            name
            for each in classes
            for name, value in vars(each).items()
            if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
        }
    )


def documented(text: str) -> dict[str, set[str]]:
    """Names that the page documents, each with the members that it lists."""
    found = {}
    for name, options in re.findall(
        r"^\.\. auto(?:class|function):: fop_torch\.([\w.]+).*\n((?: +:.*\n)*)", text, re.M
    ):
        listed = re.search(r":members:(.*)", options)
        found[name] = {member.strip() for member in listed[1].split(",")} if listed else set()
    return found


def missing(text: str, objects: dict[str, object]) -> list[str]:
    """Public names that are not on the page; those of a base class may stand with it."""
    page = documented(text)
    names = [name for name in objects if name not in page]
    for name, owner in objects.items():
        if inspect.isclass(owner):
            bases = [base for base, each in objects.items() if inspect.isclass(each) and issubclass(owner, each)]
            listed = set().union(*(page.get(base, set()) for base in bases))
            names += [f"{name}.{member}" for member in members(owner) if member not in listed]
    return names


def test_every_public_name_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert missing(text, OBJECTS) == []
    assert sorted(set(documented(text)) - set(OBJECTS)) == []


def test_a_name_that_is_not_on_the_page_is_noticed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert missing(text.replace(":: fop_torch.assign", ":: fop_torch.fop"), OBJECTS) == ["assign"]
    assert missing(text.replace(", describe", ""), OBJECTS) == ["FOP.describe", "PPHD.describe", "SHD.describe"]


def test_every_public_name_is_exported_or_has_no_business_here() -> None:
    own = {
        name: value
        for name, value in vars(fop_torch).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert sorted(own) == sorted(fop_torch.__all__)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    owner = OBJECTS[name]
    names = {name: owner}
    if inspect.isclass(owner):
        names |= {f"{name}.{member}": getattr(owner, member) for member in members(owner)}
    assert [each for each, value in names.items() if not (value.__doc__ or "").strip()] == []


@pytest.mark.parametrize("name", OBJECTS)
def test_every_argument_is_described(name: str) -> None:
    """Names in the signature and in the docstring's list of arguments are the same."""
    owner = OBJECTS[name]
    functions = {name: owner}
    if inspect.isclass(owner):
        functions |= {f"{name}.{member}": getattr(owner, member) for member in members(owner)}
    for where, function in functions.items():
        doc = inspect.getdoc(function) or ""
        section = re.search(r"^Args:\n((?:[ ]{4,}.*\n|\n)+)", doc + "\n", re.M)
        if section is None or not callable(function):
            continue
        said = re.findall(r"^ {4}\*{0,2}(\w+):", section[1], re.M)
        takes = [each for each in inspect.signature(function).parameters if each != "self"]
        assert sorted(said) == sorted(takes), where


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_what_it_is(name: str) -> None:
    form = type(FORMS[name])
    assert form.__doc__
    assert form.__doc__ != Form.__doc__


def test_the_script_of_the_readme_trains(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    exec(compile(script, "README.md", "exec"), {})
    said = capsys.readouterr().out
    right = [float(share) for share in re.findall(r"^\d+ ([\d.]+)% of", said, re.M)]
    # A linear model gets about 96 of 100 right; guessing, 10.
    assert right[-1] > 93
    assert "spatial" in said
