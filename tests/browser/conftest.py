"""Fixtures of the browser tests: one JupyterLab and one Chromium for all of them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import ANSWER_MS, SCREENSHOTS, Lab, start_lab
from playwright.sync_api import Browser, Page, expect, sync_playwright

expect.set_options(timeout=ANSWER_MS)  # a busy machine answers late


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:  # the hook is handed the tests of all folders
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; without it the tests are skipped, except where BROWSER_TESTS=required."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and os.environ.get("BROWSER_TESTS") == "required":
        pytest.fail("no chromium on the PATH, and BROWSER_TESTS=required: apt-get install chromium")
    if path is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with start_lab(tmp_path_factory.mktemp("lab")) as started:
        yield started


@pytest.fixture
def page(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1400, "height": 1000}, has_touch=True)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    yield opened
    SCREENSHOTS.mkdir(exist_ok=True)
    opened.screenshot(path=SCREENSHOTS / f"last-{request.node.name}.png")
    context.close()
