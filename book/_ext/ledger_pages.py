"""The ledger in the book: what the paper says, what became of it, and on what evidence.

No verdict is typed on a page. Before a page is read, the verdicts are derived from the
evidence of a test run (`fop_theory.ledger`); the directives below print them. A page is
read again when what it shows of a claim has changed, and the build fails while a row's
evidence does not give the verdict that the row expects.

- `{paper-says} id …`: the paper's words (of a row of ours: our statement), and the target `paper-<id>`;
  neighbours with the same quotation share it.
- `{verdict} id`: the verdict, the evidence, and a body of ours.
- {claim}`id`: a small link to the claim's row.
- `{ledger-table}`, `{ledger-table} ours`, `{ledger-counts}`, `{ledger-graph}`, `{ledger-fallen}`, `{ledger-verdicts}`:
  the pages about the ledger itself.
"""

# ruff: noqa: D102  (`run`, `resolve_xref` and their like are Sphinx's: its documentation says what they do)
from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import claim_graph
import networkx as nx
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains import Domain
from sphinx.errors import SphinxError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.nodes import make_refnode

from fop_theory import ledger
from fop_theory.ledger import Claim, Judged

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
STATIC = Path(__file__).parents[1] / "_static"
#: A verdict is told by its word and its symbol; the colour only repeats it.
SYMBOLS = {
    "verified": "✓",
    "verified-under": "⊢",
    "corrected": "✎",
    "refuted": "✗",
    "reproduced": "=",
    "partly-reproduced": "≈",
    "not-reproduced": "≠",
    "inconclusive": "?",
    "not-checkable": "–",
    "open": "○",
}
#: What a test showed, in the words of a row.
SHOWN = {
    "holds": "holds as printed",
    "fails": "fails as printed",
    "corrected": "the correction holds",
    "under": "holds under the assumption",
    "value": "measures the value",
    "matches": "agrees with the paper",
    "differs": "differs from the paper",
    "undecided": "does not decide it",
}


class LedgerPagesError(SphinxError):
    """Rows and evidence part, or a page names a row that does not exist."""

    category = "Ledger"


# ---------------------------------------------------------------------------------------
# What one build knows


class Book:
    """The judged rows of this build and what its pages need to know about them."""

    def __init__(self, judged: list[Judged], evidence: dict[str, Any]) -> None:
        claims = [row.claim for row in judged]
        self.rows = {row.claim.id: row for row in judged}
        self.mutants: dict[str, list[dict[str, Any]]] = evidence["mutants"]
        self.tests = {shown.test.split("[")[0] for row in judged for shown in row.evidence}
        self.falls = {claim.id: ledger.falls_with(claims, claim.id) for claim in claims}
        self.instead = {claim.id: ledger.in_place_of(claims, claim.id) for claim in claims}
        tails = [_tail(claim) for claim in claims]
        self.labels = {
            claim.id: tail if tail and tails.count(tail) == 1 else claim.id
            for claim, tail in zip(claims, tails, strict=True)
        }
        self.sources = sorted(path for path in self._sources() if (ROOT / path).exists())
        own = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
        code = {path: hashlib.sha256((ROOT / path).read_bytes()).hexdigest() for path in self.sources}
        texts = {row.claim.id: self._as_text(row) for row in judged}
        self.digests = {
            name: hashlib.sha256(own + text.encode() + (witness(self.rows[name].claim) or "").encode()).hexdigest()
            for name, text in texts.items()
        }
        self.digests["*"] = hashlib.sha256(json.dumps([self.digests, code]).encode()).hexdigest()

    def _as_text(self, row: Judged) -> str:
        name = row.claim.id
        links = [self.labels[name], self.falls[name], self.instead[name]]
        return json.dumps([asdict(row), *links, self.mutants.get(name)], sort_keys=True)

    def _sources(self) -> set[str]:
        found = {test.split("::")[0] for test in self.tests}
        for row in self.rows.values():
            found |= {module_path(mutant.target) for mutant in row.claim.mutants}
            if row.claim.witness:
                found.add(witness_path(row.claim))
        return found


def _tail(claim: Claim) -> str:
    """The numbered object that a row is about: "Eq. (4)" of "Section 2.1, Eq. (4)"."""
    found = re.search(r"(?:^|, )(Eq\. \(\w+\)|Algorithm \d+|Theorem \d+|Figure [A-Z.]*\d+)$", claim.place)
    return (
        found[1]
        if found and claim.origin == "paper" and claim.kind in ("equation", "algorithm", "theorem", "figure")
        else ""
    )


