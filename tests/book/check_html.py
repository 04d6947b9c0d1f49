"""Check the built pages, as files and in a browser.

`python -m tests.book.check_html _build/html` prints one line a fault and exits with 1 if there is one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Error, sync_playwright

from fop_theory import ledger

#: A page that is larger takes seconds to open.
LARGEST = 3 * 1024 * 1024
#: Pages that a browser opens in any case: the landing page, the ledger and a chapter with formulas.
NEEDED = ("index", "ledger", "theory/hypergradient")
WIDTHS = (390, 1440)
SCHEMES = ("light", "dark")
#: Milliseconds that a page may take, on a machine that is busy with something else.
TIMEOUT = 120_000


@cache
def _soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def pages(root: Path) -> list[Path]:
    """Every HTML page, without what Sphinx copies beside them."""
    return sorted(path for path in root.rglob("*.html") if "_static" not in path.relative_to(root).parts)


def _where(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


@cache
def _anchors(path: Path) -> frozenset[str]:
    by_id = [str(tag["id"]) for tag in _soup(path).find_all(id=True)]
    return frozenset(by_id + [str(tag["name"]) for tag in _soup(path).find_all("a", attrs={"name": True})])


def links(root: Path) -> Iterator[str]:
    """Internal links and resources that lead nowhere, and resources of other hosts."""
    for page in pages(root):
        for tag in _soup(page).find_all(["a", "link", "script", "img", "source", "iframe", "object", "video"]):
            loads = tag.name != "a" and not (tag.name == "link" and _only_names(tag))
            for name in ("href", "src", "data"):
                target = tag.get(name)
                if target is None or str(target).startswith("data:"):
                    continue
                fault = _follow(page, str(target), loads=loads)
                if fault:
                    yield f"{_where(root, page)}: <{tag.name} {name}={str(target)!r}>: {fault}"


def _only_names(link: Tag) -> bool:
    return bool({"canonical", "author", "license", "alternate"} & set(link.get("rel") or ()))


def _follow(page: Path, target: str, *, loads: bool) -> str:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return "loaded from another host" if loads else ""
    file = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
    if file.is_dir():
        file = file / "index.html"
    if not file.is_file():
        return "there is no such file"
    anchor = unquote(parts.fragment)
    if anchor and file.suffix == ".html" and anchor not in _anchors(file):
        return "the page has no such anchor"
    return ""


def images(root: Path) -> Iterator[str]:
    """Images and drawings without words for those who do not see them; figures without a caption."""
    for page in pages(root):
        for tag in _soup(page).find_all("img"):
            alt = str(tag.get("alt") or "").strip()
            if not alt or alt == tag.get("src") or alt.startswith(("_images/", "../_images/")):
                yield f"{_where(root, page)}: <img src={tag.get('src')!r}> has no alt text"
            if tag.find_parent(class_="cell_output") and not _caption(tag):
                yield f"{_where(root, page)}: <img src={tag.get('src')!r}> stands in no figure with a caption"
        for tag in _soup(page).find_all("svg"):
            named = tag.get("aria-label") or tag.get("aria-labelledby") or tag.find("title", recursive=False)
            if not named and tag.get("aria-hidden") != "true" and not tag.find_parent(attrs={"aria-hidden": "true"}):
                yield f"{_where(root, page)}: an <svg> has neither a label nor aria-hidden"


def _caption(tag: Tag) -> bool:
    figure = tag.find_parent("figure")
    caption = figure.find("figcaption") if figure else None
    return bool(caption and caption.get_text(strip=True))


def sizes(root: Path) -> Iterator[str]:
    """Pages that are too large, with what they embed."""
    for page in pages(root):
        size = page.stat().st_size
        if size > LARGEST:
            yield f"{_where(root, page)}: {size / 2**20:.1f} MB, more than {LARGEST / 2**20:.0f} MB"


def tracebacks(root: Path) -> Iterator[str]:
    """Pages that show an error instead of a result."""
    for page in pages(root):
        soup = _soup(page)
        # A listing of source code may speak of tracebacks.
        shown = "".join(text for text in soup.find_all(string=True) if not text.find_parent(class_="source-page"))
        if "Traceback (most recent call last)" in shown or soup.select(".cell_output .traceback"):
            yield f"{_where(root, page)}: shows a traceback"
        for tag in soup.select(".system-message"):
            yield f"{_where(root, page)}: shows a system message: {' '.join(tag.get_text().split())[:120]}"
    if not pages(root):
        yield "there are no pages"


def ledger_file(root: Path, ids: Iterable[str] | None = None) -> Iterator[str]:
    """Faults of `ledger.json`: it lists every row, with a verdict, and its counts are those of its rows."""
    try:
        wanted = {claim.id for claim in ledger.read_claims()} if ids is None else set(ids)
        found = json.loads((root / "ledger.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a LedgerError is a ValueError
        yield f"ledger.json: {error}"
        return
    rows = found.get("claims", [])
    listed = Counter(row.get("id") for row in rows)
    for name in sorted(wanted ^ set(listed)):
        yield f"ledger.json: {name}: {'missing' if name in wanted else 'no row has this id'}"
    for row in rows:
        if row.get("verdict") not in ledger.VERDICTS:
            yield f"ledger.json: {row.get('id')}: verdict: {row.get('verdict')!r} is none"
    paper = (row.get("verdict") for row in rows if row.get("origin", "paper") == "paper")
    if found.get("counts") != dict(Counter(paper)):
        yield "ledger.json: counts: not those of its rows"


FILE_CHECKS: tuple[Callable[[Path], Iterator[str]], ...] = (links, images, sizes, tracebacks, ledger_file)


# ---------------------------------------------------------------------------------------
# In a browser


def find_browser() -> str | None:
    """Path of Chromium or Chrome."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


