"""The pages of a small book: opened one by one in a browser, none needs the network or ends in an error."""

from pathlib import Path

import pytest
from playwright.sync_api import Page


@pytest.mark.slow
def test_every_page_opens_without_network_and_without_an_error(small_book: Path, page: Page):
    problems = []
    page.on("request", lambda request: problems.append(request.url) if "://" in request.url[5:] else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    pages = [path for path in small_book.rglob("*.html") if "_static" not in path.parts]
    assert len(pages) > 20
    for path in pages:
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        assert problems == [], path.relative_to(small_book)