def place(claim: Claim) -> str:
    """Where a statement stands; rows of ours may say "Ours, the gauge", and their boxes say "ours" already."""
    words = claim.place.removeprefix("Ours, ") if claim.origin == "ours" else claim.place
    return words[0].upper() + words[1:]


def witness_path(claim: Claim) -> str:
    """Path of a row's witness inside the repository."""
    return f"fop_theory/witnesses/{claim.witness}.py"


def witness(claim: Claim) -> str:
    """Code of a row's witness, or nothing."""
    return (ledger.WITNESSES / f"{claim.witness}.py").read_text(encoding="utf-8") if claim.witness else ""


def module_path(dotted: str) -> str:
    """Path of the file in which `package.module.function` stands."""
    parts = dotted.split(".")
    files = ["/".join(parts[:cut]) + ".py" for cut in range(len(parts) - 1, 0, -1)]
    return next((path for path in files if (ROOT / path).exists()), files[0])


@cache
def _definitions(path: str) -> dict[str, int]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name: node.lineno for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def _line(path: str, name: str) -> int:
    return _definitions(path).get(name, 1) if (ROOT / path).exists() else 1


def page_of_source(path: str) -> str:
    """Name of the page that shows a source file."""
    return "code/" + path.removesuffix(".py")


# ---------------------------------------------------------------------------------------
# Nodes


class tag(nodes.General, nodes.TextElement):  # noqa: N801 (docutils names its nodes so)
    """One HTML element around docutils nodes: formulas and references inside it work as everywhere."""


class drawing(nodes.General, nodes.Element):  # noqa: N801
    """The place of the graph; it is drawn when the page is written, since only then are its links known."""


def el(name: str, *children: nodes.Node | str | None, classes: str = "", ids: str = "", **attributes: Any) -> tag:
    """Build a `tag`; underscores in attribute names become hyphens."""
    node = tag("", "", tag=name, attributes={key.replace("_", "-"): value for key, value in attributes.items()})
    node["classes"] += classes.split()
    node["ids"] += ids.split()
    node += [nodes.Text(child) if isinstance(child, str) else child for child in children if child is not None]
    return node


def _visit_tag(translator, node: tag) -> None:
    translator.body.append(translator.starttag(node, node["tag"], "", **node["attributes"]))


def _depart_tag(translator, node: tag) -> None:
    translator.body.append(f"</{node['tag']}>")


def drawn_graph(book: Book) -> tuple[nx.DiGraph, dict[str, str]]:
    """The graph to draw, in which a figure or table stands for its parts, and which row stands for which."""
    claims = [row.claim for row in book.rows.values()]
    whole = {part: claim.id for claim in claims for part in claim.parts}
    graph = nx.relabel_nodes(ledger.dependencies(claims), whole)
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    if not nx.is_directed_acyclic_graph(graph):
        graph, whole = ledger.dependencies(claims), {}
    graph.remove_nodes_from(list(nx.isolates(graph)))
    return graph, whole


def _visit_drawing(translator, node: drawing) -> None:
    builder = translator.builder
    book: Book = builder.app.fop_ledger
    where = builder.env.get_domain("ledger").rows
    here = builder.current_docname
    graph, whole = drawn_graph(book)
    looks = {}
    for name in graph:
        row, falls = book.rows[name], book.falls[name]
        count = f"{len(falls)} claim{'s' * (len(falls) > 1)}"
        much = f"with it would fall {count}" if falls else "nothing rests on it"
        href = f"{builder.get_relative_uri(here, where[name]) if name in where else ''}#claim-{name}"
        looks[name] = claim_graph.Look(
            label=book.labels[name],
            symbol=SYMBOLS[row.verdict],
            verdict=row.verdict,
            title=f"{book.labels[name]} ({place(row.claim)}), {row.verdict}: {much}.",
            href=href,
            falls=sorted({whole.get(other, other) for other in falls}),
        )
    picture = claim_graph.svg(graph, looks, "Claims, from left to right: each leads to the claims that rest on it")
    translator.body += [
        '<p class="claim-graph-said" aria-live="polite" hidden></p>\n',
        '<div class="claim-graph-frame" tabindex="0" role="region" aria-label="Graph of the claims">',
        picture,
        "</div>\n",
    ]
    raise nodes.SkipNode


def _skip(translator, node: nodes.Node) -> None:
    pass


def inline(text: str) -> list[nodes.Node]:
    """Text of a row as nodes: `$…$` is a formula, backticks are code, the rest stands as it is."""
    found: list[nodes.Node] = []
    for plain, formula, code in re.findall(r"((?:[^$`]|\\\$)+)|\$([^$]+)\$|`([^`]+)`", text):
        if plain:
            found.append(nodes.Text(plain))
        elif formula:
            found.append(nodes.math(formula, formula))
        else:
            found.append(nodes.literal(code, code))
    return found