#: Faults of a page that only a browser sees, as an expression in its language.
LOOK = r"""() => {
  const faults = [];
  const formulas = document.querySelectorAll(".math").length;
  const drawn = document.querySelectorAll("mjx-container").length;
  if (drawn < formulas) faults.push(`${drawn} of ${formulas} formulas are drawn`);
  for (const error of document.querySelectorAll("mjx-merror, [data-mml-node=merror]"))
    faults.push("formula: " + (error.getAttribute("data-mjx-error") || error.textContent || "error"));
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const {parentElement: parent, data} = walk.currentNode;
    if (!parent.closest("script, style, code, pre, mjx-container") && /\\\(|\\\[|\$\$/.test(data))
      faults.push("raw LaTeX: " + data.trim().slice(0, 60));
  }
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) {
    const right = e => e.getBoundingClientRect().right;
    const clips = e => getComputedStyle(e).overflowX !== "visible";
    const inside = e => e && e !== document.body && (clips(e) || inside(e.parentElement));
    const free = [...document.body.querySelectorAll("*")].filter(e => !inside(e));
    const widest = free.sort((a, b) => right(b) - right(a))[0];
    const name = `<${widest.tagName.toLowerCase()}> ${widest.textContent.trim().slice(0, 60)}`;
    faults.push(`${wide} px wide in a window of ${innerWidth} px: ${name}`);
  }
  for (const image of document.images)
    if (image.complete && !image.naturalWidth) faults.push("not drawn: " + image.src);
  return faults;
}"""
#: Text that is hard to tell from what is behind it: WCAG 2 asks for a contrast ratio of 4.5.
CONTRAST = r"""() => {
  const numbers = color => color.match(/[\d.]+/g).map(Number);
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = color => {
    const [r, g, b] = numbers(color).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (numbers(color).length < 4 || numbers(color)[3] > 0.99) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const faults = new Set();
  const text = "p, li, dt, dd, summary, td, th, h1, h2, h3, pre span, figcaption span";
  for (const e of document.querySelectorAll(`article :is(${text})`)) {
    if (!e.checkVisibility() || !e.textContent.trim()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faults.add(`contrast ${ratio.toFixed(1)} of <${e.tagName.toLowerCase()} class="${e.className}">`);
  }
  return [...faults];
}"""


def opened(root: Path) -> list[str]:
    """What a browser opens: every page but the listings of source files."""
    names = [_where(root, path).removesuffix(".html") for path in pages(root)]
    return sorted({*NEEDED, *(name for name in names if not name.startswith("code/"))})


def browse(root: Path, names: Iterable[str] | None = None) -> Iterator[str]:
    """Open pages from disk, light and dark, narrow and wide; whatever goes wrong there."""
    program = find_browser()
    if program is None:
        yield "browser: there is no Chromium (chromium, chromium-browser or google-chrome) in PATH"
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for scheme in SCHEMES:
            for width in WIDTHS:
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                context.set_default_timeout(TIMEOUT)
                for name in opened(root) if names is None else names:
                    for fault in _open(context, root, name, scheme):
                        yield f"{name}.html, {scheme}, {width} px: {fault}"
                context.close()
        browser.close()


def _open(context, root: Path, name: str, scheme: str) -> list[str]:
    faults: list[str] = []
    page = context.new_page()
    page.on("console", lambda m: faults.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("requestfailed", lambda request: faults.append(f"not loaded: {request.url}"))
    page.on("request", lambda request: faults.append(f"asks {request.url}") if _is_remote(request.url) else None)
    path = root / f"{name}.html"
    if not path.is_file():
        page.close()
        return ["there is no such page"]
    try:
        page.goto(path.resolve().as_uri())
        page.evaluate("window.MathJax?.startup?.promise.then(() => null)")
        faults += page.evaluate(LOOK)
        faults += page.evaluate(CONTRAST)
        if page.evaluate("document.documentElement.dataset.theme") not in (scheme, None):
            faults.append("does not follow the system's colour scheme")
    except Error as error:
        faults.append(str(error).splitlines()[0])
    page.close()
    return faults


def _is_remote(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


def main(arguments: list[str]) -> int:
    """Run every check."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.book.check_html FOLDER-OF-THE-BUILT-PAGES", file=sys.stderr)
        return 2
    root = Path(arguments[0]).resolve()
    faults = [fault for check in FILE_CHECKS for fault in check(root)] + list(browse(root))
    print("\n".join(faults) or f"{len(pages(root))} pages checked, {len(opened(root))} of them in a browser: no fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
