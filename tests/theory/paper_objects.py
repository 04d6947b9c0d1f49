"""What the paper's text contains, found by regular expressions: the objects that the ledger's rows must cover.

The text itself is not part of the repository. `paper_objects.json` keeps what was found in it: labels, table
cells and number tokens by place, none of its prose. `python -m tests.theory.paper_objects PAPER.txt` writes it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

OBJECTS = Path(__file__).with_name("paper_objects.json")

#: Rows of Figure 2's two tables, in the order of the page.
METHODS = ("momentum", "S-HD", "PP-HD", "FOP-norm", "FOP")
#: A line with fewer words than this is a formula, a tick of an axis, a page number or a heading.
PROSE = 6
WORD = re.compile(r"[A-Za-z]{3,}")
#: Labels inside the plots that carry numbers of their own.
LEGEND = re.compile(r"^(Layer ?\d angles|FOP rank =|min, max)")
#: Where a caption ends although no heading follows: the first words of the text after it.
RESUMES = ("we describe the procedure", "where v is the velocity", "of two categories", "time limit of")
#: Digits that are no numbers of the paper's own: running heads, citations, references, names, indices of steps, links.
NOT_NUMBERS = re.compile(
    r"""^Under\ review.* | https?://\S+
    | \(?\b(19|20)\d\d[a-z]?\)?(?=[);,\s]|\.\s|\.$) (?<!maximum\ 2000)
    | \b(Sections?|Appendix|Equations?|Figures?|Fig\.|Algorithm|Theorem)\ [A\d][.\d]*\d?[a-c]?(\ and\ \d+)?
    | ^A\.1\)\. | CIFAR-10 | ResNet-18 | \b2D\b | \bL2\b | \|\|2 | ∣∣2 | ^\d+:\s | ^Layer\ ?\d
    | \([^()]*t\ ?[-+]\ ?1\) | [A-Za-z]\d+""",
    re.X,
)
NUMBER = re.compile(
    r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e ?- ?\d+)?(?![\da-su-wyzA-Z])"
    r"|\b(?:two-thirds|three|seven|ninth|one standard deviation)\b"
)


def _body(text: str) -> Iterator[tuple[int, str, str]]:
    """`(offset, place, line)` of every line outside the references; `place` is a section or a figure."""
    place, section, offset, references = "Abstract", "Abstract", 0, False
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if bare == "References":
            references = True
        elif bare.startswith("A Supplemental Information"):
            references = False
        heading = re.match(r"(A\. ?\d|\d(?:\.\d)?)\s+(?=[A-Z])(?!.*\.$)", bare)
        caption = re.match(r"Figure ([A\d.]+):", bare)
        if heading and not references:
            section = place = heading[1].replace(" ", "")
        elif caption:
            place = f"Figure {caption[1]}"
        elif bare.startswith(RESUMES):
            place = section
        if not references:
            yield offset, place, line
        offset += len(line)


def number_tokens(text: str) -> list[tuple[str, str, int]]:
    """`(place, token, offset)` of every number in the body's prose and in the legends of its figures."""
    found = []
    for offset, place, line in _body(text):
        bare = line.strip()
        legend = LEGEND.match(bare)
        if len(WORD.findall(bare)) < PROSE and not legend:
            continue
        if legend:
            place = "Figure A.2" if bare.startswith("FOP") else "Figure A.1"
        kept = NOT_NUMBERS.sub(lambda match: " " * len(match[0]), line)
        found += [(place, _plain(token[0]), offset + token.start()) for token in NUMBER.finditer(kept)]
    return found


def tokens_of(text: str) -> set[str]:
    """The number tokens of a row's quote or statement, written as in the inventory."""
    return {_plain(token[0]) for token in NUMBER.finditer(text)}


def _plain(token: str) -> str:
    return re.sub(r" ?- ?(?=\d)", "-", token)


def _tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Cells of Figure 2: test accuracy, its spread, added parameters, added time."""
    cells = r"\s+([\d.]+)\s*±\s*([\d.]+)\s+(?:≈ )?([\d.]+M?)\s+"
    table = re.compile("".join(re.escape(method) + cells for method in METHODS) + r"\s+".join([r"([\d.]+)"] * 5))
    tables = {}
    for data, match in zip(("cifar", "imagenet"), table.finditer(text), strict=True):
        groups = match.groups()
        tables[data] = {m: [*groups[3 * i : 3 * i + 3], groups[15 + i]] for i, m in enumerate(METHODS)}
    return tables


def objects(text: str) -> dict[str, Any]:
    """Everything in the paper's text that a row of the ledger must stand for."""
    body = [line.strip() for _, _, line in _body(text)]
    # The scan reads the label (20) as "QO)".
    labels = [int(m[1] or 20) for line in body if (m := re.search(r"(?:\((\d{1,2})\)|QO\))\.?$", line))]
    numbers: dict[str, list[str]] = {}
    for place, token, _ in number_tokens(text):
        numbers.setdefault(place, []).append(token)
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "equations": sorted(labels),
        "algorithms": [int(m[1]) for line in body if (m := re.match(r"Algorithm (\d) [A-Z]", line))],
        "theorems": sorted(int(m[1]) for line in body if (m := re.match(r"Theorem (\d) [A-Z]", line))),
        "figures": [m[1] for line in body if (m := re.match(r"Figure ([A\d.]+):", line))],
        "figure_2": _tables(text),
        "numbers": numbers,
    }


def reduced(text: str) -> str:
    """Lower-case letters and digits alone: what survives line breaks, hyphens and the scan's spacing."""
    return "".join(c for c in text.lower() if c.isascii() and c.isalnum())


class Searchable:
    """The paper's text in a form in which quotes are found whatever their spacing."""

    def __init__(self, text: str) -> None:
        self.offsets = [i for i, c in enumerate(text) if c.isascii() and c.isalnum()]
        self.plain = reduced(text)

    def spans(self, quote: str) -> list[list[tuple[int, int]]]:
        """For each piece of the quote (`…` stands between pieces): where it occurs, as offsets in the text."""
        pieces = [plain for piece in quote.split("…") if (plain := reduced(piece))]
        return [list(self._occurrences(piece)) for piece in pieces]

    def _occurrences(self, piece: str) -> Iterable[tuple[int, int]]:
        start = self.plain.find(piece)
        while start >= 0:
            yield self.offsets[start], self.offsets[start + len(piece) - 1] + 1
            start = self.plain.find(piece, start + 1)


def covered(offset: int, spans: list[tuple[int, int]]) -> bool:
    """Whether an offset lies in one of the sorted spans that `merged` gives."""
    at = bisect_right(spans, (offset, sys.maxsize)) - 1
    return at >= 0 and spans[at][0] <= offset < spans[at][1]


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans with overlapping ones joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


if __name__ == "__main__":
    found = objects(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # One line an entry keeps the file short and its diffs readable.
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.items()]
    OBJECTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