def _is_formula(claim: Claim) -> bool:
    return claim.kind in ledger.FORMULA_KINDS and "$" not in claim.statement


def _lines(latex: str) -> str:
    """Give a formula of several lines the environment that LaTeX asks for."""
    bare = r"\\" in latex and r"\begin" not in latex
    return rf"\begin{{aligned}}{latex}\end{{aligned}}" if bare else latex


def statement(claim: Claim) -> nodes.Node:
    """A row's statement: a formula with the paper's own number, or the sentence in which we read the paper's words."""
    if not _is_formula(claim):
        read = el("span", "Judged as", classes="reading") if claim.origin == "paper" else None
        return el("p", read, *inline(claim.statement), classes="says-statement")
    number = re.fullmatch(r"Eq\. \((\w+)\)", _tail(claim))
    own = rf" \tag{{{number[1]}}}" if number and r"\tag" not in claim.statement else ""
    latex = rf"\[{_lines(claim.statement)}{own}\]"
    return nodes.math_block(latex, latex, nowrap=True, number=None, label=None)


def badge(verdict: str, *, compact: bool = False, said: str = "") -> tag:
    """The verdict as a symbol and a word; pointed at, it says what it means, of a row or in general."""
    symbol = el("span", SYMBOLS[verdict], classes="symbol", aria_hidden="true")
    word = el("span", verdict, classes="word")
    kind = "badge badge-compact" if compact else "badge"
    return el("span", symbol, word, classes=f"{kind} verdict-{verdict}", title=said or ledger.VERDICTS[verdict])


def refer(kind: str, target: str, *children: nodes.Node | str, classes: str = "") -> pending_xref:
    """A reference that the domain resolves once every page is known."""
    inner = el("span", *children, classes=classes)
    return pending_xref("", inner, refdomain="ledger", reftype=kind, reftarget=target, refexplicit=True, refwarn=True)


def claim_link(book: Book, name: str, text: str = "") -> pending_xref:
    """Link to a row, with its verdict."""
    verdict = book.rows[name].verdict
    symbol = el("span", SYMBOLS[verdict], classes="symbol", aria_hidden="true")
    label = el("span", text or book.labels[name], classes="label")
    word = el("span", verdict, classes="word")
    return refer("row", name, symbol, label, " ", word, classes=f"claim-link verdict-{verdict}")


def source_link(path: str, line: int, text: str) -> nodes.Node:
    """Link to a line of a source page."""
    return refer("source", f"{path}#L{line}", nodes.literal(text, text), classes="source-link")


# ---------------------------------------------------------------------------------------
# Evidence as a list of terms


def _number(value: float) -> str:
    return f"{value:,.15g}"


def _tests(row: Judged) -> Iterator[nodes.Node]:
    """One item a test function; its parametrised cases are counted."""
    grouped: dict[tuple[str, int, str, str], list[ledger.Shown]] = {}
    for shown in row.evidence:
        grouped.setdefault((shown.test.split("[")[0], shown.line, shown.shows, shown.by), []).append(shown)
    for (test, line, shows, by), cases in grouped.items():
        path, _, name = test.partition("::")
        much = f", {len(cases)} cases" if len(cases) > 1 else ""
        much += f", {cases[0].examples} drawn examples" if cases[0].examples else ""
        said = SHOWN[shows].replace("as printed", "as stated") if row.claim.origin == "ours" else SHOWN[shows]
        yield el("li", source_link(path, line, name.replace("::", ".")), f" {by}{much}: {said}")


def _mutants(book: Book, row: Judged) -> Iterator[nodes.Node]:
    for fault in book.mutants.get(row.claim.id, ()):
        path = module_path(fault["in"])
        function = fault["in"].split(".")[-1]
        ends = [nodes.literal(text, text) if text else "nothing" for text in (fault["replace"], fault["by"])]
        found = "noticed" if fault["killed"] else "not noticed"
        yield el("li", source_link(path, _line(path, function), function), ": ", ends[0], " → ", ends[1], f", {found}")


