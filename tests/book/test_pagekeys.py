"""What a page's key covers: neither too little, which would show old numbers, nor everything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import pagekeys  # noqa: E402

from fop_torch import data  # noqa: E402

FILES = {
    "constraints.txt": "numpy==1.0\n",
    "fop_theory/__init__.py": "",
    "fop_theory/one.py": "from fop_theory import two\n",
    "fop_theory/two.py": "from .three import name\nfrom . import four\n",
    "fop_theory/three.py": "def name():\n    import fop_theory.five\n",
    "fop_theory/four.py": "",
    "fop_theory/five.py": "PACKAGE / 'rows.yml'\n",
    "fop_theory/alone.py": "",
    "fop_theory/styles.py": "path.with_suffix('.mplstyle')\n",
    "fop_theory/look.mplstyle": "",
    "fop_theory/rows.yml": "",
    "fop_theory/py.typed": "",
    "fop_theory/folder.py": "PACKAGE / 'witnesses'\n",
    "fop_theory/witnesses/__init__.py": "",
    "fop_theory/witnesses/w.py": "",
    "fop_theory/witnesses/note.txt": "",
    "fop_torch/__init__.py": "",
    "fop_torch/run.py": "os.environ['FOP_SEED']\n",
    "book/theory/page.md": "",
    "book/theory/table.csv": "",
    "book/results/run.json": "",
    "data/a.bin": "",
}
COMMON = {"constraints.txt", "installed packages", "Python", "machine", "FOP_PROFILE"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(pagekeys, "ROOT", tmp_path)
    monkeypatch.setenv("FOP_DATA", str(tmp_path / "data"))
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    for remembered in (pagekeys.module_files, pagekeys.find_module, pagekeys._data_files, pagekeys._common):
        remembered.cache_clear()


def behind(root: Path, *cells: str) -> set[str]:
    found = pagekeys.files_behind(list(cells), root / "book" / "theory")
    return {path.relative_to(root).as_posix() for path in found}


THEORY = {"fop_theory/__init__.py", "fop_theory/py.typed"}


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("import numpy", set()),
        ("from fop_theory import four", THEORY | {"fop_theory/four.py"}),
        ("from fop_theory.four import value as v", THEORY | {"fop_theory/four.py"}),
        ("def f():\n    import fop_theory.four as x", THEORY | {"fop_theory/four.py"}),
        ("importlib.import_module('fop_theory.four')", THEORY | {"fop_theory/four.py"}),
        ("from fop_theory import styles", THEORY | {"fop_theory/styles.py", "fop_theory/look.mplstyle"}),
        ("from fop_theory import five", THEORY | {"fop_theory/five.py", "fop_theory/rows.yml"}),
        (
            "from fop_theory import one",
            THEORY
            | {f"fop_theory/{name}.py" for name in ("one", "two", "three", "four", "five")}
            | {"fop_theory/rows.yml"},
        ),
        (
            "from fop_theory.folder import x",
            THEORY
            | {"fop_theory/folder.py", "fop_theory/witnesses/__init__.py", "fop_theory/witnesses/w.py"}
            | {"fop_theory/witnesses/note.txt"},
        ),
        ("open('table.csv')", {"book/theory/table.csv"}),
        ("open('../../fop_theory/rows.yml')", {"fop_theory/rows.yml"}),
        ("words = 'data and fop and . and ..'", set()),
        (r"key = 'a\0b'", set()),
    ],
)
def test_the_files_behind_a_cell(root, cell, found) -> None:
    assert behind(root, cell) == found


@pytest.mark.parametrize("cell", ["%time f()", "!python x.py", "from fop_theory import *"])
def test_where_the_code_does_not_tell_everything_counts(root, cell) -> None:
    assert {f"fop_theory/{name}.py" for name in ("one", "five", "alone", "styles")} <= behind(root, cell)


def test_what_a_build_writes_is_not_what_it_is_made_from(root) -> None:
    """Else no build were the same twice."""
    (root / "_build/html").mkdir(parents=True)
    for name in ("_build/html/index.html", "_build/digests.json"):
        (root / name).touch()
        assert behind(root, f"open({name!r}), open('_build/html')") == set()


def test_a_theory_page_does_not_depend_on_data(root) -> None:
    page, digests = root / "book/theory/page.md", pagekeys.Digests(root / "_build/digests.json")
    assert set(pagekeys.dependencies(["from fop_theory import four"], page, digests)) == COMMON | THEORY | {
        "fop_theory/four.py"
    }


def test_a_torch_page_depends_on_data_results_and_variables(root, monkeypatch) -> None:
    page, digests = root / "book/theory/page.md", pagekeys.Digests(root / "_build/digests.json")

    def key() -> dict[str, str]:
        return pagekeys.dependencies(["from fop_torch import run"], page, digests)

    before = key()
    assert {"FOP_DATA", "FOP_SEED", "book/results"} <= set(before)
    (root / "data/a.bin").write_text("new", encoding="utf-8")
    (root / "book/results/more.json").write_text("new", encoding="utf-8")
    monkeypatch.setenv("FOP_SEED", "2")
    after = key()
    assert {name for name in before if before[name] != after[name]} == {"FOP_DATA", "FOP_SEED", "book/results"}


@pytest.mark.parametrize("where", ["home", "FOP_CACHE"])
def test_a_torch_page_depends_on_downloaded_images_and_not_on_what_is_made_of_them(root, monkeypatch, where) -> None:
    """A page that made do with a stand-in runs again when the images are there."""
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.delenv("FOP_CACHE", raising=False)
    (root / "fop_torch/run.py").write_text("os.environ['FOP_CACHE']\n", encoding="utf-8")
    if where == "FOP_CACHE":
        monkeypatch.setenv("FOP_CACHE", str(root / "kept"))
    folder = root / ("kept" if where == "FOP_CACHE" else "home/.cache/fop")
    assert pagekeys.cache_folder() == folder == data._cache()
    page, digests = root / "book/theory/page.md", pagekeys.Digests(root / "_build/digests.json")

    def key() -> dict[str, str]:
        return pagekeys.dependencies(["from fop_torch import run"], page, digests)

    def put(name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("new", encoding="utf-8")

    before = key()
    put("mnist/MNIST/raw/images.gz")
    after = key()
    assert {name for name in after if before.get(name) != after[name]} == {"downloads"}
    put("decoded/images.npz")
    put("mnist/lock")
    assert key() == after


def test_digests_are_of_content_and_survive_a_build(root) -> None:
    store, path = root / "_build/digests.json", root / "data/a.bin"
    first = pagekeys.Digests(store)
    path.write_text("one", encoding="utf-8")
    one = first.file(path)
    path.write_text("two!", encoding="utf-8")
    two = first.file(path)
    first.save()
    path.write_text("one", encoding="utf-8")
    assert pagekeys.Digests(store).file(path) == one != two
    store.write_text("{", encoding="utf-8")
    assert pagekeys.Digests(store).file(path) == one


def test_the_key_stands_in_the_front_matter_and_moves_no_line() -> None:
    text = "---\njupytext:\n  a: 1\nkernelspec: {name: python3, display_name: Python 3}\n---\n# Title\n"
    stamped = pagekeys.with_key(text, "k1")
    assert [line for line in stamped.splitlines() if line == "# Title"]
    assert stamped.splitlines().index("# Title") == text.splitlines().index("# Title")
    assert pagekeys.yaml.safe_load(stamped.split("---")[1])["kernelspec"]["fop_key"] == "k1"


def test_a_chapter_of_this_book_depends_on_its_modules_and_not_on_the_ledger() -> None:
    _forget()
    cells = ["from fop_theory import hypergradient, plots"]
    found = {path.relative_to(ROOT).as_posix() for path in pagekeys.files_behind(cells, ROOT / "book" / "theory")}
    assert {"fop_theory/hypergradient.py", "fop_theory/checks.py", "fop_theory/fop.mplstyle"} <= found
    assert not found & {"fop_theory/claims.yml", "fop_theory/ledger.py"}
