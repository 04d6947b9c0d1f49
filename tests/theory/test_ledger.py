"""The ledger's machinery: which rows it refuses, which verdicts evidence gives, what the terminal prints."""

from __future__ import annotations

import ast
import importlib.util
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import fop_theory
from fop_theory import __main__ as terminal
from fop_theory import ledger

ROOT = Path(__file__).parents[2]
MUTANTS = [{"in": "fop_theory.hypergradient.hypergradient", "replace": text, "by": "0"} for text in ("G", "H")]


def row(name: str = "a", **fields: Any) -> dict[str, Any]:
    """A sound row: a sentence that is verified. Fields given as `None` are left out."""
    sound = {
        "id": name, "place": "Section 2.1", "section": "2.1", "kind": "sentence", "statement": "$1 + 1 = 2$",
        "expected": "verified", "checked": "by counting", "chapter": "theory/sums",
    }  # fmt: skip
    return {key: value for key, value in {**sound, **fields}.items() if value is not None}


def faults(tmp_path: Path, rows: Any, book: Path | None = None) -> list[str]:
    """What reading these rows (or this text) complains of."""
    path = tmp_path / "claims.yml"
    path.write_text(rows if isinstance(rows, str) else yaml.safe_dump(rows), encoding="utf-8")
    try:
        ledger.read_claims(path, book)
    except ledger.LedgerError as error:
        return error.problems
    return []


def claims(*rows: dict[str, Any]) -> list[ledger.Claim]:
    return [ledger._claim(fields) for fields in rows]


def evidence(*shown: tuple[str, ...], values: dict | None = None, mutants: dict | None = None) -> dict[str, Any]:
    """Evidence of tests given as `(claim, shows, by)` or `(claim, shows, by, outcome)`."""
    tests = [
        {"id": f"tests/test_{n}.py::test", "line": 1, "outcome": (*rest, "passed")[0], "claims": [[claim, shows, by]]}
        for n, (claim, shows, by, *rest) in enumerate(shown)
    ]
    return {"tests": tests, "values": values or {}, "mutants": mutants or {}}


# ---------------------------------------------------------------------------------------
# Bad input: one line that names the row and the field


def test_the_ledger_itself_is_sound() -> None:
    rows = ledger.read_claims(book=ROOT / "book")
    assert len(rows) > 150
    assert {claim.expected for claim in rows} <= set(ledger.VERDICTS)