def terms(book: Book, row: Judged, *, wide: bool) -> tag:
    """What is known of a claim, as a list of terms; `wide` adds what the ledger's rows show beyond a chapter's."""
    claim = row.claim
    listed = el("dl", classes="evidence")

    def add(term: str, *said: nodes.Node | str | None) -> None:
        if any(part is not None and part != "" for part in said):
            listed.extend([el("dt", term), el("dd", *said)])

    if wide and claim.quote:
        add("The paper says", el("q", *inline(claim.quote), classes="paper-quote"))
    add("Correction", *inline(claim.correction))
    add("Assumption", *inline(claim.assumption))
    add("Why", *inline(claim.why))
    add("To be judged by", *inline(claim.plan) if row.verdict == "open" else ())
    add("Checked", *inline(claim.checked) if row.verdict not in ("open", "not-checkable") else ())
    if claim.value is not None:
        unit = f" {claim.unit}" if claim.unit else ""
        add("Paper", f"{_number(claim.value)}{unit}")
        if row.ours is not None:
            within = f", asked to agree within {_number(claim.tolerance)}" if claim.tolerance else ", asked to be equal"
            add("Ours", f"{_number(row.ours)}{unit}{within}")
    if row.evidence:
        add("Evidence", el("ul", *_tests(row)))
    if row.planted:
        summary = el("summary", f"{row.killed} of {row.planted} noticed by these tests")
        add("Planted faults", el("details", summary, el("ul", *_mutants(book, row))))
    if wide:
        for term, names in (
            ("Made of", claim.parts), ("Rests on", claim.rests_on), ("Falls with it", book.falls[claim.id]),
            ("In place of", claim.in_place_of), ("In its place", book.instead[claim.id]),
        ):  # fmt: skip
            add(term, *(el("span", claim_link(book, name), " ") for name in names))
        if claim.witness:
            add("Witness", source_link(witness_path(claim), 1, f"{claim.witness}.py"))
        if claim.chapter:
            add("In the book", refer("paper", claim.id, place(claim)))
    return listed


# ---------------------------------------------------------------------------------------
# Directives and role


class LedgerDirective(SphinxDirective):
    """What the directives share: the judged rows, and a note of what a page showed."""

    @property
    def book(self) -> Book:
        return self.env.app.fop_ledger

    def known(self, names: Iterable[str]) -> list[str]:
        """Note that this page shows these rows; complain of those that do not exist."""
        return note(self.env, names, f"{{{self.name}}}", self.get_location())


def note(env, names: Iterable[str], who: str, location: str) -> list[str]:
    """Remember what `env.docname` showed, so that it is read again when that changes."""
    book, seen = env.app.fop_ledger, env.get_domain("ledger").seen.setdefault(env.docname, {})
    good = []
    for name in names:
        seen[name] = book.digests.get(name, "")
        if name in book.digests:
            good.append(name)
        else:
            logger.error("%s: no row of claims.yml has the id %r", who, name, location=location)
    return good


#: The verdicts on a statement of ours that say that it is so.
HELD = ("verified", "verified-under", "reproduced")


class PaperSays(LedgerDirective):
    """The paper's words, visibly not ours; a row of ours gets a box that says so."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        names = self.known(self.arguments[0].split())
        return [self.box(kicker, list(group)) for kicker, group in groupby(names, self.kicker)]

    def kicker(self, name: str) -> str:
        """Who says it; a statement of ours that did not turn out so was a question."""
        row = self.book.rows[name]
        if row.claim.origin == "paper":
            return "Paper says"
        return "This book states" if row.verdict in HELD else "This book asks"

    def box(self, kicker: str, names: list[str]) -> nodes.Node:
        """What the paper says, or what this book states: never in the same box."""
        kind = "paper-says" if kicker == "Paper says" else "book-states"
        box = el("aside", classes=f"says {kind}", aria_label=kicker)
        claims = [self.book.rows[name].claim for name in names]
        for _, same in groupby(claims, lambda claim: claim.quote or claim.id):
            box += self.part(kicker, list(same))
        return box

    def part(self, kicker: str, claims: list[Claim]) -> nodes.Node:
        """One quotation, printed once, and every statement that we read in it."""
        where = " · ".join(dict.fromkeys(place(claim) for claim in claims))
        head = el("p", el("span", kicker, classes="kicker"), el("span", where, classes="place"), classes="says-head")
        part, quote = el("div", head, classes="says-part"), claims[0].quote
        if quote:
            part += el("p", "“", *inline(quote), "”", classes="paper-quote")
        for claim in claims:
            self.env.get_domain("ledger").note_paper(claim.id, self.env.docname)
        if len(claims) == 1:
            part["ids"].append(f"paper-{claims[0].id}")
            part += [statement(claim) for claim in claims if claim.statement != quote]
        elif any(_is_formula(claim) for claim in claims):
            part += [el("div", statement(claim), ids=f"paper-{claim.id}") for claim in claims]
        else:
            read = (el("li", *inline(claim.statement), ids=f"paper-{claim.id}") for claim in claims)
            part += el("p", el("span", "Judged as", classes="reading"), classes="says-statement")
            part += el("ul", *read, classes="says-readings")
        return part


class Verdict(LedgerDirective):
    """The verdict that the evidence gives, the evidence, and what we say about it."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        names = self.known([self.arguments[0]])
        if not names:
            return []
        row = self.book.rows[names[0]]
        claim, verdict = row.claim, row.verdict
        head = el(
            "p",
            el("span", "Verdict", classes="kicker"),
            el("span", _tail(claim) or place(claim), classes="place"),
            badge(verdict, said=ledger.meaning(claim, verdict)),
            el("span", ledger.meaning(claim, verdict), classes="meaning"),
            refer("row", claim.id, "ledger row"),
            classes="verdict-head",
        )
        label = f"Verdict on {place(claim)}: {verdict}"
        box = el("aside", head, classes=f"verdict verdict-{verdict}", aria_label=label)
        body = self.parse_content_to_nodes() if self.content else []
        if body:
            box += el("div", *body, classes="verdict-body")
        box += terms(self.book, row, wide=False)
        if claim.witness:
            code = witness(claim)
            block = nodes.literal_block(code, code, language="python")
            lines = len(code.splitlines())
            summary = el(
                "summary", f"Witness: {lines} lines that run alone, ", nodes.literal("", f"{claim.witness}.py")
            )
            where = el("p", source_link(witness_path(claim), 1, witness_path(claim)))
            box += el("details", summary, block, where, classes="witness")
        return [box]


