"""No object of the paper is forgotten: each equation, theorem, figure, table cell and number has its row."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from fop_theory import ledger
from tests.theory import paper_objects

ROOT = Path(__file__).parents[2]
ROWS = [claim for claim in ledger.read_claims() if claim.origin == "paper"]
OBJECTS = json.loads(paper_objects.OBJECTS.read_text(encoding="utf-8"))

#: Number tokens, by place, that are not claimed by any row, and why.
IGNORED = {
    ("4", "1"): "the mark of a footnote",
    ("6", "0"): "limits inside formulas of Theorem 1 and its proof, and the damaged 90° of the angle",
    ("A.3", "2"): "the PL inequality again, solved for the squared gradient: row eq-12",
    ("A.3", "0"): "the PL constant's sign inside the proof: row eq-12",
}


def _paper() -> Path | None:
    named = os.environ.get("FOP_PAPER")
    beside = ROOT.parent / "shared" / "paper.txt"
    return Path(named) if named else beside if beside.exists() else None


PAPER = _paper()
needs_paper = pytest.mark.skipif(
    PAPER is None, reason="the paper's text is not here: set FOP_PAPER to it or put it at ../shared/paper.txt"
)


@pytest.fixture(scope="module")
def text() -> str:
    assert PAPER is not None
    return PAPER.read_text(encoding="utf-8")


def _place(claim: ledger.Claim) -> str:
    """The section or figure that a row's `place` names first."""
    match = re.match(r"(Figure [A\d.]*\d)|(?:Section|Appendix) ([A\d.]*\d)|(\w+)", claim.place)
    assert match, f"{claim.id}: place: {claim.place!r} names no section and no figure"
    return match[1] or match[2] or match[3]


def _cells(tables: dict[str, Any]) -> dict[str, float]:
    """The value that each row of Figure 2 must give. FOP and FOP-norm add equally many parameters: one row."""
    cells = {}
    for data, table in tables.items():
        for method, (accuracy, _, parameters, time) in table.items():
            name = method.lower()
            cells[f"fig-2-{data}-acc-{name}"] = float(accuracy)
            if method != "momentum":  # the baseline: it adds nothing by definition
                shared = "fop" if name == "fop-norm" else name
                count = float(parameters.rstrip("M")) * (1e6 if parameters.endswith("M") else 1)
                assert cells.setdefault(f"fig-2-{data}-params-{shared}", count) == count
                cells[f"fig-2-{data}-time-{name}"] = float(time)
    return cells


def forgotten(objects: dict[str, Any], rows: list[ledger.Claim]) -> list[str]:
    """Objects that no row stands for."""
    by_id = {row.id: row for row in rows}
    wanted = [f"eq-{n}" for n in objects["equations"]]
    wanted += [f"alg-{n}" for n in objects["algorithms"]] + [f"thm-{n}" for n in objects["theorems"]]
    wanted += [f"fig-{n.lower().replace('.', '')}" for n in objects["figures"]]
    missing = [f"{name}: no row" for name in wanted if name not in by_id]
    for name, value in _cells(objects["figure_2"]).items():
        if name not in by_id:
            missing.append(f"{name}: no row")
        elif by_id[name].value != value:
            missing.append(f"{name}: value: the paper says {value:g}, the row {by_id[name].value}")
    claimed: dict[str, set[str]] = {}
    for row in rows:
        claimed.setdefault(_place(row), set()).update(paper_objects.tokens_of(f"{row.quote} {row.statement}"))
    for place, tokens in objects["numbers"].items():
        for token in dict.fromkeys(tokens):
            if token not in claimed.get(place, ()) and (place, token) not in IGNORED:
                missing.append(f"{token} in {place}: no row")
    return missing


def test_every_object_of_the_paper_has_a_row() -> None:
    assert forgotten(OBJECTS, ROWS) == []


def test_the_inventory_is_not_empty() -> None:
    assert OBJECTS["equations"] == list(range(1, 24))
    assert OBJECTS["figures"] == ["1", "2", "3", "4", "5", "A.1", "A.2"]
    assert sum(map(len, OBJECTS["numbers"].values())) > 80
    assert len(_cells(OBJECTS["figure_2"])) == 10 + 6 + 8


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ("eq-9", "eq-9: no row"),
        ("alg-1", "alg-1: no row"),
        ("thm-2", "thm-2: no row"),
        ("fig-a2", "fig-a2: no row"),
        ("fig-2-imagenet-time-fop", "fig-2-imagenet-time-fop: no row"),
        ("text-4-1-data", "50,000 in 4.1: no row"),
        ("fig-a2-better-by-0-6", ""),  # the row on its p-value quotes the same number
        ("text-6-two-thirds", "two-thirds in 6: no row"),
    ],
)
def test_a_dropped_row_is_named(dropped: str, named: str) -> None:
    missing = forgotten(OBJECTS, [row for row in ROWS if row.id != dropped])
    assert missing[:1] == ([named] if named else [])


def test_a_wrong_value_is_named() -> None:
    tables = json.loads(json.dumps(OBJECTS["figure_2"]))
    tables["cifar"]["FOP"][0] = "91.6"
    assert forgotten({**OBJECTS, "figure_2": tables}, ROWS) == [
        "fig-2-cifar-acc-fop: value: the paper says 91.6, the row 91.5"
    ]


def test_no_ignored_number_is_stale() -> None:
    present = {(place, token) for place, tokens in OBJECTS["numbers"].items() for token in tokens}
    assert set(IGNORED) <= present


def test_numbers_and_sentences_are_quoted() -> None:
    assert [row.id for row in ROWS if row.kind in ("number", "sentence") and not row.quote] == []


@needs_paper
def test_the_inventory_is_that_of_the_paper(text: str) -> None:
    assert paper_objects.objects(text) == OBJECTS


@needs_paper
def test_every_quote_stands_in_the_paper(text: str) -> None:
    searchable = paper_objects.Searchable(text)
    lost = [row.id for row in ROWS if not all(searchable.spans(row.quote))]
    assert lost == []


@needs_paper
def test_every_number_stands_in_a_quote(text: str) -> None:
    """Stricter than by place: each single occurrence lies inside the words that some row quotes."""
    searchable = paper_objects.Searchable(text)
    spans = paper_objects.merged(span for row in ROWS for piece in searchable.spans(row.quote) for span in piece)
    tokens = paper_objects.number_tokens(text)
    assert len(tokens) > 80
    outside = [
        f"{place}: {token}: {text[offset - 30 : offset + 30]!r}"
        for place, token, offset in tokens
        if not paper_objects.covered(offset, spans) and (place, token) not in IGNORED
    ]
    assert outside == []


@needs_paper
def test_a_changed_quote_is_not_found(text: str) -> None:
    searchable = paper_objects.Searchable(text)
    assert all(searchable.spans("FOP converges in 543\n itera-tions … 832 steps"))
    assert not all(searchable.spans("FOP converges in 544 iterations"))
