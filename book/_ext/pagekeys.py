"""Run a page again when, and only when, something that its numbers depend on has changed.

The notebook cache compares a page's code cells and nothing else. A change in a module, in
the data, in the pins or in the profile would leave an old number on the page, on a green
build. Here each page gets a key, which stands in the only part of a notebook's metadata
that the cache compares, and which covers

- every module of this repository that the page's cells import, directly or not, found in
  the syntax tree, and the data files of its package;
- files of this repository that a cell or such a module names;
- the pins, the versions installed for them, Python and the machine;
- `FOP_PROFILE`, and what every other `FOP_…` variable that this code names holds;
- the files under `FOP_DATA` and `book/results`, and the images that were downloaded, for a page that imports
  `fop_torch`.

Where the syntax tree does not tell, more is counted rather than less.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import machine
import yaml
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fop_theory", "fop_torch")
FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.S)


# ---------------------------------------------------------------------------------------
# Digests of files


class Digests:
    """Content digests of files, remembered by path, size and time of change."""

    def __init__(self, store: Path) -> None:
        self.store = store
        try:
            self.known: dict[str, list] = json.loads(store.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def file(self, path: Path) -> str:
        """SHA-256 of one file's content."""
        facts = path.stat()
        name, stamp = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
        found = self.known.get(name)
        if found is None or found[:2] != stamp:
            with path.open("rb") as stream:
                found = [*stamp, hashlib.file_digest(stream, "sha256").hexdigest()]
            self.known[name] = found
        return found[2]

    def tree(self, path: Path) -> dict[str, str]:
        """SHA-256 of every file under a folder, or of the one file that `path` is."""
        if path.is_file():
            return {path.name: self.file(path)}
        files = (p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {p.relative_to(path).as_posix(): self.file(p) for p in sorted(files)}

    def save(self) -> None:
        """Keep them for the next build."""
        self.store.parent.mkdir(parents=True, exist_ok=True)
        self.store.write_text(json.dumps(self.known), encoding="utf-8")


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------
# From code to the files that it reads


@cache
def module_files() -> list[Path]:
    """Every Python file of both packages."""
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


@cache
def find_module(dotted: str) -> Path | None:
    """The file behind `package.module`, or behind `package.module.name`; nothing for foreign packages."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:cut])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _strings(tree: ast.AST) -> set[str]:
    """The strings that may name a file or a module."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and 0 < len(value) < 200 and value.isprintable()}


def _modules_named(tree: ast.AST, package: str) -> Iterator[Path]:
    """Files of the modules that a piece of code imports or names in a string."""
    dotted: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            dotted |= {f"{origin}.{alias.name}" for alias in node.names}
            if any(alias.name == "*" for alias in node.names) and (found := find_module(origin)):
                yield from found.parent.glob("*.py") if found.name == "__init__.py" else [found]
    for text in _strings(tree):
        if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", text) and text.split(".")[0] in PACKAGES:
            dotted |= {text, f"{text}.__main__"}
    for name in dotted:
        found = find_module(name)
        if found:
            # Importing a module runs the __init__ of every package above it.
            yield found
            yield from (p / "__init__.py" for p in found.parents if p != ROOT and (p / "__init__.py").is_file())


def _files_named(tree: ast.AST, folders: Iterable[Path]) -> Iterator[Path]:
    """Files of this repository that a string names, and those of a named folder of code."""
    for text in _strings(tree):
        for folder in folders if text.strip("./ ") else ():
            place = (folder / text).resolve()
            if not place.is_relative_to(ROOT) or place == ROOT or place.is_relative_to(ROOT / "_build"):
                continue  # what a build writes is not what it is made from
            if place.is_file():
                yield place
            elif "/" in text.strip("./") or (place / "__init__.py").is_file():
                yield from (p for p in place.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


@cache
def _data_files(package: Path) -> dict[Path, list[Path]]:
    """The package's other files, each with the modules that may read it.

    A module may read a file whose name or suffix it mentions; a file that none mentions is counted for all.
    """
    modules = sorted(package.glob("*.py"))
    texts = {module: module.read_text(encoding="utf-8") for module in modules}
    found: dict[Path, list[Path]] = {module: [] for module in modules}
    for path in sorted(p for p in package.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")):
        marks = [path.name, path.suffix] if path.suffix else [path.name]
        readers = [module for module, text in texts.items() if any(mark in text for mark in marks)]
        for module in readers or modules:
            found[module].append(path)
    return found


def files_behind(cells: list[str], folder: Path) -> set[Path]:
    """Every file of this repository that code cells read when they run in `folder`."""
    found: set[Path] = set()
    waiting: list[Path] = []
    for cell in cells:
        try:
            tree = ast.parse(cell)
        except SyntaxError:
            # A magic or a shell line: it may call anything of ours.
            waiting += module_files()
            continue
        waiting += [*_modules_named(tree, ""), *_files_named(tree, [folder, ROOT])]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            package = ".".join(path.parent.relative_to(ROOT).parts)
            waiting += [*_modules_named(tree, package), *_files_named(tree, [path.parent, ROOT])]
            waiting += _data_files(path.parent).get(path, [])
    return found


# ---------------------------------------------------------------------------------------
# Keys


@cache
def _common() -> dict[str, str]:
    """What every page depends on."""
    pins = ROOT / "constraints.txt"
    names = re.findall(r"^([\w.-]+)==", pins.read_text(encoding="utf-8"), re.M) if pins.exists() else []
    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "constraints.txt": hashlib.sha256(pins.read_bytes()).hexdigest() if pins.exists() else "",
        "installed packages": _sha(installed),
        "Python": sys.version,
        "machine": _sha([machine.cpu(), machine.gpus()]),
        "FOP_PROFILE": os.environ.get("FOP_PROFILE", ""),
    }


def dependencies(cells: list[str], page: Path, digests: Digests) -> dict[str, str]:
    """Everything that the page's numbers depend on beside its own cells, each with its digest."""
    files = files_behind(cells, page.parent)
    found = {path.relative_to(ROOT).as_posix(): digests.file(path) for path in files}
    found |= _common()
    code = "\n".join([*cells, *(p.read_text(encoding="utf-8") for p in files if p.suffix == ".py")])
    variables = set(re.findall(r"\bFOP_[A-Z_]+\b", code)) - {"FOP_PROFILE", "FOP_CACHE"}
    if any(path.is_relative_to(ROOT / "fop_torch") for path in files):
        variables.add("FOP_DATA")
        found["book/results"] = _sha(digests.tree(ROOT / "book" / "results"))
        found["downloads"] = _sha(downloads(digests))
    for name in sorted(variables):
        value = os.environ.get(name, "")
        held = digests.tree(Path(value)) if value and Path(value).exists() else value
        found[name] = _sha(held)
    return found


def cache_folder() -> Path:
    """Where `fop_torch.data` keeps what it downloads; asking that would take as long as importing torch."""
    return Path(os.environ.get("FOP_CACHE") or "~/.cache/fop").expanduser()


def downloads(digests: Digests) -> dict[str, str]:
    """SHA-256 of the downloaded files. What a build makes of them itself, decoded images and locks, doesn't count."""
    found = digests.tree(cache_folder())
    return {name: sha for name, sha in found.items() if Path(name).parts[0] != "decoded" and Path(name).name != "lock"}


def code_cells(text: str, path: Path, config: Any = None) -> list[str]:
    """The code cells of a page; none if it is not a notebook."""
    if not is_myst_markdown_notebook(text):
        return []
    notebook = read_myst_markdown_notebook(text, config=config, path=path)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def with_key(text: str, key: str) -> str:
    """The page with its key in the front matter, line numbers unchanged."""
    front = FRONT.match(text)
    if not front:
        raise ValueError("expected a front matter between two lines of ---")
    fields = yaml.safe_load(front[1])
    fields.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3"})["fop_key"] = key
    # JSON is YAML, and fits on one line; empty lines keep the page's length.
    padding = "\n" * front[1].count("\n")
    return f"---\n{json.dumps(fields, default=str)}{padding}---\n{text[front.end() :]}"


# ---------------------------------------------------------------------------------------
# Events


def _look(app: Sphinx, docname: str, text: str) -> dict[str, str] | None:
    path = Path(app.env.doc2path(docname))
    if not is_myst_markdown_notebook(text):
        return None
    cells = code_cells(text, path, app.env.myst_config)
    return {"page": docname, "code": _sha(cells), **dependencies(cells, path, app.fop_digests)}


def begin(app: Sphinx) -> None:
    """Open the store of digests; forget what an earlier build in this process found."""
    for remembered in (module_files, find_module, _data_files, _common):
        remembered.cache_clear()
    app.fop_digests = Digests(Path(app.outdir).parent / "digests.json")
    if not hasattr(app.env, "fop_pages"):
        app.env.fop_pages = {}
    app.fop_why = {}


def outdated(app: Sphinx, env, added, changed, removed) -> list[str]:
    """Pages whose numbers depend on something that has changed."""
    found = []
    for docname, before in env.fop_pages.items():
        path = Path(env.doc2path(docname))
        if docname in removed or not path.exists():
            continue
        now = _look(app, docname, path.read_text(encoding="utf-8")) or {}
        if now != before:
            found.append(docname)
            names = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
            app.fop_why[docname] = ["its code" if name == "code" else name for name in names]
    return found


def stamp(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put the page's key where the notebook cache looks."""
    facts = _look(app, docname, content[0])
    if facts is not None:
        content[0] = with_key(content[0], _sha(facts))
        app.env.fop_pages[docname] = facts


def forget(app: Sphinx, env, docname: str) -> None:
    """Drop a page that is gone or about to be read anew."""
    env.fop_pages.pop(docname, None)


def end(app: Sphinx, error: Exception | None) -> None:
    """Keep the digests of large files for the next build."""
    app.fop_digests.save()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the events; called by Sphinx."""
    # This build and its kernels import the packages of this checkout, whatever else is installed.
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    app.connect("builder-inited", begin)
    app.connect("env-get-outdated", outdated)
    app.connect("env-purge-doc", forget)
    # Last of all, so that the key covers the text that is executed.
    app.connect("source-read", stamp, priority=900)
    app.connect("build-finished", end, priority=300)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
