"""The ledger: every claim of the paper, and the verdict that its evidence gives.

`claims.yml` says what is claimed and which verdict is *expected*; it holds no verdict.
Tests say what they show (`@pytest.mark.claim("eq-4", shows="holds", by="symbolic")`).
A run of those tests leaves `evidence.json`. `judge` derives the verdicts from it and
reports every row whose evidence does not give the expected one.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import networkx as nx
import yaml

PACKAGE = Path(__file__).parent
CLAIMS = PACKAGE / "claims.yml"
SCHEMA = PACKAGE / "claims.schema.json"
WITNESSES = PACKAGE / "witnesses"

#: What a test can show of a claim's statement as the paper prints it.
SHOWS = ("holds", "fails", "corrected", "under", "matches", "differs", "value", "undecided")
#: How it shows it. Two different ones count as two independent ways.
METHODS = ("symbolic", "exact", "property", "numeric", "certificate", "experiment")
#: Verdicts in the order in which pages list them, each with what it means.
VERDICTS = {
    "verified": "holds as printed",
    "verified-under": "holds under an extra assumption, which is named",
    "corrected": "fails as printed; a repaired form, which is given, holds",
    "refuted": "false, with a witness that runs alone",
    "reproduced": "our run gives the paper's result within the tolerance",
    "partly-reproduced": "some of its parts are reproduced, others are not",
    "not-reproduced": "our run gives another result",
    "inconclusive": "what was run does not decide it",
    "not-checkable": "nothing that could be run would decide it",
    "open": "not judged yet",
}
#: Fields that name other rows.
LINKS = ("rests_on", "parts", "in_place_of")
#: Formula claims: each names at least two ways to break its formula.
FORMULA_KINDS = ("equation", "algorithm")
#: Kinds whose statements quantify over all problems: one method is too little for them.
GENERAL_KINDS = ("equation", "algorithm", "theorem", "proof-step")


class LedgerError(ValueError):
    """One line per fault: the row, the field, what is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Mutant:
    """One planted fault: in function `target`, the text `replace` becomes `by`."""

    target: str
    replace: str
    by: str


