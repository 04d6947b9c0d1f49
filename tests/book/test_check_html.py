"""The check of the built pages notices each fault that is planted in a page."""

from __future__ import annotations

import json

import pytest

from tests.book import check_html

GOOD = """<!doctype html><html lang="en"><head><title>T</title><meta name="viewport" content="width=device-width">
<link rel="stylesheet" href="style.css"></head><body><main><article id="top"><h1>T</h1><p>Words.</p>
<a href="#top">up</a> <a href="sub/other.html#there">over</a> <a href="https://example.org/">away</a>
<div class="cell_output"><figure><img src="a.svg" alt="A line that falls.">
<figcaption>A line.</figcaption></figure></div>
<svg role="img" aria-label="A dot"></svg><svg aria-hidden="true"></svg></article></main>BODY</body></html>"""
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0L9 9"/></svg>'
LEDGER = {
    "counts": {"verified": 1},
    "claims": [{"id": "a", "verdict": "verified"}, {"id": "b", "verdict": "open", "origin": "ours"}],
}


@pytest.fixture
def site(tmp_path):
    """A folder of pages; `plant(fault)` puts a fault into its index."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/other.html").write_text('<p id="there">x</p><a href="../index.html">back</a>', encoding="utf-8")
    (tmp_path / "style.css").write_text("", encoding="utf-8")
    (tmp_path / "a.svg").write_text(SVG, encoding="utf-8")
    (tmp_path / "ledger.json").write_text(json.dumps(LEDGER), encoding="utf-8")

    def plant(fault: str = ""):
        (tmp_path / "index.html").write_text(GOOD.replace("BODY", fault), encoding="utf-8")
        return tmp_path

    return plant


def test_a_sound_page_has_no_fault(site) -> None:
    root = site()
    assert [fault for check in check_html.FILE_CHECKS[:-1] for fault in check(root)] == []
    assert list(check_html.ledger_file(root, ["a", "b"])) == []


@pytest.mark.parametrize(
    ("check", "fault", "said"),
    [
        ("links", '<a href="gone.html">x</a>', "no such file"),
        ("links", '<a href="sub/other.html#gone">x</a>', "no such anchor"),
        ("links", '<a href="#gone">x</a>', "no such anchor"),
        ("links", '<script src="https://cdn.example.org/x.js"></script>', "another host"),
        ("links", '<link rel="stylesheet" href="//cdn.example.org/x.css">', "another host"),
        ("images", '<img src="a.svg">', "no alt text"),
        ("images", '<img src="a.svg" alt=" ">', "no alt text"),
        ("images", '<img src="a.svg" alt="_images/a.svg">', "no alt text"),
        ("images", '<div class="cell_output"><img src="a.svg" alt="A line."></div>', "no figure with a caption"),
        ("images", '<svg role="img"></svg>', "neither a label"),
        ("sizes", "<!--" + "x" * check_html.LARGEST + "-->", "more than 3 MB"),
        ("tracebacks", "<pre>Traceback (most recent call last):</pre>", "traceback"),
        ("tracebacks", '<div class="cell_output"><div class="traceback">E</div></div>', "traceback"),
        ("tracebacks", '<aside class="system-message">Unknown directive</aside>', "system message"),
    ],
)
def test_a_planted_fault_is_found(site, check, fault, said) -> None:
    faults = list(getattr(check_html, check)(site(fault)))
    assert len(faults) == 1
    assert faults[0].startswith("index.html: ")
    assert said in faults[0]


def test_a_source_listing_may_speak_of_tracebacks(site) -> None:
    listing = '<div class="source-page"><pre>"Traceback (most recent call last):"</pre></div>'
    assert list(check_html.tracebacks(site(listing))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"claims": LEDGER["claims"][:1]}, "b: missing"),
        ({"claims": [*LEDGER["claims"], {"id": "c", "verdict": "open", "origin": "ours"}]}, "c: no row"),
        ({"claims": [LEDGER["claims"][0], {"id": "b", "verdict": "fine", "origin": "ours"}]}, "'fine' is none"),
        ({"counts": {"verified": 2}}, "counts"),
    ],
)
def test_a_fault_of_the_ledger_is_found(site, change, said) -> None:
    root = site()
    (root / "ledger.json").write_text(json.dumps({**LEDGER, **change}), encoding="utf-8")
    assert [said in fault for fault in check_html.ledger_file(root, ["a", "b"])] == [True]


def test_a_missing_ledger_is_found(site) -> None:
    root = site()
    (root / "ledger.json").write_text("{", encoding="utf-8")
    assert len(list(check_html.ledger_file(root, ["a"]))) == 1
    (root / "ledger.json").unlink()
    assert len(list(check_html.ledger_file(root, ["a"]))) == 1


BROWSER_FAULTS = {
    '<p class="math">x</p>': "0 of 1 formulas are drawn",
    r"<p>so \(x\) is raw</p>": "raw LaTeX",
    "<mjx-merror>Undefined control sequence</mjx-merror>": "formula: Undefined",
    '<div style="width:2000px">wide</div>': "px wide in a window",
    '<img src="gone.png" alt="Gone.">': "not loaded",
    "<script>console.error('oh')</script>": "console: oh",
    "<script>undefined_function()</script>": "script: ",
    '<img src="https://example.org/x.png" alt="Far.">': "asks https://example.org/x.png",
    '<article><p style="color:#999;background:#fff">pale</p></article>': "contrast 2.8",
}


@pytest.mark.skipif(check_html.find_browser() is None, reason="needs Chromium")
def test_faults_that_a_browser_sees_are_found(site, monkeypatch) -> None:
    monkeypatch.setattr(check_html, "SCHEMES", ("light",))
    monkeypatch.setattr(check_html, "WIDTHS", (390,))
    root, names = site(), []
    assert list(check_html.browse(root, ["index"])) == []
    for number, fault in enumerate(BROWSER_FAULTS):
        names.append(f"page{number}")
        (root / f"page{number}.html").write_text(GOOD.replace("BODY", fault), encoding="utf-8")
    faults = list(check_html.browse(root, [*names, "gone"]))
    for name, said in zip(names, BROWSER_FAULTS.values(), strict=True):
        assert any(line.startswith(f"{name}.html, light, 390 px: ") and said in line for line in faults), said
    assert faults[-1].endswith("there is no such page")


def test_the_browser_opens_every_page_and_misses_none(site) -> None:
    assert check_html.opened(site()) == ["index", "ledger", "sub/other", "theory/hypergradient"]


def test_without_a_browser_the_check_fails(site, monkeypatch) -> None:
    monkeypatch.setattr(check_html.shutil, "which", lambda name: None)
    assert "no Chromium" in "".join(check_html.browse(site(), ["index"]))


def test_the_command_line(site, monkeypatch, capsys) -> None:
    monkeypatch.setattr(check_html, "browse", lambda root: iter(()))
    monkeypatch.setattr(check_html, "FILE_CHECKS", check_html.FILE_CHECKS[:-1])
    assert check_html.main([str(site())]) == 0
    assert "no fault" in capsys.readouterr().out
    check_html._soup.cache_clear()
    assert check_html.main([str(site('<a href="gone.html">x</a>'))]) == 1
    assert "gone.html" in capsys.readouterr().out
    assert check_html.main([]) == 2
