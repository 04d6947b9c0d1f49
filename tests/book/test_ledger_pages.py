"""The pages about the ledger: verdicts come from the evidence, links lead somewhere, rows can be found.

One small book is built three times: as it should be; with other evidence, its pages untouched;
with pages that name rows which do not exist.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import networkx as nx
import pytest
import yaml
from bs4 import BeautifulSoup, Tag

from fop_theory import ledger

ROOT = Path(__file__).parents[2]
MUTANTS = [
    {"in": "fop_theory.step.move", "replace": "G @ H.T", "by": "H @ G.T"},
    {"in": "fop_theory.step.move", "replace": "-lr", "by": "lr"},
]
JUDGED = {"chapter": "theory/step", "checked": "all shapes up to $6 \\times 6$"}
ROWS: list[dict[str, Any]] = [
    {
        "id": "eq-2", "place": "Section 2.1, Eq. (2)", "section": "2.1", "kind": "equation", "expected": "verified",
        "statement": r"\theta' = \theta - \epsilon M M^\top g", **JUDGED, "mutants": MUTANTS,
    },
    {
        "id": "eq-4", "place": "Section 2.1, Eq. (4)", "section": "2.1", "kind": "equation", "expected": "corrected",
        "statement": r"\nabla J = -\epsilon (g h^\top + h g^\top) M^{(t)}", "quote": "the gradient is then simply",
        "correction": "the last factor is $M^{(t-1)}$", "rests_on": ["eq-2"], **JUDGED, "mutants": MUTANTS,
    },
    {
        "id": "text-matches", "place": "Section 3", "section": "3", "kind": "sentence", "expected": "refuted",
        "statement": "The norm of $P$ is 1.", "quote": "the norm is one & stays", "witness": "norm", **JUDGED,
        "rests_on": ["eq-4"],
    },
    {
        "id": "text-descends", "place": "Section 3", "section": "3", "kind": "sentence", "expected": "verified-under",
        "statement": "Each step descends.", "assumption": "the step is short", **JUDGED,
    },
    {
        "id": "fig-1-steps", "place": "Figure 1, left", "section": "Figure 1", "kind": "number", "unit": "steps",
        "statement": "It takes 832 steps.", "value": 832, "expected": "reproduced", **JUDGED,
        "quote": "it takes 832 steps, Adam 6,221",
    },
    {
        "id": "text-later", "place": "Section 4", "section": "4", "kind": "sentence", "expected": "open",
        "statement": "It learns faster.", "plan": "the MNIST study",
    },
    {
        "id": "fig-1-adam", "place": "Figure 1, left", "section": "Figure 1", "kind": "number", "expected": "open",
        "statement": "Adam takes $6221$ steps.", "quote": "it takes 832 steps, Adam 6,221", "plan": "the toy study",
    },
    {
        "id": "ours-rate", "place": "Corrected Theorem 2", "section": "A.3", "kind": "theorem", "origin": "ours",
        "statement": "The rate is sharp.", "expected": "verified", **JUDGED,
    },
]  # fmt: skip
#: A checkout as small as the book: the code that its rows speak of.
CODE = {
    "fop_theory/step.py": '"""Steps."""\n\n\ndef move(G, H, lr):\n    return -lr * G @ H.T\n',
    "tests/test_step.py": "".join(f"# line {number}\n" for number in range(1, 9)),
}
WITNESS = "from fractions import Fraction\n\nassert Fraction(1, 2) != 1\nprint('1/2')\n"
CHAPTER = """\
# The step