def test_the_schema_is_a_schema_and_knows_the_verdicts() -> None:
    schema = json.loads(ledger.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["items"]["properties"]["expected"]["enum"] == list(ledger.VERDICTS)


def test_a_sound_row_is_read(tmp_path) -> None:
    assert faults(tmp_path, [row()]) == []


BAD = {
    "unknown verdict": (
        [row(expected="proven")],
        f"a: expected: 'proven' is unknown; it is one of {', '.join(ledger.VERDICTS)}",
    ),
    "unknown kind": (
        [row(kind="lemma")],
        "a: kind: 'lemma' is unknown; it is one of "
        "equation, algorithm, theorem, proof-step, figure, table, number, sentence",
    ),
    "duplicate id": ([row(), row()], "a: id: used by 2 rows; ids are unique"),
    "no id": ([row(), row(id=None)], "row 2: id: missing"),
    "bad id": ([row("Eq 4")], "Eq 4: id: 'Eq 4' does not match ^[a-z0-9]+(-[a-z0-9]+)*$"),
    "id is a number": ([row(id=4)], "row 1: id: expected string, got 4"),
    "no statement": ([row(statement=None)], "a: statement: missing"),
    "empty statement": ([row(statement="")], "a: statement: '' is too short"),
    "typed verdict": ([row(verdict="verified")], "a: verdict: there is no such field"),
    "value is text": ([row(value="many")], "a: value: expected number, got 'many'"),
    "negative tolerance": ([row(value=1, tolerance=-1)], "a: tolerance: -1 is less than the minimum of 0"),
    "row is text": ([row(), "eq-4"], "row 2: row: expected object, got 'eq-4'"),
    "one part": ([row(parts=["a"])], "a: parts: ['a'] is too short"),
    "mutant without by": (
        [row(kind="equation", mutants=[MUTANTS[0], {key: MUTANTS[1][key] for key in ("in", "replace")}])],
        "a: mutants.1.by: missing",
    ),
    "mutant elsewhere": (
        [row(kind="equation", mutants=[MUTANTS[0], {**MUTANTS[1], "in": "numpy.dot"}])],
        r"a: mutants.1.in: 'numpy.dot' does not match ^fop_(theory|torch)(\.[A-Za-z_][A-Za-z0-9_]*)+$",
    ),
    "too few mutants": (
        [row(kind="equation", mutants=MUTANTS[:1])],
        "a: mutants: 1 given; a formula names at least two",
    ),
    "no mutants": ([row(kind="algorithm")], "a: mutants: 0 given; a formula names at least two"),
    "corrected how": (
        [row(expected="corrected")],
        "a: correction: missing; a row expected to be corrected gives it",
    ),
    "under what": (
        [row(expected="verified-under")],
        "a: assumption: missing; a row expected to be verified-under gives it",
    ),
    "refuted by what": ([row(expected="refuted")], "a: witness: missing; a row expected to be refuted gives it"),
    "why not": (
        [row(expected="not-checkable")],
        "a: why: missing; a row expected to be not-checkable gives it",
    ),
    "open and then": ([row(expected="open")], "a: plan: missing; a row expected to be open gives it"),
    "no such witness": (
        [row(expected="refuted", witness="nobody")],
        "a: witness: there is no fop_theory/witnesses/nobody.py",
    ),
    "checked how far": ([row(checked=None)], "a: checked: missing; say what was checked and how far"),
    "no chapter": ([row(chapter=None)], "a: chapter: missing; a judged row stands in a chapter"),
    "rests on nothing": ([row(rests_on=["b"])], "a: rests_on: no row has the id 'b'"),
    "instead of nothing": ([row(in_place_of=["b"])], "a: in_place_of: no row has the id 'b'"),
    "unknown part": ([row(parts=["a", "b"]), row("c")], "a: parts: no row has the id 'b'"),
    "ring": (
        [row("a", rests_on=["c"]), row("b", rests_on=["a"]), row("c", rests_on=["b"])],
        "a -> b -> c: rests_on: these rows rest on each other in a ring",
    ),
    "no rows": ("", "claims.yml: rows: expected a list of rows, got NoneType"),
    "a mapping": ("a: 1", "claims.yml: rows: expected a list of rows, got dict"),
    "a field twice": (
        "- id: a\n  expected: open\n  expected: verified\n",
        "a: expected: given 2 times (row at line 1)",
    ),
}


@pytest.mark.parametrize(("rows", "line"), BAD.values(), ids=BAD)
def test_bad_rows_get_one_line(tmp_path, rows, line: str) -> None:
    found = faults(tmp_path, rows)
    assert found[:1] == [line]
    assert "\n" not in line
    # The row that is its own part is also a ring; every other fault is the only one.
    assert len(found) == (2 if line.startswith("a: parts: no row") else 1)


def test_text_that_is_not_yaml_gets_one_line(tmp_path) -> None:
    (line,) = faults(tmp_path, "- id: [a\n")
    assert line.startswith("claims.yml: not YAML: ")
    assert "\n" not in line


def test_every_missing_field_is_named_once(tmp_path) -> None:
    assert faults(tmp_path, [{"id": "a", "kind": "sentence", "section": "2.1"}]) == [
        "a: place: missing",
        "a: statement: missing",
        "a: expected: missing",
    ]


def test_chapters_are_held_against_the_book(tmp_path) -> None:
    page = tmp_path / "theory" / "sums.md"
    rows = [row(), row("b", expected="open", plan="later", chapter=None)]
    assert faults(tmp_path, rows, tmp_path) == ["a: chapter: there is no page theory/sums.md"]
    page.parent.mkdir()
    page.write_text("```{paper-says} ab\n```\n", encoding="utf-8")
    assert faults(tmp_path, rows, tmp_path) == ["a: chapter: theory/sums.md has no {paper-says} block for a"]
    page.write_text("````{paper-says} ab a\n````\n", encoding="utf-8")
    assert faults(tmp_path, rows, tmp_path) == []


# ---------------------------------------------------------------------------------------
# Verdicts: what the evidence gives, and what it lacks

TWICE = [("holds", "symbolic"), ("holds", "property")]
OPEN, MUTE = {"plan": "later"}, {"why": "nobody knows"}
WEAK = "a: tests: only {}; this kind, {}, is judged in two ways"
CONTRADICTION = "a: tests: one shows that it holds, another that it fails"

RULES = {
    # name: (the row's fields, what its tests show and how, the verdict, the problem that is reported)
    "it holds": ({}, [("holds", "exact")], "verified", None),
    "a sentence may hold one way": ({}, [("holds", "numeric")], "verified", None),
    "a theorem holds two ways": ({"kind": "theorem"}, TWICE, "verified", None),
    "a theorem holds one way": (
        {"kind": "theorem"}, [("holds", "symbolic")] * 2, "verified", WEAK.format("symbolic", "theorem"),
    ),
    "a proof step holds one way": (
        {"kind": "proof-step"}, [("holds", "numeric")], "verified", WEAK.format("numeric", "proof-step"),
    ),
    "a repair in two ways": (
        {"kind": "theorem"}, [("fails", "exact"), ("corrected", "symbolic"), ("corrected", "property")],
        "corrected", None,
    ),
    "it fails and is repaired": ({}, [("fails", "exact"), ("corrected", "symbolic")], "corrected", None),
    "a repair in one way": (
        {"kind": "theorem"}, [("fails", "exact"), ("corrected", "symbolic")], "corrected",
        WEAK.format("symbolic", "theorem"),
    ),
    "a repair of what was not shown to fail": ({}, [("corrected", "exact")], "inconclusive", None),
    "it fails": ({}, [("fails", "exact")], "refuted", None),
    "it fails, symbolically": ({"kind": "theorem"}, [("fails", "symbolic")], "refuted", None),
    "it fails on floats": (
        {}, [("fails", "property"), ("fails", "numeric")], "refuted",
        "a: tests: a refutation needs exact or symbolic evidence",
    ),
    "it holds under an assumption": ({}, [("under", "property")], "verified-under", None),
    "an assumption one way": (
        {"kind": "theorem"}, [("under", "property")], "verified-under", WEAK.format("property", "theorem"),
    ),
    "it fails without the assumption": ({}, [("fails", "exact"), ("under", "property")], "verified-under", None),
    "it holds and fails": ({}, [("holds", "exact"), ("fails", "exact")], "inconclusive", CONTRADICTION),
    "it holds and is repaired": ({}, [("holds", "exact"), ("corrected", "exact")], "inconclusive", CONTRADICTION),
    "it agrees": ({}, [("matches", "experiment")], "reproduced", None),
    "it disagrees": ({}, [("differs", "experiment")], "not-reproduced", None),
    "it agrees here and not there": (
        {}, [("matches", "experiment"), ("differs", "experiment")], "partly-reproduced", None,
    ),
    "a statement or a result": (
        {}, [("fails", "exact"), ("matches", "experiment")], "reproduced",
        "a: tests: shown both as a statement and as a result; choose one: fails, matches",
    ),
    "undecided": ({}, [("undecided", "experiment")], "inconclusive", None),
    "half decided": ({}, [("undecided", "experiment"), ("matches", "experiment")], "inconclusive", None),
    "nothing, for a reason": (MUTE, [], "not-checkable", None),
    "nothing yet": (OPEN, [], "open", None),
    "a plan that came true": (OPEN, [("holds", "exact")], "verified", None),
    "a failing test": ({}, [("holds", "exact"), ("holds", "exact", "failed")], "verified",
        "a: tests: tests/test_1.py::test did not pass"),
    "a skipped test": ({}, [("holds", "exact"), ("holds", "exact", "skipped")], "verified",
        "a: tests: tests/test_1.py::test did not pass"),
    "a failing test shows nothing": (OPEN, [("fails", "exact", "failed")], "open",
        "a: tests: tests/test_0.py::test did not pass"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "shown", "verdict", "problem"), RULES.values(), ids=RULES)
def test_the_rules_of_verdicts(fields, shown, verdict: str, problem: str | None) -> None:
    found = evidence(*[("a", *one) for one in shown])
    (judged,) = ledger.judge(claims(row(expected=verdict, **fields)), found)
    assert judged.verdict == verdict
    assert list(judged.problems) == ([problem] if problem else [])
    # Whatever else a row expects is reported: no verdict can be typed.
    for other in ledger.VERDICTS:
        if other != verdict:
            (judged,) = ledger.judge(claims(row(expected=other, **fields)), found)
            assert judged.verdict == verdict
            assert judged.problems[-1] in (
                f"a: expected: {other}, but the evidence gives {verdict}",
                f"a: tests: none is marked with this claim, which is expected to be {other}",
            )


def test_a_row_without_a_test_says_so() -> None:
    (judged,) = ledger.judge(claims(row()), evidence())
    assert judged.problems == ("a: tests: none is marked with this claim, which is expected to be verified",)


@pytest.mark.parametrize(
    ("ours", "tolerance", "verdict"),
    [(832, 0, "reproduced"), (831, 0, "not-reproduced"), (833.5, 2, "reproduced"), (829, 2, "not-reproduced")],
)
def test_numbers_are_compared_by_the_ledger(ours: float, tolerance: float, verdict: str) -> None:
    number = row(value=832, tolerance=tolerance, expected=verdict)
    (judged,) = ledger.judge(claims(number), evidence(("a", "value", "numeric"), values={"a": ours}))
    assert (judged.verdict, judged.ours, judged.problems) == (verdict, ours, ())


def test_numbers_that_lack_one_side() -> None:
    shown = ("a", "value", "numeric")
    (judged,) = ledger.judge(claims(row()), evidence(shown, values={"a": 1}))
    assert judged.problems[0] == "a: value: a test measures it but the row gives no value of the paper"
    (judged,) = ledger.judge(claims(row(value=1)), evidence(shown))
    assert judged.problems[0] == "a: value: no test recorded ours"


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        (("reproduced", "reproduced"), "reproduced"),
        (("reproduced", "verified"), "reproduced"),
        (("reproduced", "not-reproduced"), "partly-reproduced"),
        (("reproduced", "inconclusive"), "partly-reproduced"),
        (("partly-reproduced", "not-reproduced"), "partly-reproduced"),
        (("not-reproduced", "not-reproduced"), "not-reproduced"),
        (("not-reproduced", "not-checkable"), "not-reproduced"),
        (("inconclusive", "not-checkable"), "inconclusive"),
        (("reproduced", "open"), "open"),
    ],
)
def test_a_figure_is_judged_by_its_parts(parts, verdict: str) -> None:
    shows = {
        "reproduced": ["matches"], "verified": ["holds"], "not-reproduced": ["differs"],
        "partly-reproduced": ["matches", "differs"], "inconclusive": ["undecided"],
    }  # fmt: skip
    rows = [row("whole", expected=verdict, parts=["part-0", "part-1"])]
    shown = []
    for n, part in enumerate(parts):
        rows.append(row(f"part-{n}", expected=part, plan="later", why="none" if part == "not-checkable" else None))
        shown += [(f"part-{n}", word, "exact") for word in shows.get(part, ())]
    judged = ledger.judge(claims(*rows), evidence(*shown))
    assert [one.verdict for one in judged] == [verdict, *parts]
    assert ledger.problems(judged) == []


