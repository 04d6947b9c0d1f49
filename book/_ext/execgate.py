"""A red build stays red until its cause is mended.

Sphinx and the notebook cache both forget: a warning is given only by the build that reads
the page, and a failed page is not read again while its text stands still. Here a build
leaves a mark when it starts and takes it away when it ends without a warning and without a
failed page. While the mark is there, the next build reads every page anew; pages whose
cells passed come out of the cache, the others run again.

Pages that left the book are removed. The cells run without the user's own IPython profile,
whose start-up files could change a number. `execution.json`, beside the pages, says how
each page was executed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util import logging

logger = logging.getLogger(__name__)

KEYS = ("succeeded", "runtime", "method", "mtime", "error")


def executed_pages(app: Sphinx) -> dict[str, dict[str, Any]]:
    """How each page was executed; a page whose cells were never run counts as failed."""
    rows: dict[str, dict[str, Any]] = {}
    for docname in sorted(app.env.found_docs):
        data = NbMetadataCollector.get_exec_data(app.env, docname)
        if data:
            rows[docname] = {key: data[key] for key in KEYS}
        elif docname in app.env.fop_pages:
            rows[docname] = {**dict.fromkeys(KEYS), "succeeded": False, "error": "not executed"}
    return rows


def begin(app: Sphinx) -> None:
    """See whether the last build ended well, and mark this one as unfinished."""
    app.fop_mark = Path(app.outdir).parent / "unfinished"
    app.fop_was_red = app.fop_mark.exists()
    app.fop_start = time.time()
    app.fop_written = set()
    app.fop_mark.parent.mkdir(parents=True, exist_ok=True)
    app.fop_mark.write_text("A build starts with this file and removes it when all is well.\n", encoding="utf-8")
    profile = app.fop_mark.with_name("ipython") / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    # A kernel warns that its local connection is not encrypted, once a page.
    (profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n", encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(profile.parent)


def read_again(app: Sphinx, env, added, changed, removed) -> set[str]:
    """Every page, after a build that did not end well."""
    return set(env.found_docs) if app.fop_was_red else set()


def tell(app: Sphinx, doctree) -> None:
    """Say which page was executed, how long it took and why."""
    data = NbMetadataCollector.get_exec_data(app.env, app.env.docname)
    if data and data["mtime"] >= app.fop_start:
        said = "executed" if data["succeeded"] else "FAILED"
        why = app.fop_why.get(app.env.docname)
        because = f" (changed: {', '.join(why)})" if why else ""
        print(f"{app.env.docname}: {said} in {data['runtime']:.1f} s{because}", flush=True)


def gate(app: Sphinx, error: Exception | None) -> None:
    """Write `execution.json`; fail while a page's cells fail."""
    if error is not None:
        return
    rows = executed_pages(app)
    Path(app.outdir, "execution.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for docname, row in rows.items():
        if not row["succeeded"]:
            logger.error("%s: its cells failed (%s)", docname, row["error"])
            app.statuscode = 1


def note(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree) -> None:
    """Remember which pages this build has written."""
    app.fop_written.add(pagename)


def sweep(app: Sphinx, error: Exception | None) -> None:
    """Remove pages that the book no longer has: their numbers are old."""
    if error is not None or not app.fop_written:
        return
    kept = app.env.found_docs | app.fop_written
    for path in Path(app.outdir).rglob("*.html"):
        name = path.relative_to(app.outdir)
        if name.parts[0] != "_static" and name.with_suffix("").as_posix() not in kept:
            path.unlink()


def finish(app: Sphinx, error: Exception | None) -> None:
    """Take the mark away if nothing at all is wrong."""
    if error is None and not app._warncount and not app.statuscode:
        app.fop_mark.unlink(missing_ok=True)


def say_it_once(kind: type[BaseException], error: BaseException, trace) -> None:
    """Keep a fault that Sphinx has named from drowning in Jupyter Book's own traceback."""
    if not isinstance(error.__cause__, SphinxError):
        sys.__excepthook__(kind, error, trace)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the events; called by Sphinx."""
    sys.excepthook = say_it_once
    app.connect("builder-inited", begin)
    app.connect("env-get-outdated", read_again)
    app.connect("doctree-read", tell)
    # The report comes before, the mark goes after every check that others do at the end.
    app.connect("html-page-context", note)
    app.connect("build-finished", gate, priority=100)
    app.connect("build-finished", sweep, priority=100)
    app.connect("build-finished", finish, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
