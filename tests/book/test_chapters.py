"""The form of the chapters: what a reader may expect of each of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from statistics import median

import pytest
import yaml
from myst_nb.core.read import read_myst_markdown_notebook

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
CHAPTERS = sorted(path for folder in ("theory", "experiments") for path in (BOOK / folder).glob("*.md"))
CHAPTERS += [BOOK / "optimizer" / "using.md"]
PAGES = sorted(path for path in BOOK.rglob("*.md") if "results" not in path.parts and "_build" not in path.parts)
#: Options of a page that would let a failed cell pass, or keep cells from running.
FORBIDDEN = ("raises-exception", "skip-execution", "allow_errors", "execution_mode", "execution_excludepatterns")
#: Columns of code that a page shows without scrolling, at the width of a laptop's screen.
WIDEST = 88


def notebook(path: Path):
    return read_myst_markdown_notebook(path.read_text(encoding="utf-8"), path=path)


def code_cells(path: Path) -> list:
    return [cell for cell in notebook(path).cells if cell.cell_type == "code"]


def _name(path: Path) -> str:
    return path.relative_to(BOOK).with_suffix("").as_posix()


every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=_name)


def test_there_are_chapters() -> None:
    assert len(CHAPTERS) >= 9


def test_every_page_is_in_the_table_of_contents_once() -> None:
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"]] + [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert sorted(listed) == sorted(map(_name, PAGES))


@every_chapter
def test_cells_are_few_and_short(chapter) -> None:
    lines = [len(cell.source.strip().splitlines()) for cell in code_cells(chapter)]
    assert 1 <= len(lines) <= 20
    assert max(lines) <= 30
    assert median(lines) <= 12


@every_chapter
def test_lines_of_code_fit_their_box(chapter) -> None:
    """A longer line is cut off on the page, and must be scrolled to be read."""
    text = chapter.read_text(encoding="utf-8").splitlines()
    wide = [line for cell in code_cells(chapter) for line in cell.source.splitlines() if len(line) > WIDEST]
    where = [f"{chapter.name}:{text.index(line) + 1}: {len(line)} columns: {line}" for line in wide]
    assert not where, f"break what is wider than {WIDEST} columns:\n" + "\n".join(where)


@every_chapter
def test_no_cell_may_fail_and_every_cell_runs(chapter) -> None:
    text = chapter.read_text(encoding="utf-8")
    assert [word for word in FORBIDDEN if word in text] == []
    # A code cell inside another directive would not be executed.
    assert len(re.findall(r"^\s*[`:~]{3,}\{code-cell\}", text, re.M)) == len(code_cells(chapter))


@every_chapter
def test_figures_have_caption_name_and_alt_text(chapter) -> None:
    figures = 0
    for cell in code_cells(chapter):
        draws = any(word in cell.source for word in ("plt.subplots", "plt.figure", "plt.show", ".savefig"))
        given = cell.metadata.get("mystnb", {})
        if not draws and "figure" not in given:
            continue
        figures += 1
        figure = given.get("figure", {})
        assert figure.get("caption", "").strip(), cell.source
        assert figure.get("name", "").startswith("fig-"), cell.source
        assert len(given.get("image", {}).get("alt", "").split()) >= 8, "say what is seen in the figure"
        assert "set_title" not in cell.source, "the caption says it"
        assert "suptitle" not in cell.source, "the caption says it"
    assert figures >= 1


@every_chapter
def test_prose_has_the_length_of_a_chapter(chapter) -> None:
    """1,200 to 2,000 words, give or take a tenth: so much depends on how formulas are counted."""
    words = sum(len(cell.source.split()) for cell in notebook(chapter).cells if cell.cell_type == "markdown")
    assert 1080 <= words <= 2200, f"{words} words"


@every_chapter
def test_only_our_call_outs_are_used(chapter) -> None:
    allowed = {"code-cell", "paper-says", "verdict", "caution", "figure", "math", "list-table", "table"}
    used = re.findall(r"^\s*[`:]{3,}\{([\w:-]+)\}", chapter.read_text(encoding="utf-8"), re.M)
    assert [name for name in used if name not in allowed and not name.startswith("prf:")] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_cited_keys_are_in_the_bibliography(page) -> None:
    keys = re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.M)
    cited = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text(encoding="utf-8"))
    assert [key for group in cited for key in group.split(",") if key.strip() not in keys] == []


def test_bibliography_keys_are_an_author_and_a_year() -> None:
    keys = re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.M)
    assert len(keys) == len(set(keys))
    assert [key for key in keys if not re.fullmatch(r"[a-z]+\d{4}[a-z]?", key)] == []


@every_chapter
def test_cells_parse(chapter) -> None:
    """Magic lines would hide from the page's key what it imports."""
    for cell in code_cells(chapter):
        ast.parse(cell.source)