class LedgerTable(LedgerDirective):
    """Every row of one origin; the first table of a page carries the filters."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        origin = self.arguments[0] if self.arguments else "paper"
        if origin not in ("paper", "ours"):
            raise self.error(f"{{ledger-table}}: expected paper or ours, got {origin!r}")
        self.known(["*"])
        rows = [row for row in self.book.rows.values() if row.claim.origin == origin]
        domain = self.env.get_domain("ledger")
        domain.rows.update({row.claim.id: self.env.docname for row in rows})
        heads = ("Verdict", "Place", "Statement", "Faults")
        columns = el("div", *(el("span", head) for head in heads), classes="ledger-columns", aria_hidden="true")
        listed = el("div", columns, *(self.row(number, row) for number, row in enumerate(rows)), classes="ledger-rows")
        if origin == "ours":
            said = f"{len(rows)} statements of ours, judged in the same way and counted apart." if rows else "None yet."
            return [el("p", said), el("div", listed, classes="ledger ledger-ours")] if rows else [el("p", said)]
        return [el("div", self.chips(rows), self.controls(rows), listed, classes="ledger ledger-paper")]

    def chips(self, rows: list[Judged]) -> tag:
        """Counts per verdict; pressed, they filter."""
        box = el("div", classes="ledger-chips", role="group", aria_label="Filter by verdict")
        domain = self.env.get_domain("ledger")
        for verdict, count in ledger.counts(rows).items():
            domain.chips[verdict] = self.env.docname
            box += el(
                "button",
                *badge(verdict).children,
                el("b", str(count)),
                classes=f"badge verdict-{verdict}",
                ids=f"verdict-{verdict}",
                type="button",
                title=ledger.VERDICTS[verdict],
                disabled="disabled",
                data_verdict=verdict,
                aria_pressed="false",
            )
        return box

    def controls(self, rows: list[Judged]) -> tag:
        """Filters that need a script; hidden until it runs."""
        sections = list(dict.fromkeys(row.claim.section for row in rows))
        kinds = list(dict.fromkeys(row.claim.kind for row in rows))

        def choice(name: str, label: str, options: list[tuple[str, str]]) -> tag:
            chosen = el("select", *(el("option", text, value=value) for value, text in options), data_filter=name)
            return el("label", el("span", label), chosen)

        named = [(name, f"Section {name}" if re.match(r"[\dA]\.?\d*$", name) else name) for name in sections]
        orders = [("order", "order in the paper"), ("section", "section"), ("verdict", "verdict"), ("kind", "kind")]
        text = el("input", type="search", placeholder="words, ids, tests", data_filter="text")
        return el(
            "form",
            el("label", el("span", "Search"), text),
            choice("section", "Section", [("", "all"), *named]),
            choice("kind", "Kind", [("", "all"), *((kind, kind) for kind in kinds)]),
            choice("sort", "Sort by", orders),
            el("button", "Clear", type="reset", classes="ledger-clear"),
            el("p", f"{len(rows)} claims", classes="ledger-shown", aria_live="polite"),
            classes="ledger-controls",
            role="search",
            aria_label="Filter the claims",
            hidden="hidden",
        )

    def row(self, number: int, row: Judged) -> tag:
        """One claim: a line that opens to everything known about it."""
        claim = row.claim
        tail = _tail(claim)
        label, where = (tail, claim.place.removesuffix(tail).rstrip(", ")) if tail else (place(claim), "")
        where_it_stands = el(
            "span",
            el("span", label, classes="row-label"),
            el("span", " · ".join(filter(None, (where, claim.kind))), classes="row-where"),
            classes="row-place",
        )
        said = [nodes.math("", _lines(claim.statement))] if _is_formula(claim) else inline(claim.statement)
        how = "row-statement"
        if _is_formula(claim):
            how += " formula lines" if r"\begin{aligned}" in _lines(claim.statement) else " formula"
        faults = f"{row.killed}/{row.planted}" if row.planted else ""
        told = f"{row.killed} of {row.planted} planted faults were noticed" if faults else "no fault was planted"
        summary = el(
            "summary",
            badge(row.verdict, said=ledger.meaning(claim, row.verdict)),
            where_it_stands,
            el("span", *said, classes=how),
            el("span", faults, classes="row-faults", title=told),
        )
        words = [claim.id, claim.place, claim.kind, claim.statement, claim.quote, claim.checked, claim.correction]
        words += [claim.assumption, claim.why, claim.plan, row.verdict, *row.methods, *(s.test for s in row.evidence)]
        body = el("div", el("p", nodes.literal("", claim.id), classes="row-id"), terms(self.book, row, wide=True))
        body["classes"].append("row-body")
        return el(
            "details",
            summary,
            body,
            classes=f"ledger-row verdict-{row.verdict}",
            ids=f"claim-{claim.id}",
            data_order=str(number),
            data_section=claim.section,
            data_kind=claim.kind,
            data_verdict=row.verdict,
            data_text=" ".join(dict.fromkeys(" ".join(words).lower().split())),
        )


class LedgerCounts(LedgerDirective):
    """How many claims have which verdict, as a bar and as words."""

    def run(self) -> list[nodes.Node]:
        self.known(["*"])
        rows = [row for row in self.book.rows.values() if row.claim.origin == "paper"]
        counts = ledger.counts(rows)
        total, unchecked = sum(counts.values()), counts.get("not-checkable", 0)
        judged = total - unchecked - counts.get("open", 0)
        bar = el("div", classes="counts-bar", aria_hidden="true")
        chips = el("ul", classes="counts-chips")
        for verdict, count in counts.items():
            bar += el("span", classes=f"verdict-{verdict}", style=f"flex-grow: {count}", title=f"{count} {verdict}")
            mark = badge(verdict)
            mark += el("b", str(count))
            chips += el("li", refer("verdict", verdict, mark))
        planted = sum(row.planted for row in self.book.rows.values())
        killed = sum(row.killed for row in self.book.rows.values())
        said = (
            f"{judged} of the paper's {total} claims are judged so far, and {unchecked} cannot be. "
            f"{len(self.book.tests)} tests judge them and our own statements; "
            f"they noticed {killed} of {planted} faults that were planted in our formulas."
        )
        return [el("div", bar, chips, el("p", said), classes="ledger-counts")]


class LedgerGraph(LedgerDirective):
    """What rests on what, drawn."""

    def run(self) -> list[nodes.Node]:
        self.known(["*"])
        verdicts = {self.book.rows[name].verdict for name in drawn_graph(self.book)[0]}
        marks = (el("span", badge(verdict), " ") for verdict in ledger.VERDICTS if verdict in verdicts)
        return [el("p", *marks, classes="legend"), drawing()]


class LedgerFallen(LedgerDirective):
    """What rests on each claim that does not hold as printed, told."""

    def run(self) -> list[nodes.Node]:
        self.known(["*"])
        told = el("ul", classes="fallen")
        for name, row in self.book.rows.items():
            falls = self.book.falls[name]
            if row.verdict in ("refuted", "corrected", "not-reproduced") and falls:
                links = (el("span", claim_link(self.book, other), " ") for other in falls)
                told += el("li", el("p", claim_link(self.book, name), " carries"), el("p", *links))
        return [told if told.children else el("p", "Nothing rests on a claim that fell.")]


class LedgerVerdicts(LedgerDirective):
    """What each verdict means."""

    def run(self) -> list[nodes.Node]:
        pairs = ((el("dt", badge(verdict)), el("dd", f"{meaning}.")) for verdict, meaning in ledger.VERDICTS.items())
        return [el("dl", *(part for pair in pairs for part in pair), classes="meanings")]


class ClaimRole(SphinxRole):
    """An inline link to a claim's row; `text <id>` gives it other words."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        titled = re.fullmatch(r"(.+?)\s*<([^<>]+)>", self.text)
        text, name = titled.groups() if titled else ("", self.text)
        if not note(self.env, [name], "{claim}", self.get_location()):
            return [nodes.literal("", name)], []
        return [claim_link(self.env.app.fop_ledger, name, text)], []


