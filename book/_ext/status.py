"""The page that says what ran, where, how long, and with which versions. Nothing on it is typed."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import machine
from docutils import nodes
from execgate import executed_pages
from pagekeys import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fop_theory import ledger

TABLES = ("pages", "machine", "evidence", "data", "versions")


class status_table(nodes.General, nodes.Element):  # noqa: N801 (docutils names its nodes so)
    """The place of one table; it is filled when the page is written, after every page was executed."""


class Status(SphinxDirective):
    """`{status} pages` and its like: one table."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Leave a place for the table."""
        kind = self.arguments[0]
        if kind not in TABLES:
            raise self.error(f"status: expected one of {', '.join(TABLES)}, got {kind!r}")
        self.env.fop_status = {*getattr(self.env, "fop_status", ()), self.env.docname}
        return [status_table(kind=kind)]


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _pages(app: Sphinx) -> Iterable[tuple[Any, ...]]:
    yield "Page", "Seconds", "Executed", "How"
    rows = executed_pages(app)
    for docname, row in rows.items():
        new = row["mtime"] is not None and row["mtime"] >= app.fop_start
        how = f"failed: {row['error']}" if not row["succeeded"] else "in this build" if new else "kept, nothing changed"
        runtime = "" if row["runtime"] is None else f"{row['runtime']:.1f}"
        yield docname, runtime, _clock(row["mtime"]) if row["mtime"] else "never", how
    yield "all pages", f"{sum(row['runtime'] or 0 for row in rows.values()):.1f}", "", ""


def _git(*arguments: str) -> str:
    said = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return said.stdout.strip() if said.returncode == 0 else ""


def _commit() -> str:
    head = _git("rev-parse", "HEAD")
    if not head:
        return "not a git checkout"
    return head[:12] + (", with changes that are not committed" if _git("status", "--porcelain") else "")


def _machine(app: Sphinx) -> Iterable[tuple[Any, ...]]:
    yield "Commit", _commit()
    yield "Built", _clock(app.fop_start)
    yield "Processor", f"{machine.cpu()}, {machine.cores()} cores"
    yield "Graphics", ", ".join(machine.gpus()) or "none"
    yield "System", machine.system()
    yield "Python", f"{platform.python_implementation()} {platform.python_version()}"
    yield "Profile", os.environ.get("FOP_PROFILE") or "not set"


def _evidence(app: Sphinx) -> Iterable[tuple[Any, ...]]:
    path = ledger.evidence_path(ROOT)
    if not path.exists():
        yield "Evidence", "none"
        return
    run = json.loads(path.read_text(encoding="utf-8"))
    current = run["digest"] == ledger.digest(ROOT)
    outcomes = Counter(test["outcome"] for test in run["tests"])
    mutants = [mutant for rows in run["mutants"].values() for mutant in rows]
    yield "Made", f"{run['made']}, Python {run['python']}, {run['seconds']} s"
    yield "For the code as it stands", "yes" if current else "no"
    yield "Tests of claims", ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "none"
    yield "Claims with a test", str(len({claim for test in run["tests"] for claim, *_ in test["claims"]}))
    yield "Examples drawn for a property", run["profile"] + " profile"
    yield "Planted faults noticed", f"{sum(mutant['killed'] for mutant in mutants)} of {len(mutants)}"


def _data(app: Sphinx) -> Iterable[tuple[Any, ...]]:
    yield "File", "Bytes", "SHA-256, first 16 digits"
    folder = os.environ.get("FOP_DATA", "")
    if not folder or not Path(folder).is_dir():
        yield "FOP_DATA names no folder", "", ""
        return
    for name, digest in app.fop_digests.tree(Path(folder)).items():
        yield name, f"{(Path(folder) / name).stat().st_size:,}", digest[:16]


def _versions(app: Sphinx) -> Iterable[tuple[Any, ...]]:
    yield "Package", "Pinned", "Installed"
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    for name, pinned in pins:
        try:
            yield name, pinned, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, pinned, "not installed"


def _table(rows: list[tuple[Any, ...]], *, heading: bool) -> nodes.table:
    width = len(rows[0])
    table, group = nodes.table(classes=["status"]), nodes.tgroup(cols=width)
    group += [nodes.colspec(colwidth=1) for _ in range(width)]
    body = nodes.tbody()
    for number, row in enumerate(rows):
        line = nodes.row()
        for cell in row:
            text = cell if isinstance(cell, nodes.Node) else nodes.Text(str(cell))
            line += nodes.entry("", nodes.paragraph("", "", text))
        if heading and number == 0:
            group += nodes.thead("", line)
        else:
            body += line
    group += body
    table += group
    return table


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the tables in their places."""
    makers = {"pages": _pages, "machine": _machine, "evidence": _evidence, "data": _data, "versions": _versions}
    for place in list(doctree.findall(status_table)):
        kind = place["kind"]
        rows = list(makers[kind](app))
        if kind == "pages":
            rows = [(_link(app, docname, name), *rest) for name, *rest in rows]
        place.replace_self(_table(rows, heading=kind in ("pages", "data", "versions")))


def _link(app: Sphinx, docname: str, name: str) -> nodes.Node:
    if name not in app.env.found_docs:
        return nodes.Text(name)
    uri = app.builder.get_relative_uri(docname, name)
    return nodes.reference("", app.env.titles[name].astext(), refuri=uri, internal=True)


def forget(app: Sphinx, env, docname: str) -> None:
    """Drop a page that no longer shows a table."""
    env.fop_status = getattr(env, "fop_status", set()) - {docname}


def rewrite(app: Sphinx, env) -> list[str]:
    """Write these pages in every build: what they show is about the build."""
    return sorted(getattr(env, "fop_status", ()))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything; called by Sphinx."""
    app.add_node(status_table)
    app.add_directive("status", Status)
    app.connect("env-purge-doc", forget)
    app.connect("env-updated", rewrite)
    app.connect("doctree-resolved", fill)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