def test_mutants_are_counted() -> None:
    formula = row(kind="equation", mutants=MUTANTS)
    shown = [("a", *one) for one in TWICE]
    killed = [{**mutant, "killed": True, "how": "AssertionError"} for mutant in MUTANTS]
    (judged,) = ledger.judge(claims(formula), evidence(*shown, mutants={"a": killed}))
    assert (judged.killed, judged.planted, judged.problems) == (2, 2, ())
    killed[1] = {**MUTANTS[1], "killed": False, "how": "all tests passed"}
    (judged,) = ledger.judge(claims(formula), evidence(*shown, mutants={"a": killed}))
    (line,) = judged.problems
    assert line == (
        "a: mutants: fop_theory.hypergradient.hypergradient: 'H' -> '0' survives: all tests passed"
    )  # fmt: skip
    (judged,) = ledger.judge(claims(formula), evidence(*shown))
    assert judged.problems == ("a: mutants: 0 of 2 were run",)


def test_a_test_marked_with_an_unknown_id_is_refused() -> None:
    with pytest.raises(ledger.LedgerError) as caught:
        ledger.judge(claims(row()), evidence(("a", "holds", "exact"), ("eq-99", "holds", "exact")))
    assert caught.value.problems == ["eq-99: tests: tests/test_1.py::test is marked with this id, which no row has"]