# ---------------------------------------------------------------------------------------
# Where things stand


class LedgerDomain(Domain):
    """Which page quotes a claim, which page has its row, and what each page showed."""

    name, label = "ledger", "Ledger"
    initial_data = {"paper": {}, "rows": {}, "chips": {}, "seen": {}}  # noqa: RUF012 (Sphinx copies it)
    data_version = 1
    dangling_warnings = {  # noqa: RUF012
        "row": "no page shows the ledger's row of %(target)s",
        "paper": "no page has a {paper-says} block for %(target)s",
        "verdict": "no page shows the ledger",
        "source": "no source page for %(target)s",
    }

    @property
    def paper(self) -> dict[str, list[str]]:
        """Pages that quote each claim, once an occurrence."""
        return self.data["paper"]

    @property
    def rows(self) -> dict[str, str]:
        """Page of each claim's row."""
        return self.data["rows"]

    @property
    def chips(self) -> dict[str, str]:
        """Page of each verdict's count."""
        return self.data["chips"]

    @property
    def seen(self) -> dict[str, dict[str, str]]:
        """Digest of each claim at the time when a page showed it."""
        return self.data["seen"]

    def note_paper(self, name: str, docname: str) -> None:
        """A page quotes a claim."""
        self.paper.setdefault(name, []).append(docname)

    def clear_doc(self, docname: str) -> None:
        for name, where in list(self.paper.items()):
            self.paper[name] = [other for other in where if other != docname]
        for kept in (self.rows, self.chips):
            for name in [name for name, other in kept.items() if other == docname]:
                del kept[name]
        self.seen.pop(docname, None)

    def merge_domaindata(self, docnames: list[str], otherdata: dict) -> None:
        for name, where in otherdata["paper"].items():
            self.paper.setdefault(name, []).extend(other for other in where if other in docnames)
        for kept in ("rows", "chips", "seen"):
            chosen = {k: v for k, v in otherdata[kept].items() if (k if kept == "seen" else v) in docnames}
            self.data[kept].update(chosen)

    def _place(self, kind: str, target: str) -> tuple[str, str] | None:
        if kind == "source":
            path, _, line = target.partition("#")
            return (page_of_source(path), line) if path in self.env.app.fop_ledger.sources else None
        if kind == "paper":
            where = self.paper.get(target)
            return (where[0], f"paper-{target}") if where else None
        kept, prefix = (self.rows, "claim") if kind == "row" else (self.chips, "verdict")
        return (kept[target], f"{prefix}-{target}") if target in kept else None

    def resolve_xref(self, env, fromdocname, builder, typ, target, node, contnode):
        found = self._place(typ, target)
        return make_refnode(builder, fromdocname, *found, contnode) if found else None

    def resolve_any_xref(self, env, fromdocname, builder, target, node, contnode):
        """Let `[Eq. (4)](#paper-eq-4)` and `[its row](#claim-eq-4)` find their way from every page."""
        for prefix, kind in (("paper-", "paper"), ("claim-", "row")):
            name = target.removeprefix(prefix)
            found = self._place(kind, name) if target.startswith(prefix) else None
            if found:
                inner = contnode if contnode.astext() else nodes.inline("", env.app.fop_ledger.labels.get(name, name))
                # MyST turns the name into classes of the link: let it look like any other reference.
                return [("std:ref", make_refnode(builder, fromdocname, *found, inner))]
        return []

    def get_objects(self):
        labels = self.env.app.fop_ledger.labels
        for name, where in self.rows.items():
            yield (name, labels.get(name, name), "row", where, f"claim-{name}", 1)


