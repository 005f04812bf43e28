"""The pages of a small book: opened one by one in a browser; none needs the network or keeps a reader out."""

import re
from collections import Counter
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

ALIKE = [".highlight", "tr:nth-child(n + 4)", ".bd-sidebar-primary", ".bd-sidebar-secondary"]  # on every page
DESK, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 844}
THEMES_OWN = {"region": "logo__title"}  # what axe finds in the theme's frame: rule → a part of the element
STILL = "* {transition: none !important}"  # colours that fade into one another are none of either theme
CUT = """() => [...document.querySelectorAll('.bd-article *')]
  .filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1)
  .filter((one) => getComputedStyle(one).overflowX !== 'visible')
  .map((one) => `${one.scrollWidth} > ${one.clientWidth}: ${one.innerText.slice(0, 200)}`)"""
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def list_pages(book: Path) -> list[Path]:
    """Every page of the book's text; `index.html` only leads on to the first of them."""
    pages = [path for path in book.rglob("*.html") if "_static" not in path.parts]
    pages.remove(book / "index.html")
    assert len(pages) > 20
    return pages


def list_violations(page: Page, without: Sequence[str] = (), **options: object) -> list[str]:
    """What axe finds in a page as it is now, the theme's own frame and what some selectors name left out."""
    run = "([exclude, options]) => axe.run({exclude}, {resultTypes: ['violations'], ...options})"
    found = page.evaluate(run, [list(without), options])
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found["violations"]
        for node in rule["nodes"]
        if THEMES_OWN.get(rule["id"], "\n") not in node["html"]
    ]


def list_coloured(pages: list[Path]) -> dict[Path, list[str]]:
    """The pages whose colours are looked at, each with what is left out.

    A chapter and a page of docstrings are looked at as a whole, since code, long tables and sidebars have the
    same colours everywhere.
    """
    made = [path for path in pages if path.parent.name == "api" or path.stem in ("genindex", "py-modindex")]
    chapters = [path for path in pages if path.parent.name == "notebooks"]
    return dict.fromkeys(set(pages) - set(made), ALIKE) | {min(chapters): [], min(made): []}


@pytest.mark.slow
def test_every_page_opens_without_network_and_without_an_error(small_book: Path, page: Page):
    problems = []
    page.on("request", lambda request: problems.append(request.url) if "://" in request.url[5:] else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    for path in list_pages(small_book):
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        assert problems == [], path.relative_to(small_book)


@pytest.mark.slow
def test_every_page_can_be_read_by_everybody_and_is_cut_nowhere(small_book: Path, page: Page):
    """In a light and a dark theme and on a phone; with the folds open, except for colours."""
    problems, pages = {}, list_pages(small_book)
    coloured = list_coloured(pages)
    for path in pages:
        page.set_viewport_size(DESK)
        page.goto(path.as_uri())
        page.add_style_tag(content=STILL)
        page.evaluate(AXE_SCRIPT)
        found = []
        for theme in ("light", "dark") if path in coloured else ():
            page.evaluate("theme => (document.documentElement.dataset.theme = theme)", theme)
            found += list_violations(page, coloured[path], runOnly=["color-contrast"])
        page.evaluate("document.querySelectorAll('.bd-article details').forEach((one) => (one.open = true))")
        found += page.evaluate(CUT) + list_violations(page, rules={"color-contrast": {"enabled": False}})
        page.set_viewport_size(PHONE)
        found += list_violations(page, runOnly=["scrollable-region-focusable"])
        found += ["wider than a phone"] * (page.evaluate(SIDEWAYS) > 0)
        if found:
            problems[str(path.relative_to(small_book))] = found
    assert problems == {}


@pytest.mark.slow
def test_every_link_within_the_book_holds_and_an_id_is_one_place(small_book: Path):
    texts = {path.resolve(): path.read_text(encoding="utf-8") for path in list_pages(small_book)}
    places = {path: re.findall(r'<[^>]*\sid="([^"]*)"', text) for path, text in texts.items()}
    for path, names in places.items():
        assert [name for name, count in Counter(names).items() if count > 1] == [], path.name
    broken = []
    for path, text in texts.items():
        for link in map(unescape, re.findall(r'<a [^>]*href="([^"]*)"', text)):
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = {"", "top", *places.get(target, ())}  # every page has a top
            if not parts.scheme and not (target.is_file() and unquote(parts.fragment) in known):
                broken.append((path.name, link))
    assert broken == []