def test_what_falls_with_a_claim() -> None:
    rows = claims(row("d"), row("a"), row("b", rests_on=["a"]), row("c", parts=["b", "d"]))
    assert ledger.falls_with(rows, "a") == ["b", "c"]
    assert ledger.falls_with(rows, "c") == []


def test_counts_are_of_the_paper_or_of_us() -> None:
    rows = claims(row("a"), row("b"), row("ours-c", origin="ours"))
    judged = ledger.judge(rows, evidence(*[(name, "holds", "exact") for name in ("a", "ours-c")]))
    assert ledger.counts(judged) == {"verified": 1, "open": 1}
    assert ledger.counts(judged, "ours") == {"verified": 1}


def test_the_json_file_holds_every_row() -> None:
    rows = claims(row("a", value=0), row("b", rests_on=["a"]))
    judged = ledger.judge(rows, evidence(("a", "value", "numeric"), ("b", "holds", "exact"), values={"a": 0}))
    whole = json.loads(json.dumps(ledger.as_json(judged)))
    first, second = whole["claims"]
    assert (first["id"], first["verdict"], first["value"], first["ours"]) == ("a", "reproduced", 0, 0)
    assert first["falls_with_it"] == ["b"]
    assert (second["methods"], second["tests"][0]["shows"]) == (["exact"], "holds")
    assert "plan" not in second