# ---------------------------------------------------------------------------------------
# Events


def load(app: Sphinx) -> None:
    """Derive the verdicts before anything is read."""
    try:
        claims = ledger.read_claims(ledger.CLAIMS, book=Path(app.srcdir))
        evidence = ledger.current_evidence(ROOT)
        app.fop_ledger = Book(ledger.judge(claims, evidence), evidence)
    except ledger.LedgerError as error:
        raise LedgerPagesError(str(error)) from None


def changed(app: Sphinx, env, added, changed, removed) -> list[str]:
    """Pages that showed a claim otherwise than it stands now."""
    digests = app.fop_ledger.digests
    seen = env.get_domain("ledger").seen
    return [page for page, rows in seen.items() if any(digests.get(name) != was for name, was in rows.items())]


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """One page a source file that the evidence names, each line with an anchor."""
    book, where = app.fop_ledger, app.env.get_domain("ledger").rows
    for path in book.sources:
        page = page_of_source(path)
        code = (ROOT / path).read_text(encoding="utf-8")
        lit = app.builder.highlighter.highlight_block(code, "python", linespans="L")
        lit = re.sub(r'<span id="L-(\d+)">', r'<span id="L\1" class="line" data-line="\1">', lit)
        links = []
        for name, row in book.rows.items():
            if name in where and path in _files(row):
                href = f"{app.builder.get_relative_uri(page, where[name])}#claim-{name}"
                mark = f'<span class="symbol" aria-hidden="true">{SYMBOLS[row.verdict]}</span>'
                label = (
                    f'<span class="label">{escape(book.labels[name])}</span> <span class="word">{row.verdict}</span>'
                )
                links.append(f'<a class="claim-link verdict-{row.verdict}" href="{href}">{mark}{label}</a>')
        said = f'<p class="source-claims">Concerns {" ".join(links)}</p>' if links else ""
        body = f'<h1><code>{path}</code></h1>{said}<div class="source-page">{lit}</div>'
        yield page, {"title": path, "body": body}, "page.html"