@dataclass(frozen=True)
class Claim:
    """One row of `claims.yml`; the schema beside it says what each field holds."""

    id: str
    place: str
    section: str
    kind: str
    statement: str
    expected: str
    origin: str = "paper"
    quote: str = ""
    checked: str = ""
    assumption: str = ""
    correction: str = ""
    witness: str = ""
    value: float | None = None
    tolerance: float = 0.0
    unit: str = ""
    why: str = ""
    plan: str = ""
    chapter: str = ""
    rests_on: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    in_place_of: tuple[str, ...] = ()
    mutants: tuple[Mutant, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One test's contribution to one claim."""

    test: str
    line: int
    shows: str
    by: str
    passed: bool
    examples: int = 0


@dataclass(frozen=True)
class Judged:
    """A claim, the verdict derived for it and the evidence that gave it."""

    claim: Claim
    verdict: str
    evidence: tuple[Shown, ...] = ()
    ours: float | None = None
    killed: int = 0
    planted: int = 0
    problems: tuple[str, ...] = field(default=())

    @property
    def methods(self) -> list[str]:
        """The distinct methods behind the verdict, in the order of `METHODS`."""
        used = {shown.by for shown in self.evidence}
        return [method for method in METHODS if method in used]


def read_claims(path: Path = CLAIMS, book: Path | None = None) -> list[Claim]:
    """Read and check the rows.

    Args:
        path: The YAML file.
        book: Folder of the chapters; when given, each row's `chapter` must exist there and show the row.

    Returns:
        The claims in the file's order.

    Raises:
        LedgerError: One line per fault, naming the row and the field.
    """
    try:
        rows = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except yaml.YAMLError as error:
        raise LedgerError([f"{path.name}: not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(rows, list):
        raise LedgerError([f"{path.name}: rows: expected a list of rows, got {type(rows).__name__}"])
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    faults = jsonschema.Draft202012Validator(schema).iter_errors(rows)
    problems = list(dict.fromkeys(line for fault in faults for line in _described(fault, rows)))
    if problems:
        raise LedgerError(problems)
    claims = [_claim(row) for row in rows]
    problems = [*_misfits(claims), *(_broken_anchors(claims, book) if book else ())]
    if problems:
        raise LedgerError(problems)
    return claims


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later field silently replace an earlier one of the same name; here that is a fault."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        row = {str(key.value): value.value for key, value in reversed(node.value)}.get("id", "a row")
        for name, count in Counter(str(key.value) for key, _ in node.value).items():
            if count > 1:
                raise LedgerError([f"{row}: {name}: given {count} times (row at line {node.start_mark.line + 1})"])
        return super().construct_mapping(node, deep)


def _described(fault: jsonschema.ValidationError, rows: Sequence[Any]) -> Iterable[str]:
    """One short line for each thing that the schema refuses: row, field, what is wrong."""
    number, *path = fault.absolute_path
    row = rows[int(number)]
    name = row["id"] if isinstance(row, dict) and isinstance(row.get("id"), str) else f"row {int(number) + 1}"
    where = ".".join(map(str, path))
    value, wanted = fault.instance, fault.validator_value
    match fault.validator:
        case "enum":
            yield f"{name}: {where}: {value!r} is unknown; it is one of {', '.join(wanted)}"
        case "required":
            for key in wanted:
                if key not in value:
                    yield f"{name}: {f'{where}.{key}' if where else key}: missing"
        case "additionalProperties":
            for key in value:
                if key not in fault.schema["properties"]:
                    yield f"{name}: {f'{where}.{key}' if where else key}: there is no such field"
        case "type":
            yield f"{name}: {where or 'row'}: expected {wanted}, got {value!r}"
        case "pattern":
            yield f"{name}: {where}: {value!r} does not match {wanted}"
        case _:
            yield f"{name}: {where}: {fault.message}"


def _claim(row: Mapping[str, Any]) -> Claim:
    mutants = tuple(Mutant(m["in"], m["replace"], m["by"]) for m in row.get("mutants", ()))
    lists = {name: tuple(row.get(name, ())) for name in LINKS}
    return Claim(**{**row, **lists, "mutants": mutants})


def _misfits(claims: Sequence[Claim]) -> Iterable[str]:
    """Faults that a schema can't see."""
    for name, count in Counter(claim.id for claim in claims).items():
        if count > 1:
            yield f"{name}: id: used by {count} rows; ids are unique"
    known = {claim.id for claim in claims}
    for claim in claims:
        for name in LINKS:
            for other in getattr(claim, name):
                if other not in known:
                    yield f"{claim.id}: {name}: no row has the id {other!r}"
        needs = {
            "corrected": "correction", "verified-under": "assumption", "refuted": "witness",
            "not-checkable": "why", "open": "plan",
        }.get(claim.expected)  # fmt: skip
        if needs and not getattr(claim, needs):
            yield f"{claim.id}: {needs}: missing; a row expected to be {claim.expected} gives it"
        if claim.witness and not (WITNESSES / f"{claim.witness}.py").exists():
            yield f"{claim.id}: witness: there is no fop_theory/witnesses/{claim.witness}.py"
        settled = claim.expected not in ("open", "not-checkable")
        if settled and not claim.checked:
            yield f"{claim.id}: checked: missing; say what was checked and how far"
        if settled and not claim.chapter:
            yield f"{claim.id}: chapter: missing; a judged row stands in a chapter"
        if settled and claim.kind in FORMULA_KINDS and len(claim.mutants) < 2:
            yield f"{claim.id}: mutants: {len(claim.mutants)} given; a formula names at least two"
    graph = dependencies(claims)
    if not nx.is_directed_acyclic_graph(graph):
        ring = " -> ".join(edge[0] for edge in nx.find_cycle(graph))
        yield f"{ring}: rests_on: these rows rest on each other in a ring"


def _broken_anchors(claims: Sequence[Claim], book: Path) -> Iterable[str]:
    shown: dict[str, set[str]] = {}
    for claim in claims:
        if not claim.chapter:
            continue
        if claim.chapter not in shown:
            page = book / f"{claim.chapter}.md"
            if not page.exists():
                yield f"{claim.id}: chapter: there is no page {claim.chapter}.md"
                continue
            shown[claim.chapter] = anchors(page.read_text(encoding="utf-8"))
        if claim.id not in shown[claim.chapter]:
            yield f"{claim.id}: chapter: {claim.chapter}.md has no {{paper-says}} block for {claim.id}"


def anchors(page: str) -> set[str]:
    """Ids of the claims that a chapter shows with ```` ```{paper-says} id ... ````."""
    return {name for ids in re.findall(r"^`{3,}\{paper-says\}(.*)$", page, re.M) for name in ids.split()}


def dependencies(claims: Iterable[Claim]) -> nx.DiGraph:
    """Graph with an edge from each claim to every claim that rests on it or is made of it."""
    graph = nx.DiGraph()
    for claim in claims:
        graph.add_node(claim.id)
        graph.add_edges_from((other, claim.id) for other in (*claim.rests_on, *claim.parts))
    return graph


def falls_with(claims: Iterable[Claim], name: str) -> list[str]:
    """Ids of the claims that rest, directly or not, on the claim `name`, in the rows' order."""
    rows = list(claims)
    fallen = nx.descendants(dependencies(rows), name)
    return [claim.id for claim in rows if claim.id in fallen]


def in_place_of(claims: Iterable[Claim], name: str) -> list[str]:
    """Ids of the rows of ours that say what holds in place of the claim `name`."""
    return [claim.id for claim in claims if name in claim.in_place_of]


# ---------------------------------------------------------------------------------------
# From evidence to verdicts


def judge(claims: Sequence[Claim], evidence: Mapping[str, Any]) -> list[Judged]:
    """Derive every verdict.

    Args:
        claims: The rows.
        evidence: What the test run left (`tests`, `values`, `mutants`).

    Returns:
        One `Judged` per claim, in order; `problems` says where evidence and expectation part.

    Raises:
        LedgerError: If a test is marked with an id that no row has.
    """
    known = {claim.id for claim in claims}
    shown: dict[str, list[Shown]] = {name: [] for name in known}
    strays = []
    for test in evidence["tests"]:
        for name, shows, by in test["claims"]:
            if name not in known:
                strays.append(f"{name}: tests: {test['id']} is marked with this id, which no row has")
                continue
            passed = test["outcome"] == "passed"
            shown[name].append(Shown(test["id"], test["line"], shows, by, passed, test.get("examples", 0)))
    if strays:
        raise LedgerError(strays)
    judged: dict[str, Judged] = {}
    order = list(nx.topological_sort(dependencies(claims)))
    rows = {claim.id: claim for claim in claims}
    for name in order:
        parts = [judged[part] for part in rows[name].parts]
        judged[name] = _judge_one(rows[name], shown[name], parts, evidence)
    return [judged[claim.id] for claim in claims]


def _judge_one(claim: Claim, shown: Sequence[Shown], parts: Sequence[Judged], evidence: Mapping[str, Any]) -> Judged:
    problems = [f"{claim.id}: tests: {s.test} did not pass" for s in shown if not s.passed]
    passed = tuple(s for s in shown if s.passed)
    ours = evidence["values"].get(claim.id)
    kinds = {s.shows for s in passed}
    if "value" in kinds:
        kinds.discard("value")
        if claim.value is None:
            problems.append(f"{claim.id}: value: a test measures it but the row gives no value of the paper")
        elif ours is None:
            problems.append(f"{claim.id}: value: no test recorded ours")
        else:
            kinds.add("matches" if abs(ours - claim.value) <= claim.tolerance else "differs")
    if "holds" in kinds and kinds & {"fails", "corrected"}:
        problems.append(f"{claim.id}: tests: one shows that it holds, another that it fails")
    if kinds & {"matches", "differs"} and kinds & {"holds", "fails", "corrected", "under"}:
        problems.append(f"{claim.id}: tests: shown both as a statement and as a result; choose one: {_names(kinds)}")
    verdict = _verdict(claim, kinds, [part.verdict for part in parts])
    methods = {s.by for s in passed if s.shows in ("holds", "under", "corrected")}
    if methods and claim.kind in GENERAL_KINDS and len(methods) < 2:
        problems.append(f"{claim.id}: tests: only {_names(methods)}; this kind, {claim.kind}, is judged in two ways")
    if verdict == "refuted" and not {s.by for s in passed} & {"exact", "symbolic"}:
        problems.append(f"{claim.id}: tests: a refutation needs exact or symbolic evidence")
    mutants = evidence["mutants"].get(claim.id, [])
    killed = sum(mutant["killed"] for mutant in mutants)
    if verdict not in ("open", "not-checkable"):
        if len(mutants) != len(claim.mutants):
            problems.append(f"{claim.id}: mutants: {len(mutants)} of {len(claim.mutants)} were run")
        for mutant in mutants:
            if not mutant["killed"]:
                change = f"{mutant['replace']!r} -> {mutant['by']!r}"
                problems.append(f"{claim.id}: mutants: {mutant['in']}: {change} survives: {mutant['how']}")
    if not shown and not parts and claim.expected not in ("open", "not-checkable"):
        problems.append(f"{claim.id}: tests: none is marked with this claim, which is expected to be {claim.expected}")
    elif verdict != claim.expected:
        problems.append(f"{claim.id}: expected: {claim.expected}, but the evidence gives {verdict}")
    return Judged(claim, verdict, passed, ours, killed, len(claim.mutants), tuple(problems))


def _names(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _verdict(claim: Claim, kinds: set[str], parts: Sequence[str]) -> str:
    """The verdict that a set of shown things gives. No row's `expected` enters here."""
    if not kinds and parts:
        return _whole(parts)
    if not kinds:
        return "not-checkable" if claim.why else "open"
    if "undecided" in kinds:
        return "inconclusive"
    if kinds & {"matches", "differs"}:
        if kinds >= {"matches", "differs"}:
            return "partly-reproduced"
        return "reproduced" if "matches" in kinds else "not-reproduced"
    if "holds" in kinds:
        return "verified" if not kinds & {"fails", "corrected"} else "inconclusive"
    if "corrected" in kinds:
        return "corrected" if "fails" in kinds else "inconclusive"
    if "under" in kinds:
        return "verified-under"
    return "refuted"


def _whole(parts: Sequence[str]) -> str:
    """The verdict on a figure or table from the verdicts on its parts."""
    if "open" in parts:
        return "open"
    good = [part in ("verified", "reproduced") for part in parts]
    if all(good):
        return "reproduced"
    if any(good) or "partly-reproduced" in parts:
        return "partly-reproduced"
    bad = any(part in ("not-reproduced", "refuted", "corrected") for part in parts)
    return "not-reproduced" if bad else "inconclusive"


def problems(judged: Iterable[Judged]) -> list[str]:
    """Every fault of every row, one line each."""
    return [line for row in judged for line in row.problems]


def meaning(claim: Claim, verdict: str) -> str:
    """What a verdict says of this row: a statement of ours was never printed."""
    said = VERDICTS[verdict]
    return said.replace("as printed", "as stated") if claim.origin == "ours" else said


def counts(judged: Iterable[Judged], origin: str = "paper") -> dict[str, int]:
    """How many of the paper's claims, or of ours, have each verdict, in the order of `VERDICTS`."""
    tally = Counter(row.verdict for row in judged if row.claim.origin == origin)
    return {verdict: tally[verdict] for verdict in VERDICTS if tally[verdict]}


def as_json(judged: Sequence[Judged]) -> dict[str, Any]:
    """The whole ledger as plain data, for `ledger.json`."""
    claims = [row.claim for row in judged]
    return {
        "counts": counts(judged),
        "claims": [
            {
                **{key: value for key, value in asdict(row.claim).items() if value not in ("", (), None)},
                "verdict": row.verdict,
                "ours": row.ours,
                "methods": row.methods,
                "tests": [asdict(shown) for shown in row.evidence],
                "mutants_killed": row.killed,
                "mutants_planted": row.planted,
                "falls_with_it": falls_with(claims, row.claim.id),
            }
            for row in judged
        ],
    }


# ---------------------------------------------------------------------------------------
# Evidence made for this state of the code


def digest(root: Path) -> str:
    """Digest of everything that the evidence depends on: both packages, the tests, recorded results, the pins."""
    paths = [root / name for name in ("pyproject.toml", "constraints.txt")]
    for folder in ("fop_theory", "fop_torch", "tests"):
        paths += [p for p in (root / folder).rglob("*") if p.suffix in (".py", ".yml", ".json", ".mplstyle")]
    paths += [p for p in (root / "book" / "results").rglob("*") if p.is_file()]
    whole = hashlib.sha256(sys.version.encode())
    for path in sorted(p for p in paths if p.exists()):
        whole.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def evidence_path(root: Path) -> Path:
    """Where a test run leaves its evidence."""
    return root / "_build" / "evidence.json"


def current_evidence(root: Path) -> dict[str, Any]:
    """Evidence for the code as it stands; runs the claim tests when there is none yet.

    Args:
        root: The checkout.

    Raises:
        LedgerError: If `root` has no tests or the run broke before it could leave evidence.
    """
    path = evidence_path(root)
    want = digest(root)
    why = "no evidence is here yet"
    if path.exists():
        why = "code, tests or records are not those of the evidence"
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("digest") == want:
            return found
    if not (root / "tests" / "conftest.py").exists():
        raise LedgerError([f"ledger: the verdicts come from the tests of a checkout, and {root} has none"])
    print(f"ledger: {why}; the claims' tests run now, which takes minutes ...", file=sys.stderr, flush=True)
    selection = ["-m", "claim or mutant", "-n", "auto"]
    command = [sys.executable, "-m", "pytest", "tests", "-q", *selection, f"--evidence={path}"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if not path.exists() or (found := json.loads(path.read_text(encoding="utf-8")))["digest"] != want:
        said = run.stdout[-2000:] + run.stderr[-1000:]
        raise LedgerError([f"ledger: the claim tests left no evidence; {' '.join(command[1:])} said:\n{said}"])
    return found
