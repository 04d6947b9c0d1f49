"""A book of three small pages beside small packages, built by the command of the real Makefile."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]

HEAD = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""
FILES = {
    "pyproject.toml": "",
    "constraints.txt": "nothing-that-exists==1.0\n",
    "fop_theory/__init__.py": "",
    "fop_theory/constants.py": "VALUE = 'value-1'\n",
    "fop_theory/inner.py": "from fop_theory.constants import VALUE\n",
    "fop_theory/unused.py": "",
    "fop_torch/__init__.py": "",
    "fop_torch/read.py": """
import os
from pathlib import Path
def first(folder): return sorted(Path(folder).iterdir())[0].read_text()
def data(): return first(os.environ["FOP_DATA"])
""",
    "data/numbers.txt": "data-1",
    "book/results/run.txt": "result-1",
    "book/_toc.yml": "format: jb-book\nroot: index\nchapters: [{file: theory}, {file: torch}]\n",
    "book/references.bib": "@misc{someone2000, author={Some One}, title={T}, year={2000}}\n",
    "book/index.md": f"""{HEAD}# Index
Words {{cite}}`someone2000`.
```{{bibliography}}
```
```{{code-cell}} ipython3
print("profile", __import__("os").environ.get("FOP_PROFILE", "none"))
print(open("../constraints.txt").read())
```
""",
    "book/theory.md": f"""{HEAD}# Theory
```{{code-cell}} ipython3
from fop_theory import inner
print(inner.VALUE)
```
""",
    "book/torch.md": f"""{HEAD}# Torch
```{{code-cell}} ipython3
from fop_torch.read import data, first
print(data(), first("results"))
```
""",
}


def book_command() -> list[str]:
    """The command with which `make book` builds the book, with the Python that runs now."""
    said = subprocess.run(["make", "-n", "book"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = next(line for line in said.splitlines() if "jupyter-book build" in line)
    words = shlex.split(line)
    return [str(Path(sys.executable).parent / Path(words[0]).name), *words[1:]]


class MiniBook:
    """A copy of the book's machinery in `root`, without the ledger, which has its own tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in FILES.items():
            self.write(name, text)
        shutil.copytree(ROOT / "book" / "_ext", root / "book" / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
        # The status page reads the ledger's evidence.
        shutil.copy(ROOT / "fop_theory" / "ledger.py", root / "fop_theory" / "ledger.py")
        config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        for needs_the_packages in ("ledger_pages", "reference_pages"):
            del config["sphinx"]["local_extensions"][needs_the_packages]
        self.write("_config.yml", yaml.safe_dump(config))
        folders = {"FOP_DATA": str(root / "data"), "FOP_CACHE": str(root / "cache"), "PYTHONPATH": str(root)}
        self.environment = {**os.environ, **folders}
        self.environment.pop("FOP_PROFILE", None)
        self.command = book_command()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        self.write(name, text.replace(old, new))

    def build(self, **environment: str) -> tuple[int, str]:
        """Build; the exit status and what was said."""
        run = subprocess.run(
            self.command,
            cwd=self.root,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return run.returncode, run.stdout + run.stderr

    def built(self, **environment: str) -> set[str]:
        """Build, expect green; the pages that were executed."""
        status, said = self.build(**environment)
        assert status == 0, said
        return set(re.findall(r"^([\w/-]+): executed in", said, re.M))

    def shows(self, page: str, text: str) -> bool:
        return text in (self.root / "_build" / "html" / f"{page}.html").read_text(encoding="utf-8")

    def execution(self) -> dict[str, dict]:
        return json.loads((self.root / "_build" / "html" / "execution.json").read_text(encoding="utf-8"))
