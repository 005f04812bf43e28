"""Draw the book's picture of the review grid: the real widget, in a real JupyterLab, over a run's pools.

    python scripts/picture_review_grid.py runs/workshop

The run is copied, so that its pools stay unchanged.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from lab import start_lab  # noqa: E402

POOLS = ("memseg", "diag")
CELL = f"""
from defaug_utils.widgets.review_grid import ReviewGrid
ReviewGrid({list(POOLS)}, reviewer="ann", origin="diag")
"""


def draw_picture(run: Path, target: Path) -> None:
    """Review a few images by keyboard and save a screenshot of the widget."""
    with tempfile.TemporaryDirectory() as folder, start_lab(Path(folder)) as lab, sync_playwright() as engine:
        for name in POOLS:
            shutil.copytree(run / name, Path(folder) / name, ignore=shutil.ignore_patterns("review-*.csv"))
        browser = engine.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1120, "height": 1100})
        notebook = lab.open_notebook(page, "review.ipynb", [CELL])
        page.keyboard.press("Control+b")  # no file browser
        grid = notebook.run_cell(0).locator(".review-grid")
        review_some(page, grid)
        grid.screenshot(path=target, type="jpeg", quality=85)
        browser.close()


def review_some(page: Page, grid: object) -> None:
    expect(grid.locator(".review-grid-card")).to_have_count(16, timeout=60_000)
    for key in ("a", "a", "r", "a", "ArrowLeft", "ArrowLeft", "n"):
        grid.press(key)
    page.keyboard.type("cut off by the edge")
    page.keyboard.press("Enter")
    expect(grid.locator('.review-grid-card[data-decision="accepted"]')).to_have_count(3, timeout=60_000)
    expect(grid.locator(".review-grid-note", has_text="cut off")).to_be_visible(timeout=60_000)
    grid.evaluate("root => Promise.all([...root.querySelectorAll('img')].map((img) => img.decode()))")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run with the pools memseg and diag")
    parser.add_argument("--target", type=Path, default=ROOT / "book" / "_static" / "review_grid.jpg")
    given = parser.parse_args()
    draw_picture(given.run, given.target)
