"""`python -m fop_theory ledger`: the ledger in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

from fop_theory import ledger


def _row(row: ledger.Judged) -> str:
    killed = f"{row.killed}/{row.planted}" if row.planted else ""
    return f"{row.claim.id:<28} {row.verdict:<18} {killed:>5}  {row.claim.place}"


def _detail(row: ledger.Judged, claims: list[ledger.Claim]) -> str:
    claim = row.claim
    lines = [f"{claim.id}  ({claim.place})", f"verdict: {row.verdict}, {ledger.meaning(claim, row.verdict)}"]
    # What is planned is over when a row is judged; what will have been checked is prepared before.
    left_out = "checked" if row.verdict in ("open", "not-checkable") else "plan"
    for name in ("quote", "statement", "checked", "assumption", "correction", "why", "plan"):
        if getattr(claim, name) and name != left_out:
            lines.append(textwrap.fill(f"{name}: {getattr(claim, name)}", 100, subsequent_indent="  "))
    if claim.value is not None:
        ours = "not measured" if row.ours is None else f"{row.ours:g}"
        lines.append(f"paper: {claim.value:g} {claim.unit}  ours: {ours}  tolerance: {claim.tolerance:g}")
    if claim.witness:
        lines.append(f"witness: fop_theory/witnesses/{claim.witness}.py")
    lines += [f"test: {s.test} shows: {s.shows}, by: {s.by}" for s in row.evidence]
    if row.planted:
        lines.append(f"mutants: {row.killed} of {row.planted} killed")
    for title, names in (
        ("made of", claim.parts),
        ("rests on", claim.rests_on),
        ("what rests on it", ledger.falls_with(claims, claim.id)),
        ("in place of", claim.in_place_of),
        ("in its place", ledger.in_place_of(claims, claim.id)),
    ):
        if names:
            lines.append(textwrap.fill(f"{title}: {', '.join(names)}", 100, subsequent_indent="  "))
    return "\n".join(lines)


def _counted(judged: list[ledger.Judged], title: str, origin: str) -> str:
    found = ledger.counts(judged, origin)
    return f"{title}, {sum(found.values())}: {', '.join(f'{count} {verdict}' for verdict, count in found.items())}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 1 when a row that it prints has a problem, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m fop_theory", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("ledger", help="every claim of the paper and its verdict")
    show.add_argument("--claim", metavar="ID", help="one claim with all its evidence, for example eq-4")
    show.add_argument("--json", action="store_true", help="the ledger, or one claim of it, as JSON")
    options = parser.parse_args(arguments)
    root = Path(__file__).parents[1]
    try:
        claims = ledger.read_claims(book=root / "book" if (root / "book").exists() else None)
        if options.claim and options.claim not in {claim.id for claim in claims}:
            raise ledger.LedgerError([f"--claim: no row has the id {options.claim!r}"])
        judged = ledger.judge(claims, ledger.current_evidence(root))
    except ledger.LedgerError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = [row for row in judged if options.claim in (None, row.claim.id)]
    if options.json:
        whole = ledger.as_json(judged)
        one = next((row for row in whole["claims"] if row["id"] == options.claim), None)
        print(json.dumps(one or whole, indent=1))
    elif options.claim:
        print(_detail(chosen[0], claims))
    else:
        print("\n".join(map(_row, judged)))
        print(_counted(judged, "claims of the paper", "paper"))
        print(_counted(judged, "statements of ours", "ours"))
    faults = ledger.problems(chosen)
    if faults:
        print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
