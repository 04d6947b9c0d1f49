"""The optimizer's reference: docstrings with links to the pages of source, and the table of the forms."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from ledger_pages import page_of_source
from pagekeys import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fop_torch.assign import DEFAULT_RANK
from fop_torch.capabilities import CAPABILITIES, OPTIMIZERS, Capability
from fop_torch.options import OPTIONS
from fop_torch.preconditioners import FORMS

#: Parameters whose factors the table counts: the kernels and the weight of the guide's network.
EXAMPLES = {"kernels 32 × 16 × 3 × 3": (32, 16, 3, 3), "weight 10 × 512": (10, 512)}


class PreconditionerForms(SphinxDirective):
    """`{preconditioner-forms}`: what each form is, and how many numbers it learns."""

    def run(self) -> list[nodes.Node]:
        """Make the table from `FORMS`."""
        self.env.note_dependency(inspect.getfile(type(FORMS["spatial"])))
        head: list[list[nodes.Node]] = [[nodes.Text(text)] for text in ("form", "what it is")]
        head += [[nodes.Text(f"entries of M, {example}")] for example in EXAMPLES]
        rows = [head]
        for name, form in FORMS.items():
            said = " ".join((inspect.getdoc(form) or "").split("\n\n")[0].split())
            row: list[list[nodes.Node]] = [[nodes.literal(name, name)], [nodes.Text(said)]]
            rows.append(row + [[nodes.Text(_entries(name, shape))] for shape in EXAMPLES.values()])
        return [_table(rows)]


class Capabilities(SphinxDirective):
    """`{capabilities}`: what each optimizer can do."""

    def run(self) -> list[nodes.Node]:
        """Make the table from `CAPABILITIES`, of which the tests check every cell."""
        self.env.note_dependency(inspect.getfile(Capability))
        rows: list[list[list[nodes.Node]]] = [[[nodes.Text(text)] for text in ("", *OPTIMIZERS)]]
        topic = ""
        for row in CAPABILITIES:
            cells = [row.cells[name].split(":")[0] for name in OPTIMIZERS]
            if row.topic != topic:
                topic = row.topic
                rows.append([[nodes.emphasis("", topic)], *([] for _ in OPTIMIZERS)])
            # The sentence stands below the name: a column of its own would not fit a telephone.
            what = [nodes.strong("", row.name), nodes.Text(f": {row.sentence}")]
            rows.append([what, *([nodes.Text(cell)] for cell in cells)])
        return [_table(rows)]


def _entries(name: str, shape: tuple[int, ...]) -> str:
    """How many numbers M has, or a dash where the form does not fit."""
    form, size = FORMS[name], torch.Size(shape)
    try:
        form.check(size)
    except ValueError:
        return "–"
    entries = torch.Size(form.factor_shape(size, DEFAULT_RANK)).numel()
    return f"{entries:,}"


def _table(rows: list[list[list[nodes.Node]]]) -> nodes.table:
    table, group = nodes.table(classes=["forms"]), nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    lines = [nodes.row("", *[nodes.entry("", nodes.paragraph("", "", *cell)) for cell in row]) for row in rows]
    group += nodes.thead("", lines[0])
    group += nodes.tbody("", *lines[1:])
    table += group
    return table


@cache
def source_of(module: str, fullname: str) -> tuple[str, int] | None:
    """File inside the repository, and line, where a name that a page documents is defined."""
    found: Any = importlib.import_module(module)
    for part in fullname.split("."):
        found = getattr(found, part)
    found = inspect.unwrap(found.fget if isinstance(found, property) else found)
    file = inspect.getsourcefile(found) if inspect.isclass(found) or inspect.isfunction(found) else None
    if file is None or not Path(file).is_relative_to(ROOT):
        return None
    return Path(file).relative_to(ROOT).as_posix(), inspect.getsourcelines(found)[1]


def link(domain: str, info: dict[str, str]) -> str | None:
    """Where "[source]" leads; the pages that document code lie one folder deep."""
    found = source_of(info["module"], info["fullname"]) if domain == "py" else None
    return f"../{page_of_source(found[0])}.html#L{found[1]}" if found else None


def settings(app: Sphinx, config) -> None:
    """What autodoc, napoleon and linkcode read from the configuration."""
    config.linkcode_resolve = link
    config.autodoc_member_order = "bysource"
    config.python_maximum_signature_line_length = 88
    # A default is printed as the code has it, a class by its name.
    config.autodoc_preserve_defaults = True
    config.napoleon_use_ivar = True
    config.add_module_names = False
    # In a docstring, `backticks` hold code.
    config.default_role = "literal"
    # Names of torch and of Python have no page here; a name of ours must have one.
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, ("py:.*", r"(?!fop_torch\b|FOP\b|SHD\b|PPHD\b).*")]


def defaults(app: Sphinx, what, name: str, obj, options, signature: str | None, returns: str | None):
    """Print the values of FOP's options, which stand in a table of their own in the code."""
    if signature is None:
        return None
    return re.sub(r"OPTIONS\[[\"'](\w+)[\"']\]", lambda found: repr(OPTIONS[found[1]]), signature), returns


def sources(app: Sphinx) -> None:
    """Let the files of the optimizer have a page each, beside those that the evidence names."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fop_torch").glob("*.py")}
    app.fop_ledger.sources = sorted({*app.fop_ledger.sources, *files})


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything; called by Sphinx."""
    for extension in ("sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.linkcode"):
        app.setup_extension(extension)
    app.add_directive("preconditioner-forms", PreconditionerForms)
    app.add_directive("capabilities", Capabilities)
    app.connect("config-inited", settings)
    app.connect("autodoc-process-signature", defaults)
    # After the ledger was read.
    app.connect("builder-inited", sources, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
