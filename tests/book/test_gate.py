"""The build of the book is a gate: each fault is planted in a small copy, which must go red or show the new number."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.book.minibook import HEAD, ROOT, MiniBook


@pytest.fixture
def book(tmp_path) -> MiniBook:
    return MiniBook(tmp_path)


@pytest.fixture
def page(book) -> MiniBook:
    """The mini book reduced to its index: for faults that one page shows."""
    book.write("book/_toc.yml", "format: jb-book\nroot: index\n")
    book.write("book/index.md", f"{HEAD}# Index\n```{{code-cell}} ipython3\nprint('all is ' + 'well')\n```\n")
    return book


def test_a_warning_is_red_until_it_is_mended(page) -> None:
    page.replace("book/index.md", "# Index", "# Index\n[no such place](#nowhere)")
    for _ in range(2):
        status, said = page.build()
        assert status != 0
        assert "nowhere" in said
    page.replace("book/index.md", "#nowhere", "#index")
    assert page.built() == set(), "the cell's output was kept"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("# Index", "# Index\n{cite}`nobody1900`", "nobody1900"),
        ("print(", "import sys; print('careful', file=sys.stderr); print(", "stderr"),
        ("```{code-cell}", ":::{note}\n```{code-cell}", "code-cell"),
    ],
    ids=["unknown citation", "cell writes to stderr", "cell in a call-out"],
)
def test_more_warnings_that_are_red(page, old, new, complaint) -> None:
    page.replace("book/index.md", old, new)
    status, said = page.build()
    assert status != 0
    assert complaint in said


def test_a_failed_cell_is_red_until_it_is_mended(page) -> None:
    page.replace("book/index.md", "'well'", "undefined_name")
    for _ in range(2):
        status, output = page.build()
        assert status != 0
        assert "NameError" in output + (page.root / "_build/html/reports/index.err.log").read_text(encoding="utf-8")
        assert page.execution()["index"]["succeeded"] is False
    page.replace("book/index.md", "undefined_name", "'mended'")
    assert page.built() == {"index"}
    assert page.execution()["index"]["succeeded"] is True
    assert page.shows("index", "all is mended")


def test_a_failed_cell_is_red_without_asking_for_it(page) -> None:
    """By hand, without -W, a failed cell still fails the build."""
    page.command = [word for word in page.command if word not in ("-W", "-n", "--keep-going")]
    page.replace("book/index.md", "'well'", "undefined_name")
    assert page.build()[0] != 0
    assert page.build()[0] != 0


def test_a_build_that_was_killed_does_not_count(page) -> None:
    """Its warnings were lost, so every page is read again."""
    page.built()
    (page.root / "_build" / "unfinished").touch()
    page.replace("book/_toc.yml", "root: index\n", "root: index\nchapters: [{file: theory}]\n")
    assert page.built() == {"theory"}, "the index stays in the cache"
    assert not (page.root / "_build" / "unfinished").exists()


def test_a_page_that_left_the_book_is_removed(page) -> None:
    page.replace("book/_toc.yml", "root: index\n", "root: index\nchapters: [{file: theory}]\n")
    page.built()
    page.replace("book/_toc.yml", "chapters: [{file: theory}]\n", "")
    page.built()
    assert sorted(p.stem for p in (page.root / "_build/html").glob("*.html")) == ["genindex", "index", "search"]


def test_a_changed_dependency_shows_its_new_number_and_touches_no_other_page(book) -> None:
    assert book.built() == {"index", "theory", "torch"}
    assert book.shows("theory", "value-1")
    assert book.shows("torch", "data-1 result-1")
    assert book.built() == set(), "nothing changed"

    book.write("fop_theory/constants.py", "VALUE = 'value-2'\n")
    book.write("fop_theory/unused.py", "VALUE = 3\n")
    assert book.built() == {"theory"}
    assert book.shows("theory", "value-2")

    book.write("data/numbers.txt", "data-2")
    assert book.built() == {"torch"}
    assert book.shows("torch", "data-2 result-1")

    book.write("book/results/run.txt", "result-2")
    book.replace("book/theory.md", "inner.VALUE", "inner.VALUE.upper()")
    book.replace("book/index.md", "Words", "More words")
    assert book.built() == {"theory", "torch"}, "words do not run a page again"
    assert book.shows("torch", "data-2 result-2")
    assert book.shows("theory", "VALUE-2")
    assert book.shows("index", "More words")

    everything = {"index", "theory", "torch"}
    assert book.built(FOP_PROFILE="large") == everything
    assert book.shows("index", "profile large")
    book.write("constraints.txt", "nothing-that-exists==2.0\n")
    assert book.built(FOP_PROFILE="large") == everything
    assert book.shows("index", "nothing-that-exists==2.0")


def test_an_old_python_is_refused_in_one_sentence(tmp_path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    run = subprocess.run(["make", "book", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "Python 3.11 or newer is needed" in run.stderr
    assert not (tmp_path / ".venv").exists()