It starts from [](#paper-eq-2) and goes on to [the gradient](#paper-eq-4).

```{paper-says} eq-4
```
```{verdict} eq-4
Here the *index* matters.
```
```{paper-says} eq-2 text-matches text-descends fig-1-steps fig-1-adam ours-rate
```
```{verdict} text-matches
```
```{verdict} fig-1-steps
```
"""
OTHER = """\
# Elsewhere

See [Eq. (4)](#paper-eq-4) and {claim}`the sentence <text-matches>`.
"""
CONF = """\
import json, sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [{root!r} + "/book/_ext", {root!r}]
import ledger_pages
from fop_theory import ledger

ledger_pages.ROOT = here
ledger.CLAIMS, ledger.WITNESSES = here / "claims.yml", here / "fop_theory" / "witnesses"
ledger.current_evidence = lambda root: json.loads((here / "evidence.json").read_text())
extensions = ["myst_nb", "sphinx-mathjax-offline", "ledger_pages"]
html_theme = "sphinx_book_theme"
html_title = project = "A small book"
myst_enable_extensions = ["dollarmath"]
"""


def evidence() -> dict[str, Any]:
    """What a run of the tests would have left: each mark at line 7 of one file."""
    marks = {
        "test_two": [("eq-2", "holds", "symbolic"), ("eq-4", "corrected", "symbolic")],
        "test_drawn": [("eq-2", "holds", "property"), ("eq-4", "corrected", "property")],
        "test_printed": [("eq-4", "fails", "exact"), ("text-matches", "fails", "exact")],
        "test_under": [("text-descends", "under", "exact"), ("ours-rate", "holds", "symbolic")],
        "test_steps": [("fig-1-steps", "value", "experiment"), ("ours-rate", "holds", "property")],
    }
    tests = [
        {
            "id": f"tests/test_step.py::{name}", "line": 7, "outcome": "passed", "seconds": 0.1, "claims": claims,
            "examples": 50 if name == "test_drawn" else 0,
        }
        for name, claims in marks.items()
    ]  # fmt: skip
    killed = [
        {**row, "number": n, "killed": True, "how": "AssertionError", "test": ""} for n, row in enumerate(MUTANTS)
    ]
    return {"tests": tests, "values": {"fig-1-steps": 832.0}, "mutants": {"eq-2": killed, "eq-4": killed}}


@dataclass
class SmallBook:
    """A book on disk that can be changed and built again."""

    folder: Path

    @property
    def html(self) -> Path:
        return self.folder / "_build"

    def page(self, name: str) -> BeautifulSoup:
        return BeautifulSoup((self.html / f"{name}.html").read_text(encoding="utf-8"), "html.parser")

    def build(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-b", "html"]
        folders = [str(self.folder), str(self.html)]
        return subprocess.run([*command, *folders], capture_output=True, text=True, check=False)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name.replace("__", "/").replace("_md", ".md")).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> SmallBook:
    """The small book, built from evidence that fits its rows."""
    folder = tmp_path_factory.mktemp("book")
    for name, code in {**CODE, "fop_theory/witnesses/norm.py": WITNESS, "theory/.keep": ""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
    (folder / "claims.yml").write_text(yaml.safe_dump(ROWS), encoding="utf-8")
    (folder / "evidence.json").write_text(json.dumps(evidence()), encoding="utf-8")
    (folder / "conf.py").write_text(CONF.format(root=str(ROOT)), encoding="utf-8")
    small = SmallBook(folder)
    pages = ("theory/step", "other", "ledger", "dependencies")
    small.write(
        theory__step_md=CHAPTER,
        other_md=OTHER,
        ledger_md="# Ledger\n\n```{ledger-table}\n```\n\n## Ours\n\n```{ledger-table} ours\n```\n",
        dependencies_md="# Graph\n\n```{ledger-graph}\n```\n\n## Fallen\n\n```{ledger-fallen}\n```\n",
        index_md="# Book\n\n```{ledger-counts}\n```\n\n```{ledger-verdicts}\n```\n\n```{toctree}\n"
        + "\n".join(pages)
        + "\n```\n",
    )
    built = small.build()
    assert built.returncode == 0, built.stderr
    return small


@pytest.fixture
def extension(monkeypatch):
    """A module of `book/_ext`."""
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    return importlib.import_module


def text(node: Tag | None) -> str:
    assert node is not None
    return " ".join(node.get_text(" ").split())


def test_the_paper_stands_apart_with_its_own_numbers(book) -> None:
    page = book.page("theory/step")
    part = page.find(id="paper-eq-4")
    assert "paper-says" in part.parent["class"]
    assert "Section 2.1, Eq. (4)" in text(part)
    assert "“the gradient is then simply”" in text(part)
    assert r"M^{(t)} \tag{4}" in part.find(class_="math").string
    assert page.find(id="paper-text-matches").find(class_="paper-quote").get_text() == "“the norm is one & stays”"
    ours = page.find(id="paper-ours-rate")
    assert "paper-says" not in ours.parent["class"], "our statement must not look like the paper's"
    assert text(ours).startswith("This book states")


def test_neighbours_share_a_quotation(book) -> None:
    """It is printed once, with a target for each of the statements that are read in it."""
    page = book.page("theory/step")
    steps, adam = page.find(id="paper-fig-1-steps"), page.find(id="paper-fig-1-adam")
    part = steps.find_parent(class_="says-part")
    assert adam.find_parent(class_="says-part") is part
    assert text(part).startswith("Paper says Figure 1, left “it takes 832 steps, Adam 6,221” Judged as It takes 832")
    assert text(part).count("Adam 6,221") == text(part).count("Figure 1, left") == 1
    assert steps.get_text() == "It takes 832 steps."
    assert adam.find(class_="math") is not None
    assert "says-part" in page.find(id="paper-text-descends")["class"], "without a quotation it stands alone"


def test_the_verdict_is_what_the_evidence_gives(book) -> None:
    page = book.page("theory/step")
    eq_4, norm, steps = page.find_all("aside", class_="verdict")
    assert "verdict-corrected" in eq_4["class"]
    assert text(eq_4.find(class_="badge")) == "✎ corrected"
    assert "Here the index matters." in text(eq_4.find(class_="verdict-body"))
    said = text(eq_4)
    for part in (
        "the last factor is",
        "2 of 2 noticed",
        "test_drawn property, 50 drawn examples: the correction holds",
    ):
        assert part in said
    assert "verdict-refuted" in norm["class"]
    assert norm.find("details", class_="witness").find("pre").get_text() == WITNESS
    assert "832 steps, asked to be equal" in text(steps)


def test_links_lead_somewhere(book) -> None:
    """Every link inside the book: the page exists and has the anchor."""
    anchors: dict[Path, set[str]] = {}
    seen = 0
    for path in sorted(book.html.rglob("*.html")):
        if "_static" in path.parts or path.name in ("search.html", "genindex.html"):
            continue
        for link in BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").find_all("a", href=True):
            url = urlsplit(link["href"])
            if url.scheme or link["href"] == "#":
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert target.exists(), (path.name, link["href"])
            if url.fragment and target.suffix == ".html":
                if target not in anchors:
                    there = BeautifulSoup(target.read_text(encoding="utf-8"), "html.parser")
                    anchors[target] = {node["id"] for node in there.find_all(id=True)}
                assert unquote(url.fragment) in anchors[target], (path.name, link["href"])
                seen += 1
    assert seen > 50
    row = book.page("ledger").find(id="claim-eq-4")
    hrefs = [link["href"] for link in row.find_all("a")]
    assert "code/tests/test_step.html#L7" in hrefs
    assert "code/fop_theory/step.html#L4" in hrefs
    assert "theory/step.html#paper-eq-4" in hrefs


def test_the_source_page_shows_the_file_line_by_line(book) -> None:
    page = book.page("code/tests/test_step")
    code = CODE["tests/test_step.py"].splitlines()
    for number in (1, 7, len(code)):
        assert page.find(id=f"L{number}").get_text().rstrip("\n") == code[number - 1]
    assert "Eq. (4) corrected" in text(page.find(class_="source-claims"))


def test_the_ledger_counts_the_papers_claims_and_ours_apart(book) -> None:
    page = book.page("ledger")
    paper, ours = page.find_all(class_="ledger")
    assert [row["id"] for row in ours.find_all(class_="ledger-row")] == ["claim-ours-rate"]
    chips = {chip["data-verdict"]: int(chip.b.string) for chip in paper.find_all("button", class_="badge")}
    assert chips == {"verified": 1, "verified-under": 1, "corrected": 1, "refuted": 1, "reproduced": 1, "open": 2}
    assert "5 of the paper’s 7 claims are judged" in text(book.page("index").find(class_="ledger-counts"))


def test_ledger_json_is_the_whole_ledger(book) -> None:
    found = json.loads((book.html / "ledger.json").read_text(encoding="utf-8"))
    judged = ledger.judge(list(map(ledger._claim, ROWS)), evidence())
    assert {row["id"]: row["verdict"] for row in found["claims"]} == {row.claim.id: row.verdict for row in judged}
    assert found["counts"] == ledger.counts(judged)
    assert next(row for row in found["claims"] if row["id"] == "eq-2")["falls_with_it"] == ["eq-4", "text-matches"]


def test_the_graph_is_drawn_and_told(book) -> None:
    page = book.page("dependencies")
    nodes = {node["data-claim"]: node for node in page.find("svg").find_all("a", class_="node")}
    assert set(nodes) == {"eq-2", "eq-4", "text-matches"}
    assert nodes["eq-2"]["data-falls"].split() == ["eq-4", "text-matches"]
    assert nodes["eq-4"]["href"] == "ledger.html#claim-eq-4"
    assert "verdict-corrected" in nodes["eq-4"]["class"]
    assert nodes["eq-4"].title.string == "Eq. (4) (Section 2.1, Eq. (4)), corrected: with it would fall 1 claim."
    assert text(page.find("ul", class_="fallen")) == "✎ Eq. (4) corrected carries ✗ text-matches refuted"


def test_boxes_of_the_graph_keep_apart(extension) -> None:
    """On a graph with many crossings: no two boxes touch, and every edge leads from left to right."""
    graph = nx.DiGraph(edge for edge in nx.gnp_random_graph(60, 0.06, seed=1, directed=True).edges if edge[0] < edge[1])
    graph = nx.relabel_nodes(graph, str)
    drawn = extension("claim_graph").layout(graph, lambda node: 60 + 3 * int(node))
    boxes = list(drawn.boxes.values())
    assert len(boxes) == len(graph)
    for number, a in enumerate(boxes):
        assert a.x >= 0
        assert a.x + a.width <= drawn.width + 1e-9
        for b in boxes[:number]:
            beside = a.x + a.width < b.x or b.x + b.width < a.x
            assert beside or abs(a.y - b.y) > extension("claim_graph").HEIGHT
    for points in drawn.edges.values():
        assert all(a[0] <= b[0] for a, b in pairwise(points))
    reached = nx.DiGraph(drawn.edges.keys())
    assert all(nx.has_path(reached, a, b) for a, b in graph.edges)


def luminance(color: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_legible(theme) -> None:
    """Contrast of at least 4.5 to 1, and the words never depend on the colour."""
    style = (ROOT / "book" / "_static" / "fop.css").read_text(encoding="utf-8")
    block = re.search(rf'html\[data-theme="{theme}"\] \{{(.*?)\n\}}', style, re.S)
    assert block
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block[1]))
    background = {"light": "#ffffff", "dark": "#121212"}[theme]
    pairs = [(verdict, f"{verdict}-wash") for verdict in ledger.VERDICTS] + [("v-paper-ink", "v-paper")]
    for ink, wash in pairs:
        for ground in (colors[wash], background):
            high, low = sorted((luminance(colors[ink]), luminance(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, driven as a reader would."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine to try the script in")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(params=[1440, 390])
def tab(browser, request):
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    assert faults == []
    page.close()


def shown(tab) -> list[str]:
    return tab.eval_on_selector_all(".ledger-row", "rows => rows.filter(row => !row.hidden).map(row => row.id)")


def test_rows_can_be_found(book, tab) -> None:
    everything = [f"claim-{row['id']}" for row in ROWS]
    tab.goto((book.html / "ledger.html").as_uri())
    assert shown(tab) == everything
    tab.click("#verdict-corrected")
    assert shown(tab) == ["claim-eq-4"]
    assert tab.inner_text(".ledger-shown") == "1 of 7 claims"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert shown(tab) == ["claim-eq-4", "claim-text-matches"]
    tab.click(".ledger-clear")
    tab.fill("[data-filter=text]", "norm TEST_printed")
    assert shown(tab) == ["claim-text-matches"]
    tab.fill("[data-filter=text]", "")
    tab.select_option("[data-filter=section]", "3")
    assert shown(tab) == ["claim-text-matches", "claim-text-descends"]
    tab.click(".ledger-clear")
    tab.select_option("[data-filter=sort]", "verdict")
    order = [tab.get_attribute(f"#{name}", "data-verdict") for name in shown(tab)[:7]]
    assert order == sorted(order, key=list(ledger.VERDICTS).index)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_link_to_a_row_opens_it_and_a_link_to_a_verdict_filters(book, tab) -> None:
    tab.goto((book.html / "ledger.html").as_uri() + "#claim-text-matches")
    assert tab.evaluate("document.getElementById('claim-text-matches').open")
    assert not tab.evaluate("document.getElementById('claim-eq-4').open")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.goto((book.html / "index.html").as_uri())
    tab.click(".counts-chips .verdict-refuted")
    # The click starts a load; the row's filter is in its address.
    tab.wait_for_url("**/ledger.html*")
    assert shown(tab) == ["claim-text-matches"]


def test_the_graph_lights_what_falls(book, tab) -> None:
    tab.goto((book.html / "dependencies.html").as_uri())
    tab.focus("[data-claim=eq-4]")
    assert tab.eval_on_selector_all(".node.falls", "nodes => nodes.map(node => node.dataset.claim)") == [
        "eq-4",
        "text-matches",
    ]
    assert tab.inner_text(".claim-graph-said").endswith("with it would fall 1 claim.")


def test_other_evidence_makes_other_pages_and_a_red_build(book) -> None:
    """Nothing but the evidence changes: now Eq. (4) holds as printed."""
    before = {
        page: (book.html / ".doctrees" / f"{page}.doctree").stat().st_mtime_ns for page in ("other", "theory/step")
    }
    changed = evidence()
    for test in changed["tests"]:
        test["claims"] = [
            (name, "holds" if name == "eq-4" else shows, by)
            for name, shows, by in test["claims"]
        ]  # fmt: skip
    book.write(**{"evidence.json": json.dumps(changed)})
    built = book.build()
    assert built.returncode != 0
    assert "eq-4: expected: corrected, but the evidence gives verified" in built.stderr.splitlines()
    badge = book.page("theory/step").find("aside", class_="verdict").find(class_="badge")
    assert text(badge) == "✓ verified"
    after = {page: (book.html / ".doctrees" / f"{page}.doctree").stat().st_mtime_ns for page in before}
    assert after["theory/step"] > before["theory/step"]
    assert after["other"] == before["other"], "a page that shows nothing of this claim was read again"
    book.write(**{"evidence.json": json.dumps(evidence())})


def test_unknown_rows_and_repeated_quotations_are_named(book) -> None:
    faulty = "\n```{paper-says} eq-44\n```\n\n```{paper-says} eq-2\n```\n\nSee {claim}`eq-45`.\n"
    book.write(other_md=OTHER + faulty)
    built = book.build()
    assert built.returncode != 0
    lines = built.stderr.splitlines()
    assert [
        line for line in lines if "other.md:5: ERROR: {paper-says}: no row of claims.yml has the id 'eq-44'" in line
    ]
    assert [line for line in lines if "ERROR: {claim}: no row of claims.yml has the id 'eq-45'" in line]
    assert "eq-2: {paper-says} stands 2 times: other, theory/step" in lines
    assert "Traceback" not in built.stderr
    book.write(other_md=OTHER)
