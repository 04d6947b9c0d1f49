"""Pages that need no network: MathJax lies beside them, and nothing else is fetched."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def use_local_mathjax(app: Sphinx, config) -> None:
    """Draw formulas as SVG: a page opened from disk then needs no font file, which some browsers refuse."""
    config.mathjax_path = "mathjax/tex-svg.js"


def drop_remote_scripts(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree) -> None:
    """Take out scripts that would start a remote kernel; this book's cells ran when it was built."""
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in str(s).lower() and "THEBE" not in _body(s)]


def _body(script: Any) -> str:
    return str(getattr(script, "attributes", {}).get("body", ""))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the events; called by Sphinx."""
    app.connect("config-inited", use_local_mathjax)
    app.connect("html-page-context", drop_remote_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