# ---------------------------------------------------------------------------------------
# Evidence: made by a run of the tests, for this state of the code

MARKED = """
import pytest

@pytest.mark.claim("a", shows="holds", by="exact")
@pytest.mark.claim("b", shows="value", by="numeric")
@pytest.mark.parametrize("n", [1, 2])
def test_both(n, measured):
    measured("b", 7)

@pytest.mark.claim("a", shows="holds", by="exact")
def test_broken():
    assert False

@pytest.mark.claim("a", shows="holds", by="exact")
def test_skipped():
    pytest.skip("no time")

@pytest.fixture
def broken():
    raise OSError

@pytest.mark.claim("a", shows="holds", by="exact")
def test_never_reached(broken): ...

@pytest.mark.claim("a", shows="holds", by="exact")
def test_strays(measured):
    measured("c", 7)

def test_unmarked(): ...
"""


def _run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    tests = folder / "tests"
    tests.mkdir(exist_ok=True)
    shutil.copy(ROOT / "tests" / "conftest.py", tests)
    (tests / "test_marked.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "--evidence=evidence.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_run_leaves_its_evidence(tmp_path) -> None:
    _run(tmp_path, MARKED)
    found = json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8"))
    outcomes = {test["id"].partition("::")[2]: test["outcome"] for test in found["tests"]}
    assert outcomes == {
        "test_both[1]": "passed", "test_both[2]": "passed", "test_broken": "failed", "test_skipped": "skipped",
        "test_never_reached": "failed", "test_strays": "failed",
    }  # fmt: skip
    assert found["values"] == {"b": 7.0}
    assert found["digest"] == ledger.digest(tmp_path)
    one = next(test for test in found["tests"] if test["id"].endswith("[1]"))
    assert sorted(map(tuple, one["claims"])) == [("a", "holds", "exact"), ("b", "value", "numeric")]
    a, b = ledger.judge(claims(row("a"), row("b", value=7, expected="reproduced")), found)
    assert (b.verdict, b.problems) == ("reproduced", ())
    assert sum(line.endswith("did not pass") for line in a.problems) == 4


MARKS = ['"a", shows="holds"', '"a", shows="true", by="exact"', '"a", shows="holds", by="guess"']


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_that_says_too_little_is_refused(tmp_path, mark: str) -> None:
    run = _run(tmp_path, f"import pytest\n\n@pytest.mark.claim({mark})\ndef test_it(): ...\n")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_marked.py::test_it" in run.stdout + run.stderr


def test_evidence_of_an_older_state_is_not_used(tmp_path) -> None:
    code = tmp_path / "fop_theory" / "sums.py"
    code.parent.mkdir()
    code.write_text("one = 1\n", encoding="utf-8")
    path = ledger.evidence_path(tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps({"digest": ledger.digest(tmp_path), "tests": []}), encoding="utf-8")
    assert ledger.current_evidence(tmp_path)["tests"] == []
    code.write_text("one = 2\n", encoding="utf-8")
    with pytest.raises(ledger.LedgerError, match="has none"):  # there are no tests to run anew
        ledger.current_evidence(tmp_path)


@pytest.mark.parametrize(
    ("there", "why"), [(False, "no evidence is here yet"), (True, "code, tests or records are not those of the evid")]
)
def test_it_is_said_why_the_tests_run(tmp_path, monkeypatch, capsys, there: bool, why: str) -> None:
    path = ledger.evidence_path(tmp_path)
    for file in (path, tmp_path / "tests" / "conftest.py"):
        file.parent.mkdir()
        file.write_text(json.dumps({"digest": "another"}), encoding="utf-8")
    if not there:
        path.unlink()

    def leave(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        path.write_text(json.dumps({"digest": ledger.digest(tmp_path), "tests": []}), encoding="utf-8")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", leave)
    assert ledger.current_evidence(tmp_path)["tests"] == []
    assert capsys.readouterr().err.startswith(f"ledger: {why}")


# ---------------------------------------------------------------------------------------
# The terminal


@pytest.fixture
def small(monkeypatch) -> list[dict[str, Any]]:
    """A ledger of four rows in place of the real one; the third has a problem, the fourth is ours."""
    rows = [
        row("a", value=2, unit="steps", expected="reproduced"),
        row("b", rests_on=["a"], expected="refuted", witness="sum", quote="two and two"),
        row("c", rests_on=["b"], plan="later"),
        row("d", origin="ours", in_place_of=["b"], plan="done"),
        row("e", parts=["a", "d"], expected="reproduced"),
    ]
    shown = [("a", "value", "numeric"), ("b", "fails", "exact"), ("c", "holds", "exact", "failed")]
    shown += [("d", "holds", "exact")]
    monkeypatch.setattr(ledger, "read_claims", lambda book=None: claims(*rows))
    monkeypatch.setattr(ledger, "current_evidence", lambda root: evidence(*shown, values={"a": 2}))
    return rows


def test_the_whole_ledger_in_the_terminal(small, capsys) -> None:
    assert terminal.main(["ledger"]) == 1
    said = capsys.readouterr()
    first, second, third, fourth, _, *counts = said.out.splitlines()
    assert first.split() == ["a", "reproduced", "Section", "2.1"]
    assert second.split()[:2] == ["b", "refuted"]
    assert third.split()[:2] == ["c", "open"]
    assert fourth.split()[:2] == ["d", "verified"]
    assert counts == ["claims of the paper, 4: 1 refuted, 2 reproduced, 1 open", "statements of ours, 1: 1 verified"]
    assert said.err.splitlines() == [
        "c: tests: tests/test_2.py::test did not pass",
        "c: expected: verified, but the evidence gives open",
    ]


def test_one_claim_in_the_terminal(small, capsys) -> None:
    assert terminal.main(["ledger", "--claim", "b"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for line in (
        "b  (Section 2.1)",
        "verdict: refuted, false, with a witness that runs alone",
        "quote: two and two",
        "witness: fop_theory/witnesses/sum.py",
        "test: tests/test_1.py::test shows: fails, by: exact",
        "rests on: a",
        "what rests on it: c",
        "in its place: d",
    ):
        assert line in said.out.splitlines()
    assert terminal.main(["ledger", "--claim", "a"]) == 0
    assert "paper: 2 steps  ours: 2  tolerance: 0" in capsys.readouterr().out.splitlines()
    assert terminal.main(["ledger", "--claim", "c"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "plan: later" in lines
    assert "checked: by counting" not in lines
    assert terminal.main(["ledger", "--claim", "d"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "verdict: verified, holds as stated"
    assert "in place of: b" in lines
    assert "checked: by counting" in lines
    assert "plan: done" not in lines
    assert terminal.main(["ledger", "--claim", "e"]) == 0
    assert "made of: a, d" in capsys.readouterr().out.splitlines()


def test_the_ledger_as_json(small, capsys) -> None:
    assert terminal.main(["ledger", "--json"]) == 1
    whole = json.loads(capsys.readouterr().out)
    assert [claim["id"] for claim in whole["claims"]] == ["a", "b", "c", "d", "e"]
    assert whole["counts"] == {"refuted": 1, "reproduced": 2, "open": 1}
    assert terminal.main(["ledger", "--json", "--claim", "b"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "refuted"


def test_a_bad_id_in_the_terminal(small, capsys) -> None:
    assert terminal.main(["ledger", "--claim", "eq-99"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "--claim: no row has the id 'eq-99'\n")


def test_bad_rows_in_the_terminal(monkeypatch, capsys) -> None:
    def refuse(book=None):
        raise ledger.LedgerError(["a: expected: missing", "b: place: missing"])

    monkeypatch.setattr(ledger, "read_claims", refuse)
    assert terminal.main(["ledger"]) == 2
    assert capsys.readouterr().err == "a: expected: missing\nb: place: missing\n"


def test_the_command_itself() -> None:
    command = [sys.executable, "-m", "fop_theory", "ledger", "--claim", "eq-99"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "--claim: no row has the id 'eq-99'\n")


# ---------------------------------------------------------------------------------------
# The package stands without torch

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fop_theory.__path__, "fop_theory.")
    if not module.name.startswith("fop_theory.witnesses.")
)


def test_the_package_imports_without_torch() -> None:
    # matplotlib belongs to the book: `plots` alone may need it.
    names = [name for name in MODULES if name != "fop_theory.plots" or importlib.util.find_spec("matplotlib")]
    code = f"import sys, importlib; sys.modules['torch'] = None; [importlib.import_module(n) for n in {names!r}]"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def _imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", sorted(Path(fop_theory.__path__[0]).rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_imports_torch(path: Path) -> None:
    assert not {name for name in _imports(path) if name.split(".")[0] in ("torch", "fop_torch")}