def _files(row: Judged) -> set[str]:
    found = {shown.test.split("::")[0] for shown in row.evidence}
    found |= {module_path(mutant.target) for mutant in row.claim.mutants}
    return found | ({witness_path(row.claim)} if row.claim.witness else set())


def misplaced(app: Sphinx) -> Iterator[str]:
    """Quotations that do not stand exactly once, in the row's chapter, and names that no row has."""
    domain = app.env.get_domain("ledger")
    for name, where in domain.paper.items():
        row = app.fop_ledger.rows.get(name)
        if len(where) > 1:
            yield f"{name}: {{paper-says}} stands {len(where)} times: {', '.join(sorted(where))}"
        elif where and row and row.claim.chapter not in ("", where[0]):
            yield f"{name}: chapter: {row.claim.chapter}, but its {{paper-says}} stands in {where[0]}"
    for page, rows in domain.seen.items():
        for name, digest in rows.items():
            if not digest:
                yield f"{name}: shown on the page {page}, but no row has this id"


def finish(app: Sphinx, error: Exception | None) -> None:
    """Write `ledger.json` and fail, on every build, while rows and evidence part."""
    if error is not None or app.builder.format != "html":
        return
    judged = list(app.fop_ledger.rows.values())
    text = json.dumps(ledger.as_json(judged), indent=1, ensure_ascii=False)
    Path(app.outdir, "ledger.json").write_text(text + "\n", encoding="utf-8")
    faults = [*ledger.problems(judged), *misplaced(app)]
    if faults:
        raise LedgerPagesError("\n".join(faults))


def assets(app: Sphinx, config) -> None:
    """Bring our style and script, unless the configuration has listed them already."""
    if not any(Path(app.srcdir, path).resolve() == STATIC for path in config.html_static_path):
        config.html_static_path.append(str(STATIC))
    for listed, add, name in (
        (config.html_css_files, app.add_css_file, "fop.css"), (config.html_js_files, app.add_js_file, "ledger.js"),
    ):  # fmt: skip
        if name not in [entry if isinstance(entry, str) else entry[0] for entry in listed]:
            add(name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything; called by Sphinx."""
    others = dict.fromkeys(("latex", "text", "man", "texinfo"), (_skip, _skip))
    app.add_node(tag, html=(_visit_tag, _depart_tag), **others)
    app.add_node(drawing, html=(_visit_drawing, _skip), **others)
    for name, directive in (
        ("paper-says", PaperSays), ("verdict", Verdict), ("ledger-table", LedgerTable),
        ("ledger-counts", LedgerCounts), ("ledger-graph", LedgerGraph), ("ledger-fallen", LedgerFallen),
        ("ledger-verdicts", LedgerVerdicts),
    ):  # fmt: skip
        app.add_directive(name, directive)
    app.add_role("claim", ClaimRole())
    app.add_domain(LedgerDomain)
    app.connect("config-inited", assets)
    app.connect("builder-inited", load)
    app.connect("env-get-outdated", changed)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
