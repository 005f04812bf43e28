"""A data set whose every name is hostile, shown in the book and in JupyterLab: all is text, nothing runs."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from drawing import Drawing
from lab import ROOT, Lab
from layouts import draw_part, save, write_mvtec
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Locator, Page, expect

from defaug_utils.book.batch import execute_notebook
from defaug_utils.core.pools import GeneratedImage, PoolPlan, make_pool
from defaug_utils.protocol.review_store import PoolReview

FORMULA = r"$\href{javascript:window.__hacked=1}{a}$"
NAME = "<img src=planted.png onerror=window.__hacked=1> `b` $^$ {{x}}"  # as far as files may be called
LINK = r"[c](javascript:window.__hacked=1) \(x\) {raw}`d` **e** | f"
TEXT = f"{FORMULA} {NAME} <script>window.__hacked=1</script> {LINK}"
START = """
import os
import warnings
from pathlib import Path

import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Markdown, display

from defaug_utils import core, data, protocol, report, widgets
from defaug_utils.book import progress, start_notebook, watermark
from defaug_utils.core.pools import PoolUnfinished
from defaug_utils.protocol.scenarios import PromptDecision, Review, write_review

InteractiveShell.ast_node_interactivity = "all"
os.chdir({project!r})
hostile: str = {hostile!r}
folder, name = Path({folder!r}), {name!r}
run = start_notebook(str(folder / "run"), 0)
root, layout, category, test_share, seed = folder / "parts", "mvtec", "", 0.5, 0
leave_out, empty_masks = [], "refuse"
review, board = Review([PromptDecision(hostile, "accept", "", hostile)], []), core.make_prompts([hostile])
pool = core.read_manifest(folder / name / "manifest.csv")
"""
SHOWN = [
    "report.style_table(pool[['image', 'prompt', 'reviewer_note']].rename_axis(columns=hostile), hostile)",
    "pool[['image', 'prompt', 'reviewer_note']]",
    "report.show_pool(folder / name, pool, 'prompt')",
    "Markdown(report.describe_unfinished([hostile], pool.assign(scenario='few-shot', arm=hostile)))",
    "watermark()",
]
WAITING = "with progress(1) as bar:\n    raise PoolUnfinished(hostile)"  # ends the notebook
SET_FORMULA = "mjx-container, .katex"  # by MathJax, and by JupyterLab's MyST
OWN = "Markdown('$x$')"  # a formula that is one: when it is set, those before it would be
WIDGETS = """
core.write_manifest(dataset, root / "manifest.csv")
write_review(review, folder / "review.yaml")
from defaug_utils.widgets.studio import StudioImage, StudioRequest
from defaug_utils.widgets.studio_panel import StudioCard
widgets.ReviewGrid(folder / name)
widgets.make_review_form(board, folder / "review.yaml")
widgets.MaskDrawer(root, folder / "masks")
row = {"check_passed": False, "check_reason": hostile, "latent_cells": 1, "reviewer_note": hostile}
black = np.zeros((16, 16, 3), np.uint8)
StudioCard(StudioImage(StudioRequest("", black[..., 0] > 0, hostile), black, black, row), None)
"""


def read_cell(notebook: str, name: str) -> str:
    """The code of one cell of the book."""
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    return next(cell.source for cell in cells if cell.id == name)


@pytest.fixture
def cells(tmp_path: Path) -> list[str]:
    """Cells that show a data set, a pool and a review, each with hostile names and texts."""
    part = tmp_path / "parts" / NAME
    write_mvtec(part, (NAME,), train=2, per_type=2)
    save(part / "train" / NAME / f"{NAME}.png", draw_part(9)[0])  # of no layout: a warning names it
    mask = draw_part(7, is_positive=True)[1]
    made = [GeneratedImage(draw_part(7)[0], mask, {"prompt": TEXT, "check_passed": True, "check_reason": ""})]
    make_pool(tmp_path / NAME, Drawing(lambda indices, seeds: made), PoolPlan(1))
    review = PoolReview(tmp_path / NAME)
    review.write_note("images/000000.png", TEXT)
    review.fold()
    book = [("01_data_prep", "cell-08"), ("03_lora_finetune", "lora-32")]
    start = START.format(project=str(ROOT), folder=str(tmp_path), name=NAME, hostile=TEXT)
    return [start, *(read_cell(*place) for place in book), *SHOWN]


def watch(page: Page) -> list[str]:
    """What a script did in a page from now on, as far as it shows: dialogs, and requests for the picture."""
    seen: list[str] = []
    page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen.append(request.url) if "planted" in request.url else None)
    return seen


def expect_text_only(page: Page, place: Locator, seen: list[str], times: int) -> None:
    """The text stands there literally, so many times at least, and nothing came of it."""
    assert page.evaluate("window.__hacked") is None
    assert seen == []
    planted = f"img[src*=planted], a[href^='javascript:'], [onerror], {SET_FORMULA}"
    assert place.locator(planted).count() == 0
    shown = place.evaluate("place => place.textContent.replace(/\\s+/g, ' ')")
    assert shown.count(TEXT) >= times, shown


def build_page(site: Path) -> None:
    """A page by the book's parser with a bare theme, as its own takes a minute; warnings fail."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    settings = {
        "extensions": ["myst_nb"],
        "myst_enable_extensions": config["parse"]["myst_enable_extensions"],
        "nb_execution_mode": "off",
        "root_doc": "names",
        "html_theme": "basic",
        "suppress_warnings": config["sphinx"]["config"]["suppress_warnings"],
    }
    lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
    (site / "conf.py").write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", site, site / "html"]
    subprocess.run(command, check=True)


def test_a_page_of_the_book_shows_hostile_text_as_text(page: Page, cells: list[str], tmp_path: Path):
    notebook = new_notebook(
        cells=[new_markdown_cell("# Names"), *map(new_code_cell, [*cells, WAITING])],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "names.ipynb")
    site = tmp_path / "site"
    execute_notebook(tmp_path / "names.ipynb", site / "names.ipynb", {})
    build_page(site)
    seen = watch(page)
    page.goto((site / "html" / "names.html").as_uri())
    expect_text_only(page, page.locator("body"), seen, 8)


def test_jupyterlab_shows_hostile_text_as_text(lab: Lab, page: Page, cells: list[str]):
    start, *shown = cells
    seen = watch(page)
    opened = lab.open_notebook(page, "names.ipynb", [start, "\n".join(shown), WIDGETS, WAITING, OWN])
    opened.run_cell(0)
    outputs = [opened.run_cell(number).locator(".jp-OutputArea") for number in (1, 2, 3)]
    expect(outputs[1].locator(".review-grid-card, .mask-canvas, .studio-card")).to_have_count(3)
    expect(opened.run_cell(4).locator(SET_FORMULA).first).to_be_visible()
    opened.take_screenshot("names")
    for place, times in zip(outputs, (7, 6, 1), strict=True):
        expect_text_only(page, place.first, seen, times)
